"""Whether a journal is what was written: every mac, every gap, the seals, and what is kept beside the chain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.errors import JournalError, NoRecordError
from service.journal.chain import EMPTY, Head, Record, head_path, read_head
from service.journal.contents import (
    ERASE,
    FEEDBACK,
    LOST,
    PRUNE,
    SCORES,
    EraseContent,
    FeedbackContent,
    LostContent,
    PruneContent,
    RecordId,
    ScoresContent,
    parsed,
)
from service.journal.database import CHECKPOINT, COLUMNS, DAMAGED, HEAD, TABLES, Database, said

MOST_FAULTS = 20


@dataclass
class Verified:
    """What was found: the faults, at most 20 of them, and what the journal holds.

    `lost` are records that say that others were lost before: by a power failure, or by somebody.
    """

    head: Head
    checkpoint: Head
    faults: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    records: int = 0
    rows: int = 0
    erased: int = 0

    def fault(self, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text)


@dataclass
class Beside:
    """What the chain says is kept beside it, and what it says was erased."""

    rows: dict[tuple[int, int], tuple[int, str, bytes]] = field(default_factory=dict)  # number, model and hash
    notes: dict[int, tuple[str, str, bytes]] = field(default_factory=dict)  # model, record id and hash, by number
    erasures: list[EraseContent] = field(default_factory=list)

    @staticmethod
    def of(database: Database) -> Beside:
        """From all records."""
        beside = Beside()
        for record in database.records():
            beside.add(record, database)
        return beside

    def add(self, record: Record, database: Database) -> None:
        """Count a record."""
        if record.kind == SCORES and record.batch is not None:
            content = parsed(record, ScoresContent)
            for row in content.kept_rows():
                self.rows[record.batch, row] = record.number, content.name, content.hash_of(row)
        elif record.kind == FEEDBACK:
            said = parsed(record, FeedbackContent)
            if said.note is not None:
                self.notes[record.number] = said.model, said.record, said.note
            if said.has_row:
                one = RecordId.parse(said.record)
                with contextlib.suppress(NoRecordError):  # pruned since
                    _, content = database.scores(one.batch)
                    if one.row not in content.kept_rows():
                        self.rows[one.batch, one.row] = record.number, content.name, content.hash_of(one.row)
        elif record.kind == ERASE:
            self.erasures.append(parsed(record, EraseContent))

    def is_erased(self, number: int, model: str, text: str) -> bool:
        """Whether a record of the chain says that what is kept of another was erased."""
        return any(covers(one, number, model, text) for one in self.erasures)


def covers(erasure: EraseContent, number: int, model: str, text: str) -> bool:
    """Whether an erasure is about what a record of a number, on a model's row, has kept."""
    return (
        number <= erasure.through
        and erasure.model in (None, model)
        and (erasure.records is None or text in erasure.records)
    )


def verified(database: Database, anchor: Head | None = None) -> Verified:
    """Verify a journal that was opened with its key.

    Args:
        anchor: a head that was printed earlier, which the chain has to contain.

    Raises:
        JournalError: SQLite cannot read it.
    """
    try:
        connection = database.connection
        connection.execute("BEGIN")  # one state, whatever is written meanwhile
        try:
            return verified_state(database, anchor)
        finally:
            connection.execute("ROLLBACK")
    except (*DAMAGED, OverflowError) as error:
        raise JournalError(f"{database.path}: damaged: {said(error)}") from error


def verified_state(database: Database, anchor: Head | None) -> Verified:
    """Verify what one transaction sees."""
    key = database.key
    in_file = read_head(database.path, key)
    sealed, pruned = database.seal(HEAD), database.seal(CHECKPOINT)
    result = Verified(sealed or EMPTY, pruned or EMPTY)
    for text in integrity(database):
        result.fault(text)
    for name, head in ((HEAD, sealed), (CHECKPOINT, pruned)):
        if head is not None and not database.is_sealed(name):
            result.fault(f"the seal of the {name} is not one of this key")
    if sealed is None:
        result.fault("there is no sealed head")
    beside, last = Beside(), result.checkpoint
    macs: dict[int, bytes] = {last.number: last.mac}
    interesting = {head.number for head in (anchor, in_file) if head is not None}
    for record, mac, before in chain(database, result):
        if before is not None and key.mac(before, record) != mac:
            result.fault(f"record {record.number}: changed, or not written under this key")
        if record.number in interesting:
            macs[record.number] = mac
        last = Head(record.number, mac)
        result.records += 1
        try:
            beside.add(record, database)
            note_loss(record, result)
        except (JournalError, TypeError, ValueError) as error:  # of a content that was made up
            result.fault(f"record {record.number}: its content cannot be read: {type(error).__name__}")
    check_end(database, result, last, in_file)
    for head, name in ((in_file, f"{head_path(database.path).name}"), (anchor, "--head")):
        check_anchor(result, head, name, macs, last)
    check_prune(database, result)
    check_rows(database, result, beside)
    check_notes(database, result, beside)
    return result


