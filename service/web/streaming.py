"""POST /score of JSON lines: read and answered line by line, in order, in bounded memory.

Lines that arrive together are scored together, as a block. A few blocks are in progress at a time; no more is read until
the first of them is written.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import DeadlineError, InputError, OverloadedError, TooLargeError, VouchError
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.serving.call import CallerLeftError
from service.web.answers import answer_headers, score_list
from service.web.batch import MAX_PIXELS
from service.web.context import RequestContext, model_id
from service.web.images import has_encoded
from service.web.media_types import NDJSON, check_charset
from service.web.parsing import parse_row, parse_simple_rows
from service.web.problems import error_document, internal

log = logging.getLogger("vouch")
MAX_LINE = 2**20  # bytes
BLOCK_ROWS = 256  # most lines that are answered together
BLOCKS = 4  # most blocks in progress at a time
ENCODER = msgspec.json.Encoder()
T = TypeVar("T")


async def scored_lines(context: RequestContext, scorer: Scorer, options: ScoreOptions) -> Response:
    """Answer each line with one line, a score or a problem."""
    check_charset(context.content_type, NDJSON)
    context.coding()
    scorer.check(options)
    context.is_stream = True
    return LinesResponse(Lines(context, scorer, options), answer_headers(model_id(scorer)))


class Lines:
    """A request's lines and their answers."""

    def __init__(self, context: RequestContext, scorer: Scorer, options: ScoreOptions) -> None:
        self.context, self.scorer, self.options = context, scorer, options
        self.timeout_s = context.timeout_s()
        self.started: dict[asyncio.Task[bytes], int] = {}  # and the bytes of their lines
        self.room = asyncio.Semaphore(BLOCKS)

    async def answered(self) -> AsyncIterator[bytes]:
        """Yield the answers in order, a block of lines at a time."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        reading = asyncio.create_task(self.read(answers))
        try:
            while (task := await answers.get()) is not None:
                yield await task
                self.context.give_back(self.started.pop(task))
                self.room.release()
            await reading
        except (ClientDisconnect, CallerLeftError):
            raise
        except VouchError as error:  # the head is already sent: the error can only go into a last line
            yield ENCODER.encode(error_document(error)) + b"\n"
        except Exception:
            log.exception("unhandled error", extra={"request_id": self.context.request_id})
            yield ENCODER.encode(internal()) + b"\n"
        finally:
            unfinished: list[asyncio.Task[Any]] = [reading, *self.started]
            for one in unfinished:
                one.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def read(self, answers: asyncio.Queue[asyncio.Task[bytes] | None]) -> None:
        """Start to answer blocks of lines as they arrive; queue None at the end, also after an error."""
        try:
            async for block in self.blocks():
                await self.room.acquire()
                size = sum(map(len, block))
                await self.patiently(partial(self.hold, size))
                task = asyncio.create_task(self.answers_to(block))
                self.started[task] = size
                answers.put_nowait(task)
        finally:
            answers.put_nowait(None)

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Yield the body's non-empty lines as they arrive, in blocks of at most BLOCK_ROWS."""
        rest, is_first = b"", True
        chunks = aiter(self.context.chunks())
        while (chunk := await self.next_chunk(chunks)) is not None:
            *lines, rest = (rest + chunk).split(b"\n")
            if is_first and lines:
                lines[0], is_first = lines[0].removeprefix(codecs.BOM_UTF8), False
            lines = list(filter(bytes.strip, lines))
            for start in range(0, len(lines), BLOCK_ROWS):
                yield lines[start : start + BLOCK_ROWS]
            if len(rest) > MAX_LINE:
                raise TooLargeError(f"a line is longer than {MAX_LINE:,} bytes, which is the limit")
        if rest.strip():
            yield [rest.removeprefix(codecs.BOM_UTF8) if is_first else rest]

    async def next_chunk(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """The next chunk from the client, None at the end.

        Raises:
            DeadlineError: the client sent nothing for as long as a request may take.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return await anext(chunks, None)
        except TimeoutError:
            raise DeadlineError(
                "nothing came for as long as a request may take: send the rest sooner, or in another request"
            ) from None

    async def answers_to(self, block: list[bytes]) -> bytes:
        """Score the valid lines, and put the problems of the others in their places."""
        size = sum(map(len, block))
        answers, rows, ids, places = await self.context.parsed(
            size,
            partial(read_block, self.scorer, block, self.options.strict, self.context.settings.max_pixels),
            always_beside=any(has_encoded(line, self.scorer.model.input) for line in block),
        )
        if len(rows):
            scores = await self.score(rows)
            if self.options.maps:
                return await self.context.beside(
                    self.context.service.parser, partial(self.with_maps, answers, scores, rows, ids, places)
                )
            for place, score in zip(places, score_list(scores, ids), strict=True):
                answers[place] = score
        return ENCODER.encode_lines(answers)

    def with_maps(
        self, answers: list[Any], scores: Scores, rows: np.ndarray, ids: list[Any] | None, places: list[int]
    ) -> bytes:
        """The lines of a block with the maps of its images, which take too long for the event loop."""
        maps = self.scorer.pixel_maps(scores, rows)
        for place, score in zip(places, score_list(scores, ids, maps=maps), strict=True):
            answers[place] = score
        return ENCODER.encode_lines(answers)

    async def score(self, rows: np.ndarray) -> Scores:
        return await self.patiently(lambda: self.context.engine.score(self.context, self.scorer, rows, self.options))

    async def hold(self, size: int) -> None:
        self.context.hold(size)

    async def patiently(self, do: Callable[[], Awaitable[T]]) -> T:
        """Do something that the service may be too busy for: wait instead of failing. Meanwhile the client is held back."""
        until = time.monotonic() + self.timeout_s
        while True:
            try:
                return await do()
            except OverloadedError as error:
                pause = min(1.0, max(0.05, error.retry_after_s))
                if time.monotonic() + pause > until:
                    raise
                await asyncio.sleep(pause)


class LinesResponse(Response):
    """An answer that is written while the request is read.

    Starlette's StreamingResponse reads the request's messages to notice a hang-up, and would swallow the body.
    """

    def __init__(self, lines: Lines, headers: dict[str, str]) -> None:
        super().__init__(None, 200, headers, NDJSON)
        self.lines = lines
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, then the lines as they are ready, then the end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        answers = self.lines.answered()
        try:
            async for block in answers:
                async with asyncio.timeout(self.lines.timeout_s):
                    await send({"type": "http.response.body", "body": block, "more_body": True})
        except TimeoutError:
            raise ClientDisconnect from None  # the client has stopped reading
        finally:
            await answers.aclose()  # type: ignore[attr-defined]  # an async generator, as its annotation cannot say
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def read_block(
    scorer: Scorer, block: list[bytes], is_strict: bool = False, max_pixels: int = MAX_PIXELS
) -> tuple[list[Any], np.ndarray, list[Any] | None, list[int]]:
    """Parse lines: the problems of invalid ones in their places, and the rows, ids and places of the others."""
    spec, reader = scorer.model.input, scorer.judging_reader(is_strict)
    try:
        simple = parse_simple_rows(block, spec)
        if simple is not None:
            rows = spec.read(reader.padded(simple), reader)
            return [None] * len(block), rows, None, list(range(len(block)))
    except InputError:
        pass  # the loop below finds out in which line
    answers: list[Any] = [None] * len(block)
    found, ids, places = [], [], []
    for place, line in enumerate(block):
        try:
            row, one_id = parse_row(line, spec, reader, max_pixels)
            found.append(row)
            ids.append(one_id)
            places.append(place)
        except InputError as error:
            answers[place] = error_document(error)
    return answers, np.concatenate(found) if found else np.zeros((0, spec.features)), ids, places
