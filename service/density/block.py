"""A block of rows: proposals, rounds of draws, restarts and annealing, until each row is done.

A row's draws come from a seed derived from its own content, and every decision about it depends on its own numbers alone.
All arrays lead with the row. Rows that are done leave the rounds; the others go on together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from service.density.annealing import annealed_log_weights
from service.density.diagnostics import IMPOSSIBLE, Diagnosis, diagnose
from service.density.estimator import END_TOLERANCE, MAX_SAMPLES, Estimator
from service.density.proposals import BentNormal
from service.density.quasirandom import Points, row_generator, row_points, row_shifts, shifted_points
from service.density.search import Found, find
from service.density.starts import SearchStarts
from service.density.tiling import Tiling, padded
from service.system.cancellation import CheckCancelled, never_cancelled
from service.vae.conditional import Conditional, conditional
from service.vae.determinism import aligned
from service.vae.network import VAE

MOST_MISSING = 200.0  # nats by which an estimate may be off if the mode search has not converged
MAX_REMAINING = 1.0  # nats that a mode search may still have to gain for its row to be reliable
SEED_STRIDE = 1_000_003  # between the seeds of two stages
PARTICLES, TEMPERATURES, LEAPFROGS, LEAPFROG_STEP = 32, 32, 2, 0.6  # of the annealing
# In standard errors: 1.96 for one look, this for the eight doublings of `standard` (Bonferroni, Student's t).
LOOKS = 3.0
VOUCHED_SAMPLES = 128
NUMBERS_AT_ONCE = 2**17  # coordinates of draws in a tile: so many fit into a CPU's caches
RESTART_SAMPLES = 512  # with fewer, khat says little


@dataclass(frozen=True, slots=True)
class Estimates(Diagnosis):
    """log p(x) of B rows with diagnostics; arrays of shape (B,), float64.

    `khat` is NaN if there is no tail to fit. `reliable` is True if khat, ess and the search for modes give no reason to
    doubt the estimate. Even if it is False, one bound holds: at each look, the estimate exceeds log p(x) by more than b
    nats with probability at most exp(-b). `num_samples` is the number of draws behind the estimate, `evaluations` its
    total cost in decoder evaluations.
    """

    num_samples: np.ndarray
    evaluations: np.ndarray

    @staticmethod
    def unknown(rows: int, evaluations: np.ndarray) -> Estimates:
        """Of rows for which nothing but a search has been done, at this cost."""
        numbers = np.zeros((4, rows))
        return Estimates(*numbers, np.zeros(rows, dtype=bool), np.zeros(rows, dtype=int), evaluations)  # type: ignore[call-arg]

    def put(self, rows: np.ndarray, found: Diagnosis) -> None:
        """Replace the numbers of some rows."""
        for entry in fields(found):
            getattr(self, entry.name)[rows] = getattr(found, entry.name)[: len(rows)]

    @staticmethod
    def concatenated(parts: Sequence[Estimates]) -> Estimates:
        """The estimates of several groups of rows, in order."""
        return Estimates(*(np.concatenate([getattr(one, entry.name) for one in parts]) for entry in fields(Estimates)))

    def select(self, rows: np.ndarray) -> Estimates:
        return Estimates(*(getattr(self, entry.name)[rows] for entry in fields(self)))


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of z for one row, shape (S, L), and their log weights, (S,), float64; or for B rows, with B before S."""

    z: Tensor
    log_weights: Tensor


