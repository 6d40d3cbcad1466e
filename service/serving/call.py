"""What the queue and the engine need to know about a request, independent of HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from service.errors import DeadlineError
from service.scoring.scores import Scores
from service.scoring.version import Published
from service.serving.quotas import Quota

MAX_INTERVALS = 64  # most recorded intervals of a request's parts; a stream has too many to look at


class CallerLeftError(Exception):
    """The caller hung up before the answer."""


def deadline_passed(timeout_s: float) -> DeadlineError:
    """The error of a request that took longer than it may."""
    return DeadlineError(f"the deadline of {timeout_s:g} s passed: send fewer rows, or allow more time")


@dataclass
class Timings:
    """Seconds that the parts of a request took, by name, for its log line, metrics and `Server-Timing`."""

    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    intervals: list[tuple[str, int, int]] = field(default_factory=list)  # name, start and end, ns since the epoch

    def add(self, name: str, seconds: float, ended_ago_s: float = 0.0) -> None:
        """Add seconds to a part that ended now, or `ended_ago_s` ago."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if len(self.intervals) < MAX_INTERVALS:
            end = time.time_ns() - round(1e9 * ended_ago_s)
            self.intervals.append((name, end - round(1e9 * seconds), end))

    def elapsed_s(self) -> float:
        """Seconds since the request's head was read."""
        return time.perf_counter() - self.started

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Add the time that the `with` block takes to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)


class Call(Protocol):
    """A request, as the engine sees it."""

    request_id: str
    timings: Timings
    is_stream: bool  # answered block by block, each with its own deadline
    is_trial: bool  # its rows are only tried: neither drift monitors nor the shadow count them

    @property
    def caller(self) -> str:
        """Who asks, for fairness: an API key's id, or an address."""

    @property
    def key_id(self) -> str | None:
        """The API key's id, if there is one."""

    @property
    def quota(self) -> Quota:
        """How many rows the caller may send."""

    def timeout_s(self) -> float:
        """Seconds that the request, or a block of a stream, may take."""

    def time_left_s(self) -> float:
        """Seconds until the deadline."""

    def hang_up(self) -> asyncio.Future[None]:
        """A future that is done when the caller has left."""

    def note_scores(self, published: Published, scores: Scores) -> None:
        """Record the scores, and the version that gave them, for the log."""
