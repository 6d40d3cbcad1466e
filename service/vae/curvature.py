"""Derivatives of log p(x | z) in z: gradient, Fisher information and Hessian, for many pairs of a row and a latent.

With the decoder's output eta(z), its Jacobian J and the likelihood's Fisher information Lambda (a diagonal),

    gradient  J^T s               s = d log p(x | eta) / d eta
    Fisher    J^T Lambda J        the Gauss-Newton part of the negative Hessian: positive semidefinite
    Hessian   -J^T Lambda' J + sum_j s_j d^2 eta_j / dz^2          Lambda' the observed information

The last sum is the curvature of the hidden layers alone, weighted by s backpropagated through the output layer: with a
linear output layer it costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from service.vae.determinism import product, pulled_back
from service.vae.network import MLP, VAE, Activated, Gated


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
    if isinstance(vae.decoder, MLP) and all(isinstance(layer, Activated | Gated) for layer in vae.decoder.hidden):
        return mlp_curvature(vae, x, z)
    return forward_mode_curvature(vae, x, z)


def forward_mode_curvature(vae: VAE, x: Any, z: Tensor) -> Curvature:
    """For any decoder that treats rows independently: forward-mode derivatives in all latents at once."""
    directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)

    def total(latents: Tensor) -> Tensor:
        return vae.likelihood.log_prob(vae.decoder(latents), x).sum()

    def along(function: Callable[[Tensor], Tensor]) -> Tensor:
        """Derivatives along each latent, shape (N, L, ...)."""

        def derivative(direction: Tensor) -> Tensor:
            tangent: Tensor = jvp(function, (z,), (direction.expand_as(z),))[1]
            return tangent

        return vmap(derivative)(directions).transpose(0, 1)

    fisher = vae.likelihood.fisher_gram(along(vae.decoder), vae.decoder(z), x)
    return Curvature(grad(total)(z).double(), fisher.double(), -along(grad(total)).double())


def mlp_curvature(vae: VAE, x: Any, z: Tensor) -> Curvature:
    """For our own decoders: all tangents in one matrix product per layer, and the exact Hessian."""
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
