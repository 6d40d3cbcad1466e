"""p(z): a standard normal, or a mixture of normals that is learnt with the network.

A mixture lets the latents form clusters, as rows often do; a standard normal has mass between them that no row uses. Its
components have independent coordinates, so that all marginals and conditionals are again mixtures of normals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.vae.determinism import product
from service.vae.likelihoods import LOG_2PI

LOG_STDS = (-3.0, 2.0)  # range of a component's log std
BISECTIONS = 60  # enough to find a quantile in an interval a few tens long to the precision of float64


@dataclass(frozen=True, slots=True)
class Bend:
    """Derivatives of a log density at N latents, float64: `gradient` (N, L), and the negative Hessian (N, L, L).

    `positive` (N, L, L) is a part of the negative Hessian that is positive definite everywhere.
    """

    gradient: Tensor
    positive: Tensor
    hessian: Tensor


class Prior(nn.Module, ABC):
    """A distribution over z with L coordinates."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = latents

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, shape (..., L) to (...), nats, in the dtype of z."""

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """d log p(z) / dz, shape (..., L), float64."""

    @abstractmethod
    def bend(self, z: Tensor) -> Bend:
        """First and second derivatives at z, shape (N, L)."""

    @abstractmethod
    def placed(self, normal: Tensor, selector: Tensor) -> Tensor:
        """Map standard-normal points, shape (N, L), to this prior; `selector` (N,), in [0, 1), picks a component."""

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws, shape (num, L), float32, on the CPU."""
        normal = torch.randn((num, self.latents), generator=generator)
        return self.placed(normal, torch.rand(num, generator=generator))

    @abstractmethod
    def kl(self, mean: Tensor, std: Tensor, z: Tensor) -> Tensor:
        """KL(q || p) of normals q, (B, L), summed over latents, or its estimate from one draw z each: (B,), nats."""

    @abstractmethod
    def plane(self, axes: tuple[int, int], u: Tensor) -> Tensor:
        """Latents whose coordinates on two axes are quantiles at probabilities u, shape (N, 2): shape (N, L), float64.

        The second coordinate's quantile is conditional on the first; all others are at their means given both.
        """


