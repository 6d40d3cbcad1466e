"""Whether inference works: what opens the breaker, what does not, and how it heals."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from service.errors import OverloadedError, UnavailableError
from service.serving.health import HOPELESS_S, SUSPICIOUS, Health


@pytest.fixture
def health():
    inference = SimpleNamespace(failures=0, is_alive=lambda: True, longest_s=lambda: 0.0)
    return Health(inference, SimpleNamespace(in_memory=lambda name: "scorer"), 10.0)


def probe(error=None):
    tried = []

    async def try_it(scorer):
        tried.append(scorer)
        if error is not None:
            raise error

    try_it.tried = tried
    return try_it


def test_a_few_failures_are_not_tried(health):
    health.inference.failures = SUSPICIOUS - 1
    one = probe(RuntimeError())
    asyncio.run(health.check(one))
    assert not one.tried
    assert health.is_ready()


def test_failures_that_only_some_rows_cause_close_nothing(health):
    health.inference.failures = SUSPICIOUS
    asyncio.run(health.check(probe()))
    assert health.is_ready()
    assert health.inference.failures == 0


def test_failures_of_the_models_own_row_show_until_it_is_scored_again(health):
    health.inference.failures = SUSPICIOUS
    asyncio.run(health.check(probe(RuntimeError("secret"))))
    assert not health.is_ready()
    assert health.is_alive()
    assert health.problem == "RuntimeError"
    with pytest.raises(UnavailableError, match="inference does not work at the moment: RuntimeError"):
        health.check_works()
    asyncio.run(health.check(probe(OverloadedError("full"))))  # which says nothing
    assert not health.is_ready()
    asyncio.run(health.check(probe()))
    assert health.is_ready()
    health.check_works()


def test_after_minutes_of_failures_or_of_one_batch_the_process_is_not_alive(health):
    health.inference.failures = SUSPICIOUS
    asyncio.run(health.check(probe(RuntimeError())))
    health.since = time.monotonic() - HOPELESS_S - 1
    assert not health.is_alive()
    health.problem = None
    assert health.is_alive()
    health.inference.longest_s = lambda: 10.0 + HOPELESS_S + 1
    assert not health.is_alive()
