"""One request's deadline, body and memory."""

import asyncio
import gzip
import threading
import time

import pytest
from backports import zstd
from starlette.responses import Response

from service.errors import DeadlineError, InputError, MalformedError, MediaTypeError, OverloadedError, TooLargeError
from service.serving.call import CallerLeftError
from service.serving.engine import Engine
from service.serving.sharing import SharedRoom
from service.settings import Settings
from service.web.access import KeyRing
from service.web.context import FEW, SMALL, RequestContext, Service


@pytest.fixture
def service(tiny_store):
    settings = Settings(
        store=str(tiny_store),
        store_cache=None,
        threads=1,
        max_body_bytes=2048,
        max_held_bytes=4096,
        request_timeout_s=9,
    )
    return Service(settings, Engine(settings), KeyRing(None))


def request(service, chunks=(), headers=(), after=None):
    """A request whose body comes in these chunks; `after` is what comes then."""
    coming = iter(chunks)

    async def receive():
        chunk = next(coming, None)
        if chunk is not None:
            return {"type": "http.request", "body": chunk, "more_body": True}
        if after is not None:
            return await after()
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": b"", "headers": [
        (name.encode(), value.encode()) for name, value in headers
    ]}  # fmt: skip
    return RequestContext.start(service, scope, receive, "id")


def body_of(context):
    async def read():
        try:
            return await context.body()
        finally:
            context.release()
            await asyncio.sleep(0)

    return asyncio.run(read())


def test_a_context_is_found_again_by_its_request(service):
    context = request(service)
    assert RequestContext.of(context.request) is context


# Deadlines


@pytest.mark.parametrize(("header", "seconds"), [(None, 9.0), ("3", 3.0), ("0.25", 0.25), ("1e3", 9.0), (" 2 ", 2.0)])
def test_a_client_may_shorten_its_deadline_and_not_lengthen_it(service, header, seconds):
    context = request(service, headers=[] if header is None else [("x-request-timeout", header)])
    assert context.timeout_s() == seconds
    assert seconds - 1 < context.time_left_s() <= seconds


@pytest.mark.parametrize("header", ["", "soon", "0", "-1", "-0", "nan", "inf", "-inf", "1e999", "1,5", "1s", "0x1"])
def test_a_deadline_that_is_none_is_refused(service, header):
    with pytest.raises(InputError, match=r"^X-Request-Timeout: expected a number of seconds above 0$"):
        request(service, headers=[("x-request-timeout", header)]).timeout_s()


def test_a_stream_has_its_whole_time_for_each_block(service):
    context = request(service)
    context.timings.started -= 5
    assert context.time_left_s() < 4.1
    context.is_stream = True
    assert context.time_left_s() == 9.0


def test_a_body_that_does_not_come_in_time_is_given_up(service):
    async def never():
        await asyncio.Event().wait()

    started = time.monotonic()
    with pytest.raises(DeadlineError, match="before the body was read"):
        body_of(request(service, [b"x"], [("x-request-timeout", "0.05")], never))
    assert time.monotonic() - started < 5


# Bodies


@pytest.mark.parametrize("chunks", [[], [b""], [b"abc"], [b"a", b"", b"bc"], [b"x" * 2048], [b"x" * 1024, b"y" * 1024]])
def test_a_body_is_what_came_and_its_memory_is_given_back(service, chunks):
    assert body_of(request(service, chunks)) == b"".join(chunks)
    assert service.memory.total == 0


def test_a_body_that_is_too_long_is_refused_as_soon_as_that_is_known(service):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b"x" * 500

    with pytest.raises(TooLargeError, match="more than 2,048 bytes"):
        body_of(request(service, endless()))
    assert len(taken) == 5
    taken.clear()
    for declared in ("2049", "9" * 5000):
        with pytest.raises(TooLargeError):
            body_of(request(service, endless(), [("content-length", declared)]))
    assert not taken
    assert service.memory.total == 0


@pytest.mark.parametrize("declared", ["0", "7", "x", "-1", ""])
def test_what_a_head_says_of_the_length_is_not_trusted(service, declared):
    assert body_of(request(service, [b"x" * 100], [("content-length", declared)])) == b"x" * 100
    with pytest.raises(TooLargeError):
        body_of(request(service, [b"x" * 2049], [("content-length", declared)]))


# Compressed bodies

COMPRESS = {"gzip": gzip.compress, "zstd": zstd.compress}


def compressed(service, coding, *chunks):
    """A request with a compressed body, whose client then waits for the answer."""
    endings = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def waiting():
        return next(endings, None) or await asyncio.Event().wait()

    return request(service, chunks, [("content-encoding", coding)], waiting)


@pytest.mark.parametrize("coding", COMPRESS)
@pytest.mark.parametrize("name", [str.lower, str.upper, "identity, {}".format])
def test_a_compressed_body_is_what_it_holds(service, coding, name):
    whole = COMPRESS[coding](b"abc" * 300)
    for chunks in ([whole], [whole[:7], whole[7:]]):
        assert body_of(compressed(service, name(coding), *chunks)) == b"abc" * 300
    assert body_of(compressed(service, coding, COMPRESS[coding](b"abc") * 20)) == b"abc" * 20
    assert service.memory.total == 0


