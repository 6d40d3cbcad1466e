"""Golden rows: a check, after loading a version, that it scores as it did at publication."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from service.data.table import FLOAT32_MAX
from service.density.block import Estimates
from service.errors import DamagedModelError
from service.scoring.calibration import Calibration
from service.scoring.generator import Generator
from service.scoring.model import Model

GOLDEN_ROWS = 8
SAME = 0.01, 0.02  # relative and absolute: what rounding may change of a statistic or a rank


@dataclass(frozen=True)
class Golden:
    """Rows with their scores at publication, to check that a loaded version still scores the same.

    The rows are drawn from the model, so that no real row is stored: `rows` (K, D), in the units of the training
    data, `log_likelihood` and `std_error` (K,), float64, nats. `combined` (K, 2) is the statistic of the combined rule and
    its p-value, if the version has that rule; older versions lack it.
    """

    rows: np.ndarray
    log_likelihood: np.ndarray
    std_error: np.ndarray
    combined: np.ndarray | None = None

    @staticmethod
    def of(model: Model, calibration: Calibration) -> Golden:
        """Golden rows of a model, scored for its calibration's band."""
        drawn = Generator(model).sample(GOLDEN_ROWS, seed=0).samples
        rows = np.clip(drawn, -FLOAT32_MAX, FLOAT32_MAX).astype(model.input.dtype)
        estimates, combined = golden_answers(model, calibration, rows)
        return Golden(rows, estimates.log_likelihood, estimates.std_error, combined)

    def arrays(self) -> dict[str, np.ndarray]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: array for name, array in values.items() if array is not None}

    def check(self, model: Model, calibration: Calibration) -> None:
        """Score the rows again and compare.

        The same kind of machine and build gives the same bits. Another one rounds differently. In rare cases this flips a
        branch of the estimate; the two numbers are then different estimates of the same value, within their errors.

        Raises:
            DamagedModelError: a score differs by more than its error, or more than half differ by more than rounding.
        """
        estimates, combined = golden_answers(model, calibration, self.rows)
        difference = np.abs(estimates.log_likelihood - self.log_likelihood)
        rounding = 1e-5 * np.maximum(1.0, np.abs(self.log_likelihood))
        same = difference <= rounding
        similar = difference <= rounding + 6.0 * np.hypot(estimates.std_error, self.std_error)
        if not similar.all() or same.mean() < 0.5:
            raise DamagedModelError(
                f"{int((~same).sum())} of {len(self.rows)} golden rows score differently than at publication, by up to "
                f"{difference.max():.3g} nats: this machine or build computes different results"
            )
        if self.combined is None:
            return
        if combined is None or np.isclose(combined, self.combined, *SAME).all(axis=1).mean() < 0.5:
            raise DamagedModelError(
                "the golden rows have other combined statistics than at publication: the calibration of the combined rule "
                "has changed, or this machine or build computes different results"
            )


def golden_answers(model: Model, calibration: Calibration, rows: np.ndarray) -> tuple[Estimates, np.ndarray | None]:
    """Estimates of golden rows, and `Golden.combined` if there is a combined rule, computed as in the service."""
    band, reference = calibration.band(), calibration.statistics
    statistics = None if reference is None else model.row_statistics(reference.known)
    assessment = model.assess(rows, band.ends, statistics=statistics)
    if reference is None or assessment.statistics is None:
        return assessment.estimates, None
    combination, statistics_of_rows = reference.combination, assessment.statistics
    both = combination.combine(statistics_of_rows), combination.p_value(statistics_of_rows)
    return assessment.estimates, np.stack(both, axis=1)
