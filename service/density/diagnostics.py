"""Diagnostics of importance weights: standard error, effective sample size, khat, and whether to rely on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.density import importance
from service.density.pareto import khat
from service.density.quasirandom import REPLICATES

IMPOSSIBLE = -1e300  # nats
MIN_SAMPLES = 25  # fewer may agree by chance
KHAT_LIMIT = 0.7
PRIOR_DEGREES = 4
MIN_RELATIVE_ESS = 0.02
# From few draws khat is very uncertain, and a limit that allows for this rejects half of the good estimates too. Weights
# this even, with an error this small, are accepted up to the limit for many draws; the audit measures how often wrongly.
SHARP_ESS, SHARP_ERROR = 0.1, 0.3


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What importance weights say of B rows' log p(x): arrays of shape (B,), float64, and a mask."""

    log_likelihood: np.ndarray
    std_error: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    reliable: np.ndarray


def diagnose(log_weights: Tensor, typical_variance: float = 0.0) -> Diagnosis:
    """The diagnosis of log weights, shape (B, S).

    A row's own variance, estimated from REPLICATES scramblings, is too small exactly when a rare large weight has not been
    drawn yet. It is therefore moderated by that of a typical row, which counts as PRIOR_DEGREES further degrees of freedom
    (Smyth, 2004). It is also widened so that +-1.96 standard errors have their nominal coverage under Student's t (Cornish
    and Fisher, 1938).
    """
    samples, normalized = log_weights.shape[-1], importance.normalized_weights(log_weights)
    size, tail = importance.ess(normalized), khat(log_weights)
    possible = log_weights.amax(dim=-1) > IMPOSSIBLE
    exact = (samples >= MIN_SAMPLES) & possible & (size >= (1.0 - 1e-6) * samples)
    degrees = REPLICATES - 1
    variance = importance.replicated_std_error(normalized).square()
    if typical_variance > 0:
        moderated = (degrees * variance + PRIOR_DEGREES * typical_variance) / (degrees + PRIOR_DEGREES)
        variance = torch.where(exact, variance, moderated)
        degrees += PRIOR_DEGREES
    widening = 1.0 + (1.96**2 + 1.0) / (4 * degrees)
    error = widening * variance.sqrt()
    usual = is_usual(tail, size, samples)
    sharp = (tail <= KHAT_LIMIT) & (size >= SHARP_ESS * samples) & (error <= SHARP_ERROR)
    reliable = exact | usual | sharp
    numbers = (importance.log_likelihood(log_weights), error, size, tail, reliable)
    return Diagnosis(*(number.cpu().numpy() for number in numbers))


def is_usual(tail: Tensor, size: Tensor, samples: int) -> Tensor:
    """Whether neither khat nor the effective sample size gives a reason to doubt the mean of so many weights.

    False if there is no tail to fit, even if all weights are equal: callers test for that case themselves.
    """
    limit = min(1.0 - 1.0 / np.log10(samples), KHAT_LIMIT)
    return (tail <= limit) & (size >= MIN_RELATIVE_ESS * samples)
