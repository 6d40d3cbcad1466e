"""A model in memory: the network, what its input means, how log p(x) is estimated, and the valid rows' scores."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from service.data.columns import FLOAT32_MAX
from service.data.inputs import InputSpec
from service.density import starts
from service.density.conditionals import ColumnDraws, ColumnEstimates, estimate_with_columns, nothing_seen
from service.density.ensemble import averaged, averaged_columns
from service.density.estimator import END_TOLERANCE, TYPICAL_SAMPLES, Block, Estimates, Estimator, go_on
from service.density.row_statistics import estimate_with_witness
from service.errors import CalibrationError, DamagedModelError
from service.scoring.statistics import Evidence, Known, Witnesses
from service.vae.network import VAE
from service.validity.band import Band
from service.validity.column_ranks import ColumnSketch

FEWER_TIMES = 4  # the pilot's smaller number of samples
DECAYS = (0.5, 3.0)
GOLDEN_ROWS = 8
REFERENCE_ROWS = 1_000
ENOUGH_ROWS = 200
IMPUTING_DRAWS = 64
SUSPECT_SHARE = 0.005  # of valid cells, that may cost a second look
MIN_COLUMN_ROWS, COLUMN_CELLS = 1_000, 2_000_000  # by which columns are calibrated: so many cells, but never fewer rows


@dataclass(frozen=True)
class Member:
    """A network, and latents, shape (K, L), from which the estimator may start to look for a row's modes."""

    vae: VAE
    codebook: np.ndarray = field(repr=False)


@dataclass(frozen=True, slots=True)
class Look:
    """What is found of B rows: estimates of log p(x) and, where wanted, of their columns with each member's draws.

    `by_member` holds the estimates by each network alone. `statistics` (B, K) are those of `service.scoring.statistics`.
    """

    estimates: Estimates
    by_member: Sequence[Estimates]
    columns: ColumnEstimates | None = None
    draws: Sequence[ColumnDraws] = ()
    statistics: np.ndarray | None = None


