"""What a user may choose about a model, and how its rows are split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.density.estimator import Estimator
from service.errors import CalibrationError, DataError
from service.training.fit import FitOptions
from service.vae.network import ActivationName, LikelihoodName
from service.validity.band import Band

PriorName = Literal["normal", "mixture", "auto"]


MIN_TRAINING_ROWS = 10
TABLE_FIT = FitOptions(steps=10_000, importance_samples=5)  # how networks of mixed columns are fitted


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a user may choose about a model; None means chosen from the data.

    `hide` is the share of a table's training rows that have cells hidden, so that any may be missing later. The prior
    `auto` fits a network with each prior, within the same minutes, and keeps the one with the better bound on the
    validation rows. `ensemble` networks are fitted from different starts, and their densities averaged. With `folds`
    above 1 there is one network per fold, fitted without that fold and calibrated on it. `processes` split each batch.
    """

    likelihood: LikelihoodName | None = None
    threshold: float | None = None
    latents: int | None = None
    hidden: tuple[int, ...] | None = None
    activation: ActivationName = "silu"
    prior: PriorName = "normal"
    ensemble: int = 1
    folds: int = 1
    processes: int = 1
    fit: FitOptions = FitOptions()
    estimator: Estimator = Estimator()
    augment: float = 0.0
    hide: float = 0.5
    percentiles: tuple[float, float] = (25.0, 75.0)
    validation_share: float = 0.1
    calibration_share: float = 0.2


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint rows for training, early stopping and calibration.

    The pilot rows tell the estimator when to stop. Without any, the validation rows do: they were not fitted to and are
    no longer needed.
    """

    train: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray
    pilot: np.ndarray | None = None

    @staticmethod
    def shuffled(rows: np.ndarray, recipe: Recipe) -> Split:
        """Random disjoint parts of the rows, shape (N, ...), of the recipe's sizes."""
        validation = round(recipe.validation_share * len(rows))
        calibration = round(recipe.calibration_share * len(rows))
        order = np.random.default_rng(recipe.fit.seed).permutation(len(rows))
        parts = np.split(rows[order], [calibration, calibration + validation])
        return Split(train=parts[2], validation=parts[1], calibration=parts[0])

    @staticmethod
    def by_folds(rows: np.ndarray, recipe: Recipe) -> list[Split]:
        """One split per fold: the fold is for calibration, the other rows, in random order, for fitting.

        Rows have shape (N, ...). Folds have equal sizes; up to K - 1 leftover rows are not used for calibration.
        """
        generator, size = np.random.default_rng(recipe.fit.seed), len(rows) // recipe.folds
        order = generator.permutation(len(rows))
        splits = []
        for fold in range(recipe.folds):
            held = slice(fold * size, (fold + 1) * size)
            rest = generator.permutation(np.delete(order, held))
            validation = max(1, round(recipe.validation_share * len(rest)))
            splits.append(Split(rows[rest[validation:]], rows[rest[:validation]], rows[order[held]]))
        return splits

    @staticmethod
    def all_of(rows: np.ndarray, recipe: Recipe) -> list[Split]:
        """One split for each network that is calibrated on its own."""
        return Split.by_folds(rows, recipe) if recipe.folds > 1 else [Split.shuffled(rows, recipe)]

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Split:
        """Apply a function to each part."""
        pilot = None if self.pilot is None else function(self.pilot)
        return Split(function(self.train), function(self.validation), function(self.calibration), pilot)


def fitted_rows(splits: Sequence[Split]) -> np.ndarray:
    """The rows from which the input's units are learnt: with folds all rows, since all networks share one input."""
    first, *others = splits
    return np.concatenate([first.train, first.validation, first.calibration]) if others else first.train


def check_sizes(splits: Sequence[Split], recipe: Recipe) -> None:
    """Raise if there are too few rows, before any time is spent."""
    split = splits[0]
    if len(split.train) < MIN_TRAINING_ROWS or not len(split.validation) or not len(split.calibration):
        raise DataError(
            f"{len(split.train)} rows are left for training, {len(split.validation)} for early stopping and "
            f"{len(split.calibration)} for calibration, expected at least {MIN_TRAINING_ROWS}, 1 and 1"
        )
    check_calibration_size(sum(len(one.calibration) for one in splits), recipe)


def check_calibration_size(rows: int, recipe: Recipe) -> None:
    """Raise if there are too few calibration rows, before time is spent on a fit."""
    try:
        Band.fit(np.zeros(rows), recipe.percentiles)
    except CalibrationError as error:
        way = "" if recipe.folds > 1 else " (held back by --calibration-share; with few rows, see --folds)"
        raise CalibrationError(f"{error}{way}") from error
