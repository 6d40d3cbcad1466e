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

import torch
from torch import Tensor

from service.density.proposals import BentNormal
from service.vae.conditional import Conditional
from service.vae.curvature import curvature, gradient
from service.vae.determinism import by_matrix, mapped
from service.vae.network import VAE

NEWTON_SIZES = (1.0, 0.4)
GAUSS_NEWTON_SIZES = (1.0, 0.3)
QUASI_NEWTON_SIZES = (1.0,)
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
    """N pairs of a row and a latent, moved by the search: x (N, D), z (N, L), log_joint (N,) in float64."""

    vae: VAE
    x: Tensor
    given: Conditional
    z: Tensor
    log_joint: Tensor

    @staticmethod
    def at(vae: VAE, x: Tensor, given: Conditional, z: Tensor) -> Sites:
        """Rows x, shape (N, D), each at its own latent z, shape (N, L)."""
        return Sites(vae, x, given, z, log_joint(vae, given, z[None])[0])

    def evaluated(self) -> Sites:
        """The same sites with log_joint computed."""
        return Sites.at(self.vae, self.x, self.given, self.z)

    def select(self, pairs: Tensor) -> Sites:
        return Sites(self.vae, self.x[pairs], self.given.select(pairs), self.z[pairs], self.log_joint[pairs])

    def best_of(self, z: Tensor) -> Sites:
        """Move each row to the best of its candidate latents, shape (T, N, L), if it beats the current one."""
        values = log_joint(self.vae, self.given, z)
        return self.moved(torch.cat([self.z[None], z]), torch.cat([self.log_joint[None], values]))

    def moved(self, z: Tensor, log_joints: Tensor) -> Sites:
        """Move each row to the best of its candidate latents, shape (T, N, L), by their log_joint, (T, N)."""
        best = log_joints.argmax(dim=0)
        row = torch.arange(len(best), device=best.device)
        return Sites(self.vae, self.x, self.given, z[best, row], log_joints[best, row])


@dataclass(frozen=True, slots=True)
class Mode:
    """The curvature of log p(x, z) at N latents, and how far from a mode they are.

    precision (N, L) of the principal axes, which are the columns of rotation (N, L, L); uphill (N, L) is the gradient in
    units of a standard deviation on each axis, which is also Newton's next step. All float64.
    """

    precision: Tensor
    rotation: Tensor
    uphill: Tensor

    @property
    def kept(self) -> Tensor:
        """The precisions, at least MIN_PRECISION: shape (N, L)."""
        return self.precision.clamp(min=MIN_PRECISION)

    @property
    def axes(self) -> Tensor:
        """One standard deviation along each axis, in columns: shape (N, L, L)."""
        return self.rotation / self.kept.sqrt()[:, None, :]

    @property
    def inverse(self) -> Tensor:
        """The inverse of the axes, shape (N, L, L)."""
        return (self.rotation * self.kept.sqrt()[:, None, :]).mT.contiguous()

    @property
    def remaining(self) -> Tensor:
        """Gain in log p(x, z) predicted for Newton's next step, shape (N,), nats: 0 at a mode.

        Infinite if log p(x, z) is not concave along every axis: such a point is not a mode, however small the gradient.
        """
        gain = 0.5 * self.uphill.square().sum(dim=-1).clamp(max=1e300)
        return torch.where((self.precision > 0).all(dim=-1), gain, math.inf)

    def select(self, pairs: Tensor) -> Mode:
        return Mode(*(part[pairs] for part in self.parts()))

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.precision, self.rotation, self.uphill


def log_joint(vae: VAE, given: Conditional, z: Tensor) -> Tensor:
    """log p(x, z) for z of shape (S, N, L): shape (S, N), float64, finite."""
    value = given.log_prob(z) + vae.prior.log_prob(z.double())
    return value.nan_to_num(-1e300, -1e300, -1e300)


def climb(sites: Sites, covariance: Tensor, newton_steps: int, quasi_newton_steps: int) -> Sites:
    """Move towards a mode: Newton steps first, then quasi-Newton steps, which need only a gradient.

    Args:
        covariance: a guess of the posterior covariance, shape (N, L, L); used if there are no Newton steps.
    """
    for _ in range(newton_steps):
        sites, covariance = newton(sites)
    return quasi_newton(sites, covariance, quasi_newton_steps)


def climb_evaluations(vae: VAE, newton_steps: int, quasi_newton_steps: int) -> float:
    """The cost of `climb` in decoder evaluations."""
    tries = len(NEWTON_SIZES) + len(GAUSS_NEWTON_SIZES)
    return newton_steps * (mode_evaluations(vae) + tries) + quasi_newton_steps * (2 + len(QUASI_NEWTON_SIZES))


