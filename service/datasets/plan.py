"""What a run is: the files with their digests, the model with its, the options, and the shards that the work is cut into.

The plan is the first file that a run writes. Whoever comes later, after a crash or on another machine, must have the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from service._version import __version__
from service.data.inputs import InputSpec
from service.errors import DataError
from service.files.formats.registry import FORMATS, Format, ReadRequest, RowRange, Scan
from service.files.locations import InputFile, OutFolder
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.system.frozen import Frozen

PLAN, LOCK = ".vouch/run.json", ".vouch/lock"
SHARD_CELLS, LEAST_ROWS, MOST_ROWS = 2**21, 2**10, 2**16  # of a shard, where nobody says how many rows
SCANNERS = 8  # files that are looked at side by side
Write = Literal["split", "verdicts"]
OnBadFile = Literal["stop", "skip"]


class RunOptions(Frozen):
    """What a run's results depend on beside the data."""

    model: str
    model_digest: str
    version: str = __version__
    percentiles: tuple[float, float] | None = None
    combined: bool = False
    false_alarm: float | None = None
    tail: Literal["low", "both"] = "both"
    explain: int = 0
    fdr: float | None = None
    key: str | None = None
    write: Write = "split"
    shard_rows: int

    @staticmethod
    def of(
        scorer: Scorer, options: ScoreOptions, key: str | None, write: Write, shard_rows: int | None = None
    ) -> RunOptions:
        """How a scorer is to judge rows, and what to write of them; shards have as many rows as suits their width."""
        combined = options.rule == "combined"
        return RunOptions(
            model=str(scorer.published.reference),
            model_digest=scorer.published.digest,
            percentiles=options.band_percentiles,
            combined=combined,
            false_alarm=options.false_alarm if combined else None,
            explain=options.explain,
            fdr=options.fdr,
            key=key,
            write=write,
            shard_rows=shard_rows or usual_shard_rows(scorer.model.input.features),
        )

    @property
    def score_options(self) -> ScoreOptions:
        """How rows are judged."""
        return ScoreOptions(
            "combined" if self.combined else "band",
            self.percentiles,
            self.false_alarm,
            None if self.combined or self.false_alarm is None else self.tail,
            self.fdr,
            self.explain,
        )

    def difference(self, other: RunOptions) -> str | None:
        """The first thing that is otherwise in another run, in words."""
        for name, value in self:
            if (there := getattr(other, name)) != value:
                return f"{name.replace('_', ' ')} {there} there, {value} here"
        return None


