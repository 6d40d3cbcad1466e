"""Calibration: the scores of valid rows that a model was not fitted to, against which new scores are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.data.domains import Domains, counted, has_missing, is_lowest
from service.data.inputs import InputSpec
from service.density import starts
from service.density.block import Estimates
from service.density.estimate import DIRECT, Execution, Member, observe
from service.density.estimator import END_TOLERANCE, TYPICAL_SAMPLES, Estimator
from service.errors import CalibrationError
from service.scoring.groups import USUAL, Groups, Terms
from service.scoring.model import Assessment, Model
from service.scoring.pace import SUSPECT_ROWS, Pace
from service.scoring.reference_rows import PatternEstimates, ReferenceRows
from service.scoring.scores import CombinedRule, Grouping
from service.scoring.statistic_kinds import has_cells, weights_of
from service.scoring.statistics import KnownRows, ReferenceStatistics, RowStatistics
from service.scoring.weighing import Weighting, chosen_weights, rows_to_assess
from service.vae.network import VAE
from service.validity.band import Band
from service.validity.column_ranks import ColumnSketch
from service.validity.violations import ViolationReference

FEWER_TIMES = 4  # ratio of the pilot's two numbers of samples
DECAYS = (0.5, 3.0)
REFERENCE_ROWS = 1_000
SUSPECT_SHARE = 0.005  # share of valid cells that may cost a second, more careful estimate
# Columns are calibrated on this many cells, but on no fewer than this many rows.
MIN_COLUMN_ROWS, COLUMN_CELLS = 1_000, 2_000_000
FEW_COLUMN_ROWS = 200  # of convolutions, whose evaluations are dear


@dataclass(frozen=True)
class Calibration:
    """Scores of complete validation rows, ascending, with the default band and the fingerprint of the scoring model.

    Rows that cannot be read, or have no value, rank below every number: their scores are -inf. `reference` holds some of
    the rows, for models that accept missing cells. `columns` is the distribution of log p(x_j | x_-j) by column, and
    `statistics` that of further test statistics; older versions lack both. `folds` (n,), 0 to K - 1, is the fold of each
    score, if each was computed by the network fitted without that fold (`service.validity.cross_conformal`). `violations`
    are those of the rows, if their columns' domains are known. `complete` (n,) says which rows had no missing cell; None if
    that is not known. `patterns` are the usual patterns of missing cells; for any other, rows to compare with are
    scored when it first occurs. With `groups`, complete rows are compared with those of their group. `weighting` says how
    the weights of the statistics were chosen, if they were chosen now.
    """

    scores: np.ndarray
    percentiles: tuple[float, float]
    fingerprint: str
    reference: ReferenceRows | None = None
    columns: ColumnSketch | None = None
    statistics: ReferenceStatistics | None = None
    folds: np.ndarray | None = None
    violations: ViolationReference | None = None
    complete: np.ndarray | None = None
    patterns: tuple[PatternEstimates, ...] = ()
    groups: Groups | None = None
    weighting: Weighting | None = None

    @staticmethod
    def fit(
        model: Model,
        rows: np.ndarray,
        terms: Terms = USUAL,
        execution: Execution = DIRECT,
        suspect: np.ndarray | None = None,
        known: KnownRows | None = None,
        pace: Pace | None = None,
        domains: Domains | None = None,
    ) -> Calibration:
        """Score valid rows that were not trained on, shape (n, D + C), with the estimator that will serve.

        Args:
            suspect: log p(x_j | x_-j) below which a cell is estimated with more care, shape (D,), from other rows
                (`typical_cells`); by default every cell is.
            known: known rows for the further statistics; without them there are no further statistics.
            pace: counts the rows.
            domains: the columns' domains, and the columns beside the input; by default none are known, and C is 0.

        Raises:
            CalibrationError: too few rows for the percentiles, in all or in a group, or too many that cannot be read.
        """
        pace, percentiles = pace or Pace(), terms.percentiles
        execution = pace.counting(execution)
        check_rows(model.input, rows, percentiles)  # before they are scored
        codes = (domains or Domains.unknown(model.input)).codes(model.input, rows)
        unreadable = is_lowest(codes, model.input.features)
        numbers = terms.numbers(model.input, rows, codes)
        rows = rows[~unreadable, : model.input.features]
        reference, missing = None, np.isnan(rows)
        if model.input.reads_missing:
            whole = ReferenceRows.of(model, rows, pace)
            rows, reference = whole.rows, whole.first(REFERENCE_ROWS, unreadable)
        suspect = np.full(rows.shape[1], np.inf) if suspect is None else suspect
        some = FEW_COLUMN_ROWS if is_convolutional(model) else max(MIN_COLUMN_ROWS, COLUMN_CELLS // rows.shape[1])
        row_statistics = None if known is None else model.row_statistics(known)
        weights, weighting = weighed(model, row_statistics, terms, pace, execution)
        pace.begin("calibration", len(rows) * len(model.members), f"calibrating on {len(rows):,} rows")
        first = model.assess(rows[:some], (), suspect, row_statistics, execution)
        rest = model.assess(rows[some:], (), None, row_statistics, execution)
        scores = np.full(len(unreadable), -np.inf)
        scores[~unreadable] = np.concatenate([part.estimates.log_likelihood for part in (first, rest)])
        order = np.argsort(scores, kind="stable")
        assert first.columns is not None
        sketch = ColumnSketch.fit(np.where(missing[:some], np.nan, first.columns.log_likelihood), suspect)
        statistics, of_all = None, statistics_of((first, rest), unreadable)
        if of_all is not None and known is not None:
            statistics = ReferenceStatistics.fit(known, of_all, weights, weights_of(model.input, known.generation)[1])
        return Calibration(
            scores[order],
            percentiles,
            model.fingerprint,
            reference,
            sketch,
            statistics,
            weighting=weighting,
            groups=terms.grouped(numbers, scores, of_all, statistics, None if domains is None else codes, unreadable),
            violations=None if domains is None else ViolationReference.of(counted(codes), unreadable),
            complete=None if reference is None else ~has_missing(codes, model.input.features)[order],
        )

    def band(self, percentiles: tuple[float, float] | None = None) -> Band:
        """The band between the default percentiles, or between other ones."""
        return Band.fit(self.scores, percentiles or self.percentiles, self.num_folds)

    def combined_rule(self, spec: InputSpec, false_alarm: float | None = None) -> CombinedRule:
        """The rule combined at a false-alarm rate; by default the usual one, or the smallest that the rows allow.

        Raises:
            CalibrationError: there are no statistics to combine, or too few rows for the rate, in all or in a group.
        """
        if self.statistics is None:
            raise CalibrationError("the rule combined needs more validation rows, and networks without folds")
        if self.groups is not None and false_alarm is None:
            false_alarm = self.groups.least_rate(spec)
        rule = CombinedRule.of(self.statistics, spec, false_alarm, self.violations)
        if self.groups is not None:
            self.groups.grouping(spec, self.band(), rule)  # raises if it is too fine for one of them
        return rule

    def grouping(self, spec: InputSpec, band: Band, rule: CombinedRule | None) -> Grouping | None:
        """What a band or, if given, a rule accepts of each group's valid rows; None without groups.

        Raises:
            CalibrationError: too few rows for it in a group.
        """
        return None if self.groups is None else self.groups.grouping(spec, band, rule)

    @property
    def num_folds(self) -> int:
        """The number of folds; 1 if the same networks computed all scores."""
        return 1 if self.folds is None else int(self.folds.max()) + 1

    def check_has_no_folds(self) -> None:
        """Raise if calibrated by folds: false discovery rates are proved only if the same networks score all rows."""
        if self.folds is not None:
            raise CalibrationError("fdr is not available for versions calibrated by folds: leave it out")

    def check_belongs_to(self, model: Model) -> None:
        """Refuse thresholds of another estimator: estimates rise with the number of samples, and thresholds with them."""
        if self.fingerprint != model.fingerprint:
            raise CalibrationError(
                "the calibration does not match this network, input or estimator: run `vouch calibrate`"
            )


def calibrated(
    vaes: Sequence[VAE],
    spec: InputSpec,
    estimator: Estimator,
    pilot: np.ndarray,
    rows: np.ndarray,
    terms: Terms = USUAL,
    execution: Execution = DIRECT,
    known: np.ndarray | KnownRows | None = None,
    pace: Pace | None = None,
    domains: Domains | None = None,
) -> tuple[Model, Calibration]:
    """Networks made ready to score as one: with search starts, the ends at which the estimator stops, and a calibration.

    The ends come from a band of the pilot rows' scores and are frozen before the first calibration row is scored. If they
    came from the calibration rows, those rows would stop at a band that they define themselves, and other rows would not.

    Args:
        pilot: valid rows that the networks were not fitted to and that are not among `rows`, shape (m, D).
        rows: valid rows to calibrate on, shape (n, D + C).
        known: valid rows that the networks were fitted to, shape (m, D), among which to look for nearest neighbours, or
            those of a version; by default the pilot rows.
        pace: counts the rows; if the time is limited, fewer pilot rows and calibration rows are used, the first of them.
        domains: the columns' domains, and the columns beside the input.

    Raises:
        CalibrationError: too few rows for the percentiles, in all or in a group, or too many that cannot be read.
    """
    check_rows(spec, rows, terms.percentiles)  # before any are scored
    pilot = readable(spec, pilot)
    pace = pace or Pace()
    execution = pace.counting(execution)
    pilot = pilot[: pace.pilot_rows(len(pilot), len(vaes))]
    incomplete = int(np.isnan(readable(spec, rows)).any(axis=1).sum()) if spec.reads_missing else 0
    pace.plan(len(pilot), len(rows), len(vaes), incomplete)
    model = ready(vaes, spec, estimator, [pilot] * len(vaes))
    if len(pilot):
        model = replace(model, estimator=piloted(model, pilot, terms.percentiles, execution, pace))
    near = known_rows(model, pilot if known is None else known, pilot, execution, pace)
    cells = typical_cells(model, pilot, execution, pace)
    suspect = np.full(spec.features, np.inf) if cells is None else cells.suspect
    if near is not None and has_cells(spec):
        near = replace(near, cells=cells)
    if pace.is_limited:
        rows = rows[: affordable(model, pilot, rows, suspect, near, execution, pace)]
    return model, Calibration.fit(model, rows, terms, execution, suspect, near, pace, domains)


def statistics_of(parts: Sequence[Assessment], unreadable: np.ndarray) -> np.ndarray | None:
    """The statistics of n rows, (n, K), from those of readable ones, in parts; infinite for others; None without any."""
    found = [one.statistics for one in parts if one.statistics is not None]
    if not found:
        return None
    of_all = np.full((len(unreadable), found[0].shape[1]), np.inf)
    of_all[~unreadable] = np.concatenate(found)
    return of_all


def weighed(
    model: Model, statistics: RowStatistics | None, terms: Terms, pace: Pace, execution: Execution
) -> tuple[np.ndarray, Weighting | None]:
    """The weights of the statistics, (K,): chosen by the rows for that, as far as there are any and time for them."""
    usual = np.zeros(0) if statistics is None else weights_of(model.input, statistics.known.generation)[0]
    if statistics is None or terms.weighing is None:
        return usual, None
    rows = readable(model.input, terms.weighing)
    expected = rows_to_assess(model.input, len(rows)) * len(model.members)
    if not pace.allows("weighing", expected):
        return usual, None
    pace.begin("weighing", expected)
    return chosen_weights(model, statistics, rows, execution) or (usual, None)


def readable(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """The rows that can be read and have a value, without what lies behind the input's columns: (n, D + C) to (m, D)."""
    codes = Domains.unknown(spec).codes(spec, rows[:, : spec.features])
    return rows[~is_lowest(codes, spec.features), : spec.features]


