"""The HTTP contract, over a real socket to a real server process."""

import io
import json
import shutil
import signal
import socket
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from service.scoring.version import Draft
from service.store.store import Store
from service.web import schemas
from service.web.answers import SCORE_DTYPE
from tests.models import ROWS, data_of, digits
from tests.tools import check_problem, eventually, png_bomb, post_npy, running_service
from tests.web.attacks import JSON_BODIES, NPY_BODIES, SECRET, instances


def picture(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def from_npy(response):
    return np.load(io.BytesIO(response.content), allow_pickle=False)


# What is answered


def test_scores_are_those_of_the_scorer_in_process(client, digit_scorer):
    answer = client.post("/score", json={"instances": ROWS})
    assert answer.status_code == 200
    body = schemas.ScoresAnswer.model_validate_json(answer.content)
    scores = digit_scorer.score(digits()[:5])
    assert [score.log_likelihood for score in body.scores] == scores.log_likelihood.tolist()
    assert [score.p_value for score in body.scores] == scores.p_value.tolist()
    assert [score.verdict for score in body.scores] == scores.verdict
    assert [score.side for score in body.scores] == scores.side
    assert body.band.log_likelihood == (scores.band.low, scores.band.high)
    assert body.model.name == "digits"
    assert "warnings" not in answer.json()


def test_a_row_scores_the_same_however_it_is_sent(client):
    image = digits()[0]
    json_body = {"instances": [image.reshape(64).tolist()]}
    expected = client.post("/score", json=json_body).json()["scores"]
    nested = client.post("/score", json={"instances": [image.tolist()]}).json()["scores"]
    floats = client.post("/score", json={"instances": [image.reshape(64).astype(float).tolist()]}).json()["scores"]
    assert expected == nested == floats
    for dtype in (np.uint8, np.int32, np.float32, np.float64, ">f8"):
        assert post_npy(client, "/score", image[None].astype(dtype)).json()["scores"] == expected
    fortran = np.asfortranarray(np.repeat(image.reshape(1, 64), 3, axis=0))
    assert post_npy(client, "/score", fortran).json()["scores"] == expected * 3
    png = client.post("/score", content=picture(Image.fromarray(image)), headers={"content-type": "image/png"})
    assert png.json()["scores"] == expected
    line = client.post("/score", content=json.dumps(image.tolist()), headers={"content-type": "application/x-ndjson"})
    assert line.json() == expected[0]


def test_a_row_scores_the_same_in_whatever_batch_and_after_a_restart(client, tiny_store, tmp_path):
    batch = digits()[:64]
    together = [score["log_likelihood"] for score in post_npy(client, "/score", batch).json()["scores"]]
    for place in (0, 31, 63):
        alone = post_npy(client, "/score", batch[place : place + 1]).json()["scores"][0]["log_likelihood"]
        assert alone == together[place]
    with running_service(tiny_store, tmp_path / "log", threads="1") as other:
        again = [score["log_likelihood"] for score in post_npy(other, "/score", batch).json()["scores"]]
    assert again == together


def test_table_rows_come_by_position_by_name_or_as_csv(client):
    data = data_of("wine")
    row = data.array[0]
    named = dict(zip(data.columns, row.tolist(), strict=True))
    by_position = client.post("/score?model=wine", json={"instances": [row.tolist()]}).json()["scores"][0]
    shuffled = {"id": "bottle 7", **dict(sorted(named.items(), reverse=True))}
    by_name = client.post("/score?model=wine@1", json={"instances": [shuffled]}).json()["scores"][0]
    assert by_name.pop("id") == "bottle 7"
    assert by_name == by_position
    columns = list(reversed(data.columns))
    text = ",".join(columns) + "\n" + ",".join(repr(named[name]) for name in columns) + "\n"
    by_csv = client.post("/score?model=wine", content=text, headers={"content-type": "text/csv; charset=utf-8"})
    assert by_csv.json()["scores"][0] == by_position


def test_other_percentiles_give_another_band(client):
    body = {"instances": ROWS}
    default, wide = client.post("/score", json=body).json(), client.post("/v1/score?percentiles=5,99", json=body).json()
    assert wide["band"]["percentiles"] == [5.0, 99.0]
    assert wide["band"]["log_likelihood"][0] < default["band"]["log_likelihood"][0]
    for first, second in zip(default["scores"], wide["scores"], strict=True):  # near an end, samples go on
        assert first["log_likelihood"] == pytest.approx(second["log_likelihood"], abs=0.5)


def test_scores_as_npy_are_records(client):
    answer = post_npy(client, "/score", digits()[:3], accept="application/x-npy")
    records = from_npy(answer)
    body = client.post("/score", json={"instances": ROWS[:3]}).json()
    assert records.dtype == SCORE_DTYPE
    assert records["log_likelihood"].tolist() == [score["log_likelihood"] for score in body["scores"]]
    assert records["valid"].tolist() == [score["verdict"] == "valid" for score in body["scores"]]


def test_warnings_say_what_looks_like_a_mistake(client):
    scaled = client.post("/score", json={"instances": [[pixel / 255 for pixel in ROWS[0]]]})
    assert "pixels should be 0 to 255" in scaled.json()["warnings"][0]
    colour = Image.merge("RGB", [Image.fromarray(one) for one in digits()[:3]])
    for kind in ("PNG", "JPEG"):
        headers = {"content-type": f"image/{kind.lower()}"}
        answer = client.post("/score", content=picture(colour, kind), headers=headers)
        assert answer.json()["warnings"][0] == "colours were ignored: grey levels were read"


def test_reconstruct(client, digit_scorer):
    answer = client.post("/reconstruct?draws=2", json={"instances": ROWS[:2]})
    body = schemas.ReconstructionsAnswer.model_validate_json(answer.content)
    expected = digit_scorer.reconstruct(digits()[:2], draws=2)
    np.testing.assert_array_equal([row.mean for row in body.reconstructions], expected.mean.reshape(2, 8, 8))
    np.testing.assert_array_equal([row.draws for row in body.reconstructions], expected.draws.reshape(2, 2, 8, 8))
    assert len(body.reconstructions[0].feature_log_likelihood) == 64
    assert from_npy(post_npy(client, "/reconstruct", digits()[:2], accept="application/x-npy")).shape == (2, 8, 8)
    shown = client.post("/reconstruct?draws=2", json={"instances": ROWS[:2]}, headers={"accept": "image/png"})
    assert Image.open(io.BytesIO(shown.content)).size == (3 * 9 - 1, 2 * 9 - 1)


def test_sample(client):
    answer = client.get("/sample?num=3&seed=7")
    body = schemas.SamplesAnswer.model_validate_json(answer.content)
    assert answer.content == client.get("/v1/sample?num=3&seed=7").content
    assert np.array(body.samples).shape == (3, 8, 8)
    assert np.array(body.latents).shape == (3, 4)
    free = client.get("/sample?num=1")
    assert free.headers["cache-control"] == "no-store"
    assert free.headers["x-seed"] == str(free.json()["seed"])
    again = client.get("/sample", params={"num": 1, "seed": free.json()["seed"]})
    assert again.json()["samples"] == free.json()["samples"]
    assert again.headers["cache-control"] == "private, no-cache"
    assert client.get("/sample?num=1", headers={"if-none-match": again.headers["etag"]}).status_code == 200
    same = {"num": 1, "seed": free.json()["seed"]}
    kept = client.get("/sample", params=same, headers={"if-none-match": f'"x", {again.headers["etag"]}'})
    assert (kept.status_code, kept.content) == (304, b"")
    shown = client.get("/sample?num=4&seed=1&of=mean", headers={"accept": "image/png, */*;q=0.1"})
    assert Image.open(io.BytesIO(shown.content)).size == (17, 17)


def test_encode_and_decode(client, digit_scorer):
    answer = client.post("/encode?draws=2", json={"instances": ROWS})
    body = schemas.EncodingsAnswer.model_validate_json(answer.content)
    assert np.array(body.encodings[0].draws).shape == (2, 4)
    mean = [row.mean for row in body.encodings]
    np.testing.assert_array_equal(mean, digit_scorer.encode(digits()[:5]).mean)
    decoded = client.post("/decode", json={"latents": mean})
    schemas.MeansAnswer.model_validate_json(decoded.content)
    by_npy = post_npy(client, "/decode", np.array(mean), accept="application/x-npy")
    np.testing.assert_array_equal(from_npy(by_npy), decoded.json()["means"])
    assert from_npy(post_npy(client, "/encode", digits()[:5], accept="application/x-npy")).shape == (5, 2, 4)


def test_manifold(client):
    body = schemas.ManifoldAnswer.model_validate_json(client.get("/manifold?size=3&axes=2,0").content)
    assert body.axes == (2, 0)
    assert np.array(body.means).shape == (9, 8, 8)
    shown = client.get("/manifold?size=5", headers={"accept": "image/*"})
    assert Image.open(io.BytesIO(shown.content)).size == (44, 44)


def test_models_and_status(client, tiny_store):
    listed = schemas.ModelsAnswer.model_validate_json(client.get("/models").content)
    assert listed.default == "digits"
    assert [model.name for model in listed.models] == ["digits", "grey", "wine"]
    one = schemas.ModelAnswer.model_validate_json(client.get("/models/wine").content)
    assert one.card == json.loads((tiny_store / "wine" / "1" / "card.json").read_bytes())
    assert one.serving == "1"
    assert client.get("/livez").json()["status"] == "ok"
    ready = schemas.StatusAnswer.model_validate_json(client.get("/readyz").content)
    assert ready.models == {"digits": "ready", "grey": "ready", "wine": "ready"}


def test_drift_counts_what_was_served(tiny_store, tmp_path):
    with running_service(tiny_store, tmp_path / "log") as client:
        scores = post_npy(client, "/score?percentiles=5,95", digits()[:40]).json()["scores"]
        body = schemas.DriftsAnswer.model_validate_json(client.get("/drift?model=digits").content)
        assert body.drift[0].rows == 40
        assert sum(body.drift[0].p_value_deciles) == 40
        assert body.drift[0].sides["inside"] == sum(score["p_value"] > 0.5 for score in scores)  # of its own band
        assert len(client.get("/drift").json()["drift"]) == 3


def test_metrics_and_request_ids(client):
    answer = client.post("/score", json={"instances": ROWS}, headers={"x-request-id": "my-request.1"})
    assert answer.headers["x-request-id"] == "my-request.1"
    odd = client.get("/livez", headers={"x-request-id": "a b\tc" * 40})
    assert len(odd.headers["x-request-id"]) == 32
    text = client.get("/metrics").text
    assert 'vouch_requests_total{method="POST",path="/score",status="200"}' in text
    assert 'vouch_rows_total{model="digits@1",side=' in text
    assert "vouch_queue_evaluations" in text


def test_the_open_inference_protocol(client):
    assert client.get("/v2").json()["name"] == "vouch"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/digits/versions/1/ready").json()["ready"] is True
    metadata = client.get("/v2/models/digits").json()
    assert metadata["inputs"] == [{"name": "rows", "datatype": "FP32", "shape": [-1, 64]}]
    tensor = {"name": "rows", "shape": [2, 64], "datatype": "UINT8", "data": ROWS[0] + ROWS[1]}
    answer = client.post("/v2/models/digits/infer", json={"id": "7", "inputs": [tensor]}).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    plain = client.post("/score", json={"instances": ROWS[:2]}).json()["scores"]
    for name in ("log_likelihood", "percentile", "p_value", "verdict"):
        assert outputs[name] == [score[name] for score in plain]
    assert answer["id"] == "7"
    for change in (
        {"shape": [2, 63]}, {"datatype": "BYTES"}, {"data": ["x"] * 128}, {"data": []}, {"shape": [-2, 64]},
        {"data": None}, {"data": [True] * 128}, {"data": ["a" * 2**20, *[""] * 10_000]}, {"shape": [2, 64] + 98 * [1]},
    ):  # fmt: skip
        refused = client.post("/v2/models/digits/infer", json={"inputs": [{**tensor, **change}]})
        assert refused.status_code == 422
        assert set(refused.json()) == {"error"}
    twice = {"inputs": [tensor], "outputs": 2 * [{"name": "p_value"}]}
    assert client.post("/v2/models/digits/infer", json=twice).status_code == 422
    assert client.get("/v2/models/nothing").status_code == 404
    assert client.post("/v2/models/digits/infer", content=b"{").status_code == 400


def test_lines_are_answered_in_order_with_errors_in_their_place(client, digit_scorer):
    lines = [json.dumps(ROWS[index % 5]) for index in range(150)]
    lines[3], lines[100] = "[1, 2]", "nonsense"
    answer = client.post("/score", content="\n".join(lines) + "\n\n", headers={"content-type": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    documents = [json.loads(line) for line in answer.text.splitlines()]
    assert len(documents) == 150
    assert documents[3]["status"] == 422
    assert documents[100]["status"] == 400
    expected = digit_scorer.score(digits()[:5]).log_likelihood.tolist()
    others = [index for index in range(150) if index not in (3, 100)]
    assert [documents[index]["log_likelihood"] for index in others] == [expected[index % 5] for index in others]


def test_every_example_of_the_openapi_document_runs(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= {"/score", "/reconstruct", "/sample", "/encode", "/decode", "/manifold", "/models"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.endswith(("/aliases", "/feedback")):
                continue  # these write to the store, and need a journal; their own tests do it
            inside = [item for item in operation.get("parameters", []) if item["in"] == "path"]
            names = {
                item["name"]: item["example"] if "example" in item else item["schema"]["enum"][0] for item in inside
            }
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            if "application/json" in operation.get("requestBody", {}).get("content", {}) and "/v2/" not in path:
                assert body is not None, path
            if path.endswith(("/infer", "/files", ".ndjson")):
                continue  # their bodies are not examples in JSON, and have their own tests
            answer = client.request(method, path.format(**names), json=body)
            assert answer.status_code == 200, (path, answer.text)


def test_the_documentation_page_needs_no_other_host(client):
    page = client.get("/docs").text
    assert "http://" not in page.replace(str(client.base_url), "")
    assert "https://" not in page
    assert client.get("/docs-assets/swagger-ui-bundle.js").status_code == 200


# What is refused


@pytest.mark.parametrize("name", ["half", "deep", "NaN", "a string", "many wrong cells"])
def test_unreadable_json_is_refused_in_words(client, name):
    body, status = JSON_BODIES[name]
    check_problem(client.post("/score", content=body, headers={"content-type": "application/json"}), status, SECRET)


def test_a_fault_says_row_column_and_what_was_expected(client):
    named = dict(zip(data_of("wine").columns, data_of("wine").array[0].tolist(), strict=True))
    wrong = named | {"ash": "high"}
    problem = check_problem(client.post("/score?model=wine", json={"instances": [named, wrong]}), 422)
    fault = problem.errors[0]
    assert (fault.row, fault.column, fault.expected) == (1, "ash", "a number")
    del wrong["ash"]
    problem = check_problem(client.post("/score?model=wine", json={"instances": [wrong]}), 422)
    assert (problem.errors[0].column, problem.errors[0].message) == ("ash", "missing column")
    problem = check_problem(client.post("/score?model=wine", json={"instances": [named | {"x": SECRET}]}), 422, SECRET)
    assert (problem.errors[0].column, problem.errors[0].message) == ("x", "unknown column")
    check_problem(client.post("/score?model=wine", json={"instances": [named | {"id": [SECRET]}]}), 422, SECRET)
    text = "ash\n1\n"
    check_problem(client.post("/score?model=wine", content=text, headers={"content-type": "text/csv"}), 422)
    table = ",".join(data_of("wine").columns) + "\n" + ",".join([SECRET] * 13)
    check_problem(client.post("/score?model=wine", content=table, headers={"content-type": "text/csv"}), 422, SECRET)


@pytest.mark.parametrize("name", ["empty", "truncated", "pickled", "a huge shape", "NaN"])
def test_an_unreadable_npy_body_is_refused(client, name):
    body, status = NPY_BODIES[name]
    check_problem(client.post("/score", content=body, headers={"content-type": "application/x-npy"}), status, SECRET)


def test_an_unreadable_image_is_refused(client):
    def send(content, kind="image/png", model="digits"):
        return client.post(f"/score?model={model}", content=content, headers={"content-type": kind})

    check_problem(send(b"hello"), 400)
    check_problem(send(picture(Image.fromarray(digits()[0]))[:60]), 400)
    assert send(picture(Image.fromarray(digits()[0])), "image/jpeg").status_code == 200  # for what it plainly is
    check_problem(send(png_bomb(30_000, 30_000)), 413)
    check_problem(send(png_bomb(100_000, 8)), 422)
    check_problem(send(picture(Image.new("L", (9, 8)))), 422)
    check_problem(send(picture(Image.new("L", (8, 8))), model="wine"), 415)


def test_a_table_body_with_a_huge_header_is_refused_at_once(client):
    start = time.monotonic()
    content = "," * 2_000_000 + "\n1\n"
    check_problem(client.post("/score?model=wine", content=content, headers={"content-type": "text/csv"}), 413)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("identity", ["\ud800", True, float("inf"), "x" * 257, {"a": 1}])
def test_an_id_that_could_not_come_back_is_refused(client, identity):
    row = dict(zip(data_of("wine").columns, data_of("wine").array[0].tolist(), strict=True))
    body = json.dumps({"instances": [row | {"id": identity}]})
    check_problem(client.post("/score?model=wine", content=body, headers={"content-type": "application/json"}), 422)
    lines = json.dumps(row | {"id": identity}) + "\n" + json.dumps(row | {"id": "good"})
    answer = client.post("/score?model=wine", content=lines, headers={"content-type": "application/x-ndjson"})
    first, second = map(json.loads, answer.text.splitlines())
    assert first["status"] == 422
    assert second["id"] == "good"


def test_a_line_is_one_row_whatever_its_brackets_say(client):
    row = json.dumps(ROWS[0])
    answer = client.post(
        "/score", content=f'{row}],"instances":[{row}', headers={"content-type": "application/x-ndjson"}
    )
    assert answer.json()["status"] == 400


def test_a_body_that_stalls_is_504_and_a_client_that_hangs_up_is_no_error_of_ours(tiny_store, tmp_path):
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n"
    log = tmp_path / "log"
    with running_service(tiny_store, log) as client:
        port = client.base_url.port
        with socket.create_connection(("127.0.0.1", port), timeout=20) as stalled:
            stalled.sendall(head + b"X-Request-Timeout: 0.5\r\n\r\n{")
            assert b" 504 " in stalled.recv(4096)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as hung_up:
            hung_up.sendall(head + b"\r\n{")
        time.sleep(0.5)
        assert 'status="500"' not in client.get("/metrics").text
    assert "Traceback" not in log.read_text()


def test_numbers_that_overflow_on_the_way_out_are_refused(client):
    check_problem(client.post("/decode?model=wine", json={"latents": [[3e38, 3e38]]}), 422)


def test_an_alias_that_moves_leaves_the_service_ready_and_refuses_what_cannot_be_served(tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "store")
    store = Store(tmp_path / "store")
    published = store.load(store.resolve("digits@1"))
    for _ in range(2):
        store.publish("digits", Draft(published.model, published.calibration, {}, {}))
    (tmp_path / "store" / "digits" / "3" / "weights.safetensors").write_bytes(b"")
    store.set_alias("digits", "production", "1")
    with running_service(tmp_path / "store", tmp_path / "log") as client:
        path, move = "/models/digits/aliases", {"alias": "production", "version": "2"}
        check_problem(client.post(path, content=json.dumps(move), headers={"content-type": "text/plain"}), 415)
        check_problem(client.post(path, json=move | {SECRET: 1}), 422, SECRET)
        check_problem(client.post(path, json=move | {"version": "3"}), 503)
        assert client.post("/score", json={"instances": ROWS}).json()["model"]["version"] == "1"
        assert client.post(path, json=move).status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.post("/score", json={"instances": ROWS}).json()["model"]["version"] == "2"
        store.set_alias("digits", "production", "1")  # by another process
        client.process.send_signal(signal.SIGHUP)
        eventually(lambda: client.post("/score", json={"instances": ROWS}).json()["model"]["version"] == "1")
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/score", 405),
        ("GET", "/models//", 404),
        ("DELETE", "/models", 405),
        ("GET", "/models/nothing", 404),
        ("GET", f"/sample?model={SECRET}", 404),
        ("GET", "/sample?model=digits@9", 404),
        ("GET", "/sample?model=digits@nobody", 404),
        ("GET", "/sample?model=..%2F..%2Fetc", 404),
        ("GET", "/models/..%2F..%2Fetc", 404),
        ("GET", f"/sample?num={SECRET}", 422),
        ("GET", "/sample?num=0", 422),
        ("GET", "/sample?num=100000", 422),
        ("GET", "/sample?seed=-1", 422),
        ("GET", "/sample?of=everything", 422),
        ("GET", f"/sample?{SECRET}=1", 422),
        ("GET", "/manifold?axes=0", 422),
        ("GET", "/manifold?axes=0,9", 422),
        ("GET", "/manifold?axes=1,1", 422),
        ("GET", "/manifold?size=1000", 422),
        ("GET", "/drift?model=nothing", 404),
    ],
)
def test_wrong_paths_methods_models_and_parameters(client, method, path, status):
    check_problem(client.request(method, path), status, SECRET)


@pytest.mark.parametrize("pair", ["75,25", "25", "a,b", "0,50", "0.001,50", "nan,50", "1,2,3", "", "50,1e999"])
def test_percentiles_that_cannot_be_given(client, pair):
    check_problem(client.post("/score", params={"percentiles": pair}, json={"instances": ROWS}), 422)


@pytest.mark.parametrize(
    "latents",
    [[], [[1.0]], [[1, 2, 3, "x"]], [[1, 2, 3, 1e39]], [[1, 2, 3, None]], "x", [[1, 2, 3, True]], [[1, 2, 3, [4]]]],
)
def test_latents_that_cannot_be_decoded(client, latents):
    check_problem(client.post("/decode", json={"latents": latents}), 422)


def test_types_that_are_not_spoken(client):
    body = instances(ROWS[0])
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "br"},
        {"content-type": "application/json", "content-encoding": "gzip, gzip"},
        {"content-type": "text/csv"},
    ):
        check_problem(client.post("/score", content=body, headers=headers), 415)
    check_problem(client.post("/decode", content=body, headers={"content-type": "image/png"}), 415)
    for path, accept in (("/score", "text/html"), ("/score", "image/png"), ("/score", "application/json;q=0")):
        headers = {"content-type": "application/json", "accept": accept}
        check_problem(client.post(path, content=body, headers=headers), 406)
    check_problem(client.get("/sample?model=wine", headers={"accept": "image/png"}), 406)


def test_a_body_over_the_limit_is_refused_declared_or_not(client):
    def chunks():
        for _ in range(100):
            yield b" " * 2**20

    def send(content):
        return client.post("/score", content=content, headers={"content-type": "application/json"})

    for content in (b" " * 100 * 2**20, chunks()):
        try:
            answer = send(content)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            continue  # the server answered and hung up before all of it was sent
        check_problem(answer, 413)
    assert client.get("/livez").status_code == 200


def test_too_many_rows_draws_and_line_bytes_are_refused(tiny_store, tmp_path):
    with running_service(tiny_store, tmp_path / "log", max_rows="4", max_draws="3") as client:
        check_problem(client.post("/score", json={"instances": ROWS}), 413)
        check_problem(post_npy(client, "/score", digits()[:5]), 413)
        check_problem(client.post("/decode", json={"latents": [[0.0] * 4] * 5}), 413)
        check_problem(client.post("/reconstruct?draws=4", json={"instances": ROWS[:1]}), 422)
        check_problem(client.post("/encode?draws=4", json={"instances": ROWS[:1]}), 422)
        check_problem(client.post("/encode?draws=3", json={"instances": ROWS[:2]}), 422)
        check_problem(
            client.post(
                "/score",
                content=b'{"instances":[' + b"[]," * 10**6 + b"[]]}",
                headers={"content-type": "application/json"},
            ),
            413,
        )


def test_a_key_is_asked_for_where_keys_are_set(tiny_store, tmp_path):
    import hashlib

    shutil.copytree(tiny_store, tmp_path / "store")
    keys = tmp_path / "keys"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("reader", "boss")}
    keys.write_text(f"# ours\n{digests['reader']} score\n{digests['boss']} score,admin\n")
    reader, boss = {"authorization": "Bearer reader"}, {"x-api-key": "boss"}
    with running_service(
        tmp_path / "store", tmp_path / "log", api_keys_file=str(keys), open_paths='["/metrics"]'
    ) as client:
        protocols = client.get("/v2")
        assert (protocols.status_code, set(protocols.json())) == (401, {"error"})
        for path in ("/models", "/docs", "/openapi.json", "/nothing", "/v1/models"):
            refused = client.get(path)
            check_problem(refused, 401)
            assert refused.headers["www-authenticate"] == "Bearer"
        check_problem(client.get("/models", headers={"x-api-key": SECRET}), 401, SECRET)
        for path in ("/livez", "/readyz", "/v1/readyz", "/metrics"):
            assert client.get(path).status_code == 200
        assert client.get("/models", headers=reader).status_code == 200
        move = {"alias": "production", "version": "1"}
        check_problem(client.post("/models/digits/aliases", json=move, headers=reader), 403)
        moved = client.post("/models/digits/aliases", json=move, headers=boss)
        assert schemas.AliasAnswer.model_validate_json(moved.content).aliases == {"production": "1"}
        assert client.get("/models/digits", headers=reader).json()["versions"][0]["aliases"] == ["production"]
        assert (
            client.post("/score?model=digits@production", json={"instances": ROWS}, headers=reader).status_code == 200
        )
        expecting = move | {"expected": "2"}
        check_problem(client.post("/models/digits/aliases", json=expecting, headers=boss), 409)
        check_problem(client.post("/models/digits/aliases", json=move | {"version": "9"}, headers=boss), 404)
        check_problem(
            client.post("/models/digits/aliases", json=move | {"alias": SECRET.upper()}, headers=boss),
            422,
            SECRET.upper(),
        )
        unreadable = boss | {"content-type": "application/json"}
        check_problem(client.post("/models/digits/aliases", content=b"{", headers=unreadable), 400)


