"""The chain: whatever is changed, taken out, cut or computed anew is found, and what is pruned or erased is not missed."""

import contextlib
import os
import shutil
import sqlite3

import numpy as np
import pytest

from service.errors import JournalError, NoRecordError
from service.journal import chain
from service.journal.chain import Head, JournalKey, Record, head_path, read_head
from service.journal.contents import RecordId
from service.journal.database import Database, Entry
from service.journal.maintenance import erased, exported, pruned
from service.journal.verification import verified

ROWS = np.arange(12.0).reshape(4, 3)


def faults(journal, anchor=None, key=None):
    with Database(journal.path, key or journal.key, checks_head=False) as database:
        return verified(database, anchor).faults


@pytest.fixture
def filled(journal):
    """A journal with verdicts, an answer with a note, and other events."""
    journal.records = journal.scores(ROWS)
    journal.answer(journal.records[0], "valid", note="Mrs Miller knows him")
    for number in range(4):
        journal.scores(ROWS + 100 * number)
    with journal.open() as database:
        database.append([Entry("start", {"vouch": "0"}), Entry("drift", {"model": "table@1"})])
    assert faults(journal) == []
    return journal


def changed(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(statement)
    connection.close()


def test_a_mac_is_that_of_the_definition():
    import hashlib
    import hmac

    import msgspec

    key = JournalKey.of(b"x" * 32)
    record = Record(2, 1_700_000_000_000, "start", None, None, b"\x80")
    secret = hmac.new(b"x" * 32, b"vouch journal: chain", hashlib.sha256).digest()
    told = msgspec.msgpack.encode([2, 1_700_000_000_000, "start", None, None, b"\x80"])
    assert key.mac(bytes(32), record) == hmac.new(secret, bytes(32) + told, hashlib.sha256).digest()


@pytest.mark.parametrize("column", ["time", "kind", "batch", "request", "content", "mac"])
def test_a_changed_record_is_found(filled, column):
    value = {
        "time": "time + 1",
        "kind": "'start'",
        "batch": "batch + 1000",
        "request": "'other'",
        "content": "CAST(substr(content, 1, length(content) - 1) || 'x' AS BLOB)",
        "mac": "zeroblob(32)",
    }
    changed(filled.path, f"UPDATE records SET {column} = {value[column]} WHERE number = 3")
    assert any("record 3" in fault for fault in faults(filled))


@pytest.mark.parametrize("value", ["NULL", "-1", "2.5", "'text'", "CAST(x'ff' AS TEXT)", "x'ff'", "zeroblob(40)"])
@pytest.mark.parametrize("column", ["time", "kind", "batch", "request", "content", "mac"])
def test_a_column_of_another_type_is_found(filled, column, value):
    try:
        changed(filled.path, f"UPDATE records SET {column} = {value} WHERE number = 3")
    except sqlite3.IntegrityError:
        return  # SQLite does not let it be NULL
    if (column, value) == ("request", "NULL"):
        return  # as it was
    assert any("record 3" in fault for fault in faults(filled))


@pytest.mark.parametrize("value", ["NULL", "-1", "2.5", "'text'", "x'ff'"])
@pytest.mark.parametrize(
    ("table", "column"),
    [("cells", "batch"), ("cells", "row"), ("cells", "cells"), ("notes", "note"), ("seals", "mac"), ("seals", "seal"),
     ("seals", "number")],
)  # fmt: skip
def test_a_column_of_another_type_beside_the_chain_is_found(filled, table, column, value):
    try:
        changed(filled.path, f"UPDATE {table} SET {column} = {value} WHERE number = 2" if table == "notes" else
                f"UPDATE OR REPLACE {table} SET {column} = {value}")  # fmt: skip
    except sqlite3.IntegrityError:
        return
    assert faults(filled)


def test_a_flipped_byte_of_any_record_is_found(filled):
    """In the file itself: of every content that it holds."""
    with filled.open() as database:
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        contents = [record.content for record in database.records()]
    good = filled.path.read_bytes()
    for content in contents:
        at = good.index(content) + len(content) // 2
        filled.path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert faults(filled), content
    filled.path.write_bytes(good)
    assert faults(filled) == []


def test_removed_records_are_found(filled):
    changed(filled.path, "DELETE FROM records WHERE number = 4")
    assert any("record" in fault and "missing" in fault for fault in faults(filled))


def test_a_removed_beginning_is_found(filled):
    changed(filled.path, "DELETE FROM records WHERE number <= 2", "DELETE FROM cells", "DELETE FROM notes")
    assert any("records 1 to 2: missing" in fault for fault in faults(filled))


def test_a_cut_tail_is_found(filled):
    changed(filled.path, "DELETE FROM records WHERE number >= 7")
    assert any("missing, at the end" in fault for fault in faults(filled))


def test_a_cut_tail_with_the_head_put_back_by_hand_is_found(filled):
    changed(filled.path, "DELETE FROM records WHERE number >= 7")
    changed(filled.path, "UPDATE seals SET number = 6, mac = (SELECT mac FROM records WHERE number = 6)")
    assert any("seal" in fault for fault in faults(filled))
    changed(filled.path, "DELETE FROM seals")
    assert any("no sealed head" in fault for fault in faults(filled))


def test_an_earlier_state_of_the_database_is_found_by_its_head_file_or_by_a_head_kept_elsewhere(filled, tmp_path):
    with filled.open() as database:
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        earlier = database.seal("head")
    old = filled.path.read_bytes()
    old_head = head_path(filled.path).read_bytes()
    filled.scores(ROWS)
    with filled.open() as database:
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        later = database.seal("head")
    assert faults(filled, earlier) == faults(filled, later) == []
    filled.path.write_bytes(old)
    assert any("journal-head" in fault for fault in faults(filled))
    head_path(filled.path).write_bytes(old_head)
    assert faults(filled) == []  # a whole earlier state; nothing here can tell
    assert any("--head" in fault for fault in faults(filled, later))


def test_a_chain_computed_anew_without_the_key_is_found(filled):
    """By someone who knows the program, the old macs, and everything but the key."""
    stranger = JournalKey.of(os.urandom(32))
    changed(filled.path, "UPDATE records SET request = 'forged' WHERE number = 3")
    with Database(filled.path, stranger, checks_head=False) as database:
        rows = database.connection.execute(
            "SELECT number, time, kind, batch, request, content FROM records ORDER BY number"
        ).fetchall()
        before = chain.START
        for row in rows:
            before = stranger.mac(before, Record(*row))
            database.connection.execute("UPDATE records SET mac = ? WHERE number = ?", (before, row[0]))
        head = Head(rows[-1][0], before)
        database.write_seal("head", head)
        database.write_head(head)
    found = faults(filled)
    assert any("seal of the head" in fault for fault in found)
    assert any("record 1:" in fault for fault in found)
    assert any("by journal-head" in fault for fault in found)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DELETE FROM cells WHERE row = 1", "missing, and no record says that it was erased"),
        ("UPDATE cells SET cells = zeroblob(24) WHERE row = 1", "changed"),
        ("INSERT INTO cells VALUES(1, 1, x'00')", "no record says that it is kept"),
        ("DELETE FROM notes", "note of record 2: missing"),
        ("UPDATE notes SET note = 'Mrs Miller does not'", "note of record 2: changed"),
    ],
)
def test_what_lies_beside_the_chain_is_verified(filled, statement, what):
    changed(filled.path, statement)
    assert any(what in fault for fault in faults(filled))


