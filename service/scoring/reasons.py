"""Why a row is invalid, in a sentence that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from service.data.domains import Violation
from service.data.inputs import InputSpec

if TYPE_CHECKING:
    from service.scoring.scores import ExplainedScores, Scores

# How a valid row would have to be to be as strange. Of statistics that say so equally, the first is told.
PHRASES = {
    "violations": "violates as rare limits of its columns, or lacks as unusual cells",
    "rare_pair": "has two values that come together as seldom, for how frequent each of them is",
    "worst_cell": "has a cell that contradicts its other cells as much",
    "log_likelihood": "is as unlikely",
    "nearest_row": "is as far from every row that the model was trained on",
    "shades": "has as unusual a mix of shades",
    "thumbnail": "is as unlike every training image, seen from afar",
    "look": "has as unusual a look: brightness, contrast, texture and sharpness together",
    "isolation": "is as far from its nearest training rows, for how close those lie together",
    "reconstruction": "is reconstructed as badly",
    "worst_column": "has a column that is reconstructed as badly",
    "nearest_encoding": "has an encoding as far from those of training rows",
    "divergence": "has as unusual an encoding",
    "bound_gap": "is encoded as badly",
    "compressed_size": "compresses so much better or worse than the others",
    "discarded": "has as unusual an amount of grey that the threshold takes away",
    "darkest": "has as dark, or as bright, a darkest place",
    "brightest": "has as bright, or as dark, a brightest place",
    "texture": "has as much, or as little, texture",
    "sharpness": "is as sharp, or as blurred",
    "red_green": "is as red, or as green",
    "yellow_blue": "is as yellow, or as blue",
    "discarded_apart": "has as much grey apart from its edges",
}
VALID_ROWS = "valid rows"
TOO_LIKELY = "is as likely, which is more than valid rows usually are"


def reasons_of(scores: Scores) -> list[str | None]:
    """Why each row is invalid; None for valid ones."""
    found: list[str | None] = [None] * len(scores)
    violations = scores.violations()
    compared = compared_with(scores)
    for row in np.flatnonzero(~scores.valid).tolist():
        if scores.unreadable[row]:
            found[row] = f"cannot be judged: {words(violations[row])}"
        elif scores.rule is None:
            found[row] = by_band(float(scores.percentile[row]), int(scores.sides[row]), compared[row])
        else:
            side = bool(scores.low_p_value[row] > 0.5)
            of_row = scores.evidence[row], side, violations[row], compared[row]
            ranked = (scores.rule.rows, scores.rule.violation_rows)
            found[row] = by_statistics(scores.rule.statistics, *of_row, ranked)
    return found


NAMES = ("unreadable", "below", "above", "too_likely", *PHRASES)  # of reasons, for machines


def reason_codes(scores: Scores) -> np.ndarray:
    """Why each row is invalid, without a word about its cells: places in NAMES, shape (B,); -1 for valid rows.

    `below` and `above` are those of the band; with the rule combined, it is the statistic that most speaks against the row.
    """
    if scores.rule is None:
        found = np.where(scores.sides < 0, NAMES.index("below"), NAMES.index("above"))
    else:
        there = [name for name in PHRASES if name in scores.rule.statistics]
        places = [scores.rule.statistics.index(name) for name in there]
        found = np.array([NAMES.index(name) for name in there])[scores.evidence[:, places].argmin(axis=1)]
        is_likely = (found == NAMES.index("log_likelihood")) & (scores.low_p_value > 0.5)
        found = np.where(is_likely, NAMES.index("too_likely"), found)
    found = np.where(scores.unreadable, NAMES.index("unreadable"), found)
    return np.where(scores.valid, -1, found).astype(np.int8)


def compared_with(scores: Scores) -> list[str]:
    """The valid rows that each row is compared with, in words: those of its group, if there are groups."""
    if scores.grouping is None:
        return [VALID_ROWS] * len(scores)
    column, (pool, *names) = scores.grouping.column, scores.grouping.names
    words_of: dict[str | None, str] = {name: f"{VALID_ROWS} with {column} {name}" for name in names}
    words_of[pool] = f"{VALID_ROWS} of the other groups of {column}" if scores.grouping.rows[0] else VALID_ROWS
    return [words_of.get(name, VALID_ROWS) for name in scores.group_names]


def by_band(percentile: float, side: int, compared: str = VALID_ROWS) -> str:
    """Why a row outside the band is invalid, by the share of valid rows that are less likely, in per cent."""
    if side < 0:
        return f"less likely than {share(100.0 - percentile, compared)}"
    return f"more likely than {share(percentile, compared)}: valid rows are seldom so plain"


def by_statistics(
    names: Sequence[str],
    p_values: np.ndarray,
    is_likely: bool,
    violations: Sequence[Violation],
    compared: str = VALID_ROWS,
    ranked: Sequence[int] = (),
) -> str:
    """Why a row is invalid by the statistics of the rule combined, shape (E,): the one that most speaks against it.

    `ranked` are the numbers of validation rows that p-values are ranked among.
    """
    by_name = dict(zip(names, p_values.tolist(), strict=True))
    name = min(PHRASES, key=lambda one: by_name.get(one, 2.0))
    phrase = TOO_LIKELY if name == "log_likelihood" and is_likely else PHRASES[name]
    reason = f"{one_in(by_name[name], compared, ranked)} {phrase}"
    return f"{words(violations)}; {reason}" if name == "violations" and violations else reason


def with_cells(scores: ExplainedScores, reasons: Sequence[str | None]) -> list[str | None]:
    """The reasons with each row's most suspicious cell, and what was expected there, if the cell is not as expected."""
    found = list(reasons)
    for row in np.flatnonzero(~scores.valid & ~scores.unreadable & (scores.columns[:, :1] >= 0).any(axis=1)).tolist():
        at = int(scores.columns[row, 0])
        spec, cell = scores.spec, float(scores.cells[row, 0])
        value, low, high = (float(one[row, 0]) for one in (scores.expected, scores.expected_low, scores.expected_high))
        if not (cell == value if np.isnan(low) else low <= cell <= high):
            found[row] = f"{found[row]}; most suspicious: {cell_words(spec, at, cell, value, low, high)}"
    return found


