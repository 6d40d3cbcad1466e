"""Work in the queue: tasks, the callers' jobs, and each job's share of a batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from service.system.cancellation import CheckCancelled

T = TypeVar("T")
log = logging.getLogger("vouch")


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """A computation on rows, done in batches.

    Attributes:
        compute: computes an answer from rows, shape (B, D); it may call `check_cancelled`, which raises to stop it.
        part: takes some rows of an answer.
        group: rows of equal groups may be computed together.
        row_cost: cost of a row, in decoder evaluations.
        batch_rows: most rows in a batch.
        is_shadow: run only while nothing else waits.
        is_alone: run one batch of such tasks at a time. For a tiny network, Python's overhead exceeds the computation:
            parallel threads would wait for the interpreter, and slow each other down.
        costs: what each row of an answer did cost, in decoder evaluations, if that is known.
    """

    compute: Callable[[np.ndarray, CheckCancelled], T]
    part: Callable[[T, slice], T]
    group: Hashable
    row_cost: int
    batch_rows: int
    is_shadow: bool = False
    is_alone: bool = False
    costs: Callable[[T], np.ndarray | None] = lambda answer: None


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A job's answers, in the order of its rows, and how long they took."""

    answers: list[T]
    waited_s: float
    computed_s: float  # from the first batch's start to the last one's end


@dataclass(eq=False, slots=True)
class Job:
    """A request's rows, their progress, and the future of their answers."""

    task: Task[Any]
    rows: np.ndarray
    deadline: float
    future: asyncio.Future[Done[Any]]
    caller: str = ""
    row_cost: int = 0  # what a row of it is charged, in decoder evaluations
    queued_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None
    ended_at: float = 0.0
    turn: tuple[bool, int] = (False, 0)
    taken: int = 0
    pending: int = 0  # batches in progress
    answers: dict[int, Any] = field(default_factory=dict)
    is_over: bool = False

    def waiting_rows(self) -> int:
        """Number of rows that no thread has taken yet."""
        return len(self.rows) - self.taken


@dataclass(frozen=True, slots=True)
class Share:
    """A job's rows in a batch."""

    job: Job
    start: int
    stop: int

    @property
    def cost(self) -> int:
        """Cost of these rows, in decoder evaluations."""
        return self.job.row_cost * (self.stop - self.start)


def parted(batch: list[Share], answer: Any) -> list[Any]:
    """Each job's part of a batch's answer."""
    ends = np.cumsum([share.stop - share.start for share in batch]).tolist()
    return [
        share.job.task.part(answer, slice(first, last))
        for share, first, last in zip(batch, [0, *ends[:-1]], ends, strict=True)
    ]


class AbandonedError(Exception):
    """No caller waits for any row of a batch."""


def end_if_over(batch: list[Share]) -> None:
    """Raise AbandonedError if no caller waits for any row of the batch."""
    if all(share.job.is_over for share in batch):
        raise AbandonedError


def wake(jobs: Sequence[Job]) -> None:
    """Set the futures of finished jobs, in one call."""

    def deliver() -> None:
        for job in jobs:
            if not job.future.done():
                job.future.set_result(done(job))

    if jobs:
        call_soon(jobs[0], deliver)


def done(job: Job) -> Done[Any]:
    """A job's answers in the order of its rows."""
    assert job.started_at is not None
    answers = [job.answers[start] for start in sorted(job.answers)]
    return Done(answers, job.started_at - job.queued_at, job.ended_at - job.started_at)


def raise_in(job: Job, error: BaseException) -> None:
    """Raise an error in the caller that waits for a job."""

    def deliver() -> None:
        if not job.future.done():
            job.future.set_exception(as_exception(error))

    call_soon(job, deliver)


def call_soon(job: Job, callback: Callable[[], Any]) -> None:
    """Schedule a callback in a job's event loop; do nothing if the loop has ended."""
    try:
        job.future.get_loop().call_soon_threadsafe(callback)
    except RuntimeError:
        log.debug("the event loop has ended")


def as_exception(error: BaseException) -> BaseException:
    """The error, if a future may raise it: futures reject StopIteration, and SystemExit would end the event loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"{type(error).__name__} in an inference thread")
