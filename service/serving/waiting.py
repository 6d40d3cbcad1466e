"""The jobs that wait, by the group of rows that can be computed together and by caller.

Callers take turns by the time that their rows have used, so that dear rows, or many, harm only whoever sends them. Within a
caller's jobs, one that has filled a batch goes back behind the others. What a row costs is learnt for each caller from the
decoder evaluations of its earlier ones: rows that cost much more than usual are not computed with another caller's.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count

from service.serving.jobs import Job, Share

REMEMBERED = 10_000  # callers and groups whose rows' costs are remembered
MEMORY = 0.97  # weight that earlier rows keep in a caller's cost, per row
SMALL = 1 / 8  # of a batch's expected cost
DEAR = 2.0  # times the usual cost


def always(job: Job) -> bool:
    """Every job fits."""
    return True


@dataclass
class Costs:
    """What rows cost, as a multiple of their task's `row_cost`, by caller and group; 1 until measured."""

    learnt: OrderedDict[tuple[str, Hashable], float] = field(default_factory=OrderedDict)

    def of(self, caller: str, group: Hashable) -> float:
        return self.learnt.get((caller, group), 1.0)

    def learn(self, caller: str, group: Hashable, ratio: float, rows: int) -> None:
        """Record that so many rows cost `ratio` times as much as expected."""
        key, kept = (caller, group), MEMORY**rows
        self.learnt[key] = kept * self.learnt.pop(key, 1.0) + (1 - kept) * ratio
        if len(self.learnt) > REMEMBERED:
            self.learnt.popitem(last=False)

    def are_dear(self, job: Job) -> bool:
        return self.of(job.caller, job.task.group) >= DEAR


