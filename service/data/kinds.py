"""What each column of a table is: numbers, counts, categories, or nothing to learn from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np

from service.data.columns import PAIRS
from service.data.dates import date_reason, number_date_reason
from service.data.detect import Detected, DetectedColumn, listed
from service.data.scales import GAIN_OF_BENDING, Bent, bending_gain
from service.data.table import Kind, Table, is_index
from service.errors import DataError
from service.system.frozen import Frozen

IS_CONSTANT = "constant"  # why a column is ignored that holds one value
FEW_VALUES = 20  # numbers with no more distinct values are ordinal
MAX_STEPS = 1_000  # of a count; with more, a density fits as well, on any scale
STEP_NOISE = 0.1  # of a step: tolerance for float32 rounding
NEARLY_UNIQUE = 0.5  # distinct texts per row from which a column says who a row is, and not how it is
MANY_VALUES = 256  # distinct texts of which a column's category is warned
SPARSE = 10  # numbers in ascending order are an identifier if they fill at least one in so many places
DECIDING = 10_000  # numbers that show whether all of them have to be compared
EXAMPLES = 1_000  # cells among which different values are looked for
EXACT_UP_TO = 2.0**53
ID_NAME = re.compile(r"(^|_|\b)(id|ids|uuid|guid|key|index|idx|rownum|row|nr|no|serial)(_|\b|$)|[a-z]I[dD]$")
LABEL_NAME = re.compile(
    r"(^|_|\b)(label|labels|target|class|outcome|y|is_?(fraud|anomaly|outlier|valid|spam|defect)|fraud|anomaly|churn(ed)?)($|\b)"
)


class ColumnKind(Frozen):
    """A column's kind, and why: one line of a schema. `notes` say how its cells were read, and warn."""

    name: str
    kind: Kind
    why: str = ""
    notes: tuple[str, ...] = ()


class Schema(Frozen):
    """The kind of each column of a table."""

    columns: tuple[ColumnKind, ...]


def infer(table: Table) -> Schema:
    """Infer the kinds of a table's columns from their cells."""
    return Schema(columns=tuple(inferred(name, cells) for name, cells in zip(table.names, table.columns, strict=True)))


