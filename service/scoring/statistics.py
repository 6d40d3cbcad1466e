"""A second opinion on rows: what is measured of each beside log p(x), and how it counts.

Everything comes from what scoring computes anyway, but for the nearest known row and the size of an image.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from service.data.columns import CategoryColumn
from service.data.inputs import Binary, InputSpec, Mixed
from service.density.neighbours import Neighbours
from service.density.row_statistics import DrawObserver, DrawStatistics, Seen, encodings
from service.vae.network import VAE
from service.validity.combination import FULL_WEIGHT, MIN_ROWS, Combination

MAX_KNOWN_ROWS, MAX_KNOWN_CELLS = 4096, 2**20
USUAL_SPREAD = (50.0, 5.0)  # percentiles of a column's term, whose distance is its spread
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
]


@dataclass(frozen=True, slots=True)
class Statistic:
    """One number of a row, of which large values are strange, or with `both` small ones, too.

    `scale` is a difference that is none.
    """

    name: StatisticName
    scale: float
    is_main: bool = False
    both: bool = False
    images_only: bool = False


STATISTICS = (
    Statistic("nearest_row", 0.01, is_main=True),
    Statistic("reconstruction", 0.01),
    Statistic("worst_column", 0.01),
    Statistic("divergence", 0.01),
    Statistic("bound_gap", 0.01),
    Statistic("nearest_encoding", 0.01),
    Statistic("compressed_size", 0.01, both=True, images_only=True),
    Statistic("discarded", 0.002, both=True, images_only=True),
)
LOG_LIKELIHOOD_SCALE = 0.01
# That a row is unlikely, or like no known row, says most, on whatever data, and counts fully. Of tables each of the others
# counts a thirtieth: what one valid row in thirty shows is then no more than what the first two say of any. Of images these
# say less, since simple ones are likely, and the pixels of any two are far apart: there the others count a third.
ASIDE = {"table": 1.0 / 30.0, "image": 1.0 / 3.0}


@dataclass(frozen=True)
class KnownRows:
    """Rows that the networks were fitted to, shape (m, D), float32, and what is usual of valid rows' columns.

    `usual` (2, D) is the median and the spread of E[log p(x_j | z)], nats.
    """

    rows: np.ndarray = field(repr=False)
    usual: np.ndarray = field(repr=False)

    @staticmethod
    def of(rows: np.ndarray, features: int) -> KnownRows:
        """As many of the rows, shape (n, D), as are kept, at random; nothing is usual yet."""
        most = max(1, min(MAX_KNOWN_ROWS, MAX_KNOWN_CELLS // features))
        if len(rows) > most:
            rows = rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]
        return KnownRows(rows, np.stack([np.zeros(features), np.ones(features)]))

    @staticmethod
    def usual_of(given_back: np.ndarray) -> np.ndarray:
        """What is usual, by E[log p(x_j | z)] of valid rows, shape (m, D)."""
        middle, low = np.percentile(given_back, USUAL_SPREAD, axis=0)
        return np.stack([middle, np.maximum(middle - low, LEAST_SPREAD)])


@dataclass(frozen=True)
class ReferenceStatistics:
    """What a row's statistics are compared with: known rows, and the statistics of validation rows."""

    known: KnownRows
    combination: Combination

    @staticmethod
    def fit(known: KnownRows, statistics: np.ndarray, spec: InputSpec) -> ReferenceStatistics | None:
        """Of validation rows' statistics, shape (n, K), in random order; None where they are too few."""
        if len(statistics) < MIN_ROWS:
            return None
        return ReferenceStatistics(known, Combination.fit(statistics, *weights_of(spec)))

    @property
    def rows(self) -> int:
        """By how many rows a combination's p-value is told."""
        return len(self.combination.combined)

    def p_values(self, statistics: np.ndarray, spec: InputSpec) -> np.ndarray:
        """Of each named statistic alone, two-sided where both sides are strange: (B, names), in the order of `names_of`."""
        parts = self.combination.part_p_values(statistics)
        columns, at = [], 0
        for _, both in named(spec):
            one = parts[:, at]
            columns.append(np.minimum(1.0, 2.0 * np.minimum(one, parts[:, at + 1])) if both else one)
            at += 2 if both else 1
        return np.stack(columns, axis=1)


def chosen_statistics(spec: InputSpec) -> list[Statistic]:
    """Those that such an input has."""
    return [
        one
        for one in STATISTICS
        if not one.images_only
        or (spec.kind == "image" and (one.name != "discarded" or isinstance(spec.transform, Binary)))
    ]


