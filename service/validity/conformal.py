"""Distribution-free conformal p-values: how unusual a score is among those of n validation rows.

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
LEAST_SHARE = 1e-12  # of false alarms or discoveries: no set of rows is so large
BISECTIONS = 60
HARMONIC_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class ScoreRanks:
    """Ranks of B scores: how many of `rows` validation scores are `below` each, and how many `at_most` it, (B,) both."""

    below: np.ndarray
    at_most: np.ndarray
    rows: int

    @staticmethod
    def of(sorted_scores: np.ndarray, scores: np.ndarray) -> ScoreRanks:
        """Rank scores, shape (B,), among ascending validation scores."""
        below, at_most = (np.searchsorted(sorted_scores, scores, side) for side in ("left", "right"))
        return ScoreRanks(below, at_most, len(sorted_scores))

    @property
    def percentile(self) -> np.ndarray:
        """Share of validation rows with a lower score, 0 to 100: shape (B,)."""
        return 100.0 * self.below / self.rows

    @property
    def low_p_value(self) -> np.ndarray:
        """(1 + validation rows with a score at most as high) / (n + 1): shape (B,)."""
        return (1 + self.at_most) / (self.rows + 1)

    @property
    def two_sided_p_value(self) -> np.ndarray:
        """min(1, 2 min(p_low, p_high)), each (1 + count) / (n + 1), where ties count: shape (B,)."""
        fewer = np.minimum(self.at_most, self.rows - self.below)
        return np.minimum(1.0, 2.0 * (1 + fewer) / (self.rows + 1))


def places_refused(ascending: np.ndarray, rank: int) -> int:
    """Of the n + 1 places of a new value among n, how many are refused if only the `rank` highest are to be.

    Equal values share their fate: if so many of them are equal that not all may be refused, none is. Infinite ones, which
    cannot be read, are always refused.
    """
    infinite = len(ascending) - int(np.searchsorted(ascending, np.inf))
    if rank < 1:
        return infinite
    end = ascending[len(ascending) - rank]
    return max(len(ascending) - int(np.searchsorted(ascending, end, side="right")) + 1, infinite)


def smallest_p_value(rows: int, tail: Tail) -> float:
    """The smallest p-value that so many validation rows can give."""
    return min(1.0, (1.0 if tail == "low" else 2.0) / (rows + 1))


def check_share(name: str, value: float) -> None:
    """Raise unless LEAST_SHARE <= value < 1; a smaller one would need more rows than there are.

    Raises:
        CalibrationError: value < LEAST_SHARE or value >= 1.
    """
    if not LEAST_SHARE <= value < 1:
        raise CalibrationError(
            f"a {name} of {value:g}: expected a number above 0 and below 1, at least {LEAST_SHARE:g}"
        )


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The share of valid rows that a rule accepts.

    `expected` is its mean over all sets of this many validation rows, in which equal scores are counted as they are judged,
    together. For the given validation rows the share is some unknown number inside `interval` with probability CONFIDENCE
    (Vovk, 2012). With folds no interval is known: `expected` is typical, not proved, and `proven` is a proved lower bound
    (`service.validity.cross_conformal`). If it `is_bound`, the share may be larger than `expected` (`both`).
    """

    expected: float
    interval: tuple[float, float] | None
    proven: float
    is_bound: bool = False

    @staticmethod
    @lru_cache(1024)
    def of(between: int, rows: int) -> Acceptance:
        """For a rule that accepts `between` of the n + 1 ranks among n rows: Beta(between, n + 1 - between)."""
        tail = (1.0 - CONFIDENCE) / 2.0
        low, high = (beta_quantile(between, rows + 1 - between, level) for level in (tail, 1.0 - tail))
        return Acceptance(between / (rows + 1), (low, high), between / (rows + 1))

    def both(self, other: Acceptance) -> Acceptance:
        """What is known of a rule that accepts what two rules accept: the shares that they refuse at most add up."""
        assert self.interval is not None
        assert other.interval is not None
        expected = max(0.0, self.expected + other.expected - 1.0)
        low = max(0.0, self.interval[0] + other.interval[0] - 1.0)
        return Acceptance(expected, (low, min(self.interval[1], other.interval[1])), expected, is_bound=True)