class Block:
    """A block of B rows with their proposals, for one estimate.

    `estimates` holds what is known of each row so far; `draws` the first draws of each, as many as were asked for, and
    `kept` (B,) how many of them there are.
    """

    def __init__(
        self,
        estimator: Estimator,
        vae: VAE,
        starts: SearchStarts,
        rows: np.ndarray,
        band_ends: tuple[float, ...] = (),
        more_starts: Tensor | None = None,
        check_cancelled: CheckCancelled = never_cancelled,
        log_abs_det: np.ndarray | None = None,
        kept_draws: int = 0,
    ) -> None:
        self.check_cancelled, self.tiling = check_cancelled, Tiling.of(vae)
        self.estimator, self.vae, self.starts, self.band_ends = estimator, vae, starts, band_ends
        self.rows, filled = rows, padded(rows, self.tiling.step)
        self.log_abs_det = np.zeros(len(rows)) if log_abs_det is None else log_abs_det
        self.x = torch.from_numpy(filled).to(vae.device, vae.dtype)
        self.given: Conditional = conditional(vae, self.x)
        self.encoder = vae.posterior(self.x)
        self.latents = vae.architecture.latents
        found = self.search(more_starts)
        self.proposal, self.remaining = found.proposal, found.remaining[: len(rows)]
        lookup = estimator.starts_evaluations(vae, len(starts))
        self.estimates = Estimates.unknown(len(rows), found.evaluations[: len(rows)] + lookup)
        self.shifts = row_shifts(filled, self.seed(0), self.latents).to(vae.device)
        self.best_draw = self.encoder.mean.clone()
        self.best_log_weight = self.x.new_full((len(filled),), -math.inf, dtype=torch.float64)
        room = (len(filled), kept_draws)
        self.draws = Draws(self.x.new_zeros((*room, self.latents)), self.x.new_zeros(room, dtype=torch.float64))
        self.kept = np.zeros(len(rows), dtype=int)

    def __len__(self) -> int:
        return len(self.rows)

    # Proposals

    def search(self, more_starts: Tensor | None) -> Found:
        """Proposals for the rows, searched from the encoder's means, likely starts and `more_starts`, shape (B, K, L)."""
        effort = self.estimator.effort(self.latents)
        starts = [self.encoder.mean[:, None]]
        if effort.starts > 1:
            starts.append(self.starts.likeliest(self.x, effort.starts - 1))
        if more_starts is not None:
            starts.append(more_starts)
        all_starts = torch.cat(starts, dim=1)
        return find(self.vae, self.given, self.encoder, all_starts, effort, self.tiling, self.check_cancelled)

    # Draws

    def drawn(self, rows: np.ndarray, first: int, count: int) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Draws `first` to `first + count` of some rows, a tile at a time.

        Yields rows, (B',), their draws of z, (B', S, L), and log weights, (B', S).
        """
        for index in self.tiling.tiles(self.index(rows), count * self.latents, NUMBERS_AT_ONCE):
            self.check_cancelled()
            part, rows = rows[: len(index)], rows[len(index) :]
            z, log_weights = self.weighed(index, shifted_points(self.shifts[index], first, count))
            yield part, z[: len(part)], log_weights[: len(part)]

    def weighed(self, index: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """Draws of z for some rows and their log weights, a tile of decoder evaluations at a time."""
        proposal, given = self.proposal.select(index), self.given.select(index)
        z = proposal.sample(points).to(self.vae.dtype)  # (B, S, L)
        log_weights = self.vae.prior.log_prob(z.double()) - proposal.log_prob(z)
        samples = min(z.shape[1], self.tiling.evaluations)
        rows = max(1, self.tiling.evaluations // samples)
        for start in range(0, len(z), rows):
            some = slice(start, start + rows)
            few = given.select(some)
            for first in range(0, z.shape[1], samples):
                part = slice(first, first + samples)
                log_weights[some, part] += few.log_prob(z[some, part])
        # If the decoder overflows, the draw counts as impossible; everything returned is finite.
        return z, log_weights.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).clamp(min=IMPOSSIBLE)

    def draw_more(self, rows: np.ndarray, first: int, count: int) -> Tensor:
        """The log weights of `count` more draws of some rows, shape (B', count); the best and the first ones are kept."""
        found = []
        for part, z, log_weights in self.drawn(rows, first, count):
            index = self.index(part)
            best, place = log_weights.max(dim=1)
            better = (best > self.best_log_weight[index])[:, None]
            heights = z[torch.arange(len(z), device=z.device), place]
            self.best_draw[index] = torch.where(better, heights, self.best_draw[index])
            self.best_log_weight[index] = torch.maximum(best, self.best_log_weight[index])
            self.keep(part, z, log_weights, first)
            found.append(log_weights)
        return torch.cat(found)

    def keep(self, rows: np.ndarray, z: Tensor, log_weights: Tensor, first: int) -> None:
        """Keep the first draws of some rows: z of shape (B', S, L), and their log weights."""
        end = min(first + z.shape[1], self.draws.z.shape[1])
        if end > first:
            index = self.index(rows)
            self.draws.z[index, first:end] = z[:, : end - first]
            self.draws.log_weights[index, first:end] = log_weights[:, : end - first]
            self.kept[rows] = end

    def draws_of(self, row: int) -> Draws:
        """The draws that are kept of one row."""
        return Draws(self.draws.z[row, : self.kept[row]], self.draws.log_weights[row, : self.kept[row]])

    # The rounds

    def sample(self, samples: int, may_restart: bool = True) -> None:
        """Double every row's samples until it is done or the budget is spent."""
        rows, drawn = np.arange(len(self)), 0
        log_weights = self.x.new_zeros((len(rows), 0), dtype=torch.float64)
        while True:
            log_weights = torch.cat([log_weights, self.draw_more(rows, drawn, samples - drawn)], dim=1)
            self.diagnose(rows, log_weights, samples - drawn, self.estimator.typical_variance(samples))
            going = ~self.are_done(rows)
            if may_restart and samples >= RESTART_SAMPLES:
                doubtful = going & ~self.estimates.reliable[rows]
                self.restart(rows[doubtful], samples)
                going &= ~doubtful
                may_restart = samples < 4 * RESTART_SAMPLES
            rows, log_weights = rows[going], log_weights[self.index(going)]
            if samples >= self.estimator.max_samples or not len(rows):
                break
            drawn, samples = samples, 2 * samples
        if self.estimator.anneal:
            self.anneal(rows[~self.estimates.reliable[rows]])

    def are_done(self, rows: np.ndarray) -> np.ndarray:
        """Whether each row's estimate is accurate enough, or its verdict certain: a mask, (B',)."""
        found, remaining = self.estimates.select(rows), self.remaining[rows]
        accurate = found.reliable & (found.std_error <= self.estimator.tolerance)
        ends = self.estimator.ends
        if ends is None:
            return accurate
        # A row that looks valid also gets as many draws as its estimate usually needs to become reliable.
        looks_valid = found.log_likelihood >= min(ends)
        certain = ~(looks_valid & ~found.reliable & (found.num_samples < VOUCHED_SAMPLES))
        reach = margins(found, remaining)
        # The frozen ends decide no verdict on a row: near them, an estimate as accurate as this is good enough.
        good_enough = found.reliable & (found.std_error <= END_TOLERANCE)
        for end in ends:
            certain &= good_enough | (np.abs(found.log_likelihood - end) > reach)
        for end in self.band_ends:
            certain &= np.abs(found.log_likelihood - end) > reach
        return accurate | certain

    def diagnose(self, rows: np.ndarray, log_weights: Tensor, cost: int, typical_variance: float) -> None:
        """Set the numbers of some rows from all of their log weights, shape (B', S)."""
        filled = torch.arange(len(rows), device=log_weights.device)
        found = self.estimates
        found.put(rows, diagnose(log_weights[aligned(filled)], typical_variance))
        found.num_samples[rows] = log_weights.shape[1]
        found.evaluations[rows] += cost
        found.log_likelihood[rows] += self.log_abs_det[rows]
        found.reliable[rows] &= self.remaining[rows] <= MAX_REMAINING

    def restart(self, rows: np.ndarray, samples: int) -> None:
        """Estimate some rows again after a wide search, which also starts from the draw with the largest weight."""
        if not len(rows):
            return
        most = min(MAX_SAMPLES, max(self.estimator.max_samples, 2 * samples))
        estimator = replace(self.estimator, search="wide", seed=self.seed(1), max_samples=most)
        index, spent = aligned(self.index(rows), self.tiling.step), self.estimates.evaluations[rows]
        again = Block(
            estimator, self.vae, self.starts, self.rows[rows], self.band_ends, self.best_draw[index, None],
            self.check_cancelled, self.log_abs_det[rows], self.draws.z.shape[1],
        )  # fmt: skip
        again.sample(min(2 * samples, most), may_restart=False)
        self.estimates.put(rows, again.estimates)
        self.estimates.evaluations[rows] += spent
        self.remaining[rows] = again.remaining
        self.keep(rows, again.draws.z[: len(rows)], again.draws.log_weights[: len(rows)], 0)

    def anneal(self, rows: np.ndarray) -> None:
        """Annealed importance sampling for some rows, starting from fresh draws of their proposals."""
        betas = torch.linspace(0.0, 1.0, TEMPERATURES + 1, dtype=torch.float64)
        cost = 2 * PARTICLES * (1 + LEAPFROGS * (TEMPERATURES - 1))
        for index in self.tiling.tiles(self.index(rows), PARTICLES):
            self.check_cancelled()
            proposal, x, own = self.proposal.select(index), self.x[index], self.rows[index.cpu().numpy()]
            log_weights = annealed_log_weights(
                proposal.log_prob,
                lambda z, x=x: differentiable_log_joint(self.vae, x, z),  # type: ignore[misc]  # binds the rows now
                proposal.sample(row_points(own, self.seed(2), self.latents, 0, PARTICLES, x.device)),
                betas,
                self.momenta(own),
                self.main_axes(index),
                LEAPFROG_STEP,
                LEAPFROGS,
            ).clamp(min=IMPOSSIBLE)
            part, rows = rows[: len(index)], rows[len(index) :]
            self.diagnose(part, log_weights[: len(part)], cost, typical_variance=0.0)

    def main_axes(self, index: Tensor) -> Tensor:
        """The axes of some rows' modes with the largest share, shape (B', L, L)."""
        modes = [one.axes for one in self.proposal.components if isinstance(one, BentNormal)]
        likeliest = self.proposal.shares[index, : len(modes)].argmax(dim=1)
        return torch.stack(modes)[likeliest, index]

    def momenta(self, rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Noise for the transitions of the rows' particles: momenta, (B, S, L), and uniforms, (B, S)."""
        generators = [row_generator(row, self.seed(3)) for row in rows]
        while True:
            noise = [(g.standard_normal((PARTICLES, self.latents)), g.random(PARTICLES)) for g in generators]
            momentum, uniform = (
                torch.from_numpy(np.stack(part)).to(self.x.device) for part in zip(*noise, strict=True)
            )
            yield momentum, uniform

    def index(self, rows: np.ndarray) -> Tensor:
        """Rows by number, for tensors."""
        return torch.from_numpy(rows).to(self.x.device)

    def seed(self, stage: int) -> int:
        """The seed of a stage: each stage has its own draws."""
        return self.estimator.seed + SEED_STRIDE * stage


def differentiable_log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) for rows x, shape (B, D), and z of shape (B, S, L), by the differentiable path: (B, S), float64."""
    output = vae.decoder(z.to(vae.dtype))
    return vae.likelihood.log_prob(output, x[:, None]).sum(dim=-1, dtype=torch.float64) + vae.prior.log_prob(z.double())


def margins(found: Diagnosis, remaining: np.ndarray) -> np.ndarray:
    """How far from an end of the band each estimate must be for its row to stop, nats.

    A row may stop after any of several looks, which costs more than two standard errors. If the mode search has not
    converged, the gain that Newton's next step predicts says how much may be missing; far from a mode, this prediction is
    worth little.
    """
    error = np.where(found.reliable, LOOKS * found.std_error, 9.0 * found.std_error + 0.5)
    return error + np.minimum(4.0 * remaining, MOST_MISSING)