class StandardNormal(Prior):
    """N(0, I)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return (-0.5 * z.square() - 0.5 * LOG_2PI).sum(dim=-1)

    def slope(self, z: Tensor) -> Tensor:
        """-z."""
        return -z.double()

    def bend(self, z: Tensor) -> Bend:
        """The negative Hessian is the identity everywhere."""
        identity = torch.eye(self.latents, dtype=torch.float64, device=z.device).expand(len(z), -1, -1)
        return Bend(self.slope(z), identity, identity)

    def placed(self, normal: Tensor, selector: Tensor) -> Tensor:
        return normal

    def kl(self, mean: Tensor, std: Tensor, z: Tensor) -> Tensor:
        """In closed form; ignores the draw."""
        return (0.5 * (mean.square() + std.square() - 1.0) - std.log()).sum(dim=-1)

    def plane(self, axes: tuple[int, int], u: Tensor) -> Tensor:
        """Independent quantiles; the others are 0."""
        z = torch.zeros((len(u), self.latents), dtype=torch.float64)
        z[:, list(axes)] = torch.special.ndtri(u.double())
        return z


class NormalMixture(Prior):
    """K normals with independent coordinates and mixture weights: means and stds of shape (K, L)."""

    def __init__(self, components: int, latents: int) -> None:
        super().__init__(latents)
        self.mean = nn.Parameter(torch.randn(components, latents))
        self.log_std = nn.Parameter(torch.zeros(components, latents))
        self.logit = nn.Parameter(torch.zeros(components))

    def parts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log stds, (K, L), and log mixture weights, (K,)."""
        log_std = self.log_std.to(dtype).clamp(*LOG_STDS)
        return self.mean.to(dtype), log_std, self.logit.to(dtype).log_softmax(dim=0)

    def joint(self, z: Tensor) -> Tensor:
        """Log of each component's weight times density, shape (..., L) to (..., K)."""
        mean, log_std, log_share = self.parts(z.dtype)
        noise = (z[..., None, :] - mean) / log_std.exp()
        return log_share - (log_std + 0.5 * LOG_2PI).sum(dim=-1) - 0.5 * noise.square().sum(dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.joint(z).logsumexp(dim=-1)

    def slope(self, z: Tensor) -> Tensor:
        """The components' gradients, weighted by their responsibilities."""
        z = z.double()
        mean, log_std, _ = self.parts(z.dtype)
        precision = torch.exp(-2.0 * log_std)
        responsibility = self.joint(z).softmax(dim=-1)
        return product(responsibility, (mean * precision).mT.contiguous()) - z * product(
            responsibility, precision.mT.contiguous()
        )

    def bend(self, z: Tensor) -> Bend:
        """The negative Hessian is the mean precision minus the covariance of the components' gradients.

        Both are weighted by the responsibilities.
        """
        z = z.double()
        mean, log_std, _ = self.parts(z.dtype)
        precision = torch.exp(-2.0 * log_std)
        responsibility = self.joint(z).softmax(dim=-1)  # (N, K)
        slopes = (mean - z[:, None]) * precision  # (N, K, L)
        weighted = responsibility[..., None] * slopes
        gradient = weighted.sum(dim=1)
        positive = torch.diag_embed(product(responsibility, precision.mT.contiguous()))
        outer = (weighted[..., None] * slopes[..., None, :]).sum(dim=1)
        return Bend(gradient, positive, positive - outer + gradient[:, :, None] * gradient[:, None])

    def placed(self, normal: Tensor, selector: Tensor) -> Tensor:
        """Each point scaled and shifted to its component."""
        mean, log_std, log_share = (part.detach().cpu() for part in self.parts(normal.dtype))
        ends = log_share.exp().cumsum(dim=0)
        component = torch.searchsorted(ends, selector.to(ends).contiguous()).clamp(max=len(ends) - 1)
        return mean[component] + log_std.exp()[component] * normal

    def kl(self, mean: Tensor, std: Tensor, z: Tensor) -> Tensor:
        """log q(z) - log p(z) at the draws: an unbiased estimate."""
        noise = (z - mean) / std
        return (-0.5 * noise.square() - std.log() - 0.5 * LOG_2PI).sum(dim=-1) - self.log_prob(z)

    def plane(self, axes: tuple[int, int], u: Tensor) -> Tensor:
        """Inverts the marginal distribution of one axis, and the conditional one of the other."""
        mean, log_std, log_share = (part.detach().cpu() for part in self.parts(torch.float64))
        log_weights = log_share.expand(len(u), -1)  # (N, K)
        coordinates = []
        for axis, p in zip(axes, u.double().T, strict=True):
            center, std = mean[:, axis], log_std[:, axis].exp()
            coordinate = mixture_quantile(log_weights.softmax(dim=-1), center, std, p)
            noise = (coordinate[:, None] - center) / std
            log_weights = log_weights - 0.5 * noise.square() - std.log()
            coordinates.append(coordinate)
        z = log_weights.softmax(dim=-1) @ mean
        z[:, list(axes)] = torch.stack(coordinates, dim=-1)
        return z


def mixture_quantile(weights: Tensor, mean: Tensor, std: Tensor, p: Tensor) -> Tensor:
    """Quantiles of mixtures of K normals with weights (N, K): shape (N,), by bisection."""
    low = (mean - 12.0 * std).amin().expand(len(p)).clone()
    high = (mean + 12.0 * std).amax().expand(len(p)).clone()
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        below = (weights * torch.special.ndtr((middle[:, None] - mean) / std)).sum(dim=-1) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def prior_of(components: int, latents: int) -> Prior:
    """A mixture of so many normals; a standard normal for 0."""
    return NormalMixture(components, latents) if components else StandardNormal(latents)


def base_points(size: int) -> Tensor:
    """Probabilities u = (i + 0.5) / size on a grid of two axes, row-major, the first axis along a row: (size^2, 2)."""
    u = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.stack([u.repeat(size), u.repeat_interleave(size)], dim=-1)
