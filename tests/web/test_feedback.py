"""The journal over HTTP: record ids from every door, feedback and who may give it, a full disk, and nothing in logs."""

import hashlib
import io
import json
import logging
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from service.errors import JournalError
from service.journal.chain import JournalKey
from service.journal.contents import ASK, ScoresContent, parsed
from service.journal.database import Database, Entry
from service.journal.feedback import Realised, picked
from service.journal.verification import verified
from service.settings import Settings, SettingsError
from service.web.app import create_app
from service.web.feedback_schemas import FeedbackAnswer, ReviewsAnswer
from service.web.schemas import ScoresAnswer
from tests.models import ROWS, digits
from tests.tools import check_problem, eventually, npy
from tests.web.conftest import in_process_client

SECRET = "0123456789abcdef" * 4
KEY = JournalKey.of(SECRET.encode())
NPY = {"content-type": "application/x-npy"}
KEYS = {"caller": "score", "judge": "review id=judge", "other": "review models=grey id=other", "boss": "admin id=boss"}


@contextmanager
def serving(store, folder, **options):
    """A client of an application with a journal, and the application."""
    (folder / "journal.key").write_text(SECRET + "\n")
    settings = {"journal": folder / "journal", "journal_key": folder / "journal.key", **options}
    with in_process_client(store, **settings) as client:
        yield client, client.app.state.service.engine.recorder.journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("journal")


@pytest.fixture(scope="module")
def client(tiny_store, folder):
    lines = [f"{hashlib.sha256(key.encode()).hexdigest()} {what}" for key, what in KEYS.items()]
    (folder / "keys").write_text("\n".join(lines))
    options = {"api_keys_file": folder / "keys", "journal_rows": 1.0, "journal_mode": "required"}
    with serving(tiny_store, folder, **options) as (client, _):
        yield client


def by(key):
    return {"X-API-Key": key}


def records(folder, *kinds):
    with Database(folder / "journal", KEY) as database:
        result = verified(database)
        assert result.faults == []
        return list(database.records(*kinds))


def score(client, rows=ROWS, key="caller", **headers):
    answer = client.post("/score?model=digits", json={"instances": rows}, headers=by(key) | headers)
    assert answer.status_code == 200
    return [one["record"] for one in answer.json()["scores"]]


# Every door


def test_every_door_answers_with_record_ids_that_the_journal_has(client, folder):
    rows, array = {"instances": ROWS}, npy(digits()[:3])
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in ROWS)
    tensor = {"name": "x", "shape": [2, 64], "datatype": "FP32", "data": ROWS[:2]}
    key = by("caller")

    def found(path, headers=(), **options):
        answer = client.post(path, headers=key | dict(headers), **options)
        assert answer.status_code == 200, answer.text
        return answer

    ids = []
    plain = found("/score?model=digits", json=rows)
    ScoresAnswer.model_validate_json(plain.content)
    ids += [one["record"] for one in plain.json()["scores"]]
    ids += [one["record"] for one in found("/score?model=digits&rule=combined&explain=2", json=rows).json()["scores"]]
    ids += [one["record"] for one in found("/v1/models/digits:predict", json=rows).json()["predictions"]]
    streamed = found("/score.ndjson?model=digits", {"content-type": "application/x-ndjson"}, content=lines)
    ids += [json.loads(line)["record"] for line in streamed.text.splitlines()]
    answer = found("/score.npy?model=digits", NPY, content=array)
    named = [text.decode() for text in np.load(io.BytesIO(answer.content))["record"]]
    assert named == [f"{answer.headers['x-record']}.{row}" for row in range(3)]
    ids += named
    answer = found("/score.csv?model=digits", NPY, content=array)
    header, *table = answer.text.splitlines()
    ids += [line.split(",")[header.split(",").index("record")] for line in table]
    answer = found("/v2/models/digits/infer", json={"inputs": [tensor]})
    ids += [f"{answer.json()['parameters']['record']}.{row}" for row in range(2)]
    answer = found("/score.png?model=digits&explain=map", NPY, content=array)
    ids += [f"{answer.headers['x-record']}.{row}" for row in range(3)]
    assert len(set(ids)) == len(ids)
    contents = [parsed(record, ScoresContent) for record in records(folder, "scores")]
    assert {content.key for content in contents} == {hashlib.sha256(b"caller").hexdigest()[:12]}
    for one in ids:
        answer = client.post("/feedback", json={"record": one, "label": "unsure"}, headers=by("judge"))
        assert answer.status_code == 200, answer.text


