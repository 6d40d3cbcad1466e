"""Where a row's posterior has its mass: a search for a mode, and a split normal around it.

    H = I - d^2 log p(x | z) / dz^2                          the precision of p(z | x) at a mode
    z <- z + t H^{-1} grad_z log p(x, z)                     Newton's step, with the t that raises log p(x, z) most

Where H is not positive definite, the Fisher information takes the Hessian's place (Gauss-Newton). At the mode, log p(x, z)
is probed two standard deviations out along each principal axis, on both sides: where it falls faster or slower than a
normal's, that side gets a scale of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from service.density.proposals import SplitNormal
from service.vae.alike import by_matrix
from service.vae.conditional import Conditional
from service.vae.curvature import curvature, gradient
from service.vae.likelihoods import LOG_2PI
from service.vae.network import VAE

NEWTON_SIZES = (1.0, 0.4, 0.1)
CHORD_SIZES = (1.0, 0.4)
PROBE = 2.0  # standard deviations from the mode
MIN_PRECISION = 0.25  # of an axis; the prior alone has 1
SCALES = (0.4, 2.0)  # the range of a side's scale
TAILS = (1.05, 1.2, 1.45)  # a little wider than the normal, with tails a little heavier
# A probe this close to a normal's fall, in relative terms, says that the posterior is one; so close that what is left is
# rounding.
EXACT = 1e-3


@dataclass(frozen=True, slots=True)
class Sites:
    """N pairs of a row and a latent that the search moves: x (N, D), z (N, L), log_joint (N,) in float64."""

    vae: VAE
    x: Tensor
    given: Conditional
    z: Tensor
    log_joint: Tensor

    @staticmethod
    def at(vae: VAE, x: Tensor, given: Conditional, z: Tensor) -> Sites:
        """Rows x, shape (N, D), each at its latent z, shape (N, L)."""
        return Sites(vae, x, given, z, log_joint(vae, given, z[None])[0])

    def better_of(self, other: Sites) -> Sites:
        """Each row at the likelier of two latents."""
        return self.moved(torch.stack([self.z, other.z]), torch.stack([self.log_joint, other.log_joint]))

    def moved(self, z: Tensor, log_joints: Tensor) -> Sites:
        """Each row at the likeliest of some latents, shape (T, N, L), whose log_joint is (T, N)."""
        best = log_joints.argmax(dim=0)
        row = torch.arange(len(best), device=best.device)
        return Sites(self.vae, self.x, self.given, z[best, row], log_joints[best, row])


@dataclass(frozen=True, slots=True)
class Fit:
    """Split normals around N modes; the rest has shape (N,).

    `log_evidence` is what the split normal says of log p(x), `is_exact` whether the posterior is a normal, `remaining` by
    how much Newton's next step would raise log p(x, z), nats: a search that has arrived has nothing left to gain.
    """

    normal: SplitNormal
    log_evidence: Tensor
    is_exact: Tensor
    remaining: Tensor

    @staticmethod
    def concatenated(fits: list[Fit]) -> Fit:
        """Fits of some rows and of others as one."""
        return Fit(
            SplitNormal.concatenated([each.normal for each in fits]),
            torch.cat([each.log_evidence for each in fits]),
            torch.cat([each.is_exact for each in fits]),
            torch.cat([each.remaining for each in fits]),
        )

    def merged_into(self, fits: Fit, rows: list[int]) -> Fit:
        """The fits of all rows, with this one's first ones in the place of some rows'."""
        pick = torch.arange(len(fits.remaining), device=fits.remaining.device)
        pick[rows] = torch.arange(len(rows), device=pick.device) + len(pick)
        both = Fit.concatenated([fits, self])
        normal = both.normal.select(pick)
        return Fit(normal, both.log_evidence[pick], both.is_exact[pick], both.remaining[pick])


def log_joint(vae: VAE, given: Conditional, z: Tensor) -> Tensor:
    """log p(x, z) for z of shape (S, N, L): shape (S, N), float64, finite."""
    value = given.log_prob(z) + vae.prior().log_prob(z)
    return value.nan_to_num(-1e300, -1e300, -1e300)


def climb(sites: Sites, newton_steps: int, chord_steps: int) -> Sites:
    """Towards a mode: by Newton's steps, then by some with the last Hessian, which cost a gradient only."""
    factor = None
    for _ in range(newton_steps):
        bend = curvature(sites.vae, sites.x, sites.z)
        factor = cholesky(bend.hessian, bend.fisher)
        sites = stepped(sites, bend.gradient, factor, NEWTON_SIZES)
    for _ in range(chord_steps):
        assert factor is not None
        sites = stepped(sites, gradient(sites.vae, sites.x, sites.z), factor, CHORD_SIZES)
    return sites


def climb_evaluations(latents: int, newton_steps: int, chord_steps: int) -> int:
    """What `climb` costs a row in decoder evaluations: a Jacobian is one for each latent and two for its Gram matrix."""
    return newton_steps * (latents + 2 + len(NEWTON_SIZES)) + chord_steps * (2 + len(CHORD_SIZES))


