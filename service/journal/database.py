"""The journal's file: SQLite with a write-ahead log. Records are only ever appended, inside one transaction each time.

    records   the chain (`service.journal.chain`)
    cells     rows that are kept, each by its record id; they can be erased
    notes     what people wrote; they can be erased
    seals     the head of the chain, and the last record that was pruned

A transaction reads the head, appends, and seals the new head, under SQLite's lock: a command may append while a service
does. SQLite calls fsync at the end of each transaction if it is `durable`, else when it checkpoints its log.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from service.errors import JournalError, NoRecordError, UnavailableError
from service.journal.chain import EMPTY, Head, HeadFile, JournalKey, Record
from service.journal.contents import ENCODED, RecordId, ScoresContent, now_ms, parsed
from service.system.files import sync_folder

APPLICATION_ID, FORMAT = 0x566F7563, 1  # "Vouc"
BUSY_S = 30.0  # how long to wait for another process that writes
TABLES = (
    "CREATE TABLE records(number INTEGER PRIMARY KEY, time INTEGER NOT NULL, kind TEXT NOT NULL, batch INTEGER, "
    "request TEXT, content BLOB NOT NULL, mac BLOB NOT NULL)",
    "CREATE UNIQUE INDEX records_by_batch ON records(batch) WHERE batch IS NOT NULL",
    "CREATE INDEX records_by_request ON records(request) WHERE request IS NOT NULL",
    "CREATE INDEX records_by_kind ON records(kind) WHERE kind <> 'scores'",
    "CREATE TABLE cells(batch INTEGER, row INTEGER, cells BLOB NOT NULL, PRIMARY KEY(batch, row)) WITHOUT ROWID",
    "CREATE TABLE notes(number INTEGER PRIMARY KEY, note TEXT NOT NULL)",
    "CREATE TABLE seals(name TEXT PRIMARY KEY, number INTEGER NOT NULL, mac BLOB NOT NULL, seal BLOB NOT NULL)",
)
COLUMNS = "number, time, kind, batch, request, content"
OF_BATCH = f"SELECT {COLUMNS} FROM records WHERE batch = ?"  # noqa: S608 - the columns are ours
OF_REQUEST = f"SELECT {COLUMNS} FROM records WHERE request = ? AND kind = 'scores' ORDER BY number"  # noqa: S608
HEAD, CHECKPOINT = "head", "checkpoint"  # the names of seals


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be appended: a record without its number, rows to keep (batch, place and bytes), and perhaps a note."""

    kind: str
    content: msgspec.Struct | Mapping[str, object]
    batch: int | None = None
    request: str | None = None
    time: int = field(default_factory=now_ms)
    cells: Sequence[tuple[int, int, bytes]] = ()
    note: str | None = None


