"""Ways in which valid rows go wrong: mistakes that happen to people's data, at several strengths.

A spoil takes valid rows, shape (N, D), in the data's units, and returns them with one thing wrong in each; what it does not
apply to, or does not change, is left out (`spoilt`). None of them knows the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.data.columns import CategoryColumn, NumberColumn
from service.data.inputs import InputSpec, Mixed
from service.data.table import FLOAT32_MAX
from service.errors import InputError
from service.scoring.statistic_kinds import is_category

CODE = -999.0  # a usual way to write that a number is missing
FEW_COLUMNS = 3
MISSING, MADE_ZERO = "a cell missing", "a missing number made 0"
# A quarter of all ways: they choose nothing, so that what is caught of them is no more than of ways that nobody thought of.
APART = {
    *(
        "a number x 10",
        "a number made 0",
        "two numbers swapped",
        "another category",
        "half of one row and half of another",
    ),
    *("mirrored", "noise of 80 grey levels", "half the exposure", "the mean of two"),
}
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Columns:
    """Which of a row's D columns hold numbers, shape (D,), and the values of those that hold categories, as in rows."""

    is_number: np.ndarray
    values: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(spec: InputSpec) -> Columns:
        if not isinstance(spec.transform, Mixed):
            return Columns(np.ones(spec.features, dtype=bool), ((),) * spec.features)
        values = tuple(category_values(one) for one in spec.transform.columns)
        return Columns(~is_category(spec), values)


def category_values(column: NumberColumn | CategoryColumn) -> tuple[float, ...]:
    """The values of a column of categories, or their indices if they are text; none of a column of numbers."""
    if not isinstance(column, CategoryColumn):
        return ()
    return tuple(map(float, range(len(column.values)) if column.is_text else column.values))


@dataclass(frozen=True, slots=True)
class Spoil:
    """A way of spoiling rows, with a name for reports.

    `change` is given rows, the column of each that is to be spoilt, (N,), and a generator. `of` says which columns may be
    chosen, of `Columns`; None: the whole row is spoilt.
    """

    name: str
    change: Change
    of: Callable[[Columns], np.ndarray] | None = None

    @property
    def chooses(self) -> bool:
        """Whether what is caught of it may choose the weights of statistics (`service.scoring.weighing`)."""
        return self.name not in APART


@dataclass(frozen=True)
class Spoilt:
    """Rows spoilt in one way, shape (N, D), of which rows they are spoilt copies, and in which column, (N,); -1: in all."""

    name: str
    rows: np.ndarray
    of: np.ndarray
    columns: np.ndarray

    def whole(self) -> Spoilt:
        """Those without missing cells."""
        whole = ~np.isnan(self.rows).any(axis=1)
        return Spoilt(self.name, self.rows[whole], self.of[whole], self.columns[whole])


def spoilt(spec: InputSpec, rows: np.ndarray, spoil: Spoil, seed: int = 0) -> Spoilt:
    """Valid rows, shape (N, D), each spoilt in a random column that it has a value in; without those that do not change."""
    generator = np.random.default_rng([seed, *spoil.name.encode()])
    chosen = np.full(len(rows), -1)
    if spoil.of is not None:
        may = spoil.of(Columns.of(spec)) & ~np.isnan(rows)
        keys = np.where(may, generator.random(rows.shape), -1.0)
        chosen = np.where(may.any(axis=1), keys.argmax(axis=1), -1)
        some = np.flatnonzero(chosen >= 0)
    else:
        some = np.arange(len(rows))
    if not len(some):
        return Spoilt(spoil.name, rows[:0], some, some)
    changed = spoil.change(rows[some].astype(np.float64), chosen[some], generator)
    changed = np.clip(np.asarray(changed), -FLOAT32_MAX, FLOAT32_MAX).astype(rows.dtype)  # others cannot be read
    if changed.shape != rows[some].shape:
        raise InputError(
            f"the spoil {spoil.name!r} returned an array of another shape than its rows: expected the same"
        )
    differs = ~np.isclose(changed, rows[some], rtol=1e-9, atol=0.0, equal_nan=True).all(axis=1)
    if spec.kind == "image":  # what a threshold takes away is no change, either
        differs &= (spec.encode(changed) != spec.encode(rows[some])).any(axis=1)
    return Spoilt(spoil.name, changed[differs], some[differs], chosen[some][differs])


def spoils_of(spec: InputSpec) -> list[Spoil]:
    """All ways of spoiling an input's rows."""
    if spec.kind == "image":
        return image_spoils(spec.shape)
    spoils = table_spoils(Columns.of(spec))
    return spoils if spec.reads_missing else [one for one in spoils if one.name not in (MISSING, MADE_ZERO)]


# Tables


