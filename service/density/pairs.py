"""How rare two values of a row are together, for how frequent each is by itself.

    lift of (a, b)  =  log((expected + 1/2) / (seen + 1/2)),  expected = n_a n_b / n

where n_a of n known rows have a in one column, n_b have b in another, and so many have been seen with both. A lift is large
where both values are frequent and never come together: a contradiction. A density that is fitted to all columns at once is
too smooth to rule such a pair out.
"""

from __future__ import annotations

import numpy as np

BINS = 8  # of a column of numbers, with about as many known rows in each
PAIRS_AT_ONCE = 2**20  # of rows and pairs of columns
MOST_CELLS = 20_000_000  # of all tables of pairs: of very wide tables, only the first columns have any


class RarePairs:
    """Counts pairs of values in known rows, shape (m, D), of which at least one is of a category.

    Args:
        is_category: which columns hold categories, whose values are equal or not, shape (D,); the others are cut into bins.
    """

    def __init__(self, known: np.ndarray, is_category: np.ndarray) -> None:
        self.levels = [
            np.unique(cells[~np.isnan(cells)]) if category else ends_of(cells)
            for cells, category in zip(known.T, is_category, strict=True)
        ]
        self.is_category = is_category
        codes, sizes = self.codes(known), self.sizes
        pairs = [(a, b) for b in range(len(sizes)) for a in range(b) if is_category[a] or is_category[b]]
        cells = np.cumsum([sizes[a] * sizes[b] for a, b in pairs], dtype=np.int64)
        pairs = pairs[: int(np.searchsorted(cells, MOST_CELLS, side="right"))]
        self.first, self.second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        self.width = np.array([sizes[b] for _, b in pairs], dtype=np.int64)
        self.start = np.concatenate([[0], cells])[: len(pairs)].astype(np.int64)
        tables = [lift(codes[:, a], codes[:, b], sizes[a], sizes[b]).ravel() for a, b in pairs]
        self.lifts = np.concatenate(tables) if tables else np.zeros(0)

    @property
    def sizes(self) -> list[int]:
        """How many values, or bins, each column has."""
        return [
            len(levels) if category else len(levels) + 1
            for levels, category in zip(self.levels, self.is_category, strict=True)
        ]

    def codes(self, rows: np.ndarray) -> np.ndarray:
        """The place of each cell among the values or bins of its column, -1 if it has none: shape (B, D)."""
        codes = np.empty(rows.shape, dtype=np.int64)
        for at, (levels, category) in enumerate(zip(self.levels, self.is_category, strict=True)):
            place = np.searchsorted(levels, rows[:, at], side="left" if category else "right")
            if category:
                found = np.minimum(place, max(0, len(levels) - 1))
                known = levels[found] == rows[:, at] if len(levels) else np.zeros(len(rows), dtype=bool)
                place = np.where(known, place, -1)
            codes[:, at] = np.where(np.isnan(rows[:, at]), -1, place)
        return codes

    def rarest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest lift of each row, shape (B, D), at least 0, and the two columns, (B,) and (B, 2); -1 for none."""
        if not len(self.lifts) or not len(rows):
            return np.zeros(len(rows)), np.full((len(rows), 2), -1)
        size = max(1, PAIRS_AT_ONCE // len(self.first))
        parts = [self.rarest_of(rows[start : start + size]) for start in range(0, len(rows), size)]
        lifts, columns = zip(*parts, strict=True)
        return np.concatenate(lifts), np.concatenate(columns)

    def rarest_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`rarest` of a few rows."""
        codes = self.codes(rows)
        a, b = codes[:, self.first], codes[:, self.second]  # (B, P)
        there = (a >= 0) & (b >= 0)
        lifts = np.where(there, self.lifts[np.where(there, self.start + a * self.width + b, 0)], 0.0)
        worst = lifts.argmax(axis=1)
        most = np.take_along_axis(lifts, worst[:, None], axis=1)[:, 0]
        columns = np.stack([self.first[worst], self.second[worst]], axis=1)
        return np.maximum(most, 0.0), np.where(most[:, None] > 0, columns, -1)


def ends_of(cells: np.ndarray) -> np.ndarray:
    """The ends between bins of a column of numbers: each bin begins with the number at its end."""
    values = cells[~np.isnan(cells)]
    if not len(values):
        return np.zeros(0)
    return np.unique(np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf"))


def lift(a: np.ndarray, b: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The lifts of all pairs of two columns, by the codes of known rows, (m,) both: shape (rows, columns)."""
    both = (a >= 0) & (b >= 0)
    seen = np.zeros((rows, columns))
    np.add.at(seen, (a[both], b[both]), 1.0)
    expected = seen.sum(axis=1, keepdims=True) * seen.sum(axis=0, keepdims=True) / max(1, int(both.sum()))
    return np.log((expected + 0.5) / (seen + 0.5))
