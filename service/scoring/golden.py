"""Golden rows: whoever loads a version can see that it scores as it did when it was published."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.data.table import FLOAT32_MAX
from service.density.block import Estimates
from service.errors import DamagedModelError
from service.scoring.calibration import Calibration
from service.scoring.generator import Generator
from service.scoring.model import Model

GOLDEN_ROWS = 8


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
        drawn = Generator(model).sample(GOLDEN_ROWS, seed=0).samples
        rows = np.clip(drawn, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
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
    return model.estimates(rows, band.ends)
