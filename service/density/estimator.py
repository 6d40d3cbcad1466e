"""The estimator: rows in, estimates of log p(x) out, the same to the last bit for a row in whatever company it comes.

    look for modes of p(z | x)  ->  fit a mixture of split normals and the encoder's posterior
      ->  draw a few z, weigh them  ->  enough?  ->  as many again, and so on
      ->  not to be trusted?  ->  more starts  ->  more draws  ->  annealing

Matrix products round differently for different shapes, so rows go through the networks in blocks of a fixed number of
rows, and samples in tiles of a fixed number of decoder evaluations, padded where they are not full. A row's draws come
from a seed made of its own content, and what happens to it next is decided by its own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from service.density import importance, starts
from service.density.annealing import annealed_log_weights
from service.density.laplace import FEW_LATENTS, Sites
from service.density.pareto import khat
from service.density.proposals import BentNormal
from service.density.quasirandom import REPLICATES, Points, row_generator, row_points
from service.density.search import EVERY_AXIS, Effort, Found, Tiles, find
from service.density.starts import Codebook, codebook_of
from service.errors import CalibrationError
from service.vae.conditional import Conditional, conditional
from service.vae.network import VAE

IMPOSSIBLE = -1e300  # nats
MAX_SAMPLES = 2**17
MIN_SAMPLES = 25  # fewer may agree by chance
KHAT_LIMIT = 0.7
TYPICAL_SAMPLES = 128
START_WINDOW = 50.0  # nats below the best start
PRIOR_DEGREES = 4
MIN_RELATIVE_ESS = 0.02
# From few draws khat is hardly known, and a limit that allows for that refuses half of the good estimates with the bad.
# Weights so even, with an error so small, are believed up to the limit for many draws; the audit counts whether rightly.
SHARP_ESS, SHARP_ERROR = 0.1, 0.3
MOST_MISSING = 200.0  # nats by which a search that has not arrived may be wrong
MAX_REMAINING = 1.0  # nats that a search for the mode may still have had to gain
SEED_STRIDE = 1_000_003  # between the seeds of two stages
PARTICLES, TEMPERATURES, LEAPFROGS, LEAPFROG_STEP = 32, 32, 2, 0.6  # of the annealing
# In standard errors: 1.96 for one look, this for the eight doublings of `standard` (Bonferroni, Student's t).
LOOKS = 3.0
END_TOLERANCE = 0.1  # nats, of a reliable estimate near the ends of the pilot band
VOUCHED_SAMPLES = 128
RESTART_SAMPLES = 512  # with fewer, khat has little to say

# Of a decoder with so many multiplications, a tile of 256 evaluations is large enough; of smaller ones, up to four times.
TILE_PRODUCTS, MAX_SCALE = 2**19, 4

SettingName = Literal["fast", "standard", "thorough"]
SearchName = Literal["narrow", "wide"]
T = TypeVar("T")
SETTINGS: tuple[SettingName, ...] = get_args(SettingName)


def go_on() -> None:
    """A checkpoint that ends nothing."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of the blocks that go through the networks. They are part of what makes a score repeatable."""

    rows: int
    evaluations: int
    gradients: int
    tangents: int

    @staticmethod
    def of(vae: VAE, max_scale: int = MAX_SCALE) -> Tiling:
        """Large enough to share out what a tile costs beside its products, small enough for a CPU's caches.

        A small network's products take less time than to ask for them, so that more rows at a time cost the same. A GPU
        needs much larger tiles to be busy.
        """
        if vae.device.type != "cpu":
            return Tiling(rows=256, evaluations=65536, gradients=256, tangents=16384)
        larger = TILE_PRODUCTS // vae.evaluation_size
        scale = 1 << (max(1, min(max_scale, larger)).bit_length() - 1)
        return Tiling(rows=32 * scale, evaluations=256 * scale, gradients=32 * scale, tangents=256 * scale)

    def group(self, samples: int) -> int:
        """How many rows share a tile of samples: a power of two that divides the block."""
        return self.power_of_two(self.evaluations // samples)

    def sites(self, latents: int) -> int:
        """How many rows share a tile of Jacobians."""
        return self.power_of_two(self.tangents // latents)

    def power_of_two(self, most: int) -> int:
        """The largest power of two that is at most that, and at most a block."""
        return 1 << (max(1, min(most, self.rows)).bit_length() - 1)


@dataclass(frozen=True, slots=True)
class Estimates:
    """log p(x) of B rows and what the numbers are worth; arrays of shape (B,), float64.

    `khat` is NaN where there is no tail to fit. `reliable` says that khat, ess and the several starts give no reason to
    distrust the estimate; where it is False, one thing still holds: at each look, the estimate exceeds log p(x) by more
    than b nats with probability at most exp(-b). `num_samples` is how many draws the estimate rests on, `evaluations` what
    it cost in all.
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
    """Some of a row's draws of z, shape (S, L), and their log weights, (S,), float64."""

    z: Tensor
    log_weights: Tensor


@dataclass(frozen=True, slots=True)
class BlockOfRows:
    """Rows, shape (at most a block, D), that go through the networks together: their numbers, and by whose rules."""

    estimator: Estimator
    band_ends: tuple[float, ...]
    chosen: np.ndarray
    x: np.ndarray


@dataclass(frozen=True, slots=True)
class WeightedDraws:
    """Draws of z for a few rows with their importance weights: z of shape (S, B, L), log_weights (S, B) in float64.

    Only the first `rows` of the B are real; the others fill the block, whose shape is always the same.
    """

    z: Tensor
    log_weights: Tensor
    rows: int


@dataclass(frozen=True, slots=True)
class Estimator:
    """How log p(x) is estimated. Thresholds hold only for the estimator that they were fitted with.

    Stored in the card as it stands; equal fields give equal scores.

    A row's samples double from `first_samples` until its standard error is at most `tolerance` nats, or its interval is
    clear of the ends of the band that it is judged by, or `max_samples` are drawn (after a wide search, twice as many as
    before it). Rows that no band judges yet, those that a band is fitted to, go by `ends`: those of a pilot band, from rows
    that serve for nothing else. The rows that are judged later must be clear of them, too, or known to END_TOLERANCE. From
    the pilot rows, too, come `typical_error`, the standard error of a usual row's estimate from TYPICAL_SAMPLES draws, and
    `typical_decay`, the power of the number of draws by which its square falls.
    """

    setting: SettingName = "standard"
    first_samples: int = 32
    max_samples: int = 4096
    tolerance: float = 0.03
    ends: tuple[float, ...] | None = None
    search: SearchName = "narrow"
    probed_axes: int = 14
    typical_error: float = 0.0
    typical_decay: float = 1.0
    anneal: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("first_samples", "max_samples"):
            value = getattr(self, name)
            if not REPLICATES <= value <= MAX_SAMPLES or value & (value - 1):
                raise CalibrationError(
                    f"{name} is {value}, expected a power of two from {REPLICATES} to {MAX_SAMPLES:,}"
                )
        if self.first_samples > self.max_samples:
            raise CalibrationError("first_samples is above max_samples")
        if self.probed_axes < 1:
            raise CalibrationError("probed_axes is below 1")
        if not 0 <= self.tolerance < math.inf:
            raise CalibrationError("tolerance is no number of nats of at least 0")

    @staticmethod
    def of(setting: SettingName) -> Estimator:
        """The estimator of a setting, without ends to stop at."""
        match setting:
            case "fast":
                return Estimator("fast", first_samples=64, max_samples=64, anneal=False)
            case "standard":
                return Estimator("standard")
            case "thorough":
                return Estimator(
                    "thorough", tolerance=0.02, first_samples=256, max_samples=16384, probed_axes=EVERY_AXIS
                )
        raise CalibrationError(f"estimator {setting!r} is not known, expected one of {', '.join(SETTINGS)}")

    @property
    def stops_at_ends(self) -> bool:
        """Whether a row's samples stop doubling once its verdict is certain: then it needs the ends of a band."""
        return self.setting == "standard"

    def typical_variance(self, samples: int) -> float:
        """The square of the standard error of a usual row's estimate from so many draws."""
        decay: float = (samples / TYPICAL_SAMPLES) ** -self.typical_decay
        return self.typical_error**2 * decay

    def effort(self, latents: int) -> Effort:
        """What the search for a row's modes may cost: with few latents there often are several.

        There Newton's step costs no more than some gradients; elsewhere the encoder's covariance will do to begin with.
        """
        few = latents <= FEW_LATENTS
        if self.search == "wide":
            return Effort(((33, 9), (8, 18), (3, 20)), int(few))
        if few:
            return Effort(((6, 2),), 1, START_WINDOW, self.probed_axes)
        return Effort(((2 if latents <= starts.MANY_LATENTS else 1, 6),), probed_axes=self.probed_axes)

    def codebook_evaluations(self, vae: VAE, codes: int) -> float:
        """What a row's look into the codebook costs, where it is taken."""
        return starts.evaluations(vae, codes) if self.effort(vae.architecture.latents).starts > 1 else 0.0

    def typical_evaluations(self, vae: VAE, codes: int) -> int:
        """What a row costs, about, in decoder evaluations: the unit in which work is queued."""
        search = self.effort(vae.architecture.latents).evaluations(vae) + self.codebook_evaluations(vae, codes)
        return round(search) + min(self.max_samples, 2 * self.first_samples)

    def estimate(
        self,
        vae: VAE,
        codes: np.ndarray,
        x: np.ndarray,
        pool: Executor | None = None,
        band_ends: tuple[float, ...] = (),
        checkpoint: Callable[[], None] = go_on,
        measure: np.ndarray | None = None,
        incomplete: np.ndarray | None = None,
    ) -> Estimates:
        """Estimate log p(x) for rows in the network's units, shape (B, D); where a cell is NaN, that of the others.

        On a CPU a pool's threads share the blocks; a GPU takes one after the other. Rows with holes are judged by bands of
        their own: they stop at no ends, but once they are known to END_TOLERANCE.

        Args:
            codes: the latents of the model's codebook, shape (K, L).
            band_ends: of the band that the rows are judged by, nats; for an estimator that has `ends`.
            checkpoint: called every few milliseconds of work; what it raises ends the estimate.
            measure: what log p(x) is more in the units in which ends and estimates are told, shape (B,), nats.
            incomplete: which rows have missing cells, shape (B,), where NaNs mean other things, too; by default those with
                any NaN.
        """
        book = codebook_of(vae, codes)
        more = np.zeros(len(x)) if measure is None else measure

        def estimated(block: BlockOfRows) -> list[Row]:
            with one_thread(), torch.inference_mode(False), torch.no_grad():
                part = more[block.chosen]
                rows = Block(block.estimator, vae, book, block.x, block.band_ends, None, checkpoint, part)
                rows.sample(block.estimator.first_samples)
                return rows.rows

        return estimates_of(self.by_block(vae, x, band_ends, incomplete, estimated, pool))

    def by_block(
        self,
        vae: VAE,
        x: np.ndarray,
        band_ends: tuple[float, ...],
        incomplete: np.ndarray | None,
        function: Callable[[BlockOfRows], list[T]],
        pool: Executor | None,
    ) -> list[T]:
        """What a function of a block of rows makes of each of the rows x, shape (B, D), in order."""
        holes = np.isnan(x)
        if holes.any():
            x = np.where(holes, np.float32(np.nan), x)  # NaNs have many bits, of which a row's seed is made
        if incomplete is None:
            incomplete = holes.any(axis=1)
        parts = (
            (self, band_ends, np.flatnonzero(~incomplete)),
            (replace(self, ends=None, tolerance=max(self.tolerance, END_TOLERANCE)), (), np.flatnonzero(incomplete)),
        )
        length = Tiling.of(vae).rows
        blocks = [
            BlockOfRows(estimator, ends, part, x[part])
            for estimator, ends, chosen in parts
            for part in np.split(chosen, range(length, len(chosen), length))
            if len(part)
        ]
        run = map if pool is None or vae.device.type != "cpu" else pool.map
        found = [one for block in run(function, blocks) for one in block]
        order = np.argsort([index for block in blocks for index in block.chosen], kind="stable")
        return [found[place] for place in order]

    def draws(self, vae: VAE, codes: np.ndarray, x: np.ndarray, num_samples: int) -> Iterator[WeightedDraws]:
        """So many weighted draws for each of the rows x, shape (B, D), in order, a few rows at a time."""
        length = Tiling.of(vae).rows
        book = codebook_of(vae, codes)
        for start in range(0, len(x), length):
            with one_thread(), torch.inference_mode(False), torch.no_grad():
                block = Block(self, vae, book, x[start : start + length])
                tiles = list(block.drawn(list(range(len(block.rows))), 0, num_samples))
            yield from (WeightedDraws(z, log_weights, len(chosen)) for chosen, z, log_weights in tiles)


@dataclass
class Row:
    """What is known of one row so far."""

    evaluations: float
    log_weights: Tensor
    best_draw: Tensor
    draws: Draws  # the first ones, as many as are asked for
    measure: float
    remaining: float = 0.0
    log_likelihood: float = IMPOSSIBLE
    std_error: float = 0.0
    ess: float = 1.0
    khat: float = math.nan
    reliable: bool = False
    num_samples: int = 0

    def numbers(self) -> tuple[float, ...]:
        """As a row of a table."""
        return (
            self.log_likelihood, self.std_error, self.ess, self.khat, self.reliable, self.num_samples, self.evaluations
        )  # fmt: skip


class Block:
    """A block of rows with their proposals, for the time of one estimate."""

    def __init__(
        self,
        estimator: Estimator,
        vae: VAE,
        book: Codebook,
        block: np.ndarray,
        band_ends: tuple[float, ...] = (),
        more_starts: Tensor | None = None,
        checkpoint: Callable[[], None] = go_on,
        measure: np.ndarray | None = None,
        kept_draws: int = 0,
        tiling: Tiling | None = None,
    ) -> None:
        self.checkpoint, self.kept_draws = checkpoint, kept_draws
        self.estimator, self.vae, self.book, self.band_ends = estimator, vae, book, band_ends
        self.tiling = tiling or Tiling.of(vae)
        self.block = block
        self.numpy_rows = padded(block, self.tiling.rows)
        self.x = torch.from_numpy(self.numpy_rows).to(vae.device, vae.dtype)
        self.given: Conditional = conditional(vae, self.x)
        self.encoder = vae.posterior(self.x)
        self.latents = vae.architecture.latents
        found = self.found(more_starts)
        self.proposal = found.proposal
        more_by_row = [0.0] * len(block) if measure is None else measure.tolist()
        book_cost = estimator.codebook_evaluations(vae, len(book))
        none = self.x.new_zeros(0, dtype=torch.float64)
        self.rows = [
            Row(book_cost + cost, none, mean, Draws(mean.new_zeros((0, self.latents)), none), more, remaining)
            for mean, more, remaining, cost in zip(
                self.encoder.mean, more_by_row, found.remaining, found.evaluations, strict=False
            )
        ]

    # What to draw from

    def found(self, more_starts: Tensor | None) -> Found:
        """The proposals of the rows, from the encoder's means, likely codes, and what else is given, shape (K, B, L)."""
        effort = self.estimator.effort(self.latents)
        starts = [self.encoder.mean[None]]
        if effort.starts > 1:
            starts.append(self.book.starts(self.x, effort.starts - 1))
        if more_starts is not None:
            starts.append(more_starts)
        anywhere = Sites(self.vae, self.x, self.given, self.encoder.mean, self.x.new_zeros(len(self.x)).double())
        tiles = Tiles(self.tiling.gradients, self.tiling.sites(self.latents), self.checkpoint)
        return find(anywhere, torch.cat(starts), self.encoder, len(self.block), effort, tiles)

    # Draws

    def drawn(self, rows: list[int], first: int, count: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Draws number `first` to `first + count` of some rows, a tile at a time: their indices, z and log weights."""
        group = self.tiling.group(count)
        for start in range(0, len(rows), group):
            self.checkpoint()
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
        # Fixed shapes, whatever the number of samples.
        log_conditional = [given.log_prob(zero_padded(tile, per_tile))[: len(tile)] for tile in z.split(per_tile)]
        log_weights = torch.cat(log_conditional) + log_ratio
        # A decoder that overflows says that the row is impossible; what leaves here is finite.
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
        """Whether a row's estimate is near enough, or its verdict beyond doubt."""
        if row.reliable and row.std_error <= self.estimator.tolerance:
            return True
        ends = self.estimator.ends
        if ends is None:
            return False
        # A row that looks valid gets as many draws as it mostly takes to vouch for its number, too.
        looks_valid = row.log_likelihood >= min(ends)
        if looks_valid and not row.reliable and row.num_samples < VOUCHED_SAMPLES:
            return False
        # How near a row is to the frozen ends decides nothing about it: an estimate this good need not be better for them.
        if row.reliable and row.std_error <= END_TOLERANCE:
            ends = ()
        reach = margin(row.std_error, row.reliable, row.remaining)
        return all(abs(row.log_likelihood - end) > reach for end in (*ends, *self.band_ends))

    def draw_more(self, rows: list[int], first: int, count: int) -> None:
        """As many draws again for some rows, and what all their draws say."""
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
        """Keep the first draws of some rows: z of shape (S, at least the rows, L), and their log weights."""
        for at, index in enumerate(rows):
            draws = self.rows[index].draws
            room = self.kept_draws - len(draws.z)
            if room > 0:
                kept = torch.cat([draws.z, z[:room, at]]), torch.cat([draws.log_weights, log_weights[:room, at]])
                self.rows[index].draws = Draws(*kept)

    def set_numbers(self, rows: list[int], log_weights: Tensor, cost: int, typical_variance: float) -> None:
        """What log weights, shape (S, at least the rows), say of some rows."""
        # Of one shape at every number of samples, as all that rounds.
        missing = self.tiling.rows - log_weights.shape[1]
        whole = torch.cat([log_weights, log_weights[:, -1:].expand(-1, missing)], dim=1)
        columns = diagnose(whole, typical_variance)
        for at, index in enumerate(rows):
            row = self.rows[index]
            row.log_weights = log_weights[:, at]
            row.evaluations += cost
            row.num_samples = len(log_weights)
            row.log_likelihood, row.std_error, row.ess, row.khat = (float(column[at]) for column in columns[:4])
            row.log_likelihood += row.measure
            row.reliable = bool(columns[4][at]) and row.remaining <= MAX_REMAINING

    def restart(self, rows: list[int], samples: int) -> None:
        """Estimate some rows anew, after a wide search that starts from the draw that surprised most, too."""
        if not rows:
            return
        most = min(MAX_SAMPLES, max(self.estimator.max_samples, 2 * samples))
        estimator = replace(self.estimator, search="wide", seed=self.seed(1), max_samples=most)
        draws = torch.stack([self.rows[index].best_draw for index in rows])
        draws = torch.cat([draws, draws[-1:].expand(self.tiling.rows - len(rows), -1)])
        measure = np.array([self.rows[index].measure for index in rows])
        again = Block(
            estimator, self.vae, self.book, self.block[rows], self.band_ends, draws[None], self.checkpoint, measure,
            self.kept_draws,
        )  # fmt: skip
        again.sample(min(2 * samples, most), may_restart=False)
        for index, row in zip(rows, again.rows, strict=True):
            row.evaluations += self.rows[index].evaluations
            self.rows[index] = row

    def anneal(self, rows: list[int]) -> None:
        """Annealed importance sampling for some rows, from what was their proposal, with draws of its own."""
        betas = torch.linspace(0.0, 1.0, TEMPERATURES + 1, dtype=torch.float64)
        for index in rows:
            self.checkpoint()
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
        """The axes of a row's likeliest mode, shape (1, L, L)."""
        *modes, _ = self.proposal.components
        likeliest = modes[int(self.proposal.shares[index, :-1].argmax())]
        assert isinstance(likeliest, BentNormal)
        return likeliest.axes[index : index + 1]

    def momenta(self, row: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """What the transitions of a row's particles draw: momenta (S, 1, L) and uniforms (S, 1)."""
        generator = row_generator(row, self.seed(3))
        while True:
            momentum, uniform = (
                generator.standard_normal((PARTICLES, 1, self.latents)),
                generator.random((PARTICLES, 1)),
            )
            yield torch.from_numpy(momentum).to(self.x.device), torch.from_numpy(uniform).to(self.x.device)

    def seed(self, stage: int) -> int:
        """Seeds of a stage: every stage draws anew."""
        return self.estimator.seed + SEED_STRIDE * stage


def differentiable_log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) for rows x, shape (B, D), and z of shape (S, B, L), the plain way: shape (S, B), float64."""
    output = vae.decoder(z.to(vae.dtype))
    return vae.likelihood.log_prob(output, x).sum(dim=-1, dtype=torch.float64) + vae.prior.log_prob(z.double())


def margin(std_error: float, reliable: bool, remaining: float) -> float:
    """How far an end of the band must be for a row to leave, nats.

    A row is looked at again and again, and may leave at any look: more standard errors than two pay for that. Where
    the search for the mode has not arrived, what it still had to gain says how much may be missing; but that is Newton's
    word, and far from a mode worth little.
    """
    return (LOOKS * std_error if reliable else 9.0 * std_error + 0.5) + min(4.0 * remaining, MOST_MISSING)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch run this thread's operations on one core.

    Where torch splits an operation among threads, the last elements of each part may round differently: a score would
    depend on how many there are. Blocks of rows run in parallel instead (`Estimator.estimate`).
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that score blocks of rows side by side, each with one torch thread; shared by all scorers."""
    return ThreadPoolExecutor(threads, "scorer", initializer=torch.set_num_threads, initargs=(1,))


def diagnose(log_weights: Tensor, typical_variance: float = 0.0) -> tuple[np.ndarray, ...]:
    """log_likelihood, std_error, ess, khat and reliable of weights, shape (S, B): arrays of shape (B,).

    A row's own variance, known from REPLICATES scramblings, comes out too small just where the rare large weight has not
    come yet. It is therefore moderated by a usual row's, as if that were known from PRIOR_DEGREES more of them (Smyth,
    2004), and widened so that +-1.96 standard errors hold what they should under Student's t (Cornish and Fisher, 1938).
    """
    samples = len(log_weights)
    size, tail = importance.ess(log_weights), khat(log_weights)
    possible = log_weights.amax(dim=0) > IMPOSSIBLE
    exact = (samples >= MIN_SAMPLES) & possible & (size >= (1.0 - 1e-6) * samples)
    degrees = REPLICATES - 1
    variance = importance.replicated_std_error(log_weights).square()
    if typical_variance > 0:
        moderated = (degrees * variance + PRIOR_DEGREES * typical_variance) / (degrees + PRIOR_DEGREES)
        variance = torch.where(exact, variance, moderated)
        degrees += PRIOR_DEGREES
    widening = 1.0 + (1.96**2 + 1.0) / (4 * degrees)
    error = widening * variance.sqrt()
    usual = is_usual(tail, size, samples)
    sharp = (tail <= KHAT_LIMIT) & (size >= SHARP_ESS * samples) & (error <= SHARP_ERROR)
    reliable = exact | usual | sharp
    numbers = (importance.log_likelihood(log_weights), error, size, tail, reliable)
    return tuple(number.cpu().numpy() for number in numbers)


def is_usual(tail: Tensor, size: Tensor, samples: int) -> Tensor:
    """Whether neither khat nor the effective sample size of so many weights speaks against their mean.

    Without a tail to fit nothing speaks for it, unless all weights are equal.
    """
    limit = min(1.0 - 1.0 / np.log10(samples), KHAT_LIMIT)
    return (tail <= limit) & (size >= MIN_RELATIVE_ESS * samples)


def estimates_of(rows: Sequence[Row]) -> Estimates:
    """What is known of rows, as arrays."""
    columns = np.array([row.numbers() for row in rows]).reshape(len(rows), 7).T
    likelihoods, errors, sizes, tails, reliable, samples, evaluations = columns
    return Estimates(likelihoods, errors, sizes, tails, reliable > 0, samples.astype(int), evaluations)


def padded(rows: np.ndarray, length: int) -> np.ndarray:
    """The rows, filled up to `length` with copies of the last, shape (length, D)."""
    if len(rows) == length:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], length - len(rows), axis=0)])


def zero_padded(z: Tensor, length: int) -> Tensor:
    """z, shape (S, B, L), with zeros appended up to `length` samples."""
    if len(z) == length:
        return z
    return torch.cat([z, z.new_zeros((length - len(z), *z.shape[1:]))])
