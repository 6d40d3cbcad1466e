"""Tiles of fixed shape, each on one thread: matrix products round differently for other shapes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from service.system.processes import in_forked_child
from service.vae.network import VAE

# For a decoder with so many multiplications, tiles of 256 evaluations are large enough; smaller ones get up to four times.
TILE_PRODUCTS, MAX_SCALE = 2**19, 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of the blocks that go through the networks; scores are reproducible only if these are fixed."""

    rows: int
    evaluations: int
    gradients: int
    tangents: int

    @staticmethod
    def of(vae: VAE, max_scale: int = MAX_SCALE) -> Tiling:
        """Tiles large enough to amortise their overhead, and small enough for a CPU's caches.

        A small network's products take less time than launching them, so larger tiles cost the same. A GPU needs much
        larger tiles to be busy.
        """
        if vae.device.type != "cpu":
            return Tiling(rows=256, evaluations=65536, gradients=256, tangents=16384)
        larger = TILE_PRODUCTS // vae.evaluation_size
        scale = 1 << (max(1, min(max_scale, larger)).bit_length() - 1)
        return Tiling(rows=32 * scale, evaluations=256 * scale, gradients=32 * scale, tangents=256 * scale)

    def group(self, samples: int) -> int:
        """Rows in a tile of so many samples per row: a power of two that divides the block."""
        return self.power_of_two(self.evaluations // samples)

    def sites(self, latents: int) -> int:
        """Pairs in a tile of Jacobians."""
        return self.power_of_two(self.tangents // latents)

    def power_of_two(self, most: int) -> int:
        """The largest power of two of at most `most` and at most `rows`."""
        return 1 << (max(1, min(most, self.rows)).bit_length() - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch run this thread's operations on one core.

    If torch splits an operation among threads, the last elements of each part may round differently: a score would depend
    on the number of threads. Blocks of rows run in parallel instead (`estimate.observe`).
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
    """Threads that score blocks of rows in parallel, each with one torch thread; shared by all scorers."""
    return ThreadPoolExecutor(threads, "scorer", initializer=torch.set_num_threads, initargs=(1,))


@in_forked_child
def forget_threads() -> None:
    """Make a forked child able to compute: its parent's threads, torch's own among them, do not exist in it.

    GNU's OpenMP would wait for them without end.
    """
    worker_pool.cache_clear()
    torch.set_num_threads(1)


def padded(rows: np.ndarray, length: int) -> np.ndarray:
    """The rows, padded to `length` with copies of the last, shape (length, D)."""
    if len(rows) == length:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], length - len(rows), axis=0)])