def test_without_a_journal_there_is_no_record_and_no_feedback(in_process):
    answer = in_process.post("/score?model=digits", json={"instances": ROWS})
    assert "record" not in answer.json()["scores"][0]
    assert "x-record" not in answer.headers
    check_problem(in_process.post("/feedback", json={"record": "0pcr9gdbfde50.0", "label": "valid"}), 404)
    check_problem(in_process.get("/feedback?model=digits"), 404)


# Feedback


def test_feedback_is_kept_with_its_key_and_its_note_apart(client, folder):
    (record,) = score(client, ROWS[:1])
    body = {"record": record, "label": "invalid", "note": "Mrs Miller says no", "model": "digits"}
    answer = client.post("/feedback", json=body, headers=by("judge"))
    told = FeedbackAnswer.model_validate_json(answer.content)
    assert (told.record, told.label, told.model, told.has_row) == (record, "invalid", "digits@1", True)
    last = records(folder, "feedback")[-1]
    assert b"Miller" not in last.content
    with Database(folder / "journal", KEY) as database:
        assert database.note(last.number) == "Mrs Miller says no"
    listed = client.get("/feedback?model=digits&limit=1000", headers=by("judge"))
    reviews = ReviewsAnswer.model_validate_json(listed.content).reviews
    (one,) = [one for one in reviews if one.record == record]
    assert (one.label, one.own, one.drawn) == ("invalid", "invalid", False)
    assert np.array(one.row).reshape(-1).tolist() == ROWS[0]
    unanswered = client.get("/feedback?model=digits&answered=false", headers=by("judge")).json()["reviews"]
    assert record not in [one["record"] for one in unanswered]


@pytest.mark.parametrize(
    ("key", "status"), [("caller", 403), ("other", 403), ("judge", 200), ("boss", 200), (None, 401)]
)
def test_feedback_needs_the_scope_and_the_model(client, key, status):
    (record,) = score(client, ROWS[:1])
    headers = by(key) if key else {}
    answer = client.post("/feedback", json={"record": record, "label": "valid"}, headers=headers)
    assert answer.status_code == (404 if key == "other" else status)  # for which it does not exist
    assert client.get("/feedback?model=digits", headers=headers).status_code == status


def test_a_reviewer_may_see_models_and_neither_score_nor_change_anything(client):
    for path in ("/models/digits", "/models", "/calibration?model=digits", "/version"):
        assert client.get(path, headers=by("judge")).status_code == 200
    for path in ("/sample", "/examples", "/drift", "/metrics", "/docs"):
        assert client.get(path, headers=by("judge")).status_code == 403
    assert client.post("/score?model=digits", json={"instances": ROWS}, headers=by("judge")).status_code == 403
    alias = {"alias": "candidate", "version": "1"}
    assert client.post("/models/digits/aliases", json=alias, headers=by("judge")).status_code == 403


def test_the_last_refused_and_uncertain_rows_are_listed_latest_first(tiny_store, tmp_path):
    with serving(tiny_store, tmp_path, journal_rows=1.0, journal_mode="required") as (client, _):
        judged = []
        for rows in (ROWS[:3], [list(map(float, range(64)))], ROWS[3:]):
            answer = client.post("/score?model=digits&percentiles=40,60", json={"instances": rows}).json()
            judged = [*answer["scores"], *judged]
        client.post("/score?model=wine", json={"instances": [[1e6] * 13]})
        client.post("/score?model=digits&trial=1&percentiles=40,60", json={"instances": [list(map(float, range(64)))]})

        def listed(which, **options):
            query = {"model": "digits", "which": which, **options}
            answer = client.get("/feedback", params=query).json()
            ReviewsAnswer.model_validate(answer)
            return [one["record"] for one in answer["reviews"]]

        refused = [one["record"] for one in judged if one["verdict"] == "invalid"]
        assert listed("refused") == refused
        assert len(refused) >= 2
        assert listed("uncertain") == [one["record"] for one in judged if not one["certain"]]
        assert listed("asked") == []
        assert listed("refused", limit=1) == refused[:1]
        client.post("/feedback", json={"record": refused[0], "label": "valid"})
        assert listed("refused", answered="false") == refused[1:]
        assert listed("asked") == refused[:1]
        check_problem(client.get("/feedback?model=digits&which=all"), 422)


