"""Rows of a file as JSON instances, which are read again as the same rows; odd cells stay as they were written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from service.data.cells import CellReader, RawTable
from service.data.columns import NO_VALUE, CategoryColumn
from service.data.numbers import Decimal


def instances_of(table: RawTable, reader: CellReader) -> list[dict[str, Any]]:
    """The rows of a table by column name: a number whatever its format in the file, null for a missing cell, else text.

    Columns that the model does not read stay as they are.
    """
    columns = []
    for name, cells in zip(table.names, table.columns, strict=True):
        listed: list[Any] = cells.tolist() if isinstance(cells, np.ndarray) else list(cells)
        if reader.names is not None and name in reader.names:
            position = reader.names.index(name)
            known = {cell: json_cell(reader, position, cell, table.decimal) for cell in set(listed)}
            listed = [known[cell] for cell in listed]
        columns.append([None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in listed])
    return [dict(zip(table.names, row, strict=True)) for row in zip(*columns, strict=True)]


def json_cell(reader: CellReader, position: int, cell: Any, decimal: Decimal | None) -> Any:
    """A cell as a number or text that the reader takes for what the cell is in its file."""
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    number = reader.text(position, text, decimal)
    column = None if reader.columns is None else reader.columns[position]
    if isinstance(column, CategoryColumn) and column.is_text:
        return None if isinstance(number, float) and math.isnan(number) else text
    if isinstance(number, float) and math.isfinite(number) and number != NO_VALUE:
        return number
    if text.lower() in reader.missing_words:
        return None
    # Without the file's decimal mark, this text might be a number.
    alone = reader.text(position, text)
    return f"{text} (not a number)" if isinstance(alone, float) and math.isfinite(alone) and alone != NO_VALUE else text
