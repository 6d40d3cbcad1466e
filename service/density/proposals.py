"""Proposals: distributions over z, given rows, to draw importance samples from. They compose.

A proposal maps points of the unit cube to z and knows its own density. The caller supplies the points, from a row's own
seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from service.density.quasirandom import Points, normal_quantile
from service.vae.determinism import aligned, mapped
from service.vae.likelihoods import LOG_2PI
from service.vae.network import DiagonalNormal

Rows = slice | Tensor  # some of the rows: a slice, or a tensor of indices

CLIP = 2.5  # standard deviations
PRECISIONS = (0.5, 2.0)


class Proposal(Protocol):
    """A distribution over z for each of B rows."""

    def sample(self, points: Points) -> Tensor:
        """Map points of the unit cube, S for each of B rows, to draws of z: shape (B, S, L), float64."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z, shape (B, S, L): shape (B, S), float64, nats."""
        ...

    def select(self, rows: Rows) -> Proposal:
        """The proposal for a subset of the rows."""
        ...


@dataclass(frozen=True, slots=True)
class Diagonal:
    """A normal with independent coordinates for each row, such as the encoder's posterior: mean and std of shape (B, L)."""

    normal: DiagonalNormal

    def sample(self, points: Points) -> Tensor:
        return self.normal.mean.double()[:, None] + self.normal.std.double()[:, None] * points.normal

    def log_prob(self, z: Tensor) -> Tensor:
        return self.normal.select((slice(None), None)).log_prob(z)

    def select(self, rows: Rows) -> Diagonal:
        return Diagonal(self.normal.select(rows))