def newton(sites: Sites) -> tuple[Sites, Tensor]:
    """The better of a Newton and a Gauss-Newton step, and the inverse of the negative Hessian, (N, L, L).

    If the negative Hessian is not positive definite, the Gauss-Newton matrix replaces it.
    """
    derivatives = curvature(sites.vae, sites.x, sites.z)
    # If rounding makes even the Fisher information indefinite (a row of 1e30), take no step.
    no_step = 1e150 * torch.eye(sites.z.shape[-1], dtype=torch.float64, device=sites.z.device)
    prior = sites.vae.prior.bend(sites.z)
    expected = cholesky(prior.positive + finite(derivatives.fisher), no_step)
    observed = cholesky(prior.hessian + finite(derivatives.hessian), expected)
    uphill = (derivatives.gradient + prior.gradient).nan_to_num(0.0, 0.0, 0.0)
    steps = [by_matrix(solved, uphill[..., None], factor)[0][..., 0] for factor in (observed, expected)]
    tried = [along(sites, step, sizes) for step, sizes in zip(steps, (NEWTON_SIZES, GAUSS_NEWTON_SIZES), strict=True)]
    return sites.best_of(torch.cat(tried)), by_matrix(inverted, observed)[0]


def quasi_newton(sites: Sites, covariance: Tensor, steps: int) -> Sites:
    """Steps with a covariance, shape (N, L, L), updated from the gradients (BFGS; Nocedal and Wright, 2006)."""
    if not steps:
        return sites
    uphill = uphill_at(sites)
    for number in range(steps):
        moved = sites.best_of(along(sites, mapped(covariance, uphill[None])[0], QUASI_NEWTON_SIZES))
        if number < steps - 1:
            slope = uphill_at(moved)
            stuck = (moved.z == sites.z).all(dim=-1)[:, None, None]
            covariance = updated(covariance, (moved.z - sites.z).double(), uphill - slope)
            covariance = torch.where(stuck, SHORTER * covariance, covariance)
            uphill = slope
        sites = moved
    return sites


def updated(covariance: Tensor, step: Tensor, fall: Tensor) -> Tensor:
    """The BFGS update of the covariance, shape (N, L, L), for a step and the fall of the gradient over it, both (N, L).

    Unchanged if the gradient rose or hardly fell: log p(x, z) is not concave there.
    """
    expected = mapped(covariance, fall[None])[0]
    agreement = (step * fall).sum(dim=-1)
    usable = agreement > 1e-3 * step.square().sum(dim=-1)
    scale = torch.where(usable, 1.0 / agreement.clamp(min=1e-300), 0.0)[:, None, None]
    stretch = 1.0 + scale * (fall * expected).sum(dim=-1)[:, None, None]
    cross = step[:, :, None] * expected[:, None]
    new = covariance + scale * (stretch * step[:, :, None] * step[:, None] - cross - cross.mT)
    return torch.where(usable[:, None, None], new, covariance)


def along(sites: Sites, step: Tensor, sizes: tuple[float, ...]) -> Tensor:
    """Candidate latents: a step, shape (N, L), taken in T sizes: shape (T, N, L)."""
    scales = torch.tensor(sizes, dtype=step.dtype, device=step.device)[:, None, None]
    return (sites.z.double() + scales * step).to(sites.z.dtype)


def solved(right: Tensor, factor: Tensor) -> tuple[Tensor]:
    """The solution of a linear system, from the Cholesky factor of its matrix."""
    return (torch.cholesky_solve(right, factor),)


def inverted(factor: Tensor) -> tuple[Tensor]:
    """The inverse of a matrix, from its Cholesky factor."""
    return (torch.cholesky_inverse(factor),)


def uphill_at(sites: Sites) -> Tensor:
    slope = gradient(sites.vae, sites.x, sites.z) + sites.vae.prior.slope(sites.z)
    return slope.nan_to_num(0.0, 0.0, 0.0)


def cholesky(precision: Tensor, otherwise: Tensor) -> Tensor:
    """The Cholesky factor of each precision, shape (N, L, L), or `otherwise` if it is not positive definite."""
    factor, failed = by_matrix(torch.linalg.cholesky_ex, precision)
    # With extreme rounding (a row of 1e30) the factorisation may succeed without a positive diagonal.
    usable = (failed == 0) & (torch.diagonal(factor, dim1=-2, dim2=-1) > 0).all(dim=-1)
    return torch.where(usable[:, None, None], factor, otherwise)


def finite(matrix: Tensor) -> Tensor:
    """The matrix, bounded so that its factorisation stays finite."""
    return matrix.nan_to_num(0.0, 1e30, -1e30).clamp(-1e30, 1e30)


