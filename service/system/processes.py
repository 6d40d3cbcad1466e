"""Child processes that end with their parent, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
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
