"""POST /score of JSON lines: read and answered line by line, in order, in bounded memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import DeadlineError, InputError, TooLargeError, VouchError
from service.scorer import Scorer
from service.web.answers import NDJSON, score_list
from service.web.context import Service, model_id, refuse_compressed
from service.web.parsing import parse_row
from service.web.problems import error_document, internal

log = logging.getLogger("vouch")
MAX_BLOCK = 2**20  # bytes of lines that are read before they are answered, and of the longest line


async def scored_lines(
    service: Service, request: Request, scorer: Scorer, percentiles: tuple[float, float] | None
) -> Response:
    """A stream with a line for each line: a score, or a problem in its place."""
    refuse_compressed(request)
    band = scorer.calibration.band(percentiles) if percentiles else scorer.band
    model = model_id(scorer)
    headers = {"X-Model": f"{model.name}@{model.version}", "X-Model-Digest": model.digest}
    lines = answered(service, request, scorer, band.percentiles)
    request.scope["state"]["streamed"] = True
    return LinesResponse(lines, headers, service.timeout(request))


class LinesResponse(Response):
    """An answer that is written while the request is read.

    Starlette's own watches for a hang-up by reading the request's messages, and would swallow the body.
    """

    def __init__(self, lines: AsyncIterator[bytes], headers: dict[str, str], timeout_s: float) -> None:
        super().__init__(None, 200, headers, NDJSON)
        self.timeout_s = timeout_s
        del self.headers["content-length"]
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, the lines as they come, and the end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for block in self.lines:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await send({"type": "http.response.body", "body": block, "more_body": True})
            except TimeoutError:
                raise ClientDisconnect from None  # it reads no more
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answered(
    service: Service, request: Request, scorer: Scorer, percentiles: tuple[float, float]
) -> AsyncIterator[bytes]:
    """The answers, a block of lines at a time."""
    try:
        async for block in blocks_of(service, request):
            yield await answers_to(service, request, scorer, percentiles, block)
    except ClientDisconnect:
        raise
    except VouchError as error:  # the head is sent: what is wrong can only stand in a last line
        yield msgspec.json.encode(error_document(error)) + b"\n"
    except Exception:
        log.exception("unhandled error", extra={"request_id": request.scope["state"]["request_id"]})
        yield msgspec.json.encode(internal()) + b"\n"


async def blocks_of(service: Service, request: Request) -> AsyncIterator[list[bytes]]:
    """The body's lines without the empty ones, in blocks of bounded rows and bytes, as they come in."""
    block: list[bytes] = []
    size, rest = 0, b""
    chunks = aiter(request.stream())
    while (chunk := await next_chunk(service, request, chunks)) is not None:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in filter(bytes.strip, lines):
            block.append(line)
            size += len(line)
            if len(block) >= service.settings.batch_rows or size >= MAX_BLOCK:
                yield block
                block, size = [], 0
        if len(rest) > MAX_BLOCK:
            raise TooLargeError(f"a line is longer than {MAX_BLOCK:,} bytes")
    if rest.strip():
        block.append(rest)
    if block:
        yield block


async def next_chunk(service: Service, request: Request, chunks: AsyncIterator[bytes]) -> bytes | None:
    """What the client sends next, None at the end.

    Raises:
        DeadlineError: it sends nothing for as long as a request may take.
    """
    try:
        async with asyncio.timeout(service.timeout(request)):
            return await anext(chunks, None)
    except TimeoutError:
        raise DeadlineError("the client stalled") from None


async def answers_to(
    service: Service, request: Request, scorer: Scorer, percentiles: tuple[float, float], block: list[bytes]
) -> bytes:
    """Score the lines that can be read, and put the problems of the others in their places."""
    answers, rows, ids, places = await asyncio.to_thread(read_block, scorer, block)
    if rows:
        parts = await service.on_rows(
            request, scorer, np.concatenate(rows), lambda some: scorer.score(some, percentiles)
        )
        for part in parts:
            service.count(scorer, part, request)
        scores = [score for part in parts for score in score_list(part, None)]
        for place, score, one_id in zip(places, scores, ids, strict=True):
            if one_id is not None:
                score.id = one_id
            answers[place] = score
    return b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)


def read_block(scorer: Scorer, block: list[bytes]) -> tuple[list[Any], list[np.ndarray], list[Any], list[int]]:
    """The lines' problems in their places, and the rows, ids and places of those that can be read."""
    answers: list[Any] = [None] * len(block)
    rows, ids, places = [], [], []
    for place, line in enumerate(block):
        try:
            row, one_id = parse_row(line, scorer.model.input)
            rows.append(scorer.rows(row))
            ids.append(one_id)
            places.append(place)
        except InputError as error:
            answers[place] = error_document(error)
    return answers, rows, ids, places
