"""The client: over a socket, and beside a service that is full, slow or not there."""

import asyncio
import contextlib
import io
import json
import socket
import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest

from service import errors
from service.client import ERRORS, AsyncClient, Client
from service.scoring.options import ScoreOptions
from service.web import problems
from tests.models import digits
from tests.tools import free_port


@pytest.fixture(scope="module")
def url(client):
    return str(client.base_url)


def test_verdicts_are_those_of_the_scorer_to_the_last_bit(url, digit_scorer):
    rows = digits()[:20].astype(np.uint8)
    expected = digit_scorer.score(rows)
    with Client(url) as vouch:
        answer = vouch.score(rows)
        by_rule = vouch.score(rows, false_alarm=0.1, tail="low", fdr=0.1)
        assert vouch.reconstruct(rows).shape == rows.shape
        assert np.array_equal(vouch.sample(3, seed=7), vouch.sample(3, seed=7))
    published = digit_scorer.published
    assert (answer.model, answer.digest) == (str(published.reference), published.digest)
    assert len(answer) == 20
    for name in ("valid", "certain", "log_likelihood", "std_error", "p_value"):
        assert np.array_equal(getattr(answer, name), getattr(expected, name)), name
    assert np.array_equal(answer.side, expected.sides)
    assert np.array_equal(by_rule.valid, digit_scorer.score(rows, ScoreOptions(false_alarm=0.1, tail="low")).valid)
    assert "discovery" in by_rule.records.dtype.names


def test_the_asynchronous_client_answers_alike(url):
    rows = digits()[:5].astype(np.uint8)

    async def asked():
        async with AsyncClient(url, deadline_s=30) as vouch:
            answers = await asyncio.gather(*(vouch.score(rows) for _ in range(4)))
            return answers, await vouch.reconstruct(rows), await vouch.sample(2, seed=1)

    answers, reconstructed, samples = asyncio.run(asked())
    with Client(url) as vouch:
        assert all(np.array_equal(one.records, vouch.score(rows).records) for one in answers)
        assert np.array_equal(reconstructed, vouch.reconstruct(rows))
        assert np.array_equal(samples, vouch.sample(2, seed=1))


def test_what_is_refused_raises_what_the_scorer_would_raise(url):
    with Client(url) as vouch:
        with pytest.raises(errors.InputError) as refused:
            vouch.score(np.full((2, 8, 8), 300.0))
        assert refused.value.faults[0].row == 0
        with pytest.raises(errors.CalibrationError, match="validation rows"):
            vouch.score(digits()[:1], false_alarm=1e-6)
    with Client(url, model="nobody") as vouch, pytest.raises(errors.ModelNotFoundError):
        vouch.score(digits()[:1])


def test_every_problem_of_the_service_is_known_to_the_client():
    for kind, status, slug in problems.STATUSES:
        raised = ERRORS[slug]
        assert raised is kind or (issubclass(raised, errors.UnavailableError) and status == 503)