class Waiting:
    """Jobs with rows that no thread has taken; not safe to share between threads without a lock."""

    def __init__(self) -> None:
        self.groups: dict[Hashable, dict[str, deque[Job]]] = {}
        self.rows: dict[Hashable, int] = {}  # waiting, by group
        self.costs = Costs()
        self.used: dict[str, float] = {}  # seconds of computation by caller, since all of them were last idle
        self.clock = 0.0  # what the caller had used who was last served: newcomers start there
        self.active: dict[str, int] = {}  # jobs by caller, waiting or running
        self.turns = count()

    def __bool__(self) -> bool:
        return bool(self.groups)

    def __iter__(self) -> Iterator[Job]:
        return (job for callers in self.groups.values() for jobs in callers.values() for job in jobs)

    # Callers

    def enter(self, caller: str) -> None:
        """Count one more job of a caller; one who was away has saved nothing up meanwhile."""
        if caller not in self.active:
            self.used[caller] = max(self.used.get(caller, 0.0), self.clock)
        self.active[caller] = self.active.get(caller, 0) + 1

    def leave(self, caller: str) -> None:
        """Count one job less."""
        self.active[caller] -= 1
        if not self.active[caller]:
            del self.active[caller]
            if not self.active:
                self.used.clear()
                self.clock = 0.0
            elif len(self.used) > REMEMBERED:
                self.used = {one: seconds for one, seconds in self.used.items() if one in self.active}

    def charge(self, caller: str, seconds: float) -> None:
        if caller in self.used:
            self.used[caller] += seconds

    # Jobs

    def add(self, job: Job, is_new: bool = True) -> None:
        """Put a job behind all others of its caller."""
        job.turn = (job.task.is_shadow, next(self.turns))
        group = job.task.group
        self.groups.setdefault(group, {}).setdefault(job.caller, deque()).append(job)
        if is_new:
            self.rows[group] = self.rows.get(group, 0) + job.waiting_rows()

    def remove(self, job: Job) -> int:
        """Take out a job with its rows that nobody has taken; return how many these were."""
        group, left = job.task.group, job.waiting_rows()
        if left:
            jobs = self.groups[group][job.caller]
            jobs.remove(job)
            self.rows[group] -= left
            job.taken = len(job.rows)
            self.forget_if_empty(group, job.caller)
        return left

    def forget_if_empty(self, group: Hashable, caller: str) -> None:
        """Delete what is empty, so that requests that each name a new group leave nothing behind."""
        if not self.groups[group][caller]:
            del self.groups[group][caller]
        if not self.groups[group]:
            del self.groups[group], self.rows[group]

    def first(self, group: Hashable) -> Job:
        """The job of a group whose turn it is."""
        return min((jobs[0] for jobs in self.groups[group].values()), key=self.rank)

    def rank(self, job: Job) -> tuple[bool, float, int]:
        """Jobs with the lowest rank go first: no shadows, then of the caller that has used the least."""
        is_shadow, turn = job.turn
        return is_shadow, self.used.get(job.caller, 0.0), turn

    def returned(self, group: Hashable, since: float) -> int:
        """Number of a group's jobs queued since a time."""
        number = 0
        for jobs in self.groups[group].values():
            for job in reversed(jobs):
                if job.queued_at < since:
                    break
                number += 1
        return number

    def take(self, job: Job, room: int, fits: Callable[[Job], bool] = always) -> list[Share]:
        """Take at most `room` rows of the job's group, beginning with this job, then of others that fit.

        If the job alone fills the batch, it goes back behind its caller's others.
        """
        group, shares = job.task.group, []
        self.clock = max(self.clock, self.used.get(job.caller, 0.0))
        now = time.perf_counter()
        chosen: Job | None = job
        while room and chosen is not None:
            job = chosen
            jobs = self.groups[group][job.caller]
            jobs.remove(job)
            stop = min(job.taken + room, len(job.rows))
            shares.append(Share(job, job.taken, stop))
            room -= stop - job.taken
            self.rows[group] -= stop - job.taken
            job.taken = stop
            job.pending += 1
            job.started_at = job.started_at or now
            if job.waiting_rows() and len(shares) == 1:
                self.add(job, is_new=False)
            elif job.waiting_rows():
                jobs.appendleft(job)  # its remaining rows go first, or a split request would wait twice
            self.forget_if_empty(group, job.caller)
            if group not in self.groups or job.waiting_rows():
                break
            chosen = self.companion(group, shares, fits)
        return shares

    def companion(self, group: Hashable, shares: list[Share], fits: Callable[[Job], bool]) -> Job | None:
        """The next job for a batch: of the caller with the fewest jobs in it, who has used the least.

        Dear rows are computed with their caller's own, if any.
        """
        counts: dict[str, int] = {}
        for share in shares:
            counts[share.job.caller] = counts.get(share.job.caller, 0) + 1
        is_dear = self.costs.are_dear(shares[0].job)
        first = [jobs[0] for jobs in self.groups[group].values()]
        fitting = [
            job for job in first if fits(job) and (job.caller in counts or not (is_dear or self.costs.are_dear(job)))
        ]
        return min(fitting, key=lambda job: (counts.get(job.caller, 0), self.rank(job)), default=None)

    def between(self, batch: list[Share], own_s: float, most: float) -> Callable[[Job], bool]:
        """Tells which jobs may go between the work of a batch.

        Such a job has not begun, and its caller has not used more than the batch's callers. Of these callers themselves it
        is a small one: what rows of theirs cost may not be known yet.

        Args:
            own_s: what the batch has used so far.
            most: evaluations that the job may cost.
        """
        small = min(most, SMALL * sum(share.cost for share in batch))
        callers = {share.job.caller for share in batch}
        limit = own_s + max(self.used.get(caller, 0.0) for caller in callers)

        def fits(job: Job) -> bool:
            if job.task.is_shadow or job.started_at is not None or self.used.get(job.caller, 0.0) > limit:
                return False
            return self.cost(job) <= (small if job.caller in callers else most)

        return fits

    def shortest(self, fits: Callable[[Job], bool]) -> Job | None:
        """The job with the lowest cost among those that fit."""
        return min(filter(fits, self), key=self.cost, default=None)

    def cost(self, job: Job) -> float:
        """What a job's waiting rows will cost, in decoder evaluations."""
        return job.waiting_rows() * job.task.row_cost * self.costs.of(job.caller, job.task.group)
