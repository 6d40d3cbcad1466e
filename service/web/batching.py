"""The inference thread: one thread that computes, a bounded queue before it, deadlines and fairness.

It alone calls the scorer, whose own threads share out a piece's rows: requests side by side would multiply them. The
queue is counted in decoder evaluations. A long request is cut into pieces and goes back to the end of the queue after each,
so that a single row behind it waits for one piece and not for all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from service.errors import DeadlineError, OverloadedError, UnavailableError

T = TypeVar("T")


@dataclass(frozen=True)
class Piece(Generic[T]):
    """A part of a request's work and what it costs, in decoder evaluations."""

    run: Callable[[], T]
    cost: int


@dataclass
class Job:
    """A request's pieces, those that are done, and who waits for them."""

    pieces: deque[Piece[Any]]
    deadline: float
    future: Future[list[Any]] = field(default_factory=Future)
    results: list[Any] = field(default_factory=list)

    def cost(self) -> int:
        """What is left to compute."""
        return sum(piece.cost for piece in self.pieces)


class InferenceThread:
    """Runs pieces of work in turn, one at a time."""

    def __init__(self, max_cost: int) -> None:
        self.max_cost = max_cost
        self.jobs: deque[Job] = deque()
        self.waiting_cost = 0
        self.rate = 100_000.0  # decoder evaluations a second, measured as we go
        self.dropped = 0
        self.stopping = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.loop, name="inference", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Finish what is queued, then end."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self.thread.join()

    def is_alive(self) -> bool:
        """Whether it still computes."""
        return self.thread.is_alive()

    def submit(self, pieces: Sequence[Piece[T]], timeout_s: float) -> Future[list[T]]:
        """Queue a request's pieces; the future gives their results in order.

        Raises:
            OverloadedError: the queue is full. A request that is larger than the queue is taken when nothing waits.
            UnavailableError: the thread has ended or is about to.
        """
        job = Job(deque(pieces), time.monotonic() + timeout_s)
        cost = job.cost()
        with self.changed:
            if self.stopping or not self.is_alive():
                raise UnavailableError("the service is shutting down", 5.0)
            if self.waiting_cost and self.waiting_cost + cost > self.max_cost:
                raise OverloadedError("the queue is full", self.waiting_cost / self.rate)
            self.jobs.append(job)
            self.waiting_cost += cost
            self.changed.notify()
        return job.future

    def loop(self) -> None:
        """Take the next job, run one piece of it, put it back behind the others."""
        torch.set_num_threads(1)  # the scorer's own threads share the rows
        while (job := self.take()) is not None:
            if not job.future.cancelled() and time.monotonic() >= job.deadline:
                self.drop(job, DeadlineError("the request's time ran out before it was computed"))
            elif job.future.cancelled():
                self.drop(job, None)
            else:
                self.advance(job)

    def take(self) -> Job | None:
        """Wait for a job; None when there is none and the service stops."""
        with self.changed:
            self.changed.wait_for(lambda: self.jobs or self.stopping)
            return self.jobs.popleft() if self.jobs else None

    def advance(self, job: Job) -> None:
        """Run one piece of a job."""
        piece = job.pieces[0]
        start = time.perf_counter()
        try:
            job.results.append(piece.run())
        except BaseException as error:  # the thread must outlive whatever a request does to it
            self.drop(job, error)
            return
        if piece.cost:
            seconds = max(time.perf_counter() - start, 1e-6)
            self.rate += 0.1 * (piece.cost / seconds - self.rate)
        with self.changed:
            self.waiting_cost -= piece.cost
            job.pieces.popleft()
            if job.pieces:
                self.jobs.append(job)
                return
        if job.future.set_running_or_notify_cancel():
            job.future.set_result(job.results)

    def drop(self, job: Job, error: BaseException | None) -> None:
        """Leave the rest of a job undone."""
        with self.changed:
            self.waiting_cost -= job.cost()
            self.dropped += 1
        # A client may hang up in this very moment; a cancelled future takes no exception.
        if error is not None and job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)
