"""The plan of a run: files and model with their digests, the options, and the shards that divide the work.

The plan is the first file that a run writes. A process that joins later, after a crash or on another machine, must
arrive at the same plan.
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
from service.files.dialect import AS_SHOWN, TextOptions
from service.files.formats.registry import FORMATS, Format, ReadRequest, RowRange, Scan
from service.files.locations import InputFile, OutFolder, suffix_of
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.system.frozen import Frozen

PLAN, LOCK = ".vouch/run.json", ".vouch/lock"
SHARD_CELLS, LEAST_ROWS, MOST_ROWS = 2**21, 2**10, 2**16  # size of a shard, unless --shard-rows says
SCANNERS = 8  # files scanned in parallel
Write = Literal["split", "verdicts"]
OnBadFile = Literal["stop", "skip"]


class RunOptions(Frozen):
    """Everything that a run's results depend on besides the data."""

    model: str
    model_digest: str
    version: str = __version__
    percentiles: tuple[float, float] | None = None
    combined: bool = False
    false_alarm: float | None = None
    tail: Literal["low", "both"] = "both"
    explain: int = 0
    fdr: float | None = None
    strict: bool = False
    key: str | None = None
    write: Write = "split"
    shard_rows: int
    text: TextOptions | None = None

    @staticmethod
    def of(
        scorer: Scorer,
        options: ScoreOptions,
        key: str | None,
        write: Write,
        shard_rows: int | None = None,
        text: TextOptions = AS_SHOWN,
    ) -> RunOptions:
        """The options of a run with this scorer. Without `shard_rows`, shards are sized by the row width."""
        options = scorer.resolved(options)
        combined = options.rule == "combined"
        return RunOptions(
            model=str(scorer.published.reference),
            model_digest=scorer.published.digest,
            percentiles=options.band_percentiles,
            combined=combined,
            false_alarm=options.false_alarm if combined else None,
            explain=options.explain,
            fdr=options.fdr,
            strict=options.strict,
            key=key,
            write=write,
            shard_rows=shard_rows or usual_shard_rows(scorer.model.input.features),
            text=None if text == AS_SHOWN else text,
        )

    def key_text(self) -> str:
        """The options as JSON, for the keys of shards; unchanged for runs from before an option was there."""
        usual = {"text": None, "strict": False}
        return self.model_dump_json(exclude={name for name, value in usual.items() if getattr(self, name) == value})

    @property
    def score_options(self) -> ScoreOptions:
        return ScoreOptions(
            "combined" if self.combined else "band",
            self.percentiles,
            self.false_alarm,
            None if self.combined or self.false_alarm is None else self.tail,
            self.fdr,
            self.explain,
            self.strict,
        )

    def difference(self, other: RunOptions) -> str | None:
        """The first option that differs in another run, in words; None if all are equal."""
        for name, value in self:
            if (there := getattr(other, name)) != value:
                return f"{name.replace('_', ' ')}: {there} then, {value} now"
        return None


def usual_shard_rows(features: int) -> int:
    """Default number of rows per shard: a few megabytes of numbers."""
    return max(LEAST_ROWS, min(MOST_ROWS, 1 << (SHARD_CELLS // features).bit_length() - 1))


class PlannedFile(Frozen):
    """A file of the data set.

    `name` is relative to the data set's root, `seen` is the version that its filesystem reports, and `bad` says why it
    cannot be read.
    """

    name: str
    seen: str
    scan: Scan | None = Field(alias="survey")  # the field's name in run.json of unfinished runs
    bad: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of a file's rows, which are read, scored, written and marked as done together.

    `number` and `first` count shards and rows through the data set; `part` names the shard's result files.
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
        return FORMATS[self.file.suffix]

    @property
    def marker(self) -> str:
        """Path of the file that marks the shard as done."""
        return f".vouch/done/{self.part}.json"

    @property
    def scores(self) -> str:
        return f"scores/{self.part.removesuffix('.parquet')}.parquet"


class Plan(Frozen):
    """A run's options, and its files in order."""

    options: RunOptions
    files: tuple[PlannedFile, ...]

    @property
    def rows(self) -> int:
        """Number of rows to score."""
        return sum(file.scan.rows for file in self.files if file.scan is not None)

    def shards(self, files: Sequence[InputFile]) -> list[Shard]:
        """The shards of the planned files, given as `files` in the same order.

        Raises:
            DataError: two files would produce the same result file.
        """
        shards: list[Shard] = []
        first = 0
        for planned, file in zip(self.files, files, strict=True):
            if planned.scan is None:
                continue
            ranges = planned.scan.ranges
            for place, row_range in enumerate(ranges):
                part = part_name(planned.name, place, len(ranges))
                key = digest_of(planned.scan.digest, self.options.key_text(), str(row_range))
                shards.append(Shard(len(shards), first, file, planned.scan.header, row_range, part, key))
                first += row_range.rows
        names = Counter(name for shard in shards for name in (shard.part, shard.scores))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise DataError(
                f"two files would produce the same result file {twice[0]}: filter them into separate folders"
            )
        return shards


def part_name(name: str, place: int, parts: int) -> str:
    """Name of a part's result files: the file's own name if it is the only part."""
    if parts == 1:
        return name
    suffix = suffix_of(name)
    return f"{name.removesuffix(suffix)}-{place:05d}-of-{parts:05d}{suffix}"


def digest_of(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def planned(
    files: Sequence[InputFile],
    options: RunOptions,
    spec: InputSpec,
    on_bad_file: OnBadFile,
    before: Plan | None = None,
) -> Plan:
    """Scan every file, except those unchanged since an earlier plan.

    Raises:
        DataError: a file is damaged or does not suit the model, and `on_bad_file` is "stop".
    """
    wanted = ReadRequest(spec, options.key, options.shard_rows, options.text or AS_SHOWN, on_bad_file == "stop")
    known = {one.name: one for one in before.files} if before is not None else {}

    def looked_at(file: InputFile) -> PlannedFile:
        seen, earlier = file.version(), known.get(file.name)
        if earlier is not None and earlier.seen == seen and (earlier.bad is None or on_bad_file == "skip"):
            return earlier
        try:
            file_format = FORMATS.get(file.suffix)
            if file_format is None:
                raise DataError(f"unsupported format, expected one of {', '.join(FORMATS)}")
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
    """The folder's plan or, in an empty folder, a new plan, which is written there.

    Raises:
        DataError: the folder belongs to another run, or is not empty and not a run; or a file is bad.
    """
    with locked(out):
        names = out.names()
        if PLAN not in names:
            if not all(name.startswith(".vouch/") for name in names):
                raise DataError(f"{out.root}: the folder is not empty and not a run of `vouch filter`: choose another")
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
    """The first file that was added, removed or changed, in words; None if all are the same."""
    there, here = ({file.name: file for file in plan.files} for plan in (before, now))
    for name in sorted(there.keys() | here.keys()):
        if name not in here:
            return f"{name} is missing"
        if name not in there:
            return f"{name} is new"
        if there[name].scan != here[name].scan:
            return f"{name} has changed"
    return None


@contextlib.contextmanager
def locked(out: OutFolder) -> Iterator[None]:
    """Hold the folder's lock, so that one process at a time makes the plan. Remote folders have no locks."""
    if not out.is_local:
        yield
        return
    path = Path(out.at(LOCK))
    if Path(out.path).is_dir() and any(Path(out.path).iterdir()) and not path.parent.is_dir():
        yield  # not a run's folder: write nothing into it
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
