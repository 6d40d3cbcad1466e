"""Rates of false alarms and of false discoveries, asked for by a request."""

import csv
import io

import numpy as np
import pytest

from service.scoring.options import ScoreOptions
from service.web import schemas
from tests.models import data_of, digits

NPY = {"content-type": "application/x-npy"}


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def asked(client, query, rows=None):
    answer = client.post(f"/score?{query}", content=npy(digits()[:40] if rows is None else rows), headers=NPY)
    assert answer.status_code == 200, answer.text
    return schemas.ScoresAnswer.model_validate_json(answer.content)


def test_a_rate_of_false_alarms_is_the_band_of_its_percentiles(client):
    by_rate, by_percentiles = asked(client, "false_alarm=0.1"), asked(client, "percentiles=5,95")
    assert by_rate == by_percentiles
    accepts = by_rate.band.accepts
    assert accepts.interval[0] < accepts.expected < accepts.interval[1]
    assert accepts.expected == pytest.approx(0.9, abs=2 / (accepts.rows + 1))
    low = asked(client, "false_alarm=0.1&tail=low")
    assert low.band.percentiles == (10.0, 100.0)
    assert low.band.log_likelihood[1] is None
    assert {score.side for score in low.scores} <= {"below", "inside"}


def test_discoveries_leave_the_verdicts_as_they_are(client, digit_scorer):
    noise = np.random.default_rng(0).integers(0, 256, (10, 8, 8))
    rows = np.concatenate([digits()[:40], noise]).astype(np.uint8)
    plain, marked = asked(client, "explain=0", rows), asked(client, "fdr=0.2", rows)
    assert [score.verdict for score in plain.scores] == [score.verdict for score in marked.scores]
    assert marked.fdr.procedure == "Benjamini-Hochberg"
    chosen = [score.discovery for score in marked.scores]
    assert chosen == digit_scorer.score(rows).discoveries(0.2).chosen.tolist()
    assert marked.fdr.discoveries == sum(chosen)
    assert sum(chosen[40:]) == 10
    assert asked(client, "fdr=0.2&tail=both", rows).fdr.procedure == "Benjamini-Yekutieli"
    records = np.load(
        io.BytesIO(
            client.post("/score?fdr=0.2", content=npy(rows), headers=NPY | {"accept": NPY["content-type"]}).content
        )
    )
    assert records["discovery"].tolist() == chosen
    text = client.post("/score?fdr=0.2", content=npy(rows), headers=NPY | {"accept": "text/csv"}).text.splitlines()
    assert text[0].endswith(",discovery,reason")
    assert [row["discovery"] == "True" for row in csv.DictReader(text)] == chosen


def test_it_is_said_when_there_are_too_few_validation_rows_to_discover_anything(client):
    answer = asked(client, "fdr=0.00001")
    assert answer.fdr.discoveries == 0
    assert answer.fdr.needed > len(answer.scores)
    assert "no row can be a discovery" in answer.warnings[0]


@pytest.mark.parametrize(
    "query",
    [
        *("false_alarm=0", "false_alarm=1", "false_alarm=x", "false_alarm=nan", "false_alarm=0.000001"),
        *("fdr=0", "fdr=2", "fdr=x", "tail=high", "percentiles=50,100", "percentiles=25,75&false_alarm=0.1"),
    ],
)
def test_what_cannot_be_promised_is_refused(client, query):
    answer = client.post(f"/score?{query}", content=npy(digits()[:2]), headers=NPY)
    assert answer.status_code == 422
    assert answer.json()["detail"]


def test_lines_have_no_end_to_wait_for(client):
    answer = client.post("/score?fdr=0.1", content="[]", headers={"content-type": "application/x-ndjson"})
    assert answer.status_code == 422
    assert "fdr" in answer.json()["detail"]


def test_tables_have_their_rates_too(client):
    answer = asked(client, "model=wine&false_alarm=0.2&fdr=0.1", data_of("wine").array[:5])
    assert len(answer.scores) == 5


def test_the_combined_rule_gives_evidence(client, digit_scorer):
    rows = np.concatenate([digits()[:20], np.zeros((2, 8, 8))]).astype(np.uint8)
    answer = asked(client, "rule=combined&false_alarm=0.05", rows)
    scores = digit_scorer.score(rows, ScoreOptions("combined", false_alarm=0.05))
    assert answer.rule.false_alarm == 0.05
    assert answer.rule.accepts.rows == scores.rule.rows
    assert [score.verdict for score in answer.scores] == scores.verdict
    names = ("combined", *scores.rule.statistics)
    assert list(answer.scores[0].evidence) == list(names)
    assert [score.evidence["combined"] for score in answer.scores] == scores.combined_p_value.tolist()
    both = asked(client, "rule=combined&fdr=0.3&explain=1", rows)
    assert [score.discovery for score in both.scores] == scores.discoveries(0.3).chosen.tolist()
    assert len(both.scores[0].columns) == 1
    text = client.post("/score?rule=combined", content=npy(rows), headers=NPY | {"accept": "text/csv"}).text
    assert "combined_p_value,p_value_log_likelihood" in text.splitlines()[0]
    records = np.load(
        io.BytesIO(
            client.post(
                "/score?rule=combined", content=npy(rows), headers=NPY | {"accept": NPY["content-type"]}
            ).content
        )
    )
    assert records["combined_p_value"].tolist() == scores.combined_p_value.tolist()
    line = client.post(
        "/score?rule=combined", content="[" + "0," * 63 + "0]", headers={"content-type": "application/x-ndjson"}
    )
    assert line.json()["evidence"]["combined"] == scores.combined_p_value[-1]


@pytest.mark.parametrize(
    "query", ["rule=x", "rule=combined&percentiles=5,95", "rule=combined&tail=low", "rule=combined&false_alarm=0.00001"]
)
def test_what_the_combined_rule_cannot_do_is_refused(client, query):
    answer = client.post(f"/score?{query}", content=npy(digits()[:2]), headers=NPY)
    assert answer.status_code == 422
    assert answer.json()["detail"]
