"""The writer: what waits is written together; what is required waits for it; what cannot be written is counted."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from service.errors import JournalError, OverloadedError, UnavailableError
from service.journal import writer
from service.journal.chain import JournalKey
from service.journal.contents import RecordId, ScoresContent, next_batch, parsed
from service.journal.database import Database, Entry
from service.journal.verification import verified
from service.journal.writer import Journal
from service.scoring.reasons import NAMES, PHRASES, reason_codes
from service.store.loading import load_scorer
from service.store.store import Store
from tests.models import data_of

KEY = JournalKey.of(b"x" * 32)
START = Entry("start", {})


@pytest.fixture
def made(tmp_path):
    """Makes journals, and ends them."""
    opened = []

    def make(mode="required", **options):
        journal = Journal(tmp_path / "journal", KEY, mode, **options)
        journal.start(START)
        opened.append(journal)
        return journal

    yield make
    for journal in opened:
        if journal.thread.is_alive():
            journal.stop(Entry("stop", {}))


def records(path, kind="scores"):
    with Database(path, KEY) as database:
        assert verified(database).faults == []
        return list(database.records(kind))


def fill(journal, pages=0):
    """Leave the database no more room than it has, in SQLite's own way; and give it room again."""
    now = journal.database.connection.execute("PRAGMA page_count").fetchone()[0]
    journal.database.connection.execute(f"PRAGMA max_page_count = {now + pages}")


@pytest.fixture(scope="module")
def scored(tiny_store):
    scorer = load_scorer(Store(tiny_store), "digits", "cpu")
    rows = scorer.read(data_of("digits").array[:40])
    return scorer, rows, scorer.score_read(rows)


def test_what_comes_together_is_written_together_and_in_order(made, scored):
    scorer, rows, scores = scored
    times = []
    journal = made(on_write=lambda seconds, number: times.append(number))

    async def ask():
        each = [journal.scores("key", f"r{at}", scorer.published, scores, rows) for at in range(100)]
        return await asyncio.gather(*each)

    batches = asyncio.run(ask())
    assert len(set(batches)) == 100
    assert sum(times) == 100
    assert len(times) < 60  # group commit
    found = records(journal.path)
    assert [record.request for record in found] == [f"r{at}" for at in range(100)]
    assert [str(RecordId(record.batch, 0)).partition(".")[0] for record in found] == batches


def test_a_record_says_what_the_scores_say_and_no_cell(made, scored):
    scorer, rows, scores = scored
    journal = made(kept=0.5)
    asyncio.run(journal.scores("key", "id", scorer.published, scores, rows))
    (record,) = records(journal.path)
    content = parsed(record, ScoresContent)
    assert [content.verdict(at) for at in range(40)] == scores.verdict
    assert content.p_values.tolist() == scores.p_value.tolist()
    assert content.model == "digits@1"
    assert content.rule == {"name": "band", "percentiles": list(scores.band.percentiles)}
    assert 5 < len(content.kept_rows()) < 35
    with Database(journal.path, KEY) as database:
        for at in content.kept_rows():
            cells = database.cells(RecordId(record.batch, at))
            assert np.frombuffer(cells, content.dtype).tolist() == rows[at].tolist()
            assert content.hash_of(at) == KEY.hash(cells)
    assert rows[0].tobytes() not in record.content


def test_reasons_are_those_that_are_told_in_words(any_scorer):
    scorer, rows = any_scorer
    rows = scorer.read(rows[:300])
    for rule in ("band", "combined") if scorer.calibration.statistics is not None else ("band",):
        from service.scoring.options import ScoreOptions

        scores = scorer.score_read(rows, ScoreOptions(rule))
        for code, reason in zip(reason_codes(scores).tolist(), scores.reasons(), strict=True):
            assert (code < 0) == (reason is None)
            if reason is not None and rule == "band":
                assert {"below": "less likely", "above": "more likely"}[NAMES[code]] in reason
            elif reason is not None and NAMES[code] != "too_likely":
                assert PHRASES[NAMES[code]] in reason


def test_required_fails_on_a_full_disk_and_recovers(made, scored):
    scorer, rows, scores = scored
    journal = made(kept=1.0)
    asyncio.run(journal.scores(None, "before", scorer.published, scores, rows))
    fill(journal)

    async def ask(number):
        each = [journal.scores(None, f"full{at}", scorer.published, scores, rows) for at in range(number)]
        return await asyncio.gather(*each, return_exceptions=True)

    for error in asyncio.run(ask(3)):
        assert isinstance(error, UnavailableError)
        assert "full" in str(error)
    assert "full" in journal.problem
    fill(journal, 10_000)
    asyncio.run(journal.scores(None, "after", scorer.published, scores, rows))
    assert journal.problem is None
    assert [one.request for one in records(journal.path)] == ["before", "after"]


