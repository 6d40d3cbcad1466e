"""Estimates of log p(x) from importance weights of z.

Everything after the networks runs in float64. Samples lead: weights have shape (S, B).
"""

from __future__ import annotations

import math

from torch import Tensor

from service.density.quasirandom import REPLICATES


def log_likelihood(log_weights: Tensor) -> Tensor:
    """Estimate log p(x) from importance weights.

    log p(x) ~= logsumexp_s(log w_s) - log S   (Burda et al., 2016)

    Args:
        log_weights: log p(x, z) - log q(z | x), shape (S, B), nats.

    Returns:
        Shape (B,), nats. In expectation a lower bound that tightens with S; it exceeds log p(x) by more than b nats with
        probability at most exp(-b), whatever the weights' tail (Markov's inequality).
    """
    return log_weights.logsumexp(dim=0) - math.log(len(log_weights))


def normalized_weights(log_weights: Tensor) -> Tensor:
    """w_s / sum w, shape (S, B)."""
    return log_weights.softmax(dim=0)


def ess(log_weights: Tensor) -> Tensor:
    """Effective sample size 1 / sum of squared normalized weights, shape (B,): from 1 to S."""
    size = 1.0 / normalized_weights(log_weights).square().sum(dim=0)
    return size.clamp(1.0, float(len(log_weights)))  # rounding may leave this range


def ratio_std_error(log_weights: Tensor, others: Tensor, replicates: int = REPLICATES) -> Tensor:
    """Standard error of the log ratio of two mean weights over the same scrambled Sobol draws, nats.

    Both arguments are log weights with S leading, and broadcast with each other. Uses the delta method over scramblings, as
    `replicated_std_error` does.
    """

    def shares(weights: Tensor) -> Tensor:
        normalized = normalized_weights(weights)
        return normalized.view(len(weights) // replicates, replicates, *weights.shape[1:]).sum(dim=0)

    difference = shares(log_weights) - shares(others)
    return (difference.square().sum(dim=0) * (replicates / (replicates - 1))).sqrt()


def replicated_std_error(log_weights: Tensor, replicates: int = REPLICATES) -> Tensor:
    """Standard error of `log_likelihood` for scrambled Sobol points, shape (B,), nats.

    Draw s belongs to scrambling s % replicates. Draws of one scrambling depend on each other; different scramblings are
    independent. The error is therefore that of the mean of R scramblings' means, with R - 1 degrees of freedom.
    """
    samples = len(log_weights)
    normalized = normalized_weights(log_weights).view(samples // replicates, replicates, -1).sum(dim=0)  # (R, B)
    deviations = normalized - 1.0 / replicates
    return (deviations.square().sum(dim=0) * (replicates / (replicates - 1))).sqrt()
