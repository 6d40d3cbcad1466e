"""Several test statistics of a row combined into one, with a calibrated p-value.

    surprise of a statistic     -log of the share of valid rows that are at least as extreme
    combination                 log of the weighted sum of exp(surprise): a weighted harmonic mean of those shares

One extreme statistic is enough (Wilson, 2019), and an uninformative one does not dilute the others. The surprise of a
statistic with full weight is extrapolated without limit beyond the validation rows. With less weight it is capped at
BELIEVED times the largest surprise that n rows can show, so that with few validation rows it counts for little. Half of
the validation rows define surprise; the rank of a row's combination among those of the other half is a conformal p-value,
however the statistics depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAIL_SHARE = 0.25  # of the rows; in this tail, surprise grows linearly
MIN_TAIL = 3
FULL_WEIGHT = 1.0
BELIEVED = 1.5  # times the largest surprise that n rows can show, log(n + 1)
MIN_ROWS = 8


@dataclass(frozen=True)
class Combination:
    """Reference distributions of K test statistics: `parts` (n, K), and `combined` (m,) of other rows, both ascending.

    Rows that rank below every number have infinite statistics: they are no `parts`, and infinite in `combined`.

    The larger a statistic, the more extreme a row. `weights` (K,) say how much each counts. `scales` (K,) are lower bounds
    on the mean excess in the tail: smaller differences do not count as such. With `by_ranks`, surprise is never less than
    the ranks say, however long the tail; versions of before were calibrated without.
    """

    parts: np.ndarray
    combined: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    by_ranks: bool = True

    @staticmethod
    def fit(
        statistics: np.ndarray, weights: np.ndarray, scales: np.ndarray, infinite: int = 0, by_ranks: bool = True
    ) -> Combination:
        """Fit to validation rows in random order, shape (n, K), at least MIN_ROWS: the first half gives `parts`.

        `infinite` further rows rank below every number.
        """
        half = len(statistics) // 2
        first, second = (rows[np.isfinite(rows).all(axis=1)] for rows in (statistics[:half], statistics[half:]))
        parts = np.sort(first, axis=0)
        nothing = Combination(parts, np.zeros(0), weights, scales, by_ranks)
        infinite += len(statistics) - half - len(second)
        combined = np.append(nothing.combine(second), np.full(infinite, np.inf))
        return Combination(parts, np.sort(combined), weights, scales, by_ranks)

    def surprise(self, statistics: np.ndarray) -> np.ndarray:
        """-log of the share of valid rows at least as extreme, smoothed: shape (B, K), at least 0.

        In the upper tail it grows linearly (`surprise`).
        """
        columns = [
            surprise(known, values, scale, self.by_ranks)
            for known, values, scale in zip(self.parts.T, statistics.T, self.scales, strict=True)
        ]
        most = np.where(self.weights >= FULL_WEIGHT, np.inf, BELIEVED * np.log(len(self.parts) + 1.0))
        return np.minimum(np.stack(columns, axis=1), most)

    def combine(self, statistics: np.ndarray) -> np.ndarray:
        """The combined statistic of rows, shape (B, K): shape (B,)."""
        return np.asarray(np.logaddexp.reduce(self.surprise(statistics) + np.log(self.weights), axis=1))

    def p_value(self, statistics: np.ndarray) -> np.ndarray:
        """(1 + rows of the second half at least as extreme) / (their number + 1), by the combined statistic: (B,)."""
        infinite = np.isinf(statistics).any(axis=1)
        combined = np.where(infinite, np.inf, self.combine(np.where(infinite[:, None], 0.0, statistics)))
        return p_values(self.combined, combined)

    def part_p_values(self, statistics: np.ndarray) -> np.ndarray:
        """The p-value of each statistic alone, among the first half: shape (B, K)."""
        return np.stack([p_values(known, v) for known, v in zip(self.parts.T, statistics.T, strict=True)], axis=1)


def p_values(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(1 + known values at least as large) / (n + 1), for ascending known values: shape (B,)."""
    return (1 + len(known) - np.searchsorted(known, values, side="left")) / (len(known) + 1)


def surprise(known: np.ndarray, values: np.ndarray, scale: float, by_ranks: bool = True) -> np.ndarray:
    """-log of the smoothed share of known values, ascending, that are at least as large: shape (B,).

    Beyond TAIL_SHARE it is that of an exponential distribution with the tail's mean excess and, with `by_ranks`, never less
    than the share itself: where many known values are equal, the tail may begin far below the others.
    """
    count = len(known)
    tail = min(count - 1, max(MIN_TAIL, int(np.ceil(TAIL_SHARE * count))))
    start = known[count - 1 - tail]
    excess = max(float(np.mean(known[count - tail :] - start)), scale)
    distinct, first = np.unique(known, return_index=True)
    last = np.append(first[1:], count)
    share = (count - 0.5 * (first + last) + 1.0) / (count + 1)  # ties count half
    below = np.interp(values, distinct, -np.log(share), left=0.0)
    beyond = np.interp(start, distinct, -np.log(share)) + (values - start) / excess
    if by_ranks:
        beyond = np.maximum(beyond, below)
    return np.maximum(np.where(values > start, beyond, below), 0.0)
