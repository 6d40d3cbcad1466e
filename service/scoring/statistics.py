"""Test statistics of rows in addition to log p(x), and their weights in the combined rule.

All of them come from quantities that scoring computes anyway, except distances to known rows, the cells and pairs of mixed
tables, the compressed size of an image, and what preprocessing discards of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import TypeGuard

import numpy as np

from service.data.columns import CategoryColumn, NumberColumn
from service.data.inputs import InputSpec, Mixed
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
from service.scoring.statistic_kinds import (
    APPEARANCES,
    GENERATION,
    LAST_CURVED,
    LAST_UNTOLD,
    MAX_APPEARANCES,
    SHADED,
    StatisticName,
    chosen_statistics,
    is_category,
    kind_of,
    named,
)
from service.vae.network import VAE
from service.validity.column_ranks import ColumnSketch
from service.validity.combination import MIN_ROWS, Combination

MAX_KNOWN_ROWS, MAX_KNOWN_CELLS = 4096, 2**20
USUAL_SPREAD = (50.0, 5.0)  # percentiles of a column's term; their difference is its spread
LEAST_SPREAD = 1.0  # nats
NOTHING = 1e-9
LEAST_DISTANCE = 0.5  # of the resolution of the known rows: smaller distances are equal
NEIGHBOURS = 5
IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class KnownRows:
    """Rows that the networks were fitted to, shape (m, D), and typical values of valid rows' columns.

    `usual` (2, D) is the median and the spread of E[log p(x_j | z)], nats, and `cells` is the distribution of
    log p(x_j | x_-j), which mixed tables have. `generation` says which statistics a version was calibrated for. Shaded
    images have `appearances`, (m', F) for each of APPEARANCES, of more rows.
    """

    rows: np.ndarray = field(repr=False)
    usual: np.ndarray = field(repr=False)
    cells: ColumnSketch | None = None
    generation: int = GENERATION
    appearances: Mapping[StatisticName, np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(rows: np.ndarray, spec: InputSpec) -> KnownRows:
        """A random sample of rows, shape (n, D), within the limits on size; `usual` is a placeholder."""
        features, appearances = spec.features, {}
        if kind_of(spec) in SHADED:
            some = sampled(rows, MAX_APPEARANCES).reshape(-1, *spec.shape)
            appearances = {name: np.ascontiguousarray(appearance_of(name, some), np.float32) for name in APPEARANCES}
        most = max(1, min(MAX_KNOWN_ROWS, MAX_KNOWN_CELLS // features))
        usual = np.stack([np.zeros(features), np.ones(features)])
        return KnownRows(sampled(rows, most), usual, appearances=appearances)

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
        self.appearances = {
            name: Neighbours(rows, np.zeros(rows.shape[1], dtype=bool)) for name, rows in known.appearances.items()
        }

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
        by_draws: DrawStatistics,
        cells: np.ndarray | None = None,
    ) -> np.ndarray:
        """All one-sided statistics of checked rows, shape (B, D): shape (B, K); the larger, the more extreme.

        Args:
            by_draws: what the networks' observers saw (`together`).
            cells: log p(x_j | x_-j), shape (B, D), nats, if `suspect` asks for it.
        """
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
            **{name: partial(self.unlike, name, images) for name in APPEARANCES},
            "rare_pair": lambda: self.pairs.rarest(rows)[0],
            "isolation": lambda: self.isolation(distances, which),
        }
        columns = [-log_likelihood, log_likelihood]
        for one in self.chosen:
            value = values[one.name]()
            columns += [value, -value] if one.both else [value]
        return np.stack(columns, axis=1).astype(np.float64)

    def unlike(self, name: StatisticName, images: np.ndarray) -> np.ndarray:
        """log of the mean distance of each image's appearance to those of the nearest known images: shape (B,)."""
        return logarithm(self.appearances[name].nearest(appearance_of(name, images), NEIGHBOURS)[0].mean(axis=1))

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


def appearance_of(name: StatisticName, images: np.ndarray) -> np.ndarray:
    """Numbers by which images, (B, H, W) or (B, H, W, 3), are compared: (B, F); a few at a time, since they need copies."""
    measured, parts = APPEARANCES[name], range(0, max(1, len(images)), IMAGES_AT_ONCE)
    return np.concatenate([measured(images[start : start + IMAGES_AT_ONCE]) for start in parts])


def sampled(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, at random, in order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]


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
