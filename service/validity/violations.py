"""How strange a row's violations and missing cells are, among those of all calibration rows: a conformal p-value.

A row is a code for each column: 0 if nothing is to be told of the cell, others for a missing cell and for each kind of
violation. Its surprise is -log of the share of rows that are like it,

    max( product over columns of the share of rows with this code there,  share of rows with exactly these codes )

so that cells that are missing together surprise no more than they do together. The shares count the calibration rows and
the row itself. They are the same whichever of these n + 1 rows is the new one: if a valid row is exchangeable with the
calibration rows, its surprise has any rank among theirs with equal probability (full conformal prediction; Vovk, Gammerman
and Shafer, 2005), however valid rows violate domains, and no row has to be set aside to learn the shares from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from service.validity.conformal import places_refused

CODES = 16  # codes are less
ROUNDING = 1e-9  # nats; surprises that differ by less are equal
MOST_KEPT = 10_000  # p-values in memory


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
    def by_code(self) -> np.ndarray:
        """How many rows have each code in each column: shape (CODES, W)."""
        return np.stack([self.counts @ (self.codes == code) for code in range(CODES)]).astype(np.float64)

    @cached_property
    def products(self) -> np.ndarray:
        """Sum over the columns of log of the number of rows with the same code: shape (m,), nats."""
        return np.log(np.take_along_axis(self.by_code, self.codes.astype(np.int64), axis=0)).sum(axis=1)

    @cached_property
    def known(self) -> dict[bytes, float]:
        """P-values that were computed before, by codes."""
        return {}

    def surprises(self, row: np.ndarray) -> tuple[np.ndarray, float]:
        """The surprise of each distinct calibration row, shape (m,), and that of a new one with codes (W,), nats."""
        total = np.log(self.counts.sum() + 1.0)
        counts = self.by_code[row, np.arange(len(row))]
        with np.errstate(divide="ignore"):
            one_more = np.where(counts > 0, np.log1p(1.0 / counts), 0.0)
        same = self.codes == row
        products = self.products + same @ one_more - len(row) * total
        alike = same.all(axis=1)
        exact = np.log(self.counts + alike) - total
        own = np.log(counts + 1.0).sum() - len(row) * total, np.log(self.counts[alike].sum() + 1.0) - total
        return -np.maximum(products, exact), -float(max(own))

    def p_value(self, row: np.ndarray) -> float:
        """(1 + calibration rows at least as surprising) / (n + 1), of a row that does not rank below every number."""
        others, own = self.surprises(row)
        return float((1 + self.lowest + self.counts[others >= own - ROUNDING].sum()) / (self.rows + 1))

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
        total = np.log(max(1, self.counts.sum()))
        alike = np.maximum(self.products - self.codes.shape[1] * total, np.log(self.counts) - total)
        surprises = np.repeat(-alike, self.counts)
        return places_refused(np.sort(np.append(surprises, np.full(self.lowest, np.inf))), rank)
