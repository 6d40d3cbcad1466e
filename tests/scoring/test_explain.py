"""Columns to blame, from the Scorer to the answers of the service and the command line; ensembles beside one network."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.density.ensemble import mean_density
from service.errors import CalibrationError, InputError
from service.files.tables import read_table
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.store.loading import load_scorer
from service.store.store import Store
from tests.models import COLUMNS, ROW, complete, digits, made, write
from tests.tools import check_problem, npy, running_service


@pytest.fixture(scope="module")
def store(trained_models, tmp_path_factory):
    """A single network."""
    return trained_models.store(tmp_path_factory.mktemp("explain") / "store", "people").root


@pytest.fixture(scope="module")
def several(store, trained_models):
    """An ensemble of three with a mixture prior, in the same store."""
    shutil.copytree(trained_models.trained("several"), store / "several")
    return load_scorer(Store(store), "several", "cpu", threads=1)


@pytest.fixture(scope="module", params=["people", pytest.param("several", marks=pytest.mark.slow)])
def scorer(request, store):
    if request.param == "several":
        return request.getfixturevalue("several")
    return load_scorer(Store(store), "people", "cpu", threads=1)


@pytest.fixture(scope="module")
def rows(scorer, tmp_path_factory):
    """Complete rows that it has not seen."""
    count = (
        700 if scorer.published.reference.name == "people" else 400
    )  # of three networks each costs three times as much
    table = read_table(write(tmp_path_factory.mktemp("fresh") / "fresh.csv", made(count, seed=1)))
    return complete(scorer.rows(scorer.model.input.array(table)))


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    with running_service(store, tmp_path_factory.mktemp("log") / "log") as client:
        yield client


def test_explaining_changes_no_score(scorer, rows):
    plain, explained = scorer.score(rows[:50]), scorer.score(rows[:50], ScoreOptions(explain=2))
    for name in ("log_likelihood", "std_error", "p_value", "khat", "sides", "certain"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(explained, name))
    assert explained.columns.shape == (50, 2)


def test_p_values_of_valid_cells_hold(scorer, rows):
    scores = scorer.score(rows, ScoreOptions(explain=len(COLUMNS)))
    assert (np.sort(scores.columns, axis=1) == np.arange(len(COLUMNS))).all()
    assert (np.diff(scores.column_p_value, axis=1) >= 0).all()
    for level in (0.05, 0.2):
        share = (scores.column_p_value <= level).mean()
        assert share < level + 3 * np.sqrt(level / len(rows))
        assert share > 0.6 * level


@pytest.mark.parametrize(
    ("name", "spoil", "expected"),
    [
        ("height", lambda height: height + 80, lambda row: (140, 200)),
        ("income", lambda income: income * 100, lambda row: (5e3, 6e5)),
        ("gain", lambda gain: 0 * gain + 1e7, lambda row: (-1, 2e4)),
        ("city", lambda city: 0 * city + 3, None),
    ],
)
def test_a_spoilt_cell_is_blamed_and_what_belonged_there_is_said(scorer, rows, name, spoil, expected):
    at = COLUMNS.index(name)
    spoilt = rows[:60].copy()
    spoilt[:, at] = spoil(spoilt[:, at])
    scores = scorer.score(spoilt, ScoreOptions(explain=1))
    assert (scores.columns[:, 0] == at).mean() > 0.9
    blamed = scores.columns[:, 0] == at
    assert (scores.column_p_value[blamed] < 0.02).mean() > 0.9
    if expected is None:
        assert (scores.expected_probability[blamed] > 0.3).all()
        truth = rows[:60, at]
        assert (scores.expected[:, 0] == truth)[blamed].mean() > 0.6
        return
    low, high = expected(None)
    assert ((scores.expected[blamed] > low) & (scores.expected[blamed] < high)).all()
    inside = (rows[:60, at] >= scores.expected_low[:, 0]) & (rows[:60, at] <= scores.expected_high[:, 0])
    assert inside[blamed].mean() > 0.75  # of nine tenths


def test_a_row_is_explained_the_same_in_any_company(scorer, rows):
    some = rows[:40].copy()
    some[::4, 0] += 70
    some[1::5, 3] = np.nan
    together, backwards = (
        scorer.score(some, ScoreOptions(explain=3)),
        scorer.score(some[::-1].copy(), ScoreOptions(explain=3)),
    )
    for name in ("columns", "column_log_likelihood", "column_p_value", "expected", "expected_low"):
        np.testing.assert_array_equal(getattr(together, name), getattr(backwards, name)[::-1])


def test_holes_are_not_blamed_and_a_row_of_holes_blames_nothing(scorer, rows):
    some = rows[:5].copy()
    some[:, [0, 4]] = np.nan
    some[4] = np.nan
    scores = scorer.score(some, ScoreOptions(explain=len(COLUMNS)))
    assert not np.isin(scores.columns, [0, 4]).any()
    assert (scores.columns[:4] >= 0).sum() == 4 * (len(COLUMNS) - 2)
    assert (scores.columns[4] == -1).all()


@pytest.mark.slow
def test_p_values_of_rows_with_holes_are_by_validation_rows_with_the_same_holes(scorer, rows):
    holed = rows.copy()
    holed[:, [0, 2]] = np.nan
    scorer.patterns.known.clear()
    plain = scorer.score(holed[:100])
    (reference,) = scorer.patterns.known.values()
    assert reference.columns is None
    scores = scorer.score(holed, ScoreOptions(explain=len(COLUMNS) - 2))
    (reference,) = scorer.patterns.known.values()
    assert len(reference.scores) == reference.columns.counts[1]
    np.testing.assert_array_equal(plain.p_value, scores.p_value[:100])
    for level in (0.05, 0.2):
        share = (scores.column_p_value <= level).mean()
        assert 0.6 * level < share < level + 3 * np.sqrt(level / len(rows))


def test_a_version_without_columns_says_that_it_must_be_calibrated_again(scorer, rows):
    published = replace(scorer.published, calibration=replace(scorer.calibration, columns=None))
    with pytest.raises(CalibrationError, match="run `vouch calibrate`"):
        Scorer(published).score(rows[:2], ScoreOptions(explain=1))


# Ensembles


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_networks(several, rows):
    model = several.model
    assert len(model.members) == 3
    alone = [replace(model, members=(one,)) for one in model.members]
    apart = np.stack([one.estimates(rows[:30]).log_likelihood for one in alone])
    assert apart.std(axis=0).mean() > 0.05
    estimates = model.estimates(rows[:30])
    np.testing.assert_allclose(estimates.log_likelihood, mean_density(apart)[0])
    np.testing.assert_allclose(np.exp(estimates.log_likelihood), np.exp(apart).mean(axis=0))
    assert model.row_cost == 3 * alone[0].row_cost


@pytest.mark.slow
def test_an_ensemble_s_columns_and_expectations_are_those_of_the_mean_density(several, rows):
    """With one network three times, they are those of that network."""
    model = several.model
    one, three = (replace(model, members=model.members[:1] * number) for number in (1, 3))
    suspect = np.full(len(COLUMNS), -np.inf)
    single, triple = (model.assess(rows[:20], suspect=suspect).columns for model in (one, three))
    np.testing.assert_allclose(triple.log_likelihood, single.log_likelihood, rtol=1e-9)


@pytest.mark.slow
def test_an_ensemble_s_networks_are_told_apart(several, rows):
    scorer = several
    first, second = scorer.encode(rows[:3]), scorer.encode(rows[:3], member=1)
    assert not np.allclose(first.mean, second.mean)
    assert scorer.manifold(3, member=2).means.shape == (9, len(COLUMNS))
    assert not np.allclose(scorer.decode(first.mean), scorer.decode(first.mean, member=2))
    with pytest.raises(InputError, match="no member 3: the model has members 0 to 2"):
        scorer.encode(rows[:3], member=3)
    assert len(scorer.sample(7, seed=0).samples) == 7
    answer = scorer.reconstruct(rows[:4], draws=5)
    assert answer.draws.shape == (4, 5, len(COLUMNS))
    assert np.isfinite(answer.mean).all()


# Images


def test_pixels_are_blamed_and_named_by_their_place(digit_scorer):
    images = digits()[:20].copy()
    images[:, 0, 0] = 255
    scores = digit_scorer.score(images, ScoreOptions(explain=3))
    assert (scores.columns[:, 0] == 0).mean() > 0.9
    assert (scores.expected[:, 0] < 30).all()
    assert (scores.expected_low[:, 0] == 0).all()


# The service and the command line


def test_the_service_says_what_was_there_and_what_was_expected(client):
    rows = [{**ROW, "height": 290.0, "income": None}, {**ROW, "city": "Atlantis"}]
    answer = client.post("/score?model=people&explain=2", json={"instances": rows}).json()
    (tall, _), (nowhere, _) = (score["columns"] for score in answer["scores"])
    assert (tall["name"], tall["value"]) == ("height", 290.0)
    assert tall["p_value"] < 0.01
    low, high = tall["expected"]["interval"]
    assert 130 < low <= tall["expected"]["mean"] <= high < 220
    assert (nowhere["name"], nowhere["value"]) == ("city", "(never seen)")
    assert nowhere["expected"]["most_likely"] == "Bern"
    assert 0.3 < nowhere["expected"]["probability"] <= 1
    assert "columns" not in client.post("/score?model=people", json={"instances": [ROW]}).json()["scores"][0]


def test_every_type_of_answer_explains(client):
    body = {"instances": [ROW, {**ROW, "height": 290.0}]}
    as_csv = client.post("/score?model=people&explain=2", json=body, headers={"accept": "text/csv"})
    first, second = csv.DictReader(io.StringIO(as_csv.text))
    assert second["blamed_1_column"] == "height"
    assert float(second["blamed_1_log_likelihood"]) < float(first["blamed_1_log_likelihood"])
    assert first["missing"] == "0"
    lines = client.post(
        "/score?model=people&explain=1",
        content=json.dumps(body["instances"][1]),
        headers={"content-type": "application/x-ndjson"},
    )
    assert lines.json()["columns"][0]["name"] == "height"
    array = client.post("/score?model=people&explain=1", json=body, headers={"accept": "application/x-npy"}).content
    records = np.load(io.BytesIO(array))
    assert records["columns"][1].tolist() == [0]
    assert records["column_p_value"][1][0] < 0.01


def test_what_cannot_be_explained_is_refused(client):
    for number in ("-1", "100000", "x", "1.5", ""):
        check_problem(client.post(f"/score?model=people&explain={number}", json={"instances": [ROW]}), 422)
    check_problem(client.post("/encode?model=people&member=1", json={"instances": [ROW]}), 422)
    assert client.post("/encode?model=people&member=0", json={"instances": [ROW]}).status_code == 200
    array = np.array([[290.0, 31000.5, 52, 0, 0, 0, 4]])
    answer = client.post(
        "/score?model=people&explain=9", content=npy(array), headers={"content-type": "application/x-npy"}
    )
    assert len(answer.json()["scores"][0]["columns"]) == len(COLUMNS)


def test_tables_come_back_as_csv(client):
    for path in ("/sample?model=people&num=3&seed=1", "/manifold?model=people&size=2&member=0"):
        answer = client.get(path, headers={"accept": "text/csv"})
        lines = list(csv.DictReader(io.StringIO(answer.text)))
        assert len(lines) in (3, 4)
        assert lines[0]["city"] in ("Bern", "Basel", "Chur")
        assert answer.headers["content-type"].startswith("text/csv")
    filled = client.post(
        "/reconstruct?model=people", json={"instances": [{**ROW, "city": None}]}, headers={"accept": "text/csv"}
    )
    assert next(csv.DictReader(io.StringIO(filled.text)))["city"] in ("Bern", "Basel", "Chur")


def test_the_command_line_explains(store, tmp_path):
    spoilt = [list(map(str, {**ROW, "height": 290.0}.values()))]
    path = write(tmp_path / "rows.csv", spoilt)
    arguments = ["score", str(path), "--model", "people", "--store", str(store), "--explain", "2", "--device", "cpu"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    (row,) = csv.DictReader(io.StringIO(printed.stdout))
    assert row["blamed_1_column"] == "height"
    out = tmp_path / "scores.jsonl"
    assert CliRunner().invoke(app, [*arguments, "--out", str(out)]).exit_code == 0
    assert json.loads(out.read_text())["columns"][0]["name"] == "height"
