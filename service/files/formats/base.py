"""What every file format provides.

A format divides a file into row ranges without loading it (`scan`), reads a range unchanged (`reader`: Arrow tables of
raw rows), turns raw rows into the table to score (`cells`), and writes raw rows back unchanged (`write`): lines of text
keep every character, arrays every bit, tables their schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pyarrow as pa
from pydantic import Field

from service.data.cells import CellReader
from service.data.inputs import InputSpec
from service.errors import DataError, InputError
from service.files.dialect import AS_SHOWN, TextOptions
from service.files.locations import InputFile
from service.system.frozen import Frozen

RECORD = "record"  # the column of raw rows that are text records
LINE = "vouch.line"  # the column of raw rows that says in which line of a text file each begins
VECTOR = "row"  # the column of rows that are arrays
READ = (
    "vouch.read"  # the column of rows that a model's reader has read, with what it found beside the input behind them
)


class RowRange(NamedTuple):
    """A range of a file's rows and, in a text file, the bytes that hold them and the line in which they begin, from 1."""

    first: int
    rows: int
    offset: int = 0
    size: int = 0
    line: int = 0

    def __str__(self) -> str:
        """The text that goes into a shard's key; unchanged, so that unfinished runs can resume."""
        return f"Cut(first={self.first}, rows={self.rows}, offset={self.offset}, size={self.size})"


class Scan(Frozen):
    """What is known about a file before scoring; `header` is what its format needs to read and write rows.

    `skipped` says which rows are passed over, and why.
    """

    rows: int
    digest: str
    header: str = ""
    ranges: tuple[RowRange, ...] = Field(alias="cuts")  # the field's name in run.json of unfinished runs
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What to read.

    Attributes:
        spec: the model's input.
        key: the array of an .npz file.
        rows: maximum number of rows per range.
        text: a text's dialect.
        checks_rows: whether rows of text that are not divided as the header is are an error now, not when they are read.
    """

    spec: InputSpec
    key: str | None
    rows: int
    text: TextOptions = AS_SHOWN
    checks_rows: bool = True

    def check_columns(self, names: list[str]) -> None:
        """Raise if the file lacks a column of the model.

        Raises:
            DataError: names the first missing column.
        """
        absent = [name for name in self.spec.columns or () if name not in names]
        if absent:
            raise DataError(f"has no column {absent[0]!r}")

    def ranges(self, rows: int) -> tuple[RowRange, ...]:
        """Ranges of at most `self.rows` rows each; one empty range if there are no rows."""
        return tuple(RowRange(first, min(self.rows, rows - first)) for first in range(0, rows, self.rows)) or (
            RowRange(0, 0),
        )


class Reader(Protocol):
    """An open file of rows."""

    def rows(self, row_range: RowRange) -> pa.Table:
        """The raw rows of a range; cheap if ranges come in order."""

    def close(self) -> None: ...


class Format(Protocol):
    """A file format for rows."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        """Divide the file into row ranges, and check what can be checked before reading rows.

        Raises:
            DataError: it is damaged, or lacks what the model reads.
        """

    def reader(self, file: InputFile, header: str) -> Reader:
        """Open the file to read row ranges."""

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        """The table to score.

        Raises:
            RowError: a row is damaged.
        """

    def write(self, raw: pa.Table, header: str) -> bytes:
        """Content of a file with these rows."""

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        """Content of a file with these rows and further columns.

        Raises:
            DataError: the format has no columns.
        """


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn a library's error about a damaged file into a one-line DataError.

    An OSError from the system, such as a disk that does not respond, passes unchanged.
    """
    try:
        yield
    except (DataError, InputError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise damaged(what, error) from error
    except Exception as error:  # a damaged file can make its library raise anything
        raise damaged(what, error) from error


def damaged(what: str, error: Exception) -> DataError:
    """A one-line DataError: what cannot be read, and why."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{what} cannot be read: {reason}")


def is_list(kind: pa.DataType) -> bool:
    """Whether a column's cells are lists."""
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))
