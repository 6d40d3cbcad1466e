"""POST /score of JSON lines: read and answered line by line, in order, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import InputError, MalformedError, TooLargeError, VouchError
from service.scorer import Scorer
from service.web.answers import NDJSON, score_list
from service.web.context import Service, model_id, refuse_compressed
from service.web.parsing import parse_json
from service.web.problems import STATUSES, TITLES, fault_entry

MAX_LINE = 4 * 2**20


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
    return LinesResponse(lines, headers)


class LinesResponse(Response):
    """An answer that is written while the request is read.

    Starlette's own watches for a hang-up by reading the request's messages, and would swallow the body.
    """

    def __init__(self, lines: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(None, 200, headers, NDJSON)
        del self.headers["content-length"]
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, the lines as they come, and the end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for block in self.lines:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answered(
    service: Service, request: Request, scorer: Scorer, percentiles: tuple[float, float]
) -> AsyncIterator[bytes]:
    """The answers, a block of lines at a time."""
    block: list[bytes] = []
    try:
        async for line in lines_of(request):
            block.append(line)
            if len(block) == service.settings.batch_rows:
                yield await answers_to(service, request, scorer, percentiles, block)
                block = []
        if block:
            yield await answers_to(service, request, scorer, percentiles, block)
    except VouchError as error:  # the head is sent: what is wrong can only stand in a last line
        yield msgspec.json.encode(line_problem(error)) + b"\n"


async def lines_of(request: Request) -> AsyncIterator[bytes]:
    """The body's lines without the empty ones, as they come in."""
    rest = b""
    async for chunk in request.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            raise TooLargeError(f"a line is longer than {MAX_LINE:,} bytes")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


async def answers_to(
    service: Service, request: Request, scorer: Scorer, percentiles: tuple[float, float], block: list[bytes]
) -> bytes:
    """Score the lines that can be read, and put the problems of the others in their places."""
    answers: list[Any] = [None] * len(block)
    rows, ids, places = [], [], []
    for place, line in enumerate(block):
        try:
            array, one_id = parse_json(b'{"instances":[' + line + b"]}", scorer.model.input)
            if len(array) != 1:
                raise MalformedError("a line is expected to hold one row")
            rows.append(scorer.rows(array))
            ids.append(one_id[0] if one_id else None)
            places.append(place)
        except InputError as error:
            answers[place] = line_problem(error)
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


def line_problem(error: VouchError) -> dict[str, Any]:
    """A problem in a line of its own; rows count within the line."""
    status, slug = next((status, slug) for kind, status, slug in STATUSES if isinstance(error, kind))
    faults = list(map(fault_entry, error.faults)) if isinstance(error, InputError) else []
    return {
        "type": f"urn:vouch:problem:{slug}",
        "title": TITLES[slug],
        "status": status,
        "detail": str(error),
        "errors": faults,
    }
