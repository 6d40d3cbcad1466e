"""A whole run: plan, score the shards that are not done yet, finish."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from service.datasets.local import Engine, InThisProcess, Processes, WorkerSpec
from service.datasets.plan import OnBadFile, Plan, RunOptions, Shard, agreed
from service.datasets.report import NotDone, Report, Tally, as_html
from service.datasets.scored import p_value_column
from service.datasets.shards import OnBatch, ShardResult, Worker, done_of, row_files, scores_of
from service.errors import DataError
from service.files.formats.registry import FORMATS, IN_FOLDERS, Npy, Npz
from service.files.locations import TEMPORARY, OutFolder, found
from service.scoring.scorer import Scorer
from service.settings import read_settings
from service.system.cpus import cpu_quota
from service.system.files import is_url
from service.validity.conformal import RejectionLimit


@dataclass(frozen=True)
class Run:
    """A data set, a model and a results folder that have been checked to belong together."""

    plan: Plan
    shards: list[Shard]
    out: OutFolder
    scorer: Scorer
    on_bad_file: OnBadFile

    @staticmethod
    def start(source: str, out: str, options: RunOptions, scorer: Scorer, on_bad_file: OnBadFile = "stop") -> Run:
        """Scan all files, and start a run in the folder or resume the one there.

        Raises:
            DataError: a file is bad, the folder belongs to another run, or the options contradict each other.
        """
        scorer.check(options.score_options)
        folder = OutFolder(out)
        # Results are never input, even if their folder lies inside the input's.
        files = [file for file in found(source, IN_FOLDERS) if not folder.holds(file)]
        if not files:
            raise DataError(f"{source}: contains only results of this run")
        if options.write == "verdicts" and any(isinstance(FORMATS.get(file.suffix), Npy | Npz) for file in files):
            raise DataError("--write verdicts is not available for arrays, which have no columns for them: see scores/")
        plan = agreed(folder, files, options, scorer.model.input, on_bad_file)
        return Run(plan, plan.shards(files), folder, scorer, on_bad_file)

    def undone(self, part: tuple[int, int] = (0, 1)) -> list[Shard]:
        """The shards of part i of n that have no results yet.

        Skipped shards are included if `on_bad_file` is now "stop".
        """
        at, parts = part
        names = self.out.names()
        done = ((shard, done_of(shard, self.plan.options, self.out, names)) for shard in self.shards[at::parts])
        return [shard for shard, one in done if one is None or (one.bad is not None and self.on_bad_file == "stop")]

    def finish(self, engine: Engine, on_batch: OnBatch) -> Report:
        """Merge the shards' results: split by the false discovery rate, if one is set, and write the report.

        Raises:
            DataError: some shards are not done yet.
        """
        names = self.out.names()
        done = [done_of(shard, self.plan.options, self.out, names) for shard in self.shards]
        missing = [shard.number for shard, one in zip(self.shards, done, strict=True) if one is None]
        if missing:
            some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise DataError(f"{self.out.root}: {len(missing)} of {len(self.shards)} shards are not done yet: {some}")
        good = [shard for shard, one in zip(self.shards, done, strict=True) if one is not None and one.bad is None]
        limit = None
        if self.plan.options.fdr is not None:
            limit = self.limit(good)
            engine.split([shard for shard in good if not self.is_split(shard, limit, names)], limit, on_batch)
        report = self.report(good, limit, self.not_done(done))
        self.out.write("report.json", (report.model_dump_json(indent=2) + "\n").encode())
        self.out.write("report.html", as_html(report).encode())
        self.out.remove(TEMPORARY)
        return report

    def is_split(self, shard: Shard, limit: RejectionLimit, names: set[str]) -> bool:
        """Whether a shard was already split by this very limit; `names` are the folder's files."""
        if not names.issuperset(row_files(shard, self.plan.options)):
            return False
        column = p_value_column(self.plan.options.score_options)
        try:
            scores = scores_of(shard, self.out, [column, "discovery"])
        except (pa.ArrowInvalid, KeyError):
            return False
        if "discovery" not in scores.column_names:
            return False
        return bool((limit.chosen(scores.column(column).to_numpy()) == scores.column("discovery").to_numpy()).all())

    def limit(self, shards: Sequence[Shard]) -> RejectionLimit:
        """The largest p-value at which rows of the whole data set are discoveries."""
        options, column = self.plan.options, p_value_column(self.plan.options.score_options)
        values, counts = np.zeros(0), np.zeros(0, dtype=np.int64)
        for shard in shards:
            found_here = scores_of(shard, self.out, [column]).column(column).to_numpy()
            values, counts = merged(values, counts, *np.unique(found_here, return_counts=True))
        known = self.scorer.finest("combined" if options.combined else "band")
        assert options.fdr is not None
        return RejectionLimit.of(values, counts, options.fdr, "low", known)

    def report(self, shards: Sequence[Shard], limit: RejectionLimit | None, not_done: Sequence[NotDone]) -> Report:
        """Tally all shards' scores, in order."""
        tally = Tally(self.scorer, self.plan, limit)
        for shard in shards:
            tally.add(shard, scores_of(shard, self.out))
        return tally.report(not_done)

    def not_done(self, done: Sequence[ShardResult | None]) -> list[NotDone]:
        """What has no results: whole files and single shards."""
        files = [
            NotDone(file=file.name, rows="all", reason=file.bad) for file in self.plan.files if file.bad is not None
        ]
        files += [
            NotDone(file=file.name, rows="", reason=file.scan.skipped)
            for file in self.plan.files
            if file.scan is not None and file.scan.skipped is not None
        ]
        shards = [
            NotDone(
                file=shard.file.name,
                rows=f"{shard.row_range.first} to {shard.row_range.first + shard.row_range.rows - 1}",
                reason=one.bad,
            )
            for shard, one in zip(self.shards, done, strict=True)
            if one is not None and one.bad is not None
        ]
        return [*files, *shards]


def engine_of(
    name: str, run: Run, store: str, device: str, workers: int | None = None, address: str | None = None
) -> Engine:
    """The engine for a run's shards.

    Raises:
        DataError: the engine is unknown or not installed.
    """
    # Workers may run on another machine or start in another folder.
    place = store if is_url(store) else os.path.abspath(store)
    job = WorkerSpec(place, read_settings().cache(), device, run.out.absolute, run.plan.options, run.on_bad_file)
    if name == "ray":
        try:
            from service.datasets.ray_engine import Ray
        except ImportError:
            raise DataError("--engine ray needs the extra: pip install '.[ray]'") from None
        return Ray(job, workers, address)
    if name != "local":
        raise DataError("--engine: expected local or ray")
    on_gpu = run.scorer.model.vae.device.type != "cpu"
    number = min(workers or (1 if on_gpu else cpu_quota()), len(run.shards))
    if number <= 1:
        return InThisProcess(Worker(run.scorer, run.plan.options, run.out, run.on_bad_file))
    return Processes(job, number)


def merged(
    values: np.ndarray, counts: np.ndarray, more: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Merge two sets of distinct values with their counts; values ascend."""
    together, places = np.unique(np.concatenate([values, more]), return_inverse=True)
    return together, np.bincount(places, np.concatenate([counts, more_counts]), len(together)).astype(np.int64)