def test_a_damaged_file_is_an_error_or_a_fault_and_nothing_worse(filled):
    with filled.open() as database:
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    good = filled.path.read_bytes()
    generator = np.random.default_rng(0)
    for at in [*range(16, 100, 7), *generator.integers(100, len(good), 40).tolist()]:
        filled.path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        with contextlib.suppress(JournalError):  # which is what it may raise
            faults(filled)
    filled.path.write_bytes(b"no database at all, but long enough" * 100)
    with pytest.raises(JournalError, match="cannot be opened"):
        filled.open()


def test_the_key_has_to_be_the_same_and_long_enough(filled, tmp_path):
    with pytest.raises(JournalError, match="sealed by another key"):
        Database(filled.path, JournalKey.of(os.urandom(32)))
    (tmp_path / "short").write_text("secret\n")
    with pytest.raises(JournalError, match="expected at least 32") as raised:
        JournalKey.read(tmp_path / "short")
    assert "secret" not in str(raised.value)
    with pytest.raises(JournalError, match="cannot be read"):
        JournalKey.read(tmp_path / "none")


def test_a_head_in_a_torn_file_is_the_one_before(filled):
    head = read_head(filled.path, filled.key)
    assert head is not None
    text = head_path(filled.path).read_bytes()
    at = text.index(str(head).encode())
    head_path(filled.path).write_bytes(text[: at + 10] + b"\0" * 40 + text[at + 50 :])
    before = read_head(filled.path, filled.key)
    assert before is not None
    assert before.number < head.number
    assert faults(filled) == []
    head_path(filled.path).unlink()
    assert any("journal-head: missing" in fault for fault in faults(filled))


@pytest.mark.parametrize("text", ["", "7", "7:abc", "x:" + "0" * 64, "7:" + "g" * 64, "-1:" + "0" * 64])
def test_what_is_no_head_is_refused(text):
    with pytest.raises(JournalError, match="NUMBER:HASH"):
        Head.parse(text)