def test_a_full_queue_is_429_and_a_late_request_504(tiny_store, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    many = np.repeat(digits()[:100], 20, axis=0)
    with running_service(tiny_store, tmp_path / "log", max_queue_evaluations="600000", threads="1") as client:
        check_problem(post_npy(client, "/score", many, **{"x-request-timeout": "0.01"}), 504)
        check_problem(client.post("/score", json={"instances": ROWS}, headers={"x-request-timeout": "soon"}), 422)
        # The one whose time ran out is behind us when a later one is answered.
        assert client.post("/score", json={"instances": ROWS}).status_code == 200
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: post_npy(client, "/score", many), range(6)))
        statuses = sorted(answer.status_code for answer in answers)
        assert set(statuses) == {200, 429}
        full = next(answer for answer in answers if answer.status_code == 429)
        check_problem(full, 429)
        assert int(full.headers["retry-after"]) >= 1
        assert client.post("/score", json={"instances": ROWS}).status_code == 200


def test_a_damaged_model_is_503_by_name_and_the_others_are_served(tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "store")
    weights = tmp_path / "store" / "wine" / "1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (tmp_path / "store" / "grey" / "2").mkdir()  # half-written: it has no manifest
    with running_service(tmp_path / "store", tmp_path / "log") as client:
        problem = check_problem(
            client.post("/score?model=wine", json={"instances": [data_of("wine").array[0].tolist()]}), 503
        )
        assert "wine@1: weights.safetensors" in problem.detail
        assert client.post("/score", json={"instances": ROWS}).status_code == 200
        assert client.post("/score?model=grey", json={"instances": ROWS}).status_code == 200
        assert "half-written" in check_problem(client.get("/sample?model=grey@2"), 503).detail
        assert "weights.safetensors" in client.get("/readyz").json()["models"]["wine"]
        assert "weights.safetensors" in client.get("/models").json()["models"][2]["versions"][0]["error"]
        assert client.get("/models/wine").status_code == 200


