"""One machine: a process for each CPU, each with a scorer of its own and one torch thread.

Threads would wait for each other: a small network is asked for more than it computes. A process works on a shard at a time,
so that shards are all that passes between them.
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
    """All that a process needs to know to work on shards: which model of which store, the options, where results go.

    Attributes:
        cache: folder in which files of a store afar are kept; None: nowhere.
    """

    store: str
    cache: Path | None
    device: str
    out: str
    options: RunOptions
    on_bad_file: OnBadFile

    def worker(self) -> Worker:
        """A worker, with the model in memory."""
        torch.set_num_threads(1)
        store = Store(self.store, self.cache)
        scorer = Scorer(store.load(store.resolve(self.options.model)), torch_device(self.device))
        return Worker(scorer, self.options, OutFolder(self.out), self.on_bad_file)


class Engine(Protocol):
    """What works on shards. An error that a shard raises ends the work."""

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        """Score them (`Worker.score`)."""

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        """Tell discoveries from other rows (`Worker.split`)."""


@dataclass(frozen=True, slots=True)
class InThisProcess:
    """A worker that is here."""

    worker: Worker

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        """One after the other."""
        for shard in shards:
            self.worker.score(shard, on_batch)

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        """One after the other."""
        for shard in shards:
            self.worker.split(shard, limit)
            on_batch(shard.row_range.rows, 0)


@dataclass(frozen=True, slots=True)
class Processes:
    """So many processes side by side, which end with this one, however it ends."""

    job: WorkerSpec
    workers: int

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        """In whatever order they are done."""
        with self.pool(on_batch) as (pool, tell):
            drained([pool.submit(scored_here, shard) for shard in shards], tell)

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        """In whatever order they are done."""
        with self.pool(on_batch) as (pool, tell):
            drained([pool.submit(split_here, shard, limit) for shard in shards], tell)

    @contextlib.contextmanager
    def pool(self, on_batch: OnBatch) -> Iterator[tuple[ProcessPoolExecutor, Callable[[], None]]]:
        """The processes, and what tells of their rows since it was last called."""
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
                "a worker ended unasked, perhaps for want of memory: run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
        tell()


def drained(futures: list[Future[None]], tell: Callable[[], None]) -> None:
    """Wait for all, or for the first that fails."""
    left = set(futures)
    while left:
        done, left = wait(left, TOLD_EVERY_S, FIRST_COMPLETED)
        for one in done:
            one.result()
        tell()


# In a worker's process

HERE: dict[str, Any] = {}


def begin(job: WorkerSpec, counts: Any) -> None:
    """Load the model, once."""
    end_with_parent()
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # a traceback of each would hide the one line that matters
    HERE.update(worker=job.worker(), counts=counts)


def count(rows: int, invalid: int) -> None:
    """Tell the parent of some rows."""
    counts = HERE["counts"]
    with counts.get_lock():
        counts[0] += rows
        counts[1] += invalid


def scored_here(shard: Shard) -> None:
    """Score a shard."""
    HERE["worker"].score(shard, count)


def split_here(shard: Shard, limit: RejectionLimit) -> None:
    """Split a shard."""
    HERE["worker"].split(shard, limit)
    count(shard.row_range.rows, 0)