def check_rows(spec: InputSpec, rows: np.ndarray, percentiles: tuple[float, float]) -> None:
    """Raise if a band cannot be calibrated on rows, shape (n, D + C).

    Raises:
        CalibrationError: there are too few, or more of them cannot be read than the band refuses as unlikely.
    """
    allowed = Band.fit(np.zeros(len(rows)), percentiles).outside[0]
    unreadable = len(rows) - len(readable(spec, rows))
    if unreadable > allowed:
        share = 100.0 * unreadable / len(rows)
        raise CalibrationError(
            f"{unreadable:,} of {len(rows):,} calibration rows ({share:.3g} %) have a cell that cannot be read, or no "
            f"value. Such rows are invalid, and the band may refuse {percentiles[0]:g} % as unlikely: correct the cells, "
            "or say what means a missing cell"
        )


def ready(vaes: Sequence[VAE], spec: InputSpec, estimator: Estimator, pilots: Sequence[np.ndarray]) -> Model:
    """Networks with search starts, each from its pilot rows, shape (m, D), and the estimator before its pilot run."""
    members = [Member(vae, starts.build(vae, spec.encode(pilot))) for vae, pilot in zip(vaes, pilots, strict=True)]
    return Model(spec, replace(estimator, ends=None, typical_error=0.0), tuple(members))