@dataclass(frozen=True)
class Model:
    """A trained network with the units of its input and its estimator: all that a row's log p(x) depends on.

    `others` are further networks of the same architecture: then p(x) is the mean of all members' densities.
    """

    vae: VAE
    input: InputSpec
    estimator: Estimator
    codebook: np.ndarray = field(repr=False)
    others: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """All networks with their codebooks."""
        return (Member(self.vae, self.codebook), *self.others)

    def alone(self, number: int) -> Model:
        """One of the networks by itself."""
        one = self.members[number]
        return replace(self, vae=one.vae, codebook=one.codebook, others=())

    def estimates(
        self,
        rows: np.ndarray,
        pool: Executor | None = None,
        band_ends: tuple[float, ...] = (),
        checkpoint: Callable[[], None] = go_on,
    ) -> Estimates:
        """Estimate log p(x) of checked rows, as `estimates_by_member` does, by all networks together."""
        return averaged(self.estimates_by_member(rows, pool, band_ends, checkpoint))

    def estimates_by_member(
        self,
        rows: np.ndarray,
        pool: Executor | None = None,
        band_ends: tuple[float, ...] = (),
        checkpoint: Callable[[], None] = go_on,
    ) -> list[Estimates]:
        """Estimate log p(x) of checked rows (`InputSpec.rows`), shape (B, D), in the units of the training data, by each.

        Args:
            band_ends: of the band that the rows are judged by, in the same units: samples stop doubling where a row's
                estimate is clear of them, for estimators that stop at ends.
            checkpoint: called every few milliseconds of work; what it raises ends the estimate.
        """
        x, measure = self.input.encode(rows), self.input.log_measure(rows)
        incomplete = np.isnan(rows).any(axis=1)
        return [
            self.estimator.estimate(one.vae, one.codebook, x, pool, band_ends, checkpoint, measure, incomplete)
            for one in self.members
        ]

    def explained(
        self,
        rows: np.ndarray,
        suspect: np.ndarray,
        pool: Executor | None = None,
        band_ends: tuple[float, ...] = (),
        checkpoint: Callable[[], None] = go_on,
    ) -> tuple[Estimates, ColumnEstimates, Sequence[ColumnDraws]]:
        """The same estimates, log p(x_j | x_-j) of each column, and each member's draws.

        Args:
            suspect: below what a column's estimate is looked at twice, shape (D,), nats.
        """
        look = self.look(rows, suspect, None, pool, band_ends, checkpoint)
        assert look.columns is not None
        return look.estimates, look.columns, look.draws

    def look(
        self,
        rows: np.ndarray,
        suspect: np.ndarray | None,
        witnesses: Witnesses | None,
        pool: Executor | None = None,
        band_ends: tuple[float, ...] = (),
        checkpoint: Callable[[], None] = go_on,
    ) -> Look:
        """The same estimates, with what `suspect` lets say of columns and what `witnesses` see; None leaves it out."""
        if suspect is None and witnesses is None:
            by_member = self.estimates_by_member(rows, pool, band_ends, checkpoint)
            return Look(averaged(by_member), by_member)
        x, measures = self.input.encode(rows), self.input.transform.log_measures(rows)
        incomplete = np.isnan(rows).any(axis=1)
        found: list[tuple[Any, ...]] = []
        for number, one in enumerate(self.members):
            observe: Callable[[Block], list[Any]] = nothing_seen if witnesses is None else witnesses.observer(number)
            network = self.estimator, one.vae, one.codebook, x
            how = pool, band_ends, checkpoint, incomplete
            if suspect is None:
                estimates, seen = estimate_with_witness(*network, observe, measures.sum(axis=1), *how)
                found.append((estimates, None, None, seen))
            else:
                found.append(
                    estimate_with_columns(*network, self.input.widths, suspect, measures, *how, observe=observe)
                )
        each, columns, draws, seen_by = zip(*found, strict=True)
        together = averaged(each)
        return Look(
            together,
            list(each),
            None if suspect is None else averaged_columns(columns),
            [] if suspect is None else list(draws),
            None if witnesses is None else witnesses.statistics(rows, together.log_likelihood, seen_by),
        )

    def witnesses(self, known: Known) -> Witnesses:
        """The networks, beside known rows."""
        return Witnesses(self.input, known, [one.vae for one in self.members])

    def drawn(self, num: int, seed: int) -> np.ndarray:
        """Rows drawn from the model, shape (num, D), float32, in the units of the training data."""
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            x = [
                one.vae.likelihood.sample(
                    one.vae.decoder(one.vae.prior.draw(part, generator).to(one.vae.device, one.vae.dtype)), generator
                )
                for one, part in zip(self.members, shares_of(num, len(self.members)), strict=True)
            ]
        rows = self.input.decode(torch.cat(x).double().cpu().numpy())
        return np.clip(rows, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)

    @cached_property
    def row_cost(self) -> int:
        """What a row's score costs, about, in decoder evaluations."""
        one = self.estimator.typical_evaluations(self.vae, len(self.codebook))
        return one * len(self.members)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that a score depends on: architecture, weights, input and estimator."""
        architecture = self.vae.architecture
        content = hashlib.sha256(repr((architecture, self.estimator)).encode())
        for later in (architecture.columns, architecture.prior_components):
            if later:
                content.update(repr(later).encode())
        content.update(self.input.model_dump_json().encode())
        for one in self.members:
            content.update(np.ascontiguousarray(one.codebook, dtype=np.float32).tobytes())
            for name, tensor in sorted(one.vae.state_dict().items()):
                content.update(name.encode())
                content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"sha256:{content.hexdigest()}"


def shares_of(num: int, parts: int) -> list[int]:
    """A number in parts as equal as can be, the larger ones first."""
    return [num // parts + (at < num % parts) for at in range(parts)]


@dataclass(frozen=True)
class ReferenceRows:
    """Validation rows beside which rows with holes are judged: `rows`, float32, and which cells were `holes`, both (m, D).

    What was a hole is filled with a draw from p(x_j | the other cells). `folds` (m,) says which fold each is of, if of any.
    """

    rows: np.ndarray
    holes: np.ndarray
    folds: np.ndarray | None = None

    @staticmethod
    def of(model: Model, rows: np.ndarray) -> ReferenceRows:
        """Of validation rows, shape (m, D), that are of no folds."""
        holes = np.isnan(rows)
        incomplete = holes.any(axis=1)
        filled = rows.copy()
        if incomplete.any():
            filled[incomplete] = np.where(holes[incomplete], imputed(model, rows[incomplete]), rows[incomplete])
        return ReferenceRows(filled, holes)

    def first(self, count: int) -> ReferenceRows:
        """The first rows; they come in random order."""
        return ReferenceRows(self.rows[:count], self.holes[:count])

    def with_holes(self, pattern: np.ndarray) -> np.ndarray:
        """Rows in which the same cells are missing, by a mask of shape (D,): shape (k, D).

        Those that had all others, where there are enough; otherwise all, with what was filled in.
        """
        return np.where(pattern, np.float32(np.nan), self.rows[self.usable(pattern)])

    def folds_with_holes(self, pattern: np.ndarray) -> np.ndarray | None:
        """Which fold each of those rows is of, shape (k,), where there are some."""
        return None if self.folds is None else self.folds[self.usable(pattern)]

    def usable(self, pattern: np.ndarray) -> np.ndarray:
        """A mask of those rows, shape (m,)."""
        had_all_others = ~(self.holes & ~pattern).any(axis=1)
        return had_all_others | (had_all_others.sum() < min(ENOUGH_ROWS, len(self.rows)))


def imputed(model: Model, rows: np.ndarray) -> np.ndarray:
    """One draw of x for each row, shape (m, D), from what the model's first network makes of the cells that are there."""
    x = model.input.encode(rows)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    with torch.inference_mode():
        for weighted in model.estimator.draws(model.vae, model.codebook, x, IMPUTING_DRAWS):
            weights = weighted.log_weights[:, : weighted.rows].softmax(dim=0).T.cpu()  # (few, S)
            picks = torch.multinomial(weights, 1, generator=generator)[:, 0].to(weighted.z.device)
            output = model.vae.decoder(weighted.z[picks, torch.arange(weighted.rows)])
            drawn.append(model.vae.likelihood.sample(output, generator).double().cpu().numpy())
    return model.input.decode(np.concatenate(drawn)).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Scores of complete validation rows, ascending, with the band that is the default and the model that gave them.

    `reference` holds some of the rows, for models that read rows with holes; `columns` what log p(x_j | x_-j) is in each
    column, and `evidence` what further statistics are, which older versions lack. `folds` (n,), 0 to K - 1, says which fold
    each score is of, if each is by the network that was fitted without its fold (`service.validity.cross_conformal`).
    """

    scores: np.ndarray
    percentiles: tuple[float, float]
    fingerprint: str
    reference: ReferenceRows | None = None
    columns: ColumnSketch | None = None
    evidence: Evidence | None = None
    folds: np.ndarray | None = None

    @staticmethod
    def fit(
        model: Model,
        rows: np.ndarray,
        percentiles: tuple[float, float] = (25.0, 75.0),
        pool: Executor | None = None,
        suspect: np.ndarray | None = None,
        known: Known | None = None,
    ) -> Calibration:
        """Score valid rows that were not trained on, shape (n, D), with the estimator that will serve.

        Args:
            suspect: of other rows (`suspects`); by default every column is looked at twice.
            known: rows beside which evidence is gathered; without any, there is none.

        Raises:
            CalibrationError: too few rows for the percentiles.
        """
        Band.fit(np.zeros(len(rows)), percentiles)  # too few rows are refused before they are scored
        reference, holes = None, np.isnan(rows)
        if model.input.reads_holes:
            whole = ReferenceRows.of(model, rows)
            rows, reference = whole.rows, whole.first(REFERENCE_ROWS)
        if suspect is None:
            suspect = np.full(rows.shape[1], np.inf)
        some = max(MIN_COLUMN_ROWS, COLUMN_CELLS // rows.shape[1])
        witnesses = None if known is None else model.witnesses(known)
        first, rest = model.look(rows[:some], suspect, witnesses, pool), model.look(rows[some:], None, witnesses, pool)
        scores = np.sort(np.concatenate([look.estimates.log_likelihood for look in (first, rest)]))
        assert first.columns is not None
        sketch = ColumnSketch.fit(np.where(holes[:some], np.nan, first.columns.log_likelihood), suspect)
        evidence = None
        if first.statistics is not None and rest.statistics is not None and known is not None:
            evidence = Evidence.fit(known, np.concatenate([first.statistics, rest.statistics]), model.input)
        return Calibration(scores, percentiles, model.fingerprint, reference, sketch, evidence)

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


@dataclass(frozen=True)
class Golden:
    """Rows with the scores that they had when their version was published: whoever loads it can see that it scores alike.

    The rows are drawn from the model, so that no real one is kept for this: `rows` (K, D), float32, in the units of the
    training data, `log_likelihood` and `std_error` (K,), float64, nats.
    """

    rows: np.ndarray
    log_likelihood: np.ndarray
    std_error: np.ndarray

    @staticmethod
    def of(model: Model, calibration: Calibration) -> Golden:
        """Golden rows of a model, as its calibration's band has them scored."""
        rows = model.drawn(GOLDEN_ROWS, seed=0)
        estimates = golden_estimates(model, calibration, rows)
        return Golden(rows, estimates.log_likelihood, estimates.std_error)

    def arrays(self) -> dict[str, np.ndarray]:
        """The parts by name."""
        return {"rows": self.rows, "log_likelihood": self.log_likelihood, "std_error": self.std_error}

    def check(self, model: Model, calibration: Calibration) -> None:
        """Score the rows again.

        The same kind of machine and build gives the same bits. Another one rounds differently; where that turns a branch of
        the estimate, which is rare, the numbers are two estimates of the same thing, and may differ as their errors say.

        Raises:
            DamagedModelError: a score is another one, or more than half of them are only similar.
        """
        estimates = golden_estimates(model, calibration, self.rows)
        difference = np.abs(estimates.log_likelihood - self.log_likelihood)
        rounding = 1e-5 * np.maximum(1.0, np.abs(self.log_likelihood))
        same = difference <= rounding
        similar = difference <= rounding + 6.0 * np.hypot(estimates.std_error, self.std_error)
        if not similar.all() or same.mean() < 0.5:
            raise DamagedModelError(
                f"{int((~same).sum())} of {len(self.rows)} golden rows score otherwise than when the version was "
                f"published, by up to {difference.max():.3g} nats: this machine or build computes something else"
            )


