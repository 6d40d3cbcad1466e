"""A conformal test martingale: it bets that the p-values of a stream are not uniform, and grows when they are not.

A row's p-value is its rank among the validation rows and all earlier rows, with ties broken at random. As long as the rows
are exchangeable with the validation rows, these p-values are independent and uniform, and the probability that the
capital ever reaches 1 / a is at most a (Ville, 1939; Vovk, Gammerman and Shafer, 2005). Ranks among the validation rows
alone would each be uniform but not independent: the capital would adapt to this particular set of validation rows.

Capital is idle or bet on the lowest or highest p-values. A small share is redistributed after every row (Volkhonskiy et
al., 2017), so that a change after a long quiet period is also detected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

# Each bet: on which side, and on what share of the p-values. It doubles their density.
BETS = (("low", 0.05), ("low", 0.25), ("high", 0.05), ("high", 0.25))
# How redistributed capital is split: idle, then each bet. Half of the bets are on the most harmful drift, more of the
# least likely rows.
SHARES = np.array([0.8, 0.1, *[0.1 / 3.0] * 3])
MOVING = 1e-3  # share of the capital that is redistributed after every row


@dataclass
class Martingale:
    """Log capital by position: idle, then each of BETS; nats, for an initial capital of 1."""

    log_parts: np.ndarray = field(default_factory=lambda: np.log(SHARES))

    @property
    def log_capital(self) -> float:
        return float(np.logaddexp.reduce(self.log_parts))

    def bet(self, p_values: np.ndarray) -> np.ndarray:
        """Bet on p-values in order, shape (N,): log capital after each, (N,)."""
        path, base = np.empty(len(p_values)), float(self.log_parts.max())
        parts = np.exp(self.log_parts - base).tolist()
        moving = (MOVING * SHARES).tolist()
        # Five numbers per row: Python floats are far faster than arrays at this size.
        for at, odds in enumerate(densities(p_values).tolist()):
            parts = [part * odd for part, odd in zip(parts, odds, strict=True)]
            capital = sum(parts)
            parts = [(1.0 - MOVING) * part / capital + more for part, more in zip(parts, moving, strict=True)]
            base += math.log(capital)
            path[at] = base
        with np.errstate(divide="ignore"):
            self.log_parts = np.log(parts) + base
        return path


def densities(p_values: np.ndarray) -> np.ndarray:
    """Payoff of each position for each p-value: shape (N, positions); its mean over uniform p-values is 1."""
    columns = [np.ones(len(p_values))]
    for side, share in BETS:
        hit = p_values <= share if side == "low" else p_values > 1.0 - share
        columns.append(np.where(hit, 2.0, (1.0 - 2.0 * share) / (1.0 - share)))
    return np.stack(columns, axis=1)


def log_limit(level: float, restarts: int = 0) -> float:
    """Log capital at which to raise an alarm.

    The k-th start, counted from 1, may spend level / (k (k + 1)); these add up to `level` over all starts.
    """
    start = restarts + 1
    return math.log(start * (start + 1) / level)


class Ranks:
    """Counts of scores on a fixed grid, to rank each new score among all earlier ones.

    The grid depends neither on validation rows nor on served ones, so that rounding to it keeps them exchangeable. Equal
    scores are ordered at random. Memory is bounded, however many rows come.
    """

    CELLS = 2**14
    BLOCK = 256  # rows compared with each other directly

    def __init__(self, center: float, width: float) -> None:
        self.center, self.width = center, max(width, 1e-6)
        self.counts = np.zeros(self.CELLS, dtype=np.int64)

    def cells(self, scores: np.ndarray) -> np.ndarray:
        """Grid cells of scores, shape (N,): fine near the center, coarser further out."""
        scaled = np.arcsinh((scores - self.center) / self.width) / math.log(1e8)
        return np.clip((0.5 + 0.5 * scaled) * self.CELLS, 0, self.CELLS - 1).astype(int)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, cells: np.ndarray) -> None:
        self.counts += np.bincount(cells, minlength=self.CELLS)

    def p_values(self, scores: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Randomised rank of each score among all scores up to and including it, as a share: shape (N,), in (0, 1]."""
        found = [np.zeros(0)]
        cells = self.cells(scores)
        for start in range(0, len(cells), self.BLOCK):
            block = slice(start, start + self.BLOCK)
            found.append(self.block_p_values(cells[block], uniforms[block]))
        return np.concatenate(found)

    def block_p_values(self, cells: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        up_to = np.cumsum(self.counts)
        is_before = np.tri(len(cells), k=-1, dtype=bool)  # (row, an earlier one)
        lower = up_to[cells] - self.counts[cells] + (is_before & (cells[None, :] < cells[:, None])).sum(axis=1)
        equal = self.counts[cells] + (is_before & (cells[None, :] == cells[:, None])).sum(axis=1)
        total = up_to[-1] + np.arange(1, len(cells) + 1)
        self.add(cells)
        return (lower + uniforms * (equal + 1)) / total