def table_spoils(columns: Columns) -> list[Spoil]:
    """Ways of spoiling rows of a table."""

    def numbers(columns: Columns) -> np.ndarray:
        return columns.is_number

    def categories(columns: Columns) -> np.ndarray:
        return np.array([len(values) > 1 for values in columns.values])

    def any_column(columns: Columns) -> np.ndarray:
        return np.ones(len(columns.is_number), dtype=bool)

    def few_columns(columns: Columns) -> np.ndarray:
        """Some, because what is compared with a row that lacks a cell costs as much as hundreds of rows."""
        chosen, width = np.zeros(len(columns.is_number), dtype=bool), len(columns.is_number)
        chosen[np.linspace(0, width - 1, min(FEW_COLUMNS, width)).round().astype(int)] = True
        return chosen

    return [
        Spoil("a number x 10", cell(lambda v, a, g: 10.0 * v), numbers),
        Spoil("a number x 100", cell(lambda v, a, g: 100.0 * v), numbers),
        Spoil("a number / 1,000", cell(lambda v, a, g: v / 1000.0), numbers),
        Spoil("a number's sign flipped", cell(lambda v, a, g: -v), numbers),
        Spoil("a number with its first digit twice", cell(lambda v, a, g: first_digit_twice(v)), numbers),
        Spoil("a number made 0", cell(lambda v, a, g: 0.0 * v), numbers),
        Spoil("a number made -999", cell(lambda v, a, g: np.full(len(v), CODE)), numbers),
        Spoil("a number off by one standard deviation", cell(partial(shifted, 1.0)), numbers),
        Spoil("a number off by three standard deviations", cell(partial(shifted, 3.0)), numbers),
        Spoil("a number stuck at one value", cell(lambda v, a, g: np.full(len(v), some_value(a, g))), numbers),
        Spoil("numbers clipped at their median", partial(clipped, columns)),
        Spoil("numbers with noise of a standard deviation", partial(noisy, columns, 1.0)),
        Spoil("numbers with noise of a fifth of it", partial(noisy, columns, 0.2)),
        Spoil("two numbers swapped", partial(two_swapped, columns)),
        Spoil("another category", partial(recategorised, columns, another_category), categories),
        Spoil("a category never seen", partial(recategorised, columns, unseen_category), categories),
        Spoil("a value of another row", of_another_row, any_column),
        Spoil(MADE_ZERO, partial(missing_made_zero, columns)),
        Spoil("all columns from different rows", independent),
        Spoil("half of one row and half of another", half_and_half),
        Spoil(MISSING, cell(lambda v, a, g: np.full(len(v), np.nan)), few_columns),
    ]


