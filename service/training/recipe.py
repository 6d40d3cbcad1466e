"""What a user may choose about a model, and how its rows are split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import numpy as np

from service.density.estimator import Estimator
from service.errors import CalibrationError, DataError
from service.scoring.options import RuleName
from service.scoring.scores import VIOLATIONS_SHARE
from service.training.fit import FitOptions
from service.training.repeats import one_of_each
from service.vae.layers import ActivationName
from service.vae.network import LikelihoodName, NetworkName
from service.validity.band import Band, check_percentiles, exact

PriorName = Literal["normal", "mixture", "auto"]


MOST_VALIDATION, MOST_CALIBRATION = 10_000, 50_000  # rows held back; more would not tell more, and take longer to score
# How networks of mixed columns are fitted: fast, with an average over the last hundred steps. On held-out rows of four
# tables as good, to a tenth of a nat, as 10,000 steps of 128 rows at a rate of 0.001.
TABLE_FIT = FitOptions(
    steps=5_000, least_steps=2_000, batch_size=256, learning_rate=0.004, importance_samples=5, averaging=0.99
)
# How convolutional networks are fitted.
IMAGE_FIT = FitOptions(steps=6_000, least_epochs=10, batch_size=64, warmup_epochs=3)
# Rows that are scored however short the time is: as many as the combined rule of a table needs for a rate of 0.02.
LEAST_CALIBRATION = 150
FEW_ROWS_FOLDS = 5  # what is recommended where rows are few


@dataclass(frozen=True, slots=True)
class LeastRows:
    """The fewest rows to make a model of.

    Each network is fitted to at least `training` rows. The calibration rows tell the share of valid rows that the band
    accepts to within `margin` at least: half of the interval of `service.validity.conformal.Acceptance`.
    """

    training: int = 10
    margin: float = 1.0


TO_PUBLISH, TO_PUBLISH_BY_FOLDS = LeastRows(50, 0.2), LeastRows(20, 0.2)  # what the command line asks for


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a user may choose about a model; None means chosen from the data.

    `hide` is the share of a table's training rows that have cells hidden, so that any may be missing later. The prior
    `auto` fits a network with each prior, within the same minutes, and keeps the one with the better bound on the
    validation rows. `ensemble` networks are fitted from different starts, and their densities averaged. With `folds`
    above 1 there is one network per fold, fitted without that fold and calibrated on it. `processes` split each batch.
    `rule` is that of rows which are judged without one; `false_alarm` its rate, if it is `combined`. `by` is the column by
    whose groups rows are compared (`service.scoring.groups`).
    """

    likelihood: LikelihoodName | None = None
    network: NetworkName | None = None
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
    rule: RuleName = "band"
    false_alarm: float | None = None
    by: str | None = None
    validation_share: float = 0.1
    calibration_share: float = 0.2
    least: LeastRows = LeastRows()


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint rows for training, early stopping and calibration.

    The pilot rows tell the estimator when to stop. Without any, the validation rows do: they were not fitted to and are
    no longer needed. Calibration rows of a table have the columns beside the input behind them.
    """

    train: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray
    pilot: np.ndarray | None = None

    @staticmethod
    def shuffled(number: int, recipe: Recipe) -> Split:
        """Random disjoint parts of so many rows, by their numbers, of the recipe's sizes."""
        _, validation, calibration = sizes_of(number, recipe)
        order = np.random.default_rng(recipe.fit.seed).permutation(number)
        parts = np.split(order, [calibration, calibration + validation])
        return Split(train=parts[2], validation=parts[1], calibration=parts[0])

    @staticmethod
    def by_folds(number: int, recipe: Recipe) -> list[Split]:
        """One split per fold, of so many rows: the fold is for calibration, the others, in random order, for fitting.

        Folds have equal sizes; leftover rows, up to K - 1 of them or those beyond MOST_CALIBRATION, are not used for
        calibration.
        """
        generator, (_, validation, size) = np.random.default_rng(recipe.fit.seed), sizes_of(number, recipe)
        order = generator.permutation(number)
        splits = []
        for fold in range(recipe.folds):
            held = slice(fold * size, (fold + 1) * size)
            rest = generator.permutation(np.delete(order, held))
            splits.append(Split(rest[validation:], rest[:validation], order[held]))
        return splits

    @staticmethod
    def all_of(number: int, recipe: Recipe, groups: np.ndarray | None = None) -> list[Split]:
        """The rows, by number, of one split for each network that is calibrated on its own.

        Args:
            groups: which rows belong together, by numbers from 0 to G - 1, shape (N,). They stay on one side of each split,
                and a random one of each group is for validation or calibration.
        """
        several = recipe.folds > 1
        if groups is None:
            return Split.by_folds(number, recipe) if several else [Split.shuffled(number, recipe)]
        count = int(groups.max()) + 1
        splits = Split.by_folds(count, recipe) if several else [Split.shuffled(count, recipe)]
        some = one_of_each(groups, np.random.default_rng(recipe.fit.seed))
        chosen = np.empty(count, dtype=np.int64)
        chosen[groups[some]] = some
        order = np.random.default_rng(recipe.fit.seed).permutation(number)
        return [
            Split(order[np.isin(groups[order], one.train)], chosen[one.validation], chosen[one.calibration])
            for one in splits
        ]

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Split:
        """Apply a function to each part."""
        pilot = None if self.pilot is None else function(self.pilot)
        return Split(function(self.train), function(self.validation), function(self.calibration), pilot)


