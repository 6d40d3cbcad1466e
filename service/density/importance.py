"""Estimates of log p(x) from importance weights of z.

Everything after the networks runs in float64. Rows lead: weights have shape (B, S), and sums over a row's draws are the
same to the bit whatever other rows share the array.
"""

from __future__ import annotations

import math

from torch import Tensor

from service.density.quasirandom import REPLICATES


def log_likelihood(log_weights: Tensor) -> Tensor:
    """Estimate log p(x) from importance weights.

    log p(x) ~= logsumexp_s(log w_s) - log S   (Burda et al., 2016)

    Args:
        log_weights: log p(x, z) - log q(z | x), shape (B, S), nats.

    Returns:
        Shape (B,), nats. In expectation a lower bound that tightens with S; it exceeds log p(x) by more than b nats with
        probability at most exp(-b), whatever the weights' tail (Markov's inequality).
    """
    return log_weights.logsumexp(dim=-1) - math.log(log_weights.shape[-1])


def normalized_weights(log_weights: Tensor) -> Tensor:
    """w_s / sum w, shape (B, S)."""
    return log_weights.softmax(dim=-1)


def ess(normalized: Tensor) -> Tensor:
    """Effective sample size 1 / sum of squared normalized weights, (B, S) to (B,): from 1 to S."""
    size = 1.0 / normalized.square().sum(dim=-1)
    return size.clamp(1.0, float(normalized.shape[-1]))  # rounding may leave this range


def ratio_std_error(normalized: Tensor, others: Tensor) -> Tensor:
    """Standard error of the log ratio of two mean weights over the same scrambled Sobol draws, nats.

    Both arguments are normalized weights with S last, and broadcast with each other. Uses the delta method over
    scramblings, as `replicated_std_error` does.
    """
    difference = replicate_shares(normalized) - replicate_shares(others)
    return (difference.square().sum(dim=-1) * (REPLICATES / (REPLICATES - 1))).sqrt()


def replicated_std_error(normalized: Tensor) -> Tensor:
    """Standard error of `log_likelihood` for scrambled Sobol points, from normalized weights, (B, S) to (B,), nats.

    Draw s belongs to scrambling s % REPLICATES. Draws of one scrambling depend on each other; different scramblings are
    independent. The error is therefore that of the mean of R scramblings' means, with R - 1 degrees of freedom.
    """
    deviations = replicate_shares(normalized) - 1.0 / REPLICATES
    return (deviations.square().sum(dim=-1) * (REPLICATES / (REPLICATES - 1))).sqrt()


def replicate_shares(normalized: Tensor) -> Tensor:
    """The share of each scrambling in the sum of the weights, (..., S) to (..., REPLICATES)."""
    by_point = normalized.unflatten(-1, (-1, REPLICATES))  # (..., S / R, R)
    return by_point.mT.contiguous().sum(dim=-1)
