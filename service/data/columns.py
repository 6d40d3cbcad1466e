"""A table's columns: what kind each is, how its values become numbers for the network, and back.

    cells of a file  ->  kinds (`infer`)  ->  columns learnt from training rows (`learn`)  ->  the card

A row is D numbers: a number as it is, a category as its place among the values that training rows held (as itself where
those are numbers), NaN where the cell is missing. The network sees each number on a scale where it is about standard
normal. Values that turn up far too often for a continuous column, such as the zeros of a capital gain, are its `atoms`: it
then is two columns for the network, a category that says which atom or none, and a number that is a hole at an atom.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.errors import DataError, RowError

T = TypeVar("T", float, str)
Kind = Literal["real", "positive", "count", "binary", "ordinal", "category", "ignored"]
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "-"})
MAX_CELLS = 256  # values of a category that have a place of their own: those that come most often
MAX_TEXT = 200  # characters of a category's value; longer ones are cut
FEW_VALUES = 20  # numbers with no more distinct values are ordinal
MIN_ATOM_SHARE, ATOM_EXCESS, ATOM_NEIGHBOURS, MAX_ATOMS = 0.01, 5.0, 5, 16
MAX_STEPS = 1_000  # of a count; where there are more, a density does as well, on any scale
STEP_NOISE = 0.1  # of a step, that a float32 may be off
GAIN_OF_BENDING = 0.1  # nats a row by which a curved scale must fit better than a straight one
FLOAT32_MAX = float(np.finfo(np.float32).max)
FAR = 1e15
NO_VALUE = 1e30  # of a column whose values are numbers: none of them
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


class Frozen(BaseModel):
    """A part of the card: immutable, and refused where it has fields that are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# The cells of a file


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of N cells: float64 with NaN for the missing, or text with None for them (an object array)."""

    names: tuple[str, ...]
    columns: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def numbers(self) -> np.ndarray:
        """The cells as an array of shape (N, D), float64.

        Raises:
            RowError: names the first cell of a column that is missing or no number.
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
        """Refuse numbers that no float32 holds.

        Raises:
            RowError: names the first one's place.
        """
        for name, cells in zip(self.names, self.columns, strict=True):
            if cells.dtype != object and (too_large := np.abs(cells) > FLOAT32_MAX).any():
                raise RowError(int(too_large.argmax()), "a number too large for float32", name)

    def digest(self) -> str:
        """sha256 of names and cells: what the card says a model was trained on."""
        content = hashlib.sha256(repr(self.names).encode())
        for cells in self.columns:
            content.update(repr(cells.tolist()).encode() if cells.dtype == object else cells.tobytes())
        return f"sha256:{content.hexdigest()}"

    def column(self, name: str) -> np.ndarray:
        """The cells of a column."""
        return self.columns[self.names.index(name)]

    def select(self, rows: np.ndarray) -> Table:
        """Some of the rows, by their indices."""
        return Table(self.names, tuple(column[rows] for column in self.columns))

    def only(self, names: Sequence[str]) -> Table:
        """Some of the columns, in this order.

        Raises:
            DataError: one is absent.
        """
        absent = [name for name in names if name not in self.names]
        if absent:
            raise DataError(f"has no column {absent[0]!r}")
        return Table(tuple(names), tuple(map(self.column, names)))


def is_missing(cell: Any) -> bool:
    """Whether a cell of a table is a hole."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def is_number(text: str) -> bool:
    """Whether text reads as a number."""
    return not math.isnan(number_or(text, math.nan))


def number_or(text: str | None, otherwise: T) -> float | T:
    """The finite number that text is, what else to take where it is none, and NaN for a missing cell."""
    if text is None:
        return math.nan
    try:
        number = float(text)
    except ValueError:
        return otherwise
    return number if math.isfinite(number) and "_" not in text else otherwise


def cells_of(texts: Sequence[str]) -> np.ndarray:
    """A file's column as numbers where all that is there is one, as text otherwise."""
    stripped = [text.strip() for text in texts]
    cells = [None if text.lower() in MISSING else text[:MAX_TEXT] for text in stripped]
    if all(cell is None or is_number(cell) for cell in cells):
        return np.array([number_or(cell, math.nan) for cell in cells], dtype=np.float64)
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column


