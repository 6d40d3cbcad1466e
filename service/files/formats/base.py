"""What every format of files offers.

A format cuts a file into ranges of rows without holding it (`scan`), reads a range as it stands (`reader`: Arrow tables of
raw rows), makes of raw rows the table that is scored (`cells`), and writes some of them as they were (`write`): lines of
text keep every character, arrays every bit, tables their schema.
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
from service.files.locations import InputFile
from service.system.frozen import Frozen

RECORD = "record"  # the column of raw rows that are text
VECTOR = "row"  # the column of rows that are arrays


class RowRange(NamedTuple):
    """A range of a file's rows and, in a file of lines, the bytes that hold them."""

    first: int
    rows: int
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        """As unfinished runs know it: shards are named by a hash of this."""
        return f"Cut(first={self.first}, rows={self.rows}, offset={self.offset}, size={self.size})"


class Scan(Frozen):
    """What is known of a file before a row is scored; `header` is what its format needs to read and write its rows."""

    rows: int
    digest: str
    header: str = ""
    ranges: tuple[RowRange, ...] = Field(alias="cuts")  # the name that unfinished runs have


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What is to be read: the input of a model, an array of npz files, and at most how many rows at a time."""

    spec: InputSpec
    key: str | None
    rows: int

    def check_columns(self, names: list[str]) -> None:
        """Refuse a file that lacks a column.

        Raises:
            DataError: names the first.
        """
        absent = [name for name in self.spec.columns or () if name not in names]
        if absent:
            raise DataError(f"has no column {absent[0]!r}")

    def ranges(self, rows: int) -> tuple[RowRange, ...]:
        """Ranges of so many rows at most; one of none for a file without."""
        return tuple(RowRange(first, min(self.rows, rows - first)) for first in range(0, rows, self.rows)) or (
            RowRange(0, 0),
        )


class Reader(Protocol):
    """An open file."""

    def rows(self, row_range: RowRange) -> pa.Table:
        """Raw rows. Cheap where ranges come in their order."""

    def close(self) -> None:
        """Let go of the file."""


class Format(Protocol):
    """A format of files."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        """RowRange the file, and check what can be checked before its rows are read.

        Raises:
            DataError: it is damaged, or has not what the model reads.
        """

    def reader(self, file: InputFile, header: str) -> Reader:
        """Open the file."""

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        """The table that is scored.

        Raises:
            RowError: a row is damaged.
        """

    def write(self, raw: pa.Table, header: str) -> bytes:
        """A file of these rows."""

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        """A file of these rows with further columns.

        Raises:
            DataError: the format has no columns.
        """


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn what libraries raise over a damaged file into one clear line.

    OSError of the system's own, such as a disk that does not answer, stays what it is.
    """
    try:
        yield
    except (DataError, InputError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise damaged(what, error) from error
    except Exception as error:  # a damaged file raises whatever its library comes upon
        raise damaged(what, error) from error


def damaged(what: str, error: Exception) -> DataError:
    """What cannot be read, and why, in one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{what} cannot be read: {reason}")


def is_list(kind: pa.DataType) -> bool:
    """Whether a column's cells are lists."""
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))
