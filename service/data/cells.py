"""The one reader of cells: a row reads alike as JSON, as a line, in a CSV file, in Parquet and in a data frame.

    cell, as it came  ->  the number that stands for it (`data.columns` says which), or a fault

What a cell means is decided by the training data. The text of a trained category is that category; what the reader of the
training file took for missing is missing in every door; text that reads as a number is that number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from service.data.columns import NO_VALUE, CategoryColumn, NumberColumn
from service.data.table import MAX_TEXT, MISSING, Table, is_missing, parsed_number
from service.errors import DataError, Fault, InputError, first_fault
from service.system.frozen import Frozen

Cells = Sequence[Any] | np.ndarray  # of one column: numbers, text, booleans, None
NUMBER = "a number"
MAX_NAME = 80  # characters of an unknown column's name in an error


class Reading(Frozen):
    """How cells were read when a model was trained, which the card says.

    Attributes:
        missing: texts that mean a missing cell, in lower case.
        ignored: columns that the training file had and the model does not read, such as ids and dates; no constants.
    """

    missing: tuple[str, ...] = tuple(sorted(MISSING))
    ignored: tuple[str, ...] = ()


USUAL = Reading()


@dataclass(frozen=True, slots=True)
class RawTable:
    """Named columns of N cells as they came: float64, or whatever a file, a body or a frame holds."""

    names: tuple[str, ...]
    columns: tuple[Cells, ...]

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0


@dataclass(frozen=True)
class CellReader:
    """Reads the cells of a model's rows.

    Attributes:
        shape: of a row, such as (28, 28).
        names: of a table's columns, where they have names.
        columns: what mixed columns have learnt, None for a model of plain numbers.
        reads_text: whether text is read as a number, as in a table; pixels are numbers alone.
        refuses_unknown: whether further columns of a row are a fault; files may have any.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    columns: tuple[NumberColumn | CategoryColumn, ...] | None
    reads_text: bool
    reading: Reading = field(default=USUAL)
    refuses_unknown: bool = True

    @property
    def features(self) -> int:
        """Cells of a row."""
        return math.prod(self.shape)

    @cached_property
    def missing_words(self) -> frozenset[str]:
        """The texts that mean a missing cell."""
        return frozenset(self.reading.missing)

    @cached_property
    def accepted(self) -> frozenset[str]:
        """The columns that a row may have: the model's, and those that training ignored."""
        return frozenset((*(self.names or ()), *self.reading.ignored))

    # Cells

    def cell(self, position: int, value: Any) -> float | Fault:
        """The number that stands for a cell, NaN for a missing one that the model reads; or what is wrong with it."""
        column = None if self.columns is None else self.columns[position]
        if isinstance(value, str):
            return self.text(column, value.strip())
        if is_missing(value):
            return self.missing()
        if isinstance(value, bool | np.bool_):
            return self.text(column, "true" if value else "false")
        if isinstance(value, int | float | np.integer | np.floating):
            number = as_float(value)
            if math.isnan(number):
                return self.missing()
            return column.place(number) if isinstance(column, CategoryColumn) and column.is_text else number
        return Fault(kind_of(value), expected="text or a number" if self.reads_text else NUMBER)

    def text(self, column: NumberColumn | CategoryColumn | None, text: str) -> float | Fault:
        """The same for text without space around it."""
        if not self.reads_text:
            return Fault("text", expected=NUMBER)
        category = column if isinstance(column, CategoryColumn) else None
        if category is not None and category.is_text and (place := category.trained_place(text[:MAX_TEXT])) is not None:
            return place
        if text.lower() in self.missing_words:
            return self.missing()
        if category is not None and category.is_text:
            return len(category.values)  # never seen
        number = parsed_number(text)
        if number is not None:
            return number
        return Fault("text", expected=NUMBER) if category is None else NO_VALUE

    def missing(self) -> float | Fault:
        """A missing cell."""
        if self.columns is not None:
            return math.nan
        return Fault("a missing value", expected=f"{NUMBER}: the model was trained without missing values")

    # Rows

    def row(self, instance: Any, index: int, faults: list[Fault]) -> list[float]:
        """A row of JSON, a list or an object by column name, as numbers; what is wrong with it is added to the faults."""
        cells = self.cells_of(instance, index, faults)
        numbers = []
        for position, value in enumerate(cells):
            is_plain = self.columns is None and type(value) is float and not math.isnan(value)
            number = value if is_plain else self.cell(position, value)
            if isinstance(number, Fault):
                faults.append(Fault(number.message, index, self.column_name(position), number.expected))
                if len(faults) >= InputError.MAX_FAULTS:
                    break
                number = 0.0
            numbers.append(number)
        return numbers

    def cells_of(self, instance: Any, index: int, faults: list[Fault]) -> list[Any]:
        """A row's cells in the model's order; none, and a fault, where it has not the shape of a row."""
        if isinstance(instance, Mapping):
            return self.named_cells(instance, index, faults)
        if not isinstance(instance, list):
            faults.append(Fault(kind_of(instance), index, None, "a list, or an object by column name"))
            return []
        cells = instance
        if instance and all(isinstance(line, list) for line in instance):
            shape = (len(instance), len(instance[0]))
            ragged = any(len(line) != shape[1] for line in instance)
            if ragged or shape != self.shape:
                has = "lines of different lengths" if ragged else f"{shape[0]} x {shape[1]} values"
                faults.append(Fault(f"has {has}", index, None, " x ".join(map(str, self.shape)) + " values"))
                return []
            cells = [number for line in instance for number in line]
        if len(cells) != self.features:
            faults.append(Fault(f"has {len(cells)} features", index, None, f"{self.features} features"))
            return []
        return cells

    def named_cells(self, instance: Mapping[str, Any], index: int, faults: list[Fault]) -> list[Any]:
        """The cells of a row by column name; an `id` may come along, and the columns that training ignored."""
        if self.names is None:
            faults.append(Fault("an object", index, None, "a list: the model's columns have no names"))
            return []
        unknown = self.unknown([name for name in instance if name != "id"])
        absent = [name for name in self.names if name not in instance]
        known, most = self.known() if unknown else "", InputError.MAX_FAULTS
        faults.extend(Fault("unknown column", index, shortened(name), known) for name in unknown[:most])
        faults.extend(Fault("missing column", index, name) for name in absent[:most])
        return [] if unknown or absent else [instance[name] for name in self.names]

    def unknown(self, names: Sequence[str]) -> list[str]:
        """The names to refuse: neither the model's columns nor among those that training ignored."""
        if not self.refuses_unknown:
            return []
        return [name for name in names if name not in self.accepted]

    def known(self) -> str:
        """The columns' names, in words."""
        return ", ".join(self.names or ())

    def column_name(self, position: int) -> str | int:
        """A column's name, or its position where it has none."""
        return position if self.names is None else self.names[position]

    # Columns

    def table(self, table: Table | RawTable) -> np.ndarray:
        """The rows of a table, its columns found by their names: shape (N, D), float64; further columns are left out.

        Raises:
            DataError: a column is absent.
            RowError: names the first cell that cannot be read.
        """
        names = table.names if self.names is None else self.names
        absent = [name for name in names if name not in table.names]
        if absent:
            raise DataError(f"has no column {absent[0]!r}")
        faults: list[Fault] = []
        columns = [
            self.column(position, table.columns[table.names.index(name)], faults) for position, name in enumerate(names)
        ]
        if faults:
            first = min(faults, key=lambda fault: fault.row or 0)
            raise first_fault(InputError("some cells cannot be read", [first]))
        return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))

    def column(self, position: int, cells: Cells, faults: list[Fault]) -> np.ndarray:
        """A column's cells as numbers, shape (N,), float64; the first fault in it is added to the faults."""
        learnt = None if self.columns is None else self.columns[position]
        is_number = isinstance(cells, np.ndarray) and cells.dtype.kind in "uif"
        if is_number and not (isinstance(learnt, CategoryColumn) and learnt.is_text):
            numbers = np.asarray(cells, dtype=np.float64)
            if self.columns is not None or not np.isnan(numbers).any():
                return numbers
        known: dict[Any, float | Fault] = {}
        numbers = np.zeros(len(cells))
        for row, value in enumerate(cells.tolist() if isinstance(cells, np.ndarray) else cells):
            key = (type(value), value)
            number = known.get(key)
            if number is None:
                number = known[key] = self.cell(position, value)
            if isinstance(number, Fault):
                faults.append(Fault(number.message, row, self.column_name(position), number.expected))
                break
            numbers[row] = number
        return numbers


def as_float(value: Any) -> float:
    """A number as a float; integers that no float holds are infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def shortened(name: str) -> str:
    """An unknown name, cut where it is long."""
    return name if len(name) <= MAX_NAME else name[:MAX_NAME] + "..."


def kind_of(value: Any) -> str:
    """A JSON value's kind, in words."""
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
