"""From starts to the proposal of a row: which modes its posterior has, and how much of it each of them holds.

Every pair of a row and a start is a search of its own. What becomes of it is decided by its own row's numbers: one that
ends far below another is dropped, one that has not arrived goes on, two that ended in the same place become one. Those that
are left at a stage go through the networks in tiles of a fixed number of pairs, whatever rows they belong to.
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
CONVERGED = 0.2  # nats that are not worth another step
MORE_ROUNDS = 6  # of a step by Newton, for a search that has not arrived
SAME = 1.0  # standard deviations between two ends of a search that are one mode
ENCODER_SHARE = 0.1
EVERY_AXIS = 2**20
MIN_SHARE = 0.02  # of the draws for a mode that looks unlikely


@dataclass(frozen=True, slots=True)
class Effort:
    """What a search may cost a row.

    Each of `rounds` says how many searches go on, the likeliest, and by how many steps that cost a gradient. Before the
    first come `newton_steps`; starts so many nats below the best, `start_window`, are not followed. At last third
    derivatives are taken along `probed_axes`.
    """

    rounds: tuple[tuple[int, int], ...]
    newton_steps: int = 0
    start_window: float = math.inf
    probed_axes: int = EVERY_AXIS

    @property
    def starts(self) -> int:
        """How many starts are followed at most."""
        return self.rounds[0][0]

    @property
    def modes(self) -> int:
        """How many modes are kept at most."""
        return self.rounds[-1][0]

    def evaluations(self, vae: VAE) -> float:
        """What it costs at most, in decoder evaluations, where all searches arrive."""
        newton = self.starts * laplace.climb_evaluations(vae, self.newton_steps, 0)
        climbs = sum(count * laplace.climb_evaluations(vae, 0, steps) for count, steps in self.rounds)
        around = laplace.mode_evaluations(vae) + laplace.fit_evaluations(vae.architecture.latents, self.probed_axes)
        return self.starts + newton + climbs + self.modes * around


@dataclass(frozen=True, slots=True)
class Tiles:
    """How many pairs of a row and a start go through the networks at a time, for gradients and for Jacobians.

    `check_cancelled` is called before each tile: it may raise, and so end a search whose result nobody wants any more.
    """

    gradients: int
    jacobians: int
    check_cancelled: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The proposals of a block, and for each real row what its best search had still to gain, nats, and what all cost."""

    proposal: Mixture
    remaining: list[float]
    evaluations: list[float]


