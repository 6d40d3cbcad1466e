"""One thread writes the journal: what waits is written together, in one transaction (group commit).

`required`: a verdict waits until its record is on the disk; if it cannot be written, there is no verdict. Whatever came
while the last transaction was synced is in the next one. `best-effort`: nothing waits. What cannot be written, or does not
fit into the memory for waiting entries, is dropped; the journal counts it, and its next record says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from service.errors import JournalError, OverloadedError, UnavailableError, VouchError
from service.journal.chain import ENCODER, JournalKey
from service.journal.contents import SCORES, batch_text, next_batch, now_ms
from service.journal.database import Database, Entry
from service.journal.verdicts import scores_content
from service.scoring.scores import Scores
from service.scoring.version import Published

Mode = Literal["required", "best-effort"]
LINGER_S = 0.05  # how long best effort waits for more, unless somebody waits: its thread wakes up seldom
MOST_WAITING = 2**26  # bytes of rows and verdicts
ROW_BYTES = 200  # of a row's verdict, about
MOST_TOGETHER = 1_000  # entries in a transaction
RETRY_S = 1.0  # after a failure, before the next transaction of best effort
STOP_S = 10.0
log = logging.getLogger("vouch")


@dataclass(eq=False, slots=True)
class Waiting:
    """What waits to be written: an entry, or scored rows that become one in the writer's thread."""

    entry: Entry | None = None
    scored: tuple[str | None, str, int, int, Published, Scores, np.ndarray, bool] | None = None
    done: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
    size: int = 0

    def is_over(self) -> bool:
        """Whether somebody waited for it, and does not any more: nothing was answered."""
        return self.done is not None and self.done[1].done()

    @property
    def rows(self) -> int:
        return 0 if self.scored is None else len(self.scored[5])


@dataclass
class Dropped:
    """What best effort could not write since it last could: when that began, and how much."""

    since: int = 0
    records: int = 0
    rows: int = 0

    def merge(self, earlier: Dropped) -> None:
        """Add what was dropped before."""
        self.since = earlier.since or self.since
        self.records += earlier.records
        self.rows += earlier.rows

    def add(self, items: Sequence[Waiting]) -> None:
        self.since = self.since or now_ms()
        self.records += len(items)
        self.rows += sum(item.rows for item in items)