def beta_quantile(a: int, b: int, level: float) -> float:
    """The quantile of Beta(a, b) for integers a and b: the x with P(Binomial(a + b - 1, x) >= a) = level."""
    n = a + b - 1
    middle, reach = a / (n + 1), 8.0 * math.sqrt(a * b / (n + 1) ** 2 / (n + 2)) + 20.0 / n
    successes = np.arange(a, min(n, a + int(12.0 * math.sqrt(n)) + 100) + 1)  # more are too improbable to matter
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
    """The p-value up to which rows are rejected together; None if no row is.

    Either no row is rejected, or at least `needed` are: with fewer, even the smallest possible p-value is too large. If
    `needed` exceeds the number of rows, none can be rejected.
    """

    p_value: float | None
    needed: int

    @staticmethod
    def of(values: np.ndarray, counts: np.ndarray, level: float, tail: Tail, validation_rows: int) -> RejectionLimit:
        """From distinct p-values, ascending, and how many rows have each, shape (K,), of one tail or of both.

        The step-up procedure of Benjamini and Hochberg (1995). It controls the false discovery rate for one-sided conformal
        p-values that share their validation rows (Bates et al., 2023). Two-sided ones may depend on each other in other
        ways: for them the level is divided by the constant of Benjamini and Yekutieli (2001).

        Raises:
            CalibrationError: unless 0 < level < 1.
        """
        check_share("false discovery rate", level)
        up_to = np.cumsum(counts)
        rows = int(up_to[-1]) if len(up_to) else 0
        divisor = 1.0 if tail == "low" else harmonic(rows)
        smallest = smallest_p_value(validation_rows, tail)
        needed = max(1, int(np.ceil(smallest * rows * divisor / level - 1e-9)))
        # A p-value equal to its threshold counts; the tolerance absorbs floating-point rounding.
        held = np.flatnonzero(values * (rows * divisor) <= level * (1.0 + 1e-12) * up_to)
        return RejectionLimit(float(values[held[-1]]) if held.size else None, needed)

    def chosen(self, p_values: np.ndarray) -> np.ndarray:
        """Which rows are rejected, from their p-values: shape (m,), bool."""
        return p_values <= (-1.0 if self.p_value is None else self.p_value)


def harmonic(count: int) -> float:
    """1 + 1/2 + ... + 1/count."""
    blocks = (np.arange(start + 1, min(start + HARMONIC_BLOCK, count) + 1) for start in range(0, count, HARMONIC_BLOCK))
    return float(sum((1.0 / block).sum() for block in blocks))


@dataclass(frozen=True, slots=True)
class Discoveries:
    """Which of m rows to reject so that the expected share of valid rows among them is at most `level`.

    `chosen` has shape (m,), bool. `needed` is explained in `RejectionLimit`.
    """

    level: float
    tail: Tail
    chosen: np.ndarray
    needed: int

    @staticmethod
    def of(p_values: np.ndarray, level: float, tail: Tail, validation_rows: int) -> Discoveries:
        """From p-values, shape (m,), of one tail or of both, based on so many validation rows (`RejectionLimit`).

        Raises:
            CalibrationError: unless 0 < level < 1.
        """
        limit = RejectionLimit.of(*np.unique(p_values, return_counts=True), level, tail, validation_rows)
        return Discoveries(level, tail, limit.chosen(p_values), limit.needed)

    @property
    def procedure(self) -> str:
        """The name of the multiple-testing procedure."""
        return "Benjamini-Hochberg" if self.tail == "low" else "Benjamini-Yekutieli"

    def warning(self) -> str | None:
        """A warning if no row was chosen for want of validation rows, else None."""
        return None if self.chosen.any() else too_few_warning(self.level, len(self.chosen), self.needed)


def too_few_warning(level: float, rows: int, needed: int) -> str | None:
    """Explain that no row was rejected for want of validation rows; None if enough validation rows are there."""
    if needed <= max(1, rows // 10):
        return None
    return f"false discovery rate {level:g}, {rows:,} rows: with so few validation rows, " + (
        "no row can be a discovery at this rate"
        if needed > rows
        else f"there are either at least {needed:,} discoveries or none"
    )
