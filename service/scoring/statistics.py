"""Test statistics of rows in addition to log p(x), and their weights in the combined rule.

All of them come from quantities that scoring computes anyway, except distances to known rows, the cells and pairs of mixed
tables, the compressed size of an image, and what preprocessing discards of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Literal, TypeGuard, get_args

import numpy as np

from service.data.columns import CategoryColumn, NumberColumn
from service.data.inputs import Binary, InputSpec, Mixed
from service.density.neighbours import Neighbours
from service.density.pairs import RarePairs
from service.density.row_statistics import DrawObserver, DrawStatistics, Seen, encodings
from service.scoring.image_statistics import (
    WHITE,
    compressed_sizes,
    discarded,
    discarded_apart,
    extremes,
    hues,
    textures,
)
from service.vae.network import VAE
from service.validity.column_ranks import ColumnSketch
from service.validity.combination import FULL_WEIGHT, MIN_ROWS, Combination

MAX_KNOWN_ROWS, MAX_KNOWN_CELLS = 4096, 2**20
USUAL_SPREAD = (50.0, 5.0)  # percentiles of a column's term; their difference is its spread
LEAST_SPREAD = 1.0  # nats
NOTHING = 1e-9
LEAST_DISTANCE = 0.5  # of the resolution of the known rows: smaller distances are equal
NEIGHBOURS = 5

StatisticName = Literal[
    "log_likelihood",
    "nearest_row",
    "reconstruction",
    "worst_column",
    "divergence",
    "bound_gap",
    "nearest_encoding",
    "compressed_size",
    "discarded",
    "discarded_apart",
    "worst_cell",
    "rare_pair",
    "isolation",
    "darkest",
    "brightest",
    "texture",
    "sharpness",
    "red_green",
    "yellow_blue",
]


InputKind = Literal["image", "black-and-white image", "colour image", "table", "mixed table"]
ANY_INPUT = frozenset(get_args(InputKind))


@dataclass(frozen=True, slots=True)
class Statistic:
    """A test statistic of a row: large values are extreme, and with `both` also small ones.

    `scale` is the size of a negligible difference. `inputs` have it, of those that `kinds_of` tells apart. `since` is the
    first generation of versions that have it.
    """

    name: StatisticName
    scale: float
    is_main: bool = False
    both: bool = False
    inputs: frozenset[InputKind] = ANY_INPUT
    since: int = 1


IMAGES: frozenset[InputKind] = frozenset({"image", "black-and-white image", "colour image"})
SHADED: frozenset[InputKind] = frozenset({"image", "colour image"})
COLOURED: frozenset[InputKind] = frozenset({"colour image"})
BLACK_AND_WHITE: frozenset[InputKind] = frozenset({"black-and-white image"})
TABLES: frozenset[InputKind] = frozenset({"table", "mixed table"})
MIXED: frozenset[InputKind] = frozenset({"mixed table"})
STATISTICS = (
    Statistic("nearest_row", 0.01, is_main=True),
    Statistic("reconstruction", 0.01),
    Statistic("worst_column", 0.01),
    Statistic("divergence", 0.01),
    Statistic("bound_gap", 0.01),
    Statistic("nearest_encoding", 0.01),
    Statistic("compressed_size", 0.01, both=True, inputs=IMAGES),
    Statistic("discarded", 0.002, both=True, inputs=BLACK_AND_WHITE),
    Statistic("discarded_apart", 0.0002, inputs=BLACK_AND_WHITE, since=2),
    Statistic("worst_cell", 0.01, is_main=True, inputs=MIXED, since=3),
    Statistic("rare_pair", 0.01, is_main=True, inputs=MIXED, since=3),
    Statistic("isolation", 0.01, is_main=True, inputs=TABLES, since=3),
    *(Statistic(name, 0.5, both=True, inputs=SHADED, since=4) for name in ("darkest", "brightest")),
    *(Statistic(name, 0.01, both=True, inputs=SHADED, since=4) for name in ("texture", "sharpness")),
    *(Statistic(name, 0.5, both=True, inputs=COLOURED, since=4) for name in ("red_green", "yellow_blue")),
)
GENERATION = 4  # of the statistics that new versions have
LAST_CURVED = 3  # the last generation whose distances are between columns as the network sees them
LAST_UNTOLD = 2  # the last generation whose versions do not tell it
LOG_LIKELIHOOD_SCALE = 0.01
# On all data, a low likelihood and a large distance to all known rows are the most informative and have full weight, and so
# have, for tables with categories, the worst cell and the rarest pair. For tables each of the others has weight 1/30: a
# value that one valid row in thirty shows then adds no more than the main ones do for any row. For images the main two say
# less, because simple images are likely and the pixels of any two images are far apart: there the others have weight 1/3.
ASIDE = {"table": 1.0 / 30.0, "image": 1.0 / 3.0}


@dataclass(frozen=True)
class KnownRows:
    """Rows that the networks were fitted to, shape (m, D), and typical values of valid rows' columns.

    `usual` (2, D) is the median and the spread of E[log p(x_j | z)], nats, and `cells` is the distribution of
    log p(x_j | x_-j), which mixed tables have. `generation` says which statistics a version was calibrated for.
    """

    rows: np.ndarray = field(repr=False)
    usual: np.ndarray = field(repr=False)
    cells: ColumnSketch | None = None
    generation: int = GENERATION

    @staticmethod
    def of(rows: np.ndarray, features: int) -> KnownRows:
        """A random sample of rows, shape (n, D), within the limits on size; `usual` is a placeholder."""
        most = max(1, min(MAX_KNOWN_ROWS, MAX_KNOWN_CELLS // features))
        if len(rows) > most:
            rows = rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]
        return KnownRows(rows, np.stack([np.zeros(features), np.ones(features)]))

    def with_averages(self, others: Sequence[KnownRows]) -> KnownRows:
        """These rows, with what is typical on average for the networks of an ensemble."""
        cells = [one.cells for one in others if one.cells is not None]
        return replace(
            self,
            usual=np.mean([one.usual for one in others], axis=0),
            cells=ColumnSketch.averaged(cells) if cells else None,
        )

    @staticmethod
    def usual_of(reconstruction: np.ndarray) -> np.ndarray:
        """Median and spread by column of E[log p(x_j | z)] of valid rows, shape (m, D): shape (2, D)."""
        middle, low = np.percentile(reconstruction, USUAL_SPREAD, axis=0)
        return np.stack([middle, np.maximum(middle - low, LEAST_SPREAD)])


@dataclass(frozen=True)
class ReferenceStatistics:
    """What a row's statistics are compared with: known rows, and the statistics of validation rows."""

    known: KnownRows
    combination: Combination

    @staticmethod
    def fit(
        known: KnownRows, statistics: np.ndarray, weights: np.ndarray, scales: np.ndarray, unreadable: int = 0
    ) -> ReferenceStatistics | None:
        """Fit to validation rows' statistics, shape (n, K), in random order; None if there are too few rows.

        Rows that rank below every number have infinite statistics; there are `unreadable` more of them.

        Args:
            weights, scales: of the statistics, shape (K,) both (`weights_of`).
        """
        finite = np.isfinite(statistics).all(axis=1)
        if finite.sum() < MIN_ROWS or finite[: len(statistics) // 2].sum() < MIN_ROWS // 4:
            return None
        by_ranks = known.generation > LAST_UNTOLD
        return ReferenceStatistics(known, Combination.fit(statistics, weights, scales, round(unreadable / 2), by_ranks))

    def fit_alike(self, statistics: np.ndarray, unreadable: int = 0) -> ReferenceStatistics | None:
        """Fit to the statistics of other rows, such as rows with hidden cells, with the same weights."""
        return ReferenceStatistics.fit(
            self.known, statistics, self.combination.weights, self.combination.scales, unreadable
        )

    @property
    def rows(self) -> int:
        """Number of validation rows behind a combined p-value."""
        return len(self.combination.combined)

    def p_values(self, statistics: np.ndarray, spec: InputSpec) -> np.ndarray:
        """The p-value of each statistic alone, two-sided if both sides are extreme: (B, E), in the order of `names_of`."""
        parts = self.combination.part_p_values(statistics)
        columns, at = [], 0
        for _, both in named(spec, self.known.generation):
            one = parts[:, at]
            columns.append(np.minimum(1.0, 2.0 * np.minimum(one, parts[:, at + 1])) if both else one)
            at += 2 if both else 1
        return np.stack(columns, axis=1)


def kind_of(spec: InputSpec) -> InputKind:
    """Which statistics an input has."""
    if spec.kind == "image":
        if isinstance(spec.transform, Binary):
            return "black-and-white image"
        return "colour image" if len(spec.shape) == 3 else "image"
    return "mixed table" if is_category(spec).any() else "table"


def is_category(spec: InputSpec) -> np.ndarray:
    """Which of an input's columns hold categories, shape (D,), bool."""
    if not isinstance(spec.transform, Mixed):
        return np.zeros(spec.features, dtype=bool)
    return np.array([isinstance(one, CategoryColumn) for one in spec.transform.columns])


def has_cells(spec: InputSpec, generation: int = GENERATION) -> bool:
    """Whether cells given the others are among an input's statistics."""
    return any(one.name == "worst_cell" for one in chosen_statistics(spec, generation))


def chosen_statistics(spec: InputSpec, generation: int = GENERATION) -> list[Statistic]:
    """The further statistics that apply to an input, of a generation."""
    kind = kind_of(spec)
    return [one for one in STATISTICS if one.since <= generation and kind in one.inputs]


def named(spec: InputSpec, generation: int = GENERATION) -> list[tuple[StatisticName, bool]]:
    """The names of all statistics, and whether both sides are extreme."""
    return [("log_likelihood", True), *((one.name, one.both) for one in chosen_statistics(spec, generation))]


def names_of(spec: InputSpec, generation: int = GENERATION) -> list[StatisticName]:
    return [name for name, _ in named(spec, generation)]


def weights_of(spec: InputSpec, generation: int = GENERATION) -> tuple[np.ndarray, np.ndarray]:
    """Weights and scales of all one-sided statistics, shape (K,) both."""
    aside = ASIDE[spec.kind]
    sides = [(FULL_WEIGHT, LOG_LIKELIHOOD_SCALE), (aside, LOG_LIKELIHOOD_SCALE)]  # unlikely; too likely
    for one in chosen_statistics(spec, generation):
        sides += [(FULL_WEIGHT if one.is_main else aside, one.scale)] * (2 if one.both else 1)
    weights, scales = zip(*sides, strict=True)
    return np.array(weights), np.array(scales)


def generation_of(spec: InputSpec, sides: int) -> int:
    """The newest generation with so many one-sided statistics, of those whose versions do not tell it themselves.

    Raises:
        ValueError: there is none.
    """
    for generation in range(LAST_UNTOLD, 0, -1):
        if len(weights_of(spec, generation)[0]) == sides:
            return generation
    raise ValueError(f"no version has {sides} statistics")


class RowStatistics:
    """Computes the further test statistics of rows with V networks, relative to known rows."""

    def __init__(self, spec: InputSpec, known: KnownRows, vaes: Sequence[VAE]) -> None:
        self.spec, self.known = spec, known
        self.chosen = chosen_statistics(spec, known.generation)
        # If a pixel is black in all known rows, the slightest grey there would otherwise be a huge distance.
        span = WHITE if spec.kind == "image" else None
        self.near = coordinates(spec, known.rows, known.generation)
        self.neighbours = Neighbours(self.near, categories(spec, known.generation), span)
        self.encodings = [encodings(vae, spec.encode(known.rows)) for vae in vaes]
        self.count = NEIGHBOURS if self.has("isolation") else 1

    # Computed when first asked for: who only observes draws needs none of these.

    @cached_property
    def closest(self) -> float:
        """The least distance that counts: smaller ones are equal."""
        return LEAST_DISTANCE * self.neighbours.resolution() if self.known.generation > LAST_UNTOLD else NOTHING

    @cached_property
    def spacing(self) -> np.ndarray:
        """log of the mean distance of each known row to its own nearest ones, shape (m,)."""
        around = self.neighbours.nearest(self.near, NEIGHBOURS + 1)[0][:, 1:]  # the first is the row itself
        return logarithm(around.mean(axis=1) if around.size else np.zeros(len(self.near)), self.closest)

    @cached_property
    def pairs(self) -> RarePairs:
        """Which values come together in known rows."""
        return RarePairs(self.known.rows, is_category(self.spec))

    def has(self, name: StatisticName) -> bool:
        """Whether a statistic applies to the input and the version."""
        return any(one.name == name for one in self.chosen)

    @property
    def suspect(self) -> np.ndarray | None:
        """log p(x_j | x_-j) below which a cell is estimated with more care, shape (D,); None if none need be."""
        return self.known.cells.suspect if self.has("worst_cell") and self.known.cells is not None else None

    def observer(self, number: int) -> DrawObserver:
        """An observer of network `number` that collects what the statistics need from its draws."""
        return DrawObserver(self.spec.widths, self.encodings[number])

    def together(self, seen: Sequence[Sequence[Seen]]) -> DrawStatistics:
        """Average over the networks what each has seen of B rows."""
        return DrawStatistics.averaged([DrawStatistics.stacked(rows, self.spec.features) for rows in seen])

    def of(
        self,
        rows: np.ndarray,
        log_likelihood: np.ndarray,
        seen: Sequence[Sequence[Seen]],
        cells: np.ndarray | None = None,
    ) -> np.ndarray:
        """All one-sided statistics of checked rows, shape (B, D): shape (B, K); the larger, the more extreme.

        Args:
            seen: for each network, what its observer saw of each row.
            cells: log p(x_j | x_-j), shape (B, D), nats, if `suspect` asks for it.
        """
        by_draws = self.together(seen)
        middle, spread = self.known.usual
        short = np.where(np.isnan(rows), 0.0, (middle - by_draws.reconstruction) / spread)
        distances, which = self.neighbours.nearest(coordinates(self.spec, rows, self.known.generation), self.count)
        images = rows.reshape(-1, *self.spec.shape)
        shades, structure, colours = (
            cache(lambda: extremes(images)),
            cache(lambda: textures(images)),
            cache(lambda: hues(images)),
        )
        values: dict[StatisticName, Callable[[], np.ndarray]] = {
            "nearest_row": lambda: logarithm(distances[:, 0], self.closest),
            "reconstruction": lambda: -by_draws.reconstruction.sum(axis=1),
            "worst_column": lambda: short.max(axis=1),
            "divergence": lambda: np.arcsinh(by_draws.divergence),
            "bound_gap": lambda: np.arcsinh(by_draws.gap),
            "nearest_encoding": lambda: logarithm(by_draws.latent_distance),
            "compressed_size": lambda: logarithm(compressed_sizes(images)),
            "darkest": lambda: shades()[0],
            "brightest": lambda: shades()[1],
            "texture": lambda: structure()[0],
            "sharpness": lambda: structure()[1],
            "red_green": lambda: colours()[0],
            "yellow_blue": lambda: colours()[1],
            "discarded": lambda: discarded(self.spec, rows).mean(axis=1),
            "discarded_apart": lambda: discarded_apart(self.spec, rows),
            "worst_cell": lambda: self.worst_cell(cells),
            "rare_pair": lambda: self.pairs.rarest(rows)[0],
            "isolation": lambda: self.isolation(distances, which),
        }
        columns = [-log_likelihood, log_likelihood]
        for one in self.chosen:
            value = values[one.name]()
            columns += [value, -value] if one.both else [value]
        return np.stack(columns, axis=1).astype(np.float64)

    def worst_cell(self, cells: np.ndarray | None) -> np.ndarray:
        """The surprise of each row's most surprising cell given the others, nats, among typical cells: shape (B,)."""
        assert cells is not None
        assert self.known.cells is not None
        return np.fmax.reduce(self.known.cells.surprise(cells), axis=1, initial=0.0)

    def isolation(self, distances: np.ndarray, which: np.ndarray) -> np.ndarray:
        """log of the mean distance to the nearest known rows, less half of that of their own distances: shape (B,).

        Where known rows are far apart, a new one may be, too. Less all of it, this would be the simplified local outlier
        factor (Schubert, Zimek and Kriegel, 2014), for which a distance is not strange by itself.

        Args:
            distances, which: of the nearest known rows, and their numbers, shape (B, N) both.
        """
        return logarithm(distances.mean(axis=1), self.closest) - 0.5 * self.spacing[which].mean(axis=1)


def logarithm(values: np.ndarray, least: float = NOTHING) -> np.ndarray:
    """log of numbers that may be 0; smaller ones than `least` are taken for it."""
    return np.log(np.maximum(values, least))


def coordinates(spec: InputSpec, rows: np.ndarray, generation: int = GENERATION) -> np.ndarray:
    """Coordinates of rows, shape (B, D), for distances: an image's pixels; a table's columns in their own units.

    On development sets these tell strange rows far better than columns on the curved scales that the network sees, which
    put a number that is much too large near the others. Older versions have those, and there a few numbers, such as grades,
    are coordinates by their size: one that was never seen may be far from all others, or, at first, is one step away.
    """
    if spec.kind == "image":
        return rows
    if not isinstance(spec.transform, Mixed):
        return spec.encode(rows)
    if generation > LAST_CURVED:
        return rows.astype(np.float64)
    x = spec.encode(rows)
    if spec.precision != "float64":
        return x
    x, ends = x.astype(np.float64), np.cumsum(spec.widths)
    for at, column in enumerate(spec.transform.columns):
        if has_positions(column):
            x[:, ends[at] - 1] = column.positions(rows[:, at])
    return x


def has_positions(column: NumberColumn | CategoryColumn) -> TypeGuard[CategoryColumn]:
    """Whether a column's few values are numbers in an order."""
    return isinstance(column, CategoryColumn) and not column.is_text and column.kind in ("ordinal", "binary")


def categories(spec: InputSpec, generation: int = GENERATION) -> np.ndarray:
    """Which of the coordinates are categorical, shape (D',), bool."""
    if not isinstance(spec.transform, Mixed):
        return np.zeros(spec.features, dtype=bool)
    flags: list[bool] = []
    for column in spec.transform.columns:
        if isinstance(column, CategoryColumn):
            is_ordered = column.kind == "ordinal" or (spec.precision == "float64" and has_positions(column))
            flags.append(not is_ordered)
        elif generation > LAST_CURVED:
            flags.append(False)
        else:
            flags += [True, False] if column.atoms else [False]  # which atom, if any
    return np.array(flags)
