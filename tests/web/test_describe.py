"""GET /calibration and /examples, POST /rows and ?trial=1: what a page needs to show a model and to try rows with it."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from service.scoring.options import ScoreOptions
from service.scoring.promises import RATES
from service.store.loading import load_scorer
from service.store.store import Store
from service.web.describe_schemas import CalibrationAnswer, ExamplesAnswer, RowsAnswer
from tests.models import COLUMNS, TINY, data_of, digits, made
from tests.tools import check_problem, npy
from tests.web.conftest import in_process_client

CSV = {"content-type": "text/csv"}


@pytest.fixture(scope="module")
def people(people_store):
    """A client of an application that serves a mixed table with holes, and its scorer."""
    with in_process_client(people_store) as client:
        yield client, load_scorer(Store(people_store), "people", "cpu")


@pytest.mark.parametrize("name", TINY)
def test_each_promise_is_what_a_request_for_it_is_told(in_process, tiny_store, name):
    answer = in_process.get(f"/calibration?model={name}").json()
    CalibrationAnswer.model_validate(answer)
    scorer = load_scorer(Store(tiny_store), name, "cpu")
    assert answer["rows"] == len(scorer.calibration.scores)
    row = scorer.sample(1, 0).samples.tolist()
    assert {"low", "both"} <= answer["promises"].keys()
    for rule, promises in answer["promises"].items():
        assert [one["false_alarm"] for one in promises] == [
            rate for rate in RATES if rate >= promises[0]["false_alarm"]
        ]
        for one in (promises[0], promises[-1]):
            how = "rule=combined" if rule == "combined" else f"rule=band&tail={rule}"
            told = in_process.post(
                f"/score?model={name}&{how}&false_alarm={one['false_alarm']}", json={"instances": row}
            ).json()
            assert one["accepts"] == (told["rule"] if rule == "combined" else told["band"])["accepts"]
            if rule != "combined":
                assert one["log_likelihood"] == told["band"]["log_likelihood"]


@pytest.mark.parametrize("name", TINY)
def test_the_curve_has_the_quantiles_of_the_validation_rows(in_process, tiny_store, name):
    curve = in_process.get(f"/calibration?model={name}").json()["curve"]
    scores = np.sort(load_scorer(Store(tiny_store), name, "cpu").calibration.scores)
    assert curve["log_likelihood"][0] == scores[0]
    assert curve["log_likelihood"][-1] == scores[-1]
    assert curve["log_likelihood"][100] == pytest.approx(np.median(scores))
    assert curve["levels"] == sorted(curve["levels"])


def test_the_answer_is_sent_once(in_process):
    tag = in_process.get("/calibration?model=digits").headers["etag"]
    assert in_process.get("/calibration?model=digits", headers={"if-none-match": tag}).status_code == 304


def test_a_policy_is_what_rows_are_judged_by(tiny_store):
    with in_process_client(tiny_store, policy="percentiles=5,95") as client:
        judging = client.get("/calibration").json()["judging"]
    assert judging == {"rule": "band", "percentiles": [5.0, 95.0], "fixed": True}


@pytest.mark.parametrize("name", TINY)
def test_examples_can_be_scored_and_the_spoilt_one_is_the_strangest(in_process, name):
    answer = in_process.get(f"/examples?model={name}").json()
    ExamplesAnswer.model_validate(answer)
    assert answer == in_process.get(f"/examples?model={name}").json()
    *drawn, spoilt = answer["examples"]
    assert len(drawn) == 2
    assert "spoil" in spoilt
    assert all("spoil" not in one for one in drawn)
    body = {"instances": [one["instance"] for one in answer["examples"]]}
    scores = in_process.post(f"/score?model={name}", json=body).json()["scores"]
    assert scores[2]["log_likelihood"] < min(one["log_likelihood"] for one in scores[:2])


def table_of(separator, decimal):
    """A table of people with holes, in which one cell cannot be read and another is empty."""
    rows = made(40, seed=5)
    rows[3][0], rows[4][0] = "many", ""
    rows[6][0], rows[7][1] = f"171{',' if decimal == '.' else '.'}5", "1.234,5"
    lines = [separator.join(COLUMNS)]
    lines += [separator.join(re.sub(r"^(\d+)\.(\d+)$", rf"\1{decimal}\2", cell) for cell in row) for row in rows]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(("separator", "decimal"), [(";", "."), (";", ","), ("\t", ".")])
def test_the_rows_of_a_table_score_as_its_file_does(people, separator, decimal):
    client, scorer = people
    body = table_of(separator, decimal)
    read = client.post("/rows", content=body, headers=CSV).json()
    RowsAnswer.model_validate(read)
    assert read["columns"] == list(scorer.model.input.columns)
    of_file = client.post("/score", content=body, headers=CSV).json()["scores"]
    of_rows = client.post("/score", json={"instances": read["instances"]}).json()["scores"]
    for one in of_file:
        one.pop("line", None)
    assert of_file == of_rows
    assert any("violations" in one for one in of_rows)


def test_cells_are_told_as_numbers_null_or_text(people):
    client, scorer = people
    first = scorer.model.input.columns[0]
    instances = client.post("/rows", content=table_of(";", ","), headers=CSV).json()["instances"]
    assert instances[3][first] == "many"
    assert instances[4][first] is None
    assert isinstance(instances[5][first], int | float)


def test_an_image_is_told_as_the_model_reads_it(in_process):
    file = io.BytesIO()
    upright = digits()[0].reshape(8, 8).astype(np.uint8)
    image = Image.fromarray(np.rot90(upright))  # and its file says how to turn it back
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, "PNG", exif=exif)
    answer = in_process.post(
        "/rows?model=digits", content=file.getvalue(), headers={"content-type": "image/png"}
    ).json()
    assert np.array_equal(answer["instances"][0], upright)


def test_an_array_is_told_as_rows(in_process):
    rows = digits()[:3]
    answer = in_process.post(
        "/rows?model=digits", content=npy(rows), headers={"content-type": "application/x-npy"}
    ).json()
    assert np.array_equal(answer["instances"], rows)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"a,b\n1,2\n", "text/csv", 422),
        (f"{','.join(COLUMNS[:-1])}\n{'1,' * 5}1\n".encode(), "text/csv", 422),
        (b"", "text/csv", 422),
        (b"\x00\xff\x00", "text/csv", 400),
        (b"name", "application/x-npy", 400),
        (b"name", "text/plain", 415),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(people, body, kind, status):
    client, _ = people
    check_problem(client.post("/rows", content=body, headers={"content-type": kind}), status)


def test_rows_over_the_limit_are_refused(in_process):
    body = npy(np.zeros((2001, 64)))
    check_problem(
        in_process.post("/rows?model=digits", content=body, headers={"content-type": "application/x-npy"}), 413
    )


@pytest.mark.parametrize("path", ["/score", "/score.ndjson", "/score/files"])
def test_rows_that_are_only_tried_are_not_watched(in_process, path):
    def watched():
        return in_process.get("/drift?model=digits").json()["drift"][0]["rows"]

    row = data_of("digits").array[0].tolist()
    lines = {"content": json.dumps(row), "headers": {"content-type": "application/x-ndjson"}}
    array = {"content": npy(np.array([row])), "headers": {"content-type": "application/x-npy"}}
    how = {"/score": {"json": {"instances": [row]}}, "/score.ndjson": lines, "/score/files": array}[path]
    before = watched()
    assert in_process.post(f"{path}?model=digits&trial=1", **how).status_code == 200
    assert watched() == before
    assert in_process.post(f"{path}?model=digits", **how).status_code == 200
    assert watched() == before + 1


def test_the_card_of_another_version_is_told(in_process):
    served = in_process.get("/models/digits").json()
    asked = in_process.get(f"/models/digits?version={served['serving']}").json()
    assert asked == served
    check_problem(in_process.get("/models/digits?version=77"), 404)


def test_what_a_promise_asks_for_is_what_options_say(digit_scorer):
    options = ScoreOptions("band", false_alarm=0.1, tail="low")
    assert digit_scorer.calibration.band(options.band_percentiles).percentiles == (10.0, 100.0)
