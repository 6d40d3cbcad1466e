"""Test statistics of rows in addition to log p(x), and their weights in the combined rule.

All of them come from quantities that scoring computes anyway, except the nearest known row, the compressed size of an
image, and what preprocessing discards of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeGuard

import numpy as np

from service.data.columns import CategoryColumn, NumberColumn
from service.data.inputs import Binary, InputSpec, Mixed
from service.density.neighbours import Neighbours
from service.density.row_statistics import DrawObserver, DrawStatistics, Seen, encodings
from service.vae.network import VAE
from service.validity.combination import FULL_WEIGHT, MIN_ROWS, Combination

MAX_KNOWN_ROWS, MAX_KNOWN_CELLS = 4096, 2**20
USUAL_SPREAD = (50.0, 5.0)  # percentiles of a column's term; their difference is its spread
LEAST_SPREAD = 1.0  # nats
NOTHING = 1e-9
WHITE = 255.0

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
]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A test statistic of a row: large values are extreme, and with `both` also small ones.

    `scale` is the size of a negligible difference. `since` is the first generation of versions that have it.
    """

    name: StatisticName
    scale: float
    is_main: bool = False
    both: bool = False
    images_only: bool = False
    black_and_white_only: bool = False
    since: int = 1


STATISTICS = (
    Statistic("nearest_row", 0.01, is_main=True),
    Statistic("reconstruction", 0.01),
    Statistic("worst_column", 0.01),
    Statistic("divergence", 0.01),
    Statistic("bound_gap", 0.01),
    Statistic("nearest_encoding", 0.01),
    Statistic("compressed_size", 0.01, both=True, images_only=True),
    Statistic("discarded", 0.002, both=True, images_only=True, black_and_white_only=True),
    Statistic("discarded_apart", 0.0002, images_only=True, black_and_white_only=True, since=2),
)
GENERATION = 2  # of the statistics that new versions have
LOG_LIKELIHOOD_SCALE = 0.01
# On all data, a low likelihood and a large distance to all known rows are the most informative and have full weight. For
# tables each of the others has weight 1/30: a value that one valid row in thirty shows then adds no more than the main two
# do for any row. For images the main two say less, because simple images are likely and the pixels of any two images are
# far apart: there the others have weight 1/3.
ASIDE = {"table": 1.0 / 30.0, "image": 1.0 / 3.0}


