"""How strange a row's violations and missing cells are, among those of all calibration rows: a conformal p-value.

A row has a code for each column: 0 if nothing is to be told of the cell, others for a missing cell and for each kind of
violation. Of its violations, and likewise of its missing cells, the surprise is -log of the share of rows that are like it,

    max( product over columns of the share of rows with this code there,  share of other rows with exactly these codes )

so that cells that are missing together surprise no more than they do together. How strange the row is, is the smaller of
two shares: of rows with as surprising violations, and of rows with as surprising missing cells; of equal ones, that of
violations counts for more. All shares count the
calibration rows and the row itself, so they are the same whichever of these n + 1 rows is the new one: if a valid row is
exchangeable with the calibration rows, its strangeness has any rank among theirs with equal probability (full conformal
prediction; Vovk, Gammerman and Shafer, 2005), however often valid rows violate domains. No row has to be set aside to learn
that from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from service.validity.conformal import places_refused

CODES = 16  # codes are less
MISSING = 2  # the code of a missing cell that is no violation (`service.data.domains`); those above it are violations
ROUNDING = 1e-9  # nats; surprises that differ by less are equal
MOST_KEPT = 10_000  # p-values in memory


class Patterns:
    """Distinct codes of calibration rows, shape (m, W), and how many rows have each, (m,): how surprising they are."""

    def __init__(self, codes: np.ndarray, counts: np.ndarray) -> None:
        self.codes, self.counts = codes, counts
        self.numbers = {row.tobytes(): at for at, row in enumerate(codes)}
        by_code = np.stack([counts @ (codes == code) for code in range(CODES)]).astype(np.float64)
        self.by_code = by_code  # how many rows have each code in each column
        products = np.take_along_axis(by_code, codes.astype(np.int64), axis=0)
        self.products = np.log(products, out=np.zeros(products.shape), where=products > 0).sum(axis=1)
        # Most codes are 0: what a row changes is looked for where they are not.
        self.rows, self.columns = np.nonzero(codes)
        self.odd = codes[self.rows, self.columns]

    def shares(self, row: np.ndarray) -> tuple[np.ndarray, float]:
        """The share of all rows, a new one with codes (W,) among them, that are at least as surprising.

        For each of the distinct codes, shape (m,), and for the new row.
        """
        surprises, own = self.surprises(row)
        shares = shares_at_least(np.append(surprises, own), np.append(self.counts, 1))
        return shares[:-1], float(shares[-1])

    def shares_among_themselves(self) -> np.ndarray:
        """The share of the calibration rows that are at least as surprising, without a new one: shape (m,)."""
        total = np.log(max(1, self.counts.sum()))
        with np.errstate(divide="ignore"):
            exact = np.log(self.counts - 1.0) - total
        return shares_at_least(-np.maximum(self.products - self.codes.shape[1] * total, exact), self.counts)

    def surprises(self, row: np.ndarray) -> tuple[np.ndarray, float]:
        """The surprise of each of the distinct codes, shape (m,), and of a new row with codes (W,), nats."""
        total = np.log(self.counts.sum() + 1.0)
        counts = self.by_code[row, np.arange(len(row))]
        one_more = np.log1p(np.divide(1.0, counts, out=np.zeros(len(row)), where=counts > 0))
        changed = one_more[self.columns] * ((self.odd == row[self.columns]) - 1.0 * (row[self.columns] == 0))
        matched = one_more[row == 0].sum() + np.bincount(self.rows, changed, len(self.codes))
        alike = self.numbers.get(row.tobytes())
        others = self.counts - 1.0
        if alike is not None:
            others[alike] += 1.0
        with np.errstate(divide="ignore"):
            exact = np.log(others) - total
            own_exact = np.log(0.0 if alike is None else float(self.counts[alike])) - total
        width = len(row) * total
        own = max(float(np.log(counts + 1.0).sum() - width), float(own_exact))
        return -np.maximum(self.products + matched - width, exact), -own


@dataclass(frozen=True)
class ViolationReference:
    """The distinct codes of calibration rows, shape (m, W), uint8, and how many rows have each, (m,).

    `lowest` rows rank below every number, whatever their codes, and are not among the others.
    """

    codes: np.ndarray
    counts: np.ndarray
    lowest: int = 0

    @staticmethod
    def of(codes: np.ndarray, lowest: np.ndarray) -> ViolationReference:
        """Of calibration rows' codes, shape (n, W), and which of them rank below every number, (n,)."""
        distinct, counts = np.unique(codes[~lowest], axis=0, return_counts=True)
        return ViolationReference(distinct, counts, int(lowest.sum()))

    @property
    def rows(self) -> int:
        """The number of calibration rows, n."""
        return int(self.counts.sum()) + self.lowest

    @cached_property
    def parts(self) -> list[tuple[Patterns, np.ndarray]]:
        """The patterns of violations and of missing cells, and which of them each of the distinct codes has, (m,)."""
        found = []
        for part in parts_of(self.codes):
            distinct, places = np.unique(part, axis=0, return_inverse=True)
            counts = np.bincount(places.ravel(), self.counts, len(distinct)).astype(np.int64)
            found.append((Patterns(distinct, counts), places.ravel()))
        return found

    @cached_property
    def known(self) -> dict[bytes, float]:
        """P-values that were computed before, by codes."""
        return {}

    def p_value(self, row: np.ndarray) -> float:
        """(1 + calibration rows at least as strange) / (n + 1), of a row that does not rank below every number."""
        shares = []
        for (patterns, places), part in zip(self.parts, parts_of(row), strict=True):
            of_rows, own = patterns.shares(part)
            shares.append(np.append(of_rows[places], own))
        strange = strangeness(*shares)
        at_least = self.counts[strange[:-1] >= strange[-1] - 1e-12].sum()
        return float((1 + self.lowest + at_least) / (self.rows + 1))

    def p_values(self, codes: np.ndarray, lowest: np.ndarray) -> np.ndarray:
        """The p-value of each of B rows, with codes (B, W), which rank below every number or not, (B,): shape (B,)."""
        p_values = np.full(len(codes), (1 + self.lowest) / (self.rows + 1))
        for at in np.flatnonzero(~lowest).tolist():
            key = codes[at].tobytes()
            known = self.known.get(key)
            if known is None:
                known = self.p_value(codes[at])
                if len(self.known) >= MOST_KEPT:
                    self.known.clear()
                self.known[key] = known
            p_values[at] = known
        return p_values

    def places_refused(self, rank: int) -> int:
        """Of the n + 1 places of a new row among the calibration rows, the number at which it is refused.

        Up to `rank` are to be: with ties, fewer; with more rows that rank below every number, those.
        """
        shares = (patterns.shares_among_themselves()[places] for patterns, places in self.parts)
        everything = np.append(np.repeat(strangeness(*shares), self.counts), np.full(self.lowest, np.inf))
        return places_refused(np.sort(everything), rank)


def strangeness(violated: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """How strange rows are, by the shares of rows with as surprising violations and missing cells, shape (m,) each.

    It grows as the smaller share falls; among equal ones, a row with the rarer violations is the stranger.
    """
    return -np.minimum(violated, missing) - 1e-9 * violated


def shares_at_least(surprises: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The share of rows that are at least as surprising as each, of which there are so many: shape (m,)."""
    ranked = -np.rint(surprises / ROUNDING)
    order = np.argsort(ranked, kind="stable")
    last = np.searchsorted(ranked[order], ranked, side="right") - 1
    return np.asarray(np.cumsum(counts[order])[last] / max(1, counts.sum()))


def parts_of(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of violations alone, and of missing cells alone, each of the shape of `codes`."""
    return np.where(codes > MISSING, codes, np.uint8(0)), np.where(codes == MISSING, codes, np.uint8(0))
