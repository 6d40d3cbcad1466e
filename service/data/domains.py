"""What the rows that a network was fitted to never held: the domain of each column, and what breaks it.

A constant, no missing cell, whole numbers only, no negative number, an end that no number is beyond, a set of categories.
A broken domain says nothing about log p(x), and costs no draw. How strange it is, is another question
(`validity/violations.py`): valid rows break domains now and then, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from service.data.beside import IS_CHANGED, IS_LATER, Beside, LastDate
from service.data.columns import CategoryColumn, LearntColumn, NumberColumn, place_among, plain
from service.data.inputs import InputSpec, Mixed
from service.data.table import is_unreadable, unreadable_cells
from service.system.frozen import Frozen

FEWEST_ROWS = 20  # that tell what is never there
MOST_AT_END = 10  # rows that hold the least or the largest number, if it is a limit and not the last one drawn so far
# What may be told of a cell, by its code; versions store them, so that others can only be added. Those above MISSING are
# violations.
FINE, LATER, MISSING = range(3)
UNREADABLE, NOT_FINITE, NEVER_MISSING, NEGATIVE, NOT_AN_INTEGER, OUT_OF_RANGE, UNSEEN, CHANGED = range(3, 11)
# fmt: off
ViolationKind = Literal[
    "unreadable", "never_missing", "negative", "not_an_integer", "out_of_range", "unseen_category", "constant_changed",
    "no_value",
]
KINDS: dict[int, tuple[ViolationKind, str]] = {
    UNREADABLE: ("unreadable", "text where a number was expected"),
    NOT_FINITE: ("unreadable", "infinite, or too large for float32, where a number was expected"),
    NEVER_MISSING: ("never_missing", "missing, as in no training row"),
    NEGATIVE: ("negative", "below 0, as in no training row"),
    NOT_AN_INTEGER: ("not_an_integer", "not a whole number, as all of the training rows"),
    OUT_OF_RANGE: ("out_of_range", "outside the range of the training rows"),
    UNSEEN: ("unseen_category", "a value that was never, or hardly ever, in the training rows"),
    CHANGED: ("constant_changed", "another value than that of all training rows"),
}
# fmt: on
NO_VALUE: tuple[ViolationKind, str] = "no_value", "no column has a value"  # of a whole row


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with a cell or, if `column` is None, with a row."""

    column: str | None
    kind: ViolationKind
    message: str


class ColumnDomain(Frozen):
    """A column's domain: nothing else was in the training rows. `low` and `high` are inside, unless `is_open` below."""

    never_missing: bool = False
    never_negative: bool = False
    integers: bool = False
    low: float | None = None
    high: float | None = None
    is_open: bool = False

    @staticmethod
    def of(column: LearntColumn, cells: np.ndarray) -> ColumnDomain:
        """The domain of a column's cells in the training rows, shape (m,), NaN for missing ones and unreadable ones."""
        missing = np.isnan(cells) & ~is_unreadable(cells)
        never_missing = len(cells) >= FEWEST_ROWS and not missing.any()
        values = cells[~np.isnan(cells)]
        is_number = isinstance(column, NumberColumn) or column.kind == "ordinal"
        if not is_number or len(values) < FEWEST_ROWS:
            return ColumnDomain(never_missing=never_missing)
        low, high = float(values.min()), float(values.max())
        is_open = column.kind == "positive"
        return ColumnDomain(
            never_missing=never_missing,
            never_negative=low >= 0,
            integers=bool((values == np.rint(values)).all()),
            low=0.0 if is_open else low if (values == low).sum() >= MOST_AT_END else None,
            high=high if (values == high).sum() >= MOST_AT_END else None,
            is_open=is_open,
        )