def find(rows: Sites, starts: Tensor, encoder: DiagonalNormal, real: int, effort: Effort, tiles: Tiles) -> Found:
    """Proposals for a block of B rows.

    Args:
        rows: the rows, each at any latent.
        starts: latents to start from, shape (K, B, L); the likeliest of them are used.
        encoder: q(z | x) of the rows.
        real: how many of the rows are real; those behind them are copies that fill the block.
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
    """Pairs of a row and a latent that is on its way to a mode, for the time of one call of `find`."""

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
        """All pairs."""
        return list(range(len(self.row_of)))

    # In tiles

    def tiled(self, pairs: list[int], tile: int) -> Iterator[tuple[list[int], Tensor]]:
        """Pairs in parts of at most a tile, each also as indices that fill one, the last of them repeated."""
        for start in range(0, len(pairs), tile):
            self.tiles.check_cancelled()
            part = pairs[start : start + tile]
            filled = part + [part[-1]] * (tile - len(part))
            yield part, torch.tensor(filled, device=self.sites.z.device)

    def move(self, pairs: list[int], tile: int, function: Callable[[Sites, Tensor], Sites]) -> None:
        """Let a function of some pairs, and of the covariance that the encoder sees, move them."""
        z, log_joint = self.sites.z.clone(), self.sites.log_joint.clone()
        for part, index in self.tiled(pairs, tile):
            moved = function(self.sites.select(index), self.encoded[index])
            z[part], log_joint[part] = moved.z[: len(part)], moved.log_joint[: len(part)]
        self.sites = replace(self.sites, z=z, log_joint=log_joint)

    def climb(self, pairs: list[int], newton_steps: int, quasi_newton_steps: int) -> None:
        """Move some pairs towards a mode."""
        tile = self.tiles.jacobians if newton_steps else self.tiles.gradients
        self.move(pairs, tile, lambda sites, encoded: laplace.climb(sites, encoded, newton_steps, quasi_newton_steps))
        self.charge(pairs, laplace.climb_evaluations(self.sites.vae, newton_steps, quasi_newton_steps))

    def look_around(self, pairs: list[int]) -> None:
        """Note how log p(x, z) bends where some pairs are."""
        known = Mode(*(part.clone() for part in self.modes.parts()))
        for part, index in self.tiled(pairs, self.tiles.jacobians):
            seen = laplace.mode_at(self.sites.select(index))
            for old, new in zip(known.parts(), seen.parts(), strict=True):
                old[part] = new[: len(part)]
        self.modes = known
        self.charge(pairs, laplace.mode_evaluations(self.sites.vae))

    def fits(self, pairs: list[int], probed_axes: int) -> tuple[BentNormal, Tensor]:
        """Bent normals where some pairs are, and which of them are normals."""
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
        """Add to what the rows of some pairs have cost."""
        for pair in pairs:
            self.evaluations[self.row_of[pair]] += evaluations

    # Which go on

    def by_row(self, pairs: list[int]) -> list[list[int]]:
        """The pairs of each row, the likeliest first."""
        value = self.sites.log_joint.tolist()
        rows: list[list[int]] = [[] for _ in self.evaluations]
        for pair in sorted(pairs, key=lambda pair: (-value[pair], pair)):
            rows[self.row_of[pair]].append(pair)
        return rows

    def best(self, pairs: list[int], count: int, window: float) -> list[int]:
        """The likeliest pairs of each row: so many at most, and so many nats below the best at most."""
        value = self.sites.log_joint.tolist()
        return [pair for row in self.by_row(pairs) for pair in row[:count] if value[pair] >= value[row[0]] - window]

    def astray(self, pairs: list[int]) -> list[int]:
        """The pairs that have not arrived at a mode."""
        remaining = self.modes.remaining.tolist()
        return [pair for pair in pairs if remaining[pair] > CONVERGED]

    def distinct(self, pairs: list[int]) -> list[int]:
        """The pairs that are not where a likelier one of their row is."""
        rows = self.by_row(pairs)
        both = [(pair, better) for row in rows for at, pair in enumerate(row) for better in row[:at]]
        if not both:
            return pairs
        one, other = torch.tensor(both, device=self.sites.z.device).T
        apart = (self.sites.z[one] - self.sites.z[other]).double()
        distance = (self.modes.select(other).inverse * apart[:, None]).sum(dim=-1).square().sum(dim=-1)
        twins = {pair for (pair, _), near in zip(both, (distance < SAME**2).tolist(), strict=True) if near}
        return [pair for pair in pairs if pair not in twins]

    # What is found

    def weighed(self, pairs: list[int], encoder: DiagonalNormal, effort: Effort) -> Found:
        """A mixture for each row of what was found, by how much of the posterior each mode seems to hold."""
        normals, exact = self.fits(pairs, effort.probed_axes)
        place = {pair: at for at, pair in enumerate(pairs)}
        rows = [[place[pair] for pair in row] for row in self.by_row(pairs)]
        rows += rows[-1:] * (self.size - len(rows))  # the copies
        # Always so many components: sums of other numbers of terms round differently.
        slots = torch.tensor([row + row[:1] * (effort.modes - len(row)) for row in rows], device=exact.device)  # (B, K)
        counts = torch.tensor([len(row) for row in rows], device=exact.device)[:, None]
        taken = torch.arange(effort.modes, device=exact.device) < counts
        height = self.sites.log_joint[torch.tensor(pairs, device=exact.device)]
        evidence = (height + 0.5 * self.latents * LOG_2PI + normals.log_volume())[slots].masked_fill(~taken, -math.inf)
        shares = ((1.0 - MIN_SHARE * counts) * evidence.softmax(dim=-1) + MIN_SHARE) * taken
        # Where the posterior is a normal, and one, all weights are equal without the encoder.
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
