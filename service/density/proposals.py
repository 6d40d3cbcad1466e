"""Proposals: distributions over z, given rows, to draw importance samples from. They compose.

A proposal maps points of the unit cube to z and knows its own density. The caller supplies the points, from a row's own
seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from service.density.quasirandom import Points, normal_quantile
from service.vae.determinism import by_matrix, in_vectors, mapped
from service.vae.likelihoods import LOG_2PI
from service.vae.network import DiagonalNormal

Rows = slice | Tensor  # some of the rows: a slice, or a tensor of indices

CLIP = 2.5  # standard deviations
PRECISIONS = (0.5, 2.0)


class Proposal(Protocol):
    """A distribution over z for each of B rows."""

    def sample(self, points: Points) -> Tensor:
        """Map points of the unit cube, S for each of B rows, to draws of z: shape (S, B, L), float64."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z, shape (S, B, L): shape (S, B), float64, nats."""
        ...

    def select(self, rows: Rows) -> Proposal:
        """The proposal for a subset of the rows."""
        ...


@dataclass(frozen=True, slots=True)
class Diagonal:
    """A normal with independent coordinates for each row, such as the encoder's posterior: mean and std of shape (B, L)."""

    normal: DiagonalNormal

    def sample(self, points: Points) -> Tensor:
        return self.normal.mean.double() + self.normal.std.double() * points.normal

    def log_prob(self, z: Tensor) -> Tensor:
        return self.normal.log_prob(z)

    def select(self, rows: Rows) -> Diagonal:
        return Diagonal(DiagonalNormal(self.normal.mean[rows], self.normal.std[rows]))


