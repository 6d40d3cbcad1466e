"""Columns of a table that stand beside a model's input: constants, and dates.

The network learns nothing from them. Still, a constant that has changed is a violation, and dates later than those of the
training rows are told of. In rows, each such column has a number behind the input's columns: what its cell was found to be.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from service.data.columns import place_among
from service.data.dates import DAY_FORMATS, NEARLY_ALL
from service.data.numbers import NumberFormat, plain_number
from service.data.table import ABSENT, MAX_TEXT, is_missing
from service.system.frozen import Frozen

AS_EVER, IS_CHANGED, IS_LATER = 0.0, 1.0, 2.0  # what a cell was found to be; NaN: missing
LOOKED_AT = 200  # cells by which a format of dates is found
ISO, EPOCH = "iso", "number"  # formats of dates, beside those of `strptime`


class Constant(Frozen):
    """A column that held one value, as text or as a number, in all training rows."""

    kind: Literal["constant"] = "constant"
    name: str
    value: str | float
    never_missing: bool

    @staticmethod
    def of(name: str, cells: np.ndarray) -> Constant | None:
        """A column of the training table, float64 with NaN or text with None; None if it has no value, or several."""
        there = [cell for cell in cells.tolist() if not is_missing(cell)]
        if len(set(there)) != 1:
            return None
        value = str(there[0]) if cells.dtype == object else float(there[0])
        return Constant(name=name, value=value, never_missing=len(there) == len(cells))

    def found(self, cell: Any, words: frozenset[str], numbers: frozenset[float], style: NumberFormat) -> float:
        """What a cell is; `words` and `numbers` mean a missing one, and numbers are written in a `style`."""
        if cell is ABSENT:
            return AS_EVER
        if isinstance(cell, bool | np.bool_):
            cell = "true" if cell else "false"
        text = cell.strip() if isinstance(cell, str) else None
        if text is not None and cased(text[:MAX_TEXT]) == cased(str(self.value)):
            return AS_EVER
        if is_missing(cell) or (text is not None and text.lower() in words):
            return math.nan
        number = number_of(cell) if text is None else style.read(text)
        if number in numbers:
            return math.nan
        wanted = plain_number(self.value) if isinstance(self.value, str) else self.value
        if number is None or wanted is None or place_among((wanted,), np.array([number]))[0]:
            return IS_CHANGED
        return AS_EVER


class LastDate(Frozen):
    """A column of dates or times, and the latest of them in the training rows, as text in its `pattern`."""

    kind: Literal["date"] = "date"
    name: str
    pattern: str
    latest: str

    never_missing: bool = False

    @staticmethod
    def of(name: str, cells: np.ndarray) -> LastDate | None:
        """A column of the training table, float64 with NaN or text with None; None if its dates cannot be compared."""
        if cells.dtype != object:
            latest = float(np.nanmax(cells)) if not np.isnan(cells).all() else math.nan
            return None if math.isnan(latest) else LastDate(name=name, pattern=EPOCH, latest=repr(latest))
        texts = list(dict.fromkeys(cell for cell in cells.tolist() if cell is not None))
        pattern = pattern_of(texts[:LOOKED_AT])
        if pattern is None:
            return None
        moments = {moment: text for text in texts if (moment := moment_of(text, pattern)) is not None}
        return LastDate(name=name, pattern=pattern, latest=moments[max(moments)])

    def found(self, cell: Any, words: frozenset[str], numbers: frozenset[float], style: NumberFormat) -> float:
        """What a cell is: later than all of the training rows, or not, or no date that can be compared."""
        if self.pattern == EPOCH:
            number = plain_number(cell.strip()) if isinstance(cell, str) else number_of(cell)
            return IS_LATER if number is not None and number > float(self.latest) else AS_EVER
        moment = moment_of(cell, self.pattern) if isinstance(cell, str) else None
        latest = moment_of(self.latest, self.pattern)
        return IS_LATER if moment is not None and latest is not None and moment > latest else AS_EVER


Beside = Annotated[Constant | LastDate, Field(discriminator="kind")]


def cased(text: str) -> str:
    """A text as it is, but true and false in lower case."""
    return text.lower() if text.lower() in ("true", "false") else text


def number_of(cell: Any) -> float | None:
    """A cell that is a number, as a float; integers beyond float's range become infinite."""
    if not isinstance(cell, int | float | np.number):
        return None
    try:
        return float(cell)
    except OverflowError:
        return math.inf


def pattern_of(texts: Sequence[str]) -> str | None:
    """The format that nearly all of some dates are written in; None if there is none."""
    for pattern in (ISO, *DAY_FORMATS):
        if texts and sum(moment_of(text, pattern) is not None for text in texts) >= NEARLY_ALL * len(texts):
            return pattern
    return None


def moment_of(text: str, pattern: str) -> datetime | None:
    """The time that a text means, without a zone as in UTC; None if it is not written so."""
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(text.strip()) if pattern == ISO else datetime.strptime(text.strip(), pattern)
        return moment.replace(tzinfo=moment.tzinfo or UTC)
    return None
