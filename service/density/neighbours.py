"""Distances from rows to their nearest known rows: numbers relative to their range, categories by equality (after Gower).

Among known rows each column's distance is between 0 and 1, in any units (Gower, 1971). Missing cells are left out.
"""

from __future__ import annotations

import numpy as np
import torch

from service.density.tiling import one_thread

FAR = 1e6  # ranges
CANDIDATES = 8  # nearest by float32 distances, for which exact distances are computed
ROWS_AT_ONCE = 64
RESOLVED_ROWS = 256  # distinct known rows of which the distances to others tell the resolution of the data


class Neighbours:
    """Known rows, shape (m, D), and a mask of the categorical columns, (D,); NaN is a missing cell.

    `span` is the range of all numeric columns if they share one, such as pixels; by default each column has its own.
    """

    def __init__(self, known: np.ndarray, is_category: np.ndarray, span: float | None = None) -> None:
        numbers = known[:, ~is_category].astype(np.float64)
        with np.errstate(all="ignore"):
            low = np.fmin.reduce(numbers, axis=0, initial=np.inf)
            spans = np.fmax.reduce(numbers, axis=0, initial=-np.inf) - low
        self.is_category = is_category
        self.low = np.where(np.isfinite(low), low, 0.0)
        self.span = np.where(np.isfinite(spans) & (spans > 0), spans, 1.0) if span is None else span
        numbers = self.scaled(known)
        self.has = ~np.isnan(numbers)
        self.numbers = np.where(self.has, numbers, 0.0)
        self.codes = known[:, is_category]
        self.rounded = torch.from_numpy(np.ascontiguousarray(self.numbers, dtype=np.float32))
        self.squares = torch.from_numpy(np.square(self.numbers).astype(np.float32))
        self.there = None if self.has.all() else torch.from_numpy(self.has.astype(np.float32))

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """The numeric columns of rows, relative to their range."""
        return np.clip((rows[:, ~self.is_category].astype(np.float64) - self.low) / self.span, -FAR, FAR)

    def nearest(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances of each row, shape (B, D), from its `count` nearest known rows, ascending, and which these are: (B, N).

        A distance is the root mean square of the cells'. N is `count`, or the number of known rows if there are fewer.
        """
        width = min(count, len(self.numbers))
        with one_thread():
            parts = [
                self.of_some(rows[start : start + ROWS_AT_ONCE], width) for start in range(0, len(rows), ROWS_AT_ONCE)
            ]
        if not parts:
            return np.zeros((0, width)), np.zeros((0, width), dtype=np.int64)
        distances, which = zip(*parts, strict=True)
        return np.concatenate(distances), np.concatenate(which)

    def resolution(self) -> float:
        """The least distance of some distinct known rows from the nearest other one; 1 if there is no other."""
        whole = np.concatenate([self.numbers, self.codes], axis=1)
        first, group = np.unique(whole, axis=0, return_index=True, return_inverse=True)[1:]
        if len(first) < 2:
            return 1.0
        some = first[np.linspace(0, len(first) - 1, min(RESOLVED_ROWS, len(first))).round().astype(int)]
        numbers, codes = np.where(self.has, self.numbers, np.nan)[some], self.codes[some]
        with one_thread():
            rough = self.rough(numbers, codes)
        rough[group.ravel()[some, None] == group.ravel()] = np.inf
        several = min(CANDIDATES, len(self.numbers) - 1)
        candidates = np.argpartition(rough, several, axis=1)[:, :several]
        distances = self.exact(numbers, codes, candidates)
        others = distances[np.isfinite(np.take_along_axis(rough, candidates, axis=1)) & (distances > 0)]
        return float(others.min(initial=1.0))

    def of_some(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        numbers, codes = self.scaled(rows), rows[:, self.is_category]
        rough = self.rough(numbers, codes)
        several = min(max(CANDIDATES, count + CANDIDATES // 2), len(self.numbers))
        candidates = np.argpartition(rough, several - 1, axis=1)[:, :several]
        exact = self.exact(numbers, codes, candidates)
        order = np.lexsort((candidates, exact), axis=1)[:, :count]
        return np.take_along_axis(exact, order, axis=1), np.take_along_axis(candidates, order, axis=1)

    def rough(self, numbers: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Squared distances from all known rows, up to rounding: shape (B, m)."""
        has = ~np.isnan(numbers)
        x = torch.from_numpy(np.where(has, numbers, 0.0).astype(np.float32))
        here = torch.from_numpy(has.astype(np.float32))
        total = here @ self.squares.mT - 2.0 * x @ self.rounded.mT
        square = x.square()
        total += square.sum(dim=1)[:, None] if self.there is None else square @ self.there.mT
        shared = here.sum(dim=1)[:, None] if self.there is None else here @ self.there.mT
        distance, count = total.numpy(), np.broadcast_to(shared.numpy(), total.shape).copy()
        for mine, theirs in zip(codes.T, self.codes.T, strict=True):
            both = ~np.isnan(mine)[:, None] & ~np.isnan(theirs)
            distance += both & (mine[:, None] != theirs)
            count += both
        return np.where(count > 0, distance / np.maximum(count, 1.0), np.inf)

    def exact(self, numbers: np.ndarray, codes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Exact distances from candidate known rows, given by their indices: shape (B, C) both."""
        difference = numbers[:, None] - np.where(self.has, self.numbers, np.nan)[candidates]
        mine, theirs = codes[:, None], self.codes[candidates]
        both = ~np.isnan(mine) & ~np.isnan(theirs)
        squares = np.concatenate([np.square(difference), np.where(both, mine != theirs, np.nan)], axis=2)
        there = ~np.isnan(squares)
        count = there.sum(axis=2)
        distance = np.sqrt(np.where(there, squares, 0.0).sum(axis=2) / np.maximum(count, 1))
        return np.where(count > 0, distance, 1.0)