class Domains(Frozen):
    """The domains of an input's columns, and the columns beside it, which come behind the input's columns in rows."""

    columns: tuple[ColumnDomain, ...]
    beside: tuple[Beside, ...] = ()

    @staticmethod
    def learnt(spec: InputSpec, rows: np.ndarray, beside: Sequence[Beside] = ()) -> Domains | None:
        """The domains of the rows that a network was fitted to, shape (m, D); None unless its columns are of kinds."""
        if not isinstance(spec.transform, Mixed):
            return None
        columns = tuple(
            ColumnDomain.of(column, cells) for column, cells in zip(spec.transform.columns, rows.T, strict=True)
        )
        return Domains(columns=columns, beside=tuple(beside))

    @staticmethod
    def unknown(spec: InputSpec) -> Domains:
        """The domains of a version that does not know any: only cells that cannot be read are wrong."""
        return Domains(columns=(ColumnDomain(),) * spec.features if spec.reads_missing else ())

    def codes(self, spec: InputSpec, rows: np.ndarray) -> np.ndarray:
        """What is told of each cell of checked rows, shape (B, D + C): (B, D + C), uint8; (B, 0) without domains."""
        if not self.columns or not isinstance(spec.transform, Mixed):
            return np.zeros((len(rows), 0), np.uint8)
        width = len(self.columns)
        values, limits = rows[:, :width], self.limits
        codes = np.zeros(rows.shape, np.uint8)
        of_values = codes[:, :width]  # the later, the more is it worth telling
        for at, column in enumerate(spec.transform.columns):
            if isinstance(column, CategoryColumn):
                of_values[unseen(column, values[:, at]), at] = UNSEEN
        of_values[(values < limits.low) | (values > limits.high)] = OUT_OF_RANGE
        of_values[limits.integers & (values != np.rint(values))] = NOT_AN_INTEGER
        of_values[limits.never_negative & (values < 0)] = NEGATIVE
        aside = rows[:, width:]
        codes[:, width:] = np.select([aside == IS_CHANGED, aside == IS_LATER], [CHANGED, LATER], FINE)
        if (missing := np.isnan(rows)).any():
            codes[missing] = np.broadcast_to(limits.missing, rows.shape)[missing]
            of_values[unreadable_cells(values, "text")] = UNREADABLE
            of_values[unreadable_cells(values, "infinite")] = NOT_FINITE
        return codes

    @cached_property
    def limits(self) -> Limits:
        """The domains as arrays."""
        return Limits(
            low=np.array([low_end(one) for one in self.columns]),
            high=np.array([np.inf if one.high is None else one.high for one in self.columns]),
            integers=np.array([one.integers for one in self.columns], dtype=bool),
            never_negative=np.array([one.never_negative for one in self.columns], dtype=bool),
            missing=np.where(
                [one.never_missing for one in self.columns] + [one.never_missing for one in self.beside],
                np.uint8(NEVER_MISSING),
                np.uint8(MISSING),
            ),
        )

    def names(self, spec: InputSpec) -> list[str]:
        """The names of the input's columns and of those beside it, or their places: (D + C,)."""
        return [*map(str, spec.columns or range(spec.features)), *(one.name for one in self.beside)]

    def violations(self, spec: InputSpec, codes: np.ndarray) -> list[Violation]:
        """What is wrong with a row, by the codes of its cells, shape (D + C,): first what cannot be read.

        Of a row without any value, that alone is told.
        """
        if has_no_value(codes[None], len(self.columns))[0]:
            return [Violation(None, *NO_VALUE)]
        names = self.names(spec)
        return [
            Violation(names[at], KINDS[codes[at]][0], self.message(at, codes[at]))
            for at in sorted(np.flatnonzero(codes > MISSING).tolist(), key=lambda at: codes[at] > NOT_FINITE)
        ]

    def notes(self, codes: np.ndarray) -> list[str]:
        """What is worth telling of rows, by their codes, (B, D + C), and is no violation."""
        later = (codes[:, len(self.columns) :] == LATER).sum(axis=0).tolist()
        return [
            f"later in {one.name!r} than the last training row, {one.latest}: {count:,} of {len(codes):,} rows"
            for one, count in zip(self.beside, later, strict=False)
            if count and isinstance(one, LastDate)
        ]

    def message(self, at: int, code: int) -> str:
        """A violation in words, with the range that a number is outside of."""
        message = KINDS[code][1]
        if code != OUT_OF_RANGE:
            return message
        one = self.columns[at]
        low = None if one.low is None else f"{'above' if one.is_open else 'at least'} {plain(one.low)}"
        high = None if one.high is None else f"at most {plain(one.high)}"
        return f"{message}, {' and '.join(filter(None, [low, high]))}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Domains of D columns, (D,) each, and the code of a missing cell in each of them and of those beside, (D + C,)."""

    low: np.ndarray
    high: np.ndarray
    integers: np.ndarray
    never_negative: np.ndarray
    missing: np.ndarray


def low_end(one: ColumnDomain) -> float:
    """The least number inside a domain."""
    if one.low is None:
        return -np.inf
    return float(np.nextafter(one.low, np.inf)) if one.is_open else one.low


def unseen(column: CategoryColumn, values: np.ndarray) -> np.ndarray:
    """Which values of rows, shape (B,), are none of a column's categories: (B,), bool."""
    if column.is_text:
        return values >= len(column.values)
    return ~np.isnan(values) & (place_among(column.values, values) == len(column.values))


def counted(codes: np.ndarray) -> np.ndarray:
    """Codes for what is counted: dates that are later than those of the training rows are only told of."""
    return np.where(codes == LATER, np.uint8(FINE), codes)


def is_lowest(codes: np.ndarray, features: int) -> np.ndarray:
    """Which rows rank below every number, by the codes of their cells, (B, D + C): (B,), bool.

    These are rows with a cell that cannot be read, or without any value.
    """
    return np.asarray((num_unreadable(codes) > 0) | has_no_value(codes, features))


def num_unreadable(codes: np.ndarray) -> np.ndarray:
    """How many cells of each row cannot be read: (B,)."""
    return np.asarray(((codes == UNREADABLE) | (codes == NOT_FINITE)).sum(axis=1))


def has_missing(codes: np.ndarray, features: int) -> np.ndarray:
    """Which rows have a missing cell in any of the D columns: (B,), bool; one that cannot be read is not missing."""
    return np.asarray(np.isin(codes[:, :features], (MISSING, NEVER_MISSING)).any(axis=1))


def has_no_value(codes: np.ndarray, features: int) -> np.ndarray:
    """Which rows have no value in any of the D columns: (B,), bool."""
    cells = codes[:, :features]
    return np.asarray(np.isin(cells, (MISSING, NEVER_MISSING)).all(axis=1) & (cells.shape[1] > 0))
