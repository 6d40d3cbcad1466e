"""The estimator: rows in, estimates of log p(x) out, the same to the last bit for a row in whatever company it comes.

Matrix products round differently for different shapes, so rows go through the networks in blocks of a fixed number of
rows, and samples in tiles of a fixed number of decoder evaluations, padded where they are not full. A row's draws come
from a seed made of its own content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from service.density import importance
from service.density.pareto import khat
from service.density.proposals import PROPOSALS, Proposal, ProposalName, proposal_for
from service.errors import CalibrationError
from service.vae.conditional import Conditional, conditional
from service.vae.network import VAE

IMPOSSIBLE = -1e300  # nats
MAX_SAMPLES = 100_000
MIN_SAMPLES = 25  # fewer may agree by chance
KHAT_LIMIT = 0.7
MIN_RELATIVE_ESS = 0.02


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of the blocks that go through the networks. They are part of what makes a score repeatable."""

    rows: int
    evaluations: int

    @staticmethod
    def for_device(device: torch.device) -> Tiling:
        """Large enough to share out what a tile costs beside its products, small enough for a CPU's caches.

        A GPU needs much larger ones to be busy.
        """
        return Tiling(rows=16, evaluations=512) if device.type == "cpu" else Tiling(rows=256, evaluations=65536)

    def group(self, samples: int) -> int:
        """How many rows share a tile: a power of two that divides the block."""
        group = 1
        while 2 * group * samples <= self.evaluations and 2 * group <= self.rows:
            group *= 2
        return group


@dataclass(frozen=True, slots=True)
class Estimates:
    """log p(x) of B rows and what the numbers are worth; arrays of shape (B,), float64.

    `khat` is NaN where there is no tail to fit. `reliable` says that neither khat nor ess gives a reason to distrust the
    estimate.
    """

    log_likelihood: np.ndarray
    std_error: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    reliable: np.ndarray
    num_samples: np.ndarray


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
    """

    num_samples: int = 256
    proposal: ProposalName = "encoder"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.num_samples <= MAX_SAMPLES:
            raise CalibrationError(f"num_samples is {self.num_samples}, expected 2 to {MAX_SAMPLES:,}")
        if self.proposal not in PROPOSALS:
            raise CalibrationError(f"proposal {self.proposal!r} is not known, expected one of {', '.join(PROPOSALS)}")

    def evaluations_per_row(self) -> int:
        """What a row costs, in decoder evaluations."""
        return self.num_samples

    def estimate(self, vae: VAE, x: np.ndarray, pool: Executor | None = None) -> Estimates:
        """Estimate log p(x) for rows in the network's units, shape (B, D).

        On a CPU a pool's threads share the blocks; a GPU takes one after the other.
        """
        length = Tiling.for_device(vae.device).rows
        blocks = [x[start : start + length] for start in range(0, len(x), length)]
        run = map if pool is None or vae.device.type != "cpu" else pool.map
        parts = list(run(partial(self.diagnosed, vae), blocks))
        if not parts:
            none = np.zeros(0)
            return Estimates(none, none, none, none, none.astype(bool), none.astype(int))
        log_likelihood, error, size, tail, reliable = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Estimates(log_likelihood, error, size, tail, reliable, np.full(len(x), self.num_samples))

    def diagnosed(self, vae: VAE, block: np.ndarray) -> list[np.ndarray]:
        """log_likelihood, std_error, ess, khat and reliable of a block's rows."""
        shape = (self.num_samples, Tiling.for_device(vae.device).rows)
        log_weights = torch.zeros(shape, dtype=torch.float64, device=vae.device)
        filled = 0
        for draws in self.block_draws(vae, block):
            log_weights[:, filled : filled + draws.rows] = draws.log_weights[:, : draws.rows]
            filled += draws.rows
        # Sums round differently for different shapes, too: what fills the block is cut off after them.
        with one_thread():
            return [part[:filled] for part in diagnose(log_weights)]

    def draws(self, vae: VAE, x: np.ndarray) -> Iterator[WeightedDraws]:
        """Weighted draws for the rows x, shape (B, D), in order, a few rows at a time."""
        length = Tiling.for_device(vae.device).rows
        for start in range(0, len(x), length):
            yield from self.block_draws(vae, x[start : start + length])

    def block_draws(self, vae: VAE, block: np.ndarray) -> Iterator[WeightedDraws]:
        """Weighted draws for at most a block of rows."""
        tiling = Tiling.for_device(vae.device)
        group = tiling.group(self.num_samples)
        with one_thread(), torch.inference_mode():
            rows = torch.from_numpy(padded(block, tiling.rows)).to(vae.device, vae.dtype)
            proposal, given = proposal_for(self.proposal, vae, rows, self.num_samples), conditional(vae, rows)
        for first in range(0, len(block), group):
            chosen = slice(first, first + group)
            noise = self.noise(padded(block[chosen], group), vae.architecture.latents, vae.dtype)
            with one_thread(), torch.inference_mode():
                few, its = proposal.select(chosen), given.select(chosen)
                z, log_weights = weigh(vae, its, few, noise.to(vae.device), tiling.evaluations)
            yield WeightedDraws(z, log_weights, len(block[chosen]))

    def noise(self, x: np.ndarray, latents: int, dtype: torch.dtype) -> Tensor:
        """Standard-normal draws for each row of x from the row's own seed, shape (S, B, L)."""
        kind = np.float64 if dtype == torch.float64 else np.float32
        draws = [row_generator(row, self.seed).standard_normal((self.num_samples, latents), dtype=kind) for row in x]
        return torch.from_numpy(np.stack(draws, axis=1))


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


def weigh(vae: VAE, given: Conditional, proposal: Proposal, noise: Tensor, evaluations: int) -> tuple[Tensor, Tensor]:
    """Draw z from the proposal, shape (S, B, L), and weigh it, tile by tile: log weights of shape (S, B)."""
    z = proposal.sample(noise)
    log_ratio = vae.prior().log_prob(z) - proposal.log_prob(z)
    per_tile = max(1, evaluations // z.shape[1])
    # Fixed shapes, whatever num_samples.
    log_conditional = [given.log_prob(zero_padded(tile, per_tile))[: len(tile)] for tile in z.split(per_tile)]
    log_weights = torch.cat(log_conditional) + log_ratio
    # A decoder that overflows says that the row is impossible; what leaves here is finite.
    return z, log_weights.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).clamp(min=IMPOSSIBLE)


def row_generator(row: np.ndarray, seed: int) -> np.random.Generator:
    """A random generator that depends on the row's content and the seed alone; -0.0 counts as 0.0."""
    content = (np.ascontiguousarray(row, dtype=np.float32) + np.float32(0.0)).tobytes()
    digest = hashlib.blake2b(content, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def diagnose(log_weights: Tensor) -> tuple[np.ndarray, ...]:
    """log_likelihood, std_error, ess, khat and reliable of weights, shape (S, B): arrays of shape (B,)."""
    samples = len(log_weights)
    size, tail = importance.ess(log_weights), khat(log_weights)
    limit = min(1.0 - 1.0 / np.log10(samples), KHAT_LIMIT) if samples > 10 else 0.0
    possible = log_weights.amax(dim=0) > IMPOSSIBLE
    exact = (samples >= MIN_SAMPLES) & possible & (size >= (1.0 - 1e-6) * samples)
    reliable = exact | ((tail <= limit) & (size >= MIN_RELATIVE_ESS * samples))
    numbers = (importance.log_likelihood(log_weights), importance.std_error(log_weights), size, tail, reliable)
    return tuple(number.cpu().numpy() for number in numbers)


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
