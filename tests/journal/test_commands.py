"""The commands on a journal: what people say becomes a version, and what an auditor asks is answered."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from service.cli import promotion
from service.journal.chain import JournalKey
from service.journal.contents import SCORES, FeedbackContent, RecordId, each_row
from service.journal.database import Database, Entry
from service.journal.verdicts import scores_content
from service.scoring.selftest import Caught, SelfTest, difference
from service.store.loading import load_scorer
from service.store.store import Store
from tests.models import made
from tests.models import write as write_people
from tests.tools import vouch

SECRET = "0123456789abcdef" * 4
KEY = JournalKey.of(SECRET.encode())


class Served:
    """A store with a model, and a journal of rows that it has scored: 240 valid ones, then 60 invalid ones."""

    def __init__(self, trained_models, folder, name="people"):
        self.folder, self.name = folder, name
        self.store = trained_models.store(folder / "store", name)
        (folder / "key").write_text(SECRET)
        self.options = ("--journal", folder / "journal", "--journal-key", folder / "key")
        self.in_store = ("--store", self.store.root)
        self.scorer = load_scorer(self.store, name, "cpu")
        valid = write_people(folder / "valid.csv", [row for row in made(700, seed=8) if "?" not in row][:240])
        self.rows = np.concatenate([self.read(valid), self.spoilt(self.read(valid)[:60])])
        self.ids = self.score(self.rows)

    def read(self, path):
        from service.cli.inputs import rows_for

        return rows_for(self.scorer.judging_reader(), path, None).of_model(path, self.scorer.model.input)

    @staticmethod
    def spoilt(rows):
        """Rows that are too tall for their city and age."""
        spoilt = rows.copy()
        spoilt[:, 0] += 60
        return spoilt

    def score(self, rows, batch=1 << 40):
        scores = self.scorer.score_read(rows)
        published = self.scorer.published
        model = str(published.reference), published.digest, published.card.input_digest
        content, cells = scores_content(KEY, None, model, scores, rows, np.ones(len(rows), dtype=bool), 1.0)
        with Database(self.folder / "journal", KEY, durable=False, may_create=True) as database:
            each = [(batch, at, one) for at, one in cells]
            database.append([Entry(SCORES, content, batch, "request", cells=each)])
        return [str(RecordId(batch, at)) for at in range(len(rows))]

    def answer(self, labels):
        """Answer as people would: the first 240 are valid, unless `labels` says otherwise."""
        with Database(self.folder / "journal", KEY, durable=False) as database:
            for record, label in labels.items():
                database.append([Entry("feedback", FeedbackContent("people", record, self.name, label))])

    def run(self, *arguments, status=0):
        done = vouch(*arguments, *self.options)
        assert done.returncode == status, done.stderr
        return done


@pytest.fixture
def served(trained_models, tmp_path):
    return Served(trained_models, tmp_path)


def test_from_answers_to_a_version(served):
    asked = served.run("feedback", "ask", "people", "--random", "300", "--seed", "1").stdout.split()
    assert sorted(asked) == sorted(served.ids)
    labels = dict.fromkeys(served.ids[:240], "valid") | dict.fromkeys(served.ids[240:], "invalid")
    labels |= dict.fromkeys(served.ids[:4], "unsure")
    served.answer(labels)
    listed = served.run("feedback", "list", "people", *served.in_store).stdout
    table = list(csv.DictReader(io.StringIO(listed)))
    assert len(table) == 300
    assert {row["label"] for row in table} == {"valid", "invalid", "unsure"}
    assert all(row["city"] in ("Bern", "Basel", "Chur") for row in table)
    one = served.run("feedback", "list", "people", "--unanswered", "--json", *served.in_store)
    assert one.stdout == ""

    told = served.run("evaluate", "people", "--feedback", "--cost-miss", "10", *served.in_store).stdout
    assert "drawn at random: 300 of 300 rows answered: 236 valid, 60 invalid, 4 unsure" in told
    assert re.search(
        r"as they were served, .*false alarms were [\d.]+ % \(\d+ of 236; .*whatever the unsure rows are", told
    )
    assert "Cheapest: " in told
    assert "drawn at random" in told

    done = served.run("calibrate", "people", "--feedback", "--false-alarm", "0.2", *served.in_store)
    assert "240 rows, drawn at random, that people call valid, or are unsure of" in done.stderr
    assert "4 unsure rows calibrate as if they were valid" in done.stderr
    assert "people@production is people@1 from now on, as it was served so far" in done.stderr
    catalog = served.store.catalog()
    assert catalog.serving["people"] == "1"
    assert catalog.versions["people"] == ("1", "2")
    card = served.store.load(served.store.resolve("people@2")).card
    assert card.calibration.data["rows"] + card.calibration.data["pilot_rows"] <= 240


def test_only_drawn_rows_calibrate(served):
    served.answer(dict.fromkeys(served.ids[:240], "valid"))
    done = served.run("calibrate", "people", "--feedback", *served.in_store, status=2)
    assert "nobody was asked about rows of model 'people': `vouch feedback ask people` draws some" in done.stderr
    assert served.store.catalog().versions["people"] == ("1",)


def test_rows_that_people_call_invalid_leave_a_file_and_a_window(served):
    data = write_people(served.folder / "more.csv", [row for row in made(900, seed=9) if "?" not in row][:300])
    rows = served.read(data)
    wrong = served.score(rows[:5], batch=1 << 41)
    served.run("feedback", "ask", "people", "--random", "305", "--seed", "0")
    served.answer(dict.fromkeys(served.ids[:100], "valid") | dict.fromkeys(wrong, "invalid"))
    done = served.run("calibrate", "people", data, "--feedback", *served.in_store)
    assert f"{data}: 5 rows that people call invalid are left out" in done.stderr
    assert "395 rows" in done.stderr
    done = served.run("calibrate", "people", "--window", "1h", *served.in_store)
    assert "300 rows of the last 1h, kept at random" in done.stderr
    assert "200 of them nobody has spoken of" in done.stderr
    served.answer(dict.fromkeys(served.ids[240:], "invalid"))
    done = served.run("calibrate", "people", "--window", "1h", *served.in_store)
    assert "240 rows of the last 1h, kept at random" in done.stderr


@pytest.mark.slow
def test_production_moves_only_after_an_alarm(served):
    """Of the monitor of all rows, not acknowledged since; with the true self-tests of both versions."""
    window = ("calibrate", "people", "--window", "30d", "--promote-if", "drift", *served.in_store)
    served.answer(dict.fromkeys(served.ids[240:], "invalid"))
    alarm = Entry("drift", {"model": "people@1", "drifts": True})
    for entry in (
        Entry("start", {}),
        Entry("drift", {"model": "people@1", "key": "one caller alone", "drifts": True}),
        Entry("drift", {"model": "people@7", "drifts": True}),
    ):
        with Database(served.folder / "journal", KEY, durable=False) as database:
            database.append([entry])
        assert (
            "people@production stays at people@1: its drift monitor has raised no alarm" in served.run(*window).stderr
        )
    with Database(served.folder / "journal", KEY, durable=False) as database:
        database.append([alarm, Entry("drift_restart", {"model": "people@1"})])
    assert "raised no alarm" in served.run(*window).stderr
    with Database(served.folder / "journal", KEY, durable=False) as database:
        database.append([alarm])
    done = served.run(*window)
    version = served.store.catalog().versions["people"][-1]
    assert f"people@production is people@{version}: people@1 drifts, and the self-test catches no less" in done.stderr
    assert served.store.catalog().serving["people"] == version


def test_a_version_is_not_judged_by_the_rows_that_calibrated_it(served):
    served.run("feedback", "ask", "people", "--random", "300", "--seed", "1")
    served.answer(dict.fromkeys(served.ids[:240], "valid") | dict.fromkeys(served.ids[240:], "invalid"))
    served.run("calibrate", "people", "--feedback", *served.in_store)
    done = served.run("evaluate", "people@2", "--feedback", *served.in_store, status=2)
    assert "240 of the valid and unsure rows calibrated people@2" in done.stdout
    assert "no valid row is left to judge people@2 by" in done.stderr
    assert "by the rules of people@1" in served.run("evaluate", "people@1", "--feedback", *served.in_store).stdout


def test_production_is_left_alone_if_the_calibration_fails(served):
    given = ("calibrate", "people", "--window", "1h", "--false-alarm", "0.00001", *served.in_store)
    assert "need at least" in served.run(*given, status=2).stderr
    assert served.store.catalog().aliases["people"] == {}


def test_only_what_is_served_is_replaced(served):
    served.run("calibrate", "people", "--window", "1h", *served.in_store)
    given = ("calibrate", "people@2", "--window", "1h", "--promote-if", "drift", *served.in_store)
    assert "people is served as version 1" in served.run(*given, status=2).stderr


def selftest(**shares):
    caught = tuple(Caught(spoil=spoil, rows=100, shares=(0.0, share)) for spoil, share in shares.items())
    return SelfTest(false_alarm=0.01, rules=("band", "combined"), rows=100, alarms=(0.01, 0.01), caught=caught)


def test_what_two_versions_catch_is_compared_way_by_way():
    change, worst = difference(selftest(one=0.5, two=0.9), selftest(one=0.7, two=0.6))
    assert change == pytest.approx(-0.05)
    assert worst == "two, -30.0 points"


@pytest.mark.parametrize(("share", "moves"), [(0.9, True), (0.86, True), (0.8, False)])
def test_a_version_that_catches_less_is_not_promoted(served, monkeypatch, share, moves):
    tests = [selftest(one=0.9, two=0.9), selftest(one=share, two=share)]
    monkeypatch.setattr(promotion, "selftests", lambda scorers, rows: tests)
    with Database(served.folder / "journal", KEY, durable=False) as database:
        database.append([Entry("drift", {"model": "people@1", "drifts": True})])
    done = served.run("calibrate", "people", "--window", "30d", "--promote-if", "drift", *served.in_store)
    assert ("catches no less" in done.stderr) == moves
    assert ("catches 10.0 points less" in done.stderr) != moves
    assert served.store.catalog().serving["people"] == ("2" if moves else "1")
    with Database(served.folder / "journal", KEY) as database:
        assert len(list(database.records("alias"))) == 1 + moves


def test_an_auditor_verifies_exports_prunes_and_erases(served):
    head = served.run("journal", "verify").stdout.strip()
    lines = [json.loads(line) for line in served.run("journal", "export").stdout.splitlines()]
    assert len(lines) == 300
    assert {line["record"] for line in lines} == set(served.ids)
    assert served.run("journal", "export", "--rows", "--out", served.folder / "all.jsonl").stdout == ""
    assert (served.folder / "all.jsonl").stat().st_mode & 0o077 == 0
    assert "1 rows and notes erased" in served.run("journal", "erase", "--record", served.ids[0]).stderr
    served.run("journal", "verify", "--head", head)
    assert "299 rows and notes erased" in served.run("journal", "erase", "--all").stderr
    assert "2 records pruned" in served.run("journal", "prune", "--older-than", "0m").stderr
    assert "it may have been pruned" in served.run("journal", "verify", "--head", head, status=1).stderr
    assert each_row(served.rows[:1])[0] not in (served.folder / "journal").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("journal", "prune"), "say what goes"),
        (("journal", "prune", "--older-than", "soon"), "expected an age"),
        (("journal", "prune", "--larger-than", "much"), "expected a size"),
        (("journal", "erase"), "say whose"),
        (("journal", "erase", "--record", "nonsense"), "no such record"),
        (("journal", "verify", "--head", "7"), "NUMBER:HASH"),
        (("feedback", "ask", "nobody"), "no verdict of model 'nobody'"),
        (("feedback", "ask", "people", "--random", "0"), "no row left"),
        (("feedback", "answer", "nonsense", "valid"), "no such record"),
        (("feedback", "answer", "IDS", "perhaps"), "perhaps"),
        (("calibrate", "people", "STORE"), "say which rows"),
        (("calibrate", "people", "--promote-if", "drift", "DATA", "STORE"), "goes with"),
        (("calibrate", "people", "--window", "0m", "STORE"), "no rows of the last 0m, kept at random"),
        (("calibrate", "people", "--feedback", "STORE"), "nobody was asked"),
        (("evaluate", "people", "--feedback", "STORE"), "nobody was asked"),
        (("evaluate", "people", "--feedback", "--limit", "3", "STORE"), "--limit"),
        (("feedback", "list", "nothing", "STORE"), "nobody was asked"),
        (("feedback", "ask", "people@1"), "without a version"),
        (("calibrate", "people", "--feedback", "--group", "x", "STORE"), "--group"),
        (("evaluate", "people", "STORE"), "say by which rows"),
        (("evaluate", "people", "--feedback", "--valid", "DATA", "STORE"), "say by which rows"),
        (("evaluate", "people", "--valid", "DATA", "STORE"), "go together"),
    ],
)
def test_what_makes_no_sense_is_one_line(people_once, arguments, problem):
    words = {"IDS": people_once.ids[0], "DATA": people_once.folder / "valid.csv"}
    given = [words.get(word, word) for word in arguments if word != "STORE"]
    given += people_once.in_store if "STORE" in arguments else ()
    done = vouch(*given, *people_once.options)
    assert done.returncode == 2, done.stdout
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def people_once(trained_models, tmp_path_factory):
    return Served(trained_models, tmp_path_factory.mktemp("served"))


def test_without_a_journal_or_a_key_the_options_are_named(tmp_path):
    (tmp_path / "key").write_text(SECRET)
    for given, problem in (
        ((), "--journal (or VOUCH_JOURNAL)"),
        (("--journal", tmp_path / "none"), "--journal-key"),
        (("--journal", tmp_path / "none", "--journal-key", tmp_path / "key"), "no such journal"),
    ):
        for command in (("journal", "verify"), ("journal", "export"), ("feedback", "ask", "people")):
            done = vouch(*command, *given)
            assert done.returncode == 2
            assert problem in done.stderr
    assert not (tmp_path / "none").exists()


def test_nothing_moves_where_an_alias_is_there_already(served):
    served.store.publish("people", replace(served.scorer.published.again(
        served.scorer.model, served.scorer.calibration, {}), fingerprints=None))  # fmt: skip
    served.store.set_alias("people", "production", "1")
    done = served.run("calibrate", "people@1", "--window", "1h", *served.in_store)
    assert "from now on" not in done.stderr
    assert Store(served.store.root).catalog().serving["people"] == "1"