def affordable(
    model: Model,
    pilot: np.ndarray,
    rows: np.ndarray,
    suspect: np.ndarray,
    known: KnownRows | None,
    execution: Execution,
    pace: Pace,
) -> int:
    """How many calibration rows the time allows, by the pace of pilot rows that are scored like them."""
    if len(pilot) and pace.needs_trial(len(rows)):
        some, networks = np.resize(pilot, (pace.round_rows, pilot.shape[1])), len(model.members)
        if model.input.reads_missing:
            some = ReferenceRows.of(model, some, pace).rows
        pace.begin("trial", len(some) * networks)
        model.assess(some, (), suspect, None if known is None else model.row_statistics(known), execution)
    return pace.calibration_rows(len(rows), len(model.members), float(np.isnan(rows).any(axis=1).mean()))


def known_rows(
    model: Model, rows: np.ndarray | KnownRows, pilot: np.ndarray, execution: Execution, pace: Pace | None = None
) -> KnownRows | None:
    """A sample of the rows for nearest neighbours, and the pilot rows' typical values; None if either is empty."""
    kept = rows.appearances if isinstance(rows, KnownRows) else {}  # of more rows than these
    rows = readable(model.input, rows.rows if isinstance(rows, KnownRows) else rows)
    if not len(rows) or not len(pilot):
        return None
    known = KnownRows.of(whole_rows(model, rows, pace), model.input)
    known = replace(known, appearances=kept or known.appearances)
    row_statistics = model.row_statistics(known)
    some = pilot[:SUSPECT_ROWS]
    (pace or Pace()).begin("known", len(some) * len(model.members))
    x, log_abs_det = model.input.encode(some), model.input.log_abs_det_jacobian(some).sum(axis=1)
    seen = []
    for number, member in enumerate(model.members):
        observers = [row_statistics.observer(number)]
        seen += observe(model.estimator, member, x, observers, (), log_abs_det, execution=execution)[1]
    return replace(known, usual=KnownRows.usual_of(row_statistics.together(seen).reconstruction))