def cell(change: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    """A change of one cell: of values, shape (n,), given all values of their column, (N,)."""

    def changed(rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        rows = rows.copy()
        for at in np.unique(chosen):
            here, column = chosen == at, rows[:, at].copy()
            rows[here, at] = change(column[here], column[~np.isnan(column)], generator)
        return rows

    return changed


def first_digit_twice(values: np.ndarray) -> np.ndarray:
    """37 becomes 337."""
    with np.errstate(divide="ignore"):
        power = 10.0 ** np.floor(np.log10(np.abs(values)))
    digit = np.floor(np.abs(values) / np.where(power > 0, power, 1.0))
    return np.where(values == 0, 0.0, values + np.sign(values) * digit * power * 10.0)


def shifted(deviations: float, values: np.ndarray, column: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    moved = values + generator.choice([-1.0, 1.0], len(values)) * deviations * column.std()
    return np.rint(moved) if (column == np.rint(column)).all() else moved


def some_value(column: np.ndarray, generator: np.random.Generator) -> float:
    return float(generator.choice(column))


def clipped(columns: Columns, rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every number at most the median of its column."""
    with np.errstate(all="ignore"):
        middle = np.array([np.median(one[~np.isnan(one)]) if (~np.isnan(one)).any() else np.nan for one in rows.T])
    return np.where(columns.is_number & ~np.isnan(rows), np.fmin(rows, middle), rows)


def noisy(
    columns: Columns, deviations: float, rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    rows = rows.copy()
    for at in np.flatnonzero(columns.is_number):
        there = rows[~np.isnan(rows[:, at]), at]
        spread = there.std() if len(there) else 0.0
        moved = rows[:, at] + deviations * spread * generator.normal(size=len(rows))
        is_whole = len(there) and (there == np.rint(there)).all()
        rows[:, at] = np.rint(moved) if is_whole else moved
    return rows


def two_swapped(columns: Columns, rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    rows, numbers = rows.copy(), np.flatnonzero(columns.is_number)
    if len(numbers) < 2:
        return rows
    for row in rows:
        one, other = generator.choice(numbers, 2, replace=False)
        row[[one, other]] = row[[other, one]]
    return rows


def recategorised(
    columns: Columns,
    value: Callable[[tuple[float, ...], float, np.random.Generator], float],
    rows: np.ndarray,
    chosen: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Another category in each row, given the values of its column and its own."""
    rows = rows.copy()
    for row, at in zip(rows, chosen, strict=True):
        row[at] = value(columns.values[at], row[at], generator)
    return rows


def another_category(values: tuple[float, ...], own: float, generator: np.random.Generator) -> float:
    return float(generator.choice([value for value in values if value != own]))


def unseen_category(values: tuple[float, ...], own: float, generator: np.random.Generator) -> float:
    """Beyond all of them: the index of text that was never seen is their number."""
    return max(values) + 1.0


def of_another_row(rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    changed = rows.copy()
    others = generator.permutation(len(rows))
    changed[np.arange(len(rows)), chosen] = rows[others, chosen]
    return changed


def missing_made_zero(
    columns: Columns, rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    return np.where(np.isnan(rows) & columns.is_number, 0.0, rows)


def independent(rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return np.stack([generator.permutation(column) for column in rows.T], axis=1)


def half_and_half(rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    others = generator.permutation(len(rows))
    theirs = generator.permuted(np.tile(np.arange(rows.shape[1]) < rows.shape[1] // 2, (len(rows), 1)), axis=1)
    return np.where(theirs, rows[others], rows)


# Images


def image_spoils(shape: Sequence[int]) -> list[Spoil]:
    """Ways of spoiling images of a shape (H, W) or (H, W, 3), 0..255."""

    def images(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
        def changed(rows: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
            found = change(rows.reshape(-1, *shape), generator)
            return np.rint(np.clip(found, 0.0, 255.0)).reshape(len(rows), -1)

        return changed

    in_colour = [
        Spoil("channels exchanged", images(lambda x, g: x[..., [2, 0, 1]])),
        Spoil("a colour cast of 40 levels", images(colour_cast)),
    ]
    return [
        *(in_colour if len(shape) == 3 else []),
        Spoil("a quarter hidden", images(partial(occluded, 0.5))),
        Spoil("a sixteenth hidden", images(partial(occluded, 0.25))),
        Spoil("inverted", images(lambda x, g: 255.0 - x)),
        Spoil("upside down", images(lambda x, g: x[:, ::-1, ::-1])),
        Spoil("mirrored", images(lambda x, g: x[:, :, ::-1])),
        Spoil("moved by a quarter", images(lambda x, g: np.roll(x, x.shape[2] // 4, axis=2))),
        Spoil("blurred", images(partial(blurred, 1))),
        Spoil("blurred three times", images(partial(blurred, 3))),
        Spoil("noise of 25 grey levels", images(lambda x, g: x + 25.0 * g.normal(size=x.shape))),
        Spoil("noise of 80 grey levels", images(lambda x, g: x + 80.0 * g.normal(size=x.shape))),
        Spoil("half the exposure", images(lambda x, g: 0.5 * x)),
        Spoil("64 grey levels brighter", images(lambda x, g: x + 64.0)),
        Spoil("patches shuffled", images(patches_shuffled)),
        Spoil("the mean of two", images(lambda x, g: 0.5 * (x + x[g.permutation(len(x))]))),
        Spoil("half of one and half of another", images(halves)),
        Spoil("blank", images(lambda x, g: np.zeros_like(x))),
    ]


def occluded(share: float, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A black rectangle, `share` of each side long, at a random place."""
    images = images.copy()
    height, width = (max(1, round(share * side)) for side in images.shape[1:3])
    tops = generator.integers(0, images.shape[1] - height + 1, len(images))
    lefts = generator.integers(0, images.shape[2] - width + 1, len(images))
    for image, top, left in zip(images, tops, lefts, strict=True):
        image[top : top + height, left : left + width] = 0.0
    return images


def blurred(times: int, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The mean of three by three pixels, so many times."""
    for _ in range(times):
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), *[(0, 0)] * (images.ndim - 3)), mode="edge")
        images = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).mean(axis=(-2, -1))
    return images


def colour_cast(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One channel higher and another lower by 40 levels."""
    casts = generator.permuted(np.tile([40.0, -40.0, 0.0], (len(images), 1)), axis=1)
    return images + casts[:, None, None, :]


def patches_shuffled(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Quarters of each image in another order."""
    height, width = images.shape[1] // 2, images.shape[2] // 2
    if not height or not width:
        return images
    images = images.copy()
    corners = [(top, left) for top in (0, height) for left in (0, width)]
    for image in images:
        parts = [image[top : top + height, left : left + width].copy() for top, left in corners]
        for (top, left), which in zip(corners, np.roll(range(4), generator.integers(1, 4)), strict=True):
            image[top : top + height, left : left + width] = parts[which]
    return images


def halves(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    half = max(1, images.shape[1] // 2)  # of a single row of pixels nothing is taken
    return np.concatenate([images[:, :half], images[generator.permutation(len(images)), half:]], axis=1)
