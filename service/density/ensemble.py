"""Several networks as one density: the mean of their densities (log-mean-exp of log p(x)).

This is a mixture of equally likely models, so whatever holds for one p(x) holds for it. Errors of the members' estimates
are independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.density.block import Estimates
from service.density.conditionals import ColumnEstimates


def averaged(members: Sequence[Estimates]) -> Estimates:
    """Estimates of the mean density of B rows, from those of its members.

    They are reliable if those of all members are. khat is the largest of the members', and ess is that of all draws
    together.
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


def averaged_columns(columns: Sequence[ColumnEstimates]) -> ColumnEstimates:
    """log p(x_j | others) under the mean density, from the members' estimates and log p(others), shape (B, D)."""
    if len(columns) == 1:
        return columns[0]
    together, _ = mean_density(np.stack([one.log_others + one.log_likelihood for one in columns]))
    log_others, shares = mean_density(np.stack([one.log_others for one in columns]))
    return ColumnEstimates(
        together - log_others,
        mixed_error(shares, [one.std_error for one in columns]),
        np.logical_and.reduce([one.reliable for one in columns]),
        log_others,
    )


def mean_density(log_densities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the mean of M densities, shape (M, ...) to (...), and each density's share, (M, ...); propagates NaN."""
    highest = log_densities.max(axis=0)  # NaN where one is
    total = highest + np.log(np.exp(log_densities - highest).sum(axis=0))
    return total - math.log(len(log_densities)), np.exp(log_densities - total)


def mixed_error(shares: np.ndarray, errors: Sequence[np.ndarray]) -> np.ndarray:
    """Standard error of the log of a sum, from each term's share and the standard error of its log (delta method)."""
    return np.sqrt(sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True)))
