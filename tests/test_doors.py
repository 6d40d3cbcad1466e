"""A row is read alike by every door: the same score to the last bit, or the same error."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from service.cli.app import app
from service.cli.main import COMMANDS
from service.data.cells import Reading
from service.data.table import MISSING, Table
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.train import train_table
from tests.models import COLUMNS, PEOPLE, made
from tests.tools import running_service

USUAL = {
    "height": 176.8, "income": 11174.42, "age": 26, "gain": 0.0, "city": "Basel", "member": "no", "grade": 3, "flag": "True"
}  # fmt: skip
READABLE = {
    "as it is": {},
    "empty cells": {"city": "", "income": ""},
    "no cells": {"city": None, "income": None},
    "question marks": {"city": "?", "income": "?"},
    "words for missing": {"city": "N/A", "age": "null", "gain": "None"},
    "the training file's own word for missing": {"city": "gone", "income": "Gone"},
    "a trained category called NA": {"member": "NA"},
    "a boolean": {"flag": True},
    "the other boolean, in capitals": {"flag": "FALSE"},
    "a boolean where numbers are grades": {"grade": True},
    "padded text": {"city": "  Basel ", "age": " 26"},
    "numbers as text": {"income": "11174.42", "grade": "3", "age": "2.6e1"},
    "a number for text": {"city": 7},
    "a city that was never seen": {"city": "Atlantis"},
    "columns that training ignored": {"visited": "2024-05-06", "serial": 17},
}
UNREADABLE = {
    "text for a number": {"age": "old"},
    "text for a grade": {"grade": "good"},
    "a boolean for a number": {"age": False},
    "infinity": {"income": "-inf"},
    "more than a float32 holds": {"income": "1e39"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A model with a trained category called NA, whose card says how its training file was read."""
    texts = [[None if cell == "?" else cell for cell in row] for row in made(400)]
    columns = {
        name: np.array(cells, dtype=object) for name, cells in zip(COLUMNS, zip(*texts, strict=True), strict=True)
    }
    for name in ("height", "income", "age", "gain", "grade"):
        columns[name] = np.array([np.nan if cell is None else float(cell) for cell in columns[name]])
    random = np.random.default_rng(5)
    columns["member"][random.random(400) < 0.2] = "NA"
    columns["flag"] = np.where(random.random(400) < 0.7, "True", "False").astype(object)
    draft = train_table(Table(tuple(columns), tuple(columns.values())), PEOPLE).draft
    reading = Reading(missing=(*MISSING, "gone"), ignored=("visited", "serial"))
    root = tmp_path_factory.mktemp("doors") / "store"
    Store(root).publish("people", replace(draft, reading=reading))
    return root


@pytest.fixture(scope="module")
def scorer(store):
    return load_scorer(Store(store), "people", "cpu", threads=1)


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    with running_service(store, tmp_path_factory.mktemp("log") / "log") as client:
        yield client


def as_csv(row):
    text = io.StringIO()
    csv.writer(text).writerows([row, ["" if cell is None else cell for cell in row.values()]])
    return text.getvalue()


def as_parquet(row, path):
    kinds = {name: pa.string() if cell is None else None for name, cell in row.items()}
    pq.write_table(pa.table({name: pa.array([cell], kinds[name]) for name, cell in row.items()}), path)


def http(client, body, content_type, query=""):
    """The score of a body's only row, or its first fault."""
    answer = client.post(f"/score{query}", content=body, headers={"content-type": content_type})
    document = json.loads(answer.text)
    if content_type != "application/x-ndjson":
        if answer.status_code == 200:
            return score_of(document["scores"][0])
        assert answer.status_code == 422
    if "log_likelihood" in document:
        return score_of(document)
    fault = document["errors"][0]
    return f"row {fault['row']}, column {fault['column']!r}: {fault['message']}, expected {fault['expected']}"


def score_of(document):
    numbers = tuple(document[name] for name in ("verdict", "log_likelihood", "std_error", "p_value"))
    told = document.get("violations")
    if isinstance(told, list):
        told = "; ".join(f"{one['column']}: {one['message']}" if one["column"] else one["message"] for one in told)
    return *numbers, told


def vouch(*command):
    """What a command of the command line did, in this process: None, or what it complained of."""
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code in (0, 2), done.output
    return None if done.exit_code == 0 else done.stderr


def scored(path, store, *options):
    """By `vouch score`."""
    out = path.with_name(f"{path.name}-scored.jsonl")
    return vouch("score", path, "--model", "people", "--store", store, "--out", out, *options) or score_of(
        json.loads(out.read_text())
    )


def filtered(path, store, *options):
    """By `vouch filter`."""
    out = path.with_name(f"{path.name}-filtered")
    command = "filter", path, "--out", out, "--model", "people", "--store", store, "--workers", 1, *options
    if error := vouch(*command):
        return error
    (file,) = (out / "scores").iterdir()
    return score_of(pq.read_table(file).to_pylist()[0])


