"""What a model's scores are compared with: the scores of valid rows that it was not fitted to."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from service.data.inputs import InputSpec
from service.density import starts
from service.density.block import END_TOLERANCE, Estimates
from service.density.estimate import DIRECT, Execution, Member, observe, weighted_draws
from service.density.estimator import TYPICAL_SAMPLES, Estimator
from service.errors import CalibrationError
from service.scoring.model import Model
from service.scoring.statistics import KnownRows, ReferenceStatistics
from service.vae.network import VAE
from service.validity.band import Band
from service.validity.column_ranks import ColumnSketch

FEWER_TIMES = 4  # the pilot's smaller number of samples
DECAYS = (0.5, 3.0)
REFERENCE_ROWS = 1_000
ENOUGH_ROWS = 200
IMPUTING_DRAWS = 64
SUSPECT_SHARE = 0.005  # of valid cells, that may cost a second look
MIN_COLUMN_ROWS, COLUMN_CELLS = 1_000, 2_000_000  # by which columns are calibrated: so many cells, but never fewer rows


@dataclass(frozen=True)
class ReferenceRows:
    """Validation rows with which rows with missing cells are compared.

    `rows` are float32, and `missing` says which cells were missing, both (m, D).

    What was a hole is filled with a draw from p(x_j | the other cells). `folds` (m,) says which fold each is of, if of any.
    """

    rows: np.ndarray
    missing: np.ndarray
    folds: np.ndarray | None = None

    @staticmethod
    def of(model: Model, rows: np.ndarray) -> ReferenceRows:
        """Of validation rows, shape (m, D), that are of no folds."""
        missing = np.isnan(rows)
        incomplete = missing.any(axis=1)
        filled = rows.copy()
        if incomplete.any():
            filled[incomplete] = np.where(missing[incomplete], imputed(model, rows[incomplete]), rows[incomplete])
        return ReferenceRows(filled, missing)

    def first(self, count: int) -> ReferenceRows:
        """The first rows; they come in random order."""
        return ReferenceRows(self.rows[:count], self.missing[:count])

    def with_missing(self, pattern: np.ndarray) -> np.ndarray:
        """Rows in which the same cells are missing, by a mask of shape (D,): shape (k, D).

        Those that had all others, where there are enough; otherwise all, with what was filled in.
        """
        return np.where(pattern, np.float32(np.nan), self.rows[self.usable(pattern)])

    def folds_with_missing(self, pattern: np.ndarray) -> np.ndarray | None:
        """Which fold each of those rows is of, shape (k,), where there are some."""
        return None if self.folds is None else self.folds[self.usable(pattern)]

    def usable(self, pattern: np.ndarray) -> np.ndarray:
        """A mask of those rows, shape (m,)."""
        had_all_others = ~(self.missing & ~pattern).any(axis=1)
        return had_all_others | (had_all_others.sum() < min(ENOUGH_ROWS, len(self.rows)))


def imputed(model: Model, rows: np.ndarray) -> np.ndarray:
    """One draw of x for each row, shape (m, D), from what the model's first network makes of the cells that are there."""
    x = model.input.encode(rows)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    with torch.inference_mode():
        for weighted in weighted_draws(model.estimator, model.members[0], x, IMPUTING_DRAWS):
            weights = weighted.log_weights[:, : weighted.rows].softmax(dim=0).T.cpu()  # (few, S)
            picks = torch.multinomial(weights, 1, generator=generator)[:, 0].to(weighted.z.device)
            output = model.vae.decoder(weighted.z[picks, torch.arange(weighted.rows)])
            drawn.append(model.vae.likelihood.sample(output, generator).double().cpu().numpy())
    return model.input.decode(np.concatenate(drawn)).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Scores of complete validation rows, ascending, with the band that is the default and the model that gave them.

    `reference` holds some of the rows, for models that read rows with missing; `columns` what log p(x_j | x_-j) is in each
    column, and `statistics` what further statistics are, which older versions lack. `folds` (n,), 0 to K - 1, says which
    fold each score is of, if each is by the network that was fitted without its fold (`service.validity.cross_conformal`).
    """

    scores: np.ndarray
    percentiles: tuple[float, float]
    fingerprint: str
    reference: ReferenceRows | None = None
    columns: ColumnSketch | None = None
    statistics: ReferenceStatistics | None = None
    folds: np.ndarray | None = None

    @staticmethod
    def fit(
        model: Model,
        rows: np.ndarray,
        percentiles: tuple[float, float] = (25.0, 75.0),
        execution: Execution = DIRECT,
        suspect: np.ndarray | None = None,
        known: KnownRows | None = None,
    ) -> Calibration:
        """Score valid rows that were not trained on, shape (n, D), with the estimator that will serve.

        Args:
            suspect: of other rows (`suspects`); by default every column is looked at twice.
            known: rows to compare with for further statistics; without any, there are none.

        Raises:
            CalibrationError: too few rows for the percentiles.
        """
        Band.fit(np.zeros(len(rows)), percentiles)  # too few rows are refused before they are scored
        reference, missing = None, np.isnan(rows)
        if model.input.reads_missing:
            whole = ReferenceRows.of(model, rows)
            rows, reference = whole.rows, whole.first(REFERENCE_ROWS)
        if suspect is None:
            suspect = np.full(rows.shape[1], np.inf)
        some = max(MIN_COLUMN_ROWS, COLUMN_CELLS // rows.shape[1])
        row_statistics = None if known is None else model.row_statistics(known)
        first = model.assess(rows[:some], (), suspect, row_statistics, execution)
        rest = model.assess(rows[some:], (), None, row_statistics, execution)
        scores = np.sort(np.concatenate([part.estimates.log_likelihood for part in (first, rest)]))
        assert first.columns is not None
        sketch = ColumnSketch.fit(np.where(missing[:some], np.nan, first.columns.log_likelihood), suspect)
        statistics = None
        if first.statistics is not None and rest.statistics is not None and known is not None:
            statistics = ReferenceStatistics.fit(
                known, np.concatenate([first.statistics, rest.statistics]), model.input
            )
        return Calibration(scores, percentiles, model.fingerprint, reference, sketch, statistics)

    def band(self, percentiles: tuple[float, float] | None = None) -> Band:
        """The band between the default percentiles, or others."""
        return Band.fit(self.scores, percentiles or self.percentiles, self.num_folds)

    @property
    def num_folds(self) -> int:
        """How many folds there are; 1 where all scores are by the same networks."""
        return 1 if self.folds is None else int(self.folds.max()) + 1

    def check_has_no_folds(self) -> None:
        """Refuse what is proved only for validation rows that are compared with all rows by the same networks."""
        if self.folds is not None:
            raise CalibrationError("a false discovery rate cannot be held by a version that is calibrated by folds")

    def check_belongs_to(self, model: Model) -> None:
        """Refuse thresholds of another estimator: an estimate rises with its number of samples, and so would they."""
        if self.fingerprint != model.fingerprint:
            raise CalibrationError(
                "the calibration belongs to another network, input or estimator: calibrate again with `vouch calibrate`"
            )


def calibrated(
    vaes: Sequence[VAE],
    spec: InputSpec,
    estimator: Estimator,
    pilot: np.ndarray,
    rows: np.ndarray,
    percentiles: tuple[float, float] = (25.0, 75.0),
    execution: Execution = DIRECT,
    known: np.ndarray | None = None,
) -> tuple[Model, Calibration]:
    """Networks made ready to score as one: search starts, the ends at which its estimator stops, and its calibration.

    The ends come from a band of the pilot rows' scores and are frozen before the first calibration row is scored. If they
    came from the calibration rows, those would be stopped by a band that they themselves made, and other rows would not be.

    Args:
        pilot: valid rows that the network was not fitted to and that are not among `rows`, shape (m, D).
        rows: valid rows to calibrate on, shape (n, D).
        known: valid rows that the networks were fitted to, shape (m, D), to look for neighbours among; by default the
            pilot rows.

    Raises:
        CalibrationError: too few rows for the percentiles.
    """
    Band.fit(np.zeros(len(rows)), percentiles)  # too few rows are refused before any are scored
    model = ready(vaes, spec, estimator, [pilot] * len(vaes))
    if len(pilot):
        model = replace(model, estimator=piloted(model, pilot, percentiles, execution))
    near = known_rows(model, pilot if known is None else known, pilot, execution)
    return model, Calibration.fit(model, rows, percentiles, execution, suspects(model, pilot, execution), near)


def ready(vaes: Sequence[VAE], spec: InputSpec, estimator: Estimator, pilots: Sequence[np.ndarray]) -> Model:
    """Networks with search starts, each by its pilot rows, shape (m, D), and an estimator that has learnt nothing yet."""
    members = [Member(vae, starts.build(vae, spec.encode(pilot))) for vae, pilot in zip(vaes, pilots, strict=True)]
    return Model(spec, replace(estimator, ends=None, typical_error=0.0), tuple(members))


def known_rows(model: Model, rows: np.ndarray, pilot: np.ndarray, execution: Execution) -> KnownRows | None:
    """Some of the rows, to look for neighbours among, and what is usual of the pilot rows; None without any."""
    if not len(rows) or not len(pilot):
        return None
    known = KnownRows.of(rows, model.input.features)
    row_statistics = model.row_statistics(known)
    some = pilot[:MIN_COLUMN_ROWS]
    x, log_abs_det = model.input.encode(some), model.input.log_abs_det_jacobian(some).sum(axis=1)
    seen = []
    for number, member in enumerate(model.members):
        observers = [row_statistics.observer(number)]
        seen += observe(model.estimator, member, x, observers, (), log_abs_det, execution=execution)[1]
    return replace(known, usual=KnownRows.usual_of(row_statistics.together(seen).given_back))


def suspects(model: Model, pilot: np.ndarray, execution: Execution) -> np.ndarray:
    """Below what log p(x_j | x_-j) of a column is suspicious, shape (D,), nats: few of the pilot rows' cells are."""
    if not len(pilot):
        return np.full(model.input.features, np.inf)
    nowhere = np.full(model.input.features, -np.inf)
    columns = model.assess(pilot[:MIN_COLUMN_ROWS], suspect=nowhere, execution=execution).columns
    assert columns is not None
    values = columns.log_likelihood
    ordered, counts = np.sort(values, axis=0), (~np.isnan(values)).sum(axis=0)
    chosen = (SUSPECT_SHARE * counts).astype(int)
    return np.where(counts > 0, ordered[chosen, np.arange(len(counts))], np.inf)


