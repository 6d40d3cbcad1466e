"""Tiles of rows, each on one thread: matrix products round differently for a few shapes, which are never used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from service.system.processes import in_forked_child
from service.vae.determinism import ALIGNED, aligned
from service.vae.network import VAE

# For a decoder with so many multiplications, tiles of 256 evaluations are large enough; smaller ones get up to 16 times.
TILE_PRODUCTS, MAX_SCALE = 2**19, 16
MAX_ROWS = 512
MANY_PRODUCTS = 2**21  # from here on even small tiles take long, as those of convolutions do


@dataclass(frozen=True, slots=True)
class Tiling:
    """How many rows share a block, and how many decoder evaluations go through the networks at a time.

    Rows come in multiples of `step`: on a CPU, products of any such number of rows give each of them the same bits; on a
    GPU only products of one shape do.
    """

    rows: int
    evaluations: int
    step: int = ALIGNED

    @staticmethod
    def of(vae: VAE) -> Tiling:
        """Tiles large enough to amortise their overhead, and small enough for a CPU's caches.

        A small network's products take less time than launching them, so larger tiles cost the same. A GPU needs much
        larger tiles to be busy.
        """
        if vae.device.type != "cpu":
            return Tiling(rows=256, evaluations=65536, step=256)
        if vae.evaluation_size > MANY_PRODUCTS:
            return Tiling(rows=32, evaluations=64)
        larger = TILE_PRODUCTS // vae.evaluation_size
        scale = 1 << (max(1, min(MAX_SCALE, larger)).bit_length() - 1)
        return Tiling(min(MAX_ROWS, 128 * scale), 256 * scale)

    @property
    def least_rows(self) -> int:
        """Rows that are worth a batch, or a thread, of their own."""
        return self.rows // 4

    def block_rows(self, rows: int, threads: int) -> int:
        """Rows in each block, of so many that some threads share: equally many, as far as they are worth it."""
        return max(self.least_rows, min(self.rows, -(-rows // threads)))

    def tiles(self, index: Tensor, size: int, budget: int | None = None) -> Iterator[Tensor]:
        """Parts of an index of rows of some size, which fit into a budget, each filled to a multiple of `step`.

        By default the size is in decoder evaluations, and so is the budget.
        """
        most = (budget or self.evaluations) // size // self.step * self.step
        for part in index.split(max(self.step, most)) if len(index) else ():
            yield aligned(part, self.step)


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


class Workers(ThreadPoolExecutor):
    """Threads that score blocks of rows in parallel, each with one torch thread."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "scorer", initializer=torch.set_num_threads, initargs=(1,))
        self.threads = threads


@cache
def worker_pool(threads: int) -> Workers:
    """So many threads, shared by all scorers."""
    return Workers(threads)


@in_forked_child
def forget_threads() -> None:
    """Make a forked child able to compute: its parent's threads, torch's own among them, do not exist in it.

    GNU's OpenMP would wait for them without end.
    """
    worker_pool.cache_clear()
    torch.set_num_threads(1)


def padded(rows: np.ndarray, step: int) -> np.ndarray:
    """The rows, padded to a multiple of `step` with copies of the last, shape (B, D)."""
    missing = -len(rows) % step
    if not missing:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