def infer_detected(
    detected: Detected,
    place: Callable[[int], str],
    keep: Collection[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> Schema:
    """Infer the kinds of detected columns, with notes on how their cells were read.

    Args:
        place: where a row, from 0, is in its file, in words.
        keep: columns that are not to be ignored, whatever they look like.
        left_out: further columns of the file that hold no single values, and what they hold.

    Raises:
        DataError: a column to keep is not there.
    """
    absent = [name for name in keep if name not in detected.names]
    if absent:
        raise DataError(f"has no column {absent[0]!r} to keep")
    columns = []
    for name, column in zip(detected.names, detected.columns, strict=True):
        kind, why = detected_kind(name, column)
        if kind == "ignored" and name in keep:
            kind, why = kept_kind(column), f"kept; it looks like this: {why}"
        columns.append(ColumnKind(name=name, kind=kind, why=why, notes=tuple(notes_on(name, kind, column, place))))
    others = (ColumnKind(name=name, kind="ignored", why=reason) for name, reason in (left_out or {}).items())
    return Schema(columns=(*columns, *others))


def detected_kind(name: str, column: DetectedColumn) -> tuple[Kind, str]:
    if is_index(name):
        return "ignored", "the index of a data frame"
    one = inferred(name, column.cells)
    if column.is_code and one.kind in ("binary", "category"):
        return "category", f"digits that are codes: some begin with 0; {one.why}"
    return one.kind, one.why


def kept_kind(column: DetectedColumn) -> Kind:
    """The kind of a column that would be ignored, but is to be kept."""
    if column.cells.dtype == object:
        return "boolean" if column.is_boolean else "category"
    values = column.cells[~np.isnan(column.cells)]
    return "real" if len(np.unique(values)) > 1 else "category"


def notes_on(name: str, kind: Kind, column: DetectedColumn, place: Callable[[int], str]) -> list[str]:
    """How a column's cells were read, and what may be wrong with it."""
    notes = []
    if str(column.format):
        notes.append(str(column.format))
    if column.missing:
        notes.append(f"missing cells: {listed(column.missing, place, most=3)}")
    if column.bad:
        notes.append(f"bad cells: {listed(column.bad, place, column.num_bad, 3)}")
    if column.misread:
        notes.append(f"warning: {column.misread}")
    if kind == "ignored":
        return notes
    is_label = LABEL_NAME.search(name.lower()) is not None
    distinct = len(set(column.cells.tolist())) if is_label or column.cells.dtype == object else 0
    if column.cells.dtype == object and distinct > MANY_VALUES:
        notes.append(f"warning: {distinct:,} different texts; the rare ones are all read as one value")
    if is_label and distinct <= FEW_VALUES:
        notes.append("warning: looks like a label; leave it out if it says what is to be found out")
    if column.cells.dtype != object and np.nanmax(np.abs(column.cells)) >= EXACT_UP_TO:
        notes.append("warning: numbers beyond 2^53 lose their last digits")
    return notes


def inferred(name: str, cells: np.ndarray) -> ColumnKind:
    kind, why = number_kind(cells, name) if cells.dtype != object else text_kind(cells)
    return ColumnKind(name=name, kind=kind, why=why)


def text_kind(cells: np.ndarray) -> tuple[Kind, str]:
    values = [cell for cell in cells.tolist() if cell is not None]
    known = list(dict.fromkeys(values))
    distinct = len(known)
    if distinct <= 1:
        return "ignored", "empty" if not distinct else IS_CONSTANT
    if dates := date_reason(known):
        return "ignored", dates
    if distinct == len(values) and distinct > FEW_VALUES:
        return "ignored", "an identifier: no value comes twice"
    if distinct > max(FEW_VALUES, NEARLY_UNIQUE * len(values)):
        return "ignored", f"nearly unique: {distinct:,} different texts in {len(values):,} cells"
    if {text.lower() for text in known} in PAIRS:
        return "boolean", "true and false"
    if distinct == 2:
        return "binary", "two values"
    return "category", f"{distinct:,} values"


def number_kind(cells: np.ndarray, name: str = "") -> tuple[Kind, str]:
    values = cells[~np.isnan(cells)]
    whole = bool((values == np.rint(values)).all())
    if not whole and len(np.unique(values[:DECIDING])) > 2 * MAX_STEPS + 1:
        return continuous_kind(values)
    distinct = np.unique(values)
    if len(distinct) <= 1:
        return "ignored", "empty" if not len(distinct) else IS_CONSTANT
    if whole and len(distinct) == len(values) > FEW_VALUES and (reason := identifier_reason(values, distinct, name)):
        return "ignored", reason
    if whole and (dates := number_date_reason(name, distinct)):
        return "ignored", dates
    if len(distinct) == 2:
        return "binary", "two values"
    if len(distinct) <= FEW_VALUES and len(values) >= 5 * len(distinct):
        return "ordinal", f"{len(distinct)} values in an order"
    step = step_of(distinct)
    if step is not None and distinct[0] >= 0:
        return "count", "whole numbers from 0" if step == 1 else f"whole steps of {step:g} from 0"
    return continuous_kind(values)


def continuous_kind(values: np.ndarray) -> tuple[Kind, str]:
    if values.min() > 0 and bending_gain(values, Bent.positive(values)) > GAIN_OF_BENDING:
        return "positive", "above 0 and skewed"
    return "real", ""


def identifier_reason(values: np.ndarray, distinct: np.ndarray, name: str) -> str:
    """Why whole numbers, none of which comes twice, say which row it is; empty if they may say how it is."""
    if (np.diff(distinct) == 1).all():
        return "an identifier: numbers in a row"
    if (np.diff(values) > 0).all() and distinct[-1] - distinct[0] <= SPARSE * len(values):
        return "an identifier: ascending, and no number comes twice"
    if ID_NAME.search(name) or ID_NAME.search(name.lower()):
        return "an identifier, by its name: no number comes twice"
    return "an identifier: too wide for a number, and none comes twice" if distinct[-1] >= EXACT_UP_TO else ""


def step_of(values: np.ndarray) -> float | None:
    """The unit of which all numbers are multiples, if there is one and no number exceeds MAX_STEPS units.

    The answer does not depend on the unit in which a column is given.
    """
    with np.errstate(over="ignore"):
        distinct = np.unique(values.astype(np.float32)).astype(np.float64)
    if len(distinct) > 2 * MAX_STEPS + 1:
        return None
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


def examples_of(cells: np.ndarray, most: int = 3) -> list[str]:
    """The first few different values of a column, as text."""
    seen: dict[str, None] = {}
    for cell in cells[:EXAMPLES].tolist():
        if cell is None or cell != cell:  # noqa: PLR0124  # only NaN differs from itself
            continue
        seen[cell if isinstance(cell, str) else f"{cell:.10g}"] = None
    return list(seen)[:most]
