"""Where a row's posterior has its mass: search for a mode, then fit a bent normal around it.

    H = -d^2 log p(z) / dz^2 - d^2 log p(x | z) / dz^2       the precision of p(z | x) at a mode
    z <- z + t H^{-1} grad_z log p(x, z)                     Newton step, with the t that raises log p(x, z) most

A Gauss-Newton step is also tried: it replaces the Hessian by the Fisher information and the prior's positive part, which
are never indefinite. Around the mode, in coordinates in which H is the identity, one gradient a little way out along axis
k gives the third derivatives T_kkj for all j. To first order they shift the posterior's mean away from its mode,

    E[y_j] ~= sum_k T_kkj / 2                                (Tierney and Kadane, 1986)

With twenty latents this adds up to several standard deviations: a normal at the mode misses much of the mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from service.density.proposals import BentNormal
from service.vae.conditional import Conditional
from service.vae.curvature import curvature
from service.vae.determinism import inverted, mapped, principal_axes, solved
from service.vae.network import VAE

NEWTON_SIZES = (1.0, 0.4)
GAUSS_NEWTON_SIZES = (1.0, 0.3)
SHORTER = 0.3  # factor on a step that did not raise log p(x, z)
REACH = 0.75  # standard deviations from the mode at which gradients are taken
MIN_PRECISION = 0.25  # of an axis; a standard normal has 1
INACTIVE = 0.05  # an axis whose precision is this close to a standard normal's is one that the row does not inform
MAX_BEND = 1.0
MAX_SHIFT = 2.0  # standard deviations on an axis
MAX_SKEW = 0.4
FEW_LATENTS = 3
TAILS = (1.05, 1.2, 1.45)  # a little wider than the normal, with tails a little heavier
WIDE_TAILS = (1.1, 1.5, 2.2)  # with few latents, where a wide tail costs few draws
# With gradients this close to a normal's, the posterior counts as normal; the rest is rounding.
EXACT = 2e-3


@dataclass(frozen=True, slots=True)
class Sites:
    """N pairs of a row and a latent, moved by the search: z (N, L), log_joint (N,) in float64."""

    vae: VAE
    given: Conditional
    z: Tensor
    log_joint: Tensor

    @staticmethod
    def at(vae: VAE, given: Conditional, z: Tensor) -> Sites:
        """Rows, each at its own latent z, shape (N, L)."""
        return Sites(vae, given, z, log_joint(vae, given, z[:, None])[:, 0])

    def select(self, pairs: Tensor) -> Sites:
        return Sites(self.vae, self.given.select(pairs), self.z[pairs], self.log_joint[pairs])

    def best_of(self, z: Tensor) -> Sites:
        """Move each row to the best of its candidate latents, shape (N, T, L), if it beats the current one."""
        values = torch.cat([self.log_joint[:, None], log_joint(self.vae, self.given, z)], dim=1)
        best, row = values.argmax(dim=1), torch.arange(len(z), device=z.device)
        candidates = torch.cat([self.z[:, None], z], dim=1)
        return Sites(self.vae, self.given, candidates[row, best], values[row, best])


@dataclass(frozen=True, slots=True)
class Mode:
    """The curvature of log p(x, z) at latents, and how far from a mode they are.

    precision (..., L) of the principal axes, which are the columns of rotation (..., L, L); uphill (..., L) is the gradient
    in units of a standard deviation on each axis, which is also Newton's next step. All float64.
    """

    precision: Tensor
    rotation: Tensor
    uphill: Tensor

    @staticmethod
    def unknown(z: Tensor) -> Mode:
        """Room for the modes near latents, shape (..., L)."""
        return Mode(
            torch.ones_like(z).double(),
            z.new_zeros((*z.shape, z.shape[-1]), dtype=torch.float64),
            torch.zeros_like(z).double(),
        )

    @property
    def kept(self) -> Tensor:
        """The precisions, at least MIN_PRECISION: shape (..., L)."""
        return self.precision.clamp(min=MIN_PRECISION)

    @property
    def axes(self) -> Tensor:
        """One standard deviation along each axis, in columns: shape (..., L, L)."""
        return self.rotation / self.kept.sqrt()[..., None, :]

    @property
    def inverse(self) -> Tensor:
        """The inverse of the axes, shape (..., L, L)."""
        return (self.rotation * self.kept.sqrt()[..., None, :]).mT.contiguous()

    @property
    def remaining(self) -> Tensor:
        """Gain in log p(x, z) predicted for Newton's next step, shape (...), nats: 0 at a mode.

        Infinite if log p(x, z) is not concave along every axis: such a point is not a mode, however small the gradient.
        """
        gain = 0.5 * self.uphill.square().sum(dim=-1).clamp(max=1e300)
        return torch.where((self.precision > 0).all(dim=-1), gain, math.inf)

    def select(self, index: Any) -> Mode:
        return Mode(*(part[index] for part in self.parts()))

    def put(self, index: Any, modes: Mode) -> None:
        """Replace some modes."""
        for part, new in zip(self.parts(), modes.parts(), strict=True):
            part[index] = new

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.precision, self.rotation, self.uphill


@dataclass(frozen=True, slots=True)
class Derivatives:
    """Derivatives of log p(x, z) at N sites, float64: the gradient, (N, L), and two matrices, (N, L, L).

    `hessian` is the negative Hessian; in `expected` the Fisher information replaces the observed one, and the prior's
    positive part the whole prior.
    """

    gradient: Tensor
    expected: Tensor
    hessian: Tensor

    @staticmethod
    def at(sites: Sites) -> Derivatives:
        given, prior = curvature(sites.vae, sites.given.x, sites.z), sites.vae.prior.bend(sites.z)
        return Derivatives(
            (given.gradient + prior.gradient).nan_to_num(0.0, 0.0, 0.0),
            prior.positive + finite(given.fisher),
            prior.hessian + finite(given.hessian),
        )

    def select(self, index: Tensor) -> Derivatives:
        return Derivatives(self.gradient[index], self.expected[index], self.hessian[index])


def log_joint(vae: VAE, given: Conditional, z: Tensor) -> Tensor:
    """log p(x, z) for z of shape (N, S, L): shape (N, S), float64, finite."""
    value = given.log_prob(z) + vae.prior.log_prob(z.double())
    return value.nan_to_num(-1e300, -1e300, -1e300)


def newton(sites: Sites, known: Derivatives) -> tuple[Sites, Tensor]:
    """The better of a Newton and a Gauss-Newton step, and the inverse of the negative Hessian, (N, L, L).

    If the negative Hessian is not positive definite, the Gauss-Newton matrix replaces it.
    """
    # If rounding makes even the Fisher information indefinite (a row of 1e30), take no step.
    no_step = 1e150 * torch.eye(sites.z.shape[-1], dtype=torch.float64, device=sites.z.device)
    expected = cholesky(known.expected, no_step)
    observed = cholesky(known.hessian, expected)
    steps = [solved(factor, known.gradient) for factor in (observed, expected)]
    tried = [along(sites, step, sizes) for step, sizes in zip(steps, (NEWTON_SIZES, GAUSS_NEWTON_SIZES), strict=True)]
    return sites.best_of(torch.cat(tried, dim=1)), inverted(observed)


def newton_evaluations(vae: VAE) -> float:
    """The cost of a Newton step, and of the derivatives at its start or its end, in decoder evaluations."""
    return derivatives_evaluations(vae) + len(NEWTON_SIZES) + len(GAUSS_NEWTON_SIZES)


def quasi_newton(sites: Sites, covariance: Tensor, steps: int) -> Sites:
    """Steps with a covariance, shape (N, L, L), updated from the gradients (BFGS; Nocedal and Wright, 2006).

    The covariance is a guess of the posterior's.
    """
    if not steps:
        return sites
    z, (value, uphill) = sites.z[:, None], ascent(sites, sites.z[:, None])
    for _ in range(steps - 1):
        tried = (z.double() + mapped(covariance, uphill)).to(z.dtype)  # (N, 1, L)
        height, slope = ascent(sites, tried)
        better = (height > value)[..., None]
        moved, slope = torch.where(better, tried, z), torch.where(better, slope, uphill)
        covariance = updated(covariance, (moved - z).double()[:, 0], (uphill - slope)[:, 0])
        stuck = (moved == z).all(dim=-1, keepdim=True)
        covariance = torch.where(stuck, SHORTER * covariance, covariance)
        z, value, uphill = moved, torch.maximum(height, value), slope
    last = (z.double() + mapped(covariance, uphill)).to(z.dtype)  # needs no gradient
    return Sites(sites.vae, sites.given, z[:, 0], value[:, 0]).best_of(last)


def quasi_newton_evaluations(steps: int) -> int:
    """The cost of `quasi_newton` in decoder evaluations: forward and backward at each step, and the end itself."""
    return 2 * steps + 1 if steps else 0


def ascent(sites: Sites, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z), shape (N, S), and its gradient, (N, S, L), float64 and finite, for the sites' rows at z, (N, S, L)."""
    prior = sites.vae.prior
    value, gradient = sites.given.value_and_gradient(z)
    return (
        (value + prior.log_prob(z.double())).nan_to_num(-1e300, -1e300, -1e300),
        (gradient + prior.slope(z)).nan_to_num(0.0, 0.0, 0.0),
    )