def golden_estimates(model: Model, calibration: Calibration, rows: np.ndarray) -> Estimates:
    """Estimates of golden rows, as the service has them."""
    band = calibration.band()
    return model.estimates(rows, None, band.ends)


def calibrated(
    vaes: Sequence[VAE],
    spec: InputSpec,
    estimator: Estimator,
    pilot: np.ndarray,
    rows: np.ndarray,
    percentiles: tuple[float, float] = (25.0, 75.0),
    pool: Executor | None = None,
    known: np.ndarray | None = None,
) -> tuple[Model, Calibration]:
    """Networks made ready to score as one: its codebook, the ends at which its estimator stops, and its calibration.

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
        model = replace(model, estimator=piloted(model, pilot, percentiles, pool))
    near = known_rows(model, pilot if known is None else known, pilot, pool)
    return model, Calibration.fit(model, rows, percentiles, pool, suspects(model, pilot, pool), near)


def ready(vaes: Sequence[VAE], spec: InputSpec, estimator: Estimator, pilots: Sequence[np.ndarray]) -> Model:
    """Networks with codebooks, each by its pilot rows, shape (m, D), and an estimator that knows nothing of them yet."""
    first, *others = [
        Member(vae, starts.build(vae, spec.encode(pilot))) for vae, pilot in zip(vaes, pilots, strict=True)
    ]
    plain = replace(estimator, ends=None, typical_error=0.0)
    return Model(first.vae, spec, plain, first.codebook, tuple(others))


def known_rows(model: Model, rows: np.ndarray, pilot: np.ndarray, pool: Executor | None) -> Known | None:
    """Some of the rows, to look for neighbours among, and what is usual of the pilot rows; None without any."""
    if not len(rows) or not len(pilot):
        return None
    known = Known.of(rows, model.input.features)
    witnesses = model.witnesses(known)
    x, some = model.input, pilot[:MIN_COLUMN_ROWS]
    seen = [
        estimate_with_witness(
            model.estimator,
            one.vae,
            one.codebook,
            x.encode(some),
            witnesses.observer(number),
            x.log_measure(some),
            pool,
        )[1]
        for number, one in enumerate(model.members)
    ]
    return replace(known, usual=Known.usual_of(witnesses.together(seen).given_back))


def suspects(model: Model, pilot: np.ndarray, pool: Executor | None) -> np.ndarray:
    """Below what log p(x_j | x_-j) of a column is suspicious, shape (D,), nats: few of the pilot rows' cells are."""
    if not len(pilot):
        return np.full(model.input.features, np.inf)
    nowhere = np.full(model.input.features, -np.inf)
    values = model.explained(pilot[:MIN_COLUMN_ROWS], nowhere, pool)[1].log_likelihood
    ordered, counts = np.sort(values, axis=0), (~np.isnan(values)).sum(axis=0)
    chosen = (SUSPECT_SHARE * counts).astype(int)
    return np.where(counts > 0, ordered[chosen, np.arange(len(counts))], np.inf)