# Pruning and erasing


def test_pruning_leaves_a_chain_that_verifies_and_whose_beginning_cannot_be_cut_further(filled):
    with filled.open() as database:
        assert pruned(database, most_bytes=600) > 0
    assert faults(filled) == []
    with filled.open() as database:
        first = database.connection.execute("SELECT min(number) FROM records").fetchone()[0]
        assert first > 1
        assert database.seal("checkpoint").number == first - 1
    copy = filled.path.with_name("copy")
    shutil.copy(filled.path, copy)
    changed(filled.path, f"DELETE FROM records WHERE number = {first}", "DELETE FROM cells")
    assert any("missing" in fault for fault in faults(filled))
    changed(
        filled.path,
        f"UPDATE seals SET number = {first}, mac = zeroblob(32) WHERE name = 'checkpoint'",
    )
    assert any("seal of the checkpoint" in fault for fault in faults(filled))


def test_pruning_keeps_the_last_record_and_an_anchor_that_is_gone_is_said_to_be(filled):
    with filled.open() as database:
        early = Head(1, database.connection.execute("SELECT mac FROM records WHERE number = 1").fetchone()[0])
        assert pruned(database, before=2**60) == 7
        assert pruned(database, before=0) == 0
    assert any("may have been pruned" in fault for fault in faults(filled, early))
    assert faults(filled) == []


def test_what_is_erased_is_not_in_the_files_any_more_and_not_missed(filled):
    secret = np.array([[1234.5, 6789.25, 4321.125]])
    (record,) = filled.scores(secret)
    filled.answer(record, "invalid", note="a note about Mr Smith")
    needles = [secret.tobytes(), b"Mr Smith"]

    def bytes_of_all():
        return b"".join(path.read_bytes() for path in filled.path.parent.iterdir())

    assert all(needle in bytes_of_all() for needle in needles)
    with filled.open() as database:
        assert erased(database, [record], None, None) == 2
    assert not any(needle in bytes_of_all() for needle in needles)
    assert b"Mrs Miller" in bytes_of_all()
    assert faults(filled) == []
    with filled.open() as database:
        with pytest.raises(NoRecordError, match="nothing is kept"):
            erased(database, [record], None, None)
        assert erased(database, None, "other", None) == 0
        assert erased(database, None, "table", None) == 21
        for table in ("cells", "notes"):
            assert database.connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert b"Mrs Miller" not in bytes_of_all()
    assert faults(filled) == []


def test_an_erasure_excuses_only_what_came_before_it(filled):
    with filled.open() as database:
        erased(database, None, None, None)
    filled.scores(ROWS)
    assert faults(filled) == []
    changed(filled.path, "DELETE FROM cells")
    assert len(faults(filled)) == len(ROWS)


def test_an_export_tells_each_row_and_rows_only_if_asked(filled):
    with filled.open() as database:
        plain, whole = b"".join(exported(database)), b"".join(exported(database, with_rows=True))
    assert plain.count(b'"verdict":"valid"') == 20
    assert b"Mrs Miller" not in plain
    assert b'"row":[' not in plain
    assert b"Mrs Miller" in whole
    assert b'"row":[0.0,1.0,2.0]' in whole


def test_files_are_for_their_owner_alone(filled):
    for path in filled.path.parent.iterdir():
        if path.name.startswith("journal"):
            assert path.stat().st_mode & 0o077 == 0, path.name


