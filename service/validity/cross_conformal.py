"""Cross-conformal calibration (Vovk, 2015): every valid row calibrates, scored by the network fitted without its fold.

    p_value(x) = (1 + sum_k #{i in fold k: s_i <= s_k(x)}) / (n + 1)

A new row is compared with each fold using that fold's network, so that even few rows can both train and calibrate. For K
folds of equal size, P(p_value <= a) is at most

    2 a + min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1))        (Barber, Candes, Ramdas and Tibshirani, 2021: CV+)

and close to a if networks that differ in one fold score alike.
"""

from __future__ import annotations

import numpy as np

from service.validity.conformal import Acceptance, ScoreRanks

CELLS = 2**22  # differences held in memory at a time


def accepted_by_folds(outside: tuple[int, int], rows: int, folds: int) -> Acceptance:
    """Typical and guaranteed acceptance of a rule that refuses the outermost ranks: how many, of n + 1, on each side."""
    size = rows / folds
    excess = min(2.0 * (1.0 - 1.0 / folds) / (size + 1.0), (1.0 - 1.0 / size) / (folds + 1.0))
    refused = sum(2.0 * parts / (rows + 1) + excess for parts in outside if parts)
    return Acceptance(1.0 - sum(outside) / (rows + 1), None, max(0.0, 1.0 - refused))


def ranks_by_folds(sorted_scores: np.ndarray, folds: np.ndarray, scores: np.ndarray) -> ScoreRanks:
    """Ranks of B rows among the validation rows, each fold compared by its own network.

    Args:
        sorted_scores: scores of the validation rows, ascending, each by its fold's network, shape (n,).
        folds: the fold of each validation row, 0 to K - 1, shape (n,).
        scores: scores of the B rows by each network, shape (K, B).
    """
    each = [ScoreRanks.of(sorted_scores[folds == fold], by_one) for fold, by_one in enumerate(scores)]
    return ScoreRanks(sum_of([one.below for one in each]), sum_of([one.at_most for one in each]), len(sorted_scores))


def sum_of(counts: list[np.ndarray]) -> np.ndarray:
    return np.stack(counts).sum(axis=0)


def leads(
    sorted_scores: np.ndarray, folds: np.ndarray, scores: np.ndarray, outside: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """How far all of a row's scores could move down, and how far up, with the row still inside: shape (B,) both.

    These are the distances from the row to the ends of its own band, nats: negative for an end that the row is beyond,
    infinite if there is no high end.
    """
    below, above = outside
    lower, higher = np.zeros(scores.shape[1]), np.full(scores.shape[1], np.inf)
    length = max(1, CELLS // len(folds))
    for start in range(0, scores.shape[1], length):
        rows = slice(start, start + length)
        ahead = scores[folds][:, rows] - sorted_scores[:, None]  # (n, B)
        lower[rows] = np.partition(ahead, len(folds) - below, axis=0)[len(folds) - below]
        if above:
            higher[rows] = -np.partition(ahead, above - 1, axis=0)[above - 1]
    return lower, higher
