"""log p(x | z) for fixed rows and many z: the innermost loop of the estimator.

`conditional(vae, x)` computes once what depends on x alone; its `log_prob` is then called with one block of z after
another. The plain path works for every network. The Bernoulli path gives the same numbers in about half the time.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from service.vae.determinism import is_alike, product
from service.vae.layers import MLP
from service.vae.likelihoods import Bernoulli
from service.vae.network import VAE

MAX_HALVINGS = 6  # a product of 2 ** 6 factors below 2 stays far inside float32


class Conditional(Protocol):
    """p(x | z) with x fixed: rows of shape (B, D), as the likelihood reads them."""

    @property
    def x(self) -> Any:
        """The rows."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x_b | z_bs), summed over columns: z of shape (B, S, L) to (B, S), float64, nats."""
        ...

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and its gradient in z, shape (B, S, L), float64; costs about two evaluations."""
        ...

    def select(self, rows: slice | Tensor) -> Conditional:
        """p(x | z) for a subset of the rows."""
        ...


def conditional(vae: VAE, x: Tensor) -> Conditional:
    """The fastest exact way to evaluate log p(x | z) for rows x, shape (B, D), with or without missing cells."""
    is_plain = isinstance(vae.decoder, MLP)
    if is_plain and isinstance(vae.likelihood, Bernoulli) and vae.dtype == torch.float32 and not x.isnan().any():
        return BernoulliConditional(vae, x)
    return PlainConditional(vae, vae.likelihood.read(x))


class PlainConditional:
    """Any decoder and likelihood, column by column."""

    def __init__(self, vae: VAE, x: Any) -> None:
        self.vae, self.x = vae, x

    def log_prob(self, z: Tensor) -> Tensor:
        return self.vae.likelihood.total(self.vae.decoder(z), self.x[:, None])

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = self.log_prob(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient.double()

    def select(self, rows: slice | Tensor) -> PlainConditional:
        return PlainConditional(self.vae, self.x[rows])


class BernoulliConditional:
    """Bernoulli columns behind a linear output layer l = W h + c, in float32 with few passes over l.

    x l - softplus(l) = (x - 1/2) l - |l| / 2 - log(1 + exp(-|l|)), so that over the columns

        log p(x | z) = ((x - 1/2) W) . h + (x - 1/2) . c - sum |l| / 2 - sum log(1 + exp(-|l|)).

    The first product touches H numbers instead of D. The factors 1 + exp(-|l|) lie in [1, 2]: up to 64 of them are
    multiplied before one logarithm is taken.
    """

    def __init__(self, vae: VAE, x: Tensor) -> None:
        assert isinstance(vae.decoder, MLP)
        self.x, self.hidden, self.output, self.likelihood = x, vae.decoder.hidden, vae.decoder.output, vae.likelihood
        self.weight, self.bias = self.output.weight, self.output.bias
        centred = x - 0.5  # (B, D)
        # The two sums nearly cancel: float32 would cost a thousandth of a nat.
        self.slope = centred.double() @ self.weight.double()  # (B, H)
        self.offset = centred.double() @ self.bias.double()  # (B,)
        self.blocks = [self.weight.new_empty(0)]  # shared with `select`

    def log_prob(self, z: Tensor) -> Tensor:
        h = self.hidden(z.reshape(-1, z.shape[-1]))  # (B * S, H)
        return self.log_prob_of(h, self.logits(h)).view(z.shape[:2])

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        samples = z.shape[1]
        with torch.enable_grad():
            leaf = z.reshape(-1, z.shape[-1]).detach().requires_grad_()
            h = self.hidden(leaf)
            logits = self.output(h)
            x = self.x[:, None].expand(-1, samples, -1).flatten(0, 1)
            (gradient,) = torch.autograd.grad(self.likelihood.log_prob(logits, x).sum(), leaf)
        value = self.log_prob_of(h.detach(), logits.detach().clone())
        return value.view(z.shape[:2]), gradient.double().view(z.shape)

    def log_prob_of(self, h: Tensor, logits: Tensor) -> Tensor:
        """log p(x | z) from the last hidden layer, shape (B * S, H), and the logits, (B * S, D), which it overwrites."""
        by_row = h.view(len(self.x), -1, h.shape[-1]).double()  # (B, S, H)
        linear = (by_row * self.slope[:, None]).sum(dim=-1) + self.offset[:, None]
        return (linear - even_part(logits).view(linear.shape)).clamp(
            max=0.0
        )  # a mass is at most 1; huge logits can round above it

    def select(self, rows: slice | Tensor) -> BernoulliConditional:
        """p(x | z) for a subset of the rows; shares the scratch block."""
        selected = copy.copy(self)
        selected.x, selected.slope, selected.offset = self.x[rows], self.slope[rows], self.offset[rows]
        return selected

    def logits(self, h: Tensor) -> Tensor:
        """The decoder's output for h, shape (N, H): shape (N, D), in the scratch block."""
        scratch = self.scratch(len(h))
        if not is_alike(self.weight):
            return torch.add(product(h, self.weight), self.bias, out=scratch)
        return torch.addmm(self.bias, h, self.weight.mT, out=scratch)

    def scratch(self, rows: int) -> Tensor:
        """A reused block for l, shape (rows, D): a fresh one would page-fault on every call."""
        size = rows * len(self.weight)
        if len(self.blocks[-1]) < size:
            self.blocks[-1] = self.weight.new_empty(size)
        return self.blocks[-1][:size].view(rows, -1)


def even_part(logits: Tensor) -> Tensor:
    """Sum over columns of |l| / 2 + log(1 + exp(-|l|)), for l of shape (N, D), which it overwrites: (N,), float64."""
    negative = logits.copysign_(-1.0)  # -|l|, in one pass
    half_abs = -0.5 * negative.sum(dim=-1, dtype=torch.float64)
    return half_abs + log_product(negative.exp_())


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
    return factors.log_().sum(dim=-1, dtype=torch.float64)