def usual_shard_rows(features: int) -> int:
    """Rows of a shard: a few megabytes of numbers."""
    return max(LEAST_ROWS, min(MOST_ROWS, 1 << (SHARD_CELLS // features).bit_length() - 1))


class PlannedFile(Frozen):
    """A file of the data set: `name` below its root, `seen` as its place tells of its version; or why it is `bad`."""

    name: str
    seen: str
    scan: Scan | None = Field(alias="survey")  # run.json keeps the names that unfinished runs have
    bad: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of a file's rows, which are read, scored, written and marked as done together.

    `number` counts through the data set, and `first` its rows; `part` names the files of its results.
    """

    number: int
    first: int
    file: InputFile
    header: str
    row_range: RowRange
    part: str
    key: str

    @property
    def file_format(self) -> Format:
        """The format of its file."""
        return FORMATS[self.file.suffix]

    @property
    def marker(self) -> str:
        """The file that says that it is done."""
        return f".vouch/done/{self.part}.json"

    @property
    def scores(self) -> str:
        """The file of its scores."""
        return f"scores/{self.part.removesuffix('.parquet')}.parquet"


class Plan(Frozen):
    """A run's options, and its files in order."""

    options: RunOptions
    files: tuple[PlannedFile, ...]

    @property
    def rows(self) -> int:
        """How many rows there are to score."""
        return sum(file.scan.rows for file in self.files if file.scan is not None)

    def shards(self, files: Sequence[InputFile]) -> list[Shard]:
        """The shards, of files that are the planned ones."""
        shards: list[Shard] = []
        first = 0
        for planned, file in zip(self.files, files, strict=True):
            if planned.scan is None:
                continue
            ranges = planned.scan.ranges
            for place, row_range in enumerate(ranges):
                part = part_name(planned.name, place, len(ranges))
                key = digest_of(planned.scan.digest, self.options.model_dump_json(), str(row_range))
                shards.append(Shard(len(shards), first, file, planned.scan.header, row_range, part, key))
                first += row_range.rows
        names = Counter(name for shard in shards for name in (shard.part, shard.scores))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise DataError(f"two files would have results called {twice[0]}: filter them into folders of their own")
        return shards


def part_name(name: str, place: int, parts: int) -> str:
    """What the results of a part of a file are called: as the file, where it is the only one."""
    if parts == 1:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{place:05d}-of-{parts:05d}{dot}{suffix}"


def digest_of(*parts: str) -> str:
    """sha256 of some texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def planned(
    files: Sequence[InputFile],
    options: RunOptions,
    spec: InputSpec,
    on_bad_file: OnBadFile,
    before: Plan | None = None,
) -> Plan:
    """Look at every file; at those that are as they were when an earlier plan was made, not again.

    Raises:
        DataError: a file is damaged or is not what the model reads, where the run is to stop at such.
    """
    wanted = ReadRequest(spec, options.key, options.shard_rows)
    known = {one.name: one for one in before.files} if before is not None else {}

    def looked_at(file: InputFile) -> PlannedFile:
        seen, earlier = file.version(), known.get(file.name)
        if earlier is not None and earlier.seen == seen and (earlier.bad is None or on_bad_file == "skip"):
            return earlier
        try:
            file_format = FORMATS.get(file.suffix)
            if file_format is None:
                raise DataError(f"is of no format that is read: {', '.join(FORMATS)}")
            return PlannedFile(name=file.name, seen=seen, scan=file_format.scan(file, wanted))
        except DataError as error:
            if on_bad_file == "stop":
                raise DataError(f"{file.path}: {error}") from None
            return PlannedFile(name=file.name, seen=seen, scan=None, bad=str(error))

    with ThreadPoolExecutor(SCANNERS) as pool:
        return Plan(options=options, files=tuple(pool.map(looked_at, files)))


def agreed(
    out: OutFolder, files: Sequence[InputFile], options: RunOptions, spec: InputSpec, on_bad_file: OnBadFile
) -> Plan:
    """The plan that the folder has or, in an empty one, a new one, which is written there.

    Raises:
        DataError: the folder belongs to another run, or is not empty and belongs to none; or a file is bad.
    """
    with locked(out):
        names = out.names()
        if PLAN not in names:
            if not all(name.startswith(".vouch/") for name in names):
                raise DataError(f"{out.root}: is not empty and holds no run of `vouch filter`: choose another folder")
            plan = planned(files, options, spec, on_bad_file)
            if not plan.rows and all(file.bad is None for file in plan.files):
                raise DataError(f"{files[0].path}{' and others' if len(files) > 1 else ''}: no rows")
            out.write(PLAN, plan.model_dump_json(indent=1).encode())
            return plan
        try:
            before = Plan.model_validate_json(out.read(PLAN))
        except ValidationError:
            raise DataError(f"{out.root}: its {PLAN} is damaged: choose another folder") from None
    difference = options.difference(before.options)
    if difference is None:
        difference = other_files(before, planned(files, options, spec, on_bad_file, before))
    if difference is not None:
        raise DataError(f"{out.root}: belongs to another run ({difference}): choose another folder")
    return before


def other_files(before: Plan, now: Plan) -> str | None:
    """The first file that is not what it was, in words."""
    there, here = ({file.name: file for file in plan.files} for plan in (before, now))
    for name in sorted(there.keys() | here.keys()):
        if name not in here:
            return f"of a file {name} that is not here"
        if name not in there:
            return f"without the file {name}"
        if there[name].scan != here[name].scan:
            return f"{name} has changed since"
    return None


@contextlib.contextmanager
def locked(out: OutFolder) -> Iterator[None]:
    """Let one process at a time make a folder's plan, where there are locks."""
    if not out.is_local:
        yield
        return
    path = Path(out.at(LOCK))
    if Path(out.path).is_dir() and any(Path(out.path).iterdir()) and not path.parent.is_dir():
        yield  # somebody else's folder: nothing is put there
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
