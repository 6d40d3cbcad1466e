"""The local engine: one process per CPU, each with its own scorer and one torch thread.

Threads would wait for each other: with a small network, the calls cost more than the computation. A process works on
one shard at a time, so only shards and row counts pass between processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from service.datasets.plan import OnBadFile, RunOptions, Shard
from service.datasets.shards import OnBatch, Worker
from service.errors import UnavailableError
from service.files.locations import OutFolder
from service.scoring.scorer import Scorer, torch_device
from service.store.store import Store
from service.system.processes import end_with_parent
from service.validity.conformal import RejectionLimit

TOLD_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker process needs: the store and the model, the options, and where results go.

    Attributes:
        cache: folder that caches files of a remote store; None: no cache.
    """

    store: str
    cache: Path | None
    device: str
    out: str
    options: RunOptions
    on_bad_file: OnBadFile

    def worker(self) -> Worker:
        """Load the model and make a worker, in a process with one torch thread."""
        torch.set_num_threads(1)
        store = Store(self.store, self.cache)
        scorer = Scorer(store.load(store.resolve(self.options.model)), torch_device(self.device))
        return Worker(scorer, self.options, OutFolder(self.out), self.on_bad_file)


class Engine(Protocol):
    """Runs a worker over shards. An error in any shard ends the run."""

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        """Score shards (`Worker.score`)."""

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        """Split shards into discoveries and other rows (`Worker.split`)."""


@dataclass(frozen=True, slots=True)
class InThisProcess:
    """Runs shards one after the other in this process."""

    worker: Worker

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        for shard in shards:
            self.worker.score(shard, on_batch)

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        for shard in shards:
            self.worker.split(shard, limit)
            on_batch(shard.row_range.rows, 0)


@dataclass(frozen=True, slots=True)
class Processes:
    """Runs shards in parallel processes, in any order. The processes end with this one, however it ends."""

    job: WorkerSpec
    workers: int

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        with self.pool(on_batch) as (pool, tell):
            drained([pool.submit(scored_here, shard) for shard in shards], tell)

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        with self.pool(on_batch) as (pool, tell):
            drained([pool.submit(split_here, shard, limit) for shard in shards], tell)

    @contextlib.contextmanager
    def pool(self, on_batch: OnBatch) -> Iterator[tuple[ProcessPoolExecutor, Callable[[], None]]]:
        """The process pool, and a function that reports the rows done since its last call."""
        context = multiprocessing.get_context("spawn")
        counts = context.Array("q", 2)
        told = [0, 0]

        def tell() -> None:
            now = counts[:]
            on_batch(now[0] - told[0], now[1] - told[1])
            told[:] = now

        pool = ProcessPoolExecutor(self.workers, context, begin, (self.job, counts))
        try:
            yield pool, tell
        except BrokenProcessPool:
            raise UnavailableError(
                "a worker stopped unexpectedly, perhaps out of memory: run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
        tell()


def drained(futures: list[Future[None]], tell: Callable[[], None]) -> None:
    """Wait until all futures are done, or raise the first error."""
    left = set(futures)
    while left:
        done, left = wait(left, TOLD_EVERY_S, FIRST_COMPLETED)
        for one in done:
            one.result()
        tell()


# In a worker's process

HERE: dict[str, Any] = {}


def begin(job: WorkerSpec, counts: Any) -> None:
    """Set up a worker process: load the model once."""
    end_with_parent()
    # A traceback from each process would hide the one line that matters.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    HERE.update(worker=job.worker(), counts=counts)


def count(rows: int, invalid: int) -> None:
    """Report rows to the parent process."""
    counts = HERE["counts"]
    with counts.get_lock():
        counts[0] += rows
        counts[1] += invalid


def scored_here(shard: Shard) -> None:
    HERE["worker"].score(shard, count)


def split_here(shard: Shard, limit: RejectionLimit) -> None:
    HERE["worker"].split(shard, limit)
    count(shard.row_range.rows, 0)
