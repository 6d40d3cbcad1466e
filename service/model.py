"""A model in memory: the network, what its input means, how log p(x) is estimated, and the valid rows' scores."""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from service.data.schema import InputSpec
from service.density import codebook
from service.density.estimator import TYPICAL_SAMPLES, Estimates, Estimator
from service.errors import CalibrationError
from service.vae.network import VAE
from service.validity.band import Band

FEWER_TIMES = 4  # the pilot's smaller number of samples
DECAYS = (0.5, 3.0)


@dataclass(frozen=True)
class Model:
    """A trained network with the units of its input and its estimator: all that a row's log p(x) depends on.

    `codebook` holds latents, shape (K, L), from which the estimator may start to look for a row's modes. The estimator's
    `ends` are in the network's units.
    """

    vae: VAE
    input: InputSpec
    estimator: Estimator
    codebook: np.ndarray = field(repr=False)

    def estimates(self, rows: np.ndarray, pool: Executor | None = None, band_ends: tuple[float, ...] = ()) -> Estimates:
        """Estimate log p(x) of checked rows (`InputSpec.rows`), shape (B, D), in the units of the training data.

        Args:
            band_ends: of the band that the rows are judged by, in the same units: samples stop doubling where a row's
                estimate is clear of them, for estimators that stop at ends.
        """
        volume = self.input.transform.log_volume()
        ends = tuple(end + volume for end in band_ends)
        estimates = self.estimator.estimate(self.vae, self.codebook, self.input.encode(rows), pool, ends)
        return replace(estimates, log_likelihood=estimates.log_likelihood - volume)

    def evaluations_per_row(self) -> int:
        """What a score costs, about, in decoder evaluations."""
        return self.estimator.typical_evaluations(self.vae, len(self.codebook))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that a score depends on: architecture, weights, input and estimator."""
        content = hashlib.sha256(repr((self.vae.architecture, self.estimator)).encode())
        content.update(self.input.model_dump_json().encode())
        content.update(np.ascontiguousarray(self.codebook, dtype=np.float32).tobytes())
        for name, tensor in sorted(self.vae.state_dict().items()):
            content.update(name.encode())
            content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"sha256:{content.hexdigest()}"


@dataclass(frozen=True)
class Calibration:
    """Scores of validation rows, ascending, with the band that is the default and the model that gave them."""

    scores: np.ndarray
    percentiles: tuple[float, float]
    fingerprint: str

    @staticmethod
    def fit(
        model: Model,
        rows: np.ndarray,
        percentiles: tuple[float, float] = (25.0, 75.0),
        pool: Executor | None = None,
    ) -> Calibration:
        """Score valid rows that were not trained on, shape (n, D), with the estimator that will serve.

        Raises:
            CalibrationError: too few rows for the percentiles.
        """
        Band.fit(np.zeros(len(rows)), percentiles)  # too few rows are refused before they are scored
        return Calibration(np.sort(model.estimates(rows, pool).log_likelihood), percentiles, model.fingerprint)

    def band(self, percentiles: tuple[float, float] | None = None) -> Band:
        """The band between the default percentiles, or others."""
        return Band.fit(self.scores, percentiles or self.percentiles)

    def check_belongs_to(self, model: Model) -> None:
        """Refuse thresholds of another estimator: an estimate rises with its number of samples, and so would they."""
        if self.fingerprint != model.fingerprint:
            raise CalibrationError(
                "the calibration belongs to another network, input or estimator: calibrate again with `vouch calibrate`"
            )


def calibrated(
    vae: VAE,
    spec: InputSpec,
    estimator: Estimator,
    pilot: np.ndarray,
    rows: np.ndarray,
    percentiles: tuple[float, float] = (25.0, 75.0),
    pool: Executor | None = None,
) -> tuple[Model, Calibration]:
    """A network made ready to score: its codebook, the ends at which its estimator stops, and its calibration.

    The ends come from a band of the pilot rows' scores and are frozen before the first calibration row is scored. If they
    came from the calibration rows, those would be stopped by a band that they themselves made, and other rows would not be.

    Args:
        pilot: valid rows that the network was not fitted to and that are not among `rows`, shape (m, D).
        rows: valid rows to calibrate on, shape (n, D).

    Raises:
        CalibrationError: too few rows for the percentiles.
    """
    Band.fit(np.zeros(len(rows)), percentiles)  # too few rows are refused before any are scored
    plain = replace(estimator, ends=None, typical_error=0.0)
    model = Model(vae, spec, plain, codebook.build(vae, spec.encode(pilot)))
    if len(pilot):
        model = replace(model, estimator=piloted(model, pilot, percentiles, pool))
    return model, Calibration.fit(model, rows, percentiles, pool)


def piloted(model: Model, pilot: np.ndarray, percentiles: tuple[float, float], pool: Executor | None) -> Estimator:
    """The model's estimator with what a first, fixed number of samples of the pilot rows says.

    That is how large the error of an estimate usually is, how it falls with more samples and, where the estimator stops at
    ends, where they are: none where there are too few rows for a band.
    """
    few, some = (
        fixed_estimates(model, number, pilot, pool) for number in (TYPICAL_SAMPLES // FEWER_TIMES, TYPICAL_SAMPLES)
    )
    # The median of the ratios is deaf to the few rows on which either error is a guess.
    ratio = np.median(few.std_error / np.maximum(some.std_error, 1e-12))
    decay = float(np.clip(2.0 * np.log(max(ratio, 1e-12)) / np.log(FEWER_TIMES), *DECAYS))
    ends: tuple[float, ...] | None = None
    if model.estimator.stops_at_ends:
        volume = model.input.transform.log_volume()
        with contextlib.suppress(CalibrationError):
            band = Band.fit(np.sort(some.log_likelihood), percentiles)
            ends = (band.low + volume, band.high + volume)
    error = float(np.sqrt((some.std_error**2).mean()))
    return replace(model.estimator, ends=ends, typical_error=error, typical_decay=decay)


def fixed_estimates(model: Model, samples: int, rows: np.ndarray, pool: Executor | None) -> Estimates:
    """Estimates of rows with so many samples each and no more."""
    estimator = replace(model.estimator, first_samples=samples, max_samples=samples, anneal=False)
    return replace(model, estimator=estimator).estimates(rows, pool)
