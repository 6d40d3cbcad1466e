"""The VAE: prior p(z), posterior q(z | x), decoder p(x | z)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.vae.determinism import gram, in_vectors, is_alike, product
from service.vae.likelihoods import LOG_2PI, Bernoulli, DiscretizedLogistic, Gaussian, Likelihood
from service.vae.mixed import Column, Columns
from service.vae.prior import prior_of

LikelihoodName = Literal["bernoulli", "gaussian", "discretized_logistic", "columns"]
ActivationName = Literal["gated", "silu", "tanh"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that is needed to rebuild the network; stored in the card.

    `hidden` lists the encoder's widths from x to z; the decoder reverses them. Without hidden layers both are linear.
    `columns` configures the likelihood of that name. With `prior_components` = 0, p(z) is a standard normal.
    """

    features: int
    latents: int
    hidden: tuple[int, ...] = (300, 300)
    activation: ActivationName = "gated"
    likelihood: LikelihoodName = "bernoulli"
    min_std: float = 0.05
    # Not in the repr: networks without them must keep the fingerprints that they had before these fields existed.
    columns: tuple[Column, ...] = field(default=(), repr=False)
    prior_components: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True)
class DiagonalNormal:
    """A normal distribution over z with independent coordinates; `mean` and `std` have shape (..., L)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, for standard-normal noise of shape (S, ..., L): draws of the same shape."""
        return self.mean + self.std * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log density of z, shape (S, ..., L), summed over latents in float64: shape (S, ...), nats."""
        noise = (z.double() - self.mean.double()) / self.std.double()
        return (-0.5 * noise.square() - torch.log(self.std.double()) - 0.5 * LOG_2PI).sum(dim=-1)

    def select(self, rows: Any) -> DiagonalNormal:
        """The distribution for some of the rows, as a tensor's index selects them, if mean and std have shape (B, L)."""
        return DiagonalNormal(self.mean[rows], self.std[rows])


class Linear(nn.Linear):
    """A linear layer that gives a row the same bits at any position in a batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., inputs) to (..., outputs)."""
        if is_alike(self.weight):
            return F.linear(x, self.weight, self.bias)
        return product(x, self.weight) + self.bias


