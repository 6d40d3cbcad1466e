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