class Journal:
    """The journal of a running service.

    Args:
        kept: share of rows that are kept, drawn at random whatever their verdicts, from 0 to 1.
        on_write: hears how long each transaction took, and how many records it wrote.
        on_drop: hears how many verdicts were dropped.

    Raises:
        JournalError: the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        key: JournalKey,
        mode: Mode = "best-effort",
        kept: float = 0.0,
        on_write: Callable[[float, int], None] = lambda seconds, records: None,
        on_drop: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.path, self.key, self.mode, self.kept = path, key, mode, kept
        Database(path, key, may_create=True).close()  # what is wrong with it shows before anything is served
        self.lock: int | None = None
        self.database: Database | None = None  # opened by `start`: SQLite's connections do not survive a fork
        self.on_write, self.on_drop = on_write, on_drop
        self.queue: deque[Waiting] = deque()
        self.waiting_bytes, self.batch = 0, 0
        self.wake, self.hurry, self.stopping = threading.Event(), threading.Event(), False
        self.dropped = Dropped()
        self.problem: str | None = None  # why the last transaction failed
        self.guard = threading.Lock()
        self.random = np.random.default_rng()
        self.inputs: dict[str, str] = {}  # digests of inputs, by those of versions
        self.thread = threading.Thread(target=self.loop, name="journal", daemon=True)

    # Called by requests

    async def scores(
        self,
        caller: str | None,
        request: str,
        published: Published,
        scores: Scores,
        rows: np.ndarray,
        timeout_s: float | None = None,
        is_trial: bool = False,
    ) -> str:
        """Record the verdicts on rows, shape (B, W); the first part of their record ids. Of trial rows none is kept.

        Raises:
            UnavailableError: it is required, and cannot be written.
        """
        batch = self.batch = next_batch(self.batch)
        item = Waiting(scored=(caller, request, batch, now_ms(), published, scores, rows, is_trial))
        item.size = rows.nbytes + ROW_BYTES * len(scores)
        await self.submit(item, timeout_s, waits=self.mode == "required")
        return batch_text(batch)

    async def event(self, entry: Entry, timeout_s: float | None = None) -> None:
        """Record an event, and wait until it is written.

        Raises:
            UnavailableError: it cannot be.
        """
        size = ROW_BYTES + sum(len(cells) for _, _, cells in entry.cells) + len(entry.note or "")
        await self.submit(Waiting(entry, size=size), timeout_s, waits=True)

    def note(self, entry: Entry) -> None:
        """Record an event without waiting, from any thread."""
        self.put(Waiting(entry, size=ROW_BYTES))

    async def submit(self, item: Waiting, timeout_s: float | None, waits: bool) -> None:
        """Put an item into the queue and, if it `waits`, wait until it is written."""
        if not waits:
            self.put(item)
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        item.done = loop, future
        if not self.put(item):
            raise OverloadedError("the journal is behind: try again after Retry-After", 1.0)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise UnavailableError("the journal did not write the verdict in time: try again", 1.0) from None

    def put(self, item: Waiting) -> bool:
        """Put an item into the queue; whether there was room."""
        with self.guard:
            fits = self.waiting_bytes + item.size <= MOST_WAITING or not self.queue
            if fits:
                self.waiting_bytes += item.size
                self.queue.append(item)
        if not fits and item.done is None:
            self.drop([item])
        if item.done is not None:
            self.hurry.set()
        if not self.wake.is_set():
            self.wake.set()
        return fits

    # The writer's thread

    def open(self) -> None:
        """Take the journal for this process, unless it has it already.

        Raises:
            JournalError: another process writes it.
        """
        if self.database is None:
            self.lock = locked(self.path)
            self.database = Database(self.path, self.key, durable=self.mode == "required")

    def start(self, entry: Entry) -> None:
        """Write the first record, and start the thread.

        Raises:
            JournalError: another process writes it.
            UnavailableError: it is required, and cannot be written.
        """
        self.open()
        assert self.database is not None
        self.batch = max(self.batch, self.database.last_batch())
        try:
            self.database.append([entry])
        except UnavailableError as error:
            if self.mode == "required":
                raise
            self.problem = str(error)
            log.error("the journal cannot be written", extra={"error": self.problem})
            self.put(Waiting(entry))
        self.thread.start()

    def stop(self, entry: Entry) -> None:
        """Write what waits, and a last record."""
        self.put(Waiting(entry))
        self.stopping = True
        self.hurry.set()
        self.wake.set()
        if self.thread.is_alive():
            self.thread.join(STOP_S)
        if self.thread.is_alive() and self.database is not None:
            self.database.connection.interrupt()  # it waits for another process
            self.thread.join(STOP_S)
        if self.thread.is_alive():
            log.error("the journal hangs: what waits for it is not written")  # and it may still be using its file
            return
        if self.database is not None:
            self.database.close()
        if self.lock is not None:
            os.close(self.lock)

    def loop(self) -> None:
        """Write what waits, until the end."""
        while True:
            self.wake.wait()
            if self.mode != "required":
                self.hurry.wait(LINGER_S)
                self.hurry.clear()
            self.wake.clear()
            while self.queue:
                self.write([self.queue.popleft() for _ in range(min(len(self.queue), MOST_TOGETHER))])
            if self.stopping and not self.queue:
                return

    def write(self, items: Sequence[Waiting]) -> None:
        """Write items in one transaction, and tell whoever waits for them."""
        start = time.perf_counter()
        failure: VouchError | None = None
        with self.guard:
            self.waiting_bytes -= sum(item.size for item in items)
            dropped, self.dropped = self.dropped, Dropped()
        ready = [
            (item, entry) for item in items if not item.is_over() and (entry := self.entry_or_none(item)) is not None
        ]
        entries = [entry for _, entry in ready]
        if dropped.records:
            told = {"since": dropped.since, "records": dropped.records, "rows": dropped.rows}
            entries.append(Entry("dropped", told))
        if not entries:
            return
        assert self.database is not None
        try:
            self.database.append(entries)
            self.on_write(time.perf_counter() - start, len(entries))
        except JournalError as error:
            log.error("the journal was changed by somebody else", extra={"error": str(error)})
            failure = UnavailableError(
                "the journal was changed by somebody else, and is written no more: ask whoever keeps it", 60.0
            )
        except UnavailableError as error:
            failure = error
        except Exception as error:  # the thread must go on
            log.exception("the journal cannot be written")
            failure = UnavailableError(f"the journal cannot be written: {type(error).__name__}", 5.0)
        if failure is not None:
            with self.guard:
                self.dropped.merge(dropped)
        self.tell([item for item, _ in ready], failure)

    def entry_or_none(self, item: Waiting) -> Entry | None:
        """The entry of an item, with its content encoded; None, and whoever waits is told, if it cannot be made."""
        try:
            entry = self.entry_of(item)
            return replace(entry, content=ENCODER.encode(entry.content))
        except Exception as error:  # a fault of ours, which is not to take others along
            log.exception("a record of the journal cannot be made")
            self.answer(item, UnavailableError(f"the journal cannot be written: {type(error).__name__}", 5.0))
            self.drop([item] if item.done is None else [])
            return None

    def answer(self, item: Waiting, failure: VouchError | None) -> None:
        """Tell whoever waits for an item."""
        if item.done is not None:
            loop, future = item.done
            with contextlib.suppress(RuntimeError):  # the loop has ended, and whoever waited
                loop.call_soon_threadsafe(resolve, future, failure)

    def tell(self, items: Sequence[Waiting], failure: VouchError | None) -> None:
        """Tell whoever waits for items that they are written, or why not, and count the others that are lost."""
        text = None if failure is None else str(failure)
        if text is not None and text != self.problem:
            log.error("the journal cannot be written", extra={"error": text})
        elif text is None and self.problem is not None:
            log.info("the journal can be written again")
        self.problem = text
        if failure is not None:
            self.drop([item for item in items if item.done is None])
        for item in items:
            self.answer(item, failure)
        if failure is not None and self.mode != "required" and not self.stopping:
            time.sleep(RETRY_S)

    def drop(self, items: Sequence[Waiting]) -> None:
        """Count items that are lost."""
        if not items:
            return
        with self.guard:
            self.dropped.add(items)
        self.on_drop(sum(item.rows for item in items))

    def entry_of(self, item: Waiting) -> Entry:
        """The entry of an item."""
        if item.entry is not None:
            return item.entry
        assert item.scored is not None
        caller, request, batch, when, published, scores, rows, is_trial = item.scored
        digest = published.digest
        if digest not in self.inputs:
            self.inputs[digest] = published.card.input_digest
        model = str(published.reference), digest, self.inputs[digest]
        share = 0.0 if is_trial else self.kept
        kept = self.random.random(len(scores)) < share
        content, cells = scores_content(self.key, caller, model, scores, rows, kept, share, is_trial)
        return Entry(SCORES, content, batch, request, when, [(batch, row, one) for row, one in cells])


def resolve(future: asyncio.Future[None], failure: VouchError | None) -> None:
    """End a future, unless whoever waited for it has left."""
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)


def locked(path: Path) -> int:
    """The descriptor of a lock that says which service writes a journal; the system frees it when the process ends.

    Raises:
        JournalError: another process has it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f"{path.name}-lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(f"{path}: the journal cannot be made: {type(error).__name__}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise JournalError(f"{path}: another service writes this journal: each needs one of its own") from None
    return descriptor
