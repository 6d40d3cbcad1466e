"""Which test statistics an input has beside log p(x), their names, and their usual weights in the combined rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from service.data.columns import CategoryColumn
from service.data.inputs import Binary, InputSpec, Mixed
from service.scoring.image_statistics import GRID, SHADES, looks, shades, thumbnails
from service.validity.combination import FULL_WEIGHT

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
    "thumbnail",
    "shades",
    "look",
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


# What shaded images are like as a whole, by which they are compared with their nearest known images.
APPEARANCES: dict[StatisticName, Callable[[np.ndarray], np.ndarray]] = {
    "thumbnail": thumbnails,
    "shades": shades,
    "look": looks,
}
MAX_APPEARANCES = 4096  # known images whose appearance is kept
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
    *(Statistic(name, 0.01, is_main=True, inputs=SHADED, since=5) for name in APPEARANCES),
)
GENERATION = 5  # of the statistics that new versions have
LAST_CURVED = 3  # the last generation whose distances are between columns as the network sees them
LAST_UNTOLD = 2  # the last generation whose versions do not tell it
LOG_LIKELIHOOD_SCALE = 0.01
# On all data, a low likelihood and a large distance to all known rows are the most informative and have full weight, and so
# have, for tables with categories, the worst cell and the rarest pair. For tables each of the others has weight 1/30: a
# value that one valid row in thirty shows then adds no more than the main ones do for any row. For images the main two say
# less, because simple images are likely and the pixels of any two images are far apart: there the others have weight 1/3.
# Shaded images are known by their thumbnails, their shades and their look, too, whose distances say most; there log p(x),
# which says more of how rough an image is than of what it shows (Nalisnick et al., 2019), is one of the others.
ASIDE = {"table": 1.0 / 30.0, "image": 1.0 / 3.0}
LAST_BY_LIKELIHOOD = 4  # the last generation in which log p(x) has full weight for shaded images


def kind_of(spec: InputSpec) -> InputKind:
    """Which statistics an input has."""
    if spec.kind == "image":
        if isinstance(spec.transform, Binary):
            return "black-and-white image"
        return "colour image" if len(spec.shape) == 3 else "image"
    return "mixed table" if is_category(spec).any() else "table"


def appearance_widths(spec: InputSpec) -> dict[StatisticName, int]:
    """How many numbers each of an image's appearances has."""
    places, channels = math.prod(min(GRID, side) for side in spec.shape[:2]), len(spec.shape) == 3
    colours = 3 if channels else 1
    return {"thumbnail": places * colours, "shades": len(SHADES) * colours, "look": 9 if channels else 7}


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
    aside = aside_of(spec, generation)
    unlikely = aside if is_by_distance(spec, generation) else FULL_WEIGHT
    sides = [(unlikely, LOG_LIKELIHOOD_SCALE), (aside, LOG_LIKELIHOOD_SCALE)]  # unlikely; too likely
    for one in chosen_statistics(spec, generation):
        sides += [(FULL_WEIGHT if one.is_main else aside, one.scale)] * (2 if one.both else 1)
    weights, scales = zip(*sides, strict=True)
    return np.array(weights), np.array(scales)


def aside_of(spec: InputSpec, generation: int) -> float:
    """The weight of the statistics that are not main ones."""
    return ASIDE["table" if is_by_distance(spec, generation) else spec.kind]


def is_by_distance(spec: InputSpec, generation: int) -> bool:
    """Whether distances say more than log p(x)."""
    return kind_of(spec) in SHADED and generation > LAST_BY_LIKELIHOOD


def generation_of(spec: InputSpec, sides: int) -> int:
    """The newest generation with so many one-sided statistics, of those whose versions do not tell it themselves.

    Raises:
        ValueError: there is none.
    """
    for generation in range(LAST_UNTOLD, 0, -1):
        if len(weights_of(spec, generation)[0]) == sides:
            return generation
    raise ValueError(f"no version has {sides} statistics")
