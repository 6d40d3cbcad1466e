"""Quotas of callers: rows a second, and rows at a time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import OverloadedError

REMEMBERED = 10_000  # callers


@dataclass(frozen=True, slots=True)
class Quota:
    """What a caller may use; None: no limit."""

    rows_per_s: float | None = None
    concurrent_rows: int | None = None


UNLIMITED = Quota()


@dataclass
class Usage:
    """What a caller uses: rows at this moment, and rows that it has asked for beyond its rate, as of `since`."""

    since: float
    rows: int = 0
    excess: float = 0.0

    def settle(self, rows_per_s: float) -> None:
        """Let the excess run off until now."""
        now = time.monotonic()
        self.excess = max(0.0, self.excess - rows_per_s * (now - self.since))
        self.since = now


class Quotas:
    """What each caller uses of its quota. For the event loop: not safe to share between threads."""

    def __init__(self) -> None:
        self.usages: OrderedDict[str, Usage] = OrderedDict()

    @contextmanager
    def admitted(self, caller: str, quota: Quota, rows: int) -> Iterator[None]:
        """Around the work on a caller's rows.

        A second's worth of rows may come at once. A request of more is admitted when nothing is in excess, and waited for
        afterwards.

        Raises:
            OverloadedError: the caller has used up its quota; it says when to try again.
        """
        if quota == UNLIMITED:
            yield
            return
        usage = self.usages.setdefault(caller, Usage(since=time.monotonic()))
        self.usages.move_to_end(caller)
        if len(self.usages) > REMEMBERED:
            self.usages.popitem(last=False)
        if quota.concurrent_rows is not None and usage.rows and usage.rows + rows > quota.concurrent_rows:
            raise OverloadedError(
                f"the API key may have {quota.concurrent_rows:,} rows in progress: try again after Retry-After", 1.0
            )
        if quota.rows_per_s is not None:
            usage.settle(quota.rows_per_s)
            if usage.excess and usage.excess + rows > quota.rows_per_s * (1 + 1e-9):  # rounding
                wait_s = (usage.excess + min(rows, quota.rows_per_s) - quota.rows_per_s) / quota.rows_per_s
                raise OverloadedError(
                    f"the API key may send {quota.rows_per_s:g} rows a second: try again after Retry-After", wait_s
                )
            usage.excess += rows
        usage.rows += rows
        try:
            yield
        finally:
            usage.rows -= rows