@dataclass(frozen=True, slots=True)
class BentNormal:
    """A normal with its own axes, bent by the third derivatives of the log density that it approximates.

        z = mean + sum_i axes[:, i] y_i
        y_i = e_i / sqrt(1 - sum_k<i bend[i, k] y_k) + sum_k<i bend[k, i] (y_k^2 - 1) / 2

    This approximates the density exp(-|y|^2 / 2 + sum_ik bend[i, k] y_i^2 y_k / 2), axis after axis, to first order in the
    bend (y_k is clipped to +-CLIP, the precision to PRECISIONS). e_i is a split normal (Geweke, 1989) with scales
    1 - skew[i] and 1 + skew[i], times one of the equally likely `tails`, minus the mean of the split normal. Without bend
    and skew, and with a tail of 1, it is a normal.

    mean, skew (B, L); axes, inverse, bend (B, L, L), an axis in each column of `axes`; tails (B, T). All float64.
    """

    mean: Tensor
    axes: Tensor
    inverse: Tensor  # of the axes
    bend: Tensor
    skew: Tensor
    tails: Tensor

    def sample(self, points: Points) -> Tensor:
        below, above = 1.0 - self.skew, 1.0 + self.skew
        lower_mass = 0.5 * below  # (B, L)
        u = points.uniform
        is_lower = u < lower_mass
        half = torch.where(is_lower, 0.5 * u / lower_mass, 0.5 + 0.5 * (u - lower_mass) / (1 - lower_mass))
        # A point that rounding puts on the border of the cube would map to infinity.
        split = normal_quantile(half.clamp(1e-12, 1 - 1e-12)) * torch.where(is_lower, below, above)
        count = self.tails.shape[1]
        choice = (points.selector * count).long().clamp(0, count - 1)  # (S, B)
        tail = self.tails.expand(len(choice), -1, -1).gather(2, choice[..., None])  # (S, B, 1)
        return self.mean + mapped(self.axes, self.bent(tail * split - self.split_mean()))

    def bent(self, e: Tensor) -> Tensor:
        """y from e, shape (S, B, L): one axis after another, each bent by the earlier ones."""
        e = e.movedim(-1, 0).contiguous()  # (L, S, B)
        curving = self.bend.permute(1, 2, 0)[:, :, None]  # (L, L, 1, B)
        widening = self.bend.permute(2, 1, 0)[:, :, None]
        y, shift, narrowing = torch.empty_like(e), torch.zeros_like(e), torch.zeros_like(e)
        for axis in range(len(e)):
            y[axis] = shift[axis] + e[axis] / (1.0 - narrowing[axis]).clamp(*PRECISIONS).sqrt()
            clipped, later = y[axis].clamp(-CLIP, CLIP), slice(axis + 1, None)
            shift[later] += curving[axis, later] * (0.5 * (clipped * clipped - 1.0))
            narrowing[later] += widening[axis, later] * clipped
        return y.movedim(0, -1)

    def log_prob(self, z: Tensor) -> Tensor:
        y = mapped(self.inverse, z.double() - self.mean)
        clipped = y.clamp(-CLIP, CLIP)
        precision = (1.0 - mapped(self.bend.tril(-1), clipped)).clamp(*PRECISIONS)
        shift = mapped(self.bend.triu(1).mT, 0.5 * (clipped * clipped - 1.0))
        split = (y - shift) * precision.sqrt() + self.split_mean()
        distance = (split / torch.where(split < 0, 1.0 - self.skew, 1.0 + self.skew)).square().sum(dim=-1)  # (S, B)
        latents, count = z.shape[-1], self.tails.shape[1]
        log_tails = -0.5 * distance[..., None] / self.tails.square() - latents * in_vectors(
            torch.log, self.tails
        )  # (S, B, T)
        log_widths = 0.5 * in_vectors(torch.log, precision).sum(dim=-1)
        constant = math.log(count) + 0.5 * latents * LOG_2PI + self.log_volume()
        return log_tails.logsumexp(dim=-1) + log_widths - constant

    def split_mean(self) -> Tensor:
        """The means of the split normals, shape (B, L)."""
        return 2.0 * math.sqrt(2.0 / math.pi) * self.skew

    def log_volume(self) -> Tensor:
        """log |det axes|, shape (B,)."""
        return -by_matrix(torch.linalg.slogdet, self.inverse)[1]

    def select(self, rows: Rows) -> BentNormal:
        return BentNormal(*(part[rows] for part in self.parts()))

    @staticmethod
    def concatenated(normals: Sequence[BentNormal]) -> BentNormal:
        parts = zip(*(normal.parts() for normal in normals), strict=True)
        return BentNormal(*(torch.cat(part) for part in parts))

    def parts(self) -> tuple[Tensor, ...]:
        return self.mean, self.axes, self.inverse, self.bend, self.skew, self.tails


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of proposals, each with its share of the draws (Hesterberg, 1995).

    Every weight has the whole mixture in its denominator (the balance heuristic of Veach and Guibas, 1995): where one
    component has too little mass, another's share bounds the weight, and no component costs extra decoder evaluations.
    The `shares` (B, K) of each row sum to one; a component's share may be 0.
    """

    components: Sequence[Proposal]
    shares: Tensor

    def sample(self, points: Points) -> Tensor:
        """Draws, shape (S, B, L): the selector picks a component, and is rescaled to [0, 1] for that component's use."""
        ends = self.shares.cumsum(dim=-1)
        ends = torch.where(ends > 1 - 1e-6, 2.0, ends)  # the last component with a share absorbs rounding
        z = torch.zeros_like(points.uniform)
        start = torch.zeros_like(ends[:, 0])
        for component, share, end in zip(self.components, self.shares.T, ends.T, strict=True):
            inside = (points.selector >= start) & (points.selector < end)
            stretched = ((points.selector - start) / share.clamp(min=1e-300)).clamp(0.0, 1.0)
            z = torch.where(inside[..., None], component.sample(Points(stretched, points.uniform)), z)
            start = end
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        parts = [
            component.log_prob(z) + log_share
            for component, log_share in zip(self.components, in_vectors(torch.log, self.shares).T, strict=True)
        ]
        return torch.stack(parts).logsumexp(dim=0)

    def select(self, rows: Rows) -> Mixture:
        return Mixture([component.select(rows) for component in self.components], self.shares[rows])
