"""Training rows that do not fit into memory: Parquet files, read again in every pass, each process its part.

Which rows are held back or sampled is drawn from the seed for each piece of a file, so every reader gets the same
answer and nothing is stored. A pass goes through the row groups in random order and mixes the rows of a few pieces at a
time, so files with sorted rows should have small row groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet as pq
from torch import Tensor

from service.data.cells import CellReader, RawTable
from service.data.inputs import InputSpec
from service.data.table import FLOAT32_MAX
from service.errors import DataError, InputError, RowError, first_fault
from service.files.formats.base import RowRange, readable
from service.files.formats.parquet import ParquetReader
from service.files.locations import InputFile, found
from service.files.tables import raw_of
from service.files.text_tables import chosen_columns
from service.training.process_group import ProcessGroup
from service.training.recipe import MOST_CALIBRATION, MOST_VALIDATION

SUFFIXES = frozenset({".parquet", ".pq"})
PIECE_CELLS, MOST_PIECE, LEAST_PIECE = 2**20, 2**16, 2**8  # rows read at a time
MIXED_CELLS = 2**23  # cells of the rows that are mixed at a time
PIECES = 16  # minimum number of pieces, so that processes get equal parts
MOST_SAMPLE = 100_000  # training rows from which columns are learnt
TRAIN, VALIDATION, CALIBRATION = range(3)


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of rows within one row group."""

    number: int
    file: InputFile
    row_range: RowRange


