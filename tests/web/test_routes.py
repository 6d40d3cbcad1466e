"""What endpoints share: bodies and queries that none can read, `/v1`, and statuses of paths and methods that are none."""

import numpy as np
import pytest

from service.errors import InputError
from service.web.routes import limited
from tests.models import ROWS, data_of, digits
from tests.tools import check_problem, npy, post_npy
from tests.web.attacks import JSON_BODIES, NPY_BODIES, SECRET

BODY = {"instances": ROWS}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("name", JSON_BODIES)
@pytest.mark.parametrize("path", ["/score", "/reconstruct", "/encode"])
def test_json_that_cannot_be_read_is_refused_in_words(in_process, path, name):
    body, status = JSON_BODIES[name]
    check_problem(in_process.post(path, content=body, headers=JSON), status, SECRET)


@pytest.mark.parametrize("name", NPY_BODIES)
def test_an_npy_file_that_cannot_be_read_is_refused(in_process, name):
    body, status = NPY_BODIES[name]
    check_problem(
        in_process.post("/score", content=body, headers={"content-type": "application/x-npy"}), status, SECRET
    )


def test_scores_are_those_of_the_scorer(in_process, digit_scorer):
    answer = in_process.post("/score", json=BODY)
    scores = digit_scorer.score(digits()[:5])
    assert [score["log_likelihood"] for score in answer.json()["scores"]] == scores.log_likelihood.tolist()
    assert [score["verdict"] for score in answer.json()["scores"]] == scores.verdict


@pytest.mark.parametrize("path", ["/score", "/encode", "/reconstruct"])
def test_under_v1_everything_is_the_same(in_process, path):
    assert in_process.post(f"/v1{path}", json=BODY).json() == in_process.post(path, json=BODY).json()


def test_every_operation_refuses_a_parameter_that_it_does_not_have(in_process):
    document = in_process.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        if path.startswith("/v2"):
            continue  # its protocol has queries of its own
        for method in methods:
            at = path.format(name="digits", extension="npy")
            answer = in_process.request(method.upper(), f"{at}?{SECRET}=1", json=None if method == "get" else {})
            assert "unknown query parameter" in check_problem(answer, 422, SECRET).detail, path


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405), ("GET", "/nowhere", 404), ("POST", "/score//", 404), ("GET", "/v1/v1/models", 404),
        ("GET", "/v1/v2/models/digits", 404), ("GET", "/models//", 404), ("GET", "/docs-assets/../pyproject.toml", 404),
        ("GET", "/v1", 404), ("GET", "/models/digits:predict", 404), ("GET", "/v1/models/digits:predict", 405),
        ("GET", "/score", 405), ("POST", "/score.exe", 406), ("GET", "/sample.ndjson", 406),
        ("PUT", "/score", 405), ("DELETE", "/models/digits", 405), ("POST", "/livez", 405),
    ],
)  # fmt: skip
def test_a_path_or_a_method_that_is_none_is_a_problem_document(in_process, method, path, status):
    check_problem(in_process.request(method, path), status)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("model=nobody", 404), ("model=digits@7", 404), ("model=digits@nowhere", 404), ("model=../digits", 404),
        ("model=", 404), ("model=@1", 404), ("model=digits@1@1", 404), ("model=%00", 404), ("model=" + "x" * 3000, 404),
        ("explain=-1", 422), ("explain=101", 422), ("fdr=1", 422), ("tail=up", 422), ("rule=none", 422),
        ("percentiles=9,1", 422), ("false_alarm=1e-9", 422), ("percentiles=1,99&false_alarm=.1", 422), ("x=1&x=2", 422),
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_answered_is_refused(in_process, query, status):
    check_problem(in_process.post(f"/score?{query}", json=BODY), status)


@pytest.mark.parametrize("accept", ["text/html", "image/png", "application/json;q=0", "application/x-ndjson"])
def test_an_answer_of_another_type_is_refused(in_process, accept):
    check_problem(in_process.post("/score", json=BODY, headers={"accept": accept}), 406)


@pytest.mark.parametrize("kind", ["application/x-yaml", "text/plain", "application/xml", "multipart/mixed"])
def test_a_body_of_another_type_is_refused(in_process, kind):
    check_problem(in_process.post("/score", content="{}", headers={"content-type": kind}), 415)


def test_what_is_asked_for_is_limited():
    limited("explain", 100, 100)
    with pytest.raises(InputError, match=r"^explain: at most 1,000$"):
        limited("explain", 1001, 1000)


def test_rows_and_columns_to_explain_are_limited_together(in_process):
    rows = digits()[np.arange(201) % 5]
    assert post_npy(in_process, "/score?explain=9", rows).status_code == 200
    check_problem(post_npy(in_process, "/score?explain=10", rows), 422)
    check_problem(post_npy(in_process, "/score", np.zeros((2001, 64), dtype=np.uint8)), 413)


def test_every_problem_has_the_caller_s_request_id_where_it_is_harmless(in_process):
    problem = check_problem(in_process.post("/score", content="{", headers=JSON | {"x-request-id": "mine-1"}), 400)
    assert problem.request_id == "mine-1"
    for harmful in ("a b", "x" * 65, "<script>", "\u00e9", ""):
        answer = in_process.post("/score", content="{", headers=[(b"x-request-id", harmful.encode("latin-1"))])
        assert check_problem(answer, 400).request_id != harmful


def test_rows_come_back_as_they_were_asked_for(in_process):
    row = data_of("wine").array[:1]
    assert in_process.post("/score?model=wine", json={"instances": row.tolist()}).json()["model"]["name"] == "wine"
    as_npy = in_process.post(
        "/score?model=wine", content=npy(row), headers={"content-type": "application/x-npy", "accept": "text/csv"}
    )
    assert as_npy.headers["content-type"].startswith("text/csv")
    header, line = as_npy.text.strip().splitlines()
    assert len(header.split(",")) == len(line.split(","))
