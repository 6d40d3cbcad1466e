"""From search starts to a row's proposal: the modes of its posterior, and how much mass each holds.

Every pair of a row and a start is a search of its own, and only the row's own numbers decide its fate: a search that ends
far below another is dropped, one that has not converged continues, and two that end at the same mode become one. The
searches that remain at a stage go through the networks together, whichever rows they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.density import laplace
from service.density.laplace import Derivatives, Mode, Sites
from service.density.proposals import BentNormal, Diagonal, Mixture
from service.density.tiling import Tiling
from service.system.cancellation import CheckCancelled, never_cancelled
from service.vae.conditional import Conditional
from service.vae.determinism import aligned
from service.vae.likelihoods import LOG_2PI
from service.vae.network import VAE, DiagonalNormal

WINDOW = 20.0  # nats below a row's best mode: e^-20 of the mass is not worth a search
CONVERGED = 0.2  # nats: a smaller predicted gain is not worth another step
MORE_ROUNDS = 6  # Newton steps for a search that has not converged
SAME = 1.0  # standard deviations: searches that end closer than this found the same mode
ENCODER_SHARE = 0.1
EVERY_AXIS = 2**20
MIN_SHARE = 0.02  # least share of the draws for a mode, however unlikely it looks


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a row's search may cost.

    Each of `rounds` is a pair: how many of the best searches continue, and for how many quasi-Newton steps, which need only
    a gradient. `newton_steps` come before the first round. Starts more than `start_window` nats below the best are dropped.
    Finally, third derivatives are taken along `probed_axes`.
    """

    rounds: tuple[tuple[int, int], ...]
    newton_steps: int = 0
    start_window: float = math.inf
    probed_axes: int = EVERY_AXIS

    @property
    def starts(self) -> int:
        """The largest number of starts followed."""
        return self.rounds[0][0]

    @property
    def modes(self) -> int:
        """The largest number of modes kept."""
        return self.rounds[-1][0]

    def evaluations(self, vae: VAE) -> float:
        """The largest cost in decoder evaluations if all searches converge."""
        climbs = sum(count * laplace.quasi_newton_evaluations(steps) for count, steps in self.rounds)
        around = laplace.derivatives_evaluations(vae)
        around += laplace.fit_evaluations(vae.architecture.latents, self.probed_axes)
        return self.starts * (1 + self.newton_steps * laplace.newton_evaluations(vae)) + climbs + self.modes * around


@dataclass(frozen=True, slots=True)
class Found:
    """A block's proposals; for each row the gain still predicted for its best search, nats, and the total cost: (B,)."""

    proposal: Mixture
    remaining: np.ndarray
    evaluations: np.ndarray


def find(
    vae: VAE,
    given: Conditional,
    encoder: DiagonalNormal,
    starts: Tensor,
    effort: Effort,
    tiling: Tiling,
    check_cancelled: CheckCancelled = never_cancelled,
) -> Found:
    """Proposals for a block of B rows.

    Args:
        encoder: q(z | x) of the rows.
        starts: latents to start from, shape (B, K, L); those with the highest log p(x, z) are used.
        check_cancelled: called before each tile; it may raise, which ends a search whose result is no longer wanted.
    """
    search = Search(vae, given, encoder, starts, tiling, check_cancelled)
    (_, first_steps), *later = effort.rounds
    search.keep_best(effort.starts, effort.start_window)
    search.climb(effort.newton_steps, first_steps)
    for count, steps in later:
        search.keep_best(count, math.inf)
        search.climb(0, steps)
    search.keep_best(effort.modes, WINDOW)
    search.converge()
    search.keep_best(effort.modes, WINDOW)
    search.drop_twins()
    return search.found(effort)


