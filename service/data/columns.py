"""A table's columns: what kind each is, how its values become numbers for the network, and back.

    cells of a file  ->  kinds (`infer`)  ->  columns learnt from training rows (`learn`)  ->  the card

A row is D numbers: a number as it is, a category as its place among the values that training rows held (as itself where
those are numbers), NaN where the cell is missing. The network sees each number on a scale where it is about standard
normal. Values that turn up far too often for a continuous column, such as the zeros of a capital gain, are its `atoms`: it
then is two columns for the network, a category that says which atom or none, and a number that is a hole at an atom.
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
NO_VALUE = 1e30  # of a column whose values are numbers: none of them


# The cells of a file


# Kinds


# Scales


# Columns that have learnt from training rows


class NumberColumn(Frozen):
    """A column of numbers.

    x = (scale(v) - center) / spread, over the training cells that are no atoms; `resolution` is the smallest step between
    their values, `low` and `high` the smallest and largest of all. Counts are whole numbers of `step`.
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
        """Columns of the network."""
        return 2 if self.atoms else 1

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values, shape (B,), to the network's columns, (B, width): which atom or none, and the number."""
        number = (self.scale.forward(values / self.step) - self.center) / self.spread
        number = np.where(np.isnan(values), np.nan, np.clip(np.nan_to_num(number), -FAR, FAR))
        if not self.atoms:
            return number[:, None]
        atom = self.atom(values)
        gate = np.where(np.isnan(values), np.nan, atom)
        return np.stack([gate, np.where(atom < len(self.atoms), np.nan, number)], axis=1)

    def atom(self, values: np.ndarray) -> np.ndarray:
        """Which atom each value is, or how many there are: shape (B,), int."""
        return place_among(self.atoms, values)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """The network's columns, shape (..., width), to values, shape (...)."""
        values = self.number(x[..., -1])
        if self.atoms:
            gate = np.nan_to_num(x[..., 0]).astype(int).clip(0, len(self.atoms))
            values = np.where(gate < len(self.atoms), np.array([*self.atoms, 0.0])[gate], values)
        return np.where(np.isnan(x[..., 0]), np.nan, values)

    def cells(self, values: np.ndarray) -> list[float | int | None]:
        """Values of rows as people have them."""
        # As short as tells a float32, which is what they are.
        short = [None if math.isnan(value) else float(str(np.float32(value))) for value in values.tolist()]
        if self.kind != "count" or not self.step.is_integer():
            return list(short)
        return [None if value is None else plain(value) for value in short]

    def number(self, x: np.ndarray) -> np.ndarray:
        """The network's numbers to values."""
        values = self.scale.backward(np.nan_to_num(x) * self.spread + self.center)
        return self.step * np.maximum(np.rint(values), 0.0) if self.kind == "count" else values

    def log_abs_det_jacobian(self, values: np.ndarray) -> np.ndarray:
        """What turns a log density of x into one of v, times the resolution: shape (B,), nats; 0 for masses and holes."""
        if self.kind == "count":
            return np.zeros(len(values))
        measure = self.scale.log_slope(values) - math.log(self.spread) + math.log(self.resolution)
        return np.where(~np.isnan(values) & (self.atom(values) == len(self.atoms)), measure, 0.0)


class CategoryColumn(Frozen):
    """A column of few values: those that have a place of their own, as numbers or text, and any other.

    A row has the value itself where values are numbers, and its place where they are text. `unseen` is the probability of
    all values without a place, by the share of training cells that had such (Good, 1953).
    """

    name: str
    kind: Literal["binary", "ordinal", "category"]
    values: tuple[float, ...] | tuple[str, ...]
    unseen: float

    width: Literal[1] = 1

    @property
    def is_text(self) -> bool:
        """Whether the values are text."""
        return isinstance(self.values[0], str)

    def place(self, value: str | float) -> int:
        """The place of a value, of a column of text; how many there are, for one that was never seen.

        What reads as a number is that number: a file's cells come as numbers wherever all of those that are read together
        are some, and a row's place must not depend on its company.
        """
        place = self.trained_place(value)
        return len(self.values) if place is None else place

    def trained_place(self, value: str | float) -> int | None:
        """The same, None for a value that was never seen; `true` and `false` are found however they are written."""
        key = number_or(value, value) if isinstance(value, str) else value
        place = self.places.get(key)
        if place is None and isinstance(key, str) and key.lower() in ("true", "false"):
            return self.places.get(key.title(), self.places.get(key.lower(), self.places.get(key.upper())))
        return place

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values of rows, shape (B,), to places, shape (B, 1); all without a place have the one behind the last."""
        if self.is_text:
            place = np.where((values >= 0) & (values < len(self.values)), values, len(self.values))
        else:
            place = place_among(self.values, values)
        return np.where(np.isnan(values), np.nan, place)[:, None]

    def decode(self, x: np.ndarray) -> np.ndarray:
        """ScoreRanks, shape (..., 1), to values of rows, shape (...)."""
        place = np.clip(np.nan_to_num(x[..., 0]).astype(int), 0, len(self.values) - 1)
        values = place.astype(np.float64) if self.is_text else np.array(self.values)[place]
        return np.where(np.isnan(x[..., 0]), np.nan, values)

    def log_abs_det_jacobian(self, values: np.ndarray) -> np.ndarray:
        """Masses need no change of units."""
        return np.zeros(len(values))

    def cells(self, values: np.ndarray) -> list[float | int | str | None]:
        """Values of rows as people have them; text that was never seen is not known any more."""
        if not self.is_text:
            return [None if math.isnan(value) else plain(value) for value in values.tolist()]
        names = dict(enumerate(map(str, self.values)))
        return [None if math.isnan(value) else names.get(int(value), "(never seen)") for value in values.tolist()]

    @cached_property
    def places(self) -> dict[str | float, int]:
        """Each text's place, of a number's the first."""
        backwards = reversed(list(enumerate(map(str, self.values))))
        return {number_or(value, value): place for place, value in backwards}


def place_among(known: Sequence[Any], values: np.ndarray) -> np.ndarray:
    """At which place each value, shape (B,), is among the known numbers; how many there are, for others."""
    if not known:
        return np.zeros(len(values), dtype=int)
    equal = values[:, None].astype(np.float32) == np.array(known, np.float32)
    return np.where(equal.any(axis=1), equal.argmax(axis=1), len(known))


def plain(value: float) -> float | int:
    """A whole number without its point."""
    return int(value) if value.is_integer() and abs(value) < FAR else value


LearntColumn = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]