def test_rows_that_are_only_tried_are_recorded_and_neither_kept_nor_drawn(tiny_store, tmp_path):
    with serving(tiny_store, tmp_path, journal_rows=1.0, journal_mode="required") as (client, _):
        client.post("/score?model=digits&trial=1", json={"instances": ROWS})
        (served,) = client.post("/score?model=digits", json={"instances": ROWS[:1]}).json()["scores"]
    with Database(tmp_path / "journal", KEY) as database:
        contents = [parsed(record, ScoresContent) for record in database.records("scores")]
        assert [(one.trial, one.rows, len(one.kept_rows())) for one in contents] == [
            (True, len(ROWS), 0),
            (False, 1, 1),
        ]
        assert picked(database, "digits", 100, 100, np.random.default_rng(0)).drawn == [served["record"]]
        assert verified(database).faults == []


def test_the_realised_rate_counts_rows_that_were_drawn_at_random(tiny_store, tmp_path):
    with serving(tiny_store, tmp_path, journal_rows=1.0, journal_mode="required") as (client, _):
        rows = [*ROWS, list(map(float, range(64)))]
        scores = client.post("/score?model=digits&false_alarm=0.1", json={"instances": rows}).json()["scores"]
        with Database(tmp_path / "journal", KEY) as database:
            asked = picked(database, "digits", len(rows), 0, np.random.default_rng(0))
            database.append([Entry(ASK, asked)])
        for one in scores:
            assert client.post("/feedback", json={"record": one["record"], "label": "valid"}).status_code == 200
        realised = client.get("/feedback?model=digits&rate=1").json()["realised"]
    refused = sum(one["verdict"] == "invalid" for one in scores)
    assert (realised["valid"], realised["refused"]) == (len(rows), refused)
    assert realised["interval"] == pytest.approx(Realised(len(rows), refused).interval)


def test_a_request_id_names_a_row_or_several(client):
    score(client, ROWS[:1], **{"X-Request-Id": "one-row"})
    score(client, ROWS[:3], **{"X-Request-Id": "three-rows"})
    for _ in range(2):
        score(client, ROWS[:1], **{"X-Request-Id": "sent-twice"})

    def give(**body):
        return client.post("/feedback", json={"label": "valid", **body}, headers=by("judge"))

    assert give(request_id="one-row").status_code == 200
    assert give(request_id="three-rows", row=2).json()["record"].endswith(".2")
    assert "send `row`" in check_problem(give(request_id="three-rows"), 409).detail
    assert "`record` instead" in check_problem(give(request_id="sent-twice"), 409).detail
    check_problem(give(request_id="three-rows", row=3), 404)
    check_problem(give(request_id="never-sent"), 404)


ATTACKS = [
    ({}, 422),
    ({"label": "valid"}, 422),
    ({"record": "RECORD"}, 422),
    ({"record": "RECORD", "label": "wrong"}, 422),
    ({"record": "RECORD", "label": "valid", "request_id": "x"}, 422),
    ({"record": "RECORD", "label": "valid", "row": 0}, 422),
    ({"record": "RECORD", "label": "valid", "note": "s3cr3t" * 400}, 422),
    ({"record": "RECORD", "label": "valid", "more": "s3cr3t"}, 422),
    ({"record": "RECORD", "label": "valid", "model": "s3cr3t"}, 422),
    ({"record": "s3cr3t", "label": "valid"}, 404),
    ({"record": "s3cr3t" * 20, "label": "valid"}, 422),
    ({"request_id": "s3cr3t", "label": "valid"}, 404),
    ({"request_id": "x", "row": -1, "label": "valid"}, 422),
    ({"record": "RECORD", "label": "valid", "instance": "s3cr3t"}, 422),
    ({"record": "RECORD", "label": "valid", "instance": [1, 2]}, 422),
    ({"record": "RECORD", "label": "valid", "instance": ROWS[1]}, 422),
    ([], 422),
    ("s3cr3t", 422),
    ({"record": "RECORD", "label": "valid", "instance": [float("nan")]}, 400),
]


