"""JSON lines: each is answered in its place, however the body was cut, and in bounded memory."""

import asyncio
import json
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from service.errors import DeadlineError, TooLargeError
from service.scoring.options import DEFAULT
from service.store.loading import load_scorer
from service.store.store import Store
from service.web.context import RequestContext
from service.web.streaming import BLOCK_ROWS, BLOCKS, MAX_LINE, Lines, LinesResponse, read_block
from tests.models import ROWS, data_of, digits

GOOD = json.dumps(ROWS[0]).encode()
NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def wine(tiny_store):
    return load_scorer(Store(tiny_store), "wine", "cpu", threads=1)


def context_of(app, chunks, headers=(), receive=None):
    """A request whose body comes in these chunks; then the client waits for the answer."""
    coming = iter(chunks)

    async def next_chunk():
        chunk = next(coming, None)
        if chunk is not None:
            return {"type": "http.request", "body": chunk, "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": b"", "headers": [
        (name.encode(), value.encode()) for name, value in headers
    ]}  # fmt: skip
    context = RequestContext.start(app.state.service, scope, receive or next_chunk, "request")
    context.is_stream = True
    return context


def blocks_of(app, scorer, chunks):
    async def collected():
        return [block async for block in Lines(context_of(app, chunks), scorer, DEFAULT).blocks()]

    return asyncio.run(collected())


# Lines


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([b"[1]", b"", b"  ", b"{}", "é€".encode(), b"x" * 50, b"\r"]), max_size=12),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([b"", b"\n", b"\n\n"]),
)
def test_however_a_body_is_cut_its_lines_are_the_same(in_process, digit_scorer, lines, cuts, end):
    body = b"\n".join(lines) + end
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[start:stop] for start, stop in pairwise(places)]
    found = [line for block in blocks_of(in_process.app, digit_scorer, chunks) for line in block]
    assert found == [line for line in body.split(b"\n") if line.strip()]


def test_lines_that_come_together_are_answered_in_blocks_of_bounded_length(in_process, digit_scorer):
    blocks = blocks_of(in_process.app, digit_scorer, [b"[1]\n" * (2 * BLOCK_ROWS + 7), b"[2]\n", b"[3]"])
    assert list(map(len, blocks)) == [BLOCK_ROWS, BLOCK_ROWS, 7, 1, 1]


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(in_process, digit_scorer):
    taken = []

    def chunks():
        for _ in range(100):
            taken.append(1)
            yield b"1" * (MAX_LINE // 4)

    with pytest.raises(TooLargeError, match="a line is longer than 1,048,576 bytes"):
        blocks_of(in_process.app, digit_scorer, chunks())
    assert len(taken) == 5
    assert len(blocks_of(in_process.app, digit_scorer, [b"1" * MAX_LINE, b"\n"])) == 1


def test_a_client_that_stalls_is_given_up_and_one_that_leaves_is_no_error(in_process, digit_scorer):
    async def stalled(message):
        async def receive():
            if message is None:
                await asyncio.Event().wait()
            return message

        context = context_of(in_process.app, [], [("x-request-timeout", "0.05")], receive)
        return [block async for block in Lines(context, digit_scorer, DEFAULT).blocks()]

    with pytest.raises(DeadlineError, match="nothing came"):
        asyncio.run(stalled(None))
    with pytest.raises(ClientDisconnect):
        asyncio.run(stalled({"type": "http.disconnect"}))


# A block


def test_lines_that_cannot_be_read_have_their_problems_in_their_places(wine):
    row = dict(zip(data_of("wine").columns, data_of("wine").array[0].tolist(), strict=True))
    lines = [row, list(row.values()), {**row, "id": "x"}, {**row, "ash": "high"}, [1, 2], "text", None]
    block = [json.dumps(line).encode() for line in lines] + [b"{", b"[1] [2]"]
    answers, rows, ids, places = read_block(wine, block)
    assert places == [0, 1, 2]
    assert ids == [None, None, "x"]
    assert [None if answer is None else answer["status"] for answer in answers] == [None] * 3 + [422] * 4 + [400] * 2
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 3, axis=0))
    assert answers[3]["errors"][0]["row"] == 0  # a line is one row
    assert answers[3]["errors"][0]["column"] == "ash"