def piloted(model: Model, pilot: np.ndarray, percentiles: tuple[float, float], execution: Execution) -> Estimator:
    """The model's estimator with what a first, fixed number of samples of the pilot rows says.

    That is how large the error of an estimate of one network usually is, how it falls with more samples and, where the
    estimator stops at ends, where they are: none where there are too few rows for a band.
    """
    alone = model.alone(0)
    few, some = (
        fixed_estimates(alone, number, pilot, execution) for number in (TYPICAL_SAMPLES // FEWER_TIMES, TYPICAL_SAMPLES)
    )
    # The median of the ratios is deaf to the few rows on which either error is a guess.
    ratio = np.median(few.std_error / np.maximum(some.std_error, 1e-12))
    decay = float(np.clip(2.0 * np.log(max(ratio, 1e-12)) / np.log(FEWER_TIMES), *DECAYS))
    ends: tuple[float, ...] | None = None
    tolerance = model.estimator.tolerance
    if len(model.members) > 1:  # no member's estimate alone is clear of the ends of all members' band
        tolerance = max(tolerance, 0.5 * END_TOLERANCE)
    elif model.estimator.stops_at_ends:
        with contextlib.suppress(CalibrationError):
            band = Band.fit(np.sort(some.log_likelihood), percentiles)
            ends = band.ends
    error = float(np.sqrt((some.std_error**2).mean()))
    return replace(model.estimator, ends=ends, tolerance=tolerance, typical_error=error, typical_decay=decay)


def fixed_estimates(model: Model, samples: int, rows: np.ndarray, execution: Execution) -> Estimates:
    """Estimates of rows with so many samples each and no more."""
    estimator = replace(model.estimator, first_samples=samples, max_samples=samples, anneal=False)
    return replace(model, estimator=estimator).estimates(rows, execution=execution)
