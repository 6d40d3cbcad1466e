"""Families of p(x | z), factorised over columns: how to read the decoder's output.

Each family maps the decoder's output, shape (..., D), to a distribution of x in the network's own units: 0 or 1 for
black and white, [0, 1] for grey levels, standardised columns for tables.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.vae.determinism import gram, in_vectors

LOG_2PI = math.log(2.0 * math.pi)
LEVELS = 256  # of 8 bits


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return in_vectors(F.softplus, x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return in_vectors(torch.sigmoid, x)


class Likelihood(nn.Module, ABC):
    """A family of p(x | z). A NaN is a missing cell and contributes no term.

    `together` adjacent columns, such as the colours of a pixel, depend on each other; all others are independent given z.
    With `is_planar`, the output has the first of each group before the second of any.
    """

    together: int = 1
    is_planar: bool = False

    @abstractmethod
    def sizes(self, features: int) -> tuple[int, int]:
        """Input width of the encoder and output width of the decoder, for rows of so many columns."""

    def read(self, x: Tensor) -> Any:
        """Rows, shape (B, D), as this family reads them, which its methods take in place of rows; indexed like a tensor."""
        return x

    @abstractmethod
    def encoder_input(self, x: Tensor) -> Tensor:
        """Rows, shape (B, D), as the encoder reads them: always finite."""

    @abstractmethod
    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x_j | z) for each column, nats, 0 for a missing cell: (..., D), broadcasting `output` with `x`."""

    def total(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x | z), summed over columns: shape (...), float64, nats."""
        return self.log_prob(output, x).sum(dim=-1, dtype=torch.float64)

    @abstractmethod
    def grad_log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """d log p(x | z) / d output, with the shape of the output."""

    @abstractmethod
    def fisher_gram(self, tangents: Tensor, output: Tensor, x: Tensor) -> Tensor:
        """Fisher information along tangents of the output, shape (N, L, P): shape (N, L, L), positive semidefinite.

        Missing cells carry no information.
        """

    @abstractmethod
    def excess_gram(self, tangents: Tensor, output: Tensor, x: Tensor) -> Tensor | None:
        """Second derivatives of -log p(x | z) along the tangents minus `fisher_gram`; None if this is always zero."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[x | z], shape (..., D)."""

    def mean_of(self, output: Tensor, column: int) -> Tensor:
        """E[x_j | z] of one column, shape (...)."""
        return self.mean(output)[..., column]

    @abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x given z, shape (..., D)."""

    @abstractmethod
    def initial_bias(self, x: Tensor) -> Tensor:
        """The output, shape (P,), whose mean is that of the rows `x`, shape (N, D): initialises training."""

    @abstractmethod
    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """Statistics of rows, shape (B, D), in which log p(x | z) is linear, at least approximately: shape (B, T)."""

    @abstractmethod
    def linear_in_statistics(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes, (K, T), and offsets, (K,), of log p(x | z_k) in the sufficient statistics, for outputs, (K, P).

        log p(x | z_k) ~= slope_k . statistics(x) + offset_k + a term that depends on x alone.
        """


class Elementwise(Likelihood):
    """A family with one number of the decoder's output for each column."""

    def sizes(self, features: int) -> tuple[int, int]:
        return features, features

    def encoder_input(self, x: Tensor) -> Tensor:
        """The row itself, with 0 for missing cells; numbers far outside the training range are clipped."""
        return x.clamp(-1e6, 1e6).nan_to_num(0.0)

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        missing = x.isnan()
        if not missing.any():
            return self.log_prob_of_complete(output, x)
        return self.log_prob_of_complete(output, x.masked_fill(missing, 0.0)).masked_fill(missing, 0.0)

    def grad_log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """d log p(x_j | z) / d output_j, shape (..., D)."""
        missing = x.isnan()
        return self.grad_log_prob_of_complete(output, x.masked_fill(missing, 0.0)).masked_fill(missing, 0.0)

    def fisher_gram(self, tangents: Tensor, output: Tensor, x: Tensor) -> Tensor:
        """sum_d t_kd w_d t_ld over columns d, with their Fisher information w."""
        weights = self.fisher_information(output).masked_fill(x.isnan(), 0.0)
        scaled = tangents * weights.sqrt()[:, None]
        return gram(scaled, scaled)

    def excess_gram(self, tangents: Tensor, output: Tensor, x: Tensor) -> Tensor | None:
        """sum_d t_kd w_d t_ld over columns d, with their excess information w."""
        missing = x.isnan()
        excess = self.excess_information(output, x.masked_fill(missing, 0.0))
        return None if excess is None else gram(tangents * excess.masked_fill(missing, 0.0)[:, None], tangents)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """The row itself, with 0 for missing cells."""
        return x.nan_to_num(0.0)

    @abstractmethod
    def quantile(self, output: Tensor, u: Tensor, column: int) -> Tensor:
        """Quantiles of one column's x given z, at probabilities u, shape (Q,): shape (..., Q)."""

    @abstractmethod
    def log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """`log_prob` for rows without missing cells."""

    @abstractmethod
    def grad_log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """`grad_log_prob` for rows without missing cells."""

    @abstractmethod
    def fisher_information(self, output: Tensor) -> Tensor:
        """E[(d log p(x_j | z) / d output_j)^2] under p(x | z), shape (..., D): never negative."""

    def excess_information(self, output: Tensor, x: Tensor) -> Tensor | None:
        """-d^2 log p(x_j | z) / d output_j^2 minus the Fisher information, shape (..., D); None if it is always 0.

        It is 0 if the output is the natural parameter or the mean of a normal.
        """
        return None


