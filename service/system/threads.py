"""Threads that work for event loops: for what may hang, such as a stalled mount, and for what takes long."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple[Future[Any], Callable[[], Any]]


class Worker:
    """Threads that do work for event loops; callers take turns.

    An executor's threads are waited for when the process ends, and hang with their work. These are not.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self.name, self.count = name, threads
        self.waiting: OrderedDict[str, deque[Work]] = OrderedDict()
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    async def run(self, work: Callable[[], T], timeout_s: float | None = None, caller: str = "") -> T:
        """Do the work in a thread.

        Raises:
            TimeoutError: it was not done in time; it goes on, or is dropped if it had not begun.
        """
        future: Future[T] = Future()
        with self.changed:
            self.waiting.setdefault(caller, deque()).append((future, work))
            self.start()
            self.changed.notify()
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(future)

    def start(self) -> None:
        """Start threads that do not run, or not in this process; the caller holds the lock."""
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        while len(self.threads) < self.count:
            thread = threading.Thread(target=self.loop, name=self.name, daemon=True)
            self.threads.append(thread)
            thread.start()

    def loop(self) -> None:
        while True:
            future, work = self.take()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # whoever waits for it gets it
                future.set_exception(error)

    def take(self) -> Work:
        """The next work of the caller whose turn it is, who then goes behind the others."""
        with self.changed:
            while not self.waiting:
                self.changed.wait()
            caller, works = self.waiting.popitem(last=False)
            work = works.popleft()
            if works:
                self.waiting[caller] = works
            return work
