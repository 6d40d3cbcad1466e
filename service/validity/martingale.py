"""A conformal test martingale: it bets against a stream of p-values being uniform, and grows where they are not.

A stream's p-values are each row's rank among the validation rows and all rows before it, ties broken at random: then they
are independent and uniform for as long as the rows are exchangeable with the validation rows, and the capital exceeds 1 / a
with probability at most a, ever (Ville, 1939; Vovk, Gammerman and Shafer, 2005). Ranks among the validation rows alone
would be uniform each, but not independent: the capital would come to know this one set of validation rows.

Capital lies idle or is bet on the lowest or highest p-values, and a little of it moves at every row (Volkhonskiy et al.,
2017), so that what comes after a long quiet time is noticed, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

# Each bet: on which side, and on what share of the p-values. It doubles their density.
BETS = (("low", 0.05), ("low", 0.25), ("high", 0.05), ("high", 0.25))
# Of what moves: idle, and on each bet; half of what is bet is on what hurts most, more of the least likely rows.
SHARES = np.array([0.8, 0.1, *[0.1 / 3.0] * 3])
MOVING = 1e-3  # of the capital, at every row


@dataclass
class Martingale:
    """The logarithms of the capital in all places: idle, then each of BETS; nats, of a capital of 1."""

    log_parts: np.ndarray = field(default_factory=lambda: np.log(SHARES))

    @property
    def log_capital(self) -> float:
        """The logarithm of all capital."""
        return float(np.logaddexp.reduce(self.log_parts))

    def bet(self, p_values: np.ndarray) -> np.ndarray:
        """Go through some p-values, shape (N,): log capital after each, (N,)."""
        path, base = np.empty(len(p_values)), float(self.log_parts.max())
        parts = np.exp(self.log_parts - base).tolist()
        moving = (MOVING * SHARES).tolist()
        # Five numbers a row: Python's own floats are far faster at so few than arrays.
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
    """What each place pays for each p-value: shape (N, places); the mean over uniform p-values is 1."""
    columns = [np.ones(len(p_values))]
    for side, share in BETS:
        hit = p_values <= share if side == "low" else p_values > 1.0 - share
        columns.append(np.where(hit, 2.0, (1.0 - 2.0 * share) / (1.0 - share)))
    return np.stack(columns, axis=1)


def log_limit(level: float, restarts: int = 0) -> float:
    """The log capital that speaks: the k-th start, from 1, may spend level / (k (k + 1)), and all together the level."""
    start = restarts + 1
    return math.log(start * (start + 1) / level)


class Ranks:
    """Counts of scores on a fixed grid, to tell where a new one stands among all before it.

    The grid depends on no validation row and on no served one, so that rounding to it leaves them exchangeable; equal ones
    are ordered at random. Memory is bounded, however many rows come.
    """

    CELLS = 2**14
    BLOCK = 256  # rows that are compared with each other directly

    def __init__(self, center: float, width: float) -> None:
        self.center, self.width = center, max(width, 1e-6)
        self.counts = np.zeros(self.CELLS, dtype=np.int64)

    def cells(self, scores: np.ndarray) -> np.ndarray:
        """The cells of scores, shape (N,): fine near the center, and coarser further out."""
        scaled = np.arcsinh((scores - self.center) / self.width) / math.log(1e8)
        return np.clip((0.5 + 0.5 * scaled) * self.CELLS, 0, self.CELLS - 1).astype(int)

    @property
    def total(self) -> int:
        """All that were counted."""
        return int(self.counts.sum())

    def add(self, cells: np.ndarray) -> None:
        """Count some, shape (N,)."""
        self.counts += np.bincount(cells, minlength=self.CELLS)

    def p_values(self, scores: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Where each of some scores stands among all before it, itself included, low ones low: shape (N,), in (0, 1]."""
        found = [np.zeros(0)]
        cells = self.cells(scores)
        for start in range(0, len(cells), self.BLOCK):
            block = slice(start, start + self.BLOCK)
            found.append(self.block_p_values(cells[block], uniforms[block]))
        return np.concatenate(found)

    def block_p_values(self, cells: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """The same of a block of cells, shape (N,)."""
        up_to = np.cumsum(self.counts)
        is_before = np.tri(len(cells), k=-1, dtype=bool)  # (row, an earlier one)
        lower = up_to[cells] - self.counts[cells] + (is_before & (cells[None, :] < cells[:, None])).sum(axis=1)
        equal = self.counts[cells] + (is_before & (cells[None, :] == cells[:, None])).sum(axis=1)
        total = up_to[-1] + np.arange(1, len(cells) + 1)
        self.add(cells)
        return (lower + uniforms * (equal + 1)) / total