def through_every_door(client, store, folder, row, is_strict=False):
    query, strict = ("?strict=1", ["--strict"]) if is_strict else ("", [])
    files = {kind: folder / f"row.{kind}" for kind in ("csv", "jsonl", "parquet")}
    files["csv"].write_text(as_csv(row))
    files["jsonl"].write_text(json.dumps(row) + "\n")
    as_parquet(row, files["parquet"])
    return {
        "HTTP JSON": http(client, json.dumps({"instances": [row]}), "application/json", query),
        "HTTP NDJSON": http(client, json.dumps(row), "application/x-ndjson", query),
        "HTTP CSV": http(client, as_csv(row), "text/csv", query),
        "filter .jsonl": filtered(files["jsonl"], store, *strict),
        "filter .csv": filtered(files["csv"], store, *strict),
        "filter .parquet": filtered(files["parquet"], store, *strict),
        "score .csv": scored(files["csv"], store, *strict),
        "score .parquet": scored(files["parquet"], store, *strict),
    }


@pytest.mark.parametrize("change", READABLE.values(), ids=list(READABLE))
def test_a_row_scores_alike_through_every_door(client, store, tmp_path, change):
    assert COMMANDS
    answers = through_every_door(client, store, tmp_path, USUAL | change)
    assert all(isinstance(answer, tuple) for answer in answers.values()), answers
    assert len(set(answers.values())) == 1, answers


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=list(UNREADABLE))
def test_an_unreadable_cell_makes_its_row_invalid_at_every_door(client, store, scorer, tmp_path, change):
    answers = through_every_door(client, store, tmp_path, USUAL | change)
    assert len(set(answers.values())) == 1, answers
    verdict, log_likelihood, _, p_value, told = answers["HTTP JSON"]
    (name,) = change
    assert verdict == "invalid"
    assert told.startswith(f"{name}: ")
    assert "a number was expected" in told
    readable = scorer.score([USUAL | {name: None}])  # its log p(x) is that of the cells that can be read
    assert log_likelihood == readable.log_likelihood[0]
    assert p_value == 2 / (scorer.band.rows + 1)


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=list(UNREADABLE))
def test_an_unreadable_cell_is_the_same_error_at_every_strict_door(client, store, tmp_path, change):
    answers = through_every_door(client, store, tmp_path, USUAL | change, is_strict=True)
    expected = answers["HTTP JSON"]
    assert isinstance(expected, str)
    for door, answer in answers.items():
        assert isinstance(answer, str), door
        line = {"score .csv": 2, "filter .csv": 2, "filter .jsonl": 1}.get(door)
        assert (expected if line is None else expected.replace("row 0", f"line {line}")) in answer, door


def test_what_is_missing_and_what_is_a_category_is_decided_by_the_training_data(scorer):
    places = {name: scorer.model.input.columns.index(name) for name in USUAL}
    usual = scorer.reader.row(USUAL, 0, [])

    def cell(name, value):
        faults = []
        row = scorer.reader.row(USUAL | {name: value}, 0, faults)
        assert not faults
        return row[places[name]]

    member = scorer.model.input.transform.columns[places["member"]]
    assert cell("member", "NA") == member.values.index("NA")
    assert np.isnan(cell("city", "NA"))
    assert np.isnan(cell("city", "gone"))
    assert cell("flag", True) == cell("flag", "true") == usual[places["flag"]]
    assert cell("age", "26") == 26.0


def test_an_unknown_column_is_refused_by_name_over_http_and_passed_over_in_files(client, store, tmp_path):
    row = USUAL | {"shoe size": 43}
    for body, kind in ((json.dumps({"instances": [row]}), "application/json"), (as_csv(row), "text/csv")):
        answer = client.post("/score", content=body, headers={"content-type": kind})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["column"] == "shoe size"
        assert answer.json()["errors"][0]["message"] == "unknown column"
    (tmp_path / "row.csv").write_text(as_csv(row))
    assert isinstance(filtered(tmp_path / "row.csv", store), tuple)
    assert isinstance(scored(tmp_path / "row.csv", store), tuple)


def test_an_older_card_is_read_with_the_usual_words(scorer):
    card = json.loads(scorer.published.card.model_dump_json())
    del card["reading"]
    assert type(scorer.published.card).model_validate(card).reading == Reading()


def test_training_tells_the_card_which_columns_it_ignored():
    number = 400
    random = np.random.default_rng(0)
    columns = {
        "x": random.normal(size=number),
        "y": random.normal(size=number),
        "id": np.array([f"row-{at}" for at in range(number)], dtype=object),
        "day": np.array([f"2024-01-{1 + at % 28:02d}" for at in range(number)], dtype=object),
        "constant": np.full(number, 7.0),
    }
    recipe = replace(PEOPLE, fit=replace(PEOPLE.fit, epochs=1), prior="normal")
    draft = train_table(Table(tuple(columns), tuple(columns.values())), recipe).draft
    assert draft.reading.ignored == ("id", "day", "constant")
