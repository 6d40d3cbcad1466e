"""Files as people have them are read right, or refused in one line that says what to do."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.data.detect import Detection
from service.data.survey import surveyed
from service.errors import DataError, RowError
from service.files.dialect import TextOptions
from service.files.tables import read_raw
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.train import train_table
from tests.models import PEOPLE
from tests.tools import running_service
from tests.ugly.files import HABITS, IGNORED, KINDS, ODD_TOKENS, REFUSALS, SPOILT, VALID, columns, text

RULE = ("--rule", "combined", "--false-alarm", "0.02")
NAMES = [*columns()]


@pytest.fixture(scope="module")
def canonical(tmp_path_factory):
    """What all of these files mean."""
    path = tmp_path_factory.mktemp("ugly") / "plain.csv"
    path.write_bytes(HABITS["plain"].write(columns()))
    return surveyed(read_raw(path))


@pytest.fixture(scope="module")
def store(canonical, tmp_path_factory):
    """Models trained on it: one by name, one of a file without a header, one that takes -999 for a missing cell."""
    root = tmp_path_factory.mktemp("ugly") / "store"
    trained = train_table(canonical.table, PEOPLE, canonical.schema, reading=canonical.reading)
    Store(root).publish("people", trained.draft)
    Store(root).set_default("people")
    return root


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    with running_service(store, tmp_path_factory.mktemp("log") / "log") as client:
        yield client


def options_of(flags):
    said = dict(zip(flags[::2], flags[1::2], strict=False))
    header = False if "--no-header" in flags else None
    options = TextOptions(said.get("--sep"), said.get("--decimal"), said.get("--encoding"), header)
    missing = (said["--na-values"],) if "--na-values" in said else ()
    return options, Detection(missing, said.get("--decimal"), said.get("--bad-cells", "stop"))


def read(path, flags=()):
    options, detection = options_of(flags)
    return surveyed(read_raw(path, options=options), detection)


def file_of(folder, habit, found, name="data"):
    path = folder / f"{name}{habit.suffix}"
    path.write_bytes(habit.write(found))
    return path


def with_true_names(survey, flags):
    """The columns by their names in the canonical file."""
    if "--no-header" not in flags:
        return list(survey.table.names)
    return [NAMES[int(name[1:]) - 1] for name in survey.table.names]


@pytest.mark.parametrize("name", HABITS)
def test_a_habit_changes_nothing(name, canonical, tmp_path):
    habit = HABITS[name]
    survey = read(file_of(tmp_path, habit, columns()), habit.flags)
    names = with_true_names(survey, habit.flags)
    kinds = dict(zip(names, (column.kind for column in survey.schema.columns), strict=False))
    assert {name: kind for name, kind in kinds.items() if kind != "ignored"} == KINDS
    for column, kind in KINDS.items():
        cells, expected = survey.table.columns[names.index(column)], canonical.table.column(column)
        if kind == "boolean":
            cells, expected = (
                np.array([None if c is None else c.lower()[0] in "yto" and c.lower() != "off" for c in one])
                for one in (cells, expected)
            )
        np.testing.assert_array_equal(cells, expected)


def test_there_are_many_of_them():
    assert len(HABITS) + len(REFUSALS) >= 60
    assert set(NAMES) == {*KINDS, *IGNORED}


def verdicts_by_command(path, store, flags):
    """The verdicts of `vouch score`."""
    flags = [flag for flag in flags if flag not in ("--na-values", "-999")]
    done = CliRunner().invoke(app, ["score", str(path), "--store", str(store), *RULE, *flags])
    assert done.exit_code == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    at = header.split(",").index("verdict")
    return [line.split(",")[at] for line in lines]


def verdicts_by_http(client, content):
    answer = client.post("/score?rule=combined&false_alarm=0.02", content=content, headers={"content-type": "text/csv"})
    assert answer.status_code == 200, answer.text
    return [score["verdict"] for score in answer.json()["scores"]]


SCORED = [name for name, habit in HABITS.items() if "--no-header" not in habit.flags and not habit.has_unit]


@pytest.mark.parametrize("name", SCORED)
def test_a_valid_row_passes_and_a_spoilt_one_does_not(name, store, client, tmp_path):
    """In the file's own words, by the command line and, where it can be a body, over HTTP."""
    habit = HABITS[name]
    rows = [VALID, SPOILT, *({name: cells[at] for name, cells in columns().items()} for at in range(4))]
    found = {column: [row[column] for row in rows] for column in NAMES}
    path = file_of(tmp_path, habit, found)
    expected = ["valid", "invalid"]
    if "--na-values" not in habit.flags:
        assert verdicts_by_command(path, store, habit.flags)[:2] == expected
    if habit.by_http and "--na-values" not in habit.flags:
        assert verdicts_by_http(client, path.read_bytes())[:2] == expected