def fitted_rows(splits: Sequence[Split]) -> np.ndarray:
    """The rows from which the input's units are learnt: with folds all rows, since all networks share one input."""
    first, *others = splits
    return np.concatenate([first.train, first.validation, first.calibration]) if others else first.train


def sizes_of(rows: int, recipe: Recipe) -> tuple[int, int, int]:
    """How many of so many rows are for training, early stopping and calibration; with folds, for each network."""
    if recipe.folds > 1:
        calibration = min(rows, MOST_CALIBRATION) // recipe.folds
        validation = max(1, round(recipe.validation_share * (rows - calibration)))
    else:
        calibration = min(MOST_CALIBRATION, round(recipe.calibration_share * rows))
        validation = round(recipe.validation_share * rows)
    validation = min(MOST_VALIDATION, validation)
    return rows - validation - calibration, validation, calibration


def check_sizes(splits: Sequence[Split], recipe: Recipe) -> None:
    """Raise if there are too few rows, before any time is spent.

    Raises:
        DataError: says how many rows would be enough.
        CalibrationError: too few calibration rows for the percentiles, or invalid ones.
    """
    check_percentiles(recipe.percentiles)
    if recipe.rule == "combined" and recipe.folds > 1:
        raise CalibrationError("the rule combined is not available for networks by folds: leave out --rule or --folds")
    if recipe.by is not None and recipe.folds > 1:
        raise CalibrationError("--by is not available for networks by folds: leave out --by or --folds")
    split, calibration = splits[0], sum(len(one.calibration) for one in splits)
    if len(split.train) < recipe.least.training or not len(split.validation) or not calibration:
        raise DataError(too_few(split, calibration, recipe))
    check_calibration_size(calibration, recipe)
    if calibration < calibration_needed(recipe):
        raise DataError(too_few(split, calibration, recipe))


def too_few(split: Split, calibration: int, recipe: Recipe) -> str:
    """Why the rows are too few, and what to do about it."""
    rows = len(split.train) + len(split.validation) + len(split.calibration)
    needed, (low, high) = calibration_needed(recipe), recipe.percentiles
    parts = []
    if len(split.train) < recipe.least.training:
        parts.append(f"{len(split.train):,} are left to train on, expected at least {recipe.least.training}")
    if not len(split.validation):
        parts.append("none is left for early stopping")
    if calibration < needed:
        what = f"a band from {low:g} to {high:g} %" if high < 100 else f"a band above {low:g} %"
        if needed == needed_by_rule(recipe):
            what = f"the rule combined at a rate of {recipe.false_alarm:g}"
        parts.append(f"{calibration:,} are left to calibrate on, and {what} needs at least {needed:,}")
    why = f"{rows:,} rows are too few: {'; '.join(parts)}"
    enough = rows_needed(recipe)
    if recipe.folds > 1:
        return f"{why}. Collect at least {enough:,} rows"
    by_folds = rows_needed(replace(recipe, folds=FEW_ROWS_FOLDS, least=TO_PUBLISH_BY_FOLDS))
    if rows >= by_folds:
        return f"{why}. Use --folds {FEW_ROWS_FOLDS}, or collect at least {enough:,} rows"
    return f"{why}. Collect at least {enough:,} rows, or {by_folds:,} and use --folds {FEW_ROWS_FOLDS}"


def calibration_needed(recipe: Recipe) -> int:
    """The fewest calibration rows for the recipe's percentiles and margin."""
    low, high = recipe.percentiles
    for rows in count(max(1, int(100.0 / min(low, 100.0 - high or low)) - 2)):  # with fewer, the band has no ends
        try:
            accepted = Band.fit(np.arange(rows, dtype=np.float64), recipe.percentiles).accepted
        except CalibrationError:
            continue
        assert accepted.interval is not None
        low, high = accepted.interval
        if 0.5 * (high - low) <= recipe.least.margin:
            break
    return max(rows, needed_by_rule(recipe))


def needed_by_rule(recipe: Recipe) -> int:
    """The fewest calibration rows for the rate of the rule combined, if it is the default; of tables, which need more."""
    if recipe.rule != "combined" or recipe.false_alarm is None:
        return 0
    return int(-(-1 // (exact(recipe.false_alarm) * VIOLATIONS_SHARE)))


def least_calibration(recipe: Recipe) -> int:
    """The fewest calibration rows to use, if there are so many, however short the time is."""
    return max(LEAST_CALIBRATION, calibration_needed(replace(recipe, least=TO_PUBLISH)))


def rows_needed(recipe: Recipe) -> int:
    """The fewest rows for the recipe."""
    calibration = calibration_needed(recipe)
    for rows in count(recipe.least.training):
        sizes = sizes_of(rows, recipe)
        if sizes[0] >= recipe.least.training and sizes[1] and recipe.folds * sizes[2] >= calibration:
            break
    return rows


def check_calibration_size(rows: int, recipe: Recipe) -> None:
    """Raise if there are too few calibration rows, before time is spent on a fit."""
    try:
        Band.fit(np.zeros(rows), recipe.percentiles)
    except CalibrationError as error:
        way = "" if recipe.folds > 1 else " (held back by --calibration-share; with few rows, see --folds)"
        raise CalibrationError(f"{error}{way}") from error
