"""Several statistics of a row as one: each as how surprising it is, all combined, and the combination calibrated itself.

    surprise of a statistic     -log of the share of valid rows that are as strange, or stranger
    combination                 log of the weighted sum of exp(surprise): a weighted harmonic mean of those shares

One strange statistic is enough (Wilson, 2019), and one that has little to say takes nothing from the others. Statistics of
full weight go on to surprise beyond what any validation row showed; those of less weight are believed a little further than
that, so that few validation rows let them say little. Half of the validation rows tell what is surprising; where a row's
combination stands among those of the other half is a conformal p-value, whatever the statistics have to do with each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAIL_SHARE = 0.25  # of the rows, beyond which surprise goes on along a straight line
MIN_TAIL = 3
FULL_WEIGHT = 1.0
BELIEVED = 1.5  # times the largest surprise that n rows can show, log(n + 1)
MIN_ROWS = 8


@dataclass(frozen=True)
class Combination:
    """What K statistics of valid rows are like: `parts` (n, K), ascending, and `combined` (m,) of other rows, ascending.

    The larger a statistic, the stranger is a row. `weights` (K,) say how much each counts; `scales` (K,) is the least mean
    excess over the others' that is a difference at all.
    """

    parts: np.ndarray
    combined: np.ndarray
    weights: np.ndarray
    scales: np.ndarray

    @staticmethod
    def fit(statistics: np.ndarray, weights: np.ndarray, scales: np.ndarray) -> Combination:
        """Of validation rows in random order, shape (n, K), at least MIN_ROWS: the first half for the parts."""
        half = len(statistics) // 2
        parts = np.sort(statistics[:half], axis=0)
        nothing = Combination(parts, np.zeros(0), weights, scales)
        return Combination(parts, np.sort(nothing.combine(statistics[half:])), weights, scales)

    def surprise(self, statistics: np.ndarray) -> np.ndarray:
        """-log of the share of valid rows as strange as each, smoothed: shape (B, K), at least 0.

        Beyond most of the rows it grows as the mean excess over them says, as in an exponential tail.
        """
        columns = [
            surprise(known, values, scale)
            for known, values, scale in zip(self.parts.T, statistics.T, self.scales, strict=True)
        ]
        most = np.where(self.weights >= FULL_WEIGHT, np.inf, BELIEVED * np.log(len(self.parts) + 1.0))
        return np.minimum(np.stack(columns, axis=1), most)

    def combine(self, statistics: np.ndarray) -> np.ndarray:
        """The combination for rows, shape (B, K): shape (B,)."""
        return np.asarray(np.logaddexp.reduce(self.surprise(statistics) + np.log(self.weights), axis=1))

    def p_value(self, statistics: np.ndarray) -> np.ndarray:
        """(1 + rows of the other half that are as strange or stranger) / (their number + 1), by the combination: (B,)."""
        return p_values(self.combined, self.combine(statistics))

    def part_p_values(self, statistics: np.ndarray) -> np.ndarray:
        """The same for each statistic alone, beside the first half: shape (B, K)."""
        return np.stack([p_values(known, v) for known, v in zip(self.parts.T, statistics.T, strict=True)], axis=1)


def p_values(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(1 + known values at least as large) / (n + 1), of ascending known ones: shape (B,)."""
    return (1 + len(known) - np.searchsorted(known, values, side="left")) / (len(known) + 1)


def surprise(known: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """-log of the smoothed share of known values, ascending, that are as large as each: shape (B,)."""
    count = len(known)
    tail = min(count - 1, max(MIN_TAIL, int(np.ceil(TAIL_SHARE * count))))
    start = known[count - 1 - tail]
    excess = max(float(np.mean(known[count - tail :] - start)), scale)
    distinct, first = np.unique(known, return_index=True)
    last = np.append(first[1:], count)
    share = (count - 0.5 * (first + last) + 1.0) / (count + 1)  # in the middle of those that are equal
    below = np.interp(values, distinct, -np.log(share), left=0.0)
    beyond = np.interp(start, distinct, -np.log(share)) + (values - start) / excess
    return np.maximum(np.where(values > start, beyond, below), 0.0)
