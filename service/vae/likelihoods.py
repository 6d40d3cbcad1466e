"""What the decoder's output means: families of p(x | z), factorised over columns.

Each family maps the decoder's output, shape (..., D), to a distribution of x in the network's own units: 0 or 1 for
black and white, [0, 1] for grey levels, standardised columns for tables.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.vae.alike import in_vectors

LOG_2PI = math.log(2.0 * math.pi)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return in_vectors(F.softplus, x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return in_vectors(torch.sigmoid, x)


class Likelihood(nn.Module, ABC):
    """A family of p(x | z); columns are independent given z."""

    @abstractmethod
    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x_j | z) for each column, nats: shape (..., D) by broadcasting `output` with `x`."""

    @abstractmethod
    def score(self, output: Tensor, x: Tensor) -> Tensor:
        """d log p(x_j | z) / d output_j, shape (..., D)."""

    @abstractmethod
    def fisher_information(self, output: Tensor) -> Tensor:
        """The expected square of the score under p(x | z), shape (..., D): never negative."""

    def excess_information(self, output: Tensor, x: Tensor) -> Tensor | None:
        """-d^2 log p(x_j | z) / d output_j^2 less the Fisher information, shape (..., D), or None where it is 0.

        It is 0 where the output is the natural parameter or a normal's mean.
        """
        return None

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[x | z], shape (..., D)."""

    @abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x given z, shape (..., D)."""

    @abstractmethod
    def initial_bias(self, x: Tensor) -> Tensor:
        """The output, shape (D,), whose mean is that of the rows `x`, shape (N, D): where a fit starts."""


class Bernoulli(Likelihood):
    """Black-and-white columns: x is 0 or 1, the output its log-odds."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) = x l - softplus(l)."""
        return x * output - softplus(output)

    def score(self, output: Tensor, x: Tensor) -> Tensor:
        """x less the probability of 1."""
        return x - sigmoid(output)

    def fisher_information(self, output: Tensor) -> Tensor:
        """The variance of x."""
        probability = sigmoid(output)
        return probability * (1 - probability)

    def mean(self, output: Tensor) -> Tensor:
        """The probability of 1."""
        return sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """0 or 1."""
        return (uniform_like(output, generator) < sigmoid(output)).to(output.dtype)

    def initial_bias(self, x: Tensor) -> Tensor:
        """Log-odds of the columns' means, kept away from certainty."""
        return torch.logit(x.mean(dim=0).clamp(1e-3, 1 - 1e-3))


class Gaussian(Likelihood):
    """Continuous columns: the output is the mean, with one learned standard deviation for each column.

    std = sqrt(min_std^2 + exp(2 log_std)). The floor keeps a column that can be copied exactly from an infinite density.
    """

    def __init__(self, features: int, min_std: float = 0.05) -> None:
        super().__init__()
        self.min_std = min_std
        self.log_std = nn.Parameter(torch.full((features,), -0.5))

    @property
    def std(self) -> Tensor:
        """Standard deviations, shape (D,)."""
        return (self.min_std**2 + (2.0 * self.log_std).exp()).sqrt()

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Log N(x; output, std^2)."""
        std = self.std
        return -0.5 * ((x - output) / std).square() - std.log() - 0.5 * LOG_2PI

    def score(self, output: Tensor, x: Tensor) -> Tensor:
        """The residual over the variance."""
        return (x - output) / self.std.square()

    def fisher_information(self, output: Tensor) -> Tensor:
        """1 / variance."""
        return self.std.pow(-2).expand_as(output)

    def mean(self, output: Tensor) -> Tensor:
        """The output itself."""
        return output

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Output + std * noise."""
        return output + self.std * normal_like(output, generator)

    def initial_bias(self, x: Tensor) -> Tensor:
        """The columns' means."""
        return x.mean(dim=0)


