"""What concerns a whole process: children that end with it, and its garbage collection."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Call this in a child process: it exits at once when its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)  # nothing reads an orphan's results, and it would get in the way of the next run

    threading.Thread(target=watch, daemon=True).start()


def in_forked_child(do: Callable[[], None]) -> Callable[[], None]:
    """Call a function in every child process that is forked from now on."""
    os.register_at_fork(after_in_child=do)
    return do


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For work that makes millions of objects without circles, which would be searched for again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
