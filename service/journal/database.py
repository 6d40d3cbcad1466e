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
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from service.errors import JournalError, NoRecordError, UnavailableError
from service.journal.chain import EMPTY, ENCODER, Head, HeadFile, JournalKey, Record, read_head
from service.journal.contents import LOST, LostContent, RecordId, ScoresContent, now_ms, parsed
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
DAMAGED = (sqlite3.Error, UnicodeDecodeError)  # the second for a message of the first that quotes a damaged file
NO_RECORD = "the journal has no such record: send the id that a score has; old ones may have been pruned"
SETUP = (
    "PRAGMA auto_vacuum = INCREMENTAL",  # before there is a page
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
    "PRAGMA synchronous = EXTRA",
    *TABLES,
)
COLUMNS = "number, time, kind, batch, request, content"
OF_BATCH = f"SELECT {COLUMNS} FROM records WHERE batch = ?"  # noqa: S608 - the columns are ours
OF_REQUEST = f"SELECT {COLUMNS} FROM records WHERE request = ? AND kind = 'scores' LIMIT 2"  # noqa: S608
KEEP = "INSERT OR IGNORE INTO cells SELECT ?, ?, ? WHERE EXISTS(SELECT 1 FROM records WHERE batch = ?)"
SEAL = "SELECT number, mac, seal FROM seals WHERE name = ?"
HEAD, CHECKPOINT = "head", "checkpoint"  # the names of seals


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be appended: a record without its number, rows to keep (batch, place and bytes), and perhaps a note."""

    kind: str
    content: msgspec.Struct | Mapping[str, object] | bytes
    batch: int | None = None
    request: str | None = None
    time: int = field(default_factory=now_ms)
    cells: Sequence[tuple[int, int, bytes]] = ()
    note: str | None = None


class Database:
    """An open journal. Use it in one thread.

    Args:
        durable: whether a transaction is on the disk when `append` returns; if not, SQLite decides when, and the last
            transactions may be lost if the machine, not just the process, stops.
        checks_head: whether to raise unless its head is sealed by the key; what verifies it looks itself.

    Raises:
        JournalError: it is missing, damaged, or of another key.
    """

    def __init__(
        self, path: Path, key: JournalKey, durable: bool = True, may_create: bool = False, checks_head: bool = True
    ) -> None:
        self.path, self.key, self.checks_head = path, key, checks_head
        if may_create and not path.exists():
            create(path, key)
        elif not path.is_file():
            raise JournalError(f"{path}: no such journal")
        self.connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self.connection.text_factory = readable
        self.head_file: HeadFile | None = None
        self.last: Head | None = None  # of this connection's own transactions
        try:
            self.prepare(durable)
        except DAMAGED as error:
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
            self.sealed_head()

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
            JournalError: the end was changed by somebody else: to go on would hide it.
            UnavailableError: it cannot be written, such as on a full disk; nothing of it is then there.
        """
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            appending = Appending(self.connection, self.key, self.checked_head())
            is_loss = self.last is None and self.tell_loss(appending)
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
        self.last = appending.head
        for _ in range(1 + is_loss):  # both places of its file, if one of them has what is lost
            self.write_head(appending.head)

    def append(self, entries: Sequence[Entry]) -> Head:
        """Append records in one transaction; the new head."""
        with self.transaction() as appending:
            for entry in entries:
                appending.add(entry)
        return appending.head

    def sealed_head(self) -> Head:
        """The head that is sealed by the key.

        Raises:
            JournalError: it is missing, changed, or sealed by another key.
        """
        row = self.connection.execute(SEAL, (HEAD,)).fetchone()
        if not is_sealed(self.key, HEAD, row):
            raise JournalError(
                f"{self.path}: its head is missing, changed, or sealed by another key: `vouch journal verify` says more"
            )
        return Head(*row[:2])

    def checked_head(self) -> Head:
        """The sealed head, whose record is there, and which follows this connection's own last one.

        Raises:
            JournalError: it does not.
        """
        head = self.sealed_head()
        for one in {head, self.last or head} - {EMPTY}:
            if not self.contains(one) or one.number > head.number:
                raise JournalError(f"{self.path}: its end was changed: `vouch journal verify`")
        return head

    def contains(self, head: Head) -> bool:
        """Whether the chain has a head, or begins after it."""
        row = self.connection.execute("SELECT mac FROM records WHERE number = ?", (head.number,)).fetchone()
        if row is not None:
            return bool(row[0] == head.mac)
        pruned = self.seal(CHECKPOINT) or EMPTY
        return head.number < pruned.number or head == pruned

    def tell_loss(self, appending: Appending) -> bool:
        """Record, for good, that the head's file is ahead of the chain, or missing; whether it was.

        What was there is lost, or cut off.
        """
        found = read_head(self.path, self.key)
        if found is None and appending.head.number == 0:
            return False
        if found is None:
            appending.add(Entry(LOST, LostContent(None, None)))
            return True
        if found == EMPTY or (found.number <= appending.head.number and self.contains(found)):
            return False
        appending.add(Entry(LOST, LostContent(found.number, found.mac)))
        return True

    def write_head(self, head: Head) -> None:
        """Write the head's file; a journal whose disk has no room for it says so at the next verification."""
        with contextlib.suppress(OSError):
            if self.head_file is None:
                self.head_file = HeadFile(self.path, self.key)
            self.head_file.write(head)

    def write_seal(self, name: str, head: Head) -> None:
        seal = self.key.seal(name, head)
        self.connection.execute("INSERT OR REPLACE INTO seals VALUES(?, ?, ?, ?)", (name, head.number, head.mac, seal))

    # Reading

    def seal(self, name: str) -> Head | None:
        """The head that was sealed under a name, if any; whether the seal is right is another question."""
        row = self.connection.execute(SEAL, (name,)).fetchone()
        is_head = row is not None and isinstance(row[0], int) and isinstance(row[1], bytes)
        return Head(*row[:2]) if is_head else None

    def is_sealed(self, name: str) -> bool:
        """Whether the head under a name was sealed by the key."""
        return is_sealed(self.key, name, self.connection.execute(SEAL, (name,)).fetchone())

    def last_number(self) -> int:
        """The number of the last record; 0 if there is none."""
        return int(self.connection.execute("SELECT coalesce(max(number), 0) FROM records").fetchone()[0])

    def last_batch(self) -> int:
        """The highest number of a batch; 0 if there is none."""
        return int(self.connection.execute("SELECT coalesce(max(batch), 0) FROM records").fetchone()[0])

    def records(self, *kinds: str, since: int = 0) -> Iterator[Record]:
        """The records in order; only of some kinds, if any are named, and from a time on, in ms since the epoch."""
        where = f"kind IN ({', '.join('?' * len(kinds))}) AND " if kinds else ""
        if kinds and "scores" not in kinds:
            where += "kind <> 'scores' AND "  # lets SQLite use the index of all the others
        query = f"SELECT {COLUMNS} FROM records WHERE {where} time >= ? ORDER BY number"  # noqa: S608 - all are ours
        for row in self.connection.execute(query, (*kinds, since)):
            yield Record(*row)

    def last_scores(self, most: int) -> Iterator[Record]:
        """The last records of verdicts, latest first."""
        query = f"SELECT {COLUMNS} FROM records WHERE kind = 'scores' ORDER BY number DESC LIMIT ?"  # noqa: S608 - all are ours
        for row in self.connection.execute(query, (most,)):
            yield Record(*row)

    def scores(self, batch: int) -> tuple[Record, ScoresContent]:
        """A record of verdicts.

        Raises:
            NoRecordError: there is none; it may have been pruned.
        """
        row = self.connection.execute(OF_BATCH, (batch,)).fetchone()
        if row is None:
            raise NoRecordError(NO_RECORD)
        record = Record(*row)
        return record, parsed(record, ScoresContent)

    def of_request(self, request: str) -> list[tuple[Record, ScoresContent]]:
        """The records of verdicts of a request id, of which callers may have sent many: two at most."""
        found = [Record(*row) for row in self.connection.execute(OF_REQUEST, (request,))]
        return [(record, parsed(record, ScoresContent)) for record in found]

    def holds(self, text: str, since: int = 0) -> bool:
        """Whether a record of verdicts is there, and not of before a time, in ms since the epoch."""
        query = "SELECT 1 FROM records WHERE batch = ? AND time >= ?"
        return self.connection.execute(query, (RecordId.parse(text).batch, since)).fetchone() is not None

    def cells(self, record: RecordId) -> bytes | None:
        """A row that is kept, None for others."""
        query = "SELECT cells FROM cells WHERE batch = ? AND row = ?"
        row = self.connection.execute(query, (record.batch, record.row)).fetchone()
        return None if row is None else bytes(row[0])

    def rows_kept(self, batch: int) -> set[int]:
        """The places of a batch's rows that are kept."""
        return {row for (row,) in self.connection.execute("SELECT row FROM cells WHERE batch = ?", (batch,))}

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
        content = entry.content if isinstance(entry.content, bytes) else ENCODER.encode(entry.content)
        record = Record(number, entry.time, entry.kind, entry.batch, entry.request, content)
        mac = self.key.mac(self.head.mac, record)
        told = (number, entry.time, entry.kind, entry.batch, entry.request, content, mac)
        self.connection.execute("INSERT INTO records VALUES(?, ?, ?, ?, ?, ?, ?)", told)
        for batch, row, cells in entry.cells:  # of a record that may have been pruned meanwhile
            self.connection.execute(KEEP, (batch, row, cells, batch))
        if entry.note is not None:
            self.connection.execute("INSERT INTO notes VALUES(?, ?)", (number, entry.note))
        self.head = Head(number, mac)


def is_sealed(key: JournalKey, name: str, row: tuple[object, object, object] | None) -> bool:
    """Whether a row of the table of seals was written by a key."""
    if row is None or not (isinstance(row[0], int) and isinstance(row[1], bytes) and isinstance(row[2], bytes)):
        return False
    return key.is_seal(name, Head(row[0], row[1]), row[2])


def create(path: Path, key: JournalKey) -> None:
    """Make an empty journal that only its owner may read, whole or not at all; one that is there already stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            for statement in SETUP:
                connection.execute(statement)
            seal = HEAD, EMPTY.number, EMPTY.mac, key.seal(HEAD, EMPTY)
            connection.execute("INSERT INTO seals VALUES(?, ?, ?, ?)", seal)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def readable(text: bytes) -> str:
    """A text of the file; one that was tampered with need not be UTF-8."""
    return text.decode(errors="replace")


def said(error: Exception) -> str:
    """What SQLite says, which never repeats a value."""
    return str(error) if isinstance(error, sqlite3.Error) and str(error) else type(error).__name__
