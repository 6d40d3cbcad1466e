"""What makes a journal smaller: pruning old records, and erasing rows and notes. Each leaves a record of itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from service.errors import JournalError, NoRecordError
from service.journal.chain import EMPTY, Head, Record
from service.journal.contents import (
    ERASE,
    FEEDBACK,
    PRUNE,
    SCORES,
    EraseContent,
    FeedbackContent,
    PruneContent,
    RecordId,
    ScoresContent,
    batch_text,
    parsed,
)
from service.journal.database import CHECKPOINT, HEAD, Database, Entry

CHUNK = 10_000  # records looked at together when a size is to be reached


def pruned(database: Database, before: int | None = None, most_bytes: int | None = None) -> int:
    """Delete the oldest records, with the rows and notes that belong to them; how many. The last one always stays.

    Args:
        before: ms since the epoch; records of before it go.
        most_bytes: the size of what is kept, about; the oldest go until it is reached.
    """
    through = max(
        0 if before is None else last_before(database, before),
        0 if most_bytes is None else last_beyond(database, most_bytes),
    )
    head = database.seal(HEAD) or EMPTY
    through = min(through, head.number - 1)
    first = (database.seal(CHECKPOINT) or EMPTY).number
    if through <= first:
        return 0
    row = database.connection.execute("SELECT mac FROM records WHERE number = ?", (through,)).fetchone()
    if row is None:
        raise JournalError(f"{database.path}: record {through} is missing: `vouch journal verify`")
    with database.transaction() as appending:
        appending.add(Entry(PRUNE, PruneContent(through, row[0], through - first)))
        for statement in (
            "DELETE FROM cells WHERE batch IN (SELECT batch FROM records WHERE number <= ? AND batch IS NOT NULL)",
            "DELETE FROM notes WHERE number <= ?",
            "DELETE FROM records WHERE number <= ?",
        ):
            database.connection.execute(statement, (through,))
        database.write_seal(CHECKPOINT, Head(through, row[0]))
    compacted(database)
    return through - first


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
        NoRecordError: a record id is none.
    """
    ids = None if records is None else {RecordId.parse(text) for text in records}
    through = database.last_number() if before is None else last_before(database, before)
    rows, notes = chosen_rows(database, ids, model, through), chosen_notes(database, ids, model, through)
    if records is not None and not rows and not notes:
        raise NoRecordError(
            "nothing is kept of these records: use the ids of others; these may have been erased or pruned before"
        )
    with database.transaction() as appending:
        told = None if ids is None else sorted(map(str, ids))
        appending.add(Entry(ERASE, EraseContent(told, model, through)))
        connection = database.connection
        connection.executemany("DELETE FROM cells WHERE batch = ? AND row = ?", [(one.batch, one.row) for one in rows])
        connection.executemany("DELETE FROM notes WHERE number = ?", [(number,) for number in notes])
    compacted(database)
    return len(rows) + len(notes)


def chosen_rows(database: Database, ids: set[RecordId] | None, model: str | None, through: int) -> list[RecordId]:
    """The kept rows to erase."""
    query = "SELECT cells.batch, row, number, content FROM cells LEFT JOIN records USING(batch)"
    chosen, names = [], {}
    for batch, row, number, content in database.connection.execute(query):
        one = RecordId(batch, row)
        if ids is not None and one not in ids:
            continue
        if batch not in names:
            names[batch] = "" if content is None else msgspec.msgpack.decode(content, type=ScoresContent).name
        if (number or 0) <= through and model in (None, names[batch]):
            chosen.append(one)
    return chosen


def chosen_notes(database: Database, ids: set[RecordId] | None, model: str | None, through: int) -> list[int]:
    """The numbers of the records whose notes are to be erased."""
    chosen = []
    for record in database.records(FEEDBACK):
        said = parsed(record, FeedbackContent)
        if said.note is None or record.number > through or database.note(record.number) is None:
            continue
        one = RecordId.parse(said.record)
        if ids is not None and one not in ids:
            continue
        if model is not None and database.name_of(one) != model:
            continue
        chosen.append(record.number)
    return chosen


def compacted(database: Database) -> None:
    """Write the file anew without what was deleted, and empty its log.

    Raises:
        JournalError: another process reads it; what was deleted is gone from the tables, and overwritten with zeros.
    """
    try:
        database.connection.execute("VACUUM")
        busy = database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as error:
        raise JournalError(f"{database.path}: deleted, but the file could not be written anew: {error}") from error
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
    same = {"key": verdicts.key, "model": verdicts.model, "digest": verdicts.digest, "rule": verdicts.rule}
    for row in range(verdicts.rows):
        document = shared | {"record": f"{batch_text(record.batch)}.{row}"} | same | verdicts.row_document(row)
        cells = database.cells(RecordId(record.batch, row)) if with_rows else None
        if cells is not None:
            numbers = np.frombuffer(cells, verdicts.dtype).tolist()
            document["row"] = [None if number != number else number for number in numbers]  # noqa: PLR0124 - NaN
        yield document


def time_text(ms: int) -> str:
    """A time of a record, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
