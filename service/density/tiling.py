"""Tiles of fixed shape and one thread each: matrix products round differently for other shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from service.vae.network import VAE

# Of a decoder with so many multiplications, a tile of 256 evaluations is large enough; of smaller ones, up to four times.
TILE_PRODUCTS, MAX_SCALE = 2**19, 4


CheckCancelled = Callable[[], None]  # raises what is to end the work


def never_cancelled() -> None:
    """For callers who cancel nothing."""


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


def padded(rows: np.ndarray, length: int) -> np.ndarray:
    """The rows, filled up to `length` with copies of the last, shape (length, D)."""
    if len(rows) == length:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], length - len(rows), axis=0)])
