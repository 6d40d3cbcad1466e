"""Rows with bad cells, without a value, with a changed constant: invalid by every rule, and in the calibration alike."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.app import app
from service.cli.main import COMMANDS
from service.data.table import IS_TEXT, Table
from service.errors import CalibrationError, InputError
from service.files.readers import Rows
from service.scoring.drift_monitor import DriftMonitor
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.version import Published, Reference
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.recalibrate import recalibrate
from service.training.train import train_table
from service.validity.conformal import Discoveries, ScoreRanks
from service.validity.martingale import Martingale, Ranks, log_limit
from tests.models import COLUMNS, PEOPLE, made
from tests.tools import as_csv, running_service

RULE = ScoreOptions("combined", false_alarm=0.05)
RULES = {
    "the default": ScoreOptions(),
    "a wide band": ScoreOptions(percentiles=(1.0, 99.0)),
    "a rate below": ScoreOptions(false_alarm=0.01, tail="low"),
    "combined": RULE,
}
NUMBERS = ("height", "income", "age", "gain", "grade")
BAD = {
    "unit": 9_999,
    "age": -3,
    "gain": "oops",
    "city": "Atlantis",
    "grade": 2.5,
    "level": None,
}


def columns(rows, seed):
    """Columns as a frame has them, with a constant, a date, and a column that is always there."""
    cells = zip(*made(rows, seed), strict=True)
    found = dict(zip(COLUMNS, ([None if cell == "?" else cell for cell in column] for column in cells), strict=True))
    for name in NUMBERS:
        found[name] = [None if cell is None else float(cell) for cell in found[name]]
    random = np.random.default_rng(seed)
    found["level"] = random.normal(size=rows).round(3).tolist()
    found["unit"] = [7.0] * rows
    found["day"] = [f"2024-05-{1 + at % 28:02d}" for at in range(rows)]
    return found


def as_rows(found):
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def as_table(found):
    arrays = [
        np.array([np.nan if cell is None else cell for cell in cells], float)
        if name in (*NUMBERS, "level", "unit")
        else np.array(cells, dtype=object)
        for name, cells in found.items()
    ]
    return Table(tuple(found), tuple(arrays))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "train.csv").write_text(as_csv(as_rows(columns(900, 0))))
    Store(folder / "store").publish("people", train_table(as_table(columns(900, 0)), PEOPLE).draft)
    Store(folder / "store").set_default("people")
    return folder / "store"


@pytest.fixture(scope="module")
def scorer(store):
    return load_scorer(Store(store), "people", "cpu", threads=1)


@pytest.fixture(scope="module")
def rows():
    return [row for row in as_rows(columns(200, 1)) if None not in row.values()]


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    with running_service(store, tmp_path_factory.mktemp("log") / "log") as client:
        yield client


def in_memory(published: Published, draft) -> Scorer:
    reference = Reference("people", "2")
    return Scorer(replace(published, card=draft.card(reference), model=draft.model, calibration=draft.calibration))


# One bad row among others


@pytest.mark.parametrize(("column", "cell"), BAD.items(), ids=list(BAD))
def test_rows_with_a_bad_cell_are_invalid_and_it_is_named_first(scorer, rows, column, cell):
    scores = scorer.score([{**row, column: cell} for row in rows[:25]], replace(RULE, explain=1))
    assert not scores.valid.any()
    assert {found[0].column for found in scores.violations()} == {column}
    if isinstance(cell, float | int) and column != "unit":
        assert {scorer.model.input.columns[at] for at in scores.columns[:, 0]} == {column}


@pytest.mark.parametrize("options", RULES.values(), ids=list(RULES))
def test_no_other_score_changes(scorer, rows, options):
    some = rows[:12]
    bad = [{**some[0], "age": "old"}, *some[1:5], dict.fromkeys(some[0]), *some[6:]]
    before, after = scorer.score(some, options), scorer.score(bad, options)
    others = [at for at in range(12) if at not in (0, 5)]
    for name in ("log_likelihood", "std_error", "p_value", "percentile", "combined_p_value", "valid", "sides"):
        np.testing.assert_array_equal(getattr(before, name)[others], getattr(after, name)[others])
    assert after.side[0] == after.side[5] == "below"
    assert not after.valid[[0, 5]].any()
    assert after.certain[[0, 5]].all()
    assert after.percentile[[0, 5]].tolist() == [0.0, 0.0]
    assert after.low_p_value[[0, 5]].tolist() == [1 / (after.band.rows + 1)] * 2
    readable = scorer.score([{**some[0], "age": None}], options)
    assert after.log_likelihood[0] == readable.log_likelihood[0]


def test_what_cannot_be_read_costs_no_comparison(scorer, rows):
    before = len(scorer.patterns.known)
    scorer.score([{**rows[0], "height": "x", "income": "y", "city": None}, dict.fromkeys(rows[0])], RULE)
    assert len(scorer.patterns.known) == before


def test_a_strict_caller_gets_the_error(scorer, rows):
    with pytest.raises(InputError, match="row 1, column age: text; expected a number"):
        scorer.score([rows[0], {**rows[1], "age": "old"}], ScoreOptions(strict=True))
    with pytest.raises(InputError, match="cannot be scored"):
        scorer.score([{**rows[1], "age": float("inf")}], ScoreOptions(strict=True))
    with pytest.raises(InputError, match="text"):
        scorer.reconstruct([{**rows[1], "age": "old"}])  # which has no verdict to tell it by


# Every door, every rule

QUERIES = ["", "?percentiles=1,99", "?false_alarm=0.01&tail=low", "?rule=combined&false_alarm=0.05", "?fdr=0.5"]


@pytest.mark.parametrize("query", QUERIES)
def test_a_row_without_any_value_is_invalid_over_http_by_every_rule(client, rows, query):
    empty = dict.fromkeys(rows[0])
    answer = client.post(f"/score{query}", json={"instances": [rows[0], empty]})
    score = answer.json()["scores"][1]
    assert (score["verdict"], score["side"], score["percentile"]) == ("invalid", "below", 0.0)
    assert score["violations"] == [{"column": None, "kind": "no_value", "message": "no column has a value"}]
    names = list(rows[0])
    text = (
        ",".join(names) + "\n" + ",".join(str(rows[0][name]) for name in names) + "\n" + "," * (len(names) - 1) + "\n"
    )
    by_csv = client.post(f"/score{query}", content=text, headers={"content-type": "text/csv"}).json()["scores"][1]
    assert by_csv == score | {"line": 3}
    if "fdr" not in query:
        lines = client.post(
            f"/score{query}", content=json.dumps(empty), headers={"content-type": "application/x-ndjson"}
        )
        assert json.loads(lines.text) == score


@pytest.mark.parametrize("flags", [[], ["--percentiles", "1,99"], ["--rule", "combined", "--false-alarm", "0.05"]])
def test_a_row_without_any_value_is_invalid_by_the_command_line(store, rows, tmp_path, flags):
    assert COMMANDS
    (tmp_path / "rows.csv").write_text(as_csv([rows[0], dict.fromkeys(rows[0]), {**rows[1], "age": "old"}]))
    where = ["--model", "people", "--store", str(store), *flags]
    done = CliRunner().invoke(app, ["score", str(tmp_path / "rows.csv"), *where, "--out", str(tmp_path / "out.csv")])
    assert done.exit_code == 0, done.output
    assert "a cell cannot be read, or there is no value: 2 rows, the first is line 3" in done.stderr
    listed = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["violations"] for row in listed] == [
        "", "no column has a value", "age: text where a number was expected"
    ]  # fmt: skip
    assert [row["line"] for row in listed if row["verdict"] == "invalid"][-2:] == ["3", "4"]


def test_arrays_and_the_inference_protocol_have_verdicts_too(client, scorer, rows):
    read = scorer.read(rows[:2])[:, : scorer.model.input.features]
    read[1, 0] = np.inf
    body = io.BytesIO()
    np.save(body, read)
    answer = client.post("/score", content=body.getvalue(), headers={"content-type": "application/x-npy"})
    assert answer.json()["scores"][1]["violations"][0]["kind"] == "unreadable"
    kinds = {"content-type": "application/x-npy", "accept": "application/x-npy"}
    records = np.load(io.BytesIO(client.post("/score", content=body.getvalue(), headers=kinds).content))
    assert records["violations"].tolist() == [0, 1]
    assert not records["valid"][1]
    half = np.array([[0.5] * read.shape[1], [np.inf] + [0.5] * (read.shape[1] - 1)], np.float16)
    assert scorer.score(np.where(np.isinf(half), half, read[:1]).astype(np.float16)).unreadable.tolist() == [
        False,
        True,
    ]


def test_later_dates_are_a_warning(client, rows):
    answer = client.post("/score", json={"instances": [rows[0], {**rows[0], "day": "2031-01-01"}]}).json()
    assert answer["warnings"] == ["later in 'day' than the last training row, 2024-05-28: 1 of 2 rows"]
    assert answer["scores"][0] == answer["scores"][1]


# Calibration


@pytest.fixture(scope="module")
def among_bad(scorer):
    """The same network, calibrated on rows of which some cannot be read, and some have no value."""
    fresh = as_table(columns(700, 2))
    read = scorer.model.input.read(scorer.reader.table(fresh), scorer.reader)
    random = np.random.default_rng(0)
    read[random.random(700) < 0.05, 1] = IS_TEXT
    read[::70, : scorer.model.input.features] = np.nan
    return in_memory(scorer.published, recalibrate(scorer.published, Rows(read)))


def test_calibration_rows_that_cannot_be_read_rank_below_every_number(among_bad, rows):
    scores = among_bad.calibration.scores
    unreadable = int(np.isneginf(scores).sum())
    assert 20 < unreadable < 60
    assert among_bad.calibration.reference.unreadable == unreadable  # of as many rows
    assert among_bad.calibration.violations.lowest == unreadable
    bad = among_bad.score([{**rows[0], "age": "old"}, dict.fromkeys(rows[0]), rows[0]], RULE)
    n = len(scores)
    assert bad.low_p_value[:2].tolist() == [(1 + unreadable) / (n + 1)] * 2
    assert bad.percentile[2] == pytest.approx(100 * (scores < bad.log_likelihood[2]).mean())
    combined = among_bad.calibration.statistics.combination.combined
    infinite = np.isposinf(combined).sum()
    assert bad.evidence[0, -1] == (1 + unreadable) / (n + 1)
    expected = min((1 + infinite) / (len(combined) + 1) * 1.5, (1 + unreadable) / (n + 1) * 3)
    assert bad.combined_p_value[0] == pytest.approx(expected)
    assert not bad.valid[:2].any()


def test_what_is_accepted_is_said_where_more_cannot_be_read_than_the_rate_allows(among_bad):
    fresh = as_table(columns(600, 3))
    reader = among_bad.reader
    read = among_bad.model.input.read(reader.table(fresh), reader)
    read[np.random.default_rng(1).random(600) < 0.05, 1] = IS_TEXT
    read[::70, : among_bad.model.input.features] = np.nan
    for options in RULES.values():
        scores = among_bad.score_read(read, options)
        accepted = scores.band.accepted if scores.rule is None else scores.rule.accepted
        spread = 4 * np.hypot(np.sqrt(0.25 / 600), np.sqrt(0.25 / scores.band.rows))
        assert scores.valid.mean() > accepted.expected - spread
        if not accepted.is_bound:
            assert scores.valid.mean() < accepted.expected + spread
    strict = among_bad.score_read(read, ScoreOptions(false_alarm=0.01, tail="low"))
    assert "only 93" in strict.warnings()[-1] or "only 94" in strict.warnings()[-1]


def test_a_calibration_of_which_too_much_cannot_be_read_is_refused(scorer):
    read = scorer.model.input.read(scorer.reader.table(as_table(columns(400, 4))), scorer.reader)
    read[:150, 1] = IS_TEXT
    with pytest.raises(CalibrationError, match=r"calibration rows \(3\d.* %\) have a cell that cannot be read"):
        recalibrate(scorer.published, Rows(read))


def test_calibration_on_the_training_file_is_refused_unless_told(store, tmp_path):
    train = str(store.parent / "train.csv")
    command = ["calibrate", "people", train, "--store", str(store)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "of 900 rows are among those that people@1 was trained on" in refused.stderr
    assert not (store / "people" / "2").exists()
    bare = Store(tmp_path / "bare")
    draft = train_table(as_table(columns(300, 0)), replace(PEOPLE, fit=replace(PEOPLE.fit, epochs=1))).draft
    bare.publish("people", replace(draft, fingerprints=None))
    told = CliRunner().invoke(app, ["calibrate", "people", train, "--store", str(tmp_path / "bare")])
    assert told.exit_code == 0, told.output
    assert "people@1 keeps no fingerprints: whether it was trained on these rows cannot be told" in told.stderr


def test_a_constant_that_is_often_blank_is_calibrated_as_it_is(scorer):
    random = np.random.default_rng(0)

    def drawn(rows, seed):
        found = columns(rows, seed)
        found["flag"] = [None if blank else "Y" for blank in random.random(rows) < 0.5]
        return found

    quick = replace(PEOPLE, fit=replace(PEOPLE.fit, epochs=2), prior="normal")
    draft = train_table(as_table(drawn(700, 5)), quick).draft
    (flag,) = [one for one in draft.domains.beside if one.name == "flag"]
    assert (flag.value, flag.never_missing) == ("Y", False)
    blank = in_memory(scorer.published, draft)
    rows = [row for row in as_rows(drawn(150, 6)) if None not in (row["city"], row["member"], row["level"])]
    scores = blank.score(rows, RULE)
    assert scores.evidence[:, -1].min() > 0.05 / 3
    assert "flag" not in {one.column for found in scores.violations() for one in found}


def test_with_few_rows_the_lowest_rate_is_one_at_which_violations_refuse(scorer, rows):
    few = as_table(columns(170, 7))
    read = scorer.model.input.read(scorer.reader.table(few), scorer.reader)
    small = in_memory(scorer.published, recalibrate(scorer.published, Rows(read)))
    rule = small.combined_rule()
    assert 0.0150 < rule.false_alarm < 0.0200
    assert not small.score([{**rows[0], "unit": 9_999}], ScoreOptions("combined")).valid[0]
    with pytest.raises(CalibrationError, match="needs at least 299 validation rows, there are 153"):
        small.combined_rule(0.01)


# Promises of many rows, with one in a hundred that cannot be read


def drawn(random, rows):
    scores = random.normal(size=rows)
    scores[random.random(rows) < 0.01] = -np.inf
    return scores


def test_false_discoveries_stay_below_the_level():
    random, found = np.random.default_rng(0), []
    for _ in range(300):
        known, given = np.sort(drawn(random, 1_000)), np.append(drawn(random, 300), random.normal(-4.5, 0.3, 30))
        p_values = ScoreRanks.of(known, given).low_p_value
        chosen = Discoveries.of(p_values, 0.1, "low", len(known)).chosen
        found.append((chosen[:300].sum()) / max(1, chosen.sum()))
    assert np.mean(found) <= 0.1 + 4 * np.std(found) / np.sqrt(300)


def test_valid_streams_seldom_alarm_and_those_with_more_that_cannot_be_read_do():
    random, alarms = np.random.default_rng(0), 0

    def path(stream, known):
        ranks = Ranks(0.0, 1.0)
        ranks.add(ranks.cells(known))
        return Martingale().bet(ranks.p_values(stream, random.random(len(stream))))

    for _ in range(60):
        alarms += path(drawn(random, 1_500), drawn(random, 500)).max() >= log_limit(0.05)
    assert alarms <= 8
    broken = drawn(random, 1_500)
    broken[700::8] = -np.inf
    assert path(broken, drawn(random, 500)).max() >= log_limit(0.05)


def test_the_drift_monitor_ranks_unreadable_rows_lowest_and_passes_over_holes(among_bad, rows):
    monitor = DriftMonitor.of(among_bad)
    complete = among_bad.calibration.complete
    assert monitor.ranks.total == complete.sum() < len(complete)
    assert monitor.ranks.counts[0] == np.isneginf(among_bad.calibration.scores[complete]).sum() > 10
    given = among_bad.score([{**rows[0], "age": "old"}, {**rows[1], "city": None}, dict.fromkeys(rows[0]), rows[2]])
    monitor.add(among_bad, given, np.full(4, 0.5), 0.01)
    assert monitor.watched == 2
    assert monitor.sides.sum() == 4
    assert monitor.ranks.counts[0] == np.isneginf(among_bad.calibration.scores[complete]).sum() + 1