@dataclass(frozen=True)
class KnownRows:
    """Rows that the networks were fitted to, shape (m, D), and typical values of valid rows' columns.

    `usual` (2, D) is the median and the spread of E[log p(x_j | z)], nats. `generation` says which statistics a version was
    calibrated for.
    """

    rows: np.ndarray = field(repr=False)
    usual: np.ndarray = field(repr=False)
    generation: int = GENERATION

    @staticmethod
    def of(rows: np.ndarray, features: int) -> KnownRows:
        """A random sample of rows, shape (n, D), within the limits on size; `usual` is a placeholder."""
        most = max(1, min(MAX_KNOWN_ROWS, MAX_KNOWN_CELLS // features))
        if len(rows) > most:
            rows = rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]
        return KnownRows(rows, np.stack([np.zeros(features), np.ones(features)]))

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
        known: KnownRows, statistics: np.ndarray, spec: InputSpec, unreadable: int = 0
    ) -> ReferenceStatistics | None:
        """Fit to validation rows' statistics, shape (n, K), in random order; None if there are too few rows.

        Rows that rank below every number have infinite statistics; there are `unreadable` more of them.
        """
        finite = np.isfinite(statistics).all(axis=1)
        if finite.sum() < MIN_ROWS or finite[: len(statistics) // 2].sum() < MIN_ROWS // 4:
            return None
        return ReferenceStatistics(known, Combination.fit(statistics, *weights_of(spec), round(unreadable / 2)))

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


def chosen_statistics(spec: InputSpec, generation: int = GENERATION) -> list[Statistic]:
    """The further statistics that apply to an input, of a generation."""
    is_image, is_binary = spec.kind == "image", isinstance(spec.transform, Binary)
    return [
        one
        for one in STATISTICS
        if one.since <= generation and is_image >= one.images_only and is_binary >= one.black_and_white_only
    ]


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
    """The newest generation with so many one-sided statistics.

    Raises:
        ValueError: there is none.
    """
    for generation in range(GENERATION, 0, -1):
        if len(weights_of(spec, generation)[0]) == sides:
            return generation
    raise ValueError(f"no version has {sides} statistics")


class RowStatistics:
    """Computes the further test statistics of rows with V networks, relative to known rows."""

    def __init__(self, spec: InputSpec, known: KnownRows, vaes: Sequence[VAE]) -> None:
        self.spec, self.known = spec, known
        # If a pixel is black in all known rows, the slightest grey there would otherwise be a huge distance.
        span = WHITE if spec.kind == "image" else None
        self.neighbours = Neighbours(coordinates(spec, known.rows), categories(spec), span)
        self.encodings = [encodings(vae, spec.encode(known.rows)) for vae in vaes]

    def observer(self, number: int) -> DrawObserver:
        """An observer of network `number` that collects what the statistics need from its draws."""
        return DrawObserver(self.spec.widths, self.encodings[number])

    def together(self, seen: Sequence[Sequence[Seen]]) -> DrawStatistics:
        """Average over the networks what each has seen of B rows."""
        return DrawStatistics.averaged([DrawStatistics.stacked(rows, self.spec.features) for rows in seen])

    def of(self, rows: np.ndarray, log_likelihood: np.ndarray, seen: Sequence[Sequence[Seen]]) -> np.ndarray:
        """All one-sided statistics of checked rows, shape (B, D): shape (B, K); the larger, the more extreme.

        Args:
            seen: for each network, what its observer saw of each row.
        """
        by_draws = self.together(seen)
        middle, spread = self.known.usual
        short = np.where(np.isnan(rows), 0.0, (middle - by_draws.reconstruction) / spread)
        values: dict[StatisticName, Callable[[], np.ndarray]] = {
            "nearest_row": lambda: logarithm(self.neighbours.distances(coordinates(self.spec, rows))),
            "reconstruction": lambda: -by_draws.reconstruction.sum(axis=1),
            "worst_column": lambda: short.max(axis=1),
            "divergence": lambda: np.arcsinh(by_draws.divergence),
            "bound_gap": lambda: np.arcsinh(by_draws.gap),
            "nearest_encoding": lambda: logarithm(by_draws.latent_distance),
            "compressed_size": lambda: logarithm(compressed_sizes(rows.reshape(-1, *self.spec.shape))),
            "discarded": lambda: discarded(self.spec, rows).mean(axis=1),
            "discarded_apart": lambda: discarded_apart(self.spec, rows),
        }
        columns = [-log_likelihood, log_likelihood]
        for one in chosen_statistics(self.spec, self.known.generation):
            value = values[one.name]()
            columns += [value, -value] if one.both else [value]
        return np.stack(columns, axis=1).astype(np.float64)


def logarithm(values: np.ndarray) -> np.ndarray:
    """log of numbers that may be 0, with a floor at NOTHING."""
    return np.log(np.maximum(values, NOTHING))


def coordinates(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """Coordinates of rows, shape (B, D), for distances: an image's pixels; a table's columns as the network sees them.

    A few numbers, such as grades, are coordinates by their size: one that was never seen may be far from all others. In
    older versions it is one step away.
    """
    if spec.kind == "image":
        return rows
    x = spec.encode(rows)
    if not (isinstance(spec.transform, Mixed) and spec.precision == "float64"):
        return x
    x, ends = x.astype(np.float64), np.cumsum(spec.widths)
    for at, column in enumerate(spec.transform.columns):
        if has_positions(column):
            x[:, ends[at] - 1] = column.positions(rows[:, at])
    return x


def has_positions(column: NumberColumn | CategoryColumn) -> TypeGuard[CategoryColumn]:
    """Whether a column's few values are numbers in an order."""
    return isinstance(column, CategoryColumn) and not column.is_text and column.kind in ("ordinal", "binary")


def categories(spec: InputSpec) -> np.ndarray:
    """Which of the coordinates are categorical, shape (D',), bool."""
    if not isinstance(spec.transform, Mixed):
        return np.zeros(spec.features, dtype=bool)
    flags: list[bool] = []
    for column in spec.transform.columns:
        if isinstance(column, CategoryColumn):
            is_ordered = column.kind == "ordinal" or (spec.precision == "float64" and has_positions(column))
            flags.append(not is_ordered)
        else:
            flags += [True, False] if column.atoms else [False]  # which atom, if any
    return np.array(flags)


def discarded(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """What a threshold discards of each pixel: how far it is from black or white, whichever it becomes. (B, D), 0 to 1."""
    return np.abs(rows - spec.decode(spec.encode(rows))) / WHITE


def discarded_apart(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """What a threshold discards of pixels whose neighbours all become the same colour, in the mean of all: shape (B,).

    The grey of an edge lies between black and white. What is drawn in grey on a plain ground does not, such as a faint
    letter beside a digit, which the network never sees.
    """
    shape = (-1, *spec.shape)
    black_and_white = spec.encode(rows).reshape(shape) > 0
    padded = np.pad(black_and_white, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    is_plain = (around == black_and_white[..., None, None]).all(axis=(3, 4))
    return np.where(is_plain, discarded(spec, rows).reshape(shape), 0.0).mean(axis=(1, 2))


def compressed_sizes(images: np.ndarray) -> np.ndarray:
    """Lossless size of each image, shape (B, H, W), 0..255, in bytes: differences along its rows, compressed by zlib."""
    levels = np.rint(images).astype(np.uint8)
    steps = np.diff(levels, axis=2, prepend=np.uint8(0))  # wraps around, as PNG's filter does
    return np.array([len(zlib.compress(image.tobytes(), 6)) for image in steps], dtype=np.float64)
