"""Conformal p-values: how unusual a score is among those of n validation rows, without assuming their distribution.

For a valid row that is exchangeable with the validation rows, P(p_value <= t) <= t for every t (Vovk, Gammerman and
Shafer, 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from service.errors import CalibrationError

Tail = Literal["low", "both"]
CONFIDENCE = 0.95
BISECTIONS = 60
HARMONIC_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class ScoreRanks:
    """Where B scores stand among those of `rows` validation rows: how many are `below` each, or `at_most` it, (B,) both."""

    below: np.ndarray
    at_most: np.ndarray
    rows: int

    @staticmethod
    def of(sorted_scores: np.ndarray, scores: np.ndarray) -> ScoreRanks:
        """Of scores, shape (B,), among ascending ones."""
        below, at_most = (np.searchsorted(sorted_scores, scores, side) for side in ("left", "right"))
        return ScoreRanks(below, at_most, len(sorted_scores))

    @property
    def percentile(self) -> np.ndarray:
        """Share of validation rows with a lower score, 0 to 100: shape (B,)."""
        return 100.0 * self.below / self.rows

    @property
    def low_p_value(self) -> np.ndarray:
        """(1 + validation rows with as low a score or a lower one) / (n + 1): shape (B,)."""
        return (1 + self.at_most) / (self.rows + 1)

    @property
    def two_sided_p_value(self) -> np.ndarray:
        """min(1, 2 min(p_below, p_above)), each (1 + count) / (n + 1) with ties counted: shape (B,)."""
        fewer = np.minimum(self.at_most, self.rows - self.below)
        return np.minimum(1.0, 2.0 * (1 + fewer) / (self.rows + 1))


def smallest_p_value(rows: int, tail: Tail) -> float:
    """What no p-value by so many validation rows can be below."""
    return min(1.0, (1.0 if tail == "low" else 2.0) / (rows + 1))


def check_share(name: str, value: float) -> None:
    """Refuse what is no share.

    Raises:
        CalibrationError: it is 0 or less, or 1 or more.
    """
    if not 0 < value < 1:
        raise CalibrationError(f"a {name} of {value:g}: expected a number above 0 and below 1")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The share of valid rows that a rule accepts.

    Before the validation rows are known it is `expected`, with ties more. Those that there are make it some share that
    nobody can know, inside `interval` with probability CONFIDENCE (Vovk, 2012). Of a rule by folds that is open: `expected`
    is what is usual, `proven` what it is at least (`service.validity.cross_conformal`).
    """

    expected: float
    interval: tuple[float, float] | None
    proven: float

    @staticmethod
    @lru_cache(1024)
    def of(between: int, rows: int) -> Acceptance:
        """Where a new row may come into `between` of the n + 1 places among n rows: Beta(between, n + 1 - between)."""
        tail = (1.0 - CONFIDENCE) / 2.0
        low, high = (beta_quantile(between, rows + 1 - between, level) for level in (tail, 1.0 - tail))
        return Acceptance(between / (rows + 1), (low, high), between / (rows + 1))


def beta_quantile(a: int, b: int, level: float) -> float:
    """The quantile of Beta(a, b), whole numbers: where P(Binomial(a + b - 1, x) >= a) is the level."""
    n = a + b - 1
    middle, reach = a / (n + 1), 8.0 * math.sqrt(a * b / (n + 1) ** 2 / (n + 2)) + 20.0 / n
    successes = np.arange(a, min(n, a + int(12.0 * math.sqrt(n)) + 100) + 1)  # of more there is no chance within reach
    first = math.lgamma(n + 1) - math.lgamma(a + 1) - math.lgamma(n - a + 1)
    log_ways = first + np.concatenate([[0.0], np.cumsum(np.log((n - successes[:-1]) / (successes[:-1] + 1)))])
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    for _ in range(BISECTIONS):
        x = 0.5 * (low + high)
        reached = np.exp(log_ways + successes * math.log(x) + (n - successes) * math.log1p(-x)).sum()
        low, high = (x, high) if reached < level else (low, x)
    return high


@dataclass(frozen=True, slots=True)
class RejectionLimit:
    """The p-value up to which rows are rejected together; None where none is.

    `needed` rows must have the smallest p-value that there can be before any is; if that is more than there are, none can
    be.
    """

    p_value: float | None
    needed: int

    @staticmethod
    def of(values: np.ndarray, counts: np.ndarray, level: float, tail: Tail, validation_rows: int) -> RejectionLimit:
        """By distinct p-values, ascending, and how many rows have each, shape (K,), of one tail or of both.

        Benjamini and Hochberg's (1995) step-up: it holds for one-sided conformal p-values by the same validation rows
        (Bates et al., 2023). Two-sided ones may depend on each other in other ways: for them the level is divided by
        Benjamini and Yekutieli's (2001) constant.

        Raises:
            CalibrationError: the level is no share.
        """
        check_share("false discovery rate", level)
        up_to = np.cumsum(counts)
        rows = int(up_to[-1]) if len(up_to) else 0
        divisor = 1.0 if tail == "low" else harmonic(rows)
        smallest = smallest_p_value(validation_rows, tail)
        needed = max(1, int(np.ceil(smallest * rows * divisor / level - 1e-9)))
        # A hair more than the level, since a p-value that is equal to it counts, and products round.
        held = np.flatnonzero(values * (rows * divisor) <= level * (1.0 + 1e-12) * up_to)
        return RejectionLimit(float(values[held[-1]]) if held.size else None, needed)

    def chosen(self, p_values: np.ndarray) -> np.ndarray:
        """Which of some rows are rejected, by their p-values: shape (m,), bool."""
        return p_values <= (-1.0 if self.p_value is None else self.p_value)


def harmonic(count: int) -> float:
    """1 + 1/2 + ... + 1/count."""
    blocks = (np.arange(start + 1, min(start + HARMONIC_BLOCK, count) + 1) for start in range(0, count, HARMONIC_BLOCK))
    return float(sum((1.0 / block).sum() for block in blocks))


@dataclass(frozen=True, slots=True)
class Discoveries:
    """Which of m rows to reject so that the expected share of valid ones among them is at most `level`.

    `chosen` is of shape (m,), bool. `needed` rows must have the smallest p-value that there can be before any is chosen;
    if that is more than m, none can be.
    """

    level: float
    tail: Tail
    chosen: np.ndarray
    needed: int

    @staticmethod
    def of(p_values: np.ndarray, level: float, tail: Tail, validation_rows: int) -> Discoveries:
        """By p-values, shape (m,), of one tail or of both, by so many validation rows (`RejectionLimit`).

        Raises:
            CalibrationError: the level is no share.
        """
        limit = RejectionLimit.of(*np.unique(p_values, return_counts=True), level, tail, validation_rows)
        return Discoveries(level, tail, limit.chosen(p_values), limit.needed)

    @property
    def procedure(self) -> str:
        """Whose it is."""
        return "Benjamini-Hochberg" if self.tail == "low" else "Benjamini-Yekutieli"

    def warning(self) -> str | None:
        """Says when too few validation rows were there for anything to be found."""
        return None if self.chosen.any() else too_few_warning(self.level, len(self.chosen), self.needed)


def too_few_warning(level: float, rows: int, needed: int) -> str | None:
    """Why none of so many rows was rejected, where that is for want of validation rows."""
    if needed <= max(1, rows // 10):
        return None
    return f"a false discovery rate of {level:g} among {rows:,} rows: with so few validation rows, " + (
        "no row can be a discovery"
        if needed > rows
        else f"none is a discovery unless {needed:,} are more unusual than every validation row"
    )
