"""khat: how heavy the tail of importance weights is (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).

A generalized Pareto distribution is fitted to the largest weights; its shape khat determines how many moments the weights
have: those of order below 1 / khat. Above min(1 - 1 / log10 S, 0.7), their mean is unreliable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_TAIL = 5  # fewer points do not determine a shape
PRIOR_WEIGHT = 10.0  # in draws: weight of the weakly informative prior that shrinks khat towards 1/2


def tail_length(samples: int) -> int:
    """How many of the largest weights are fitted: min(S / 5, 3 sqrt(S)), rounded up."""
    return min(math.ceil(samples / 5), math.ceil(3 * math.sqrt(samples)))


def khat(log_weights: Tensor) -> Tensor:
    """Shape of the generalized Pareto fit to the largest weights: (B, S) to (B,), float64.

    NaN if there is no tail to fit: too few samples, or a tail of equal weights (if all weights are equal, the proposal is
    exact).
    """
    rows, samples = log_weights.shape
    length = tail_length(samples)
    if length < MIN_TAIL or length >= samples:
        return torch.full((rows,), math.nan, dtype=torch.float64, device=log_weights.device)
    relative = log_weights - log_weights.amax(dim=-1, keepdim=True)
    weights = relative.topk(length + 1, dim=-1).values.flip(-1).exp()  # ascending
    exceedances = weights[:, 1:] - weights[:, :1]  # (B, length), ascending
    # Weights that agree up to rounding have no tail: what remains above the cutoff is rounding noise.
    spread = exceedances[:, -1] > 1e-9
    quartile = exceedances[:, int(length / 4 + 0.5) - 1]
    fitted = generalized_pareto_shape(exceedances.clamp(min=1e-300))
    # Ties at the cutoff make the quartile 0, and leave the estimator of Zhang and Stephens without a scale.
    tied = spread & (quartile <= 0)
    fitted = torch.where(tied, math.inf, fitted)
    return torch.where(spread, fitted, math.nan)


def generalized_pareto_shape(x: Tensor) -> Tensor:
    """The empirical Bayes estimate of Zhang and Stephens (2009), with the prior of Vehtari et al.

    Args:
        x: exceedances, ascending, positive, shape (B, n).

    Returns:
        Shape (B,).
    """
    n = x.shape[1]
    points = 30 + int(math.sqrt(n))
    grid = 1.0 - torch.sqrt(points / (torch.arange(1, points + 1, dtype=x.dtype, device=x.device) - 0.5))
    quartile = x[:, int(n / 4 + 0.5) - 1, None]
    b = grid / (3.0 * quartile) + 1.0 / x[:, -1:]  # (B, points)
    k = torch.log1p(-b[:, :, None] * x[:, None, :]).mean(dim=-1)  # (B, points)
    profile = n * (torch.log(-b / k) - k - 1.0)  # log likelihood of each b
    weights = profile.nan_to_num(nan=-math.inf).softmax(dim=-1)
    b_mean = (weights * b).sum(dim=-1, keepdim=True)
    shape = torch.log1p(-b_mean * x).mean(dim=-1)
    return (n * shape + PRIOR_WEIGHT * 0.5) / (n + PRIOR_WEIGHT)