def test_a_store_that_is_not_there_is_not_taken_for_an_empty_one(tmp_path):
    with running_service(tmp_path / "nowhere", tmp_path / "log") as client:
        assert client.get("/livez").status_code == 200
        assert "FileNotFoundError" in client.get("/readyz").json()["held_back"]["store"]
        check_problem(client.get("/sample"), 503)


def test_a_store_without_its_default_model_is_alive_and_not_ready(tmp_path):
    (tmp_path / "empty").mkdir()
    with running_service(tmp_path / "empty", tmp_path / "log") as client:
        assert client.get("/livez").status_code == 200
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "retry-after" in ready.headers
        check_problem(client.get("/sample"), 404)
        assert client.get("/openapi.json").status_code == 200


def test_logs_are_json_with_the_request_id_and_without_the_input(tiny_store, tmp_path):
    log = tmp_path / "log"
    with running_service(tiny_store, log) as client:
        client.post("/score", json={"instances": [[SECRET] * 64]}, headers={"x-request-id": "bad-one"})
        client.post("/score", json={"instances": ROWS}, headers={"x-request-id": "good-one"})
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    by_id = {entry["request_id"]: entry for entry in entries if "request_id" in entry}
    assert by_id["bad-one"]["status"] == 422
    assert by_id["good-one"]["rows"] == 5
    assert by_id["good-one"]["model"] == "digits@1"
    assert by_id["good-one"]["ms"] > 0
    assert SECRET not in log.read_text()


def test_accepted_requests_are_finished_when_the_service_is_told_to_stop(tiny_store, tmp_path):
    import threading

    many = np.repeat(digits()[:100], 20, axis=0)
    with running_service(tiny_store, tmp_path / "log", threads="1") as client:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(post_npy(client, "/score", many)))
        thread.start()
        time.sleep(0.3)
        client.process.terminate()
        thread.join(30)
        assert answers[0].status_code == 200
        assert client.process.wait(20) == 0
