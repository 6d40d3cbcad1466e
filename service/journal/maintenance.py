"""What makes a journal smaller: pruning old records, and erasing rows and notes. Each leaves a record of itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from service.errors import JournalError, NoRecordError
from service.journal.chain import EMPTY, Head, Record
from service.journal.contents import (
    ERASE,
    PRUNE,
    SCORES,
    EraseContent,
    PruneContent,
    RecordId,
    ScoresContent,
    batch_text,
    parsed,
    time_text,
)
from service.journal.database import CHECKPOINT, Appending, Database, Entry
from service.journal.verification import Beside, covers, verified

PAGES = 1_000  # that are given back in a transaction: verdicts wait no longer


def pruned(database: Database, before: int | None = None, most_bytes: int | None = None) -> int:
    """Delete the oldest records, with the rows and notes that belong to them; how many. The last one always stays.

    Args:
        before: ms since the epoch; records of before it go.
        most_bytes: the size of what is kept, about; the oldest go until it is reached.

    Raises:
        JournalError: the journal does not verify: to prune it could hide why.
    """
    check(database)
    beyond = 0 if most_bytes is None else last_beyond(database, most_bytes)
    number = 0
    with database.transaction() as appending:
        first = (database.seal(CHECKPOINT) or EMPTY).number
        through = max(0 if before is None else last_before(database, before), beyond)
        through = min(through, appending.head.number - 1)
        if through > first:
            number = through - first
            delete(database, appending, through, number)
    shrunk(database)
    return number


def delete(database: Database, appending: Appending, through: int, number: int) -> None:
    """Delete records up to a number, and what belongs to them, and seal a checkpoint."""
    (mac,) = database.connection.execute("SELECT mac FROM records WHERE number = ?", (through,)).fetchone()
    appending.add(Entry(PRUNE, PruneContent(through, mac, number)))
    for statement in (
        "DELETE FROM cells WHERE batch IN (SELECT batch FROM records WHERE number <= ? AND batch IS NOT NULL)",
        "DELETE FROM notes WHERE number <= ?",
        "DELETE FROM records WHERE number <= ?",
    ):
        database.connection.execute(statement, (through,))
    database.write_seal(CHECKPOINT, Head(through, mac))


def check(database: Database) -> None:
    """Raise unless a journal verifies.

    Raises:
        JournalError: says what is wrong first.
    """
    faults = verified(database).faults
    if faults:
        raise JournalError(
            f"{database.path}: {faults[0]}: nothing was deleted; `vouch journal verify` says what else is wrong"
        )


def last_before(database: Database, before: int) -> int:
    """The number of the last record such that it and all before it are older than a time."""
    row = database.connection.execute("SELECT min(number) FROM records WHERE time >= ?", (before,)).fetchone()
    return (int(row[0]) - 1) if row[0] is not None else database.last_number()


def last_beyond(database: Database, most_bytes: int) -> int:
    """The number of the last record that has to go so that the rest is at most so large, rows included, about."""
    query = (
        "SELECT number, length(content) + 150 + coalesce((SELECT sum(length(cells) + 20) FROM cells WHERE cells.batch = "
        "records.batch), 0) FROM records ORDER BY number DESC"
    )
    total = 0
    for number, size in database.connection.execute(query):
        total += size
        if total > most_bytes:
            return int(number)
    return 0


def erased(database: Database, records: Sequence[str] | None, model: str | None, before: int | None) -> int:
    """Erase rows and notes, of some records or of all, of a model or of any; how many there were.

    The journal keeps that they were there, and their keyed hashes. Then the file is written anew, without them.

    Args:
        before: ms since the epoch; only those of records of before it.

    Raises:
        JournalError: the journal does not verify: to erase from it could hide why.
        NoRecordError: a record id is none, or nothing is kept of the records.
    """
    ids = None if records is None else sorted(str(RecordId.parse(text)) for text in records)
    check(database)
    with database.transaction() as appending:
        through = appending.head.number if before is None else last_before(database, before)
        erasure, beside = EraseContent(ids, model, through), Beside.of(database)
        rows = [
            place
            for place, (number, name, _) in beside.rows.items()
            if covers(erasure, number, name, str(RecordId(*place))) and database.cells(RecordId(*place)) is not None
        ]
        notes = [
            number
            for number, (name, text, _) in beside.notes.items()
            if covers(erasure, number, name, text) and database.note(number) is not None
        ]
        if rows or notes:
            appending.add(Entry(ERASE, erasure))
        database.connection.executemany("DELETE FROM cells WHERE batch = ? AND row = ?", rows)
        database.connection.executemany("DELETE FROM notes WHERE number = ?", [(number,) for number in notes])
    compacted(database)
    if records is not None and not rows and not notes:
        raise NoRecordError(
            "nothing is kept of these records: use the ids of others; these may have been erased before"
        )
    return len(rows) + len(notes)


def compacted(database: Database) -> None:
    """Write the file anew without what was deleted, and empty its log."""
    emptied(database, ["VACUUM"], "written anew")


def shrunk(database: Database) -> None:
    """Give the room of what was deleted, which was overwritten with zeros, back to the disk; a few pages at a time."""
    (free,) = database.connection.execute("PRAGMA freelist_count").fetchone()
    emptied(database, [f"PRAGMA incremental_vacuum({PAGES})"] * -(-free // PAGES), "made smaller")


def emptied(database: Database, statements: Sequence[str], what: str) -> None:
    """Run statements that take out what was deleted, and empty the file's log.

    Raises:
        JournalError: another process reads it; what was deleted is gone from the tables, and overwritten with zeros.
    """
    try:
        for statement in statements:
            database.connection.execute(statement).fetchall()
        busy = database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as error:
        raise JournalError(f"{database.path}: deleted, but the file could not be {what}: {error}") from error
    if busy:
        raise JournalError(
            f"{database.path}: deleted, but its log is in use: run the command again, so that it is emptied"
        )


# Export


def exported(database: Database, with_rows: bool = False) -> Iterator[bytes]:
    """Every record as a line of JSON; of verdicts, one line for each row.

    Args:
        with_rows: also notes, and the rows that are kept as numbers, as they were read.
    """
    encoder = msgspec.json.Encoder()
    for record in database.records():
        for document in documents(database, record, with_rows):
            yield encoder.encode(document) + b"\n"


def documents(database: Database, record: Record, with_rows: bool) -> Iterator[dict[str, Any]]:
    """A record as documents for JSON."""
    shared = {
        "number": record.number,
        "time": time_text(record.time),
        "kind": record.kind,
        "request_id": record.request,
    }
    if record.kind != SCORES or record.batch is None:
        content = msgspec.msgpack.decode(record.content)
        told = {name: value.hex() if isinstance(value, bytes) else value for name, value in content.items()}
        note = database.note(record.number) if with_rows else None
        yield shared | told | ({} if note is None else {"note": note})
        return
    verdicts = parsed(record, ScoresContent)
    same: dict[str, Any] = {
        "key": verdicts.key,
        "model": verdicts.model,
        "digest": verdicts.digest,
        "rule": verdicts.rule,
    }
    same |= {"trial": True} if verdicts.trial else {}
    for row in range(verdicts.rows):
        document = shared | {"record": f"{batch_text(record.batch)}.{row}"} | same | verdicts.row_document(row)
        cells = database.cells(RecordId(record.batch, row)) if with_rows else None
        if cells is not None:
            numbers = np.frombuffer(cells, verdicts.dtype).tolist()
            document["row"] = [None if number != number else number for number in numbers]  # noqa: PLR0124 - NaN
        yield document