class Bernoulli(Elementwise):
    """Black-and-white columns: x is 0 or 1, the output its log-odds."""

    def log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) = x l - softplus(l)."""
        return x * output - softplus(output)

    def grad_log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """x - sigmoid(l)."""
        return x - sigmoid(output)

    def fisher_information(self, output: Tensor) -> Tensor:
        """The variance of x."""
        probability = sigmoid(output)
        return probability * (1 - probability)

    def mean(self, output: Tensor) -> Tensor:
        return sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        return (uniform_like(output, generator) < sigmoid(output)).to(output.dtype)

    def quantile(self, output: Tensor, u: Tensor, column: int) -> Tensor:
        """1 where u is above the probability of 0."""
        return (u > 1.0 - sigmoid(output[..., column, None])).to(output.dtype)

    def initial_bias(self, x: Tensor) -> Tensor:
        """Log-odds of the columns' means, kept away from certainty."""
        return torch.logit(x.mean(dim=0).clamp(1e-3, 1 - 1e-3))

    def linear_in_statistics(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Exact: the output is the natural parameter."""
        return output, -F.softplus(output).sum(dim=-1, dtype=torch.float64)


class Gaussian(Elementwise):
    """Continuous columns: the output is the mean, with one learned standard deviation for each column.

    std = sqrt(min_std^2 + exp(2 log_std)). Without the floor, a column that can be copied exactly would get an infinite
    density.
    """

    def __init__(self, features: int, min_std: float = 0.05) -> None:
        super().__init__()
        self.min_std = min_std
        self.log_std = nn.Parameter(torch.full((features,), -0.5))

    @property
    def std(self) -> Tensor:
        """Standard deviations, shape (D,)."""
        return (self.min_std**2 + (2.0 * self.log_std).exp()).sqrt()

    def log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """log N(x; output, std^2)."""
        std = self.std
        return -0.5 * ((x - output) / std).square() - std.log() - 0.5 * LOG_2PI

    def grad_log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """The residual over the variance."""
        return (x - output) / self.std.square()

    def fisher_information(self, output: Tensor) -> Tensor:
        """1 / variance."""
        return self.std.pow(-2).expand_as(output)

    def mean(self, output: Tensor) -> Tensor:
        return output

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        return output + self.std * normal_like(output, generator)

    def quantile(self, output: Tensor, u: Tensor, column: int) -> Tensor:
        return output[..., column, None] + self.std[column] * torch.special.ndtri(u)

    def initial_bias(self, x: Tensor) -> Tensor:
        return x.mean(dim=0)

    def linear_in_statistics(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Exact: the variance does not depend on z."""
        return linear_in_rows(output, self.std.square())


class DiscretizedLogistic(Elementwise):
    """8-bit grey columns: a logistic density integrated over each of 256 bins (Kingma et al., 2016, appendix).

    x = level / 255 with level in 0..255. Bin k is [k / 256, (k + 1) / 256]; the first and the last reach to infinity, so
    the 256 masses sum to one. The output's sigmoid is the location; each column has one learned scale.
    """

    # Below half a bin nearly all mass is in one bin at any scale, and `mean` would no longer be exact to 0.02 levels.
    MIN_LOG_SCALE = math.log(0.5 / 256)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((features,), -2.0))

    @property
    def scale(self) -> Tensor:
        """Scales of the logistic, shape (D,)."""
        return self.log_scale.clamp(min=self.MIN_LOG_SCALE).exp()

    def log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """log of the mass of x's bin, computed without cancellation far from the location.

        log(sigmoid(b) - sigmoid(a)) = log(1 - exp(a - b)) - softplus(a) - softplus(-b), with b - a = width / scale.
        """
        lower, upper = self.ends(output, x)
        inner = torch.log(-torch.expm1(-1.0 / (LEVELS * self.scale))) - softplus(lower) - softplus(-upper)
        first, last = self.outer(x)
        return torch.where(first, -softplus(-upper), torch.where(last, -softplus(lower), inner))

    def ends(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of x's bin, relative to the location and in units of the scale."""
        lower = (x * ((LEVELS - 1) / LEVELS) - sigmoid(output)) / self.scale
        return lower, lower + 1.0 / (LEVELS * self.scale)

    def outer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of x in the first bin, and of x in the last."""
        half = 0.5 / (LEVELS - 1)
        return x <= half, x >= 1 - half

    def grad_log_prob_of_complete(self, output: Tensor, x: Tensor) -> Tensor:
        """The derivative in the location times d location / d output."""
        lower, upper = self.ends(output, x)
        first, last = self.outer(x)
        from_lower, from_upper = sigmoid(lower).masked_fill(first, 0), sigmoid(-upper).masked_fill(last, 0)
        return (from_lower - from_upper) / self.scale * self.location_slope(output)

    def fisher_information(self, output: Tensor) -> Tensor:
        """That of a logistic's location, 1 / (3 scale^2), times (d location / d output)^2.

        Binning, and censoring at both ends, lose a little information, which this ignores. The only effect is a proposal
        that is narrower than necessary if a scale is as small as a bin.
        """
        return (self.location_slope(output) / self.scale).square() / 3.0

    def excess_information(self, output: Tensor, x: Tensor) -> Tensor:
        """Observed minus expected information, from derivatives in the location by the chain rule."""
        lower, upper = self.ends(output, x)
        first, last = self.outer(x)
        peak_lower, peak_upper = self.location_slope(lower), self.location_slope(upper)
        bend = peak_lower.masked_fill(first, 0) + peak_upper.masked_fill(last, 0)
        observed = bend * (self.location_slope(output) / self.scale).square()
        observed = observed - self.grad_log_prob_of_complete(output, x) * (1 - 2 * sigmoid(output))
        return observed - self.fisher_information(output)

    @staticmethod
    def location_slope(output: Tensor) -> Tensor:
        """d location / d output."""
        location = sigmoid(output)
        return location * (1 - location)

    def mean(self, output: Tensor) -> Tensor:
        """E[x | z]: sum over k of P(level >= k), by the midpoint rule in closed form, accurate to 0.02 levels."""
        return mean_level(sigmoid(output), self.scale)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        u = uniform_like(output, generator).clamp(1e-7, 1 - 1e-7)
        return level_at(sigmoid(output) + self.scale * torch.logit(u))

    def quantile(self, output: Tensor, u: Tensor, column: int) -> Tensor:
        """The level whose bin contains the logistic's quantile."""
        return level_at(sigmoid(output[..., column, None]) + self.scale[column] * torch.logit(u))

    def initial_bias(self, x: Tensor) -> Tensor:
        """Log-odds of the columns' means, kept away from certainty."""
        return torch.logit(x.mean(dim=0).clamp(1e-2, 1 - 1e-2))

    def linear_in_statistics(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Approximated by normals of the same variance, which is accurate enough to choose search starts."""
        variance = (math.pi * self.scale).square() / 3.0 + LEVELS**-2 / 12.0
        return linear_in_rows(self.mean(output), variance)


def level_at(location: Tensor) -> Tensor:
    """The 8-bit level, from 0 to 1, whose bin contains a location."""
    return (location * LEVELS).floor().clamp(0, LEVELS - 1) / (LEVELS - 1)


def mean_level(location: Tensor, scale: Tensor) -> Tensor:
    """The mean level of a logistic, from 0 to 1: sum over k of P(level >= k), by the midpoint rule in closed form."""
    half = 0.5 / LEVELS
    above = softplus((location - half) / scale) - softplus((location - 1 + half) / scale)
    return scale * above * (LEVELS / (LEVELS - 1))


def linear_in_rows(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and offsets of normal log densities in x, up to a term in x alone: means (K, D), variances (D,)."""
    return mean / variance, -0.5 * (mean.square() / variance).sum(dim=-1, dtype=torch.float64)


def uniform_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(0, 1) of the same shape; drawn on the generator's device, so that a GPU gives the same draws."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of the same shape; drawn on the generator's device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