def cell_words(spec: InputSpec, at: int, cell: float, value: float, low: float, high: float) -> str:
    """A cell and what was expected in its place: an interval or, without one, a category."""
    if np.isnan(low):
        expected = f"{spec.cell(at, value)}"
    else:
        low, high = spec.rounded(at, np.array([low, high])).tolist()
        expected = f"{low:g} to {high:g}"
    return f"{spec.named(at)} is {spec.cell(at, cell)}, expected was {expected}"


def words(violations: Sequence[Violation]) -> str:
    """Column and message of each violation."""
    return "; ".join(f"{one.column}: {one.message}" if one.column else one.message for one in violations)


def one_in(p_value: float, rows: str = VALID_ROWS, ranked: Sequence[int] = ()) -> str:
    """A share of valid rows, as the subject of a sentence; `ranked` are the numbers that p-values are ranked among."""
    if any(number and math.isclose(p_value * (number + 1), 1.0) for number in ranked):
        return f"none of the {round(1.0 / p_value) - 1:,} {rows}"  # the smallest p-value that there is
    return f"1 in {round(1.0 / p_value):,} {rows}" if p_value <= 0.5 else f"{100.0 * p_value:.0f} % of {rows}"


def share(percent: float, rows: str = VALID_ROWS) -> str:
    """A percentage of valid rows, with as many digits as tell it from all."""
    if percent >= 100.0:
        return "every valid row that it was compared with"
    digits = 1 if percent < 99.0 else 2 if percent < 99.9 else 3
    return f"{percent:.{digits}f} % of {rows}"
