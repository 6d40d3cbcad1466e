"""The queue in front of the inference threads, counted in decoder evaluations, and the threads that empty it.

    request's rows -> Job -> queue -> an idle thread takes a batch: rows of one group, from one job or many -> answers

Rows of several requests are computed together if they ask the same of the same model; a row's score does not depend on the
other rows in its batch. A batch runs on one inference thread with one torch thread, so the threads share nothing and never
wait for each other. Callers take turns (`waiting.py`). A batch that takes long is interrupted at its checkpoints by short
ones: its thread computes a short job in between, so that a single row does not wait for rows that take a hundred times as
long as its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from service.errors import DeadlineError, OverloadedError, UnavailableError, VouchError
from service.serving.jobs import AbandonedError, Job, Share, Task, end_if_over, parted, raise_in, wake
from service.serving.sharing import SharedRoom
from service.serving.waiting import Waiting, always

T = TypeVar("T")
ASSUMED_RATE = 10_000.0  # decoder evaluations per second and thread, until measured
MEMORY = 0.98  # weight that earlier batches keep in the measured rate, per batch
MOST_TRUST, LEAST_TRUST = (
    0.5,
    1 / 32,
)  # how long to wait for more rows, as a share of what a batch costs before its first row is done
# Before its first row is done, a block has cost about a quarter of what a full one costs.
START_SHARE = 1 / 4
SLICE_S = 0.03  # after which a batch may be interrupted by a shorter one
SHORT = 0.5  # a shorter one: it takes at most so much of the time that the batch has taken itself
MAX_DEPTH = 2  # interruptions within interruptions
STOP_S = 10.0  # how long `stop` waits for threads that hang
log = logging.getLogger("vouch")


@dataclass(frozen=True, slots=True)
class Last:
    """The last batch: its group, its number of jobs, when it ended, and the seconds before its first row was done."""

    group: Hashable = None
    jobs: int = 0
    ended_at: float = 0.0
    start_s: float = 0.0

    @staticmethod
    def of(batch: list[Share], seconds: float) -> Last:
        """The record of a batch that has just ended."""
        task = batch[0].job.task
        full = sum(share.stop - share.start for share in batch) / task.batch_rows
        start_share = START_SHARE / (START_SHARE + (1 - START_SHARE) * full)
        return Last(task.group, len(batch), time.perf_counter(), start_share * seconds)


@dataclass(eq=False, slots=True)
class Running:
    """A batch that is computed: since when, and how many seconds of that went into others that interrupted it."""

    batch: list[Share]
    depth: int = 0
    started: float = field(default_factory=time.perf_counter)
    paused_s: float = 0.0

    def own_s(self) -> float:
        """Seconds of its own computation."""
        return time.perf_counter() - self.started - self.paused_s


class InferenceThreads:
    """Threads that compute, and the bounded queue in front of them.

    Args:
        threads: number of threads.
        max_cost: most decoder evaluations that wait or run at a time; up to twice as many if several callers share them.
        delay_s: how long a batch that is not full may wait for more rows.
        on_batch: called with the rows and the seconds of every batch.
        on_drop: called for every dropped job with the reason: `deadline` or `disconnect`.
    """

    def __init__(
        self,
        threads: int,
        max_cost: int,
        delay_s: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
        on_drop: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.max_cost, self.delay_s, self.on_batch, self.on_drop = max_cost, delay_s, on_batch, on_drop
        self.waiting = Waiting()
        self.room = SharedRoom(max_cost, max_cost)
        # Shadow work runs on idle threads only, and takes no room from other work.
        self.shadow_room = SharedRoom(max_cost, 0)
        self.measured = (ASSUMED_RATE, 1.0)  # evaluations, and the thread-seconds that they took
        self.idle = 0
        self.running: Counter[Hashable] = Counter()  # batches, by group
        self.computing: dict[int, Running] = {}  # by thread; of batches within others, the outer one
        self.alone_running = 0
        self.failures = 0  # batches in a row that failed for no fault of their rows
        self.last = Last()
        self.trust = MOST_TRUST
        self.stopping = False
        self.changed = threading.Condition()
        self.count = threads
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        # Not made before: a fork would take threads that have not begun for ended ones.
        self.threads = [
            threading.Thread(target=self.loop, name=f"inference-{number}", daemon=True) for number in range(self.count)
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is queued, except shadow work, then end the threads, as far as they do not hang."""
        with self.changed:
            self.stopping = True
            for job in [job for job in self.waiting if job.task.is_shadow]:
                self.give_up(job)
                raise_in(job, UnavailableError("the service is shutting down: ask another one, or again later", 5.0))
            self.changed.notify_all()
        for thread in self.threads:
            while thread.ident is not None and thread.is_alive() and self.longest_s() < STOP_S:
                thread.join(0.1)

    def is_alive(self) -> bool:
        """Whether every thread is running."""
        return bool(self.threads) and all(thread.is_alive() for thread in self.threads)

    def longest_s(self) -> float:
        """For how many seconds the longest batch has been running."""
        started = [one.started for one in self.computing.copy().values()]
        return time.perf_counter() - min(started) if started else 0.0

    @property
    def waiting_cost(self) -> int:
        """Decoder evaluations that wait or run, as charged."""
        return self.room.total

    @property
    def groups(self) -> dict[Hashable, Any]:
        """The groups that wait."""
        return self.waiting.groups

    def rate(self) -> float:
        """Decoder evaluations per second, of all threads together, as measured recently."""
        evaluations, seconds = self.measured
        return self.count * evaluations / seconds

    # Called by the event loop

    def submit(self, task: Task[T], rows: np.ndarray, timeout_s: float, caller: str = "") -> Job:
        """Queue rows, shape (B, D); the job's future returns their answers.

        Raises:
            OverloadedError: the queue is full. A request larger than the queue is accepted when nothing else waits.
            UnavailableError: a thread has died, or the service is shutting down.
        """
        future = asyncio.get_running_loop().create_future()
        with self.changed:
            ratio = self.waiting.costs.of(caller, task.group)
            row_cost = round(task.row_cost * max(1.0, ratio))
            self.check_room(caller, row_cost * len(rows), task.is_shadow)
            job = Job(task, rows, time.monotonic() + timeout_s, future, caller, row_cost)
            self.charge(job, len(rows))
            self.waiting.enter(caller)
            self.waiting.add(job)
            self.changed.notify_all()  # all: a single notified thread might be waiting for another batch to fill
        return job

    def check_room(self, caller: str, cost: int, is_shadow: bool = False) -> None:
        """Raise, as `submit` does, if the queue has no room: the body of such a request need not be read."""
        if self.stopping or not self.is_alive():
            raise UnavailableError("the service is shutting down: ask another one, or again later", 5.0)
        room = self.shadow_room if is_shadow else self.room
        if not room.has_room(caller, cost):
            excess = room.total + min(cost, self.max_cost) - self.max_cost
            raise OverloadedError("the queue is full: try again after Retry-After", excess / self.rate())

    def abandon(self, job: Job, reason: str) -> None:
        """Drop a job that no caller waits for any more; rows that no thread has taken are never computed."""
        with self.changed:
            if job.is_over:
                return
            self.give_up(job)
        self.on_drop(reason)

    # Run by the threads

    def loop(self) -> None:
        """Take a batch, compute it and hand the answers over, until the service stops."""
        torch.set_num_threads(1)
        while taken := self.take():
            batch, since = taken
            self.run(Running(batch), time.perf_counter() - since)

    def run(self, running: Running, idle_s: float = 0.0) -> None:
        """Compute a batch; `idle_s` is how long it was there before it was taken."""
        batch, done = running.batch, 0
        outer = self.computing.setdefault(threading.get_ident(), running)
        try:
            done = self.compute(batch, running)
        finally:
            if outer is running:
                del self.computing[threading.get_ident()]
            self.end(batch, running.own_s(), done, running.own_s() + idle_s)

    def take(self) -> tuple[list[Share], float] | None:
        """Wait for rows that can be computed together; return them, and since when they have been there.

        None means that the service has stopped.
        """
        waited_for: set[Hashable] = set()
        since = time.perf_counter()
        with self.changed:
            while True:
                self.drop_expired()
                waits = {group: self.time_to_fill(group) for group in self.ready_groups()}
                group = next((group for group, wait_s in waits.items() if wait_s <= 0), None)
                if group is not None:
                    if group in waited_for:
                        back = self.waiting.returned(group, self.last.ended_at)
                        self.learn(2 * back >= self.last.jobs)
                    return self.batch_of(self.waiting.first(group)), since
                if not self.waiting and self.stopping:
                    return None
                waited_for |= waits.keys()
                self.idle += 1
                self.changed.wait(min(waits.values(), default=None))
                self.idle -= 1
                since = time.perf_counter()

    def end(self, batch: list[Share], seconds: float, done: int, busy_s: float) -> None:
        """Record that a batch has ended after `done` evaluations, and wake the threads that wait for it.

        The rate is measured from `busy_s`, the time since there was something to take. Work without evaluations does not
        count.
        """
        with self.changed:
            task, self.last = batch[0].job.task, Last.of(batch, seconds)
            if done:
                evaluations, spent = self.measured
                kept = self.count if task.is_alone else 1  # threads that could not do such work meanwhile
                self.measured = (MEMORY * evaluations + done, MEMORY * spent + kept * max(busy_s, 1e-6))
            self.running -= Counter((task.group,))  # this drops counts of zero
            self.alone_running -= task.is_alone
            self.changed.notify_all()

    def let_others(self, running: Running) -> None:
        """Called by a batch at its checkpoints: if it has taken long, compute a shorter job in between.

        Half of the thread's time stays its own.
        """
        own_s = running.own_s()
        if own_s < SLICE_S or running.depth >= MAX_DEPTH or running.paused_s > own_s or not self.waiting:
            return
        with self.changed:
            fits = self.waiting.between(running.batch, own_s, SHORT * own_s * self.rate() / self.count)
            is_alone = running.batch[0].job.task.is_alone  # that it runs alone does not keep it from pausing
            job = self.waiting.shortest(
                lambda job: fits(job) and not (job.task.is_alone and self.alone_running > is_alone)
            )
            if job is None:
                return
            batch = self.batch_of(job, fits)
        start = time.perf_counter()
        self.run(Running(batch, running.depth + 1))
        running.paused_s += time.perf_counter() - start

    def ready_groups(self) -> list[Hashable]:
        """The groups that may run now, in the order of their jobs' turns."""
        first = {group: self.waiting.first(group) for group in self.waiting.groups}
        ready = [group for group, job in first.items() if not (job.task.is_alone and self.alone_running)]
        return sorted(ready, key=lambda group: self.waiting.rank(first[group]))

    def time_to_fill(self, group: Hashable) -> float:
        """Seconds that a batch of this group, if it is not full, should still wait for more rows.

        Starting a batch costs as much as many of its rows, so waiting pays off in two cases. While another batch of the
        group runs, a few rows wait for its end, but no longer than a start costs. And clients that were just answered are
        about to ask again: until as many jobs have come as the last batch answered, a thread waits for a part of that
        cost. Otherwise the clients that waited and those that were answered would keep taking turns, in two batches where
        one would do. If they do not come back, the next waits are shorter.
        """
        job, last, rows = self.waiting.first(group), self.last, self.waiting.rows[group]
        most = job.task.batch_rows
        if self.stopping or rows >= most:
            return 0.0
        until = job.queued_at + self.delay_s
        if last.group == group and self.running[group] and rows < START_SHARE * most:
            until = max(until, job.queued_at + last.start_s)
        if last.group == group and self.waiting.returned(group, last.ended_at) < last.jobs:
            until = max(until, last.ended_at + self.trust * last.start_s)
        return until - time.perf_counter()

    def learn(self, all_returned: bool) -> None:
        """Wait longer next time if all clients came back, shorter if not."""
        self.trust = min(MOST_TRUST, 2 * self.trust) if all_returned else max(LEAST_TRUST, self.trust / 2)

    def batch_of(self, job: Job, fits: Callable[[Job], bool] = always) -> list[Share]:
        """Take rows of a job, and of others of its group that fit until the batch is full.

        Leave a share to other idle threads.
        """
        task, waiting = job.task, self.waiting.rows[job.task.group]
        threads = 1 if task.is_alone else 1 + self.idle
        sharing = min(threads, max(1, int(waiting / (START_SHARE * task.batch_rows))))
        self.running[task.group] += 1
        self.alone_running += task.is_alone
        return self.waiting.take(job, min(task.batch_rows, -(-waiting // sharing)), fits)

    def compute(self, batch: list[Share], running: Running) -> int:
        """Compute a batch and hand each job its part; if it fails, compute each job alone, so that one harms no other.

        Returns:
            Number of evaluations done.
        """
        task = batch[0].job.task

        def check_cancelled() -> None:
            end_if_over(batch)
            self.let_others(running)

        try:
            rows = np.concatenate([share.job.rows[share.start : share.stop] for share in batch])
            answer = task.compute(rows, check_cancelled)
            parts = [answer] if len(batch) == 1 else parted(batch, answer)
            costs = task.costs(answer)
            self.on_batch(len(rows), running.own_s())
        except AbandonedError:
            self.bill(batch, running.own_s())
            with self.changed:
                self.settle(batch)
            return 0
        except BaseException as error:  # the thread must survive whatever a request makes it raise
            if len(batch) > 1:
                return sum(self.compute([share], running) for share in batch)
            if not isinstance(error, VouchError):
                self.failures += 1
            self.fail(batch[0], error)
            return 0
        self.failures = 0
        done = self.bill(batch, running.own_s(), costs)
        self.hand_over(batch, parts)
        return done

    def bill(self, batch: list[Share], seconds: float, costs: np.ndarray | None = None) -> int:
        """Charge each caller the seconds that its rows took, by the rows' costs, and learn these.

        Returns:
            The decoder evaluations that were done: as told by `costs`, shape (B,), or else as expected.
        """
        task = batch[0].job.task
        each = np.array([float(share.stop - share.start) for share in batch]) * task.row_cost
        if costs is not None:
            ends = np.cumsum([share.stop - share.start for share in batch])
            each = np.add.reduceat(np.asarray(costs, dtype=np.float64), [0, *ends[:-1]])
        with self.changed:
            for share, cost in zip(batch, each.tolist(), strict=True):
                self.waiting.charge(share.job.caller, seconds * cost / max(1.0, each.sum()))
                if costs is not None:
                    rows = share.stop - share.start
                    self.waiting.costs.learn(share.job.caller, task.group, cost / max(1, task.row_cost * rows), rows)
        return int(each.sum())

    def hand_over(self, batch: list[Share], parts: list[Any]) -> None:
        """Give each job its part of a batch's answer, and wake the callers of finished jobs."""
        finished = []
        with self.changed:
            self.settle(batch)
            for share, answer in zip(batch, parts, strict=True):
                job = share.job
                if job.is_over:
                    continue
                job.answers[share.start] = answer
                if not job.pending and not job.waiting_rows():
                    self.finish(job)
                    job.ended_at = time.perf_counter()
                    finished.append(job)
        wake(finished)

    def settle(self, batch: list[Share]) -> None:
        """Free the queue's room for a batch that was computed, or never will be; the caller holds the lock."""
        for share in batch:
            self.charge(share.job, share.start - share.stop)
            share.job.pending -= 1

    def charge(self, job: Job, rows: int) -> None:
        """Add the cost of `rows` rows to the queue, or subtract it if negative; the caller holds the lock."""
        (self.shadow_room if job.task.is_shadow else self.room).add(job.caller, rows * job.row_cost)

    def fail(self, share: Share, error: BaseException) -> None:
        """Fail a job whose rows raised an error, and drop the rest of it."""
        job = share.job
        with self.changed:
            self.settle([share])
            if job.is_over:
                return
            self.give_up(job)
        raise_in(job, error)

    # The queue; the caller holds the lock

    def finish(self, job: Job) -> None:
        """No more is to be done for a job."""
        job.is_over = True
        self.waiting.leave(job.caller)

    def give_up(self, job: Job) -> None:
        """Remove a job's rows from the queue."""
        self.finish(job)
        self.charge(job, -self.waiting.remove(job))

    def drop_expired(self) -> None:
        """Drop late jobs at the front of the queue; the event loop may be too busy to do it."""
        now = time.monotonic()
        late = [job for job in map(self.waiting.first, self.waiting.groups) if job.deadline <= now]
        for job in late:
            self.give_up(job)
            self.on_drop("deadline")
            raise_in(
                job,
                DeadlineError(
                    "the deadline passed before the request was computed: send fewer rows, or allow more time"
                ),
            )
