"""Conformal p-values: how unusual a score is among those of n validation rows, without assuming their distribution.

For a valid row that is exchangeable with the validation rows, P(p_value <= t) <= t for every t (Vovk, Gammerman and
Shafer, 2005).
"""

from __future__ import annotations

import numpy as np


def percentile(sorted_scores: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of validation rows with a lower score, 0 to 100: shape (B,)."""
    return 100.0 * np.searchsorted(sorted_scores, scores, side="left") / len(sorted_scores)


def two_sided_p_value(sorted_scores: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """min(1, 2 min(p_below, p_above)), each (1 + count) / (n + 1) with ties counted: shape (B,)."""
    n = len(sorted_scores)
    at_most = np.searchsorted(sorted_scores, scores, side="right")
    at_least = n - np.searchsorted(sorted_scores, scores, side="left")
    return np.minimum(1.0, 2.0 * (1 + np.minimum(at_most, at_least)) / (n + 1))