@pytest.mark.parametrize("coding", COMPRESS)
def test_a_compressed_body_may_not_hold_more_than_another(service, coding):
    assert len(body_of(compressed(service, coding, COMPRESS[coding](bytes(2048))))) == 2048
    with pytest.raises(TooLargeError, match="inflates to more than 2,048 bytes"):
        body_of(compressed(service, coding, COMPRESS[coding](bytes(2049))))
    with pytest.raises(TooLargeError):
        body_of(compressed(service, coding, COMPRESS[coding](bytes(10**8))[:2000]))
    assert service.memory.total == 0


@pytest.mark.parametrize("coding", COMPRESS)
@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole + b"junk",
                                    lambda whole: b"junk" + whole, lambda whole: b"{}"])  # fmt: skip
def test_a_body_that_is_not_compressed_as_it_says_is_refused(service, coding, damage):
    with pytest.raises(MalformedError, match=f"{coding}.*send"):
        body_of(compressed(service, coding, damage(COMPRESS[coding](b"abc" * 30))))


@pytest.mark.parametrize("coding", COMPRESS)
def test_many_members_that_hold_nothing_are_refused_before_they_cost_much(service, coding):
    roomy = Service(service.settings.model_copy(update={"max_body_bytes": 2**25}), service.engine, service.keys)
    roomy.memory = SharedRoom(2**26, 2**26)
    empty = COMPRESS[coding](b"") * 200_000
    start = time.process_time()
    with pytest.raises(TooLargeError, match="members or frames"):
        body_of(compressed(roomy, coding, empty))
    assert time.process_time() - start < 5  # each of them would copy all that follow
    with pytest.raises(TooLargeError, match="members or frames"):
        chunks_of(compressed(roomy, coding, empty[: 2**18]))
    assert roomy.memory.total == 0


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zstd, gzip", "\xff", "gzip;q=1"])
def test_a_body_in_another_coding_is_refused_unread(service, coding):
    with pytest.raises(MediaTypeError, match="send gzip or zstd"):
        body_of(request(service, [b"x"], [("content-encoding", coding)]))


def chunks_of(context):
    async def read():
        try:
            return [chunk async for chunk in context.chunks()]
        finally:
            context.release()

    return asyncio.run(read())


@pytest.mark.parametrize("coding", COMPRESS)
def test_a_compressed_stream_is_inflated_as_it_comes_and_no_bomb(service, coding):
    roomy = Service(service.settings.model_copy(update={"max_held_bytes": 2**24}), service.engine, service.keys)
    whole = COMPRESS[coding](b"abc" * 300)
    assert b"".join(chunks_of(compressed(roomy, coding, whole[:9], whole[9:]))) == b"abc" * 300
    with pytest.raises(MalformedError, match="cut short"):
        chunks_of(compressed(roomy, coding, whole[:-1]))
    with pytest.raises(TooLargeError, match="far more than was sent"):
        chunks_of(compressed(roomy, coding, COMPRESS[coding](bytes(10**8))))


def test_bodies_of_all_requests_share_one_bound_and_one_always_goes_on(service):
    first, second, third = (request(service) for _ in range(3))
    first.hold(3000)
    second.hold(1000)
    with pytest.raises(OverloadedError):
        third.hold(97)
    third.hold(96)
    for context in (first, second, third):
        context.release()
        context.release()
    assert service.memory.total == 0
    alone = request(service)
    alone.hold(10_000)  # which is bounded by the largest body
    assert service.memory.total == 10_000
    with pytest.raises(CallerLeftError):
        first.hold(1)  # what parses a body may be slower than its request's end


def test_a_client_that_leaves_is_noticed_once_the_body_is_read(service):
    async def left():
        return {"type": "http.disconnect"}

    async def watch():
        context = request(service, after=left)
        await asyncio.wait_for(context.hang_up(), 5)
        stream = request(service, after=left)
        stream.is_stream = True  # its body's reader will notice
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stream.hang_up()), 0.05)
        stream.release()
        await asyncio.sleep(0)
        assert stream.hang_up().cancelled()

    asyncio.run(watch())


# Beside the event loop


@pytest.mark.parametrize(("size", "beside"), [(0, False), (SMALL - 1, False), (SMALL, True)])
def test_large_bodies_are_parsed_in_another_thread(service, size, beside):
    async def where(**options):
        context = request(service)
        thread = await context.parsed(size, threading.get_ident, **options)
        assert context.timings.seconds["parse"] >= 0
        return thread != threading.get_ident()

    assert asyncio.run(where()) == beside
    assert asyncio.run(where(always_beside=True))


def test_large_answers_are_written_in_another_thread(service):
    def encode(name):
        return Response(f"{name} {threading.get_ident()}")

    async def where(size):
        answer = await request(service).encoded(size, encode, "x")
        return answer.body == f"x {threading.get_ident()}".encode()

    assert asyncio.run(where(FEW - 1))
    assert not asyncio.run(where(FEW))


def test_accepted_types_may_come_in_several_lines(service):
    context = request(service, headers=[("accept", "text/csv"), ("accept", "application/json;q=0.1")])
    assert context.accept == "text/csv,application/json;q=0.1"
    assert request(service).accept == ""
