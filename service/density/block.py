"""A block of rows: proposals, rounds of draws, restarts and annealing, until each row is done.

A row's draws come from a seed derived from its own content, and every decision about it depends on its own numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from service.density.annealing import annealed_log_weights
from service.density.diagnostics import IMPOSSIBLE, diagnose
from service.density.estimator import MAX_SAMPLES, Estimator
from service.density.laplace import Sites
from service.density.proposals import BentNormal
from service.density.quasirandom import Points, row_generator, row_points
from service.density.search import Found, Tiles, find
from service.density.starts import SearchStarts
from service.density.tiling import Tiling, padded
from service.system.cancellation import CheckCancelled, never_cancelled
from service.vae.conditional import Conditional, conditional
from service.vae.network import VAE

MOST_MISSING = 200.0  # nats by which an estimate may be off if the mode search has not converged
MAX_REMAINING = 1.0  # nats that a mode search may still have to gain for its row to be reliable
SEED_STRIDE = 1_000_003  # between the seeds of two stages
PARTICLES, TEMPERATURES, LEAPFROGS, LEAPFROG_STEP = 32, 32, 2, 0.6  # of the annealing
# In standard errors: 1.96 for one look, this for the eight doublings of `standard` (Bonferroni, Student's t).
LOOKS = 3.0
END_TOLERANCE = 0.1  # nats: standard error at which a reliable estimate may stop near the ends of the pilot band
VOUCHED_SAMPLES = 128
RESTART_SAMPLES = 512  # with fewer, khat says little


@dataclass(frozen=True, slots=True)
class Estimates:
    """log p(x) of B rows with diagnostics; arrays of shape (B,), float64.

    `khat` is NaN if there is no tail to fit. `reliable` is True if khat, ess and the search for modes give no reason to
    doubt the estimate. Even if it is False, one bound holds: at each look, the estimate exceeds log p(x) by more than b
    nats with probability at most exp(-b). `num_samples` is the number of draws behind the estimate, `evaluations` its
    total cost in decoder evaluations.
    """

    log_likelihood: np.ndarray
    std_error: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    reliable: np.ndarray
    num_samples: np.ndarray
    evaluations: np.ndarray


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of z for one row, shape (S, L), and their log weights, (S,), float64."""

    z: Tensor
    log_weights: Tensor


@dataclass(frozen=True, slots=True)
class WeightedDraws:
    """Draws of z for a few rows with their importance weights: z of shape (S, B, L), log_weights (S, B) in float64.

    Only the first `rows` of the B are real; the others pad the tile to its fixed shape.
    """

    z: Tensor
    log_weights: Tensor
    rows: int


@dataclass
class Row:
    """What is known about one row so far."""

    evaluations: float
    log_weights: Tensor
    best_draw: Tensor
    draws: Draws  # the first ones, as many as requested
    log_abs_det: float
    remaining: float = 0.0
    log_likelihood: float = IMPOSSIBLE
    std_error: float = 0.0
    ess: float = 1.0
    khat: float = math.nan
    reliable: bool = False
    num_samples: int = 0

    def numbers(self) -> tuple[float, ...]:
        """The numbers of `Estimates`, in its order."""
        return (
            self.log_likelihood, self.std_error, self.ess, self.khat, self.reliable, self.num_samples, self.evaluations
        )  # fmt: skip


