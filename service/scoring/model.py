"""A model in memory: its networks, its input, and how log p(x) is estimated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from service.data.inputs import Grey, InputSpec
from service.density.block import Estimates
from service.density.conditionals import ColumnDraws, ColumnEstimates, ColumnObserver, columns_of
from service.density.ensemble import averaged, averaged_columns
from service.density.estimate import DIRECT, Execution, Member, Observer, observe
from service.density.estimator import Estimator
from service.scoring.statistics import KnownRows, RowStatistics
from service.vae.network import VAE, Architecture

USUAL_PRODUCTS = 2**20  # multiplications in an evaluation that counts once


@dataclass(frozen=True, slots=True)
class Assessment:
    """Estimates of log p(x) for B rows and, if requested, of their columns, with each member's draws.

    `by_member` holds the estimates of each network alone. `statistics` (B, K) are those of `service.scoring.statistics`,
    and `by_column` (B, D) is E[log p(x_j | z)] over p(z | x), nats.
    """

    estimates: Estimates
    by_member: Sequence[Estimates]
    columns: ColumnEstimates | None = None
    draws: Sequence[ColumnDraws] = ()
    statistics: np.ndarray | None = None
    by_column: np.ndarray | None = None


@dataclass(frozen=True)
class Model:
    """Trained networks with their input and the estimator: everything that a row's log p(x) depends on.

    `members` share one architecture. If there are several, p(x) is the mean of their densities.
    """

    input: InputSpec
    estimator: Estimator
    members: tuple[Member, ...]

    @property
    def vae(self) -> VAE:
        """The first network, for properties that all of them share."""
        return self.members[0].vae

    def alone(self, number: int) -> Model:
        """One of the networks by itself."""
        return replace(self, members=(self.members[number],))

    def estimates(
        self, rows: np.ndarray, band_ends: tuple[float, ...] = (), execution: Execution = DIRECT
    ) -> Estimates:
        """Estimate log p(x) of checked rows (`InputSpec.rows`), shape (B, D), nats, in the units of the training data.

        Args:
            band_ends: ends of the band that judges the rows, in the same units. If the estimator stops at ends, a row's
                samples stop doubling once its estimate is clear of them.
        """
        return self.assess(rows, band_ends, execution=execution).estimates

    def assess(
        self,
        rows: np.ndarray,
        band_ends: tuple[float, ...] = (),
        suspect: np.ndarray | None = None,
        statistics: RowStatistics | None = None,
        execution: Execution = DIRECT,
    ) -> Assessment:
        """The estimates of `estimates`, bitwise equal, and further results on request.

        Args:
            suspect: requests log p(x_j | x_-j) of each column; values below this are estimated with more care, shape (D,),
                nats.
            statistics: requests further test statistics, and computes them; columns, too, if these need them.
        """
        if suspect is None and statistics is not None:
            suspect = statistics.suspect
        x, log_abs_det = self.input.encode(rows), self.input.log_abs_det_jacobian(rows)
        incomplete, unit = np.isnan(rows).any(axis=1), self.vae.likelihood.together
        each, cases, seen = [], [], []
        for number, member in enumerate(self.members):
            observers: list[Observer] = []
            if suspect is not None:
                by_unit = log_abs_det.reshape(len(rows), log_abs_det.shape[1] // unit, unit).sum(axis=-1)
                observers.append(ColumnObserver(self.units, suspect[::unit], by_unit))
            if statistics is not None:
                observers.append(statistics.observer(number))
            estimates, found = observe(
                self.estimator, member, x, observers, band_ends, log_abs_det.sum(axis=1), incomplete, execution
            )
            each.append(estimates)
            cases += found[: suspect is not None]
            seen += found[len(observers) - (statistics is not None) :]
        together = averaged(each)
        of_columns = [columns_of(one, self.input.features, unit) for one in cases]
        columns = averaged_columns([estimates for estimates, _ in of_columns]) if of_columns else None
        further = by_column = None
        cells = None if columns is None else columns.log_likelihood
        if statistics is not None:
            drawn = statistics.together(seen)
            further, by_column = statistics.of(rows, together.log_likelihood, drawn, cells), drawn.reconstruction
        return Assessment(together, each, columns, [draws for _, draws in of_columns], further, by_column)

    @property
    def units(self) -> list[int]:
        """How many network columns belong to each column or, if columns depend on each other given z, to all of them."""
        together = self.vae.likelihood.together
        return self.input.widths if together == 1 else [together] * (self.input.features // together)

    def row_statistics(self, known: KnownRows) -> RowStatistics:
        """Computes further test statistics of rows, relative to known rows."""
        return RowStatistics(self.input, known, [one.vae for one in self.members])

    @property
    def evaluation_cost(self) -> int:
        """What a decoder evaluation counts where work is queued: 1, or more for one of millions of multiplications."""
        return max(1, round(self.vae.evaluation_size / USUAL_PRODUCTS))

    @cached_property
    def row_cost(self) -> int:
        """Approximate cost of a row's score, in decoder evaluations of a usual size."""
        first = self.members[0]
        evaluations = self.estimator.typical_evaluations(first.vae, len(first.starts)) * len(self.members)
        return evaluations * self.evaluation_cost

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that a score depends on: architecture, weights, input and estimator."""
        architecture = self.vae.architecture
        content = hashlib.sha256(repr((architecture, self.estimator)).encode())
        for later in (architecture.columns, architecture.prior_components):
            if later:
                content.update(repr(later).encode())
        if architecture.image:
            content.update(repr((architecture.network, architecture.image)).encode())
        content.update(self.input.fingerprint_text().encode())
        for one in self.members:
            content.update(np.ascontiguousarray(one.starts, dtype=np.float32).tobytes())
            for name, tensor in sorted(one.vae.state_dict().items()):
                content.update(name.encode())
                content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"sha256:{content.hexdigest()}"


def suited(estimator: Estimator, spec: InputSpec, architecture: Architecture) -> Estimator:
    """An estimator with the tolerance that suits what is estimated."""
    by_levels = architecture.network == "conv" and isinstance(spec.transform, Grey)
    return estimator.for_levels(spec.features) if by_levels else estimator


def shares_of(num: int, parts: int) -> list[int]:
    """Split a number into parts that differ by at most 1, larger ones first."""
    return [num // parts + (at < num % parts) for at in range(parts)]