NO_IDS = (
    "", ".", "x.0", "0pcr9gdbfde50", "0pcr9gdbfde50.", "0pcr9gdbfde50.01", "0000000000000.-1", "vvvvvvvvvvvvu.0",
    "0PCR9GDBFDE50.0", "0pcr9gdbfde5w.0", "0pcr9gdbfde50.9999999999",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_record_id_is_refused_without_an_echo(text):
    with pytest.raises(NoRecordError) as raised:
        RecordId.parse(text)
    assert not text or len(text) < 3 or text not in str(raised.value)


def test_record_ids_are_read_as_they_are_written():
    for batch in (1, 2**40 + 3, 2**63 - 1):
        assert RecordId.parse(str(RecordId(batch, 12))) == RecordId(batch, 12)


# What would hide a change, if it were written on


def test_a_service_does_not_write_on_after_its_end_was_cut(filled):
    """Its seal could be put back by hand, wrong; the next record would make it right."""
    with filled.open() as database:
        database.append([Entry("start", {})])
        changed(
            filled.path,
            "DELETE FROM records WHERE number > 5",
            "UPDATE seals SET number = 5, mac = (SELECT mac FROM records WHERE number = 5) WHERE name = 'head'",
        )
        with pytest.raises(JournalError, match="head is missing, changed"):
            database.append([Entry("start", {})])
        changed(filled.path, "DELETE FROM seals", "DELETE FROM records")
        with pytest.raises(JournalError, match="head is missing, changed"):
            database.append([Entry("start", {})])
    assert faults(filled)


def test_a_service_does_not_write_on_after_an_earlier_state_was_put_back(filled):
    with filled.open() as database:
        old = [tuple(row) for row in database.connection.execute("SELECT * FROM seals")]
        database.append([Entry("start", {}), Entry("stop", {})])
        changed(filled.path, "DELETE FROM records WHERE number > 7")
        for row in old:
            changed(filled.path, ("INSERT OR REPLACE INTO seals VALUES(?, ?, ?, ?)", row))
        with pytest.raises(JournalError, match="its end was changed"):
            database.append([Entry("start", {})])


@pytest.mark.parametrize("how", ["an earlier database", "no database", "no head file"])
def test_what_was_lost_before_a_start_is_told_for_good(filled, how):
    with filled.open() as database:
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old = filled.path.read_bytes()
    with filled.open() as database:
        database.append([Entry("stop", {})] * 3)
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if how == "no head file":
        head_path(filled.path).unlink()
    elif how == "no database":
        filled.path.unlink()
    else:
        filled.path.write_bytes(old)
    for _ in range(4):
        with filled.open(may_create=True) as database:
            database.append([Entry("start", {})])
    with filled.open() as database:
        result = verified(database)
    assert result.faults == []
    (lost,) = result.lost
    assert ("head's file was missing" if how == "no head file" else "lost, or cut off") in lost


@pytest.mark.parametrize("delete", ["pruned", "erased"])
def test_nothing_is_deleted_from_a_journal_that_does_not_verify(filled, delete):
    """Times that are set back would make fresh records old."""
    changed(filled.path, "UPDATE records SET time = 1000 WHERE number < 6")
    with filled.open() as database, pytest.raises(JournalError, match="nothing was deleted"):
        pruned(database, before=2000) if delete == "pruned" else erased(database, None, None, 2000)
    with filled.open() as database:
        assert database.connection.execute("SELECT count(*) FROM records").fetchone() == (8,)


def test_two_prunes_at_a_time_leave_a_chain(filled, monkeypatch):
    from service.journal import maintenance

    check = maintenance.check

    def other_first(database):
        check(database)
        monkeypatch.setattr(maintenance, "check", check)
        with filled.open() as other:
            assert pruned(other, before=2**60) == 7

    monkeypatch.setattr(maintenance, "check", other_first)
    with filled.open() as database:
        pruned(database, most_bytes=1200)
    assert faults(filled) == []


def test_other_tables_and_triggers_are_found(filled):
    changed(filled.path, "CREATE TABLE copies AS SELECT * FROM cells")
    assert any("other tables" in fault for fault in faults(filled))


def test_a_pruned_verdict_leaves_no_false_alarm_about_its_note(filled):
    """A note that outlives the verdict that it is about; erased before or after."""
    with filled.open() as database:
        assert pruned(database, before=0) == 0
        first = filled.records[1]
    filled.answer(first, "invalid", note="Mr Smith")
    with filled.open() as database:
        erased(database, [first], None, None)
        (number,) = database.connection.execute("SELECT max(number) FROM records WHERE kind = 'scores'").fetchone()
        size = database.connection.execute(
            "SELECT sum(length(content)) + 150 * count(*) FROM records WHERE number > ?", (number,)
        ).fetchone()[0]
        pruned(database, most_bytes=size)
        assert erased(database, None, "table", None) == 0
    assert faults(filled) == []


def test_a_row_that_comes_after_its_verdict_was_pruned_is_not_kept(filled):
    with filled.open() as database:
        pruned(database, before=2**60)
        entry = Entry("ask", {"model": "m", "drawn": [], "others": [], "among": 0}, cells=[(1 << 40, 0, b"late")])
        database.append([entry])
        assert database.connection.execute("SELECT count(*) FROM cells").fetchone() == (0,)
    assert faults(filled) == []


def test_a_second_run_finishes_an_erasure(filled):
    """Of which the first could not write the file anew, since somebody read it."""
    with filled.open() as reader, filled.open() as database:
        database.connection.execute("PRAGMA busy_timeout = 100")
        reader.connection.execute("BEGIN")
        reader.connection.execute("SELECT count(*) FROM records").fetchone()
        with pytest.raises(JournalError, match="run the command again"):
            erased(database, None, None, None)
        reader.connection.execute("ROLLBACK")
        assert erased(database, None, None, None) == 0
    assert b"Miller" not in b"".join(path.read_bytes() for path in filled.path.parent.iterdir())