# Kinds


class ColumnKind(Frozen):
    """What a column is, and why: one line of a schema."""

    name: str
    kind: Kind
    why: str = ""


class Schema(Frozen):
    """What each column of a table is."""

    columns: tuple[ColumnKind, ...]


def infer(table: Table) -> Schema:
    """The kinds of a table's columns, by what is in them."""
    return Schema(columns=tuple(inferred(name, cells) for name, cells in zip(table.names, table.columns, strict=True)))


def inferred(name: str, cells: np.ndarray) -> ColumnKind:
    """A column's kind."""
    kind, why = number_kind(cells) if cells.dtype != object else text_kind(cells)
    return ColumnKind(name=name, kind=kind, why=why)


def text_kind(cells: np.ndarray) -> tuple[Kind, str]:
    """The kind of a column of text."""
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
    """Whether a column's first values all read as dates."""
    some = list(values[:100])
    try:
        for value in some:
            datetime.fromisoformat(value)
    except ValueError:
        return any(all(reads_as(value, pattern) for value in some) for pattern in DATE_FORMATS)
    return True


def reads_as(value: str, pattern: str) -> bool:
    """Whether text is a date of a pattern."""
    try:
        datetime.strptime(value, pattern)  # only whether it is one
    except ValueError:
        return False
    return True


def number_kind(cells: np.ndarray) -> tuple[Kind, str]:
    """The kind of a column of numbers."""
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
    """The unit of which all numbers are multiples, if there is one and none is more than MAX_STEPS of them.

    In whatever unit a column is told, it is one of few steps or it is not.
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


# Scales


class Straight(Frozen):
    """y = v."""

    kind: Literal["straight"] = "straight"

    def forward(self, v: np.ndarray) -> np.ndarray:
        """Values to the scale, float64."""
        return v

    def backward(self, y: np.ndarray) -> np.ndarray:
        """And back."""
        return y

    def log_slope(self, v: np.ndarray) -> np.ndarray:
        """log dy / dv."""
        return np.zeros_like(v)


class Bent(Frozen):
    """y = asinh((v - origin) / stretch): straight near the origin, a logarithm far from it, and finite everywhere."""

    kind: Literal["bent"] = "bent"
    origin: float
    stretch: float

    def forward(self, v: np.ndarray) -> np.ndarray:
        """Values to the scale, float64."""
        return np.arcsinh((v - self.origin) / self.stretch)

    def backward(self, y: np.ndarray) -> np.ndarray:
        """And back."""
        return self.origin + self.stretch * np.sinh(np.clip(y, -80.0, 80.0))

    def log_slope(self, v: np.ndarray) -> np.ndarray:
        """log dy / dv."""
        return -np.log(self.stretch) - 0.5 * np.log1p(np.square((v - self.origin) / self.stretch))

    @staticmethod
    def positive(values: np.ndarray) -> Bent:
        """A logarithm for values above 0: bent about 0, a little below the smallest of them."""
        return Bent(origin=0.0, stretch=max(float(np.quantile(values, 0.01)), 1e-30) / 2.0)

    @staticmethod
    def around(values: np.ndarray, share: float) -> Bent:
        """Bent about the median, at a share of the distance between the quartiles."""
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        return Bent(origin=float(middle), stretch=max(share * float(high - low), 1e-12 * max(1.0, abs(float(middle)))))


class Logarithm(Frozen):
    """y = log(v + offset), for counts."""

    kind: Literal["logarithm"] = "logarithm"
    offset: float

    def forward(self, v: np.ndarray) -> np.ndarray:
        """Counts to the scale; what no count can be lies far below."""
        return np.log(np.maximum(v + self.offset, 1e-12))

    def backward(self, y: np.ndarray) -> np.ndarray:
        """And back."""
        return np.exp(np.clip(y, -80.0, 80.0)) - self.offset

    def log_slope(self, v: np.ndarray) -> np.ndarray:
        """log dy / dv."""
        return -np.log(np.maximum(v + self.offset, 1e-12))


Scale = Annotated[Straight | Bent | Logarithm, Field(discriminator="kind")]


def normal_fit(values: np.ndarray, scale: Straight | Bent | Logarithm) -> float:
    """The mean log density of values, nats, where they are normal on a scale."""
    spread = max(float(scale.forward(values).std()), 1e-12)
    return -math.log(spread) + float(scale.log_slope(values).mean())


def bending_gain(values: np.ndarray, scale: Bent) -> float:
    """By how many nats a row a curved scale fits better than a straight one."""
    return normal_fit(values, scale) - normal_fit(values, Straight())


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

    def read(self, cells: np.ndarray) -> np.ndarray:
        """A file's cells as values of rows, shape (B,), float64.

        Raises:
            RowError: text.
        """
        if cells.dtype == object:
            row = next(row for row, cell in enumerate(cells.tolist()) if cell is not None and not is_number(cell))
            raise RowError(row, "text, expected a number", self.name)
        return cells

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

    def log_measure(self, values: np.ndarray) -> np.ndarray:
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

    def read(self, cells: np.ndarray) -> np.ndarray:
        """A file's cells as values of rows, shape (B,), float64; what was never seen is what no value is."""
        if not self.is_text:
            return cells if cells.dtype != object else np.array([number_or(cell, NO_VALUE) for cell in cells.tolist()])
        return np.array([math.nan if is_missing(cell) else self.place(cell) for cell in cells.tolist()])

    def place(self, value: str | float) -> int:
        """The place of a value, of a column of text; how many there are, for one that was never seen.

        What reads as a number is that number: a file's cells come as numbers wherever all of those that are read together
        are some, and a row's place must not depend on its company.
        """
        return self.places.get(number_or(value, value) if isinstance(value, str) else value, len(self.values))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values of rows, shape (B,), to places, shape (B, 1); all without a place have the one behind the last."""
        if self.is_text:
            place = np.where((values >= 0) & (values < len(self.values)), values, len(self.values))
        else:
            place = place_among(self.values, values)
        return np.where(np.isnan(values), np.nan, place)[:, None]

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Places, shape (..., 1), to values of rows, shape (...)."""
        place = np.clip(np.nan_to_num(x[..., 0]).astype(int), 0, len(self.values) - 1)
        values = place.astype(np.float64) if self.is_text else np.array(self.values)[place]
        return np.where(np.isnan(x[..., 0]), np.nan, values)

    def log_measure(self, values: np.ndarray) -> np.ndarray:
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


