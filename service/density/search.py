"""From search starts to a row's proposal: the modes of its posterior, and how much mass each holds.

Every pair of a row and a start is a search of its own, and only the row's own numbers decide its fate: a search that ends
far below another is dropped, one that has not converged continues, and two that end at the same mode become one. The
searches that remain at a stage go through the networks in tiles of a fixed number of pairs, whichever rows they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.density import laplace
from service.density.laplace import Mode, Sites
from service.density.proposals import BentNormal, Diagonal, Mixture
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
        newton = self.starts * laplace.climb_evaluations(vae, self.newton_steps, 0)
        climbs = sum(count * laplace.climb_evaluations(vae, 0, steps) for count, steps in self.rounds)
        around = laplace.mode_evaluations(vae) + laplace.fit_evaluations(vae.architecture.latents, self.probed_axes)
        return self.starts + newton + climbs + self.modes * around


@dataclass(frozen=True, slots=True)
class Tiles:
    """How many pairs of a row and a start go through the networks at a time, for gradients and for Jacobians.

    `check_cancelled` is called before each tile and may raise, which ends a search whose result is no longer wanted.
    """

    gradients: int
    jacobians: int
    check_cancelled: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Found:
    """A block's proposals, and for each real row the gain still predicted for its best search, nats, and the total cost."""

    proposal: Mixture
    remaining: list[float]
    evaluations: list[float]


def find(rows: Sites, starts: Tensor, encoder: DiagonalNormal, real: int, effort: Effort, tiles: Tiles) -> Found:
    """Proposals for a block of B rows.

    Args:
        rows: the rows; their latents are ignored.
        starts: latents to start from, shape (K, B, L); those with the highest log p(x, z) are used.
        encoder: q(z | x) of the rows.
        real: how many of the rows are real; the rows after them are copies that pad the block.
    """
    searches = Searches(rows, starts, encoder, real, tiles)
    (_, first_steps), *later = effort.rounds
    chosen = searches.best(searches.everyone(), effort.starts, effort.start_window)
    searches.climb(chosen, effort.newton_steps, first_steps)
    for count, steps in later:
        chosen = searches.best(chosen, count, math.inf)
        searches.climb(chosen, 0, steps)
    chosen = searches.best(chosen, effort.modes, WINDOW)
    searches.look_around(chosen)
    for _ in range(MORE_ROUNDS):
        astray = searches.astray(chosen)
        searches.climb(astray, 1, 0)
        searches.look_around(astray)
    chosen = searches.distinct(searches.best(chosen, effort.modes, WINDOW))
    return searches.weighed(chosen, encoder, effort)


