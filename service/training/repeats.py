"""Rows that repeat: copies of a row, or rows that come again by themselves; and rows that belong together.

Copies on both sides of the split between training and calibration break every promise: the network has seen the rows that
it is calibrated on. They are kept on one side, and one of each calibrates. Rows of a table with few values repeat by
themselves, new valid rows as well: to keep those on one side would make the calibration rows too strange. What they are
is seen in the columns: if rows that repeat agree in a number too fine to be drawn twice, they are copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.data.columns import MAX_DECIMALS

RepeatsName = Literal["auto", "copies", "natural"]
FEWEST = 20  # distinct rows that tell how fine a column is
# Pairs of distinct rows that agree in a column, at most, for each row that repeats, if these are copies.
BY_CHANCE, BY_CHANCE_ALONE = 0.3, 0.01  # the second in a table of one column, of which nothing else tells
OFTEN_COPIED = 10  # times as often as others that repeat: a row that comes so often is no copy
FEW_REPEATED = 3  # rows; fewer that repeat may be rows that come again and again
NOISE = 1e-9  # of a column's spread: finer differences are rounding
OFTEN = 0.05  # share of the differences between neighbours that the most frequent has, if numbers come in steps
MOST = 0.9  # share of a column's values that show with how many decimals it is written
MIX = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64
)  # splitmix64 (Steele et al., 2014)


@dataclass(frozen=True, slots=True)
class Repeats:
    """Which rows belong together, by number, shape (N,), or None if each is by itself; and what was found, in words."""

    groups: np.ndarray | None = None
    note: str = ""
    kind: Literal["none", "natural", "copies", "group"] = "none"

    @staticmethod
    def of(rows: np.ndarray, repeats: RepeatsName, is_image: bool = False) -> Repeats:
        """Of rows in the model's columns, shape (N, ...)."""
        flat = rows.reshape(len(rows), -1)
        groups, counts = numbered(hashes(flat))
        repeated = len(rows) - len(counts)
        if not repeated:
            return Repeats()
        share = f"{repeated:,} of {len(rows):,} rows ({100 * repeated / len(rows):.2g} %) repeat another"
        are_copies = np.ones(len(counts), dtype=bool)
        if repeats == "auto" and not is_image:
            are_copies = copied(flat, groups, counts)
        if repeats == "natural" or not are_copies.any():
            other = "" if repeats == "natural" else "; if they are copies, say --repeats copies"
            return Repeats(None, f"{share}: taken for rows that come again by themselves{other}", "natural")
        other = "" if repeats == "copies" else "; if they come again by themselves, say --repeats natural"
        kept = "kept on one side of each split, and one of each calibrates"
        return Repeats(kept_together(groups, are_copies), f"{share}: taken for copies, {kept}{other}", "copies")

    @staticmethod
    def by_column(cells: np.ndarray) -> Repeats:
        """Rows with the same cell in a column, shape (N,), belong together; without a cell, a row is by itself."""
        listed: list[Any] = cells.tolist()
        known: dict[Any, int] = {}
        groups = np.array([
            len(known) if cell is None or cell != cell else known.setdefault(cell, len(known))  # noqa: PLR0124  # NaN
            for cell in listed
        ])  # fmt: skip
        alone = np.array([cell is None or cell != cell for cell in listed])  # noqa: PLR0124
        groups[alone] = len(known) + np.arange(int(alone.sum()))
        groups, counts = numbered(groups)
        return Repeats(groups, f"{len(cells):,} rows in {len(counts):,} groups: one row of each calibrates", "group")


def numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal values as numbers from 0, shape (N,), and how often each comes, (G,)."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    return groups, counts