@pytest.mark.parametrize("name", [name for name, habit in HABITS.items() if habit.has_unit])
def test_a_unit_is_read_by_the_model_that_knows_it(name, store, canonical, tmp_path):
    survey = read(file_of(tmp_path, HABITS[name], columns()))
    spec = load_scorer(Store(store), "people", "cpu").model.input
    some = {column: [VALID[column]] * 3 for column in NAMES}
    raw = read_raw(file_of(tmp_path, HABITS[name], some, "some"), known=NAMES)
    numbers = spec.reader(survey.reading).row({column: VALID[column] for column in KINDS}, 0, [])
    np.testing.assert_array_equal(spec.reader(survey.reading).table(raw)[0], numbers)
    with pytest.raises(RowError, match="text, expected a number"):
        replace(spec.reader(canonical.reading), is_strict=True).table(raw)


def test_a_json_row_is_judged_alike(client):
    numbers = {name: float(VALID[name]) for name in ("height", "income", "growth", "visits", "grade")}
    for member in ("yes", True, "TRUE", 1, "on"):
        rows = [VALID | numbers | {"member": member}, SPOILT | {"member": member}]
        answer = client.post("/score?rule=combined&false_alarm=0.02", json={"instances": rows})
        assert answer.status_code == 200, answer.text
        assert [score["verdict"] for score in answer.json()["scores"]] == ["valid", "invalid"]
    assert json.loads(client.get("/models/people").text)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_line_that_helps(name, tmp_path):
    refusal = REFUSALS[name]
    path = tmp_path / f"data{refusal.suffix}"
    path.write_bytes(refusal.content)
    command = ["train", str(path), "--name", "x", "--store", str(tmp_path / "store"), *refusal.flags]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vouch: ")]
    assert re.search(refusal.says, line), line
    assert path.name in line
    assert not (tmp_path / "store").exists()
    for flags in refusal.remedies:
        read(path, flags)


@pytest.mark.parametrize("token", ODD_TOKENS)
def test_one_odd_token_among_a_thousand_numbers_leaves_them_numbers(token, canonical, tmp_path):
    """The column stays one of numbers, and the rest of it as it was; or training stops with the line."""
    found = columns()
    found["income"][10] = token
    path = tmp_path / "data.csv"
    path.write_text(text(found))
    try:
        survey = read(path)
    except DataError as error:
        assert f"1 x '{token}', first in line 12" in str(error).replace('"', "'")  # noqa: PT017
        survey = read(path, ("--bad-cells", "missing"))
    cells, expected = survey.table.column("income"), canonical.table.column("income").copy()
    assert [column.kind for column in survey.schema.columns if column.name == "income"] == [
        "real" if token == "(5)" else "positive"
    ]
    if not np.isnan(cells[10]):
        assert cells[10] == {"$5": 5.0, "(5)": -5.0}[token]
    cells[10] = expected[10] = np.nan
    np.testing.assert_array_equal(cells, expected)


def test_nine_million_is_invalid_where_a_token_was_missing(canonical, client):
    """The model that any of these files trains: 9,999,999 is invalid in each column of numbers."""
    numbers = {name: float(VALID[name]) for name in ("height", "income", "growth", "visits", "grade")}
    for name in numbers:
        row = VALID | numbers | {name: 9_999_999}
        answer = client.post("/score?rule=combined&false_alarm=0.02", json={"instances": [row]})
        assert answer.json()["scores"][0]["verdict"] == "invalid", name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Excel's Unicode text", "typed"])
def test_a_command_trains_on_it(name, tmp_path):
    """The whole way: train, then score the file's own rows."""
    habit = HABITS.get(name, HABITS["Parquet with types of all kinds"])
    path = file_of(tmp_path, habit, columns())
    store = tmp_path / "store"
    done = CliRunner().invoke(
        app, ["train", str(path), "--name", "x", "--store", str(store), "--epochs", "3", *habit.flags]
    )
    assert done.exit_code == 0, done.stderr
    verdicts = verdicts_by_command(path, store, habit.flags)
    assert np.mean([verdict == "invalid" for verdict in verdicts]) < 0.1