def named(spec: InputSpec) -> list[tuple[StatisticName, bool]]:
    """The names, and whether both sides are strange."""
    return [("log_likelihood", True), *((one.name, one.both) for one in chosen_statistics(spec))]


def names_of(spec: InputSpec) -> list[StatisticName]:
    """The names of the statistics."""
    return [name for name, _ in named(spec)]


def weights_of(spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    """Weights and scales of all sides of the statistics, shape (K,) both."""
    aside = ASIDE[spec.kind]
    sides = [(FULL_WEIGHT, LOG_LIKELIHOOD_SCALE), (aside, LOG_LIKELIHOOD_SCALE)]  # unlikely, and too likely
    for one in chosen_statistics(spec):
        sides += [(FULL_WEIGHT if one.is_main else aside, one.scale)] * (2 if one.both else 1)
    weights, scales = zip(*sides, strict=True)
    return np.array(weights), np.array(scales)


class RowStatistics:
    """Networks, V of them, that see more of rows of one input than how likely they are, beside known rows."""

    def __init__(self, spec: InputSpec, known: KnownRows, vaes: Sequence[VAE]) -> None:
        self.spec, self.known = spec, known
        # A pixel that is black in all known rows would otherwise make the slightest grey there a long way.
        span = WHITE if spec.kind == "image" else None
        self.neighbours = Neighbours(coordinates(spec, known.rows), categories(spec), span)
        self.encodings = [encodings(vae, spec.encode(known.rows)) for vae in vaes]

    def observer(self, number: int) -> DrawObserver:
        """What notes of a network's draws what the statistics need."""
        return DrawObserver(self.spec.widths, self.encodings[number])

    def together(self, seen: Sequence[Sequence[Seen]]) -> DrawStatistics:
        """What all networks have seen of B rows."""
        return DrawStatistics.averaged([DrawStatistics.joined(rows, self.spec.features) for rows in seen])

    def of(self, rows: np.ndarray, log_likelihood: np.ndarray, seen: Sequence[Sequence[Seen]]) -> np.ndarray:
        """Of checked rows, shape (B, D): (B, K), both sides of those that have two, the larger the stranger.

        Args:
            seen: by each network, of each row.
        """
        by_draws = self.together(seen)
        middle, spread = self.known.usual
        short = np.where(np.isnan(rows), 0.0, (middle - by_draws.given_back) / spread)
        values: dict[StatisticName, Callable[[], np.ndarray]] = {
            "nearest_row": lambda: logarithm(self.neighbours.distances(coordinates(self.spec, rows))),
            "reconstruction": lambda: -by_draws.given_back.sum(axis=1),
            "worst_column": lambda: short.max(axis=1),
            "divergence": lambda: np.arcsinh(by_draws.divergence),
            "bound_gap": lambda: np.arcsinh(by_draws.gap),
            "nearest_encoding": lambda: logarithm(by_draws.latent_distance),
            "compressed_size": lambda: logarithm(compressed_sizes(rows.reshape(-1, *self.spec.shape))),
            "discarded": lambda: np.abs(rows - self.spec.decode(self.spec.encode(rows))).mean(axis=1) / WHITE,
        }
        columns = [-log_likelihood, log_likelihood]
        for one in chosen_statistics(self.spec):
            value = values[one.name]()
            columns += [value, -value] if one.both else [value]
        return np.stack(columns, axis=1).astype(np.float64)


def logarithm(values: np.ndarray) -> np.ndarray:
    """log of numbers that may be 0."""
    return np.log(np.maximum(values, NOTHING))


def coordinates(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """Rows, shape (B, D), where distances are taken: an image's own pixels, a table's columns as the network sees them."""
    return rows if spec.kind == "image" else spec.encode(rows)


def categories(spec: InputSpec) -> np.ndarray:
    """Which of the coordinates have values without a distance, shape (D',), bool."""
    if not isinstance(spec.transform, Mixed):
        return np.zeros(spec.features, dtype=bool)
    flags: list[bool] = []
    for column in spec.transform.columns:
        if isinstance(column, CategoryColumn):
            flags.append(column.kind != "ordinal")
        else:
            flags += [True, False] if column.atoms else [False]  # which atom it is, or none
    return np.array(flags)


def compressed_sizes(images: np.ndarray) -> np.ndarray:
    """Bytes that each image, shape (B, H, W), 0..255, takes without loss: differences along its rows under zlib."""
    levels = np.rint(images).astype(np.uint8)
    steps = np.diff(levels, axis=2, prepend=np.uint8(0))  # wraps around, as PNG's filter does
    return np.array([len(zlib.compress(image.tobytes(), 6)) for image in steps], dtype=np.float64)