class Searches:
    """Pairs of a row and a latent on its way to a mode, for one call of `find`."""

    def __init__(self, rows: Sites, starts: Tensor, encoder: DiagonalNormal, real: int, tiles: Tiles) -> None:
        self.tiles, self.size, self.latents = tiles, starts.shape[1], starts.shape[2]
        self.row_of = [row for _ in starts for row in range(real)]
        self.evaluations = [0.0] * real
        index = torch.tensor(self.row_of, device=starts.device)
        self.sites = replace(rows.select(index), z=starts[:, :real].flatten(0, 1))
        self.encoded = torch.diag_embed(encoder.std.double().square())[index]
        axes = torch.zeros((len(index), self.latents, self.latents), dtype=torch.float64, device=starts.device)
        self.modes = Mode(axes[..., 0], axes, axes[..., 0])
        self.move(self.everyone(), tiles.gradients, lambda sites, _: sites.evaluated())
        self.charge(self.everyone(), 1)

    def everyone(self) -> list[int]:
        return list(range(len(self.row_of)))

    # In tiles

    def tiled(self, pairs: list[int], tile: int) -> Iterator[tuple[list[int], Tensor]]:
        """Pairs in parts of at most a tile, each with indices padded to a full tile by repeating the last."""
        for start in range(0, len(pairs), tile):
            self.tiles.check_cancelled()
            part = pairs[start : start + tile]
            filled = part + [part[-1]] * (tile - len(part))
            yield part, torch.tensor(filled, device=self.sites.z.device)

    def move(self, pairs: list[int], tile: int, function: Callable[[Sites, Tensor], Sites]) -> None:
        """Replace some pairs by a function of them and of the encoder's covariance."""
        z, log_joint = self.sites.z.clone(), self.sites.log_joint.clone()
        for part, index in self.tiled(pairs, tile):
            moved = function(self.sites.select(index), self.encoded[index])
            z[part], log_joint[part] = moved.z[: len(part)], moved.log_joint[: len(part)]
        self.sites = replace(self.sites, z=z, log_joint=log_joint)

    def climb(self, pairs: list[int], newton_steps: int, quasi_newton_steps: int) -> None:
        tile = self.tiles.jacobians if newton_steps else self.tiles.gradients
        self.move(pairs, tile, lambda sites, encoded: laplace.climb(sites, encoded, newton_steps, quasi_newton_steps))
        self.charge(pairs, laplace.climb_evaluations(self.sites.vae, newton_steps, quasi_newton_steps))

    def look_around(self, pairs: list[int]) -> None:
        """Compute the curvature of log p(x, z) at some pairs, and store it in `modes`."""
        known = Mode(*(part.clone() for part in self.modes.parts()))
        for part, index in self.tiled(pairs, self.tiles.jacobians):
            seen = laplace.mode_at(self.sites.select(index))
            for old, new in zip(known.parts(), seen.parts(), strict=True):
                old[part] = new[: len(part)]
        self.modes = known
        self.charge(pairs, laplace.mode_evaluations(self.sites.vae))

    def fits(self, pairs: list[int], probed_axes: int) -> tuple[BentNormal, Tensor]:
        """Bent normals at some pairs, and a mask of those that are exactly normal."""
        normals, exact = [], []
        for part, index in self.tiled(pairs, self.tiles.jacobians):
            normal, is_exact = laplace.fit(self.sites.select(index), self.modes.select(index), probed_axes)
            normals.append(normal.select(slice(len(part))))
            exact.append(is_exact[: len(part)])
        self.charge(pairs, laplace.fit_evaluations(self.latents, probed_axes))
        is_exact = torch.cat(exact)
        self.charge([pair for pair, one in zip(pairs, is_exact.tolist(), strict=True) if one], 2)
        return BentNormal.concatenated(normals), is_exact

    def charge(self, pairs: list[int], evaluations: float) -> None:
        for pair in pairs:
            self.evaluations[self.row_of[pair]] += evaluations

    # Which continue

    def by_row(self, pairs: list[int]) -> list[list[int]]:
        """The pairs of each row, by descending log p(x, z)."""
        value = self.sites.log_joint.tolist()
        rows: list[list[int]] = [[] for _ in self.evaluations]
        for pair in sorted(pairs, key=lambda pair: (-value[pair], pair)):
            rows[self.row_of[pair]].append(pair)
        return rows

    def best(self, pairs: list[int], count: int, window: float) -> list[int]:
        """The best pairs of each row: at most `count`, and at most `window` nats below the best one."""
        value = self.sites.log_joint.tolist()
        return [pair for row in self.by_row(pairs) for pair in row[:count] if value[pair] >= value[row[0]] - window]

    def astray(self, pairs: list[int]) -> list[int]:
        """The pairs that have not converged to a mode."""
        remaining = self.modes.remaining.tolist()
        return [pair for pair in pairs if remaining[pair] > CONVERGED]

    def distinct(self, pairs: list[int]) -> list[int]:
        """The pairs without those at the same mode as a better pair of their row."""
        rows = self.by_row(pairs)
        both = [(pair, better) for row in rows for at, pair in enumerate(row) for better in row[:at]]
        if not both:
            return pairs
        one, other = torch.tensor(both, device=self.sites.z.device).T
        apart = (self.sites.z[one] - self.sites.z[other]).double()
        distance = (self.modes.select(other).inverse * apart[:, None]).sum(dim=-1).square().sum(dim=-1)
        twins = {pair for (pair, _), near in zip(both, (distance < SAME**2).tolist(), strict=True) if near}
        return [pair for pair in pairs if pair not in twins]

    # The proposal

    def weighed(self, pairs: list[int], encoder: DiagonalNormal, effort: Effort) -> Found:
        """A mixture for each row of the modes found, weighted by the Laplace estimate of their posterior mass."""
        normals, exact = self.fits(pairs, effort.probed_axes)
        place = {pair: at for at, pair in enumerate(pairs)}
        rows = [[place[pair] for pair in row] for row in self.by_row(pairs)]
        rows += rows[-1:] * (self.size - len(rows))  # the copies
        # A fixed number of components: sums with other numbers of terms round differently.
        slots = torch.tensor([row + row[:1] * (effort.modes - len(row)) for row in rows], device=exact.device)  # (B, K)
        counts = torch.tensor([len(row) for row in rows], device=exact.device)[:, None]
        taken = torch.arange(effort.modes, device=exact.device) < counts
        height = self.sites.log_joint[torch.tensor(pairs, device=exact.device)]
        evidence = (height + 0.5 * self.latents * LOG_2PI + normals.log_volume())[slots].masked_fill(~taken, -math.inf)
        shares = ((1.0 - MIN_SHARE * counts) * evidence.softmax(dim=-1) + MIN_SHARE) * taken
        # If the posterior is a single normal, leaving out the encoder makes all weights equal.
        encoder_share = ENCODER_SHARE * (~exact[slots].all(dim=-1, keepdim=True) | (counts > 1)).double()
        remaining = self.modes.remaining.tolist()
        return Found(
            Mixture(
                [*(normals.select(slot) for slot in slots.T), Diagonal(encoder)],
                torch.cat([shares * (1.0 - encoder_share), encoder_share], dim=-1),
            ),
            [remaining[pairs[row[int(best)]]] for row, best in zip(rows, evidence.argmax(dim=-1), strict=True)],
            self.evaluations,
        )
