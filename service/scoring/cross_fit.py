"""Cross-fit calibration: each of K networks scores the fold of rows that it was fitted without.

The networks serve together as one density. A new row is compared with each fold by its score under that fold's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.data.domains import Domains, is_lowest
from service.data.inputs import InputSpec
from service.density.estimate import DIRECT, Execution
from service.density.estimator import Estimator
from service.scoring.calibration import (
    FEW_COLUMN_ROWS,
    REFERENCE_ROWS,
    Calibration,
    affordable,
    check_rows,
    is_convolutional,
    piloted,
    readable,
    ready,
    typical_cells,
)
from service.scoring.model import Model
from service.scoring.pace import SUSPECT_ROWS, Pace
from service.scoring.reference_rows import ReferenceRows
from service.vae.network import VAE
from service.validity.column_ranks import ColumnSketch


def calibrated_by_folds(
    vaes: Sequence[VAE],
    spec: InputSpec,
    estimator: Estimator,
    pilots: Sequence[np.ndarray],
    folds: Sequence[np.ndarray],
    percentiles: tuple[float, float] = (25.0, 75.0),
    execution: Execution = DIRECT,
    pace: Pace | None = None,
) -> tuple[Model, Calibration]:
    """K networks made ready to score as one, each calibrated on the fold that it was fitted without.

    Args:
        pilots: for each network, valid rows that it was not fitted to and that are not in its fold, shape (m, D).
        folds: valid rows, shape (n / K, D) each, all of one size.
        pace: counts the rows; if the time is limited, fewer are used, the first of each fold.

    Raises:
        CalibrationError: too few rows for the percentiles.
    """
    check_rows(spec, np.concatenate(folds), percentiles)
    pace, rows, networks = pace or Pace(), sum(map(len, folds)), len(vaes)
    execution = pace.counting(execution)
    pilots = [readable(spec, pilot)[: pace.pilot_rows(len(pilot), networks)] for pilot in pilots]
    incomplete = (np.isnan(readable(spec, fold)).any(axis=1) for fold in folds)
    pace.plan(len(pilots[0]), rows, imputed=sum(int(one.sum()) for one in incomplete))
    pace.planned |= {"known": 0, "suspects": sum(min(len(pilot), SUSPECT_ROWS) for pilot in pilots)}
    model = ready(vaes, spec, estimator, pilots)
    model = replace(model, estimator=piloted(model, pilots[0], percentiles, execution, pace))
    alone = [model.alone(number) for number in range(networks)]
    cells = [typical_cells(one, pilot, execution, pace) for one, pilot in zip(alone, pilots, strict=True)]
    suspect = np.max([np.full(spec.features, np.inf) if one is None else one.suspect for one in cells], axis=0)
    if pace.is_limited:
        few = affordable(alone[0], pilots[0], np.concatenate(folds), suspect, None, execution, pace)
        folds = [fold[: -(-few // networks)] for fold in folds]
    return model, calibration_of(model, folds, suspect, percentiles, execution, pace)


def calibration_of(
    model: Model,
    folds: Sequence[np.ndarray],
    suspect: np.ndarray,
    percentiles: tuple[float, float],
    execution: Execution,
    pace: Pace,
) -> Calibration:
    """The calibration on folds, each scored by the network that was fitted without it."""
    spec, rows = model.input, sum(map(len, folds))
    alone = [model.alone(number) for number in range(len(folds))]
    unreadable = [is_lowest(Domains.unknown(spec).codes(spec, fold), spec.features) for fold in folds]
    of_folds = zip(alone, folds, unreadable, strict=True)
    references = [ReferenceRows.of(one, fold[~without], pace) for one, fold, without in of_folds]
    pace.begin("calibration", rows, f"calibrating on {rows:,} rows")
    # Rows of a fold of which each column is judged.
    most = FEW_COLUMN_ROWS // len(folds) if is_convolutional(model) else rows
    estimates, columns = [], []
    for one, given in zip(alone, references, strict=True):
        first = one.assess(given.rows[:most], suspect=suspect, execution=execution)
        rest = one.assess(given.rows[most:], execution=execution)
        assert first.columns is not None
        estimates += [first.estimates.log_likelihood, rest.estimates.log_likelihood]
        columns.append(np.where(given.missing[:most], np.nan, first.columns.log_likelihood))
    scores = np.full(rows, -np.inf)
    scores[~np.concatenate(unreadable)] = np.concatenate(estimates)
    order, of_fold = np.argsort(scores, kind="stable"), numbered(folds)
    few = REFERENCE_ROWS // len(folds)
    some = [given.first(few, without) for given, without in zip(references, unreadable, strict=True)]
    return Calibration(
        scores[order],
        percentiles,
        model.fingerprint,
        all_reference_rows(some) if spec.reads_missing else None,
        ColumnSketch.fit(np.concatenate(columns), suspect),
        folds=of_fold[order],
    )


def all_reference_rows(parts: Sequence[ReferenceRows]) -> ReferenceRows:
    return ReferenceRows(
        np.concatenate([one.rows for one in parts]),
        np.concatenate([one.missing for one in parts]),
        numbered([one.rows for one in parts]),
        sum(one.unreadable for one in parts),
    )


def numbered(folds: Sequence[np.ndarray]) -> np.ndarray:
    """The fold of each of all rows, shape (n,)."""
    return np.repeat(np.arange(len(folds)), [len(rows) for rows in folds])