def mode_at(sites: Sites) -> Mode:
    """The curvature and the scaled gradient at the sites."""
    derivatives, prior = curvature(sites.vae, sites.x, sites.z), sites.vae.prior.bend(sites.z)
    uphill = (derivatives.gradient + prior.gradient).nan_to_num(0.0, 0.0, 0.0)
    mode = Mode(*principal_axes(prior.hessian + finite(derivatives.hessian)), uphill)
    return Mode(mode.precision, mode.rotation, (mode.axes * mode.uphill[..., None]).sum(dim=1))


def principal_axes(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Precisions (N, L) and their axes, the columns of (N, L, L): widest first, inactive ones (the prior's) last."""
    precision, rotation = by_matrix(torch.linalg.eigh, hessian)
    order = ((precision - 1.0).abs() <= INACTIVE).to(torch.uint8).argsort(dim=-1, stable=True)
    return precision.gather(-1, order), rotation.gather(-1, order[:, None, :].expand_as(rotation))


def probes(axes: Tensor, probed_axes: int) -> tuple[Tensor, Tensor]:
    """Where to take gradients, in standard deviations from the mode: shapes (P, N, L) and (1, N, L).

    A little way out along each of the first axes, and along all axes at once.
    """
    latents = axes.shape[-1]
    alone = REACH * torch.eye(latents, dtype=axes.dtype, device=axes.device)[:probed_axes]
    together = 2.0 / math.sqrt(latents) * torch.ones_like(alone[:1])
    together[:, ::2] *= -1.0
    return alone[:, None].expand(-1, len(axes), -1), together[:, None].expand(-1, len(axes), -1)


def excess_slopes(sites: Sites, mode: Mode, out: Tensor) -> Tensor:
    """Gradients of log p(x, z) at mode + axes * out, minus those of a normal, for `out` of shape (P, N, L).

    In the coordinates of the axes, shape (P, N, L).
    """
    axes = mode.axes
    z = (sites.z.double() + mapped(axes, out)).to(sites.z.dtype)
    rows = sites.x.expand(len(z), -1, -1)
    slope = gradient(sites.vae, rows.flatten(0, 1), z.flatten(0, 1)).view(z.shape) + sites.vae.prior.slope(z)
    seen = mapped(axes.mT, slope.nan_to_num(0.0, 0.0, 0.0))
    straight = mode.uphill - out * (mode.precision / mode.kept)
    return (seen - straight).nan_to_num(math.inf, math.inf, -math.inf)


def fit(sites: Sites, mode: Mode, probed_axes: int) -> tuple[BentNormal, Tensor]:
    """Bent normals around the modes, from gradients along the widest axes, and a mask of normal posteriors, (N,)."""
    axes, uphill = mode.axes, mode.uphill
    alone, together = probes(axes, probed_axes)
    residual = excess_slopes(sites, mode, alone)  # (P, N, L); zero for a normal
    is_exact = (residual.abs() <= EXACT).all(dim=0).all(dim=-1)
    if is_exact.any():  # so far along each axis alone: check all axes together
        is_exact &= (excess_slopes(sites, mode, together).abs() <= EXACT).all(dim=0).all(dim=-1)
    third = (2.0 / REACH**2) * residual.movedim(0, 1)
    bend = torch.zeros_like(axes)  # bend[k, j] = T_kkj
    bend[:, : third.shape[1]] = third.clamp(-MAX_BEND, MAX_BEND).masked_fill(is_exact[:, None, None], 0.0)
    shift = uphill.clamp(-MAX_SHIFT, MAX_SHIFT) + (0.5 * bend.sum(dim=1)).clamp(-MAX_SHIFT, MAX_SHIFT)
    tails = torch.tensor(
        WIDE_TAILS if axes.shape[-1] <= FEW_LATENTS else TAILS, dtype=torch.float64, device=axes.device
    )
    normal = BentNormal(
        mean=sites.z.double() + mapped(axes, shift[None])[0],
        axes=axes,
        inverse=mode.inverse,
        bend=bend,
        # The split normal matches the third-order term two standard deviations out.
        skew=(torch.diagonal(bend, dim1=-2, dim2=-1) / 3.0).clamp(-MAX_SKEW, MAX_SKEW),
        tails=torch.where(is_exact[:, None], 1.0, tails),
    )
    return normal, is_exact


def fit_evaluations(latents: int, probed_axes: int) -> int:
    """The cost of `fit` in decoder evaluations: a gradient for each probed axis (and one more if the fit is exact)."""
    return 2 * min(latents, probed_axes)


def mode_evaluations(vae: VAE) -> float:
    """The cost of `mode_at` in decoder evaluations: forward, backward, one per latent, and the Jacobian's Gram matrix."""
    latents, features = vae.architecture.latents, vae.architecture.features
    return latents + 2 + latents**2 * features / vae.evaluation_size
