"""A model of a mixed table with holes, from its file to the service's answers."""

import csv
import io

import numpy as np
import pytest

from service.errors import DataError
from service.files.tables import read_table
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.train import train_table
from tests.models import COLUMNS, PEOPLE, ROW, complete, made, with_few_patterns, write
from tests.tools import check_problem, npy, running_service


@pytest.fixture(scope="module")
def store(people_store):
    return people_store


@pytest.fixture(scope="module")
def scorer(store):
    return load_scorer(Store(store), "people", "cpu", threads=1)


@pytest.fixture(scope="module")
def fresh(scorer, tmp_path_factory):
    """Rows that it has not seen."""
    table = read_table(write(tmp_path_factory.mktemp("fresh") / "fresh.csv", made(1200, seed=1)))
    return scorer.rows(scorer.model.input.array(table))


def test_columns_are_what_they_look_like(scorer):
    kinds = {column.name: column.kind for column in scorer.model.input.transform.columns}
    assert kinds == {
        "height": "real", "income": "positive", "age": "count", "gain": "real", "city": "category", "member": "boolean",
        "grade": "ordinal",
    }  # fmt: skip
    assert dict(zip(COLUMNS, scorer.model.input.transform.columns, strict=True))["gain"].atoms == (0.0,)


def accepted(scores):
    return float((scores.sides == 0).mean())


def test_complete_rows_are_accepted_as_often_as_the_band_says(scorer, fresh):
    rows = complete(fresh)
    error = 3.0 * np.sqrt(0.25 * (1 / len(rows) + 1 / len(scorer.calibration.scores)))
    assert abs(accepted(scorer.score(rows)) - 0.5) < error


@pytest.mark.parametrize("hidden", [["income"], ["city", "grade"], ["height", "age", "gain", "member"]])
def test_rows_with_holes_are_accepted_as_often_as_complete_ones(scorer, fresh, hidden):
    rows = complete(fresh).copy()
    rows[:, [COLUMNS.index(name) for name in hidden]] = np.nan
    scores = scorer.score(rows)
    assert (scores.missing == len(hidden)).all()
    beside = scorer.patterns.reference_rows(np.isnan(rows[0]))
    assert 200 <= len(beside) <= 1000
    assert abs(accepted(scores) - 0.5) < 3.0 * np.sqrt(0.25 * (1 / len(rows) + 1 / len(beside)))


@pytest.mark.slow
def test_a_row_scores_the_same_in_any_company(scorer, fresh):
    rows = with_few_patterns(fresh, 60, patterns=4)
    assert np.isnan(rows).any()
    together = scorer.score(rows)
    backwards = scorer.score(rows[::-1].copy())
    for name in ("log_likelihood", "std_error", "p_value", "low", "high", "missing"):
        assert (getattr(together, name) == getattr(backwards, name)[::-1]).all(), name
    alone = [scorer.score(rows[at : at + 1]).log_likelihood[0] for at in range(20)]
    assert (together.log_likelihood[:20] == alone).all()


def test_a_cell_that_contradicts_the_others_makes_a_row_less_likely(scorer, fresh):
    rows = complete(fresh)[:100]
    before = scorer.score(rows).log_likelihood
    city, height, age = (COLUMNS.index(name) for name in ("city", "height", "age"))
    spoilt = rows.copy()
    spoilt[:, height] += 60
    assert (scorer.score(spoilt).log_likelihood < before - 3).mean() > 0.95
    unseen = rows.copy()
    unseen[:, city] = len(scorer.model.input.transform.columns[city].values)
    assert (scorer.score(unseen).log_likelihood < before).mean() > 0.95
    far = rows.copy()
    far[:, age] = 1e30
    scores = scorer.score(far)
    assert np.isfinite(scores.log_likelihood).all()
    assert (scores.sides == -1).all()


def test_holes_are_filled_with_what_the_other_cells_say(scorer, fresh):
    rows = complete(fresh)[:200]
    at = COLUMNS.index("height")
    holed = rows.copy()
    holed[:, at] = np.nan
    answer = scorer.reconstruct(holed, draws=3)
    error = np.sqrt(np.mean((answer.mean[:, at] - rows[:, at]) ** 2))
    assert error < 0.75 * rows[:, at].std()
    city = answer.draws[..., COLUMNS.index("city")]
    assert set(np.unique(city)) <= {0.0, 1.0, 2.0}
    np.testing.assert_allclose(answer.feature_log_likelihood[:, at], 0.0, atol=1e-12)