@pytest.mark.parametrize(("body", "status"), ATTACKS)
def test_wrong_feedback_is_refused_without_an_echo(client, body, status):
    (record,) = score(client, ROWS[:1])
    text = json.dumps(body).replace("RECORD", record)
    headers = by("judge") | {"content-type": "application/json"}
    check_problem(client.post("/feedback", content=text, headers=headers), status, "s3cr3t")


def test_feedback_has_to_be_declared_and_of_this_origin(client):
    (record,) = score(client, ROWS[:1])
    text = json.dumps({"record": record, "label": "valid"})
    check_problem(client.post("/feedback", content=text, headers=by("judge") | {"content-type": "text/plain"}), 415)
    check_problem(
        client.post("/feedback", content="{", headers=by("judge") | {"content-type": "application/json"}), 400
    )
    foreign = {"content-type": "application/json", "origin": "https://elsewhere.example"}
    check_problem(client.post("/feedback", content=text, headers=by("judge") | foreign), 403)


# A row that was not kept


def test_a_row_may_come_with_the_feedback_if_it_is_the_one_that_was_scored(tiny_store, tmp_path):
    with serving(tiny_store, tmp_path) as (client, _):
        answer = client.post("/score?model=digits", json={"instances": ROWS[:2]}, headers={"X-Request-Id": "mine"})
        record = answer.json()["scores"][0]["record"]
        eventually(lambda: records(tmp_path, "scores"))

        def give(row):
            return client.post("/feedback", json={"record": record, "label": "valid", "instance": row})

        assert client.post("/feedback", json={"record": record, "label": "valid"}).json()["has_row"] is False
        assert "not the row" in check_problem(give(ROWS[1]), 422).detail
        assert give(np.array(ROWS[0]).reshape(8, 8).tolist()).json()["has_row"] is True
        assert give(ROWS[0]).status_code == 200
        (one,) = client.get("/feedback?model=digits").json()["reviews"]
        assert np.array(one["row"]).reshape(-1).tolist() == ROWS[0]
    assert len(records(tmp_path, "feedback")) == 3


# Who did what


def test_the_journal_says_who_moved_an_alias_and_what_was_seen(client, folder):
    moved = {"alias": "candidate", "version": "1"}
    assert client.post("/models/digits/aliases", json=moved, headers=by("boss")).status_code == 200
    assert client.post("/models/digits/drift", json={"restart": True}, headers=by("boss")).status_code == 200
    (alias,) = [msgspec.msgpack.decode(one.content) for one in records(folder, "alias")]
    assert (alias["model"], alias["alias"], alias["version"], alias["key"]) == ("digits", "candidate", "1", "boss")
    (restart,) = [msgspec.msgpack.decode(one.content) for one in records(folder, "drift_restart")]
    assert (restart["model"], restart["key"]) == ("digits@1", "boss")
    eventually(lambda: len(records(folder, "catalog")) > 1)
    first, *_, last = [msgspec.msgpack.decode(one.content) for one in records(folder, "catalog")]
    assert set(first) == {"digits", "grey", "wine"}
    assert last["digits"]["aliases"]["candidate"] == "1"
    assert {msgspec.msgpack.decode(one.content)["model"] for one in records(folder, "version")} >= {"digits@1"}


def test_an_alarm_a_start_and_a_stop_are_recorded(tiny_store, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    with serving(tiny_store, tmp_path) as (client, _):
        assert client.post("/score?model=digits", content=npy(noise), headers=NPY).status_code == 200
    kinds = [record.kind for record in records(tmp_path)]
    assert kinds[0] == "start"
    assert kinds[-1] == "stop"
    (alarm,) = [msgspec.msgpack.decode(one.content) for one in records(tmp_path, "drift")]
    assert (alarm["model"], alarm["drifts"], alarm["direction"]) == ("digits@1", True, "low")


# A full disk


def fill(journal, pages=0):
    connection = journal.database.connection
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0] + pages}")


