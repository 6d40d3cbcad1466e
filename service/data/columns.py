"""A table's columns: how the values of each kind become numbers for the network, and back.

    cells of a file  ->  kinds (`infer`)  ->  columns learnt from training rows (`learn`)  ->  the card

A row is D numbers: a number as it is, a category as its index among the training values (or as itself if those are
numbers), and NaN for a missing cell. The network sees each number on a scale where it is roughly standard normal.
Values far too frequent for a continuous column, such as the zeros of a capital gain, are its `atoms`. Such a column
becomes two network columns: a category that says which atom, if any, and a number that is missing at an atom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from service.data.scales import Scale
from service.data.table import number_or
from service.system.frozen import Frozen

FAR = 1e15
MAX_DECIMALS = 12
BOOLEANS = {
    **dict.fromkeys(("false", "f", "no", "n", "off"), 0),
    **dict.fromkeys(("true", "t", "yes", "y", "on"), 1),
}  # spellings, in lower case, of the two values of a column of kind boolean
PAIRS = tuple({word, other} for word, other in zip(list(BOOLEANS)[:5], list(BOOLEANS)[5:], strict=True))
NO_VALUE = 1e30  # stands for text in a column whose values are numbers: equals none of them


class NumberColumn(Frozen):
    """A column of numbers.

    x = (scale(v) - center) / spread, fitted to the training cells that are not atoms. `resolution` is the smallest gap
    between distinct values of those cells; `low` and `high` are the minimum and maximum of all cells. Counts are whole
    multiples of `step`.
    """

    name: str
    kind: Literal["real", "positive", "count"]
    scale: Scale
    center: float
    spread: float
    resolution: float
    low: float
    high: float
    step: float = 1.0
    atoms: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many network columns this column takes."""
        return 2 if self.atoms else 1

    @property
    def is_straight(self) -> bool:
        """Whether a value becomes (value - center) / spread, and nothing else."""
        return self.kind != "count" and self.scale.kind == "straight" and self.step == 1.0 and not self.atoms

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values, shape (B,), to network columns, (B, width): the atom's index, if there are atoms; the number."""
        number = (self.scale.forward(values / self.step) - self.center) / self.spread
        number = bounded(number, values)
        if not self.atoms:
            return number[:, None]
        atom = self.atom(values)
        gate = np.where(np.isnan(values), np.nan, atom)
        return np.stack([gate, np.where(atom < len(self.atoms), np.nan, number)], axis=1)

    def atom(self, values: np.ndarray) -> np.ndarray:
        """Index of each value among the atoms, or the number of atoms for other values: shape (B,), int."""
        return place_among(self.atoms, values)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Network columns, shape (..., width), to values, shape (...)."""
        values = self.number(x[..., -1])
        if self.atoms:
            gate = np.nan_to_num(x[..., 0]).astype(int).clip(0, len(self.atoms))
            values = np.where(gate < len(self.atoms), np.array([*self.atoms, 0.0])[gate], values)
        return np.where(np.isnan(x[..., 0]), np.nan, values)

    def cells(self, values: np.ndarray) -> list[float | int | None]:
        """Values for display."""
        short = [None if math.isnan(value) else shortest(value) for value in values]
        if self.kind != "count" or not self.step.is_integer():
            return list(short)
        return [None if value is None else plain(value) for value in short]

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Values with as many decimals as the column's resolution has."""
        decimals = math.ceil(-math.log10(self.resolution) - 1e-6)
        return np.round(values, int(np.clip(decimals, 0, MAX_DECIMALS)))

    def number(self, x: np.ndarray) -> np.ndarray:
        """Network numbers to values; counts are rounded to whole steps."""
        values = self.scale.backward(np.nan_to_num(x) * self.spread + self.center)
        return self.step * np.maximum(np.rint(values), 0.0) if self.kind == "count" else values

    def log_abs_det_jacobian(self, values: np.ndarray) -> np.ndarray:
        """log |dx / dv| plus the log of the resolution: shape (B,), nats; 0 for masses and missing cells."""
        if self.kind == "count":
            return np.zeros(len(values))
        measure = self.scale.log_slope(values) - math.log(self.spread) + math.log(self.resolution)
        return np.where(~np.isnan(values) & (self.atom(values) == len(self.atoms)), measure, 0.0)


