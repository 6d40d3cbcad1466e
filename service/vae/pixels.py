"""The likelihood of an image's pixels: 8-bit levels whose scale depends on z, and whose channels know each other.

    location_c = mu_c + sum_{c' < c} a_cc' (x_c' - mu_c')       red is followed by green, green by blue
    p(x_c | z, x_c') = the logistic's mass in the bin of x_c    (Kingma et al., 2016, appendix; Salimans et al., 2017)

mu and the scale's logarithm are the decoder's outputs for each pixel and channel; a is learnt. What changes a pixel, such
as light, changes its channels together: with independent channels all of it would count three times.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from service.vae.determinism import gram
from service.vae.likelihoods import LEVELS, Likelihood, level_at, mean_level, sigmoid, softplus, uniform_like
from service.vae.mixed import LOG_SCALE_INFORMATION, location_and_log_scale, slope

HALF_BIN = 0.5 / LEVELS
MIN_SCALE = 0.25 / LEVELS  # of a logistic: nearly all of its mass may be in one bin
MAX_LOG_SCALE = 1.0
PER_OUTPUT = 0.5  # the location's change for a change of the output by 1
COUPLED = 0.8  # of a channel and the one before it, before training
MOST_WIDTH = 60.0  # of a bin, in scales, inside exponentials


@dataclass(frozen=True, slots=True)
class Pixels:
    """Images, one channel of all pixels after the other: shape (..., C * H * W) each.

    `level` is the middle of each bin, from 0 to 1; `first` and `last` mark the bins without a lower and an upper end, and
    `present` is 1 for pixels of which all channels are known.
    """

    level: Tensor
    first: Tensor
    last: Tensor
    present: Tensor

    def __getitem__(self, rows: Any) -> Pixels:
        """Some of the images, as a tensor's index selects them."""
        return Pixels(*(getattr(self, entry.name)[rows] for entry in fields(self)))


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins relative to the location, in units of the scale: ends and width; then the scale.

    `share` is that of the scale's square above its floor: d log scale / d output.
    """

    lower: Tensor
    upper: Tensor
    width: Tensor
    scale: Tensor
    share: Tensor


class PixelLogistic(Likelihood):
    """8-bit pixels of one or three channels; the output holds all locations, then the logs of all scales.

    A pixel that lacks a channel counts as missing. `mean` and `quantile` are those of each channel given z alone, and take
    a sum of logistics for a logistic of the same variance.
    """

    is_planar = True

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.features, self.together = features, channels
        coupling = torch.zeros(channels, channels)
        for later in range(1, channels):
            coupling[later, later - 1] = COUPLED
        # a_cc'; only what is below the diagonal counts
        self.coupling = nn.Parameter(coupling, requires_grad=channels > 1)

    def sizes(self, features: int) -> tuple[int, int]:
        return features, 2 * features

    # Rows and outputs in parts

    def read(self, x: Tensor | Pixels) -> Pixels:
        """Images as rows, shape (..., D), a pixel's channels together, unless they are read already."""
        if isinstance(x, Pixels):
            return x
        missing = x.isnan()
        gone = missing.unflatten(-1, (-1, self.together)).any(dim=-1).repeat_interleave(self.together, dim=-1)
        filled = self.planar(x.masked_fill(missing, 0.0).clamp(0.0, 1.0))
        first, last = filled <= HALF_BIN, filled >= 1.0 - HALF_BIN
        level = filled * ((LEVELS - 1) / LEVELS) + HALF_BIN
        return Pixels(level, first, last, (~self.planar(gone)).to(x.dtype))

    def planar(self, x: Tensor) -> Tensor:
        """Rows with a pixel's channels together to rows of one channel after the other, shape (..., D)."""
        return x.unflatten(-1, (-1, self.together)).mT.flatten(-2)

    def interleaved(self, x: Tensor) -> Tensor:
        """The inverse of `planar`."""
        return x.unflatten(-1, (self.together, -1)).mT.flatten(-2)

    def locations(self, output: Tensor) -> Tensor:
        """mu, shape (..., D)."""
        return 0.5 + PER_OUTPUT * output[..., : self.features]

    def scales(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Scales, and d log scale / d output: shape (..., D) both."""
        log_scale = output[..., self.features :]
        free = torch.exp(2.0 * log_scale.clamp(max=MAX_LOG_SCALE))
        square = free + MIN_SCALE**2
        return square.sqrt(), (free / square).masked_fill(log_scale > MAX_LOG_SCALE, 0.0)

    def uncoupled(self, x: Tensor, transposed: bool = False) -> Tensor:
        """Each channel less what the ones before it tell, (I - A) x, or (I - A)^T x, for x of shape (..., D)."""
        if self.together == 1:
            return x
        channels, matrix = list(x.unflatten(-1, (self.together, -1)).unbind(-2)), self.coupling.to(x.dtype)
        found = []
        for at, channel in enumerate(channels):
            others = range(at + 1, self.together) if transposed else range(at)
            for other in others:
                weight = matrix[other, at] if transposed else matrix[at, other]
                channel = channel - weight * channels[other]  # noqa: PLW2901
            found.append(channel)
        return torch.cat(found, dim=-1)

    def marginals(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of each channel given z alone, as of a logistic, shape (..., D) both.

        Channels move with what the ones before them are, which ends at black and at white: mass beyond moves nothing.
        """
        scale, _ = self.scales(output)
        if self.together == 1:
            return self.locations(output), scale
        matrix = self.coupling.to(scale.dtype)
        identity = torch.eye(self.together, dtype=scale.dtype, device=scale.device)
        # Of each channel's own noise into the later ones.
        through = torch.linalg.inv(identity - matrix.tril(-1)).square()
        mus, squares = (
            part.unflatten(-1, (self.together, -1)).unbind(-2) for part in (self.locations(output), scale**2)
        )
        locations: list[Tensor] = []
        scales: list[Tensor] = []
        moved: list[Tensor] = []  # how far each channel's mean is from its mu
        free: list[Tensor] = []  # squares of the scales, as far as the mass is inside
        for at, (mu, square) in enumerate(zip(mus, squares, strict=True)):
            location, spread = mu, square
            for before in range(at):
                location = location + matrix[at, before] * moved[before]
                spread = spread + through[at, before] * free[before]
            locations.append(location)
            scales.append(spread.sqrt())
            inside = sigmoid(location / scales[-1]) - sigmoid((location - 1.0) / scales[-1])
            moved.append(clipped_mean(location, scales[-1]) - mu)
            free.append(square * inside)
        return torch.cat(locations, dim=-1), torch.cat(scales, dim=-1)

    def bins(self, output: Tensor, pixels: Pixels) -> Bins:
        scale, share = self.scales(output)
        middle = self.uncoupled(pixels.level - self.locations(output))
        inverse = 1.0 / scale
        return Bins(
            (middle - HALF_BIN) * inverse, (middle + HALF_BIN) * inverse, 2.0 * HALF_BIN * inverse, scale, share
        )

    # log p(x | z) and its derivatives

    def log_prob(self, output: Tensor, x: Tensor | Pixels) -> Tensor:
        """That of each channel given z and the channels before it: shape (..., D), a pixel's channels together."""
        return self.interleaved(self.planar_log_prob(output, self.read(x)))

    def total(self, output: Tensor, x: Tensor | Pixels) -> Tensor:
        return self.planar_log_prob(output, self.read(x)).sum(dim=-1, dtype=torch.float64)

    def planar_log_prob(self, output: Tensor, pixels: Pixels) -> Tensor:
        """log of the bins' masses, without cancellation far from the location.

        log(sigmoid(v) - sigmoid(u)) = log(1 - exp(u - v)) - softplus(u) - softplus(-v)
        """
        bins = self.bins(output, pixels)
        below, above = softplus(bins.lower), softplus(-bins.upper)
        inner = torch.log(-torch.expm1(-bins.width)) - below - above
        return pixels.present * torch.where(pixels.first, -above, torch.where(pixels.last, -below, inner))

    def grad_log_prob(self, output: Tensor, x: Tensor | Pixels) -> Tensor:
        pixels = self.read(x)
        bins = self.bins(output, pixels)
        by_location, by_log_scale = self.scores(bins, pixels)
        by_mu = self.uncoupled(by_location * pixels.present, transposed=True)
        return torch.cat([PER_OUTPUT * by_mu, by_log_scale * bins.share * pixels.present], dim=-1)

    def scores(self, bins: Bins, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Derivatives of the log masses in the locations and in the logs of the scales."""
        from_lower, from_upper = self.from_ends(bins, pixels)
        by_location = (from_lower - from_upper) / bins.scale
        narrowing = narrowed(bins.width).masked_fill(pixels.first | pixels.last, 0.0)
        return by_location, from_lower * bins.lower - from_upper * bins.upper - narrowing

    @staticmethod
    def from_ends(bins: Bins, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """The masses beyond the bins' other ends: sigmoid(lower) and sigmoid(-upper), 0 where there is no such end."""
        return sigmoid(bins.lower).masked_fill(pixels.first, 0.0), sigmoid(-bins.upper).masked_fill(pixels.last, 0.0)

    def fisher_gram(self, tangents: Tensor, output: Tensor, x: Tensor | Pixels) -> Tensor:
        """Observed information in the locations, which is never negative, and expected information in the scales."""
        pixels = self.read(x)
        bins = self.bins(output, pixels)
        bend, by_log_scale = self.information(bins, pixels)
        weights = torch.cat([bend / bins.scale.square(), by_log_scale], dim=-1)
        scaled = self.in_locations(tangents) * weights.sqrt()[:, None]
        return gram(scaled, scaled)

    def information(self, bins: Bins, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Observed information in the locations, in units of the scale, and expected information in the scales' outputs."""
        bend = slope(bins.lower).masked_fill(pixels.first, 0.0) + slope(bins.upper).masked_fill(pixels.last, 0.0)
        bend = bend * pixels.present
        return bend, LOG_SCALE_INFORMATION * (3.0 * bend).clamp(max=1.0) * bins.share.square()

    def in_locations(self, tangents: Tensor) -> Tensor:
        """Tangents of the output, shape (N, L, P), as those of the locations and of the outputs for the scales."""
        by_location = PER_OUTPUT * self.uncoupled(tangents[..., : self.features])
        return torch.cat([by_location, tangents[..., self.features :]], dim=-1)

    def excess_gram(self, tangents: Tensor, output: Tensor, x: Tensor | Pixels) -> Tensor:
        """What the expected information leaves out of the scales' second derivatives, and those of scale and location."""
        pixels = self.read(x)
        bins = self.bins(output, pixels)
        from_lower, from_upper = self.from_ends(bins, pixels)
        lower_bend, upper_bend = from_lower * (1.0 - from_lower), from_upper * (1.0 - from_upper)
        mixed = from_lower - from_upper + bins.lower * lower_bend + bins.upper * upper_bend
        mixed = mixed / bins.scale * bins.share * pixels.present
        narrowing = narrowed(bins.width).masked_fill(pixels.first | pixels.last, 0.0)
        by_log_scale = from_lower * bins.lower - from_upper * bins.upper
        twice = by_log_scale + bins.lower.square() * lower_bend + bins.upper.square() * upper_bend
        twice = twice - narrowing * (1.0 - narrowing - bins.width)  # minus the second derivative in the log scale
        observed = twice * bins.share.square() - (by_log_scale - narrowing) * 2.0 * bins.share * (1.0 - bins.share)
        curved = observed * pixels.present - self.information(bins, pixels)[1]
        apart = self.in_locations(tangents)
        locations, log_scales = apart[..., : self.features], apart[..., self.features :]
        crossed = gram(locations * mixed[:, None], log_scales)
        return crossed + crossed.mT + gram(log_scales * curved[:, None], log_scales)

    # Draws, means and quantiles

    def mean(self, output: Tensor) -> Tensor:
        """E[x | z], accurate to 0.02 levels for one channel."""
        return self.interleaved(mean_level(*self.marginals(output)))

    def mean_of(self, output: Tensor, column: int) -> Tensor:
        pixel, channel = divmod(column, self.together)
        places = torch.arange(self.together, device=output.device) * (self.features // self.together) + pixel
        own = output[..., torch.cat([places, places + self.features])]  # of one pixel, as of an image of one
        return PixelLogistic.mean(self.of_one(), own)[..., channel]

    def of_one(self) -> PixelLogistic:
        """The likelihood of an image of one pixel."""
        one = copy.copy(self)
        one.features = self.together
        return one

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        scale, _ = self.scales(output)
        noise = scale * torch.logit(uniform_like(scale, generator).clamp(1e-7, 1.0 - 1e-7))
        parts = (part.unflatten(-1, (self.together, -1)).unbind(-2) for part in (self.locations(output), noise))
        drawn: list[Tensor] = []
        apart: list[Tensor] = []  # each channel less its mu
        for at, (mu, own) in enumerate(zip(*parts, strict=True)):
            location = mu + sum(self.coupling[at, k] * apart[k] for k in range(at))
            drawn.append(level_at(location + own))
            apart.append(drawn[-1] * ((LEVELS - 1) / LEVELS) + HALF_BIN - mu)
        return self.interleaved(torch.cat(drawn, dim=-1))

    def quantile(self, output: Tensor, u: Tensor, column: int) -> Tensor:
        """Quantiles of one column's x given z, at probabilities u, shape (Q,): (..., Q)."""
        pixel, channel = divmod(column, self.together)
        at = channel * (self.features // self.together) + pixel
        location, scale = (part[..., at, None] for part in self.marginals(output))
        return level_at(location + scale * torch.logit(u))

    def initial_bias(self, x: Tensor) -> Tensor:
        """The pixels' means, and scales for their standard deviations."""
        pixels = self.read(x)
        mean, log_scale = location_and_log_scale(pixels.level, pixels.present, math.sqrt(3.0) / math.pi)
        return torch.cat([(mean - 0.5) / PER_OUTPUT, log_scale])

    # Rows as the encoder and the search starts see them

    def encoder_input(self, x: Tensor) -> Tensor:
        """The image itself, with mid-grey for missing pixels."""
        return x.clamp(0.0, 1.0).nan_to_num(0.5)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """Channels less what the ones before them tell, and their squares, shape (B, 3 * D)."""
        pixels = self.read(x)
        own = self.uncoupled(pixels.level) * pixels.present
        return torch.cat([own, own.square(), pixels.present], dim=-1)

    def linear_in_statistics(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Approximated by normals of the same variance, which is accurate enough to choose search starts."""
        mean, variance = (
            self.uncoupled(self.locations(output)),
            (math.pi * self.scales(output)[0]).square() / 3.0 + HALF_BIN**2 / 3.0,
        )
        slopes = torch.cat([mean / variance, -0.5 / variance, -0.5 * (mean.square() / variance + variance.log())], -1)
        return slopes, slopes.new_zeros(len(slopes), dtype=torch.float64)


def narrowed(width: Tensor) -> Tensor:
    """w / (exp(w) - 1)."""
    bounded = width.clamp(1e-6, MOST_WIDTH)
    return bounded / torch.expm1(bounded)


def clipped_mean(location: Tensor, scale: Tensor) -> Tensor:
    """The mean of a logistic, of which what is below 0 counts as 0, and what is above 1 as 1."""
    return scale * (softplus(location / scale) - softplus((location - 1.0) / scale))