def test_a_full_disk_is_503_where_the_journal_is_required_and_a_drop_where_it_is_not(tiny_store, tmp_path):
    body = {"instances": ROWS * 20}
    for mode, status in (("required", 503), ("best-effort", 200)):
        (tmp_path / mode).mkdir()
        with serving(tiny_store, tmp_path / mode, journal_mode=mode, journal_rows=1.0) as (client, journal):
            assert client.post("/score?model=digits", json=body).status_code == 200
            eventually(lambda journal=journal: not journal.queue and not journal.waiting_bytes)
            fill(journal)
            answer = client.post("/score?model=digits", json=body)
            assert answer.status_code == status
            eventually(lambda client=client: "full" in client.get("/readyz").json()["held_back"].get("journal", ""))
            assert client.get("/readyz").status_code == 200
            check_problem(client.post("/feedback", json={"record": "0pcr9gdbfde50.0", "label": "valid"}), 404)
            if mode == "required":
                problem = check_problem(answer, 503)
                assert "the journal cannot be written" in problem.detail
                assert answer.headers["retry-after"] == "5"
                lines = client.post("/score.ndjson?model=digits", content=json.dumps(ROWS[0]))
                assert json.loads(lines.text)["status"] == 503
            else:
                assert "vouch_journal_dropped_rows_total 100.0" in client.get("/metrics").text
            fill(journal, 10_000)
            assert client.post("/score?model=digits", json=body).status_code == 200
            eventually(lambda client=client: "journal" not in client.get("/readyz").json()["held_back"])
    assert len(records(tmp_path / "required", "scores")) == 2
    assert len(records(tmp_path / "best-effort", "scores")) == 2
    (dropped,) = [msgspec.msgpack.decode(one.content) for one in records(tmp_path / "best-effort", "dropped")]
    assert dropped["rows"] == 100


# Logs, settings


def test_nothing_of_a_row_a_key_or_a_note_is_in_logs(tiny_store, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "keys").write_text(f"{hashlib.sha256(b'k3y').hexdigest()} score,review,admin id=k")
    with serving(tiny_store, tmp_path, api_keys_file=tmp_path / "keys", journal_rows=1.0) as (client, journal):
        body = {"instances": [[231.25] * 13]}
        record = client.post("/score?model=wine", json=body, headers=by("k3y")).json()["scores"][0]["record"]
        eventually(lambda: records(tmp_path, "scores"))
        said = {"record": record, "label": "invalid", "note": "Mr Smith", "instance": [231.25] * 13}
        assert client.post("/feedback", json=said, headers=by("k3y")).status_code == 200
        fill(journal)
        client.post("/score?model=wine", json={"instances": [[231.25] * 13] * 90}, headers=by("k3y"))
        eventually(lambda: journal.problem)
    logged = "\n".join(f"{one.getMessage()} {one.__dict__} {one.exc_text}" for one in caplog.records)
    assert "the journal cannot be written" in logged
    for secret in ("231.25", "k3y", "Smith", SECRET[:16]):
        assert secret not in logged


def test_settings_that_make_no_journal_are_refused(tiny_store, tmp_path):
    def make(**options):
        return create_app(Settings(store=str(tiny_store), store_cache=None, **options))

    with pytest.raises(SettingsError, match="VOUCH_JOURNAL_KEY"):
        make(journal=tmp_path / "journal")
    (tmp_path / "short").write_text("short")
    with pytest.raises(JournalError, match="expected at least 32"):
        make(journal=tmp_path / "journal", journal_key=tmp_path / "short")
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "journal").write_text("something else, not a journal\n" * 200)
    with pytest.raises(JournalError, match="journal"):
        make(journal=tmp_path / "journal", journal_key=tmp_path / "key")
    assert (tmp_path / "journal").read_text().startswith("something else")
