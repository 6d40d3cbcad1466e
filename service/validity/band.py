"""The band of log p(x) inside which a row is valid; its ends are order statistics of validation scores.

A false-alarm rate also defines a band: half of the rate on each side, or all of it below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from service.errors import CalibrationError
from service.validity.conformal import Acceptance, ScoreRanks, Tail, check_share, places_refused
from service.validity.cross_conformal import accepted_by_folds

Side = Literal["below", "inside", "above"]
Verdict = Literal["valid", "invalid"]
SIDES: tuple[Side, ...] = ("below", "inside", "above")

# An estimate's interval is +- this many standard errors: 99.7 % for a normal error. If the weights have a heavy tail, the
# standard error (which cannot exceed 1 nat) understates the spread, in the median by two thirds: three times as many.
INTERVAL_WIDTH = 3.0
UNRELIABLE_WIDTH = 9.0


@dataclass(frozen=True, slots=True)
class Band:
    """The closed interval [low, high] of log p(x), nats, between two percentiles of the validation scores.

    If the second percentile is 100, there is no high end (`percentiles_of` a rate). A new row may take n + 1 ranks among
    the n validation `rows`; `outside` counts the lowest and the highest ranks that lie outside, and `refused` those at
    which a row is refused: fewer if scores are equal, more if more validation rows than that cannot be read (-inf). With
    several `folds` the band is only typical: each row has a band of its own (`service.validity.cross_conformal`).
    """

    percentiles: tuple[float, float]
    low: float
    high: float
    outside: tuple[int, int]
    rows: int
    folds: int = 1
    refused: tuple[int, int] | None = None

    @staticmethod
    def fit(sorted_scores: np.ndarray, percentiles: tuple[float, float], folds: int = 1) -> Band:
        """The band between two percentiles a < b of n ascending validation scores.

        Its ends have rank floor((n + 1) a / 100) from below and floor((n + 1) (100 - b) / 100) from above, so that a new
        valid row falls below with probability at most a / 100, and above with at most (100 - b) / 100.

        Raises:
            CalibrationError: the percentiles are out of order or range, or n is too small for a rank of at least 1.
        """
        check_percentiles(percentiles)
        a, b = percentiles
        n = len(sorted_scores)
        tails = exact(a), 100 - exact(b)
        from_below, from_above = (rank(n, tail) for tail in tails)
        if from_below < 1 or (from_above < 1 and b < 100):
            needed = -(-100 // min(tail for tail in tails if tail)) - 1
            raise CalibrationError(
                f"percentiles {a:g},{b:g} need at least {needed:,} validation rows, there are {n:,}, so the lowest "
                f"possible rate on one side is {1 / (n + 1):.3g}"
            )
        return Band(
            (float(a), float(b)),
            float(sorted_scores[from_below - 1]),
            float(sorted_scores[n - from_above]) if from_above else math.inf,
            (from_below, from_above),
            n,
            folds,
            (places_refused(-sorted_scores[::-1], from_below), places_refused(sorted_scores, from_above)),
        )

    @property
    def ends(self) -> tuple[float, ...]:
        """The one or two ends of the band."""
        return tuple(end for end in self.ends_or_none if end is not None)

    @property
    def ends_or_none(self) -> tuple[float | None, float | None]:
        """Low and high end; None for no end among numbers."""
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        return low, high

    @property
    def tail(self) -> Tail:
        """`low` if the band has no high end, so that rows that are too likely are valid; else `both`."""
        return "both" if math.isfinite(self.high) else "low"

    @property
    def accepted(self) -> Acceptance:
        """The share of valid rows that the band accepts."""
        if self.folds > 1:
            return accepted_by_folds(self.refused or self.outside, self.rows, self.folds)
        return Acceptance.of(max(1, self.rows + 1 - sum(self.refused or self.outside)), self.rows)

    def sides_of(self, places: ScoreRanks) -> np.ndarray:
        """-1 below, 0 inside, 1 above, from the ranks of scores: shape (B,), int."""
        below, above = self.outside
        return (places.rows - places.below < above).astype(int) - (places.at_most < below).astype(int)

    def sides(self, log_likelihood: np.ndarray) -> np.ndarray:
        """-1 below, 0 inside, 1 above: shape (B,), int."""
        return (log_likelihood > self.high).astype(int) - (log_likelihood < self.low).astype(int)

    def certain(self, log_likelihood: np.ndarray, std_error: np.ndarray, reliable: np.ndarray) -> np.ndarray:
        """Whether each estimate's interval contains neither end of the band: shape (B,), bool."""
        margin = margins(std_error, reliable)
        return (np.abs(log_likelihood - self.low) > margin) & (np.abs(log_likelihood - self.high) > margin)


def check_percentiles(percentiles: tuple[float, float]) -> None:
    """Raise unless 0 < first < second <= 100.

    Raises:
        CalibrationError: they are out of order or range.
    """
    a, b = percentiles
    if not 0 < a < b <= 100:
        raise CalibrationError(f"percentiles {a:g},{b:g}: expected two numbers with 0 < first < second < 100")


def margins(std_error: np.ndarray, reliable: np.ndarray) -> np.ndarray:
    """Half-width of each estimate's interval, nats."""
    return np.where(reliable, INTERVAL_WIDTH, UNRELIABLE_WIDTH) * std_error


def rank(n: int, percent: Fraction) -> int:
    """floor((n + 1) percent / 100), in exact arithmetic: in floats, (n + 1) * 0.1 can fall just short of a whole rank."""
    return int((n + 1) * percent // 100)


def exact(percent: float) -> Fraction:
    """The decimal number as written: 0.1 is exactly a tenth, not the nearest float."""
    return Fraction(repr(float(percent)))


def percentiles_of(false_alarm: float, tail: Tail = "both") -> tuple[float, float]:
    """Percentiles with a share `false_alarm` of valid rows outside: all of it below, or half on each side.

    Raises:
        CalibrationError: unless 0 < false_alarm < 1.
    """
    check_share("false alarm rate", false_alarm)
    percent = 100 * exact(false_alarm)
    return (float(percent), 100.0) if tail == "low" else (float(percent / 2), float(100 - percent / 2))
