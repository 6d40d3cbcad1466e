"""The single reader of cells: a row means the same as JSON, as a JSON line, in CSV, in Parquet and in a data frame.

    cell, as received  ->  the number that stands for it (see `data.columns`), or a fault

The training data decides what a cell means. The text of a trained category is that category; text that meant a missing
cell in the training file means one in every format; text that parses as a number is that number.

A cell that cannot be read, such as text in a column of numbers, makes its row invalid: it becomes a NaN that says so
(`data.table.unreadable_cells`). It is a fault only where the reader is strict, or where the model's rows have no missing
cells, since nothing can be said of them without the cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from service.data.beside import Beside
from service.data.columns import NO_VALUE, CategoryColumn, NumberColumn
from service.data.image_reading import USUAL_IMAGES, ImageReading
from service.data.numbers import CURRENCIES, PLAIN, Decimal, NumberFormat, format_of, plain_number
from service.data.table import FORMER_MISSING, IS_TEXT, MAX_TEXT, Table, is_index, is_missing
from service.errors import DataError, Fault, InputError, first_fault, summary
from service.system.frozen import Frozen

Cells = Sequence[Any] | np.ndarray  # of one column: numbers, text, booleans, None
NUMBER = "a number"
MAX_NAME = 80  # characters of an unknown column's name in an error


class Reading(Frozen):
    """How cells were read when a model was trained; stored in the card.

    Attributes:
        missing: texts that mean a missing cell, in lower case; a number among them means one as a number as well.
        ignored: columns of the training file that the model does not read, such as ids, dates and constant ones.
        formats: how the numbers of a column were written, by column, where that was not the plain way.
    """

    missing: tuple[str, ...] = tuple(sorted(FORMER_MISSING))
    ignored: tuple[str, ...] = ()
    formats: dict[str, NumberFormat] = {}


USUAL = Reading()


@dataclass(frozen=True, slots=True)
class RawTable:
    """Named columns of N cells as received: float64, or whatever a file, a request body or a data frame holds.

    Attributes:
        left_out: columns of the source that hold no single values, such as lists, and why.
        lines: the line of the file in which each row begins, shape (N,), if its lines are numbered.
        decimal: the decimal mark, if the source says so.
        notes: what was decided about the source, to be told to the user.
        is_text: whether all cells are text.
    """

    names: tuple[str, ...]
    columns: tuple[Cells, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    lines: np.ndarray | None = None
    decimal: Decimal | None = None
    notes: tuple[str, ...] = ()
    is_text: bool = False

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def place(self, row: int) -> str:
        """Where a row is in its source, in words."""
        return f"row {row}" if self.lines is None else f"line {int(self.lines[row])}"

    def column(self, name: str) -> Cells:
        return self.columns[self.names.index(name)]

    def part(self, start: int, stop: int) -> RawTable:
        """Some consecutive rows."""
        lines = None if self.lines is None else self.lines[start:stop]
        return replace(self, columns=tuple(cells[start:stop] for cells in self.columns), lines=lines)


@dataclass(frozen=True)
class CellReader:
    """Reads the cells of a model's rows.

    Attributes:
        shape: shape of a row, such as (28, 28).
        names: names of a table's columns, if they have names.
        columns: learnt columns of a mixed table, None for a model of plain numbers.
        reads_text: whether text may be parsed as a number, as in a table; pixels must be numbers.
        refuses_unknown: whether extra columns in a row are a fault; files may have any.
        is_strict: whether a cell that cannot be read is a fault.
        beside: columns that the network does not read, each with a number in rows all the same (`data.beside`).
        images: how encoded images are read.
        whole_but: the only column of which a row may lack the cell (`InputSpec.check_whole`); None: it may lack any.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    columns: tuple[NumberColumn | CategoryColumn, ...] | None
    reads_text: bool
    reading: Reading = field(default=USUAL)
    refuses_unknown: bool = True
    is_strict: bool = False
    beside: tuple[Beside, ...] = ()
    images: ImageReading = USUAL_IMAGES
    whole_but: str | None = None

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def missing_words(self) -> frozenset[str]:
        """The texts that mean a missing cell."""
        return frozenset(self.reading.missing)

    @cached_property
    def missing_numbers(self) -> frozenset[float]:
        """The numbers that mean a missing cell."""
        numbers = map(plain_number, self.reading.missing)
        return frozenset(number for number in numbers if number is not None)

    @cached_property
    def formats(self) -> list[NumberFormat]:
        """How text is read as a number in each column."""
        return [self.reading.formats.get(str(self.column_name(at)), PLAIN) for at in range(self.features)]

    @cached_property
    def accepted(self) -> frozenset[str]:
        """The columns that a row may have: the model's, those beside it, and those that training ignored."""
        return frozenset((*(self.names or ()), *(one.name for one in self.beside), *self.reading.ignored))

    def read_among(self, names: Sequence[str]) -> list[str]:
        """The columns to read of a file that has these: the model's and, where they are there, those beside it."""
        return [*(self.names or ()), *(one.name for one in self.beside if one.name in names)]

    # Cells

    def cell(self, position: int, value: Any) -> float | Fault:
        """The number that stands for a cell, NaN for a missing cell if the model accepts those; or the fault."""
        column = None if self.columns is None else self.columns[position]
        if isinstance(value, str):
            return self.text(position, value.strip())
        if is_missing(value):
            return self.missing()
        if isinstance(value, bool | np.bool_):
            if isinstance(column, CategoryColumn) and {0.0, 1.0} == set(column.values):
                return float(value)
            return self.text(position, "true" if value else "false")
        if isinstance(value, int | float | np.integer | np.floating):
            number = as_float(value)
            if math.isnan(number) or number in self.missing_numbers:
                return self.missing()
            return column.place(number) if isinstance(column, CategoryColumn) and column.is_text else number
        return Fault(kind_of(value), expected="text or a number" if self.reads_text else NUMBER)

    def unreadable(self, message: str, expected: str = NUMBER) -> float | Fault:
        """What stands for a cell that cannot be read."""
        return Fault(message, expected=expected) if self.is_strict or self.columns is None else IS_TEXT

    def text(self, position: int, text: str, decimal: Decimal | None = None) -> float | Fault:
        """The number that stands for stripped text, or the fault; `decimal` is the decimal mark, if the source tells."""
        if not self.reads_text:
            return Fault("text", expected=NUMBER)
        column = None if self.columns is None else self.columns[position]
        category = column if isinstance(column, CategoryColumn) else None
        if category is not None and category.is_text and (place := category.trained_place(text[:MAX_TEXT])) is not None:
            return place
        if text.lower() in self.missing_words:
            return self.missing()
        if category is not None and category.is_text:
            return len(category.values)  # never seen
        number = self.number(position, text, decimal)
        if number is None:
            # Of a category whose values are numbers, any text is a value that was never seen.
            return self.unreadable("text") if category is None or category.kind != "category" else NO_VALUE
        return self.missing() if number in self.missing_numbers else number

    def number(self, position: int, text: str, decimal: Decimal | None) -> float | None:
        """The number that text means, written as in the training file or with the source's decimal mark.

        None if it means none, or might mean another one as well: 1,234, if nothing but this cell tells.
        """
        usual = self.formats[position]
        style = usual if decimal in (None, usual.decimal) else NumberFormat(decimal=decimal, unit=usual.unit)
        number = style.read(text)
        if number is not None:
            return number
        # Perhaps with a currency or separators that the training file did not have.
        known = decimal or (None if usual == PLAIN else usual.decimal)
        other, is_sure = format_of([text], known, style)
        return other.read(text) if is_sure and other.unit in (style.unit, *CURRENCIES) else None

    def found_beside(self, one: Beside, cell: Any) -> float:
        """What a cell of a column beside the input is (`data.beside`)."""
        style = self.reading.formats.get(one.name, PLAIN)
        return one.found(cell, self.missing_words, self.missing_numbers, style)

    def missing(self) -> float | Fault:
        if self.columns is not None:
            return math.nan
        return Fault("a missing value", expected=f"{NUMBER}: the model was trained without missing values")

    # Rows

    def rows(self, instances: Sequence[Any]) -> np.ndarray:
        """JSON rows as numbers, shape (B, D + C), float64.

        Raises:
            InputError: lists the first faults.
        """
        faults: list[Fault] = []
        rows = []
        for index, instance in enumerate(instances):
            rows.append(self.row(instance, index, faults))
            if len(faults) >= InputError.MAX_FAULTS:
                break
        if faults:
            raise InputError(summary(faults), faults)
        return np.array(rows, dtype=np.float64)

    def row(self, instance: Any, index: int, faults: list[Fault]) -> list[float]:
        """Convert a JSON row, a list or an object by column name, to numbers; append its faults to `faults`."""
        cells = self.in_order(instance, index, faults)
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
        if self.beside:
            named = instance if isinstance(instance, Mapping) else {}
            numbers += [self.found_beside(one, named[one.name]) if one.name in named else 0.0 for one in self.beside]
        return numbers

    def padded(self, array: np.ndarray) -> np.ndarray:
        """An array of the model's columns, shape (B, D), as rows without a word of those beside, (B, D + C).

        Raises:
            InputError: it has another shape.
        """
        if not self.beside:
            return array
        if array.ndim != 2 or array.shape[1] != self.features:
            shape = tuple(map(int, array.shape))
            raise InputError(f"the array has shape {shape}, the model reads (rows, {self.features})")
        return np.concatenate([array, np.zeros((len(array), len(self.beside)), array.dtype)], axis=1)

    def in_order(self, instance: Any, index: int, faults: list[Fault]) -> list[Any]:
        """A row's cells in the model's order; an empty list, and a fault, if its shape is wrong."""
        if isinstance(instance, Mapping):
            return self.named_cells(instance, index, faults)
        if not isinstance(instance, list):
            faults.append(Fault(kind_of(instance), index, None, "a list, or an object by column name"))
            return []
        cells = instance
        shape: tuple[int, ...] = (len(cells),)
        while cells and all(isinstance(line, list) for line in cells):
            ragged = any(len(line) != len(cells[0]) for line in cells)
            shape = (*shape, len(cells[0]))
            cells = [number for line in cells for number in line]
            if ragged or (len(shape) >= len(self.shape) and shape != self.shape):
                has = "lines of different lengths" if ragged else f"{' x '.join(map(str, shape))} values"
                faults.append(Fault(f"has {has}", index, None, " x ".join(map(str, self.shape)) + " values"))
                return []
        if len(cells) != self.features:
            faults.append(Fault(f"has {len(cells)} features", index, None, f"{self.features} features"))
            return []
        return cells

    def named_cells(self, instance: Mapping[str, Any], index: int, faults: list[Fault]) -> list[Any]:
        """A row's cells, looked up by column name; `id` and the columns that training ignored are allowed extras."""
        if self.names is None:
            faults.append(Fault("an object", index, None, "a list: the model's columns have no names"))
            return []
        unknown = self.unknown([name for name in instance if name != "id"])
        absent = [name for name in self.names if name not in instance]
        known, most = self.known() if unknown else "", InputError.MAX_FAULTS
        faults.extend(Fault("unknown column", index, shortened(name), known) for name in unknown[:most])
        faults.extend(Fault("missing column", index, name, "a value, or null") for name in absent[:most])
        return [] if unknown or absent else [instance[name] for name in self.names]

    def unknown(self, names: Sequence[str]) -> list[str]:
        """Names to refuse: neither the model's columns nor columns that training ignored."""
        if not self.refuses_unknown:
            return []
        return [name for name in names if name not in self.accepted and not is_index(name)]

    def known(self) -> str:
        return ", ".join(self.names or ())

    def column_name(self, position: int) -> str | int:
        """A column's name, or its position where it has none."""
        return position if self.names is None else self.names[position]

    # Columns

    def table(self, table: Table | RawTable) -> np.ndarray:
        """The rows of a table, columns matched by name: shape (N, D + C), float64; extra columns are dropped.

        Raises:
            DataError: a column is absent.
            RowError: names the first cell that cannot be read.
        """
        names = table.names if self.names is None else self.names
        self.check_is_whole(table)
        faults: list[Fault] = []
        decimal = table.decimal if isinstance(table, RawTable) else None
        # The cells of a file of text are text, also where they are pixels.
        reader = self if self.reads_text else replace(self, reads_text=True)
        columns = [
            reader.column(position, table.columns[table.names.index(name)], faults, decimal)
            for position, name in enumerate(names)
        ]
        if faults:
            first = min(faults, key=lambda fault: fault.row or 0)
            raise first_fault(InputError("some cells cannot be read: see what was expected", [first]))
        read = np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))
        return np.concatenate([read, self.table_beside(table)], axis=1) if self.beside else read

    def check_is_whole(self, table: Table | RawTable) -> None:
        """Raise a DataError if a table lacks a column that the model reads."""
        absent = [name for name in self.names or () if name not in table.names]
        left_out = table.left_out if isinstance(table, RawTable) else {}
        if nested := [name for name in absent if name in left_out]:
            raise DataError(f"column {nested[0]!r} holds {left_out[nested[0]]}, expected single values")
        if absent:
            raise DataError(f"has no column {absent[0]!r}, which the model reads")

    def table_beside(self, table: Table | RawTable) -> np.ndarray:
        """What `found_beside` says of the cells of a table, shape (N, C); 0 in columns that are not there."""
        found = np.zeros((len(table), len(self.beside)))
        for at, one in enumerate(self.beside):
            if one.name in table.names:
                found[:, at] = self.column_beside(one, table.columns[table.names.index(one.name)])
        return found

    def column_beside(self, one: Beside, cells: Cells) -> np.ndarray:
        """What `found_beside` says of each cell of a column, shape (N,)."""
        listed = cells.tolist() if isinstance(cells, np.ndarray) else cells
        keys = [(type(cell), cell) for cell in listed]  # 1 and True are one key, and two cells
        known = {key: self.found_beside(one, key[1]) for key in set(keys)}
        return np.array([known[key] for key in keys], np.float64)

    def column(self, position: int, cells: Cells, faults: list[Fault], decimal: Decimal | None = None) -> np.ndarray:
        """A column's cells as numbers, shape (N,), float64; appends the column's first fault to `faults`."""
        learnt = None if self.columns is None else self.columns[position]
        is_number = isinstance(cells, np.ndarray) and cells.dtype.kind in "uif"
        if is_number and not (isinstance(learnt, CategoryColumn) and learnt.is_text):
            numbers = np.asarray(cells, dtype=np.float64)
            if self.missing_numbers:
                numbers = np.where(np.isin(numbers, list(self.missing_numbers)), np.nan, numbers)
            if self.columns is not None or not np.isnan(numbers).any():
                return numbers
        known: dict[Any, float | Fault] = {}
        numbers = np.zeros(len(cells))
        for row, value in enumerate(cells.tolist() if isinstance(cells, np.ndarray) else cells):
            key = (type(value), value)
            number = known.get(key)
            if number is None:
                number = known[key] = (
                    self.text(position, value.strip(), decimal)
                    if isinstance(value, str)
                    else self.cell(position, value)
                )
            if isinstance(number, Fault):
                faults.append(Fault(number.message, row, self.column_name(position), number.expected))
                break
            numbers[row] = number
        return numbers


def as_float(value: Any) -> float:
    """A number as a float; integers beyond float's range become infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[:MAX_NAME] + "..."


def kind_of(value: Any) -> str:
    """The JSON type of a value, in words."""
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
