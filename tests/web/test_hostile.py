"""Who means harm: bodies that would cost minutes or gigabytes, stores that hang, inference that fails, foreign pages."""

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time

import httpx
import numpy as np
import psutil
import pytest

from service.store.store import Store
from tests.models import ROWS, data_of, digits
from tests.tools import check_problem, eventually, npy, running_service
from tests.web.test_access import digest

BODY = {"instances": ROWS}
JSON, CSV, NPY = ({"content-type": kind} for kind in ("application/json", "text/csv", "application/x-npy"))
SOON_S = 10.0  # a fraction of a second on an idle machine
MANY = 2**24


@pytest.fixture(scope="module")
def service(tiny_store, tmp_path_factory):
    with running_service(tiny_store, tmp_path_factory.mktemp("hostile") / "log") as client:
        client.post("/score", json=BODY)
        yield client


@contextlib.contextmanager
def watched(client):
    """The longest that /livez took meanwhile, in seconds, and by how many MiB the process grew at most."""
    process, seen, stop = psutil.Process(client.process.pid), {"stall_s": 0.0, "growth_mib": 0.0}, threading.Event()
    before = process.memory_info().rss

    def watch():
        with httpx.Client(base_url=client.base_url, timeout=60) as probe:
            while not stop.is_set():
                started = time.perf_counter()
                assert probe.get("/livez").status_code == 200
                seen["stall_s"] = max(seen["stall_s"], time.perf_counter() - started)
                seen["growth_mib"] = max(seen["growth_mib"], (process.memory_info().rss - before) / 2**20)
                time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


