"""Why a row is invalid, and what a version catches, over HTTP."""

import csv
import io
import json

import numpy as np

from tests.models import digits


def test_invalid_rows_say_why_in_every_answer(client):
    rows = np.concatenate([digits()[:6], np.random.default_rng(0).integers(0, 256, (3, 8, 8))]).tolist()
    body, asked = json.dumps({"instances": rows}), "/score?model=digits&false_alarm=0.1"
    headers = {"content-type": "application/json"}
    scores = client.post(asked, content=body, headers=headers).json()["scores"]
    assert [("reason" in score) for score in scores] == [score["verdict"] == "invalid" for score in scores]
    assert all(score["reason"].startswith("less likely than ") for score in scores[6:])
    table = client.post(asked, content=body, headers=headers | {"accept": "text/csv"}).text
    assert [row["reason"] for row in csv.DictReader(io.StringIO(table))] == [
        score.get("reason", "") for score in scores
    ]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    answered = client.post(asked, content=lines, headers={"content-type": "application/x-ndjson"}).text.splitlines()
    assert [json.loads(line).get("reason") for line in answered] == [score.get("reason") for score in scores]
    combined = client.post(asked + "&rule=combined&explain=1", content=body, headers=headers).json()["scores"]
    assert all("none of the " in one["reason"] and "most suspicious: " in one["reason"] for one in combined[6:])


def test_a_model_s_card_says_what_it_catches(client):
    caught = client.get("/models/digits").json()["card"]["selftest"]["caught"]
    assert {"blank", "inverted"} <= {one["spoil"] for one in caught}
    assert all(0 <= share <= 1 for one in caught for share in one["shares"])
