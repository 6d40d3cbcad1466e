"""A model in memory: the network, what its input means, how log p(x) is estimated, and the valid rows' scores."""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from service.data.schema import InputSpec
from service.density.estimator import Estimates, Estimator
from service.density.survey import MAX_LATENTS
from service.errors import CalibrationError
from service.vae.network import VAE
from service.validity.band import Band


@dataclass(frozen=True)
class Model:
    """A trained network with the units of its input and its estimator: all that a row's log p(x) depends on."""

    vae: VAE
    input: InputSpec
    estimator: Estimator

    def __post_init__(self) -> None:
        latents = self.vae.architecture.latents
        if self.estimator.proposal == "survey" and latents > MAX_LATENTS:
            raise CalibrationError(f"the survey proposal is for up to {MAX_LATENTS} latents, the network has {latents}")

    def estimates(self, rows: np.ndarray, pool: Executor | None = None) -> Estimates:
        """Estimate log p(x) of checked rows (`InputSpec.rows`), shape (B, D), in the units of the training data."""
        estimates = self.estimator.estimate(self.vae, self.input.encode(rows), pool)
        return replace(estimates, log_likelihood=estimates.log_likelihood - self.input.transform.log_volume())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that a score depends on: architecture, weights, input and estimator."""
        content = hashlib.sha256(repr((self.vae.architecture, self.estimator)).encode())
        content.update(self.input.model_dump_json().encode())
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