@dataclass(frozen=True)
class Source:
    """Parquet files with the same columns, divided into pieces by row group.

    `validation` and `calibration` are the shares of rows held back, `sample` is the share of training rows from which
    columns are learnt.
    """

    groups: tuple[tuple[Piece, ...], ...]
    names: tuple[str, ...]
    rows: int
    digest: str
    seed: int
    validation: float
    calibration: float
    sample: float

    @staticmethod
    def of(
        place: str, columns: Sequence[str] | None, seed: int, validation_share: float, calibration_share: float
    ) -> Source:
        """Read the footers of the Parquet files in a file, folder or glob.

        Raises:
            DataError: there are no files, or one is damaged or lacks a column.
        """
        files = found(place, SUFFIXES)
        groups: list[tuple[InputFile, int, int]] = []  # file, first row, number of rows
        names: list[str] | None = None
        for file in files:
            with readable(f"{file.path}: the file"), file.open() as opened, pq.ParquetFile(opened) as parquet:
                meta, here = parquet.metadata, parquet.schema_arrow.names
                counts = [meta.row_group(at).num_rows for at in range(meta.num_row_groups)]
            try:
                names = names or chosen_columns(here, columns)
                chosen_columns(here, names)
            except DataError as error:
                raise DataError(f"{file.path}: {error}") from None
            groups += [(file, sum(counts[:at]), count) for at, count in enumerate(counts)]
        rows = sum(count for *_, count in groups)
        if names is None or not rows:
            raise DataError(f"{place}: no rows")
        size = max(LEAST_PIECE, min(MOST_PIECE, PIECE_CELLS // len(names), -(-rows // PIECES)))
        content = hashlib.sha256("\n".join(file.digest() for file in files).encode())
        return Source(
            in_pieces(groups, size),
            tuple(names),
            rows,
            f"sha256:{content.hexdigest()}",
            seed,
            min(validation_share, MOST_VALIDATION / rows),
            min(calibration_share, MOST_CALIBRATION / rows),
            min(1.0, MOST_SAMPLE / rows),
        )

    @property
    def pieces(self) -> list[Piece]:
        return [piece for group in self.groups for piece in group]

    def draws(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """The role of each row of a piece, and whether a training row is in the sample: shape (n,) each."""
        uniform = np.random.default_rng([self.seed, piece.number]).random((2, piece.row_range.rows))
        role = np.where(uniform[0] < self.calibration, CALIBRATION, TRAIN)
        role[uniform[0] >= 1.0 - self.validation] = VALIDATION
        return role, uniform[1] < self.sample

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, pa.Table]]:
        """Pieces with their rows; cheap if pieces come in the files' order.

        Raises:
            DataError: names the damaged file.
        """
        reader, path = None, None
        try:
            for piece in pieces:
                if path != piece.file.path:
                    if reader is not None:
                        reader.close()
                    reader, path = ParquetReader(piece.file), piece.file.path
                assert reader is not None
                try:
                    rows = reader.rows(piece.row_range)
                except DataError as error:
                    raise DataError(f"{path}: {error}") from None
                yield piece, rows.select(self.names)
        finally:
            if reader is not None:
                reader.close()

    def gathered(self, is_plain: bool = False) -> Gathered:
        """Read all rows once, and gather those held back and a sample of the others.

        Args:
            is_plain: every cell must be a number.

        Raises:
            DataError: names the file and the row that cannot be read.
        """
        parts: list[list[pa.Table]] = [[], [], []]
        count = 0
        for piece, rows in self.read(self.pieces):
            with placed(piece):
                check_numbers(raw_of(rows), is_plain)
            role, is_seen = self.draws(piece)
            count += int((role == TRAIN).sum())
            for wanted, part in enumerate(parts):
                part.append(rows.filter(pa.array((role == wanted) & (is_seen | (wanted != TRAIN)))))
        train, validation, calibration = (raw_of(pa.concat_tables(part)) for part in parts)
        return Gathered(train, validation, calibration, count)


@dataclass(frozen=True)
class Gathered:
    """A sample of the `train_rows` training rows, and all rows held back."""

    sample: RawTable
    validation: RawTable
    calibration: RawTable
    train_rows: int


@dataclass
class ParquetFeed:
    """The training rows of a source, in the network's units (`service.training.fit.Feed`)."""

    source: Source
    spec: InputSpec
    reader: CellReader
    batch_size: int
    rows: int
    some: Tensor = field(repr=False)

    def epoch(self, number: int, group: ProcessGroup) -> Iterator[Tensor]:
        """This process's part of each batch: equal parts, of rows that no other process reads."""
        order = np.random.default_rng([self.source.seed, number, 1]).permutation(len(self.source.groups))
        mine = [piece for group in order for piece in self.source.groups[group]][group.rank :: group.size]
        mixing = torch.Generator().manual_seed(
            int(np.random.default_rng([self.source.seed, number, 2]).integers(2**62))
        )
        size = max(1, self.batch_size // group.size)
        left = max(1, self.rows // self.batch_size)
        rest = self.some[:0]
        for window in self.windows(mine):
            rows = torch.cat([rest, window])
            rows = rows[torch.randperm(len(rows), generator=mixing)]
            for start in range(0, len(rows) - size + 1, size):
                yield rows[start : start + size].to(group.device)
                left -= 1
                if not left:
                    return
            rest = rows[len(rows) // size * size :]

    def windows(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """Rows of a few pieces at a time, repeated without end, since processes have unequal numbers of rows."""
        while True:
            window: list[Tensor] = []
            seen = 0
            for piece, rows in self.source.read(pieces):
                window.append(self.encoded(piece, rows))
                seen += len(window[-1])
                if sum(part.numel() for part in window) >= MIXED_CELLS:
                    yield torch.cat(window)
                    window = []
            if window:
                yield torch.cat(window)
            if not seen:
                raise DataError("too few rows for so many processes: one has no rows to fit to")

    def encoded(self, piece: Piece, rows: pa.Table) -> Tensor:
        return torch.from_numpy(self.spec.encode(self.train_rows(piece, rows)))

    def train_rows(self, piece: Piece, rows: pa.Table) -> np.ndarray:
        """The training rows among those of a piece, shape (n, D)."""
        role, _ = self.source.draws(piece)
        with placed(piece):
            return self.spec.read(self.reader.table(raw_of(rows)), self.reader)[role == TRAIN]

    def training_rows(self) -> Iterator[np.ndarray]:
        """All training rows once more, a piece at a time."""
        for piece, rows in self.source.read(self.source.pieces):
            yield self.train_rows(piece, rows)

    def state(self) -> dict[str, Any]:
        """Empty: a pass depends only on its number."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None: ...


def check_numbers(raw: RawTable, is_plain: bool) -> None:
    """Raise unless numbers fit into float32 and, if the rows are plain numbers, every cell is one.

    Raises:
        RowError: names the first cell that does not.
    """
    for name, cells in zip(raw.names, raw.columns, strict=True):
        if not isinstance(cells, np.ndarray):
            if is_plain and cells:
                raise RowError(0, "text", name, "a number")
            continue
        wrong = (np.abs(cells) > FLOAT32_MAX) | (np.isnan(cells) & is_plain)
        if wrong.any():
            row = int(wrong.argmax())
            raise RowError(
                row, "missing" if np.isnan(cells[row]) else "a number too large for float32", name, "a number"
            )


def in_pieces(groups: Sequence[tuple[InputFile, int, int]], size: int) -> tuple[tuple[Piece, ...], ...]:
    """Divide row groups (file, first row, number of rows) into pieces of at most `size` rows."""
    found_pieces, number = [], 0
    for file, first, count in groups:
        ranges = [RowRange(first + start, min(size, count - start)) for start in range(0, count, size)]
        found_pieces.append(tuple(Piece(number + at, file, row_range) for at, row_range in enumerate(ranges)))
        number += len(ranges)
    return tuple(found_pieces)


@contextmanager
def placed(piece: Piece) -> Iterator[None]:
    """Add the file and the row number within it to errors about a piece's rows."""
    try:
        yield
    except (DataError, InputError) as error:
        problem = first_fault(error) if isinstance(error, InputError) else error
        where = problem.after(piece.row_range.first) if isinstance(problem, RowError) else problem
        raise DataError(f"{piece.file.path}: {where}") from None
