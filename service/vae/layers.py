"""Layers that treat rows independently, with their derivatives: what multilayer perceptrons are made of."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.vae.determinism import gram, in_vectors, is_alike, product

ActivationName = Literal["gated", "silu", "tanh"]


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
        return silu_derivatives(before)


def silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first two derivatives of SiLU."""
    gate = in_vectors(torch.sigmoid, x)
    slope = gate * (1 - gate)
    return gate + x * slope, slope * (2 + x * (1 - 2 * gate))


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

    def start_at(self, output: Tensor) -> None:
        """Make an output, shape (P,), the middle of those before training."""
        self.output.bias.copy_(output)

    @property
    def weight(self) -> Tensor:
        """Some weight: it tells the dtype and the device of all."""
        return self.output.weight

    @property
    def products(self) -> int:
        """Multiplications in an evaluation."""
        return sum(weight.numel() for name, weight in self.named_parameters() if name.endswith("weight"))


def layer(inputs: int, outputs: int, activation: ActivationName) -> nn.Module:
    if activation == "gated":
        return Gated(inputs, outputs)
    return Activated(inputs, outputs, activation)