def updated(covariance: Tensor, step: Tensor, fall: Tensor) -> Tensor:
    """The BFGS update of the covariance, shape (N, L, L), for a step and the fall of the gradient over it, both (N, L).

    Unchanged if the gradient rose or hardly fell: log p(x, z) is not concave there.
    """
    expected = mapped(covariance, fall[:, None])[:, 0]
    agreement = (step * fall).sum(dim=-1)
    usable = agreement > 1e-3 * step.square().sum(dim=-1)
    scale = torch.where(usable, 1.0 / agreement.clamp(min=1e-300), 0.0)[:, None, None]
    stretch = 1.0 + scale * (fall * expected).sum(dim=-1)[:, None, None]
    cross = step[:, :, None] * expected[:, None]
    new = covariance + scale * (stretch * step[:, :, None] * step[:, None] - cross - cross.mT)
    return torch.where(usable[:, None, None], new, covariance)


def along(sites: Sites, step: Tensor, sizes: tuple[float, ...]) -> Tensor:
    """Candidate latents: a step, shape (N, L), taken in T sizes: shape (N, T, L)."""
    scales = torch.tensor(sizes, dtype=step.dtype, device=step.device)[:, None]
    return (sites.z.double()[:, None] + scales * step[:, None]).to(sites.z.dtype)


