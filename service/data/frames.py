"""Rows as Python programs have them: data frames of any library, one dict, lists of dicts or of lists, to raw cells."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from service.data.cells import CellReader, Cells, RawTable, shortened
from service.data.table import is_missing
from service.errors import InputError, RowError

SINGLE = (bool, int, float, str)
Rows = Any  # an array, a data frame of any library, a dict, a list of dicts or of lists


def array_of(rows: Rows, reader: CellReader) -> np.ndarray:
    """Rows as numbers in the model's order of columns, shape (B, D + C), still to be checked by `InputSpec.read`.

    Raises:
        InputError: names columns that are missing or unknown, and cells that cannot be read.
    """
    if is_frame(rows):
        return frame_array(raw_frame(rows), reader)
    if isinstance(rows, Mapping):
        rows = [rows]
    if not isinstance(rows, list | tuple):
        array = np.asarray(rows)
        if array.dtype.kind not in "uifb":
            raise InputError(
                "not rows of numbers: expected an array, a data frame in memory, a dict or a list of dicts"
            )
        return reader.padded(array)
    if not any(isinstance(row, Mapping) for row in rows):
        try:
            return reader.padded(np.array(rows, dtype=np.float64))
        except (TypeError, ValueError):
            pass  # text or None among the numbers, or rows of different lengths
    return reader.rows(
        [
            plain_row(row) if isinstance(row, Mapping) else [*row] if isinstance(row, list | tuple) else row
            for row in rows
        ]
    )


def frame_array(raw: RawTable, reader: CellReader) -> np.ndarray:
    """A data frame's rows as numbers; by position if the model's columns have no names."""
    if reader.names is None:
        return reader.table(raw)
    names = (*raw.names, *raw.left_out)
    absent = [name for name in reader.names if name not in raw.names]
    if unknown := reader.unknown(names):
        raise InputError(f"unknown column {shortened(unknown[0])!r}; expected {reader.known()}")
    if nested := [name for name in absent if name in raw.left_out]:
        raise InputError(f"column {nested[0]!r} holds {raw.left_out[nested[0]]}, expected single values")
    if absent:
        raise InputError(f"missing column {absent[0]!r}; expected {reader.known()}")
    try:
        return reader.table(raw)
    except RowError as error:
        raise error.as_input_error() from None


def is_frame(data: Any) -> bool:
    """Whether this is a data frame or an Arrow table, of any library."""
    return hasattr(type(data), "columns")  # its own would compute those of a lazy frame


def raw_frame(frame: Any) -> RawTable:
    """The cells of a data frame (pandas, polars, Arrow, or whatever narwhals reads), without its index.

    Raises:
        InputError: it is no data frame in memory.
    """
    import narwhals as nw

    if hasattr(frame, "iloc"):  # pandas' columns may be numbers
        frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    try:
        data = nw.from_native(frame, eager_only=True)
        cells = {name: series_cells(data[name]) for name in data.columns}
    except TypeError:
        raise InputError("not rows: expected an array, a data frame in memory, a dict or a list of dicts") from None
    except Exception as error:  # a frame of any library can make its own raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"the data frame cannot be read: {reason}") from error
    left_out = {
        name: "lists or objects" for name, one in cells.items() if not isinstance(one, np.ndarray) and has_nested(one)
    }
    names = [name for name in data.columns if name not in left_out]
    return RawTable(tuple(names), tuple(cells[name] for name in names), left_out)


def series_cells(series: Any) -> Cells:
    """A column's cells: float64 with NaN, or a list of text, booleans and None."""
    import narwhals as nw

    if series.dtype.is_numeric():
        if series.dtype.is_float() or not series.null_count():
            array = series.to_numpy()
            if array.dtype.kind in "uif":
                return array.astype(np.float64)
        return np.array([math.nan if is_null(cell) else float(cell) for cell in series.to_list()])
    if series.dtype in (nw.Categorical, nw.Enum):
        series = series.cast(nw.String)
    return [plain_cell(cell) for cell in series.to_list()]


def plain_cell(cell: Any) -> Any:
    """A cell as JSON would have it: numpy's scalars as Python's, dates as text, None for a missing cell."""
    if is_null(cell):
        return None
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, decimal.Decimal):
        return float(cell)
    return str(cell) if isinstance(cell, datetime.date | datetime.time | datetime.timedelta) else cell


def is_null(cell: Any) -> bool:
    """Whether a cell is missing, in any library's way: None, NaN, pandas' NA and NaT."""
    return is_missing(cell) or type(cell).__name__ in ("NAType", "NaTType")


def has_nested(cells: Iterable[Any]) -> bool:
    return any(not isinstance(cell, SINGLE) and cell is not None for cell in cells)


def json_rows(raw: RawTable) -> list[dict[str, Any]]:
    """The rows as objects by column name, with None for missing cells."""
    lists = [
        [None if math.isnan(cell) else cell for cell in cells.tolist()] if isinstance(cells, np.ndarray) else cells
        for cells in raw.columns
    ]
    return [dict(zip(raw.names, row, strict=True)) for row in zip(*lists, strict=True)]


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): plain_cell(cell) for name, cell in row.items()}