def test_best_effort_counts_what_it_drops_and_says_so_in_the_chain(made, scored, monkeypatch):
    scorer, rows, scores = scored
    monkeypatch.setattr(writer, "RETRY_S", 0.05)
    dropped = []
    journal = made("best-effort", kept=1.0, on_drop=dropped.append)
    fill(journal)
    for at in range(3):
        asyncio.run(journal.scores(None, f"r{at}", scorer.published, scores, rows))
        wait_for(lambda at=at: sum(dropped) == 40 * (at + 1))
    assert journal.problem is not None
    fill(journal, 10_000)
    asyncio.run(journal.scores(None, "after", scorer.published, scores, rows))
    wait_for(lambda: journal.problem is None)
    journal.stop(Entry("stop", {}))
    assert [one.request for one in records(journal.path)] == ["after"]
    with Database(journal.path, KEY) as database:
        (told,) = [parsed_dict(one) for one in database.records("dropped")]
    assert (told["records"], told["rows"]) == (3, 120)


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def parsed_dict(record):
    import msgspec

    return msgspec.msgpack.decode(record.content)


def test_waiting_entries_are_bounded(made, scored, monkeypatch):
    scorer, rows, scores = scored
    dropped = []
    monkeypatch.setattr(writer, "LINGER_S", 0.3)
    monkeypatch.setattr(writer, "MOST_WAITING", 3 * (rows.nbytes + 40 * writer.ROW_BYTES))
    journal = made("best-effort", on_drop=dropped.append)

    async def ask():
        for at in range(10):
            await journal.scores(None, f"r{at}", scorer.published, scores, rows)

    asyncio.run(ask())
    assert sum(dropped) == 7 * 40
    journal.stop(Entry("stop", {}))
    assert len(records(journal.path)) == 3
    assert len(records(journal.path, "dropped")) == 1


def test_required_refuses_what_does_not_fit_and_waits_no_longer_than_the_deadline(made, scored, monkeypatch):
    scorer, rows, scores = scored
    journal = made()
    with Database(journal.path, KEY) as other:
        other.connection.execute("BEGIN IMMEDIATE")  # another process holds the lock

        async def ask():
            monkeypatch.setattr(writer, "MOST_WAITING", rows.nbytes + 40 * writer.ROW_BYTES)
            first = asyncio.create_task(journal.scores(None, "late", scorer.published, scores, rows, 0.2))
            await asyncio.sleep(0.1)
            second = journal.scores(None, "second", scorer.published, scores, rows, 0.2)
            third = journal.scores(None, "third", scorer.published, scores, rows, 0.2)
            return await asyncio.gather(first, second, third, return_exceptions=True)

        late, second, third = asyncio.run(ask())
        assert isinstance(late, UnavailableError)
        assert "in time" in str(late)
        assert {type(second), type(third)} <= {UnavailableError, OverloadedError}
        assert isinstance(third, OverloadedError)
        other.connection.execute("ROLLBACK")
    journal.stop(Entry("stop", {}))
    assert len(records(journal.path)) <= 1  # that which was under way; what nobody waits for any more is left out


def test_a_record_that_cannot_be_made_takes_no_other_along(made, scored):
    scorer, rows, scores = scored
    journal = made()

    async def ask():
        bad = journal.event(Entry("told", {"what": object()}))
        good = [journal.scores(None, f"r{at}", scorer.published, scores, rows) for at in range(3)]
        return await asyncio.gather(bad, *good, return_exceptions=True)

    bad, *good = asyncio.run(ask())
    assert isinstance(bad, UnavailableError)
    assert all(isinstance(one, str) for one in good)
    assert len(records(journal.path)) == 3


def test_a_journal_that_somebody_changes_is_written_no_more_and_says_so_without_its_path(made, scored):
    scorer, rows, scores = scored
    journal = made()
    with Database(journal.path, KEY) as other:
        other.connection.execute("DELETE FROM records")
    with pytest.raises(UnavailableError, match="changed by somebody else, and is written no more") as raised:
        asyncio.run(journal.scores(None, "id", scorer.published, scores, rows))
    assert str(journal.path) not in str(raised.value)
    assert journal.problem is not None


