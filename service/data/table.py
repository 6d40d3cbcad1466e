"""A table in memory: named columns of cells, any of which may be missing."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from service.data.numbers import plain_number
from service.errors import DataError, RowError

T = TypeVar("T", float, str)


Kind = Literal["real", "positive", "count", "binary", "ordinal", "boolean", "category", "ignored"]


# Spellings of a missing cell, in lower case: pandas', Excel's with its errors, and those of databases and statistics
# programs. Models trained before there were so many read only the first line's.
FORMER_MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "-"})
# fmt: off
MISSING = FORMER_MISSING | {
    "<na>", "nat", "-nan", "#n/a", "#na", "#n/a n/a", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan",
    "#null!", "#div/0!", "#value!", "#ref!", "#name?", "#num!", "#getting_data", "#spill!", "#calc!", "########",
    "#nv", "#wert!", "#bezug!", "#zahl!", "#div/0", "#n/d", "#valeur!",
    "\\n", "(null)", "[null]", "<null>", "nil", "undefined", "missing", "<missing>", "(missing)", "not available",
    "n.a.", "n.a", "n/d", "n.d.", "k.a.", "k. a.", "keine angabe", "(blank)", "(none)", "unknown", "unbekannt",
    ".", "--", "---", "\u2013", "\u2014", "??",
}
# fmt: on
INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|")
MAX_TEXT = 200  # characters of a category's value; longer ones are cut
FLOAT32_MAX = float(np.finfo(np.float32).max)
# Cells that cannot be read are NaNs with bits of their own: whatever computes with rows takes them for missing cells, and
# who asks still sees the difference, in float64 as in float32. R tells NA from NaN in the same way.
UNREADABLE = {"text": 0x7FFD_5A80_0000_0000, "infinite": 0x7FFD_5AC0_0000_0000}
ABSENT = float("nan")  # stands for the cell of an object that does not name the column, where a missing one is None
IS_TEXT, IS_INFINITE = (float(np.array(bits, np.uint64).view(np.float64)) for bits in UNREADABLE.values())


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of N cells: float64 with NaN for missing cells, or text with None (an object array)."""

    names: tuple[str, ...]
    columns: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def numbers(self) -> np.ndarray:
        """The cells as an array of shape (N, D), float64.

        Raises:
            RowError: names the first cell that is missing or not a number.
        """
        for name, cells in zip(self.names, self.columns, strict=True):
            if cells.dtype != object and not np.isnan(cells).any():
                continue
            for row, cell in enumerate(cells.tolist()):
                if is_missing(cell):
                    raise RowError(row, "missing, expected a number", name)
                if isinstance(cell, str) and not is_number(cell):
                    raise RowError(row, "text, expected a number", name)
        return np.stack(self.columns, axis=1).astype(np.float64)

    def check_range(self) -> None:
        """Check that all numbers fit into float32.

        Raises:
            RowError: names the first cell that does not.
        """
        for name, cells in zip(self.names, self.columns, strict=True):
            if cells.dtype != object and (too_large := np.abs(cells) > FLOAT32_MAX).any():
                raise RowError(int(too_large.argmax()), "a number too large for float32", name)

    def digest(self) -> str:
        """sha256 of names and cells: identifies the training data in the card."""
        content = hashlib.sha256(repr(self.names).encode())
        for cells in self.columns:
            content.update(repr(cells.tolist()).encode() if cells.dtype == object else cells.tobytes())
        return f"sha256:{content.hexdigest()}"

    def column(self, name: str) -> np.ndarray:
        return self.columns[self.names.index(name)]

    def select(self, rows: np.ndarray) -> Table:
        return Table(self.names, tuple(column[rows] for column in self.columns))

    def only(self, names: Sequence[str]) -> Table:
        """The named columns, in this order.

        Raises:
            DataError: a column is absent.
        """
        absent = [name for name in names if name not in self.names]
        if absent:
            raise DataError(f"has no column {absent[0]!r}")
        return Table(tuple(names), tuple(map(self.column, names)))


def is_missing(cell: Any) -> bool:
    """Whether a cell is missing: None or NaN."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def unreadable_cells(rows: np.ndarray, why: str) -> np.ndarray:
    """Which cells of rows, of any shape, could not be read, because they were `text` or `infinite`: bool."""
    bits = UNREADABLE[why]
    if rows.dtype == np.float32:
        single = np.array(bits, np.uint64).view(np.float64).astype(np.float32).view(np.uint32)
        return np.asarray(np.ascontiguousarray(rows).view(np.uint32) == single)
    return np.asarray(np.ascontiguousarray(rows, np.float64).view(np.uint64) == np.uint64(bits))


def is_unreadable(rows: np.ndarray) -> np.ndarray:
    """Which cells of rows, of any shape, could not be read, for whatever reason."""
    return unreadable_cells(rows, "text") | unreadable_cells(rows, "infinite")


def is_index(name: str) -> bool:
    """Whether a column is the index that pandas wrote, by its name: `__index_level_0__`, `Unnamed: 0`, or none at all."""
    return INDEX.fullmatch(name) is not None


def is_number(text: str) -> bool:
    """Whether text parses as a finite number."""
    return not math.isnan(number_or(text, math.nan))


def number_or(text: str | None, otherwise: T) -> float | T:
    """Text parsed as a finite number; `otherwise` if it is not one, NaN for None."""
    if text is None:
        return math.nan
    number = plain_number(text)
    return otherwise if number is None or math.isinf(number) else number
