"""Files with named columns to tables: CSV and Parquet, numbers and text, with missing cells."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from service.data.cells import Cells, RawTable
from service.data.table import Table, is_number, parsed_cells
from service.errors import DataError

MAX_COLUMNS = 10_000


def is_table(path: Path) -> bool:
    """Whether a file's columns have names."""
    return path.suffix.lower() in (".csv", ".parquet", ".pq")


@contextmanager
def as_data_error(path: Path) -> Iterator[None]:
    """Turn a library's error about a bad file into a one-line DataError."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: the file is too large for memory") from error
    except Exception as error:  # a damaged file can make its library raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}") from error


def read_table(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Read a CSV or Parquet file like `read_raw`, and infer which columns hold numbers."""
    return inferred(read_raw(path, columns))


def inferred(raw: RawTable) -> Table:
    """A table whose columns are numbers if all present cells are, and text otherwise."""
    return Table(raw.names, tuple(map(inferred_cells, raw.columns)))


def inferred_cells(cells: Cells) -> np.ndarray:
    if isinstance(cells, np.ndarray):
        return cells
    if all(cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool)) for cell in cells):
        return np.array([np.nan if cell is None else float(cell) for cell in cells])
    return parsed_cells(["" if cell is None else str(cell) for cell in cells])


def read_raw(path: Path, columns: Sequence[str] | None = None) -> RawTable:
    """Read the cells of a CSV or Parquet file unchanged.

    Args:
        columns: columns to read, in this order; default: all.

    Raises:
        DataError: the file is missing, malformed or has no rows.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    with as_data_error(path):
        table = csv_table(path, columns) if path.suffix.lower() == ".csv" else parquet_table(path, columns)
    if not len(table):
        raise DataError(f"{path}: has a header but no rows")
    return table


def csv_table(path: Path, columns: Sequence[str] | None) -> RawTable:
    """A CSV file with a header; cells are separated by commas, semicolons or tabs."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=first.count)
        return parsed_table(str(path), csv.reader(file, delimiter=delimiter, strict=True), columns)


def parsed_table(source: str, lines: Iterator[list[str]], columns: Sequence[str] | None = None) -> RawTable:
    """A table from lines of cells, the header first.

    Args:
        source: names the file in errors, which quote neither cells nor the header.
    """
    header = [name.strip() for name in next(lines, [])]
    check_header(source, header)
    chosen = chosen_columns(source, header, columns)
    picks = [header.index(name) for name in chosen]
    texts: list[list[str]] = [[] for _ in picks]
    for number, cells in enumerate(lines, start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(f"{source}: line {number} has {len(cells)} cells, the header has {len(header)}")
        for column, pick in zip(texts, picks, strict=True):
            column.append(cells[pick])
    return RawTable(tuple(chosen), tuple(texts))


def check_header(source: str, header: list[str]) -> None:
    """Raise unless the first line names distinct columns."""
    if not header:
        raise DataError(f"{source}: is empty, expected a header and rows")
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{source}: has {len(header):,} columns, at most {MAX_COLUMNS:,} are supported")
    counts = Counter(header)
    twice = [place for place, name in enumerate(header, start=1) if counts[name] > 1]
    if twice:
        raise DataError(f"{source}: columns {twice[0]} and {twice[1]} have the same name")
    if all(is_number(name) for name in header):
        raise DataError(f"{source}: line 1 holds numbers, expected a header with the columns' names")


def chosen_columns(source: str, names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    """The requested columns, or all; raise if one is missing."""
    absent = [name for name in columns or () if name not in names]
    if absent:
        raise DataError(f"{source}: has no column {absent[0]!r}")
    return list(names if columns is None else columns)


def parquet_table(path: Path, columns: Sequence[str] | None) -> RawTable:
    """A Parquet file; needs the extra `parquet`."""
    try:
        from pyarrow import parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs the extra: pip install '.[parquet]'") from error
    file = pq.ParquetFile(path)
    chosen = chosen_columns(str(path), file.schema_arrow.names, columns)
    return raw_of(file.read(columns=chosen).select(chosen))


def table_of(rows: Any) -> Table:
    """An Arrow table as a `Table`."""
    return inferred(raw_of(rows))


def raw_of(rows: Any) -> RawTable:
    """An Arrow table as raw cells."""
    return RawTable(tuple(rows.column_names), tuple(map(arrow_cells, rows.columns)))


def arrow_cells(values: Any) -> Cells:
    """An Arrow column's cells: numbers, booleans and text unchanged, anything else as text."""
    from pyarrow import types

    if types.is_integer(values.type) or types.is_floating(values.type):
        return np.asarray(values.cast("float64", safe=False).fill_null(math.nan).to_numpy())
    cells = values.to_pylist()
    return [cell if cell is None or isinstance(cell, bool | int | float | str) else str(cell) for cell in cells]
