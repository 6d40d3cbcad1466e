"""Child processes that end with their parent, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """To be called in a child: it leaves at once when its parent is gone, and on Ctrl-C without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)  # nobody would read what an orphan does, and the next run would meet it

    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # a traceback of each would hide the one line that matters
    threading.Thread(target=watch, daemon=True).start()