def test_best_effort_starts_on_a_full_disk(tmp_path, monkeypatch):
    Database(tmp_path / "journal", KEY, may_create=True).close()
    append = Database.append

    def full(self, entries):
        raise UnavailableError("the journal cannot be written: database or disk is full", 5.0)

    monkeypatch.setattr(Database, "append", full)
    journal = Journal(tmp_path / "journal", KEY, "required")
    with pytest.raises(UnavailableError):
        journal.start(START)
    journal.database.close()
    os.close(journal.lock)
    journal = Journal(tmp_path / "journal", KEY, "best-effort")
    journal.start(START)
    assert "full" in journal.problem
    monkeypatch.setattr(Database, "append", append)
    journal.stop(Entry("stop", {}))
    with Database(tmp_path / "journal", KEY) as database:
        assert [record.kind for record in database.records()][-1] == "stop"


def test_two_services_cannot_write_the_same_journal(made, tmp_path):
    made()
    with pytest.raises(JournalError, match="another service"):
        Journal(tmp_path / "journal", KEY).start(START)


def test_a_second_service_ends_with_one_line(made, tiny_store, tmp_path):
    made()
    (tmp_path / "key").write_text("x" * 32)
    named = {"JOURNAL": tmp_path / "journal", "JOURNAL_KEY": tmp_path / "key", "STORE": tiny_store, "PORT": 0}
    environment = os.environ | {f"VOUCH_{name}": str(value) for name, value in named.items()}
    command = [sys.executable, "-m", "service.cli", "serve"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "another service writes this journal" in done.stderr


def test_commands_may_append_while_a_service_writes(made, scored):
    scorer, rows, scores = scored
    journal = made()
    done = threading.Event()

    def append():
        for at in range(50):
            with Database(journal.path, KEY, durable=False) as database:
                database.append([Entry("ask", {"model": "m", "drawn": [], "others": [], "among": at})])
        done.set()

    async def ask():
        thread = threading.Thread(target=append)
        thread.start()
        number = 0
        while not done.is_set():
            await journal.scores(None, f"r{number}", scorer.published, scores, rows)
            number += 1
        thread.join()
        return number

    number = asyncio.run(ask())
    assert len(records(journal.path)) == number
    assert len(records(journal.path, "ask")) == 50


def test_batches_have_different_numbers_that_rise():
    found = [0]
    for _ in range(1000):
        found.append(next_batch(found[-1]))
    assert sorted(set(found)) == found


# What is synced, and what a kill leaves: in a process of its own

CHILD = """
import asyncio, sys
from pathlib import Path
from service.journal.chain import JournalKey
from service.journal.database import Entry
from service.journal.writer import Journal
journal = Journal(Path(sys.argv[1]), JournalKey.of(b"x" * 32), sys.argv[2])
journal.start(Entry("start", {}))
async def run():
    for number in range(int(sys.argv[3])):
        await journal.event(Entry("told", {"number": number}))
        print(number, flush=True)
asyncio.run(run())
"""


@pytest.mark.skipif(os.system("command -v strace > /dev/null") != 0, reason="strace is not installed")
def test_required_calls_fsync_before_it_answers(tmp_path):
    """Of the write-ahead log, for each record that is told, in this order."""
    trace = tmp_path / "trace"
    command = [sys.executable, "-c", CHILD, str(tmp_path / "journal"), "required", "5"]
    watched = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,write", "-o", str(trace), *command]
    subprocess.run(watched, check=True, capture_output=True, timeout=60)
    synced, told = 0, 0
    for line in trace.read_text().splitlines():
        if ("fsync(" in line or "fdatasync(" in line) and "journal-wal" in line:
            synced += 1
        if "write(1<" in line and f', "{told}' in line:
            told += 1
            assert synced > told  # the first record of all was synced, too
    assert told == 5


def test_what_was_told_is_there_after_a_kill(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path / "journal"), "required", "100000"]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = [process.stdout.readline() for _ in range(200)]
            process.kill()
            lines += process.stdout.read().splitlines()
        told = [int(line) for line in lines if line.strip()]
        with Database(tmp_path / "journal", KEY) as database:
            assert verified(database).faults == []
            written = [parsed_dict(record)["number"] for record in database.records("told")]
        last_run = written[len(written) - 1 - written[::-1].index(0) :]
        assert last_run[: len(told)] == told
