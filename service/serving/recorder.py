"""What a running service tells its journal, if it has one."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from service._version import __version__
from service.errors import AmbiguousRecordError, DeadlineError, JournalError, NoRecordError, UnavailableError
from service.journal.chain import JournalKey
from service.journal.database import Database, Entry
from service.journal.writer import Journal
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.scoring.version import Reference
from service.serving.call import Call
from service.settings import Settings, SettingsError
from service.store.store import Catalog
from service.system.threads import Worker

T = TypeVar("T")
log = logging.getLogger("vouch")


class Recorder:
    """Tells the journal of verdicts and of what happens to models; without a journal, nothing."""

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self.reader = Worker("journal-reader")
        self.database: Database | None = None  # of the reader

    @staticmethod
    def of(settings: Settings, on_write: Callable[[float, int], None], on_drop: Callable[[int], None]) -> Recorder:
        """The recorder of a deployment.

        Raises:
            SettingsError: there is a journal, and no key.
            JournalError: the journal cannot be used.
        """
        if settings.journal is None:
            return Recorder(None)
        if settings.journal_key is None:
            raise SettingsError(
                "VOUCH_JOURNAL_KEY: the journal needs a file with its key: `openssl rand -hex 32 > journal.key` makes one"
            )
        key = JournalKey.read(settings.journal_key)
        return Recorder(Journal(settings.journal, key, settings.journal_mode, settings.journal_rows, on_write, on_drop))

    def open(self) -> None:
        """Take the journal for this process.

        Raises:
            JournalError: another process writes it.
        """
        if self.journal is not None:
            self.journal.open()

    def start(self) -> None:
        """Begin to write."""
        if self.journal is not None:
            told = {"vouch": __version__, "mode": self.journal.mode, "rows": self.journal.kept}
            self.journal.start(Entry("start", told))

    def stop(self) -> None:
        """Write what waits."""
        if self.journal is not None:
            self.journal.stop(Entry("stop", {}))

    def problems(self) -> dict[str, str]:
        """Why the journal cannot be written, if it cannot."""
        problem = None if self.journal is None else self.journal.problem
        return {} if problem is None else {"journal": problem}

    async def scores(self, call: Call, scorer: Scorer, rows: np.ndarray, scores: Scores) -> Scores:
        """Record the verdicts on a call's rows, shape (B, D + C), as they were read: the scores with the record's id.

        Raises:
            UnavailableError: the journal is required, and cannot be written.
        """
        if self.journal is None:
            return scores
        told = call.key_id, call.request_id, scorer.published, scores, rows
        if self.journal.mode != "required":
            return replace(scores, record=await self.journal.scores(*told, None, call.is_trial))
        with call.timings.measured("journal"):
            return replace(scores, record=await self.journal.scores(*told, max(0.0, call.time_left_s()), call.is_trial))

    async def act(self, kind: str, what: dict[str, Any], who: dict[str, Any], timeout_s: float) -> None:
        """Record what somebody does, before it is done, and wait until that is written.

        Raises:
            UnavailableError: the journal is required, and cannot be written.
        """
        if self.journal is None:
            return
        entry = Entry(kind, what | {"key": who["key"]}, request=who["request_id"])
        if self.journal.mode == "required":
            await self.journal.event(entry, timeout_s)
        else:
            self.journal.note(entry)

    def loaded(self, scorer: Scorer) -> None:
        """Record that a version was loaded."""
        if self.journal is not None:
            published = scorer.published
            told = {"model": str(published.reference), "digest": published.digest, "input": published.card.input_digest}
            self.journal.note(Entry("version", told))

    def catalog(self, before: Catalog | None, after: Catalog) -> None:
        """Record what bare names and aliases mean now, of the models where that has changed."""
        if self.journal is None:
            return
        told = {
            name: {"serving": after.serving.get(name), "aliases": after.aliases.get(name, {})}
            for name in sorted({*after.versions, *(before.versions if before else ())})
            if before is None
            or (before.serving.get(name), before.aliases.get(name))
            != (after.serving.get(name), after.aliases.get(name))
        }
        if told:
            self.journal.note(Entry("catalog", told))

    def drift(self, reference: Reference, fields: dict[str, Any]) -> None:
        """Record the alarm of a drift monitor."""
        if self.journal is not None:
            self.journal.note(Entry("drift", {"model": str(reference), **fields}))

    @property
    def key(self) -> JournalKey:
        """The journal's key; there is one where something was read."""
        assert self.journal is not None
        return self.journal.key

    async def feedback(self, entry: Entry, timeout_s: float) -> None:
        """Record what a person says, and wait until it is written.

        Raises:
            UnavailableError: it cannot be.
        """
        assert self.journal is not None
        await self.journal.event(entry, timeout_s)

    async def read(self, work: Callable[[Database], T], timeout_s: float, caller: str = "") -> T:
        """Look something up in the journal, in a thread; callers take turns.

        Raises:
            NoRecordError: there is no journal, or no such record.
            AmbiguousRecordError: there are several.
            UnavailableError: it cannot be read.
            DeadlineError: it took too long.
        """
        journal = self.journal
        if journal is None:
            raise NoRecordError("this deployment keeps no journal: VOUCH_JOURNAL names one")

        def do() -> T:
            try:
                if self.database is None:
                    self.database = Database(journal.path, journal.key)
                return work(self.database)
            except (NoRecordError, AmbiguousRecordError):
                raise
            except (sqlite3.Error, JournalError) as error:
                log.error("the journal cannot be read", extra={"error": str(error)})
                raise UnavailableError(
                    "the journal cannot be read: try again, or ask whoever keeps it", 60.0
                ) from error

        try:
            return await self.reader.run(do, timeout_s, caller)
        except TimeoutError:
            raise DeadlineError("the journal did not answer in time: try again") from None