class CategoryColumn(Frozen):
    """A column of few values: the frequent ones in `values`, as numbers or text, and one slot for all others.

    A row holds the value itself if values are numbers, and its index if they are text. The values of kind boolean are
    the words for false and for true, in this order, so that their indices are the 0 and 1 that arrays have. `unseen` is
    the probability of all other values together, estimated by the share of training cells that held one (Good, 1953).
    """

    name: str
    kind: Literal["binary", "ordinal", "boolean", "category"]
    values: tuple[float, ...] | tuple[str, ...]
    unseen: float

    width: Literal[1] = 1

    @property
    def is_text(self) -> bool:
        return isinstance(self.values[0], str)

    def place(self, value: str | float) -> int:
        """Index of a value in a text column; the number of values for one that was never seen.

        Text that parses as a number is that number: a file yields numbers whenever all cells that are read together are
        numeric, and a row's index must not depend on the rows that it is read with.
        """
        place = self.trained_place(value)
        return len(self.values) if place is None else place

    def trained_place(self, value: str | float) -> int | None:
        """Index of a value, None if it was never seen; `true` and `false` match in any letter case.

        A boolean column takes every usual spelling, and 1 and 0.
        """
        if self.kind == "boolean":
            number = number_or(value, math.nan) if isinstance(value, str) else value
            return int(number) if number in (0.0, 1.0) else BOOLEANS.get(str(value).lower())
        key = number_or(value, value) if isinstance(value, str) else value
        place = self.places.get(key)
        if place is None and isinstance(key, str) and key.lower() in ("true", "false"):
            return self.places.get(key.title(), self.places.get(key.lower(), self.places.get(key.upper())))
        return place

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values of rows, shape (B,), to indices, shape (B, 1); all other values share the index after the last."""
        if self.is_text:
            place = np.where((values >= 0) & (values < len(self.values)), values, len(self.values))
        else:
            place = place_among(self.values, values)
        return np.where(np.isnan(values), np.nan, place)[:, None]

    def positions(self, values: np.ndarray) -> np.ndarray:
        """Where numbers, shape (B,), lie among those of the column, in steps from the first one; others lie beyond."""
        known = np.array(self.values, np.float64)
        step = (known[-1] - known[0]) / max(1, len(known) - 1) or 1.0
        inside = np.interp(values, known, np.arange(len(known)))
        beyond = np.where(values > known[-1], values - known[-1], np.minimum(values - known[0], 0.0)) / step
        return np.where(np.isnan(values), np.nan, inside + beyond)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Indices, shape (..., 1), to values of rows, shape (...)."""
        place = np.clip(np.nan_to_num(x[..., 0]).astype(int), 0, len(self.values) - 1)
        values = place.astype(np.float64) if self.is_text else np.array(self.values)[place]
        return np.where(np.isnan(x[..., 0]), np.nan, values)

    def log_abs_det_jacobian(self, values: np.ndarray) -> np.ndarray:
        """0: masses need no change of units."""
        return np.zeros(len(values))

    def cells(self, values: np.ndarray) -> list[float | int | str | bool | None]:
        """Values for display; unseen text is shown as `(never seen)`, since only its index is kept."""
        if not self.is_text:
            return [None if math.isnan(value) else plain(value) for value in values.tolist()]
        names: dict[int, str | bool] = dict(enumerate(map(str, self.values)))
        if self.kind == "boolean" and str(self.values[1]).lower() == "true":
            names = {0: False, 1: True}
        return [None if math.isnan(value) else names.get(int(value), "(never seen)") for value in values.tolist()]

    @cached_property
    def places(self) -> dict[str | float, int]:
        """Index of each text; of several that parse as the same number, the first."""
        backwards = reversed(list(enumerate(map(str, self.values))))
        return {number_or(value, value): place for place, value in backwards}


def bounded(number: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Network numbers made finite, and NaN where the value is missing."""
    return np.where(np.isnan(values), np.nan, np.clip(np.nan_to_num(number), -FAR, FAR))


def place_among(known: Sequence[Any], values: np.ndarray) -> np.ndarray:
    """Index of each value, shape (B,), among the known numbers; for others, the count of known numbers.

    A fraction that was sent as float32 still is its float64; whole numbers must be equal to the last digit.
    """
    if not known:
        return np.zeros(len(values), dtype=int)
    numbers = np.array(known, np.float64)
    equal = values[:, None] == numbers
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)
        equal |= (values[:, None] == short) & (numbers != np.rint(numbers))
    return np.where(equal.any(axis=1), equal.argmax(axis=1), len(known))


def shortest(value: np.floating[Any]) -> float:
    """A number for display: of float32, the one with the fewest digits."""
    return float(str(value)) if isinstance(value, np.float32) else float(value)


def plain(value: float) -> float | int:
    """A whole number as an int, so that it prints without a decimal point; other numbers unchanged."""
    return int(value) if value.is_integer() and abs(value) < FAR else value


LearntColumn = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]
