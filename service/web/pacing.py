"""Large bodies at an orderly pace: whatever receives or parses them keeps the interpreter from everything else.

Inference asks for the interpreter before each of a row's thousands of operations, and waits half a millisecond each time
while another thread is busy with Python. Megabytes that arrive as fast as a machine can send them would slow a single row
tenfold.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

BYTES_PER_S = 100e6  # of a caller's large bodies, which is as much as a network of 1 Gbit/s brings
REMEMBERED = 10_000  # callers
SHARE = 0.2  # of the time that a large body is parsed in while rows are computed
LONGEST_S = 0.05


@dataclass
class Arrivals:
    """When each caller's next bytes may be read. For the event loop: not safe to share between threads."""

    due: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def pause_s(self, caller: str, size: int) -> float:
        """How long to wait after so many bytes."""
        now = time.monotonic()
        due = max(now, self.due.pop(caller, now)) + size / BYTES_PER_S
        self.due[caller] = due
        if len(self.due) > REMEMBERED:
            self.due.popitem(last=False)
        return due - now


@dataclass
class Breaks:
    """A `check_cancelled` for large bodies that sleeps most of the time while rows are computed."""

    check_cancelled: Callable[[], None]
    is_computing: Callable[[], bool]
    since: float = field(default_factory=time.perf_counter)

    def __call__(self) -> None:
        self.check_cancelled()
        worked = time.perf_counter() - self.since
        if self.is_computing():
            time.sleep(min(LONGEST_S, worked * (1 / SHARE - 1)))
        self.since = time.perf_counter()
