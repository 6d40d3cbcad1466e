"""What each column of a table is: numbers, counts, categories, or nothing to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from service.data.scales import GAIN_OF_BENDING, Bent, bending_gain
from service.data.table import Kind, Table
from service.system.frozen import Frozen

FEW_VALUES = 20  # numbers with no more distinct values are ordinal
MAX_STEPS = 1_000  # of a count; with more, a density fits as well, on any scale
STEP_NOISE = 0.1  # of a step: tolerance for float32 rounding
DATE_FORMATS = (
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M",
    "%Y%m%d",
)


class ColumnKind(Frozen):
    """A column's kind, and why: one line of a schema."""

    name: str
    kind: Kind
    why: str = ""


class Schema(Frozen):
    """The kind of each column of a table."""

    columns: tuple[ColumnKind, ...]


def infer(table: Table) -> Schema:
    """Infer the kinds of a table's columns from their cells."""
    return Schema(columns=tuple(inferred(name, cells) for name, cells in zip(table.names, table.columns, strict=True)))


def inferred(name: str, cells: np.ndarray) -> ColumnKind:
    kind, why = number_kind(cells) if cells.dtype != object else text_kind(cells)
    return ColumnKind(name=name, kind=kind, why=why)


def text_kind(cells: np.ndarray) -> tuple[Kind, str]:
    values = [cell for cell in cells.tolist() if cell is not None]
    distinct = len(set(values))
    if distinct <= 1:
        return "ignored", "empty" if not distinct else "constant"
    if are_dates(values):
        return "ignored", "dates"
    if distinct == len(values) and distinct > FEW_VALUES:
        return "ignored", "an identifier: no value comes twice"
    if distinct == 2:
        return "binary", "two values"
    return "category", f"{distinct:,} values"


def are_dates(values: Sequence[str]) -> bool:
    """Whether a column's first 100 values all parse as dates, in ISO format or in one of DATE_FORMATS."""
    some = list(values[:100])
    try:
        for value in some:
            datetime.fromisoformat(value)
    except ValueError:
        return any(all(reads_as(value, pattern) for value in some) for pattern in DATE_FORMATS)
    return True


def reads_as(value: str, pattern: str) -> bool:
    try:
        datetime.strptime(value, pattern)  # only to see whether it parses
    except ValueError:
        return False
    return True


def number_kind(cells: np.ndarray) -> tuple[Kind, str]:
    values = cells[~np.isnan(cells)]
    distinct = np.unique(values)
    if len(distinct) <= 1:
        return "ignored", "empty" if not len(distinct) else "constant"
    whole = bool((values == np.rint(values)).all())
    if whole and len(distinct) == len(values) > FEW_VALUES and bool((np.diff(distinct) == 1).all()):
        return "ignored", "an identifier: numbers in a row"
    if len(distinct) == 2:
        return "binary", "two values"
    if len(distinct) <= FEW_VALUES and len(values) >= 5 * len(distinct):
        return "ordinal", f"{len(distinct)} values in an order"
    step = step_of(values)
    if step is not None and distinct[0] >= 0:
        return "count", "whole numbers from 0" if step == 1 else f"whole steps of {step:g} from 0"
    if distinct[0] > 0 and bending_gain(values, Bent.positive(values)) > GAIN_OF_BENDING:
        return "positive", "above 0 and skewed"
    return "real", ""


def step_of(values: np.ndarray) -> float | None:
    """The unit of which all numbers are multiples, if there is one and no number exceeds MAX_STEPS units.

    The answer does not depend on the unit in which a column is given.
    """
    with np.errstate(over="ignore"):
        distinct = np.unique(values.astype(np.float32)).astype(np.float64)
    largest = float(np.abs(distinct).max())
    if len(distinct) < 2 or not math.isfinite(largest):
        return None
    smallest = float(np.diff(distinct).min())
    if largest > MAX_STEPS * smallest:
        return None
    span = float(distinct[-1] - distinct[0])
    step = span / round(span / smallest)
    multiples = distinct / step
    return float(f"{step:.5g}") if (np.abs(multiples - np.rint(multiples)) < STEP_NOISE).all() else None