def whole_rows(model: Model, rows: np.ndarray, pace: Pace | None = None) -> np.ndarray:
    """Rows without missing cells: the complete ones if at least half are, otherwise all, filled by draws.

    Missing cells have no distance from others: an impossible value would be near any row in which that cell is missing.
    """
    complete = ~np.isnan(rows).any(axis=1)
    if 2 * complete.sum() >= len(rows):
        return rows[complete]
    return ReferenceRows.of(model, KnownRows.of(rows, model.input).rows, pace).rows


def is_convolutional(model: Model) -> bool:
    return model.vae.architecture.network == "conv"


def typical_cells(
    model: Model, pilot: np.ndarray, execution: Execution, pace: Pace | None = None
) -> ColumnSketch | None:
    """The distribution of log p(x_j | x_-j) of the pilot's cells; below SUSPECT_SHARE of them a cell is suspicious.

    None without a pilot.
    """
    if not len(pilot):
        return None
    pace, nowhere = pace or Pace(), np.full(model.input.features, -np.inf)
    if is_convolutional(model):  # one pixel of many says little of z: a row's own draws are enough, whatever its pixels
        pace.planned.pop("suspects", None)
        return ColumnSketch.fit(np.full((1, model.input.features), np.nan), nowhere)
    some = pilot[:SUSPECT_ROWS]
    pace.begin("suspects", len(some) * len(model.members))
    columns = model.assess(some, suspect=nowhere, execution=execution).columns
    assert columns is not None
    values = columns.log_likelihood
    ordered, counts = np.sort(values, axis=0), (~np.isnan(values)).sum(axis=0)
    chosen = (SUSPECT_SHARE * counts).astype(int)
    return ColumnSketch.fit(values, np.where(counts > 0, ordered[chosen, np.arange(len(counts))], np.inf))


def piloted(
    model: Model, pilot: np.ndarray, percentiles: tuple[float, float], execution: Execution, pace: Pace | None = None
) -> Estimator:
    """The model's estimator with the settings learnt from the pilot rows, at fixed numbers of samples.

    These are the typical error of one network's estimate, how fast it falls with more samples and, if the estimator stops
    at ends, those ends: None if there are too few rows for a band.
    """
    alone, pace = model.alone(0), pace or Pace()
    pace.begin("few", len(pilot))
    few = fixed_estimates(alone, TYPICAL_SAMPLES // FEWER_TIMES, pilot, execution)
    pace.begin("some", len(pilot))
    some = fixed_estimates(alone, TYPICAL_SAMPLES, pilot, execution)
    # The median of the ratios ignores the few rows for which either error is unreliable.
    ratio = np.median(few.std_error / np.maximum(some.std_error, 1e-12))
    decay = float(np.clip(2.0 * np.log(max(ratio, 1e-12)) / np.log(FEWER_TIMES), *DECAYS))
    ends: tuple[float, ...] | None = None
    tolerance = model.estimator.tolerance
    # The band is the ensemble's: one member's estimate cannot be judged by its ends.
    if len(model.members) > 1:
        tolerance = max(tolerance, 0.5 * END_TOLERANCE)
    elif model.estimator.stops_at_ends:
        with contextlib.suppress(CalibrationError):
            band = Band.fit(np.sort(some.log_likelihood), percentiles)
            ends = band.ends
    error = float(np.sqrt((some.std_error**2).mean()))
    return replace(model.estimator, ends=ends, tolerance=tolerance, typical_error=error, typical_decay=decay)


def fixed_estimates(model: Model, samples: int, rows: np.ndarray, execution: Execution) -> Estimates:
    """Estimates of rows with exactly so many samples each."""
    return fixed(model, samples).estimates(rows, execution=execution)


def fixed(model: Model, samples: int) -> Model:
    """The model with an estimator that draws exactly so many samples."""
    estimator = replace(model.estimator, first_samples=samples, max_samples=samples, anneal=False)
    return replace(model, estimator=estimator)
