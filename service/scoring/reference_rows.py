"""Validation rows that rows with missing cells are compared with: their missing cells are filled by draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from service.density.estimate import weighted_draws
from service.scoring.model import Model
from service.scoring.pace import Pace
from service.scoring.scores import ReferenceEstimates

PATTERN_ROWS = 400  # most reference rows that are estimated for a pattern of missing cells
ENOUGH_ROWS = 300  # with fewer, the combined rule could refuse none at the usual rate
IMPUTING_DRAWS = 64


@dataclass(frozen=True)
class ReferenceRows:
    """Validation rows to compare rows with missing cells against.

    `rows` are of the input's precision and `missing` is a mask of the cells that were missing, both (m, D). Missing cells
    are imputed by draws from p(missing cells | observed cells). `folds` (m,) is each row's fold, if there are folds. Among
    the validation rows that they were taken from, `unreadable` more rank below every number.
    """

    rows: np.ndarray
    missing: np.ndarray
    folds: np.ndarray | None = None
    unreadable: int = 0

    @staticmethod
    def of(model: Model, rows: np.ndarray, pace: Pace | None = None) -> ReferenceRows:
        """Reference rows from validation rows, shape (m, D), without folds."""
        missing = np.isnan(rows)
        incomplete = missing.any(axis=1)
        filled = rows.copy()
        if incomplete.any():
            filled[incomplete] = np.where(missing[incomplete], imputed(model, rows[incomplete], pace), rows[incomplete])
        return ReferenceRows(filled, missing)

    def first(self, count: int, unreadable: np.ndarray | None = None) -> ReferenceRows:
        """The first `count` rows, which are a random subset because the rows are in random order.

        Args:
            unreadable: which of the rows that these were taken from rank below every number, shape (n,).
        """
        among = 0
        if unreadable is not None and unreadable.any():
            readable = np.flatnonzero(~unreadable)
            end = len(unreadable) if count >= len(readable) else int(readable[count])
            among = int(unreadable[:end].sum())
        return ReferenceRows(self.rows[:count], self.missing[:count], unreadable=among)

    def with_missing(self, pattern: np.ndarray) -> np.ndarray:
        """The rows with the cells of a mask, shape (D,), hidden: shape (k, D).

        Uses rows in which all other cells were observed, if there are enough; otherwise all rows, with imputed cells. At
        most PATTERN_ROWS of them, evenly spaced.
        """
        return np.where(pattern, self.rows.dtype.type(np.nan), self.rows[self.usable(pattern)])

    def folds_with_missing(self, pattern: np.ndarray) -> np.ndarray | None:
        """The fold of each row of `with_missing`, shape (k,); None without folds."""
        return None if self.folds is None else self.folds[self.usable(pattern)]

    def unreadable_among(self, used: int) -> int:
        """How many validation rows rank below every number, for so many of these rows: their share."""
        return round(self.unreadable * used / max(1, len(self.rows)))

    def usable(self, pattern: np.ndarray) -> np.ndarray:
        """The rows that `with_missing` uses, by number, shape (k,): they depend on nothing but the pattern."""
        rows = np.flatnonzero(~(self.missing & ~pattern).any(axis=1))
        if len(rows) < min(ENOUGH_ROWS, len(self.rows)):
            rows = np.arange(len(self.rows))
        count = min(PATTERN_ROWS, len(rows))
        return rows[np.arange(count) * len(rows) // max(1, count)]


def imputed(model: Model, rows: np.ndarray, pace: Pace | None = None) -> np.ndarray:
    """One draw of x for each row, shape (m, D), given its observed cells, from the model's first network."""
    pace = pace or Pace()
    pace.begin("imputed", len(rows))
    x = model.input.encode(rows)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    with torch.inference_mode():
        for weighted in weighted_draws(model.estimator, model.members[0], x, IMPUTING_DRAWS):
            weights = weighted.log_weights.softmax(dim=-1).cpu()  # (few, S)
            picks = torch.multinomial(weights, 1, generator=generator)[:, 0].to(weighted.z.device)
            output = model.vae.decoder(weighted.z[torch.arange(len(picks)), picks])
            drawn.append(model.vae.likelihood.sample(output, generator).double().cpu().numpy())
            pace.count(len(picks))
    return model.input.decode(np.concatenate(drawn)).astype(model.input.dtype)


@dataclass(frozen=True)
class PatternEstimates:
    """What reference rows score with the cells of a pattern hidden, `mask` (D,): of k rows, in all the detail there is."""

    mask: np.ndarray
    estimates: ReferenceEstimates