def learn(schema: Schema, table: Table) -> tuple[NumberColumn | CategoryColumn, ...]:
    """The columns that are not ignored, learnt from training rows.

    Raises:
        DataError: cells are not what their column's kind says, or no column is left.
    """
    kept = [column for column in schema.columns if column.kind != "ignored"]
    if not kept:
        reasons = ", ".join(f"{column.name}: {column.why or 'ignored'}" for column in schema.columns[:10])
        raise DataError(f"no column is left to learn from ({reasons})")
    return tuple(learnt(column, table.column(column.name)) for column in kept)


def learnt(column: ColumnKind, cells: np.ndarray) -> NumberColumn | CategoryColumn:
    """One column."""
    if column.kind in ("binary", "ordinal", "category"):
        return learnt_category(column, cells)
    if cells.dtype == object:
        raise DataError(f"column {column.name!r} holds text, a column of kind {column.kind} holds numbers")
    return learnt_number(column, cells)


def learnt_category(column: ColumnKind, cells: np.ndarray) -> CategoryColumn:
    """A binary, ordinal or categorical column."""
    is_text = cells.dtype == object
    there = [cell for cell in cells.tolist() if not is_missing(cell)]
    if not there:
        raise DataError(f"column {column.name!r} has no value in the training rows: ignore it")
    values, counts = np.unique(np.array(there, dtype=object if is_text else np.float32), return_counts=True)
    by_count = sorted(range(len(values)), key=lambda at: (-counts[at], values[at]))
    least = 2 if len(there) >= 50 else 1
    placed = [at for at in by_count[:MAX_CELLS] if counts[at] >= least] or by_count[:1]
    if column.kind != "category":
        placed.sort()
    others = len(there) - int(counts[placed].sum())
    names = tuple(values[at] if is_text else float(values[at]) for at in placed)
    unseen = min(0.5, (others + 1) / (len(there) + 2))
    return CategoryColumn(name=column.name, kind=column.kind, values=names, unseen=unseen)


