"""How unusual a cell is given the rest of its row: the rank of log p(x_j | x_-j) among those of validation rows.

Each column keeps a sketch: order statistics at ranks that are dense where cells are unusual. A p-value from the sketch is
the p-value from all rows, rounded up to the next kept rank, and so is still valid (Vovk, Gammerman and Shafer, 2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RANKS = 64
TAIL_SHARE = 0.05  # of the cells; in this tail, surprise grows linearly
LEAST_EXCESS = 1.0  # nats: of a density that is right, no tail of log p(x_j | x_-j) is shorter


@dataclass(frozen=True)
class ColumnSketch:
    """log p(x_j | x_-j) of validation rows for D columns, nats.

    Estimates below `suspect` (D,) are computed again with more care. `counts` (D,) is the number of observed validation
    cells; `values` (RANKS, D), float32, their order statistics at `ranks`; `median` (D,) their median.
    """

    suspect: np.ndarray
    counts: np.ndarray
    values: np.ndarray
    median: np.ndarray

    @staticmethod
    def fit(log_likelihood: np.ndarray, suspect: np.ndarray) -> ColumnSketch:
        """Fit to validation rows, shape (n, D), with NaN for missing cells."""
        ordered = np.sort(log_likelihood.astype(np.float32), axis=0)  # NaN last
        counts = (~np.isnan(ordered)).sum(axis=0)
        values = np.take_along_axis(ordered, np.maximum(ranks(counts) - 1, 0), axis=0)
        middle = np.take_along_axis(ordered, np.maximum((counts + 1) // 2 - 1, 0)[None], axis=0)[0]
        return ColumnSketch(suspect.astype(np.float64), counts, np.nan_to_num(values), np.nan_to_num(middle))

    @staticmethod
    def averaged(sketches: Sequence[ColumnSketch]) -> ColumnSketch:
        """The sketch between some, of about as many cells each: their quantiles are averaged."""
        means = (np.mean([getattr(one, name) for one in sketches], axis=0) for name in ("suspect", "values", "median"))
        suspect, values, median = means
        return ColumnSketch(suspect, np.min([one.counts for one in sketches], axis=0), values, median)

    def p_values(self, log_likelihood: np.ndarray) -> np.ndarray:
        """(1 + validation cells as unlikely or more) / (n + 1), rounded up to a kept rank: (B, D) to (B, D).

        NaN for missing cells, 1 for a column without observed validation cells. No p-value is below 1 / (m + 1), where m
        is the smallest count among columns with at least half as many observed cells as the fullest one: cells that are
        more unlikely than all validation cells then tie between columns.
        """
        given = log_likelihood.astype(np.float32)
        at_most = (self.values[None] <= given[:, None]).sum(axis=1)  # among the kept order statistics
        above = np.vstack([ranks(self.counts), self.counts + 1])  # the rank of the next one
        worst = np.take_along_axis(above, np.where(self.counts > 0, at_most, RANKS), axis=0)
        usual = self.counts[2 * self.counts >= self.counts.max()]
        p_values = np.maximum(worst / (self.counts + 1.0), 1.0 / (usual.min() + 1.0))
        return np.where(np.isnan(given), np.nan, p_values)

    def surprise(self, log_likelihood: np.ndarray) -> np.ndarray:
        """-log of the share of validation cells as unlikely or more, smoothed: (B, D) to (B, D); NaN for missing cells.

        Below the fifth percentile it grows linearly, as for an exponential distribution with the tail's mean excess.
        """
        surprise = np.full(log_likelihood.shape, np.nan)
        for at, count in enumerate(self.counts.tolist()):
            surprise[:, at] = cell_surprise(self.values[:, at], count, log_likelihood[:, at]) if count else 0.0
        return np.where(np.isnan(log_likelihood), np.nan, surprise)

    def most_suspicious(
        self, log_likelihood: np.ndarray, p_values: np.ndarray, count: int, violated: np.ndarray | None = None
    ) -> np.ndarray:
        """The columns with the smallest p-values, ties broken by distance below the median: (B, count); -1 for none.

        Columns whose domain is `violated`, (B, D), come first.
        """
        short = self.median - log_likelihood
        later = np.isnan(p_values).astype(int) - (0 if violated is None else violated)
        order = np.lexsort((-short, p_values, later), axis=1)[:, :count]  # NaN last
        return np.where(np.isnan(np.take_along_axis(p_values, order, axis=1)), -1, order)


def ranks(counts: np.ndarray) -> np.ndarray:
    """Ranks from 1 to n in geometric progression: for counts (D,), shape (RANKS, D)."""
    powers = np.arange(RANKS)[:, None] / (RANKS - 1)
    return np.minimum(np.ceil(np.maximum(counts, 1) ** powers - 1e-9), counts).astype(int)


def cell_surprise(values: np.ndarray, count: int, log_likelihood: np.ndarray) -> np.ndarray:
    """The surprise of cells of one column, (B,), by the kept order statistics of `count` validation cells, (RANKS,)."""
    kept, first = np.unique(values, return_index=True)
    rank = ranks(np.array([count]))[:, 0]
    last = rank[np.append(first[1:], len(rank)) - 1]
    share = (0.5 * (rank[first] + last) + 0.5) / (count + 1)  # equal ones count half
    start = min(max(1, int(np.searchsorted(share, TAIL_SHARE))), len(kept) - 1)
    masses, below = np.diff(share[:start], prepend=0.0), kept[start] - kept[:start]
    excess = max(float((masses * below).sum() / masses.sum()) if start else 0.0, LEAST_EXCESS)
    by_rank = -np.interp(log_likelihood, kept, np.log(share))
    beyond = -np.log(share[start]) + (kept[start] - log_likelihood) / excess
    return np.maximum(by_rank, np.where(log_likelihood < kept[start], beyond, 0.0))