def piloted(model: Model, pilot: np.ndarray, percentiles: tuple[float, float], pool: Executor | None) -> Estimator:
    """The model's estimator with what a first, fixed number of samples of the pilot rows says.

    That is how large the error of an estimate of one network usually is, how it falls with more samples and, where the
    estimator stops at ends, where they are: none where there are too few rows for a band.
    """
    alone = model.alone(0)
    few, some = (
        fixed_estimates(alone, number, pilot, pool) for number in (TYPICAL_SAMPLES // FEWER_TIMES, TYPICAL_SAMPLES)
    )
    # The median of the ratios is deaf to the few rows on which either error is a guess.
    ratio = np.median(few.std_error / np.maximum(some.std_error, 1e-12))
    decay = float(np.clip(2.0 * np.log(max(ratio, 1e-12)) / np.log(FEWER_TIMES), *DECAYS))
    ends: tuple[float, ...] | None = None
    tolerance = model.estimator.tolerance
    if model.others:  # no member's estimate alone is clear of the ends of all members' band
        tolerance = max(tolerance, 0.5 * END_TOLERANCE)
    elif model.estimator.stops_at_ends:
        with contextlib.suppress(CalibrationError):
            band = Band.fit(np.sort(some.log_likelihood), percentiles)
            ends = band.ends
    error = float(np.sqrt((some.std_error**2).mean()))
    return replace(model.estimator, ends=ends, tolerance=tolerance, typical_error=error, typical_decay=decay)


def fixed_estimates(model: Model, samples: int, rows: np.ndarray, pool: Executor | None) -> Estimates:
    """Estimates of rows with so many samples each and no more."""
    estimator = replace(model.estimator, first_samples=samples, max_samples=samples, anneal=False)
    return replace(model, estimator=estimator).estimates(rows, pool)