def test_what_a_version_carries_for_rows_with_holes_is_stored(store, scorer):
    again = load_scorer(Store(store), "people", "cpu", threads=1)
    assert (again.calibration.reference.rows == scorer.calibration.reference.rows).all()
    assert np.isfinite(again.calibration.reference.rows).all()
    assert again.calibration.reference.missing.mean() == pytest.approx(0.03, abs=0.01)


def test_a_table_of_which_nothing_can_be_learnt_is_refused(tmp_path):
    table = read_table(write(tmp_path / "t.csv", [["1"] * len(COLUMNS)] * 50))
    with pytest.raises(DataError, match=r"no usable column \(height: constant"):
        Store(tmp_path / "store").publish("t", train_table(table, PEOPLE).draft)
    assert not (tmp_path / "store").exists()


# The service


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    with running_service(store, tmp_path_factory.mktemp("log") / "log") as client:
        yield client


def test_rows_come_by_name_by_position_and_as_csv(client, scorer):
    by_name = client.post("/score", json={"instances": [ROW]}).json()["scores"][0]
    by_position = client.post("/score", json={"instances": [list(ROW.values())]}).json()["scores"][0]
    text = io.StringIO()
    csv.writer(text).writerows([reversed(ROW), [str(value) for value in reversed(ROW.values())]])
    as_csv = client.post("/score", content=text.getvalue(), headers={"content-type": "text/csv"}).json()["scores"][0]
    assert by_name == by_position == as_csv
    assert "missing" not in by_name
    line = client.post("/score", content=b'["x"]\n', headers={"content-type": "application/x-ndjson"})
    assert line.json()["status"] == 422


def test_a_null_is_a_hole_and_an_unseen_category_no_error(client, scorer):
    rows = [{**ROW, "city": None, "income": None}, {**ROW, "city": "Atlantis"}]
    holed, unseen = client.post("/score", json={"instances": rows}).json()["scores"]
    assert holed["missing"] == 2
    assert holed["band"][0] < holed["band"][1]
    assert (
        unseen["log_likelihood"]
        < client.post("/score", json={"instances": [ROW]}).json()["scores"][0]["log_likelihood"]
    )
    array = np.array([[181.2, 31000.5, 52, 0, np.nan, np.nan, 4]])
    binary = client.post("/score", content=npy(array), headers={"content-type": "application/x-npy"})
    assert binary.json()["scores"][0]["missing"] == 2


def test_what_no_column_can_read_is_refused_with_its_place(client):
    anything = "text or a number"
    for cell, expected in (({"age": "old"}, "a number"), ({"city": [3]}, anything), ({"age": {"of": 3}}, anything)):
        problem = check_problem(client.post("/score?strict=1", json={"instances": [ROW, {**ROW, **cell}]}), 422)
        (fault,) = problem.errors
        assert (fault.row, fault.column, fault.expected) == (1, next(iter(cell)), expected)
    check_problem(client.post("/score", json={"instances": [{**ROW, "extra": 1}]}), 422)


def test_answers_are_in_the_tables_own_words(client):
    sampled = client.get("/sample?num=5&seed=1").json()["samples"]
    assert {row[COLUMNS.index("city")] for row in sampled} <= {"Bern", "Basel", "Chur"}
    (answer,) = client.post("/reconstruct?draws=2", json={"instances": [{**ROW, "city": None}]}).json()[
        "reconstructions"
    ]
    assert answer["mean"][COLUMNS.index("city")] == "Bern"
    assert len(answer["draws"]) == 2
    assert client.post("/decode", json={"latents": [[0.0, 0.0, 0.0]]}).json()["means"][0][COLUMNS.index("member")] in (
        "yes",
        "no",
    )
    example = client.get("/openapi.json").json()["paths"]["/score"]["post"]["requestBody"]["content"][
        "application/json"
    ]["example"]
    assert client.post("/score", json=example).status_code == 200


@pytest.mark.slow
def test_ever_new_patterns_are_refused_beyond_what_may_wait_and_are_learnt_bit_by_bit(store, tmp_path):
    rare = (
        ["age", "gain", "city"],
        ["age", "gain", "grade"],
        ["city", "grade", "gain"],
        ["age", "city", "grade", "gain"],
    )
    rows = [{**ROW, **dict.fromkeys(names)} for names in rare]
    with running_service(store, tmp_path / "log", max_queue_evaluations="150000") as client:
        answers = [client.post("/score", json={"instances": rows}) for _ in range(5)]
        statuses = [answer.status_code for answer in answers]
        assert statuses[0] == 429
        assert statuses[-1] == 200
        assert statuses == sorted(statuses, reverse=True)