class Block:
    """A block of rows with their proposals, for one estimate."""

    def __init__(
        self,
        estimator: Estimator,
        vae: VAE,
        starts: SearchStarts,
        block: np.ndarray,
        band_ends: tuple[float, ...] = (),
        more_starts: Tensor | None = None,
        check_cancelled: CheckCancelled = never_cancelled,
        log_abs_det: np.ndarray | None = None,
        kept_draws: int = 0,
        tiling: Tiling | None = None,
    ) -> None:
        self.check_cancelled, self.kept_draws = check_cancelled, kept_draws
        self.estimator, self.vae, self.starts, self.band_ends = estimator, vae, starts, band_ends
        self.tiling = tiling or Tiling.of(vae)
        self.block = block
        self.numpy_rows = padded(block, self.tiling.rows)
        self.x = torch.from_numpy(self.numpy_rows).to(vae.device, vae.dtype)
        self.given: Conditional = conditional(vae, self.x)
        self.encoder = vae.posterior(self.x)
        self.latents = vae.architecture.latents
        found = self.search(more_starts)
        self.proposal = found.proposal
        more_by_row = [0.0] * len(block) if log_abs_det is None else log_abs_det.tolist()
        lookup_cost = estimator.starts_evaluations(vae, len(starts))
        none = self.x.new_zeros(0, dtype=torch.float64)
        self.rows = [
            Row(lookup_cost + cost, none, mean, Draws(mean.new_zeros((0, self.latents)), none), more, remaining)
            for mean, more, remaining, cost in zip(
                self.encoder.mean, more_by_row, found.remaining, found.evaluations, strict=False
            )
        ]

    # Proposals

    def search(self, more_starts: Tensor | None) -> Found:
        """Proposals for the rows, searched from the encoder's means, likely starts and `more_starts`, shape (K, B, L)."""
        effort = self.estimator.effort(self.latents)
        starts = [self.encoder.mean[None]]
        if effort.starts > 1:
            starts.append(self.starts.likeliest(self.x, effort.starts - 1))
        if more_starts is not None:
            starts.append(more_starts)
        anywhere = Sites(self.vae, self.x, self.given, self.encoder.mean, self.x.new_zeros(len(self.x)).double())
        tiles = Tiles(self.tiling.gradients, self.tiling.sites(self.latents), self.check_cancelled)
        return find(anywhere, torch.cat(starts), self.encoder, len(self.block), effort, tiles)

    # Draws

    def drawn(self, rows: list[int], first: int, count: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Draws `first` to `first + count` of some rows, a tile at a time: row indices, z and log weights."""
        group = self.tiling.group(count)
        for start in range(0, len(rows), group):
            self.check_cancelled()
            chosen = rows[start : start + group]
            index = np.array(chosen + [chosen[-1]] * (group - len(chosen)))
            points = row_points(self.numpy_rows[index], self.seed(0), self.latents, first, count, self.x.device)
            z, log_weights = self.weighed(torch.from_numpy(index).to(self.x.device), points)
            yield chosen, z, log_weights

    def weighed(self, index: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """Draws of z for some rows and their log weights, a tile of decoder evaluations at a time."""
        proposal, given = self.proposal.select(index), self.given.select(index)
        z = proposal.sample(points).to(self.vae.dtype)  # (S, B, L)
        log_ratio = self.vae.prior.log_prob(z.double()) - proposal.log_prob(z)
        per_tile = max(1, self.tiling.evaluations // z.shape[1])
        # Fixed shapes for any number of samples.
        log_conditional = [given.log_prob(zero_padded(tile, per_tile))[: len(tile)] for tile in z.split(per_tile)]
        log_weights = torch.cat(log_conditional) + log_ratio
        # If the decoder overflows, the draw counts as impossible; everything returned is finite.
        return z, log_weights.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).clamp(min=IMPOSSIBLE)

    # The rounds

    def sample(self, samples: int, may_restart: bool = True) -> None:
        """Double every row's samples until it is done or the budget is spent."""
        undone = list(range(len(self.rows)))
        self.draw_more(undone, 0, samples)
        while undone := [index for index in undone if not self.is_done(self.rows[index])]:
            if may_restart and samples >= RESTART_SAMPLES:
                doubtful = [index for index in undone if not self.rows[index].reliable]
                self.restart(doubtful, samples)
                undone = [index for index in undone if index not in doubtful]
                may_restart = samples < 4 * RESTART_SAMPLES
            if samples >= self.estimator.max_samples or not undone:
                break
            self.draw_more(undone, samples, samples)
            samples *= 2
        if self.estimator.anneal:
            self.anneal([index for index in undone if not self.rows[index].reliable])

    def is_done(self, row: Row) -> bool:
        """Whether a row's estimate is accurate enough, or its verdict certain."""
        if row.reliable and row.std_error <= self.estimator.tolerance:
            return True
        ends = self.estimator.ends
        if ends is None:
            return False
        # A row that looks valid also gets as many draws as its estimate usually needs to become reliable.
        looks_valid = row.log_likelihood >= min(ends)
        if looks_valid and not row.reliable and row.num_samples < VOUCHED_SAMPLES:
            return False
        # The frozen ends decide no verdict on this row: near them, an estimate as accurate as this is good enough.
        if row.reliable and row.std_error <= END_TOLERANCE:
            ends = ()
        reach = margin(row.std_error, row.reliable, row.remaining)
        return all(abs(row.log_likelihood - end) > reach for end in (*ends, *self.band_ends))

    def draw_more(self, rows: list[int], first: int, count: int) -> None:
        """Draw `count` more for some rows, and update their numbers from all of their draws."""
        for chosen, z, new in self.drawn(rows, first, count):
            before = [self.rows[index].log_weights for index in chosen]
            before += [before[-1]] * (new.shape[1] - len(chosen))
            log_weights = torch.cat([torch.stack(before, dim=1), new])
            best = new.argmax(dim=0)
            self.set_numbers(chosen, log_weights, count, self.estimator.typical_variance(len(log_weights)))
            for at, index in enumerate(chosen):
                row = self.rows[index]
                if not len(before[at]) or new[best[at], at] > before[at].max():
                    row.best_draw = z[best[at], at]
            self.keep(chosen, z, new)

    def keep(self, rows: list[int], z: Tensor, log_weights: Tensor) -> None:
        """Keep the first draws of some rows: z of shape (S, >= rows, L), and their log weights."""
        for at, index in enumerate(rows):
            draws = self.rows[index].draws
            room = self.kept_draws - len(draws.z)
            if room > 0:
                kept = torch.cat([draws.z, z[:room, at]]), torch.cat([draws.log_weights, log_weights[:room, at]])
                self.rows[index].draws = Draws(*kept)

    def set_numbers(self, rows: list[int], log_weights: Tensor, cost: int, typical_variance: float) -> None:
        """Set the numbers of some rows from log weights of shape (S, >= rows)."""
        # Fixed number of columns, because rounding depends on the shape.
        missing = self.tiling.rows - log_weights.shape[1]
        whole = torch.cat([log_weights, log_weights[:, -1:].expand(-1, missing)], dim=1)
        columns = diagnose(whole, typical_variance)
        for at, index in enumerate(rows):
            row = self.rows[index]
            row.log_weights = log_weights[:, at]
            row.evaluations += cost
            row.num_samples = len(log_weights)
            row.log_likelihood, row.std_error, row.ess, row.khat = (float(column[at]) for column in columns[:4])
            row.log_likelihood += row.log_abs_det
            row.reliable = bool(columns[4][at]) and row.remaining <= MAX_REMAINING

    def restart(self, rows: list[int], samples: int) -> None:
        """Estimate some rows again after a wide search, which also starts from the draw with the largest weight."""
        if not rows:
            return
        most = min(MAX_SAMPLES, max(self.estimator.max_samples, 2 * samples))
        estimator = replace(self.estimator, search="wide", seed=self.seed(1), max_samples=most)
        draws = torch.stack([self.rows[index].best_draw for index in rows])
        draws = torch.cat([draws, draws[-1:].expand(self.tiling.rows - len(rows), -1)])
        log_abs_det = np.array([self.rows[index].log_abs_det for index in rows])
        again = Block(
            estimator, self.vae, self.starts, self.block[rows], self.band_ends, draws[None], self.check_cancelled,
            log_abs_det,
            self.kept_draws,
        )  # fmt: skip
        again.sample(min(2 * samples, most), may_restart=False)
        for index, row in zip(rows, again.rows, strict=True):
            row.evaluations += self.rows[index].evaluations
            self.rows[index] = row

    def anneal(self, rows: list[int]) -> None:
        """Annealed importance sampling for some rows, starting from fresh draws of their proposals."""
        betas = torch.linspace(0.0, 1.0, TEMPERATURES + 1, dtype=torch.float64)
        for index in rows:
            self.check_cancelled()
            one = slice(index, index + 1)
            proposal, x = self.proposal.select(one), self.x[one].clone()
            points = row_points(self.numpy_rows[one], self.seed(2), self.latents, 0, PARTICLES, self.x.device)
            log_weights = annealed_log_weights(
                proposal.log_prob,
                lambda z, x=x: differentiable_log_joint(self.vae, x, z),  # type: ignore[misc]  # binds the row now
                proposal.sample(points),
                betas,
                self.momenta(self.numpy_rows[index]),
                self.main_axes(index),
                LEAPFROG_STEP,
                LEAPFROGS,
            ).clamp(min=IMPOSSIBLE)
            cost = 2 * PARTICLES * (1 + LEAPFROGS * (TEMPERATURES - 1))
            self.set_numbers([index], log_weights, cost, typical_variance=0.0)

    def main_axes(self, index: int) -> Tensor:
        """The axes of a row's mode with the largest share, shape (1, L, L)."""
        *modes, _ = self.proposal.components
        likeliest = modes[int(self.proposal.shares[index, :-1].argmax())]
        assert isinstance(likeliest, BentNormal)
        return likeliest.axes[index : index + 1]

    def momenta(self, row: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Noise for the transitions of a row's particles: momenta, (S, 1, L), and uniforms, (S, 1)."""
        generator = row_generator(row, self.seed(3))
        while True:
            momentum, uniform = (
                generator.standard_normal((PARTICLES, 1, self.latents)),
                generator.random((PARTICLES, 1)),
            )
            yield torch.from_numpy(momentum).to(self.x.device), torch.from_numpy(uniform).to(self.x.device)

    def seed(self, stage: int) -> int:
        """The seed of a stage: each stage has its own draws."""
        return self.estimator.seed + SEED_STRIDE * stage


def differentiable_log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) for rows x, shape (B, D), and z of shape (S, B, L), by the differentiable path: (S, B), float64."""
    output = vae.decoder(z.to(vae.dtype))
    return vae.likelihood.log_prob(output, x).sum(dim=-1, dtype=torch.float64) + vae.prior.log_prob(z.double())


def margin(std_error: float, reliable: bool, remaining: float) -> float:
    """How far from an end of the band an estimate must be for its row to stop, nats.

    A row may stop after any of several looks, which costs more than two standard errors. If the mode search has not
    converged, the gain that Newton's next step predicts says how much may be missing; far from a mode, this prediction is
    worth little.
    """
    return (LOOKS * std_error if reliable else 9.0 * std_error + 0.5) + min(4.0 * remaining, MOST_MISSING)


def estimates_of(rows: Sequence[Row]) -> Estimates:
    columns = np.array([row.numbers() for row in rows]).reshape(len(rows), 7).T
    likelihoods, errors, sizes, tails, reliable, samples, evaluations = columns
    return Estimates(likelihoods, errors, sizes, tails, reliable > 0, samples.astype(int), evaluations)


def zero_padded(z: Tensor, length: int) -> Tensor:
    """z, shape (S, B, L), zero-padded to `length` samples."""
    if len(z) == length:
        return z
    return torch.cat([z, z.new_zeros((length - len(z), *z.shape[1:]))])