def stepped(sites: Sites, slope: Tensor, factor: Tensor, step_sizes: tuple[float, ...]) -> Sites:
    """Newton's step from the gradient of log p(x | z), shape (N, L), or none where none of its sizes goes up."""
    uphill = uphill_at(sites, slope)
    step = by_matrix(solved, uphill[..., None], factor)[0][..., 0]
    sizes = torch.tensor(step_sizes, dtype=step.dtype, device=step.device)[:, None, None]
    tried = (sites.z.double() + sizes * step).to(sites.z.dtype)  # (T, N, L)
    values = log_joint(sites.vae, sites.given, tried)
    return sites.moved(torch.cat([sites.z[None], tried]), torch.cat([sites.log_joint[None], values]))


def solved(right: Tensor, factor: Tensor) -> tuple[Tensor]:
    """The solution of a linear system, by the Cholesky factor of its matrix."""
    return (torch.cholesky_solve(right, factor),)


def uphill_at(sites: Sites, slope: Tensor) -> Tensor:
    """The gradient of log p(x, z), shape (N, L), from that of log p(x | z)."""
    return (slope - sites.z.double()).nan_to_num(0.0, 0.0, 0.0)


def cholesky(hessian: Tensor, fisher: Tensor) -> Tensor:
    """The Cholesky factor of I + hessian, or where there is none of I + fisher: shape (N, L, L)."""
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    exact, failed = by_matrix(torch.linalg.cholesky_ex, identity + finite(hessian))
    fallback = by_matrix(torch.linalg.cholesky_ex, identity + finite(fisher))[0].nan_to_num(0.0, 0.0, 0.0)
    # Where rounding has the last word even there (a row of 1e30), no step is taken.
    diagonal = torch.diagonal(fallback, dim1=-2, dim2=-1)
    usable = (diagonal > 0).all(dim=-1)[:, None, None]
    fallback = torch.where(usable, fallback, identity * 1e150)
    return torch.where((failed == 0)[:, None, None], exact, fallback)


def finite(matrix: Tensor) -> Tensor:
    """The same, with a bound that keeps a factorisation finite."""
    return matrix.nan_to_num(0.0, 1e30, -1e30).clamp(-1e30, 1e30)


def fit(sites: Sites, probed_axes: int) -> Fit:
    """Split normals around the modes, probed along their widest axes."""
    latents = sites.z.shape[-1]
    bend = curvature(sites.vae, sites.x, sites.z)
    identity = torch.eye(latents, dtype=torch.float64, device=sites.z.device)
    precision, rotation = by_matrix(torch.linalg.eigh, identity + finite(bend.hessian))
    precision = precision.clamp(min=MIN_PRECISION)
    axes = rotation / precision.sqrt()[:, None, :]
    mean = sites.z.double()
    # The axes come widest first; along the narrow ones a posterior is close to a normal.
    out = PROBE * axes[:, :, :probed_axes].permute(2, 0, 1)  # (A, N, L)
    probes = torch.cat([mean - out, mean + out]).to(sites.z.dtype)
    unprobed_axes = latents - len(out)
    if unprobed_axes:  # the others are probed together: a posterior is a normal only if it is one along them, too
        together = PROBE * axes[:, :, probed_axes:].sum(dim=-1) / math.sqrt(unprobed_axes)
        probes = torch.cat([probes, torch.stack([mean - together, mean + together]).to(sites.z.dtype)])
    fall = sites.log_joint - log_joint(sites.vae, sites.given, probes)  # (2 A or 2 A + 2, N)
    scales = (0.5 * PROBE**2 / fall.clamp(min=1e-6)).sqrt().clamp(*SCALES)
    is_exact = ((scales - 1.0).abs() <= EXACT).all(dim=0)
    below, above = torch.where(is_exact, 1.0, scales[: 2 * len(out)]).chunk(2)
    unprobed = torch.ones((len(mean), unprobed_axes), dtype=torch.float64, device=mean.device)
    tails = torch.tensor(TAILS, dtype=torch.float64, device=sites.z.device)
    normal = SplitNormal(
        mean=mean,
        axes=axes,
        inverse=(rotation * precision.sqrt()[:, None, :]).mT.contiguous(),
        below=torch.cat([below.T, unprobed], dim=1),
        above=torch.cat([above.T, unprobed], dim=1),
        tails=torch.where(is_exact[:, None], 1.0, tails),
    )
    log_evidence = sites.log_joint + 0.5 * latents * LOG_2PI + normal.log_volume()
    decrement = (rotation * uphill_at(sites, bend.gradient)[..., None]).sum(dim=1).square() / precision
    return Fit(normal, log_evidence, is_exact, 0.5 * decrement.sum(dim=-1).clamp(max=1e300))


def fit_evaluations(latents: int, probed_axes: int) -> int:
    """What `fit` costs a row in decoder evaluations: a Jacobian, and two probes for each axis that is probed."""
    return latents + 2 + 2 * min(latents, probed_axes + 1)
