"""A thread for work that may hang, such as that of a stalled mount."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple[Future[Any], Callable[[], Any]]


class Worker:
    """One thread that does work for event loops, in the order in which it comes.

    A thread of an executor is waited for when the process ends, and hangs with its work. This one is not.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    async def run(self, work: Callable[[], T], timeout_s: float | None = None) -> T:
        """Do the work in the thread.

        Raises:
            TimeoutError: it was not done in time; it goes on, or is dropped if it had not begun.
        """
        future: Future[T] = Future()
        self.waiting.put((future, work))
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self.loop, name=self.name, daemon=True)
            self.thread.start()
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(future)

    def loop(self) -> None:
        while True:
            future, work = self.waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # whoever waits for it gets it
                future.set_exception(error)
