"""Derivatives of log p(x | z) in z: gradient, Fisher information and Hessian, for many pairs of a row and a latent.

With the decoder's output eta(z), its Jacobian J and the likelihood's Fisher information Lambda (a diagonal),

    gradient  J^T s               s = d log p(x | eta) / d eta
    Fisher    J^T Lambda J        the Gauss-Newton part of the negative Hessian: positive semidefinite
    Hessian   -J^T Lambda' J + sum_j s_j d^2 eta_j / dz^2          Lambda' the observed information

The last sum is the curvature of the hidden layers alone, weighted by s backpropagated through the output layer: with a
linear output layer it costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from service.vae.convolution import ConvolutionalDecoder
from service.vae.determinism import ALIGNED, gram, product, pulled_back
from service.vae.layers import MLP, Activated, Gated, silu_derivatives
from service.vae.network import VAE

MOST_NUMBERS = 2**22  # in the tangents of convolutions at a time: 16 MiB


@dataclass(frozen=True, slots=True)
class Curvature:
    """Derivatives of log p(x_n | z_n) in z_n for N pairs; float64.

    `gradient` has shape (N, L), `fisher` (N, L, L); `hessian` is the negative Hessian, (N, L, L).
    """

    gradient: Tensor
    fisher: Tensor
    hessian: Tensor


def curvature(vae: VAE, x: Any, z: Tensor) -> Curvature:
    """Derivatives of log p(x_n | z_n) for N rows x, as the likelihood reads them, each with its own latent z, (N, L)."""
    if isinstance(vae.decoder, MLP):
        return mlp_curvature(vae, x, z)
    parts = [convolutional_curvature(vae, x[some], z[some]) for some in blocks_of(vae.decoder, len(z))]
    return Curvature(*(torch.cat([getattr(one, name) for one in parts]) for name in Curvature.__slots__))


def mlp_curvature(vae: VAE, x: Any, z: Tensor) -> Curvature:
    """For our own decoders: all tangents in one matrix product per layer, and the exact Hessian."""
    assert isinstance(vae.decoder, MLP)
    layers: list[tuple[Activated | Gated, Tensor, Tensor]] = []  # each with its pre-activation and its tangents
    h: Tensor = z
    tangents: Tensor | None = None  # of h in z: the identity at first, then (N, L, H)
    for layer in vae.decoder.hidden:
        assert isinstance(layer, Activated | Gated)
        before = layer.linear(h)
        along = through(layer.linear, tangents, len(z))
        layers.append((layer, before, along))
        h, tangents = layer.pointwise(before), layer.pointwise_tangents(before, along)
    output = vae.decoder.output(h)
    backward = pulled_back(vae.likelihood.grad_log_prob(output, x), vae.decoder.output.weight)  # (N, H)
    gradient = backward if tangents is None else (tangents * backward[:, None]).sum(dim=-1)
    output_tangents = through(vae.decoder.output, tangents, len(z))  # (N, L, D)
    fisher = vae.likelihood.fisher_gram(output_tangents, output, x)
    hessian, excess = fisher, vae.likelihood.excess_gram(output_tangents, output, x)
    if excess is not None:
        hessian = hessian + excess
    for depth, (layer, before, along) in reversed(list(enumerate(layers))):
        hessian = hessian - layer.pointwise_curvature(before, along, backward)
        if depth:
            backward = pulled_back(layer.pointwise_backward(before, backward), layer.linear.weight)
    return Curvature(gradient.double(), fisher.double(), hessian.double())


def through(linear: nn.Linear, tangents: Tensor | None, pairs: int) -> Tensor:
    """Tangents of N pairs, shape (N, L, H), or the identity, pushed through a linear layer in one product: (N, L, H')."""
    if tangents is None:
        return linear.weight.mT.expand(pairs, -1, -1).contiguous()
    return product(tangents.flatten(0, 1), linear.weight).view(*tangents.shape[:2], -1)


def blocks_of(decoder: ConvolutionalDecoder, pairs: int) -> list[slice]:
    """Parts of N pairs whose tangents take no more than MOST_NUMBERS, as far as few pairs can."""
    one = decoder.input.weight.shape[1] * decoder.largest
    length = max(1, MOST_NUMBERS // (one * ALIGNED)) * ALIGNED
    return [slice(start, start + length) for start in range(0, pairs, length)]


def convolutional_curvature(vae: VAE, x: Any, z: Tensor) -> Curvature:
    """As for an MLP: tangents of all latents forward, and the hidden activations' curvature from one backward pass."""
    seen: list[tuple[Tensor, Tensor]] = []
    assert isinstance(vae.decoder, ConvolutionalDecoder)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        output: Tensor = vae.decoder(leaf, seen)
        slopes = vae.likelihood.grad_log_prob(output.detach(), x)
        gradient, *backward = torch.autograd.grad(output, [leaf, *(after for _, after in seen)], slopes)
    output = output.detach()
    bends: list[Tensor] = []

    def through(along: Tensor) -> Tensor:
        before, upstream = seen[len(bends)][0].detach().flatten(1), backward[len(bends)].flatten(1)
        first, second = silu_derivatives(before)
        by_pair = along.view(len(z), -1, before.shape[1])
        bends.append(gram(by_pair * (upstream * second)[:, None], by_pair))
        return (by_pair * first[:, None]).view(along.shape)

    tangents = vae.decoder.tangents(len(z), through)
    fisher = vae.likelihood.fisher_gram(tangents, output, x)
    excess = vae.likelihood.excess_gram(tangents, output, x)
    hessian = fisher if excess is None else fisher + excess
    return Curvature(gradient.double(), fisher.double(), (hessian - sum(bends)).double())