def learnt_number(column: ColumnKind, cells: np.ndarray) -> NumberColumn:
    """A column of numbers."""
    values = cells[~np.isnan(cells)].astype(np.float32).astype(np.float64)
    if not len(values):
        raise DataError(f"column {column.name!r} has no value in the training rows: ignore it")
    step = 1.0
    if column.kind == "count":
        step = step_of(values) or 1.0
        multiples = values / step
        if values.min() < 0 or (np.abs(multiples - np.rint(multiples)) > STEP_NOISE).any():
            raise DataError(f"column {column.name!r} holds numbers that are no counts")
    atoms = atoms_of(values)
    rest = values[~np.isin(values, atoms)]
    distinct = np.unique(rest)
    scale = count_scale(rest / step) if column.kind == "count" else number_scale(rest, column.kind)
    on_scale = scale.forward(rest / step)
    spread = float(on_scale.std())
    largest = float(np.abs(values).max())
    steps = np.diff(distinct)
    finest = max(largest * float(np.finfo(np.float32).eps), 1e-30)
    return NumberColumn(
        name=column.name,
        kind=column.kind,
        scale=scale,
        center=float(on_scale.mean()),
        spread=spread if spread > 1e-9 * max(1e-3, float(np.abs(on_scale).max())) else 1.0,
        resolution=max(float(steps.min()) if len(steps) else 1.0, finest),
        low=float(values.min()),
        high=float(values.max()),
        step=step,
        atoms=tuple(atoms.tolist()),
    )


def plain_number(name: str, cells: np.ndarray) -> NumberColumn:
    """A column of numbers as it comes: centred and scaled, neither bent nor with atoms; densities are per unit of it."""
    values = cells[~np.isnan(cells)].astype(np.float32).astype(np.float64)
    if not len(values):
        raise DataError(f"column {name!r} has no value in the training rows: ignore it")
    spread = float(values.std())
    return NumberColumn(
        name=name,
        kind="real",
        scale=Straight(),
        center=float(values.mean()),
        spread=spread if spread > 1e-7 * max(1e-30, float(np.abs(values).max())) else 1.0,
        resolution=1.0,
        low=float(values.min()),
        high=float(values.max()),
    )


def atoms_of(values: np.ndarray) -> np.ndarray:
    """Values that come far more often than those next to them, and hold a share of the column, ascending."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 2 * ATOM_NEIGHBOURS:
        return distinct[:0]
    candidates = np.flatnonzero(counts >= MIN_ATOM_SHARE * len(values))
    found = []
    for at in candidates[np.argsort(-counts[candidates], kind="stable")]:
        near = [*range(max(0, at - ATOM_NEIGHBOURS), at), *range(at + 1, min(len(counts), at + 1 + ATOM_NEIGHBOURS))]
        if counts[at] > ATOM_EXCESS * np.median(counts[near]) and counts[at] > ATOM_EXCESS:
            found.append(at)
    found = found[:MAX_ATOMS]
    left = len(values) - int(counts[found].sum())
    if left < 2 * ATOM_NEIGHBOURS:
        return distinct[:0]
    return np.sort(distinct[found])


def number_scale(values: np.ndarray, kind: Kind) -> Straight | Bent:
    """The scale on which values look most like a normal's; a curved one where it pays."""
    bent = [Bent.around(values, share) for share in (0.1, 0.5, 2.0)] if kind == "real" else []
    if values.min() > 0:
        bent.append(Bent.positive(values))
    if kind == "positive" and values.min() <= 0:
        raise DataError("a column of kind positive holds a number that is not above 0")
    best = max(bent, key=lambda scale: normal_fit(values, scale))
    return best if kind == "positive" or bending_gain(values, best) > GAIN_OF_BENDING else Straight()


def count_scale(values: np.ndarray) -> Logarithm:
    """The logarithm on which counts look most like a normal's: a large offset makes it a straight scale."""
    offsets = [0.5, *(max(1.0, float(values.mean())) * factor for factor in (0.1, 1.0, 10.0, 100.0))]
    return max((Logarithm(offset=offset) for offset in offsets), key=lambda scale: normal_fit(values, scale))