class DiscretizedLogistic(Likelihood):
    """8-bit grey columns: a logistic density integrated over each of 256 bins (Kingma et al., 2016, appendix).

    x = level / 255 with level in 0..255. Bin k is [k / 256, (k + 1) / 256]; the first and the last reach to infinity, so
    the 256 masses sum to one. The output's sigmoid is the location; each column has one learned scale.
    """

    LEVELS = 256
    # Below half a bin the mass sits in one bin whatever the scale, and `mean` would no longer be exact to 0.02 of a level.
    MIN_LOG_SCALE = math.log(0.5 / 256)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((features,), -2.0))

    @property
    def scale(self) -> Tensor:
        """Scales of the logistic, shape (D,)."""
        return self.log_scale.clamp(min=self.MIN_LOG_SCALE).exp()

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log of the mass of x's bin, without cancellation far from the location.

        log(sigmoid(b) - sigmoid(a)) = log(1 - exp(a - b)) - softplus(a) - softplus(-b), with b - a = width / scale.
        """
        lower, upper = self.ends(output, x)
        inner = torch.log(-torch.expm1(-1.0 / (self.LEVELS * self.scale))) - softplus(lower) - softplus(-upper)
        first, last = self.outer(x)
        return torch.where(first, -softplus(-upper), torch.where(last, -softplus(lower), inner))

    def ends(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of x's bin, in scales from the location."""
        lower = (x * ((self.LEVELS - 1) / self.LEVELS) - sigmoid(output)) / self.scale
        return lower, lower + 1.0 / (self.LEVELS * self.scale)

    def outer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where x is in the first bin, and where in the last."""
        half = 0.5 / (self.LEVELS - 1)
        return x <= half, x >= 1 - half

    def score(self, output: Tensor, x: Tensor) -> Tensor:
        """The derivative in the location, by the chain rule."""
        lower, upper = self.ends(output, x)
        first, last = self.outer(x)
        from_lower, from_upper = sigmoid(lower).masked_fill(first, 0), sigmoid(-upper).masked_fill(last, 0)
        return (from_lower - from_upper) / self.scale * self.location_slope(output)

    def fisher_information(self, output: Tensor) -> Tensor:
        """That of a logistic location, 1 / (3 scale^2), by the chain rule.

        The bins and the censoring at both ends take a little of it away, which only makes a proposal narrower than it
        need be where a scale is as small as a bin.
        """
        return (self.location_slope(output) / self.scale).square() / 3.0

    def excess_information(self, output: Tensor, x: Tensor) -> Tensor:
        """The second derivative in the location, by the chain rule, less its expectation."""
        lower, upper = self.ends(output, x)
        first, last = self.outer(x)
        peak_lower, peak_upper = self.location_slope(lower), self.location_slope(upper)
        bend = peak_lower.masked_fill(first, 0) + peak_upper.masked_fill(last, 0)
        observed = bend * (self.location_slope(output) / self.scale).square()
        observed = observed - self.score(output, x) * (1 - 2 * sigmoid(output))
        return observed - self.fisher_information(output)

    @staticmethod
    def location_slope(output: Tensor) -> Tensor:
        """d location / d output."""
        location = sigmoid(output)
        return location * (1 - location)

    def mean(self, output: Tensor) -> Tensor:
        """E[x | z]: sum over k of P(level >= k), by the midpoint rule in closed form, to 0.02 of a level."""
        scale, location = self.scale, sigmoid(output)
        half = 0.5 / self.LEVELS
        expected = scale * (softplus((location - half) / scale) - softplus((location - 1 + half) / scale))
        return expected * (self.LEVELS / (self.LEVELS - 1))

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A grey level, in [0, 1]."""
        u = uniform_like(output, generator).clamp(1e-7, 1 - 1e-7)
        draw = sigmoid(output) + self.scale * torch.logit(u)
        return (draw * self.LEVELS).floor().clamp(0, self.LEVELS - 1) / (self.LEVELS - 1)

    def initial_bias(self, x: Tensor) -> Tensor:
        """Log-odds of the columns' means, kept away from certainty."""
        return torch.logit(x.mean(dim=0).clamp(1e-2, 1 - 1e-2))


def uniform_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(0, 1) of the same shape; drawn where the generator lives, so that a GPU gives the same draws."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of the same shape; drawn where the generator lives."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
