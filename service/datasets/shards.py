"""Work on one shard: read, score, write, mark as done; later, if a false discovery rate is set, split by it.

Each result file appears whole, the marker last. A shard that is done twice has the same results, byte for byte.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq
from pydantic import ValidationError

from service.datasets.plan import OnBadFile, RunOptions, Shard
from service.datasets.scored import p_value_column, score_table
from service.errors import DataError, RowError
from service.files.formats.base import LINE
from service.files.formats.registry import Reader
from service.files.locations import OutFolder
from service.scoring.scorer import Scorer
from service.system.frozen import Frozen
from service.validity.conformal import RejectionLimit

PREFIX = "vouch_"  # of verdict columns, to tell them from the rows' own
OnBatch = Callable[[int, int], None]


class ShardResult(Frozen):
    """A shard's marker: the key it was done under and its row counts, or why it is `bad`."""

    key: str
    rows: int
    invalid: int = 0
    bad: str | None = None


@dataclass
class ShardReader:
    """Reads shards; a file stays open between its shards, which come in order."""

    opened: tuple[str, Reader] | None = None

    def read(self, shard: Shard) -> pa.Table:
        """A shard's raw rows.

        Raises:
            DataError: says what cannot be read.
        """
        if self.opened is None or self.opened[0] != shard.file.path:
            self.close()
            self.opened = shard.file.path, shard.file_format.reader(shard.file, shard.header)
        try:
            return self.opened[1].rows(shard.row_range)
        except DataError:
            self.close()
            raise

    def close(self) -> None:
        if self.opened is not None:
            self.opened[1].close()
            self.opened = None


@dataclass
class Worker:
    """Scores and splits shards into a results folder."""

    scorer: Scorer
    options: RunOptions
    out: OutFolder
    on_bad_file: OnBadFile
    reader: ShardReader = field(default_factory=ShardReader)

    def score(self, shard: Shard, on_batch: OnBatch = lambda rows, invalid: None) -> ShardResult:
        """Score a shard and split it, unless a false discovery rate is set: that needs all shards' p-values.

        Raises:
            DataError: it cannot be read, and `on_bad_file` is "stop"; names the file and the row.
        """
        try:
            raw = self.reader.read(shard)
        except DataError as error:
            return self.refused(shard, error)
        return self.score_rows(shard, raw, on_batch)

    def score_rows(self, shard: Shard, raw: pa.Table, on_batch: OnBatch = lambda rows, invalid: None) -> ShardResult:
        """Score a shard whose raw rows have been read."""
        options = self.options.score_options
        reader = replace(self.scorer.judging_reader(options.strict), refuses_unknown=False)
        try:
            cells = shard.file_format.cells(raw, shard.header, reader)
            scores = score_table(self.scorer, cells, options, on_batch)
            lines = raw.column(LINE) if LINE in raw.column_names else pa.nulls(len(raw), pa.int64())
            scores = scores.append_column("line", lines)
            is_valid = np.array(scores.column("verdict").to_pylist()) == "valid"
            if self.options.fdr is None:
                self.write_rows(shard, raw, scores, is_valid)
            elif self.options.write == "verdicts":
                # Try it now, not hours later when all rows are scored: the format may refuse.
                shard.file_format.write_beside(raw, beside(scores), shard.header)
        except RowError as error:
            if LINE not in raw.column_names:
                return self.refused(shard, error)
            return self.refused(shard, DataError(error.in_place(f"line {raw.column(LINE)[error.row]}")))
        except DataError as error:
            return self.refused(shard, error)
        self.out.write(shard.scores, as_parquet(scores))
        return self.mark(shard, ShardResult(key=shard.key, rows=len(raw), invalid=int((~is_valid).sum())))

    def split(self, shard: Shard, limit: RejectionLimit) -> None:
        """Split a shard into discoveries, the invalid rows, and others; its scores mark the discoveries."""
        try:
            raw = self.reader.read(shard)
        except DataError as error:
            raise DataError(f"{shard.file.path}: {error}") from None
        self.split_rows(shard, raw, limit)

    def split_rows(self, shard: Shard, raw: pa.Table, limit: RejectionLimit) -> None:
        """Split a shard whose raw rows have been read."""
        scores = scores_of(shard, self.out)
        chosen = limit.chosen(scores.column(p_value_column(self.options.score_options)).to_numpy())
        if "discovery" in scores.column_names:
            scores = scores.drop_columns("discovery")
        scores = scores.append_column("discovery", pa.array(chosen, pa.bool_()))
        self.write_rows(shard, raw, scores, ~chosen)
        self.out.write(shard.scores, as_parquet(scores))

    def write_rows(self, shard: Shard, raw: pa.Table, scores: pa.Table, is_valid: np.ndarray) -> None:
        """Write valid and invalid rows apart or, with --write verdicts, all rows with their verdicts."""
        file_format = shard.file_format
        if self.options.write == "verdicts":
            self.out.write(f"rows/{shard.part}", file_format.write_beside(raw, beside(scores), shard.header))
            return
        for folder, chosen in (("valid", is_valid), ("invalid", ~is_valid)):
            self.out.write(f"{folder}/{shard.part}", file_format.write(raw.filter(pa.array(chosen)), shard.header))

    def refused(self, shard: Shard, error: DataError) -> ShardResult:
        """Mark a shard as bad, or raise if `on_bad_file` is "stop"."""
        problem = str(error.after(shard.row_range.first)) if isinstance(error, RowError) else str(error)
        if self.on_bad_file == "stop":
            raise DataError(f"{shard.file.path}: {problem}") from None
        return self.mark(shard, ShardResult(key=shard.key, rows=shard.row_range.rows, bad=problem))

    def mark(self, shard: Shard, done: ShardResult) -> ShardResult:
        self.out.write(shard.marker, done.model_dump_json().encode())
        return done


def beside(scores: pa.Table) -> pa.Table:
    """Scores with prefixed names, to stand beside the rows' own columns."""
    return scores.rename_columns([PREFIX + name for name in scores.column_names])


def results(shard: Shard, options: RunOptions) -> list[str]:
    """The result files of a scored shard; with a false discovery rate, its rows are written later."""
    return [shard.scores] if options.fdr is not None else [shard.scores, *row_files(shard, options)]


def row_files(shard: Shard, options: RunOptions) -> list[str]:
    folders = ["rows"] if options.write == "verdicts" else ["valid", "invalid"]
    return [f"{folder}/{shard.part}" for folder in folders]


def done_of(shard: Shard, options: RunOptions, out: OutFolder, names: set[str]) -> ShardResult | None:
    """A shard's marker, if it and all results are among the folder's files `names`."""
    if shard.marker not in names:
        return None
    try:
        done = ShardResult.model_validate_json(out.read(shard.marker))
    except ValidationError:
        return None
    there = done.bad is not None or names.issuperset(results(shard, options))
    return done if done.key == shard.key and there else None


def scores_of(shard: Shard, out: OutFolder, columns: list[str] | None = None) -> pa.Table:
    """A shard's scores, all columns or some."""
    return pq.read_table(io.BytesIO(out.read(shard.scores)), columns=columns)


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