class Database:
    """An open journal. Use it in one thread.

    Args:
        checks_head: whether to raise unless its head is sealed by the key; what verifies it looks itself.
        durable: whether a transaction is on the disk when `append` returns; if not, SQLite decides when, and the last
            transactions may be lost if the machine, not just the process, stops.

    Raises:
        JournalError: it is missing, damaged, or of another key.
    """

    def __init__(
        self, path: Path, key: JournalKey, durable: bool = True, may_create: bool = False, checks_head: bool = True
    ) -> None:
        self.path, self.key, self.checks_head = path, key, checks_head
        if may_create and not path.exists():
            create(path)
        elif not path.is_file():
            raise JournalError(f"{path}: no such journal")
        self.connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self.connection.text_factory = readable
        self.head_file: HeadFile | None = None
        try:
            self.prepare(durable)
        except sqlite3.Error as error:
            self.connection.close()
            raise JournalError(f"{path}: cannot be opened as a journal: {said(error)}") from error
        except JournalError:
            self.connection.close()
            raise

    def prepare(self, durable: bool) -> None:
        """Set the connection up, and check whose journal it is."""
        execute = self.connection.execute
        found = execute("PRAGMA application_id").fetchone()[0], execute("PRAGMA user_version").fetchone()[0]
        if found != (APPLICATION_ID, FORMAT):
            raise JournalError(f"{self.path}: not a journal of this program, or of another version of it")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        execute("PRAGMA secure_delete = ON")
        if self.checks_head:
            self.check_head()

    def check_head(self) -> None:
        """Raise unless the head is sealed by the key."""
        head = self.seal(HEAD)
        if head is None:
            if self.last_number():
                raise JournalError(f"{self.path}: its head is missing: `vouch journal verify` says what else is wrong")
            return
        if not self.is_sealed(HEAD, head):
            raise JournalError(f"{self.path}: its head was sealed by another key, or changed: `vouch journal verify`")

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()
        if self.head_file is not None:
            self.head_file.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Appending

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Appending]:
        """A transaction that appends records; afterwards, the sealed head is in its file, too.

        Raises:
            UnavailableError: it cannot be written, such as on a full disk; nothing of it is then there.
        """
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            appending = Appending(self.connection, self.key, self.seal(HEAD) or EMPTY)
            yield appending
            self.write_seal(HEAD, appending.head)
            self.connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise UnavailableError(f"the journal cannot be written: {said(error)}", 5.0) from error
            raise
        self.write_head(appending.head)

    def append(self, entries: Sequence[Entry]) -> Head:
        """Append records in one transaction; the new head."""
        with self.transaction() as appending:
            for entry in entries:
                appending.add(entry)
        return appending.head

    def write_head(self, head: Head) -> None:
        """Write the head's file; a journal whose disk has no room for it says so at the next verification."""
        with contextlib.suppress(OSError):
            if self.head_file is None:
                self.head_file = HeadFile(self.path, self.key)
            self.head_file.write(head)

    def write_seal(self, name: str, head: Head) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO seals VALUES(?, ?, ?, ?)", (name, head.number, head.mac, self.key.seal(name, head))
        )

    # Reading

    def seal(self, name: str) -> Head | None:
        """The head that was sealed under a name, if any."""
        row = self.connection.execute("SELECT number, mac FROM seals WHERE name = ?", (name,)).fetchone()
        is_head = row is not None and isinstance(row[0], int) and isinstance(row[1], bytes)
        return Head(*row) if is_head else None

    def is_sealed(self, name: str, head: Head) -> bool:
        """Whether a head was sealed under a name, by the key."""
        row = self.connection.execute("SELECT seal FROM seals WHERE name = ?", (name,)).fetchone()
        return row is not None and isinstance(row[0], bytes) and self.key.is_seal(name, head, row[0])

    def last_number(self) -> int:
        """The number of the last record; 0 if there is none."""
        return int(self.connection.execute("SELECT coalesce(max(number), 0) FROM records").fetchone()[0])

    def records(self, *kinds: str, since: int = 0) -> Iterator[Record]:
        """The records in order; only of some kinds, if any are named, and from a time on, in ms since the epoch."""
        where = f"kind IN ({', '.join('?' * len(kinds))}) AND " if kinds else ""
        if kinds and "scores" not in kinds:
            where += "kind <> 'scores' AND "  # lets SQLite use the index of all the others
        query = f"SELECT {COLUMNS} FROM records WHERE {where} time >= ? ORDER BY number"  # noqa: S608 - all are ours
        for row in self.connection.execute(query, (*kinds, since)):
            yield Record(*row)

    def scores(self, batch: int) -> tuple[Record, ScoresContent]:
        """A record of verdicts.

        Raises:
            NoRecordError: there is none; it may have been pruned.
        """
        row = self.connection.execute(OF_BATCH, (batch,)).fetchone()
        if row is None:
            raise NoRecordError(
                "the journal has no such record: send the id that a score has; old ones may have been pruned"
            )
        record = Record(*row)
        return record, parsed(record, ScoresContent)

    def of_request(self, request: str) -> list[tuple[Record, ScoresContent]]:
        """The records of verdicts of a request id, of which callers may have sent several."""
        found = [Record(*row) for row in self.connection.execute(OF_REQUEST, (request,))]
        return [(record, parsed(record, ScoresContent)) for record in found]

    def holds(self, text: str, since: int = 0) -> bool:
        """Whether a record of verdicts is there, and not of before a time, in ms since the epoch."""
        try:
            return self.scores(RecordId.parse(text).batch)[0].time >= since
        except NoRecordError:
            return False

    def name_of(self, record: RecordId) -> str | None:
        """The model of a row's record, if that is still there."""
        try:
            return self.scores(record.batch)[1].name
        except NoRecordError:
            return None

    def cells(self, record: RecordId) -> bytes | None:
        """A row that is kept, None for others."""
        query = "SELECT cells FROM cells WHERE batch = ? AND row = ?"
        row = self.connection.execute(query, (record.batch, record.row)).fetchone()
        return None if row is None else bytes(row[0])

    def note(self, number: int) -> str | None:
        """The note of a record of feedback, if it has one that was not erased."""
        row = self.connection.execute("SELECT note FROM notes WHERE number = ?", (number,)).fetchone()
        return None if row is None else str(row[0])


@dataclass
class Appending:
    """A transaction under way, and the head so far."""

    connection: sqlite3.Connection
    key: JournalKey
    head: Head

    def add(self, entry: Entry) -> None:
        """Append a record, with what is kept beside it."""
        number = self.head.number + 1
        content = ENCODED.encode(entry.content)
        record = Record(number, entry.time, entry.kind, entry.batch, entry.request, content)
        mac = self.key.mac(self.head.mac, record)
        told = (number, entry.time, entry.kind, entry.batch, entry.request, content, mac)
        self.connection.execute("INSERT INTO records VALUES(?, ?, ?, ?, ?, ?, ?)", told)
        if entry.cells:
            self.connection.executemany("INSERT OR IGNORE INTO cells VALUES(?, ?, ?)", entry.cells)
        if entry.note is not None:
            self.connection.execute("INSERT INTO notes VALUES(?, ?)", (number, entry.note))
        self.head = Head(number, mac)


def create(path: Path) -> None:
    """Make an empty journal that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            for statement in (
                f"PRAGMA application_id = {APPLICATION_ID}",
                f"PRAGMA user_version = {FORMAT}",
                "PRAGMA synchronous = EXTRA",
                *TABLES,
            ):
                connection.execute(statement)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def readable(text: bytes) -> str:
    """A text of the file; one that was tampered with need not be UTF-8."""
    return text.decode(errors="replace")


def said(error: sqlite3.Error) -> str:
    """What SQLite says, which never repeats a value."""
    return str(error) or type(error).__name__