class Search:
    """K searches for each of B rows, for one call of `find`: latents on their way to a mode.

    `z` (B, K, L), `value` = log p(x, z) (B, K), and `modes` once the searches have ended; only those in `alive` (B, K)
    still count.
    """

    def __init__(
        self,
        vae: VAE,
        given: Conditional,
        encoder: DiagonalNormal,
        starts: Tensor,
        tiling: Tiling,
        check_cancelled: CheckCancelled,
    ) -> None:
        self.vae, self.given, self.encoder = vae, given, encoder
        self.tiling, self.check_cancelled = tiling, check_cancelled
        self.z, self.alive = starts, torch.ones(starts.shape[:2], dtype=torch.bool, device=starts.device)
        self.value = laplace.log_joint(vae, given, starts)
        self.modes: Mode | None = None
        self.evaluations = torch.full_like(self.value[:, 0], starts.shape[1])

    # Which continue

    def keep_best(self, count: int, window: float) -> None:
        """Keep the best searches of each row, in order: at most `count`, and at most `window` nats below the best one."""
        value = self.value.masked_fill(~self.alive, -math.inf)
        ranked, order = value.sort(dim=1, descending=True, stable=True)
        ranked, order = ranked[:, :count], order[:, :count]
        rows = torch.arange(len(order), device=order.device)[:, None]
        self.alive = self.alive[rows, order] & (ranked >= ranked[:, :1] - window)
        self.z, self.value = self.z[rows, order], self.value[rows, order]
        self.modes = self.modes and self.modes.select((rows, order))

    def drop_twins(self) -> None:
        """Drop searches that ended at the same mode as a better one of their row."""
        assert self.modes is not None
        ended = self.alive.clone()
        for later in range(1, ended.shape[1]):
            apart = (self.z[:, later, None] - self.z[:, :later]).double()  # (B, later, L)
            inverse = self.modes.select((slice(None), slice(later))).inverse
            distance = (inverse * apart[..., None, :]).sum(dim=-1).square().sum(dim=-1)
            self.alive[:, later] &= ~((distance < SAME**2) & ended[:, :later]).any(dim=1)

    # In tiles

    def tiles(self, evaluations: int) -> Iterator[tuple[Tensor, Tensor, Sites]]:
        """The rows, slots and sites of the searches, in tiles by what one costs."""
        count = self.alive.shape[1]
        for index in self.tiling.tiles(self.alive.flatten().nonzero()[:, 0], evaluations):
            self.check_cancelled()
            rows, slots = index // count, index % count
            yield rows, slots, Sites(self.vae, self.given.select(rows), self.z[rows, slots], self.value[rows, slots])

    def climb(self, newton_steps: int, quasi_newton_steps: int) -> None:
        """Newton steps first, then quasi-Newton steps, which need only a gradient."""
        latents = self.z.shape[-1]
        for rows, slots, start in self.tiles(max(1, latents // 4) if newton_steps else 1):
            sites, covariance = start, torch.diag_embed(self.encoder.std[rows].double().square())
            for _ in range(newton_steps):
                sites, covariance = laplace.newton(sites, Derivatives.at(sites))
            sites = laplace.quasi_newton(sites, covariance, quasi_newton_steps)
            self.z[rows, slots], self.value[rows, slots] = sites.z, sites.log_joint
        cost = newton_steps * laplace.newton_evaluations(self.vae)
        self.charge(self.alive, cost + laplace.quasi_newton_evaluations(quasi_newton_steps))

    def converge(self) -> None:
        """Look at the curvature around each search, and take further Newton steps while it is not at a mode."""
        self.modes, steps = Mode.unknown(self.z), torch.zeros_like(self.value)
        for tile in self.tiles(max(1, self.z.shape[-1] // 4)):
            rows, slots, sites = tile
            for number in range(MORE_ROUNDS + 1):
                known = Derivatives.at(sites)
                mode = laplace.mode_of(known)
                self.z[rows, slots], self.value[rows, slots] = sites.z, sites.log_joint
                self.modes.put((rows, slots), mode)
                astray = aligned((mode.remaining > CONVERGED).nonzero()[:, 0], self.tiling.step)
                if number == MORE_ROUNDS or not len(astray):
                    break
                rows, slots, sites, known = rows[astray], slots[astray], sites.select(astray), known.select(astray)
                sites, _ = laplace.newton(sites, known)
                steps[rows, slots] = number + 1
        self.charge(self.alive, laplace.derivatives_evaluations(self.vae))
        self.evaluations += steps.sum(dim=1) * laplace.newton_evaluations(self.vae)

    def charge(self, chosen: Tensor, evaluations: float) -> None:
        """Charge each row for its chosen searches, by a mask (B, K)."""
        self.evaluations += chosen.sum(dim=1) * evaluations

    # The proposal

    def found(self, effort: Effort) -> Found:
        """A mixture for each row of the modes found, weighted by the Laplace estimate of their posterior mass."""
        assert self.modes is not None
        alive, latents = self.alive, self.z.shape[-1]
        normals = [
            BentNormal.unknown(len(alive), latents, effort.probed_axes, len(laplace.TAILS), self.z.device)
            for _ in alive[0]
        ]
        exact = ~alive
        for rows, slots, sites in self.tiles(max(1, min(latents, effort.probed_axes) // 4)):
            normal, is_exact = laplace.fit(sites, self.modes.select((rows, slots)), effort.probed_axes)
            exact[rows, slots] = is_exact
            for slot, one in enumerate(normals):
                mine = slots == slot
                one.put(rows[mine], normal.select(mine))
        self.charge(alive, laplace.fit_evaluations(latents, effort.probed_axes))
        self.charge(exact & alive, 2)
        counts = alive.sum(dim=1, keepdim=True)
        log_volume = torch.stack([one.log_volume for one in normals], dim=1)
        evidence = (self.value + 0.5 * latents * LOG_2PI + log_volume).masked_fill(~alive, -math.inf)  # (B, K)
        shares = ((1.0 - MIN_SHARE * counts) * evidence.softmax(dim=-1) + MIN_SHARE) * alive
        # If the posterior is a single normal, leaving out the encoder makes all weights equal.
        encoder_share = ENCODER_SHARE * (~exact.all(dim=-1, keepdim=True) | (counts > 1)).double()
        shares = torch.cat([shares * (1.0 - encoder_share), encoder_share], dim=-1)
        best = evidence.argmax(dim=1, keepdim=True)
        return Found(
            Mixture([*normals, Diagonal(self.encoder)], shares),
            self.modes.remaining.gather(1, best)[:, 0].cpu().numpy(),
            self.evaluations.cpu().numpy(),
        )