@dataclass
class Script(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers in turn; the last one for ever."""

    answers: list
    requests: list = field(default_factory=list)

    def answer(self, request):
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def handle_request(self, request):
        return self.answer(request)

    async def handle_async_request(self, request):
        return self.answer(request)


def fine(request):
    return httpx.Response(200, content=npy_of(np.zeros(1, [("valid", "?")])), headers={"x-model": "m@1"})


def npy_of(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def problem(status, slug, retry_after=None):
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx.Response(status, json={"type": f"urn:vouch:problem:{slug}", "detail": "why"}, headers=headers)


def asked(script, asynchronous, **settings):
    """The answer of either client to one row."""
    row = np.zeros((1, 4))
    if not asynchronous:
        with Client("http://service", transport=script, **settings) as vouch:
            return vouch.score(row)

    async def main():
        async with AsyncClient("http://service", transport=script, **settings) as vouch:
            return await vouch.score(row)

    return asyncio.run(main())


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@BOTH
def test_a_full_queue_is_tried_again_after_the_time_that_it_asks_for(asynchronous):
    script = Script([problem(429, "overloaded", "1"), problem(503, "unavailable", "1"), fine])
    start = time.monotonic()
    assert asked(script, asynchronous, deadline_s=10).model == "m@1"
    assert time.monotonic() - start >= 2
    lefts = [float(request.headers["x-request-timeout"]) for request in script.requests]
    assert lefts[0] <= 10
    assert lefts[1] <= lefts[0] - 1
    assert lefts[2] <= lefts[1] - 1


@BOTH
def test_there_is_no_waiting_for_what_would_come_too_late(asynchronous):
    script = Script([problem(429, "overloaded", "60")])
    start = time.monotonic()
    with pytest.raises(errors.OverloadedError) as refused:
        asked(script, asynchronous, deadline_s=2)
    assert refused.value.retry_after_s == 60
    assert time.monotonic() - start < 1
    assert len(script.requests) == 1


@BOTH
def test_a_service_that_is_not_there_is_tried_again_but_not_for_ever(asynchronous):
    script = Script([httpx.ConnectError("refused"), httpx.ReadError("cut"), fine])
    assert asked(script, asynchronous, deadline_s=5).model == "m@1"
    script = Script([httpx.ConnectError("refused")])
    with pytest.raises(errors.UnavailableError, match="cannot be reached: ConnectError"):
        asked(script, asynchronous, deadline_s=5, attempts=3)
    assert len(script.requests) == 3


@BOTH
@pytest.mark.parametrize(("status", "slug"), [(422, "invalid-input"), (504, "deadline-passed"), (500, "internal")])
def test_what_another_try_would_not_mend_is_tried_once(asynchronous, status, slug):
    script = Script([problem(status, slug)])
    with pytest.raises(errors.VouchError):
        asked(script, asynchronous)
    assert len(script.requests) == 1


@BOTH
def test_a_proxy_s_answer_is_tried_again(asynchronous):
    script = Script([httpx.Response(502, text="<html>"), httpx.Response(503, headers={"retry-after": "soon"}), fine])
    assert asked(script, asynchronous).model == "m@1"


@BOTH
def test_a_service_that_accepts_and_says_nothing_costs_the_deadline_and_no_more(asynchronous):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(errors.DeadlineError):
            asyncio.run(ask_silent(url)) if asynchronous else Client(url, deadline_s=0.5).score(np.zeros((1, 4)))
        assert 0.4 < time.monotonic() - start < 5


async def ask_silent(url):
    async with AsyncClient(url, deadline_s=0.5) as vouch:
        await vouch.score(np.zeros((1, 4)))


def test_a_service_that_trickles_does_not_outlast_the_asynchronous_deadline():
    def trickle(connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            for _ in range(50):
                time.sleep(0.1)
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: trickle(server.accept()[0]), daemon=True)
        thread.start()
        start = time.monotonic()
        with pytest.raises(errors.DeadlineError):
            asyncio.run(ask_silent(f"http://127.0.0.1:{server.getsockname()[1]}"))
        assert time.monotonic() - start < 3
        thread.join(10)


def test_nobody_listening_is_said():
    vouch = Client(f"http://127.0.0.1:{free_port()}", attempts=2, deadline_s=5)
    with vouch, pytest.raises(errors.UnavailableError, match="cannot be reached"):
        vouch.sample(1)


def test_rows_of_named_columns_go_as_json():
    script = Script([fine])
    with Client("http://service", transport=script, key="secret") as vouch:
        vouch.score([{"age": 39, "job": None}], explain=2, percentiles=(1, 99))
    request = script.requests[0]
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {"instances": [{"age": 39, "job": None}]}
    assert dict(request.url.params) == {"explain": "2", "percentiles": "1,99"}


def test_the_client_needs_neither_torch_nor_the_service_s_web_framework():
    import subprocess
    import sys

    code = "import sys, service.client; bad = {'torch', 'fastapi', 'starlette'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


# The rest of the contract


@pytest.fixture(scope="module")
def vouch(url):
    with Client(url, deadline_s=60) as client:
        yield client


def test_a_report_has_the_reasons(vouch, digit_scorer):
    rows = digits()[:5].astype(np.uint8)
    report = vouch.report(rows, false_alarm=0.1, explain=1)
    assert [score["reason"] for score in report["scores"] if score["verdict"] == "invalid"]
    assert all(len(score["columns"]) == 1 for score in report["scores"])
    assert report["model"]["digest"] == digit_scorer.published.digest
    assert vouch.maps(rows).shape == (5, 2, 8, 8)


def test_what_else_a_model_computes(vouch, digit_scorer):
    rows = digits()[:3].astype(np.uint8)
    encoded, expected = vouch.encode(rows), digit_scorer.encode(rows)
    np.testing.assert_array_equal(encoded.mean, expected.mean)
    np.testing.assert_array_equal(encoded.std, expected.std)
    np.testing.assert_array_equal(vouch.decode(encoded.mean), digit_scorer.decode(expected.mean).reshape(3, 8, 8))
    np.testing.assert_array_equal(vouch.decode(encoded.mean.tolist(), member=0), vouch.decode(encoded.mean))
    assert vouch.manifold(3, (1, 0)).shape == (9, 8, 8)
    assert [len(drawn) for drawn in vouch.posterior_draws(rows, 2)] == [2, 2, 2]
    assert not np.array_equal(vouch.sample(2, seed=1), vouch.sample(2, seed=1, of="mean"))


def test_what_is_served(vouch):
    assert vouch.models()["default"] == "digits"
    assert vouch.model("wine")["card"]["name"] == "wine"
    assert {one["model"]["name"] for one in vouch.drift()} == {"digits", "grey", "wine"}
    assert vouch.version()
    assert vouch.wait_until_ready() is None


def test_files_are_sent_by_their_paths(vouch, tmp_path):
    from PIL import Image

    rows = digits()[:2].astype(np.uint8)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, row in zip(paths, rows, strict=True):
        Image.fromarray(row).save(path)
    np.save(tmp_path / "rows.npy", rows)
    expected = vouch.score(rows).log_likelihood
    for given in (paths, list(map(str, paths)), tmp_path / "rows.npy", str(tmp_path / "rows.npy")):
        np.testing.assert_array_equal(vouch.score(given).log_likelihood, expected)
    assert vouch.score(paths[0]).log_likelihood == expected[0]
    assert [score["id"] for score in vouch.report(paths)["scores"]] == ["a.png", "b.png"]
    with pytest.raises(errors.InputError, match=r"c.png: cannot be read: FileNotFoundError"):
        vouch.score(tmp_path / "c.png")


def test_warnings_come_with_verdicts(vouch):
    assert vouch.score(digits()[:1]).warnings == ()
    assert "pixels should be 0 to 255" in vouch.score(digits()[:1] / 255.0).warnings[0]


def test_lists_with_text_or_holes_go_as_json():
    script = Script([fine])
    with Client("http://service", transport=script) as vouch:
        vouch.score([[1.0, None], [2.0, "x"]])
        vouch.score([(1.0, 2.0), (3.0, 4.0)])
    assert json.loads(script.requests[0].content) == {"instances": [[1.0, None], [2.0, "x"]]}
    assert script.requests[1].headers["content-type"] == "application/x-npy"


def test_what_an_administrator_does_is_sent_as_json():
    script = Script([lambda request: httpx.Response(200, json={"aliases": {}})])
    with Client("http://service", transport=script, model="other") as vouch:
        vouch.move_alias("digits", "tested", 7, expected="6")
        vouch.restart_drift("digits")
    first, second = script.requests
    assert (first.method, first.url.path, first.url.query) == ("POST", "/models/digits/aliases", b"")
    assert json.loads(first.content) == {"alias": "tested", "version": "7", "expected": "6"}
    assert (second.url.path, json.loads(second.content)) == ("/models/digits/drift", {"restart": True})


def test_what_a_reviewer_says_is_sent_as_json():
    script = Script([lambda request: httpx.Response(200, json={"reviews": [{"record": "r.0"}], "more": False})])
    with Client("http://service", transport=script, model="digits") as vouch:
        vouch.feedback("r.0", "invalid", note="blurred", instance=[1.0])
        assert vouch.reviews(answered=False, limit=5) == [{"record": "r.0"}]
    first, second = script.requests
    assert (first.method, first.url.path, first.url.query) == ("POST", "/feedback", b"")
    told = {"record": "r.0", "label": "invalid", "note": "blurred", "instance": [1.0]}
    assert json.loads(first.content) == told
    assert dict(second.url.params) == {"model": "digits", "answered": "false", "limit": "5"}


def test_waiting_for_a_service_goes_on_until_the_deadline():
    loading = httpx.Response(503, json={"status": "loading"}, headers={"retry-after": "5"})
    script = Script([*[loading] * 8, httpx.Response(200, json={"status": "ok"})])
    with Client("http://service", transport=script, attempts=2, deadline_s=4) as vouch:
        vouch.wait_until_ready()
    assert len(script.requests) == 9


def test_both_clients_have_the_same_methods():
    def methods(kind):
        return {name for name in vars(kind) if not name.startswith("_")} - {"close"}

    assert methods(Client) == methods(AsyncClient)


def test_what_changes_something_is_tried_once():
    script = Script([httpx.ReadError("cut")])
    with Client("http://service", transport=script) as vouch:
        for change in (lambda: vouch.move_alias("digits", "tested", "7"), lambda: vouch.restart_drift("a/b?c")):
            with pytest.raises(errors.UnavailableError):
                change()
    assert [request.url.raw_path for request in script.requests] == [
        b"/models/digits/aliases",
        b"/models/a%2Fb%3Fc/drift",
    ]


def test_cells_that_json_does_not_know_are_refused_by_the_client():
    with Client("http://service", transport=Script([fine])) as vouch:
        vouch.score([[np.float32(1.5), None]])
        with pytest.raises(errors.InputError, match="a cell is of type object"):
            vouch.score([[object(), None]])