def note_loss(record: Record, result: Verified) -> None:
    """Note a record that says that others are lost."""
    if record.kind != LOST:
        return
    lost = parsed(record, LostContent)
    what = (
        "its head's file was missing" if lost.number is None else f"records up to {lost.number} were lost, or cut off"
    )
    result.lost.append(f"record {record.number}: when the journal was opened for it, {what}")


def integrity(database: Database) -> Iterator[str]:
    """What SQLite finds wrong with its file."""
    for (text,) in database.connection.execute(f"PRAGMA integrity_check({MOST_FAULTS})"):
        if text != "ok":
            yield f"the file is damaged: {text}"
    query = "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    if {sql for (sql,) in database.connection.execute(query)} != set(TABLES):
        yield "the file has other tables or triggers than a journal"


def chain(database: Database, result: Verified) -> Iterator[tuple[Record, bytes, bytes | None]]:
    """The records with their macs, and the mac before each, None after a gap."""
    last = result.checkpoint
    before: bytes | None = last.mac
    for *told, mac in database.connection.execute(f"SELECT {COLUMNS}, mac FROM records ORDER BY number"):  # noqa: S608
        record = Record(*told)
        if type(record.number) is not int:
            result.fault("a record without a number")
            continue
        if not is_typed(record) or not isinstance(mac, bytes):
            result.fault(f"record {record.number}: changed, to what no journal holds")
            last, before = Head(record.number, b""), None
            continue
        if record.number != last.number + 1:
            gap = f"records {last.number + 1} to {record.number - 1}" if record.number > last.number else "records"
            result.fault(f"{gap}: missing, before record {record.number}")
            before = None
        yield record, mac, before
        last, before = Head(record.number, mac), mac


def is_typed(record: Record) -> bool:
    """Whether a record's columns hold what they may: SQLite itself lets any hold anything."""
    return (
        type(record.time) is int
        and isinstance(record.kind, str)
        and (record.batch is None or (type(record.batch) is int and 0 <= record.batch < 2**63))
        and (record.request is None or isinstance(record.request, str))
        and isinstance(record.content, bytes)
    )


def check_end(database: Database, result: Verified, last: Head, in_file: Head | None) -> None:
    """Whether the last record is the sealed one, and the head's file there."""
    if last != result.head:
        if last.number < result.head.number:
            result.fault(f"records {last.number + 1} to {result.head.number}: missing, at the end")
        else:
            result.fault(f"record {last.number}: not the one that was sealed as the last")
    if in_file is None:
        result.fault(f"{head_path(database.path).name}: missing, or not of this key: copy it along with the journal")


def check_anchor(result: Verified, head: Head | None, name: str, macs: dict[int, bytes], last: Head) -> None:
    """Whether the chain contains a head that was kept elsewhere."""
    if head is None:
        return
    if head.number > last.number:
        result.fault(f"records {last.number + 1} to {head.number}: missing, by {name}")
    elif head.number not in macs:
        result.fault(f"record {head.number}, by {name}: missing; it may have been pruned")
    elif macs[head.number] != head.mac:
        result.fault(f"record {head.number}: another one than by {name}")


def check_prune(database: Database, result: Verified) -> None:
    """Whether a record of the chain says up to where it was pruned."""
    said = [parsed(record, PruneContent) for record in database.records(PRUNE)]
    if result.checkpoint != EMPTY and (not said or Head(said[-1].through, said[-1].mac) != result.checkpoint):
        result.fault("no record says that the first ones were pruned")


def check_rows(database: Database, result: Verified, beside: Beside) -> None:
    """Whether the rows beside the chain are those that it says, and none is missing that was not erased."""
    key = database.key
    for batch, row, cells in database.connection.execute("SELECT batch, row, cells FROM cells"):
        if not (type(batch) is type(row) is int and 0 <= batch < 2**63):
            result.fault("a row without a record id")
            continue
        result.rows += 1
        told = beside.rows.pop((batch, row), None)
        if told is None:
            result.fault(f"row {RecordId(batch, row)}: no record says that it is kept")
        elif not isinstance(cells, bytes) or key.hash(cells) != told[2]:
            result.fault(f"row {RecordId(batch, row)}: changed")
    for (batch, row), (number, model, _) in beside.rows.items():
        if beside.is_erased(number, model, str(RecordId(batch, row))):
            result.erased += 1
        else:
            result.fault(f"row {RecordId(batch, row)}: missing, and no record says that it was erased")


def check_notes(database: Database, result: Verified, beside: Beside) -> None:
    """The same of notes."""
    key = database.key
    for number, note in database.connection.execute("SELECT number, note FROM notes"):
        told = beside.notes.pop(number, None)
        if told is None or not isinstance(note, str) or key.hash(note.encode()) != told[2]:
            result.fault(f"the note of record {number}: changed, or of no record")
    for number, (model, text, _) in beside.notes.items():
        if beside.is_erased(number, model, text):
            result.erased += 1
        else:
            result.fault(f"the note of record {number}: missing, and no record says that it was erased")