def one_of_each(groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random row of each group, in random order: shape (G,)."""
    order = generator.permutation(len(groups))
    _, first = np.unique(groups[order], return_index=True)
    return order[generator.permutation(first)]


def hashes(rows: np.ndarray) -> np.ndarray:
    """A hash of each row of numbers, shape (N, D), by its values: shape (N,), uint64."""
    values = np.where(np.isnan(rows), np.nan, rows + 0.0) if rows.dtype.kind == "f" else rows
    found = np.zeros(len(rows), np.uint64)
    for column in values.T:
        found = mixed(found ^ mixed(np.ascontiguousarray(column, np.float64).view(np.uint64)))
    return found


def mixed(values: np.ndarray) -> np.ndarray:
    """Spread 64 bits, so that every bit of the result depends on all of them."""
    with np.errstate(over="ignore"):
        values = values + MIX[0]
        values = (values ^ (values >> np.uint64(30))) * MIX[1]
        values = (values ^ (values >> np.uint64(27))) * MIX[2]
        return np.asarray(values ^ (values >> np.uint64(31)))


def kept_together(groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Groups of rows, of which only the chosen ones, a mask of shape (G,), stay together: shape (N,)."""
    alone = ~chosen[groups]
    apart = groups.copy()
    apart[alone] = len(chosen) + np.arange(int(alone.sum()))
    return numbered(apart)[0]


def copied(rows: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which of the distinct rows that repeat do so because they were copied, shape (G,): those with a number too fine.

    A column is too fine if the pairs of distinct rows that agree in it are far fewer than the rows that repeat, as they are
    counted, and as they would be of a normal that is written in such steps. A few rows that come again and again, such as
    one of zeros, are no copies.
    """
    found = np.zeros(len(counts), dtype=bool)
    repeat = (counts > 1) & (counts <= max(OFTEN_COPIED * np.median(counts[counts > 1]), OFTEN * len(rows)))
    if len(counts) < FEWEST or repeat.sum() < FEW_REPEATED:
        return found
    _, first = np.unique(groups, return_index=True)
    by_chance = BY_CHANCE if rows.shape[1] > 1 else BY_CHANCE_ALONE
    for column in rows[first].astype(np.float64).T:
        there = ~np.isnan(column)
        pairs = 0.5 * there.sum() * (there.sum() - 1.0)
        repeated = repeat & there
        if repeated.sum() >= FEW_REPEATED and pairs * chance_of_equal(column[there]) < by_chance * repeated.sum():
            found |= repeated
    return found


def chance_of_equal(values: np.ndarray) -> float:
    """The probability that two draws of a number are equal, by values of distinct rows, shape (U,)."""
    if len(values) < FEWEST:
        return 1.0
    low, high = np.percentile(values, (25, 75))
    spread = float(high - low) / 1.349  # of a normal, its standard deviation
    if not spread > 0:
        return 1.0
    found, counts = np.unique(np.rint(values / (NOISE * spread)), return_counts=True)
    together = float((counts * (counts - 1.0)).sum()) / (len(values) * (len(values) - 1.0))
    step = max(usual_gap(found) * NOISE * spread, decimal_step(values))
    return max(together, min(1.0, step / (2.0 * np.sqrt(np.pi) * spread)))


def usual_gap(ascending: np.ndarray) -> float:
    """The most frequent difference between neighbours, if it comes again and again as between steps; otherwise 0."""
    gaps, counts = np.unique(np.rint(np.diff(ascending)), return_counts=True)
    most = int(counts.max(initial=0))
    return float(gaps[counts.argmax()]) if most >= max(2, OFTEN * counts.sum()) else 0.0


def decimal_step(values: np.ndarray) -> float:
    """10**-d, if most of the numbers are written with at most d decimals; 0 if with more than MAX_DECIMALS."""
    for decimals in range(MAX_DECIMALS):
        scaled = values * 10.0**decimals
        if (np.abs(scaled - np.rint(scaled)) <= 1e-6 * np.maximum(1.0, np.abs(scaled) * NOISE)).mean() >= MOST:
            return float(10.0**-decimals)
    return 0.0
