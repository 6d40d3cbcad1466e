"""The queue in front of the inference threads, counted in decoder evaluations, and the threads that empty it.

    request's rows -> Job -> queue -> an idle thread takes a batch: rows of one group, from one job or many -> answers

Rows of several requests are computed together if they ask the same of the same model; a row's score does not depend on the
other rows in its batch. A batch runs on one inference thread with one torch thread, so the threads share nothing and never
wait for each other. Jobs take turns: one that has filled a batch goes back behind the others, so that a single row behind
it waits for one batch and not for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch

from service.errors import DeadlineError, OverloadedError, UnavailableError
from service.serving.jobs import AbandonedError, Job, Share, Task, end_if_over, parted, raise_in, returned, wake

T = TypeVar("T")
ASSUMED_RATE = 10_000.0  # decoder evaluations per second and thread, until measured
MEMORY = 0.98  # weight that earlier batches keep in the measured rate, per batch
MOST_TRUST, LEAST_TRUST = (
    0.5,
    1 / 32,
)  # how long to wait for more rows, as a share of what a batch costs before its first row is done
# Before its first row is done, a block has cost about a quarter of what a full one costs.
START_SHARE = 1 / 4
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


class InferenceThreads:
    """Threads that compute, and the bounded queue in front of them.

    Args:
        threads: number of threads.
        max_cost: most decoder evaluations that wait or run at a time.
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
        self.groups: dict[Hashable, deque[Job]] = {}
        self.waiting_rows: dict[Hashable, int] = {}
        self.turns = count()
        self.waiting_cost = 0
        self.shadow_cost = 0  # separate: shadow work runs on idle threads only, and takes no room from other work
        self.measured = (ASSUMED_RATE, 1.0)  # evaluations, and the thread-seconds that they took
        self.idle = 0
        self.running: Counter[Hashable] = Counter()  # batches, by group
        self.alone_running = 0
        self.last = Last()
        self.trust = MOST_TRUST
        self.stopping = False
        self.changed = threading.Condition()
        self.threads = [threading.Thread(target=self.loop, name=f"inference-{n}", daemon=True) for n in range(threads)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is queued, except shadow work, then end the threads."""
        with self.changed:
            self.stopping = True
            for job in [job for jobs in self.groups.values() for job in jobs if job.task.is_shadow]:
                self.give_up(job)
                raise_in(job, UnavailableError("the service is shutting down", 5.0))
            self.changed.notify_all()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join()

    def is_alive(self) -> bool:
        """Whether every thread is running."""
        return all(thread.is_alive() for thread in self.threads)

    def rate(self) -> float:
        """Decoder evaluations per second, of all threads together, as measured recently."""
        evaluations, seconds = self.measured
        return len(self.threads) * evaluations / seconds

    # Called by the event loop

    def submit(self, task: Task[T], rows: np.ndarray, timeout_s: float) -> Job:
        """Queue rows, shape (B, D); the job's future returns their answers.

        Raises:
            OverloadedError: the queue is full. A request larger than the queue is accepted when nothing else waits.
            UnavailableError: a thread has died, or the service is shutting down.
        """
        future = asyncio.get_running_loop().create_future()
        job = Job(task, rows, time.monotonic() + timeout_s, future)
        cost = task.row_cost * len(rows)
        with self.changed:
            self.check_room(cost, task.is_shadow)
            self.charge(task, len(rows))
            self.queue(job)
        return job

    def check_room(self, cost: int, is_shadow: bool = False) -> None:
        """Raise, as `submit` does, if the queue has no room: the body of such a request need not be read."""
        if self.stopping or not self.is_alive():
            raise UnavailableError("the service is shutting down", 5.0)
        waiting = self.shadow_cost if is_shadow else self.waiting_cost
        if waiting and waiting + cost > self.max_cost:
            excess = waiting + min(cost, self.max_cost) - self.max_cost
            raise OverloadedError("the queue is full", excess / self.rate())

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
            start = time.perf_counter()
            done = 0
            try:
                done = self.compute(batch)
            finally:
                self.end(batch, time.perf_counter() - start, done, time.perf_counter() - since)

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
                        self.learn(2 * returned(self.groups[group], self.last.ended_at) >= self.last.jobs)
                    return self.batch_of(group), since
                if not self.groups and self.stopping:
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
                kept = len(self.threads) if task.is_alone else 1  # threads that could not do such work meanwhile
                self.measured = (MEMORY * evaluations + done, MEMORY * spent + kept * max(busy_s, 1e-6))
            self.running -= Counter((task.group,))  # this drops counts of zero
            self.alone_running -= task.is_alone
            self.changed.notify_all()

    def ready_groups(self) -> list[Hashable]:
        """The groups that may run now, in the order of their jobs' turns."""
        first = {group: jobs[0] for group, jobs in self.groups.items()}
        ready = [group for group, job in first.items() if not (job.task.is_alone and self.alone_running)]
        return sorted(ready, key=lambda group: first[group].turn)

    def time_to_fill(self, group: Hashable) -> float:
        """Seconds that a batch of this group, if it is not full, should still wait for more rows.

        Starting a batch costs as much as many of its rows, so waiting pays off in two cases. While another batch of the
        group runs, a few rows wait for its end, but no longer than a start costs. And clients that were just answered are
        about to ask again: until as many jobs have come as the last batch answered, a thread waits for a part of that
        cost. Otherwise the clients that waited and those that were answered would keep taking turns, in two batches where
        one would do. If they do not come back, the next waits are shorter.
        """
        jobs, last, rows = self.groups[group], self.last, self.waiting_rows[group]
        most = jobs[0].task.batch_rows
        if self.stopping or rows >= most:
            return 0.0
        until = jobs[0].queued_at + self.delay_s
        if last.group == group and self.running[group] and rows < START_SHARE * most:
            until = max(until, jobs[0].queued_at + last.start_s)
        if last.group == group and returned(jobs, last.ended_at) < last.jobs:
            until = max(until, last.ended_at + self.trust * last.start_s)
        return until - time.perf_counter()

    def learn(self, all_returned: bool) -> None:
        """Wait longer next time if all clients came back, shorter if not."""
        self.trust = min(MOST_TRUST, 2 * self.trust) if all_returned else max(LEAST_TRUST, self.trust / 2)

    def batch_of(self, group: Hashable) -> list[Share]:
        """Take rows of a group, job by job, until the batch is full; leave a share to other idle threads."""
        jobs = self.groups[group]
        waiting, task = self.waiting_rows[group], jobs[0].task
        threads = 1 if task.is_alone else 1 + self.idle
        sharing = min(threads, max(1, int(waiting / (START_SHARE * task.batch_rows))))
        room = min(task.batch_rows, -(-waiting // sharing))
        self.running[group] += 1
        self.alone_running += task.is_alone
        shares = []
        while room and jobs:
            job = jobs.popleft()
            stop = min(job.taken + room, len(job.rows))
            shares.append(Share(job, job.taken, stop))
            room -= stop - job.taken
            self.waiting_rows[group] -= stop - job.taken
            job.taken = stop
            job.pending += 1
            job.started_at = job.started_at or time.perf_counter()
            if not job.waiting_rows():
                continue
            if len(shares) == 1:
                self.queue(job, again=True)  # it had a batch to itself: now it is the others' turn
            else:
                jobs.appendleft(job)  # its remaining rows go first, or a split request would wait twice
            break  # the batch is full
        self.forget_if_empty(group)
        return shares

    def compute(self, batch: list[Share]) -> int:
        """Compute a batch and hand each job its part; if it fails, compute each job alone, so that one harms no other.

        Returns:
            Number of evaluations done.
        """
        task = batch[0].job.task
        start = time.perf_counter()
        try:
            rows = np.concatenate([share.job.rows[share.start : share.stop] for share in batch])
            answer = task.compute(rows, lambda: end_if_over(batch))
            parts = [answer] if len(batch) == 1 else parted(batch, answer)
            self.on_batch(len(rows), time.perf_counter() - start)
        except AbandonedError:
            with self.changed:
                self.settle(batch)
            return 0
        except BaseException as error:  # the thread must survive whatever a request makes it raise
            if len(batch) > 1:
                return sum(self.compute([share]) for share in batch)
            self.fail(batch[0], error)
            return 0
        self.hand_over(batch, parts)
        return sum(share.cost for share in batch)

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
                    job.is_over = True
                    job.ended_at = time.perf_counter()
                    finished.append(job)
        wake(finished)

    def settle(self, batch: list[Share]) -> None:
        """Free the queue's room for a batch that was computed, or never will be; the caller holds the lock."""
        for share in batch:
            self.charge(share.job.task, share.start - share.stop)
            share.job.pending -= 1

    def charge(self, task: Task[Any], rows: int) -> None:
        """Add the cost of `rows` rows to the queue, or subtract it if negative; the caller holds the lock."""
        if task.is_shadow:
            self.shadow_cost += rows * task.row_cost
        else:
            self.waiting_cost += rows * task.row_cost

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

    def queue(self, job: Job, again: bool = False) -> None:
        """Put a job at the end of the queue."""
        job.turn = (job.task.is_shadow, next(self.turns))
        group = job.task.group
        self.groups.setdefault(group, deque()).append(job)
        if not again:
            self.waiting_rows[group] = self.waiting_rows.get(group, 0) + job.waiting_rows()
        self.changed.notify_all()  # all: a single notified thread might be waiting for another batch to fill

    def give_up(self, job: Job) -> None:
        """Remove a job's rows from the queue."""
        job.is_over = True
        group, left = job.task.group, job.waiting_rows()
        if left:
            self.groups[group].remove(job)
            self.waiting_rows[group] -= left
            self.charge(job.task, -left)
            job.taken = len(job.rows)
            self.forget_if_empty(group)

    def forget_if_empty(self, group: Hashable) -> None:
        """Delete an empty group, so that requests that each name a new one leave nothing behind."""
        if not self.groups[group]:
            del self.groups[group], self.waiting_rows[group]

    def drop_expired(self) -> None:
        """Drop late jobs at the front of the queue; the event loop may be too busy to do it."""
        now = time.monotonic()
        late = [jobs[0] for jobs in self.groups.values() if jobs[0].deadline <= now]
        for job in late:
            self.give_up(job)
            self.on_drop("deadline")
            raise_in(job, DeadlineError("the deadline passed before the request was computed"))
