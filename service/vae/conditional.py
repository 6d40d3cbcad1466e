"""log p(x | z) for fixed rows and many z: the innermost loop of the estimator.

`conditional(vae, x)` computes once what depends on x alone; its `log_prob` is then called with one block of z after
another. The plain path works for every network. The Bernoulli path gives the same numbers in about half the time.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor

from service.vae.determinism import UNROLLED, in_vectors, is_alike, product
from service.vae.likelihoods import Bernoulli
from service.vae.mixed import Cells, Columns
from service.vae.network import MLP, VAE

MAX_HALVINGS = 6  # a product of 2 ** 6 factors below 2 stays far inside float32


class Conditional(Protocol):
    """p(x | z) with x fixed."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x_b | z_sb), summed over columns: z of shape (S, B, L) to (S, B), float64, nats."""
        ...

    def select(self, rows: slice | Tensor) -> Conditional:
        """p(x | z) for a subset of the rows."""
        ...


def conditional(vae: VAE, x: Tensor) -> Conditional:
    """The fastest exact way to evaluate log p(x | z) for rows x, shape (B, D), with or without missing cells."""
    if isinstance(vae.likelihood, Bernoulli) and vae.dtype == torch.float32 and not x.isnan().any():
        return BernoulliConditional(vae, x)
    if isinstance(vae.likelihood, Columns):
        return ColumnsConditional(vae.decoder, vae.likelihood, vae.likelihood.read(x))
    return PlainConditional(vae, x)


class PlainConditional:
    """Any decoder and likelihood, column by column."""

    def __init__(self, vae: VAE, x: Tensor) -> None:
        self.vae = vae
        self.x = x

    def log_prob(self, z: Tensor) -> Tensor:
        return self.vae.likelihood.log_prob(self.vae.decoder(z), self.x).sum(dim=-1, dtype=torch.float64)

    def select(self, rows: slice | Tensor) -> PlainConditional:
        return PlainConditional(self.vae, self.x[rows])


class ColumnsConditional:
    """Columns of several families; splits the rows by family only once."""

    def __init__(self, decoder: MLP, likelihood: Columns, cells: Cells) -> None:
        self.decoder, self.likelihood, self.cells = decoder, likelihood, cells

    def log_prob(self, z: Tensor) -> Tensor:
        return self.likelihood.log_prob_of(self.decoder(z), self.cells).sum(dim=-1, dtype=torch.float64)

    def select(self, rows: slice | Tensor) -> ColumnsConditional:
        return ColumnsConditional(self.decoder, self.likelihood, self.cells.select(rows))


class BernoulliConditional:
    """Bernoulli columns behind a linear output layer l = W h + c, in float32 with few passes over l.

    x l - softplus(l) = (x - 1/2) l - |l| / 2 - log(1 + exp(-|l|)), so that over the columns

        log p(x | z) = ((x - 1/2) W) . h + (x - 1/2) . c - sum |l| / 2 - sum log(1 + exp(-|l|)).

    The first product touches H numbers instead of D. The factors 1 + exp(-|l|) lie in [1, 2]: up to 64 of them are
    multiplied before one logarithm is taken.
    """

    def __init__(self, vae: VAE, x: Tensor) -> None:
        self.hidden = vae.decoder.hidden
        self.weight, self.bias = vae.decoder.output.weight, vae.decoder.output.bias
        centred = x - 0.5  # (B, D)
        # The two sums nearly cancel: float32 would cost a thousandth of a nat.
        self.slope = centred.double() @ self.weight.double()  # (B, H)
        self.offset = centred.double() @ self.bias.double()  # (B,)
        self.scratch_by_rows: dict[int, Tensor] = {}

    def log_prob(self, z: Tensor) -> Tensor:
        samples, rows, latents = z.shape
        h = self.hidden(z.reshape(samples * rows, latents))  # (S * B, H)
        linear = (h.view(samples, rows, -1).double() * self.slope).sum(dim=-1)  # (S, B)
        even = self.even_part(h).view(samples, rows)
        return (linear + self.offset - even).clamp(max=0.0)  # a mass is at most 1; huge logits can round above it

    def select(self, rows: slice | Tensor) -> BernoulliConditional:
        """p(x | z) for a subset of the rows; shares the scratch block."""
        selected = copy.copy(self)
        selected.slope, selected.offset = self.slope[rows], self.offset[rows]
        return selected

    def even_part(self, h: Tensor) -> Tensor:
        """Sum over columns of |l| / 2 + log(1 + exp(-|l|)), for h of shape (N, H): shape (N,), float64."""
        logits = self.logits(h)
        negative = logits.copysign_(-1.0)  # -|l|, in one pass
        half_abs = -0.5 * negative.sum(dim=-1, dtype=torch.float64)
        excess = negative.exp_() if negative.numel() % UNROLLED == 0 else in_vectors(torch.exp, negative)
        return half_abs + log_product(excess)

    def logits(self, h: Tensor) -> Tensor:
        """The decoder's output for h, shape (N, H): shape (N, D), in the scratch block."""
        scratch = self.scratch(len(h))
        if not is_alike(self.weight):
            return torch.add(product(h, self.weight), self.bias, out=scratch)
        return torch.addmm(self.bias, h, self.weight.mT, out=scratch)

    def scratch(self, rows: int) -> Tensor:
        """A reused block for l: a fresh one of this size would page-fault on every call."""
        if rows not in self.scratch_by_rows:
            self.scratch_by_rows[rows] = self.weight.new_empty((rows, len(self.weight)))
        return self.scratch_by_rows[rows]


def log_product(excess: Tensor) -> Tensor:
    """Sum over columns of log(1 + e) for e in [0, 1], shape (N, D), overwriting e: shape (N,), float64.

    Halves of the columns are multiplied together while their number is even, which leaves few logarithms to take.
    """
    factors = excess.add_(1.0)
    for _ in range(MAX_HALVINGS):
        if factors.shape[-1] % 2:
            break
        left, right = factors.chunk(2, dim=-1)
        factors = left.mul_(right)
    return in_vectors(torch.log, factors).sum(dim=-1, dtype=torch.float64)
