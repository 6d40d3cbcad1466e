"""Forked and spawned processes score as their parent does, and never hang."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from service import load
from service.detector import VAEDetector
from tests.models import data_of, digits
from tests.tools import REPOSITORY, free_port


@pytest.fixture(scope="module")
def scorer(tiny_store):
    """A scorer that has used its threads, and torch's."""
    scorer = load("digits", tiny_store, threads=2)
    scorer.score(digits()[:80])
    scorer.sample(500, seed=0)
    return scorer


def everything(scorer):
    """What a scorer computes, as arrays."""
    rows = digits()[:80]
    return [scorer.score(rows).log_likelihood, scorer.reconstruct(rows[:4]).mean, scorer.encode(rows).mean,
            scorer.sample(200, seed=1).samples]  # fmt: skip


@pytest.mark.timeout(120)
def test_a_forked_child_scores_as_its_parent(scorer):
    expected = everything(scorer)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:  # nothing of pytest's may run here
        try:
            same = all(np.array_equal(one, other) for one, other in zip(everything(scorer), expected, strict=True))
            os.write(writer, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(writer)
    until = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child hangs")
        time.sleep(0.05)
    assert os.read(reader, 10) == b"same"
    os.close(reader)


def verdicts(path, rows):
    return load("digits", path, threads=2).score(rows).log_likelihood


INHERITED = []


def inherited(rows):
    return INHERITED[0].score(rows).log_likelihood


@pytest.mark.timeout(180)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_scores_as_its_parent(scorer, tiny_store, method):
    rows = digits()[:40]
    expected = scorer.score(rows).log_likelihood
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.starmap_async(verdicts, [(str(tiny_store), rows)] * 2).get(120):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.timeout(120)
def test_a_scorer_that_children_inherit_scores_in_them(scorer):
    rows = digits()[:40]
    INHERITED[:] = [scorer]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for found in pool.map_async(inherited, [rows] * 4).get(60):
            np.testing.assert_array_equal(found, scorer.score(rows).log_likelihood)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_detector_works_in_a_pool(method):
    rows = data_of("wine").array[:400]
    detector = VAEDetector(hidden=(16,), latents=2, steps=200, random_state=0).fit(rows)
    expected = detector.decision_function(rows[:50])
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.map_async(detector.decision_function, [rows[:50]] * 2).get(200):
            np.testing.assert_allclose(found, expected)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_gunicorn_with_preload_serves(tiny_store, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}",
               "--worker-class", "uvicorn_worker.UvicornWorker", "service.web.app:application()"]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VOUCH_")}
    environment |= {"VOUCH_STORE": str(tiny_store), "VOUCH_STORE_CACHE": ""}
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log
    ) as process:  # fmt: skip
        try:
            answers = {body_of(port, tmp_path) for _ in range(10)}
        finally:
            process.terminate()
            process.wait(60)
    assert len(answers) == 1
    assert b"valid" in answers.pop()


def body_of(port, tmp_path):
    """The answer to a row, once there is one."""
    body = json.dumps({"instances": digits()[:1].tolist()}).encode()
    until = time.monotonic() + 60
    while True:
        try:
            url = f"http://127.0.0.1:{port}/score"
            request = urllib.request.Request(url, body, {"content-type": "application/json"})  # loopback
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read()
        except OSError:
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.2)