class Gated(nn.Module):
    """Linear to twice the width, one half gating the other: a * sigmoid(b) (Dauphin et al., 2017)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.linear(x))

    def pointwise(self, before: Tensor) -> Tensor:
        """The layer after its linear part: shape (..., 2 * outputs) to (..., outputs)."""
        value, gate = before.chunk(2, dim=-1)
        return value * in_vectors(torch.sigmoid, gate)

    def pointwise_tangents(self, before: Tensor, along: Tensor) -> Tensor:
        """Directional derivatives of `pointwise` at `before`, (N, 2 * outputs), along (N, L, 2 * outputs)."""
        value, gate = before[:, None].chunk(2, dim=-1)
        along_value, along_gate = along.chunk(2, dim=-1)
        open_ = in_vectors(torch.sigmoid, gate)
        return along_value * open_ + along_gate * (value * open_ * (1 - open_))

    def pointwise_backward(self, before: Tensor, backward: Tensor) -> Tensor:
        """`backward`, (N, outputs), backpropagated through `pointwise`: (N, 2 * outputs)."""
        value, gate = before.chunk(2, dim=-1)
        open_ = in_vectors(torch.sigmoid, gate)
        return torch.cat([backward * open_, backward * value * open_ * (1 - open_)], dim=-1)

    def pointwise_curvature(self, before: Tensor, along: Tensor, backward: Tensor) -> Tensor:
        """Second derivatives of sum(backward * pointwise) along pairs of the tangents: (N, L, L)."""
        value, gate = before.chunk(2, dim=-1)
        along_value, along_gate = along.chunk(2, dim=-1)
        open_ = in_vectors(torch.sigmoid, gate)
        slope = open_ * (1 - open_)
        mixed = gram(along_value * (backward * slope)[:, None], along_gate)
        return mixed + mixed.mT + gram(along_gate * (backward * value * slope * (1 - 2 * open_))[:, None], along_gate)


class Activated(nn.Module):
    """Linear, then a pointwise function: silu or tanh."""

    def __init__(self, inputs: int, outputs: int, activation: Literal["silu", "tanh"]) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.linear(x))

    def pointwise(self, before: Tensor) -> Tensor:
        return in_vectors(F.silu, before) if self.activation == "silu" else torch.tanh(before)

    def pointwise_tangents(self, before: Tensor, along: Tensor) -> Tensor:
        """Directional derivatives of `pointwise` at `before`, (N, outputs), along (N, L, outputs)."""
        return along * self.derivatives(before)[0][:, None]

    def pointwise_backward(self, before: Tensor, backward: Tensor) -> Tensor:
        """`backward`, (N, outputs), backpropagated through `pointwise`."""
        return backward * self.derivatives(before)[0]

    def pointwise_curvature(self, before: Tensor, along: Tensor, backward: Tensor) -> Tensor:
        """Second derivatives of sum(backward * pointwise) along pairs of the tangents: (N, L, L)."""
        return gram(along * (backward * self.derivatives(before)[1])[:, None], along)

    def derivatives(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """The first two derivatives of the activation."""
        if self.activation == "tanh":
            value = torch.tanh(before)
            slope = 1 - value.square()
            return slope, -2 * value * slope
        gate = in_vectors(torch.sigmoid, before)
        slope = gate * (1 - gate)
        return gate + before * slope, slope * (2 + before * (1 - 2 * gate))


class MLP(nn.Module):
    """Hidden layers, then a linear output layer, which is kept apart for the estimator's fast path."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int, activation: ActivationName) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        self.hidden = nn.Sequential(*(layer(a, b, activation) for a, b in itertools.pairwise(widths)))
        self.output = Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., inputs) to (..., outputs)."""
        output: Tensor = self.output(self.hidden(x))
        return output


def layer(inputs: int, outputs: int, activation: ActivationName) -> nn.Module:
    if activation == "gated":
        return Gated(inputs, outputs)
    return Activated(inputs, outputs, activation)


def likelihood_of(architecture: Architecture) -> Likelihood:
    """The likelihood family that the architecture names, with fresh parameters."""
    match architecture.likelihood:
        case "bernoulli":
            return Bernoulli()
        case "gaussian":
            return Gaussian(architecture.features, architecture.min_std)
        case "discretized_logistic":
            return DiscretizedLogistic(architecture.features)
        case "columns":
            return Columns(architecture.columns)


class VAE(nn.Module):
    """A variational autoencoder (Kingma and Welling, 2014).

    x is in the network's units (`Likelihood`), shape (B, D); z has shape (..., L).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        likelihood = likelihood_of(a)
        inputs, outputs = likelihood.sizes(a.features)
        self.encoder = MLP(inputs, a.hidden, 2 * a.latents, a.activation)
        self.decoder = MLP(a.latents, a.hidden[::-1], outputs, a.activation)
        self.likelihood = likelihood
        self.prior = prior_of(a.prior_components, a.latents)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.output.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.output.weight.device

    @cached_property
    def evaluation_size(self) -> int:
        """Multiplications in one decoder evaluation, the unit of all costs; at least 1."""
        return max(1, sum(p.numel() for name, p in self.decoder.named_parameters() if name.endswith("weight")))

    def posterior(self, x: Tensor) -> DiagonalNormal:
        """q(z | x) for rows of shape (B, D): mean and std of shape (B, L)."""
        # A row far outside the training range must not make a std of 0 or infinity.
        mean, log_variance = self.encoder(self.likelihood.encoder_input(x)).chunk(2, dim=-1)
        return DiagonalNormal(mean, torch.exp(0.5 * log_variance.clamp(-20.0, 20.0)))