@dataclass(frozen=True, slots=True)
class BentNormal:
    """A normal with its own axes, bent by the third derivatives of the log density that it approximates.

        z = mean + sum_i axes[:, i] y_i
        y_i = e_i / sqrt(1 - sum_k<i bend[i, k] y_k) + sum_k<i bend[k, i] (y_k^2 - 1) / 2

    This approximates the density exp(-|y|^2 / 2 + sum_ik bend[i, k] y_i^2 y_k / 2), axis after axis, to first order in the
    bend (y_k is clipped to +-CLIP, the precision to PRECISIONS). e_i is a split normal (Geweke, 1989) with scales
    1 - skew[i] and 1 + skew[i], times one of the equally likely `tails`, minus the mean of the split normal. Without bend
    and skew, and with a tail of 1, it is a normal.

    mean, skew (B, L); axes and their inverse (B, L, L), an axis in each column of `axes`; bend (B, K, L), of the first K
    axes; tails (B, T); log_volume (B,), log |det axes|. All float64.
    """

    mean: Tensor
    axes: Tensor
    inverse: Tensor
    bend: Tensor
    skew: Tensor
    tails: Tensor
    log_volume: Tensor

    def sample(self, points: Points) -> Tensor:
        skew = self.skew[:, None]
        below, above = 1.0 - skew, 1.0 + skew
        lower_mass = 0.5 * below  # (B, 1, L)
        u = points.uniform
        is_lower = u < lower_mass
        half = torch.where(is_lower, 0.5 * u / lower_mass, 0.5 + 0.5 * (u - lower_mass) / (1 - lower_mass))
        # A point that rounding puts on the border of the cube would map to infinity.
        split = normal_quantile(half.clamp(1e-12, 1 - 1e-12)) * torch.where(is_lower, below, above)
        count = self.tails.shape[1]
        choice = (points.selector * count).long().clamp(0, count - 1)  # (B, S)
        tail = self.tails.gather(1, choice)[..., None]
        return self.mean[:, None] + mapped(self.axes, self.bent(tail * split - self.split_mean()))

    def bent(self, e: Tensor) -> Tensor:
        """y from e, shape (B, S, L): one axis after another, each bent by the earlier ones."""
        y = e.movedim(-1, 0).contiguous()  # (L, B, S)
        curving = self.bend.permute(1, 2, 0)[..., None]  # (K, L, B, 1)
        shift, narrowing = torch.zeros_like(y), torch.zeros_like(y[: len(curving)])
        for axis, curved in enumerate(curving):
            y[axis] /= (1.0 - narrowing[axis]).clamp(*PRECISIONS).sqrt()
            y[axis] += shift[axis]
            clipped, later = y[axis].clamp(-CLIP, CLIP), slice(axis + 1, None)
            shift[later] += curved[later] * (0.5 * (clipped * clipped - 1.0))
            narrowing[later] += curving[later, axis] * clipped
        y[len(curving) :] += shift[len(curving) :]
        return y.movedim(0, -1)

    def log_prob(self, z: Tensor) -> Tensor:
        y = mapped(self.inverse, z.double() - self.mean[:, None])
        bending = self.bend.shape[1]
        clipped = y[..., :bending].clamp(-CLIP, CLIP)
        precision = (1.0 - mapped(self.bend[..., :bending].tril(-1), clipped)).clamp(*PRECISIONS)
        shift = mapped(self.bend.triu(1).mT, 0.5 * (clipped * clipped - 1.0))
        split = y - shift
        split[..., :bending] *= precision.sqrt()
        split += self.split_mean()
        skew = self.skew[:, None]
        distance = (split / torch.where(split < 0, 1.0 - skew, 1.0 + skew)).square().sum(dim=-1)  # (B, S)
        latents, tails = z.shape[-1], self.tails.T[..., None]  # (T, B, 1)
        log_tails = -0.5 * distance / tails.square() - latents * torch.log(tails)  # (T, B, S)
        log_widths = 0.5 * torch.log(precision).sum(dim=-1)
        constant = math.log(len(tails)) + 0.5 * latents * LOG_2PI + self.log_volume[:, None]
        return log_tails.logsumexp(dim=0) + log_widths - constant

    def split_mean(self) -> Tensor:
        """The means of the split normals, shape (B, 1, L)."""
        return 2.0 * math.sqrt(2.0 / math.pi) * self.skew[:, None]

    @staticmethod
    def unknown(rows: int, latents: int, bent_axes: int, tails: int, device: torch.device) -> BentNormal:
        """Room for the normals of so many rows."""
        shapes = (
            (latents,),
            (latents, latents),
            (latents, latents),
            (min(latents, bent_axes), latents),
            (latents,),
            (tails,),
            (),
        )
        return BentNormal(*(torch.zeros((rows, *shape), dtype=torch.float64, device=device) for shape in shapes))

    def select(self, rows: Rows) -> BentNormal:
        return BentNormal(*(part[rows] for part in self.parts()))

    def put(self, rows: Tensor, normals: BentNormal) -> None:
        """Replace those of some rows."""
        for part, new in zip(self.parts(), normals.parts(), strict=True):
            part[rows] = new

    def parts(self) -> tuple[Tensor, ...]:
        return self.mean, self.axes, self.inverse, self.bend, self.skew, self.tails, self.log_volume


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
        """Draws, shape (B, S, L): the selector picks a component, and is rescaled to [0, 1] for that component's use."""
        ends = self.shares.cumsum(dim=-1)
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=-1)
        ends = torch.where(ends > 1 - 1e-6, 2.0, ends)  # the last component with a share absorbs rounding
        z = torch.zeros_like(points.uniform)
        for at, rows, component in self.used():
            selector, start, end, share = (
                points.selector[rows],
                *(n[rows, at, None] for n in (starts, ends, self.shares)),
            )
            inside = (selector >= start) & (selector < end)
            stretched = ((selector - start) / share.clamp(min=1e-300)).clamp(0.0, 1.0)
            drawn = component.sample(Points(stretched, points.uniform[rows]))
            z[rows] = torch.where(inside[..., None], drawn, z[rows])
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        log_shares = torch.log(self.shares)
        parts = z.new_full((len(self.components), *z.shape[:-1]), -math.inf, dtype=torch.float64)
        for at, rows, component in self.used():
            parts[at, rows] = component.log_prob(z[rows]) + log_shares[rows, at, None]
        return parts.logsumexp(dim=0)

    def used(self) -> Iterator[tuple[int, Rows, Proposal]]:
        """Each component that has a share in any row, by its place, with the rows in which it has one.

        Rows come in groups of ALIGNED: the last may repeat.
        """
        for at, component in enumerate(self.components):
            index = self.shares[:, at].nonzero()[:, 0]
            if len(index) == len(self.shares):
                yield at, slice(None), component
            elif len(index):
                some = aligned(index)
                yield at, some, component.select(some)

    def select(self, rows: Rows) -> Mixture:
        return Mixture([component.select(rows) for component in self.components], self.shares[rows])