def cholesky(precision: Tensor, otherwise: Tensor) -> Tensor:
    """The Cholesky factor of each precision, shape (N, L, L), or `otherwise` if it is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    # With extreme rounding (a row of 1e30) the factorisation may succeed without a positive diagonal.
    usable = (failed == 0) & (torch.diagonal(factor, dim1=-2, dim2=-1) > 0).all(dim=-1)
    return torch.where(usable[:, None, None], factor, otherwise)


def finite(matrix: Tensor) -> Tensor:
    """The matrix, bounded so that its factorisation stays finite."""
    return matrix.nan_to_num(0.0, 1e30, -1e30).clamp(-1e30, 1e30)


def mode_of(known: Derivatives) -> Mode:
    """The principal axes of the curvature, and the gradient along them: widest first, inactive ones (the prior's) last."""
    precision, rotation = principal_axes(known.hessian)
    order = ((precision - 1.0).abs() <= INACTIVE).to(torch.uint8).argsort(dim=-1, stable=True)
    precision = precision.gather(-1, order)
    mode = Mode(precision, rotation.gather(-1, order[:, None, :].expand_as(rotation)), known.gradient)
    return Mode(mode.precision, mode.rotation, (mode.axes * mode.uphill[..., None]).sum(dim=1))


def excess_slopes(sites: Sites, mode: Mode, out: Tensor) -> Tensor:
    """Gradients of log p(x, z) at mode + axes * out, minus those of a normal, for `out` of shape (P, L).

    In the coordinates of the axes, shape (N, P, L).
    """
    axes = mode.axes
    z = (sites.z.double()[:, None] + mapped(axes, out.expand(len(axes), -1, -1))).to(sites.z.dtype)  # (N, P, L)
    _, slope = ascent(sites, z)
    straight = mode.uphill[:, None] - out * (mode.precision / mode.kept)[:, None]
    return (mapped(axes.mT, slope) - straight).nan_to_num(math.inf, math.inf, -math.inf)


def fit(sites: Sites, mode: Mode, probed_axes: int) -> tuple[BentNormal, Tensor]:
    """Bent normals around the modes, from gradients along the widest axes, and a mask of normal posteriors, (N,)."""
    axes, uphill = mode.axes, mode.uphill
    latents = axes.shape[-1]
    alone = REACH * torch.eye(latents, dtype=axes.dtype, device=axes.device)[:probed_axes]
    residual = excess_slopes(sites, mode, alone)  # (N, P, L); zero for a normal
    is_exact = (residual.abs() <= EXACT).flatten(1).all(dim=-1)
    if is_exact.any():  # so far along each axis alone: check all axes together
        together = 2.0 / math.sqrt(latents) * torch.ones_like(alone[:1])
        together[:, ::2] *= -1.0
        is_exact &= (excess_slopes(sites, mode, together).abs() <= EXACT).flatten(1).all(dim=-1)
    bend = (2.0 / REACH**2) * residual  # bend[k, j] = T_kkj
    bend = bend.clamp(-MAX_BEND, MAX_BEND).masked_fill(is_exact[:, None, None], 0.0)
    shift = uphill.clamp(-MAX_SHIFT, MAX_SHIFT) + (0.5 * bend.sum(dim=1)).clamp(-MAX_SHIFT, MAX_SHIFT)
    own = torch.diagonal(bend, dim1=-2, dim2=-1)
    tails = torch.tensor(WIDE_TAILS if latents <= FEW_LATENTS else TAILS, dtype=torch.float64, device=axes.device)
    normal = BentNormal(
        mean=sites.z.double() + mapped(axes, shift[:, None])[:, 0],
        axes=axes,
        inverse=mode.inverse,
        bend=bend,
        # The split normal matches the third-order term two standard deviations out.
        skew=F.pad((own / 3.0).clamp(-MAX_SKEW, MAX_SKEW), (0, latents - own.shape[-1])),
        tails=torch.where(is_exact[:, None], 1.0, tails),
        log_volume=-0.5 * mode.kept.log().sum(dim=-1),
    )
    return normal, is_exact


def fit_evaluations(latents: int, probed_axes: int) -> int:
    """The cost of `fit` in decoder evaluations: a gradient for each probed axis (and one more if the fit is exact)."""
    return 2 * min(latents, probed_axes)


def derivatives_evaluations(vae: VAE) -> float:
    """The cost of `Derivatives.at` in decoder evaluations: forward, backward, one per latent, and a Gram matrix."""
    latents, features = vae.architecture.latents, vae.architecture.features
    return latents + 2 + latents**2 * features / vae.evaluation_size
