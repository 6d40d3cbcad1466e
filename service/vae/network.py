"""The VAE: prior p(z), posterior q(z | x), decoder p(x | z)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from service.vae.convolution import ConvolutionalDecoder, ConvolutionalEncoder
from service.vae.layers import MLP, ActivationName
from service.vae.likelihoods import LOG_2PI, Bernoulli, DiscretizedLogistic, Gaussian, Likelihood
from service.vae.mixed import Column, Columns
from service.vae.pixels import PixelLogistic
from service.vae.prior import prior_of

NetworkName = Literal["mlp", "conv"]
LikelihoodName = Literal["bernoulli", "gaussian", "discretized_logistic", "pixel_logistic", "columns"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that is needed to rebuild the network; stored in the card.

    `hidden` lists the encoder's widths from x to z; the decoder reverses them. Without hidden layers both are linear. An
    `image` has a height, a width and channels. Networks of the kind `conv` are convolutional, with SiLU, and the widths are
    the channels of their levels (`service.vae.convolution`).
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
    image: tuple[int, ...] = field(default=(), repr=False)
    network: NetworkName = field(default="mlp", repr=False)


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


def likelihood_of(architecture: Architecture) -> Likelihood:
    """The likelihood family that the architecture names, with fresh parameters."""
    match architecture.likelihood:
        case "bernoulli":
            return Bernoulli()
        case "gaussian":
            return Gaussian(architecture.features, architecture.min_std)
        case "discretized_logistic":
            return DiscretizedLogistic(architecture.features)
        case "pixel_logistic":
            return PixelLogistic(architecture.features, architecture.image[2] if architecture.image else 1)
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
        self.encoder: MLP | ConvolutionalEncoder
        self.decoder: MLP | ConvolutionalDecoder
        if a.network == "conv":
            height, width, channels = a.image
            image, numbers = (height, width, channels), outputs // (height * width * channels)
            self.encoder = ConvolutionalEncoder(image, a.hidden, 2 * a.latents)
            self.decoder = ConvolutionalDecoder(a.latents, image, a.hidden, numbers, likelihood.is_planar)
        else:
            self.encoder = MLP(inputs, a.hidden, 2 * a.latents, a.activation)
            self.decoder = MLP(a.latents, a.hidden[::-1], outputs, a.activation)
        self.likelihood = likelihood
        self.prior = prior_of(a.prior_components, a.latents)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.weight.device

    @cached_property
    def evaluation_size(self) -> int:
        """Multiplications in one decoder evaluation, the unit of all costs; at least 1."""
        return max(1, self.decoder.products)

    def posterior(self, x: Tensor) -> DiagonalNormal:
        """q(z | x) for rows of shape (B, D): mean and std of shape (B, L)."""
        # A row far outside the training range must not make a std of 0 or infinity.
        mean, log_variance = self.encoder(self.likelihood.encoder_input(x)).chunk(2, dim=-1)
        return DiagonalNormal(mean, torch.exp(0.5 * log_variance.clamp(-20.0, 20.0)))