BIG = b"9223372036854775807,"
TENSOR = b'{"inputs": [{"name": "rows", "datatype": "FP32", "shape": [1, 64], "data": ['
SHAPE = b'{"inputs": [{"name": "rows", "datatype": "FP32", "data": [1], "shape": ['
BODIES = {
    "a shape of many big lengths": ("/v2/models/digits/infer", SHAPE + BIG * 120_000 + b"1]}]}", JSON),
    "a shape of a few big lengths": ("/v2/models/digits/infer", SHAPE + BIG * 3_000 + b"1]}]}", JSON),
    "data of many numbers": ("/v2/models/digits/infer", TENSOR + b"1," * (MANY // 2) + b"1]}]}", JSON),
    "data of empty lists": ("/v2/models/digits/infer", TENSOR + b"[]," * (MANY // 3) + b"[]]}]}", JSON),
    "many inputs": ("/v2/models/digits/infer", b'{"inputs": [' + b"{}," * (MANY // 3) + b"{}]}", JSON),
    "empty latents": ("/decode", b'{"latents": [' + b"[]," * (MANY // 3) + b"[]]}", JSON),
    "empty rows": ("/score", b'{"instances": [' + b"[]," * (MANY // 3) + b"[]]}", JSON),
    "empty objects": ("/score?model=wine", b'{"instances": [' + b"{}," * (MANY // 3) + b"{}]}", JSON),
    "one row of many numbers": ("/score", b'{"instances": [[' + b"1," * (MANY // 2) + b"1]]}", JSON),
    "brackets": ("/score", b'{"instances": ' + b"[" * MANY, JSON),
    "a narrow table": ("/score?model=wine", b"ash,hue\n" + b"1,2\n" * (MANY // 4), CSV),
    "a wide table": ("/score?model=wine", b"a," * (MANY // 2) + b"b\n1,2\n", CSV),
    "a table of quotes": ("/score?model=wine", b"ash,hue\n" + b'"",""\n' * (MANY // 6), CSV),
    "a table that is no text": ("/score?model=wine", b"ash,hue\n" + b"\xe9\x81,\xff\n" * (MANY // 5), CSV),
    "one cell": ("/score?model=wine", b'ash,hue\n"' + b"x" * MANY, CSV),
    "an alias": ("/models/digits/aliases", b'{"alias": "' + b"x" * MANY + b'", "version": "1"}', JSON),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_large_body_is_refused_soon_and_costs_little(service, name):
    path, body, headers = BODIES[name]
    with watched(service) as seen:
        started = time.perf_counter()
        refused = service.post(path, content=body, headers=headers)
        took = time.perf_counter() - started
    assert refused.status_code in (400, 413, 422), refused.text
    assert len(refused.content) < 10_000
    assert took < SOON_S
    assert seen["stall_s"] < SOON_S / 4
    assert seen["growth_mib"] < 500


def test_large_bodies_that_are_right_are_scored(service):
    rows = np.repeat(digits()[:50], 8, axis=0).reshape(400, -1)
    expected = service.post("/score", content=npy(rows), headers=NPY).json()["scores"]
    nested = rows.reshape(-1, 8, 8).tolist()
    for body in (
        json.dumps({"instances": rows.astype(float).tolist()}),
        json.dumps({"instances": nested}, indent=2),
        json.dumps({"instances": [None if at == 7 else row for at, row in enumerate(nested)]}),
    ):
        assert len(body) > 100_000
        answer = service.post("/score", content=body, headers=JSON)
        if "null" in body:
            assert answer.json()["errors"][0]["row"] == 7
        else:
            assert answer.json()["scores"] == expected
    tensor = {"name": "rows", "shape": [400, 64], "datatype": "FP64", "data": rows.astype(float).ravel().tolist()}
    for data in (tensor["data"], rows.astype(float).tolist()):
        answer = service.post("/v2/models/digits/infer", json={"inputs": [{**tensor, "data": data}]}).json()
        assert answer["outputs"][0]["data"] == [score["log_likelihood"] for score in expected]
    wine, names = data_of("wine").array, data_of("wine").columns
    objects = [
        {"id": at, **dict(zip(names, row.tolist(), strict=True))} for at, row in enumerate(np.tile(wine, (5, 1)))
    ]
    answer = service.post("/score?model=wine", content=json.dumps({"instances": objects}), headers=JSON).json()[
        "scores"
    ]
    assert [score["id"] for score in answer] == list(range(len(objects)))
    del objects[600]["hue"]
    refused = service.post("/score?model=wine", content=json.dumps({"instances": objects}), headers=JSON)
    assert refused.json()["errors"] == [
        {"row": 600, "column": "hue", "message": "missing column", "expected": "a value, or null"}
    ]
    number = service.get("/models/digits").json()["card"]["architecture"]["latents"]
    latents = np.random.default_rng(0).normal(size=(5000, number))
    means = service.post("/decode?model=digits", content=json.dumps({"latents": latents.tolist()}), headers=JSON)
    assert len(means.json()["means"]) == 5000


def test_the_deadline_covers_the_parsing(service):
    wine = data_of("wine")
    row = json.dumps(dict(zip(wine.columns, wine.array[0].tolist(), strict=True)))
    slow = ('{"instances": [' + ",".join([row] * 10_000) + "]}").encode()
    late = service.post("/score?model=wine", content=slow, headers={**JSON, "x-request-timeout": "0.15"})
    check_problem(late, 504)
    assert float(late.headers["server-timing"].rpartition("total;dur=")[2]) < 2_000


# A store that hangs

HANGS = """
import os, sys, time
from service.store import storage
usual = storage.LocalStorage.versions
def versions(self):
    while os.path.exists(os.environ["HANG"]):
        time.sleep(0.05)
    return usual(self)
storage.LocalStorage.versions = versions
from service.serving import registry
registry.SILENT_S = 1.0
sys.argv = ["vouch", "serve"]
from service.cli.main import main
main()
"""


def test_a_store_that_hangs_stops_nobody_and_shows(tiny_store, tmp_path, monkeypatch):
    flag = tmp_path / "hang"
    monkeypatch.setenv("HANG", str(flag))
    with running_service(tiny_store, tmp_path / "log", ("-c", HANGS), store_poll_s="0.2") as client:
        flag.touch()
        eventually(lambda: "has not answered" in client.get("/readyz").json()["held_back"].get("store", ""))
        for _ in range(10):
            client.process.send_signal(signal.SIGHUP)
        rows = np.repeat(digits()[:1], 200, axis=0)
        for _ in range(8):
            assert client.post("/score", content=npy(rows), headers=NPY).status_code == 200
            assert client.post("/score", json={"instances": rows.tolist()}).status_code == 200
        assert client.get("/readyz").status_code == 200
        assert float(metric_of(client, "vouch_store_silent_seconds")) > 1
        moved = client.post(
            "/models/digits/aliases", json={"alias": "a", "version": "1"}, headers={"x-request-timeout": "0.5"}
        )
        check_problem(moved, 504)
        flag.unlink()
        eventually(lambda: "store" not in client.get("/readyz").json()["held_back"])
        flag.touch()
        time.sleep(1)
        started = time.monotonic()
        client.process.terminate()
        assert client.process.wait(15) == 0
        assert time.monotonic() - started < 10


def metric_of(client, name):
    return next(line.split()[1] for line in client.get("/metrics").text.splitlines() if line.startswith(name + " "))


def test_a_pipe_in_place_of_the_aliases_is_an_error_and_no_wait(tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "store")
    with running_service(tmp_path / "store", tmp_path / "log", store_poll_s="0.2") as client:
        aliases = tmp_path / "store" / "aliases.json"
        content = aliases.read_bytes() if aliases.exists() else None
        aliases.unlink(missing_ok=True)
        os.mkfifo(aliases)
        eventually(lambda: "aliases.json is damaged" in client.get("/readyz").json()["held_back"].get("store", ""))
        assert client.post("/score", json=BODY).status_code == 200
        aliases.unlink()
        if content is not None:
            aliases.write_bytes(content)
        eventually(lambda: not client.get("/readyz").json()["held_back"])


# Inference that fails

FAILS = """
import os, sys
from service.scoring.scorer import Scorer
from service.web import app
app.CHECK_S = 0.1
usual = Scorer.score_read
def score(self, *arguments, **options):
    if os.path.exists(os.environ["FAIL"]):
        raise RuntimeError("the device is gone")
    return usual(self, *arguments, **options)
Scorer.score_read = score
sys.argv = ["vouch", "serve"]
from service.cli.main import main
main()
"""


def test_inference_that_always_fails_shows_and_heals(tiny_store, tmp_path, monkeypatch):
    flag = tmp_path / "fail"
    monkeypatch.setenv("FAIL", str(flag))
    with running_service(tiny_store, tmp_path / "log", ("-c", FAILS)) as client:
        flag.touch()
        statuses = [client.post("/score", json=BODY).status_code for _ in range(6)]
        assert set(statuses) <= {500, 503}
        eventually(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/readyz").json()["held_back"] == {"inference": "inference fails: RuntimeError"}
        refused = client.post("/score", json=BODY)
        check_problem(refused, 503)
        assert "retry-after" in refused.headers
        assert client.get("/livez").status_code == 200  # for two minutes
        flag.unlink()
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/score", json=BODY).status_code == 200


# Keys, policies, browsers


@pytest.fixture
def keyed(tiny_store, tmp_path):
    """A service with the keys `shop`, for digits alone and a few rows a second, and `boss`, and a policy."""
    shutil.copytree(tiny_store, tmp_path / "store")
    lines = [
        f"{digest('shop')} score id=shop models=digits rows_per_s=50 concurrent_rows=40",
        f"{digest('boss')} admin id=boss",
    ]
    (tmp_path / "keys").write_text("\n".join(lines))
    settings = {"api_keys_file": str(tmp_path / "keys"), "policy": "percentiles=10,90"}
    with running_service(tmp_path / "store", tmp_path / "log", **settings) as client:
        yield client


def as_key(key):
    return {"x-api-key": key}


def test_a_key_may_use_its_models_its_quota_and_its_scopes(keyed, tmp_path):
    shop, boss = as_key("shop"), as_key("boss")
    assert keyed.post("/score", json=BODY, headers=shop).status_code == 200
    for path in ("/score?model=wine", "/reconstruct?model=wine", "/encode?model=wine@1"):
        check_problem(keyed.post(path, json=BODY, headers=shop), 403)
    for path in ("/models/wine", "/drift?model=wine", "/sample?model=wine", "/manifold?model=wine"):
        check_problem(keyed.get(path, headers=shop), 403)
    assert keyed.get("/v2/models/wine", headers=shop).status_code == 403
    assert [model["name"] for model in keyed.get("/models", headers=shop).json()["models"]] == ["digits"]
    assert len(keyed.get("/models", headers=boss).json()["models"]) > 1
    many = {"instances": digits()[:45].reshape(45, -1).tolist()}
    answers = [keyed.post("/score", json=many, headers=shop) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    assert keyed.post("/score", json=many, headers=boss).status_code == 200
    drift = keyed.get("/drift?model=digits", headers=boss).json()["drift"][0]["keys"]
    assert {one["key"] for one in drift} == {"shop", "boss"}
    assert {one["key"] for one in keyed.get("/drift?model=digits", headers=shop).json()["drift"][0]["keys"]} == {"shop"}
    moved = keyed.post("/models/digits/aliases", json={"alias": "stable", "version": "1"}, headers=boss)
    assert moved.status_code == 200
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    line = next(line for line in lines if line["message"] == "alias moved")
    expected = {
        "model": "digits",
        "alias": "stable",
        "version": "1",
        "before": None,
        "key": "boss",
        "address": "127.0.0.1",
    }
    assert expected.items() <= line.items()
    assert {line.get("key") for line in lines if line.get("path") == "/score"} == {"shop", "boss"}


def test_the_deployment_s_rule_is_nobody_s_to_change(keyed):
    boss = as_key("boss")
    plain = keyed.post("/score", json=BODY, headers=boss).json()
    assert plain["band"]["percentiles"] == [10.0, 90.0]
    assert keyed.post("/score?percentiles=10,90&explain=1", json=BODY, headers=boss).status_code == 200
    for query in ("percentiles=1,99", "false_alarm=0.1", "rule=combined", "false_alarm=0.2&tail=low"):
        check_problem(keyed.post(f"/score?{query}", json=BODY, headers=boss), 403)
    tensor = {"name": "rows", "shape": [len(ROWS), 64], "datatype": "FP64", "data": np.ravel(ROWS).tolist()}
    outputs = keyed.post("/v2/models/digits/infer", json={"inputs": [tensor]}, headers=boss).json()["outputs"]
    verdicts = next(output["data"] for output in outputs if output["name"] == "verdict")
    assert verdicts == [score["verdict"] for score in plain["scores"]]


PAGES = [
    ({}, 200), ({"origin": "{base}"}, 200), ({"sec-fetch-site": "same-origin"}, 200), ({"sec-fetch-site": "none"}, 200),
    ({"origin": "https://evil.example"}, 403), ({"origin": "null"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-site"}, 403), ({"content-type": "text/plain"}, 415),
    ({"content-type": "application/x-www-form-urlencoded"}, 415),
]  # fmt: skip


def test_a_page_of_another_origin_changes_nothing(tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "store")
    store = Store(tmp_path / "store")
    with running_service(tmp_path / "store", tmp_path / "log") as client:
        base = str(client.base_url).rstrip("/")
        for at, (given, status) in enumerate(PAGES):
            headers = JSON | {name: value.format(base=base) for name, value in given.items()}
            for path, body in (("aliases", {"alias": f"a{at}", "version": "1"}), ("drift", {"restart": True})):
                answer = client.post(f"/models/digits/{path}", content=json.dumps(body), headers=headers)
                assert answer.status_code == status, headers
            assert (store.aliases().aliases.get("digits", {}).get(f"a{at}") == "1") == (status == 200)


def test_forwarded_addresses_count_only_from_trusted_proxies(tiny_store, tmp_path):
    for proxies, expected in (("[]", "127.0.0.1"), ('["127.0.0.1"]', "203.0.113.9")):
        shutil.copytree(tiny_store, tmp_path / "store", dirs_exist_ok=True)
        log = tmp_path / f"log{expected}"
        with running_service(tmp_path / "store", log, trusted_proxies=proxies) as client:
            body = {"alias": "a", "version": "1"}
            client.post("/models/digits/aliases", json=body, headers={"x-forwarded-for": "198.51.100.1, 203.0.113.9"})
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert next(line for line in lines if line["message"] == "alias moved")["address"] == expected


def test_a_field_of_a_message_does_not_replace_the_line_s_own(tiny_store, tmp_path):
    with running_service(tiny_store, tmp_path / "log") as client:
        noise = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
        client.post("/score", content=npy(noise), headers=NPY)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (drift,) = [line for line in lines if line["message"] == "drift"]
    assert drift["level"] == "WARNING"
    assert drift["drift_level"] == 0.01


def test_one_slow_reader_does_not_hold_the_memory_of_its_answers(tiny_store, tmp_path):
    """Answers are charged until they are read: who reads nothing cannot ask for more and more of them."""
    settings = {"max_held_bytes": "20000000", "max_num": "100000", "header_timeout_s": "5"}
    with running_service(tiny_store, tmp_path / "log", **settings) as client, contextlib.ExitStack() as stack:
        head = b"GET /sample?num=8000&seed=1 HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(6):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", client.base_url.port), timeout=10))
            one.sendall(head)
        eventually(lambda: 'status="429"' in client.get("/metrics").text)
        eventually(lambda: client.get("/sample?num=8000&seed=1").status_code == 200, 30)


STUCK = """
import sys, time
from service.scoring.scorer import Scorer
usual = Scorer.score_read
def score(self, rows, *arguments, **options):
    if len(rows) == 7:
        time.sleep(1000)
    return usual(self, rows, *arguments, **options)
Scorer.score_read = score
sys.argv = ["vouch", "serve"]
from service.cli.main import main
main()
"""


@pytest.mark.slow
def test_the_process_ends_though_inference_hangs(tiny_store, tmp_path):
    settings = {"request_timeout_s": "1", "threads": "2"}
    with running_service(tiny_store, tmp_path / "log", ("-c", STUCK), **settings) as client:
        seven = {"instances": digits()[:7].reshape(7, -1).tolist()}
        check_problem(client.post("/score", json=seven), 504)
        started = time.monotonic()
        client.process.terminate()
        client.process.wait(60)
        assert time.monotonic() - started < 40
