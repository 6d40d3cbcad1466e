"""Child processes that end with their parent, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """To be called in a child: it leaves at once when its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)  # nobody would read what an orphan does, and the next run would meet it

    threading.Thread(target=watch, daemon=True).start()
