"""Several networks as one density: the mean of theirs (log-mean-exp of log p(x)).

A mixture of models, equally likely each: whatever holds for one p(x) holds for it. Errors of the members' estimates are
independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.density.columns import ColumnEstimates
from service.density.estimator import Estimates


def averaged(members: Sequence[Estimates]) -> Estimates:
    """Estimates of the mean density of B rows, from those of its members.

    They are reliable where all members' are; khat is the largest, and ess that of all draws together.
    """
    if len(members) == 1:
        return members[0]
    log_likelihood, shares = mean_density(np.stack([one.log_likelihood for one in members]))
    khats = np.stack([np.where(np.isnan(one.khat), -np.inf, one.khat) for one in members]).max(axis=0)
    samples = sum(one.num_samples for one in members)
    spread = sum(share**2 / one.ess for share, one in zip(shares, members, strict=True))
    return Estimates(
        log_likelihood=log_likelihood,
        std_error=mixed_error(shares, [one.std_error for one in members]),
        ess=np.minimum(1.0 / spread, samples),
        khat=np.where(np.isfinite(khats), khats, np.nan),
        reliable=np.logical_and.reduce([one.reliable for one in members]),
        num_samples=np.asarray(samples),
        evaluations=np.asarray(sum(one.evaluations for one in members)),
    )


def averaged_columns(rows: Sequence[Estimates], columns: Sequence[ColumnEstimates]) -> ColumnEstimates:
    """log p(x_j | x_-j) under the mean density, from the members' log p(x) and log p(x_j | x_-j), shape (B, D)."""
    if len(columns) == 1:
        return columns[0]
    whole, _ = mean_density(np.stack([one.log_likelihood for one in rows]))
    without = np.stack(
        [one.log_likelihood[:, None] - few.log_likelihood for one, few in zip(rows, columns, strict=True)]
    )
    log_without, shares = mean_density(without)
    return ColumnEstimates(
        whole[:, None] - log_without,
        mixed_error(shares, [few.std_error for few in columns]),
        np.logical_and.reduce([few.reliable for few in columns]),
    )


def mean_density(log_densities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the mean of M densities, shape (M, ...) to (...), and each one's share in it, (M, ...); NaN stays NaN."""
    highest = log_densities.max(axis=0)  # NaN where one is
    total = highest + np.log(np.exp(log_densities - highest).sum(axis=0))
    return total - math.log(len(log_densities)), np.exp(log_densities - total)


def mixed_error(shares: np.ndarray, errors: Sequence[np.ndarray]) -> np.ndarray:
    """The standard error of a log of a sum of which each part has a share, and an error of its own log."""
    return np.sqrt(sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True)))