def test_plain_lines_are_read_together_as_they_are_alone(wine):
    lines = [json.dumps(row).encode() for row in data_of("wine").array[:20].tolist()]
    answers, rows, ids, places = read_block(wine, lines)
    assert (answers, ids, places) == ([None] * 20, None, list(range(20)))
    np.testing.assert_array_equal(rows, np.concatenate([read_block(wine, [line])[1] for line in lines]))
    _, among_others, _, places = read_block(wine, [b"{", *lines, b"[1]"])
    np.testing.assert_array_equal(among_others, rows)
    assert places == list(range(1, 21))


@pytest.mark.parametrize(
    "bad", [b"[" + b"1e39, " * 12 + b"1]", b"[" + b"1e400, " * 12 + b"1]", b"[" * 100_000, b"\xff", b"nul"]
)
def test_a_bad_line_spoils_no_other(wine, bad):
    good = json.dumps(data_of("wine").array[0].tolist()).encode()
    answers, rows, _, places = read_block(wine, [good, bad, good])
    assert places == [0, 2]
    assert len(rows) == 2
    assert answers[1]["status"] in (400, 413, 422)


# The answer


def answered(app, scorer, chunks):
    """What runs a request, and the messages that it will have sent."""
    sent = []

    async def run():
        context = context_of(app, chunks)

        async def send(message):
            sent.append(message)

        await LinesResponse(Lines(context, scorer, DEFAULT), {"x-model": "m"})(context.request.scope, None, send)

    return run, sent


def test_answers_are_the_scores_in_order(in_process, digit_scorer):
    lines = [json.dumps(ROWS[at % 5]).encode() for at in range(3 * BLOCK_ROWS)]
    lines[100], lines[-1] = b"{", b"[1, 2]"
    run, sent = answered(in_process.app, digit_scorer, [b"\n".join(lines[:300]) + b"\n", b"\n".join(lines[300:])])
    in_process.portal.call(run)
    head, *bodies, end = sent
    assert (head["type"], head["status"]) == ("http.response.start", 200)
    names = {name for name, _ in head["headers"]}
    assert b"content-length" not in names
    assert b"x-model" in names
    assert not end["more_body"]
    documents = [json.loads(line) for message in bodies for line in message["body"].splitlines()]
    assert len(documents) == len(lines)
    assert (documents[100]["status"], documents[-1]["status"]) == (400, 422)
    expected = digit_scorer.score(digits()[:5]).log_likelihood.tolist()
    for at, document in enumerate(documents):
        if at not in (100, len(lines) - 1):
            assert document["log_likelihood"] == expected[at % 5]


def test_what_goes_wrong_in_the_midst_is_the_last_line(in_process, digit_scorer):
    run, sent = answered(in_process.app, digit_scorer, [GOOD + b"\n", b"1" * (MAX_LINE + 1)])
    in_process.portal.call(run)
    *lines, last = [json.loads(line) for message in sent[1:] for line in message["body"].splitlines()]
    assert last["status"] == 413
    assert [line["verdict"] for line in lines] in (["valid"], ["invalid"])


def test_no_more_is_read_than_a_few_blocks_ahead_of_what_the_client_takes(in_process, digit_scorer):
    taken = []

    def chunks():
        for at in range(40):
            taken.append(at)
            yield GOOD + b"\n"

    async def run_for_a_client_that_reads_nothing():
        context = context_of(in_process.app, chunks(), [("x-request-timeout", "0.3")])

        async def send(message):
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await LinesResponse(Lines(context, digit_scorer, DEFAULT), {})(context.request.scope, None, send)

    with pytest.raises(ClientDisconnect):
        in_process.portal.call(run_for_a_client_that_reads_nothing)
    assert len(taken) <= BLOCKS + 3


def test_over_http_every_line_has_its_answer(in_process):
    body = b"\n".join([GOOD, b"", b"{", GOOD, b"[1]"])
    answer = in_process.post("/score", content=body, headers=NDJSON)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    first, malformed, again, short = (msgspec.json.decode(line) for line in answer.content.splitlines())
    assert first == again
    assert (malformed["status"], short["status"]) == (400, 422)
    assert in_process.post("/score", content=b"\n \n", headers=NDJSON).content == b""


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?fdr=0.1", {}, 422),
        ("?percentiles=9,1", {}, 422),
        ("?false_alarm=0.00001", {}, 422),
        ("?model=nobody", {}, 404),
        ("", {"accept": "application/json"}, 406),
        ("", {"content-encoding": "br"}, 415),
        ("", {"x-request-timeout": "soon"}, 422),
    ],
)
def test_what_is_wrong_with_all_lines_is_said_before_the_first(in_process, query, headers, status):
    answer = in_process.post(f"/score{query}", content=GOOD, headers=NDJSON | headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
