"""The inference thread: bounded, fair, and alive after whatever a request does to it."""

import threading
import time

import pytest

from service.errors import DeadlineError, OverloadedError, UnavailableError
from service.web.batching import InferenceThread, Piece


@pytest.fixture
def inference():
    thread = InferenceThread(max_cost=100)
    thread.start()
    yield thread
    thread.stop()


def test_pieces_come_back_in_order(inference):
    pieces = [Piece(lambda value=value: value, 1) for value in range(5)]
    assert inference.submit(pieces, 10).result(10) == [0, 1, 2, 3, 4]
    assert inference.waiting_cost == 0


def test_a_single_row_waits_for_one_piece_of_a_long_request_and_not_for_all(inference):
    done, gate = [], threading.Event()
    long = inference.submit([Piece(lambda: gate.wait(10), 1), *[Piece(lambda: done.append("long"), 1)] * 20], 10)
    short = inference.submit([Piece(lambda: done.append("short"), 1)], 10)
    gate.set()
    short.result(10)
    long.result(10)
    assert done.index("short") == 0


def test_a_full_queue_refuses_and_says_when_to_come_back(inference):
    gate = threading.Event()
    first = inference.submit([Piece(lambda: gate.wait(10), 90)], 10)
    with pytest.raises(OverloadedError) as refused:
        inference.submit([Piece(lambda: None, 20)], 10)
    assert refused.value.retry_after_s > 0
    second = inference.submit([Piece(lambda: None, 10)], 10)
    gate.set()
    first.result(10)
    second.result(10)
    assert inference.submit([Piece(lambda: "large", 1000)], 10).result(10) == ["large"]


def test_what_is_cancelled_or_late_is_not_computed(inference):
    gate, computed = threading.Event(), []
    blocker = inference.submit([Piece(lambda: gate.wait(10), 1)], 10)
    cancelled = inference.submit([Piece(lambda: computed.append(1), 1)], 10)
    late = inference.submit([Piece(lambda: computed.append(2), 1)], 0.01)
    cancelled.cancel()
    time.sleep(0.05)
    gate.set()
    blocker.result(10)
    with pytest.raises(DeadlineError):
        late.result(10)
    inference.submit([Piece(lambda: None, 1)], 10).result(10)
    assert computed == []
    assert inference.dropped == 2
    assert inference.waiting_cost == 0


def test_a_request_that_raises_anything_leaves_the_thread_alive(inference):
    def bad():
        raise SystemExit("bad")

    with pytest.raises(SystemExit):
        inference.submit([Piece(bad, 1), Piece(lambda: None, 1)], 10).result(10)
    assert inference.is_alive()
    assert inference.submit([Piece(lambda: 1, 1)], 10).result(10) == [1]


def test_after_the_stop_nothing_is_taken(inference):
    inference.stop()
    with pytest.raises(UnavailableError):
        inference.submit([Piece(lambda: 1, 1)], 10)
    assert not inference.is_alive()
