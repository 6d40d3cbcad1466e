"""What a running application holds, and how a request's work gets to the inference thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request

from service.errors import DeadlineError, InputError, MediaTypeError, TooLargeError
from service.scorer import Scorer, Scores
from service.settings import Settings
from service.web.access import Keys
from service.web.answers import ModelId
from service.web.batching import InferenceThread, Piece
from service.web.drift import DriftMonitor
from service.web.metrics import Metrics
from service.web.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """One application's parts."""

    settings: Settings
    registry: Registry
    inference: InferenceThread
    keys: Keys
    metrics: Metrics
    drift: DriftMonitor

    async def scorer(self, name: str | None) -> Scorer:
        """The named model; one that is not in memory is read and verified beside the event loop."""
        return await asyncio.to_thread(self.registry.get, name)

    def warming_up(self) -> list[Piece[None]]:
        """The start: load every served model and score one row, in the thread that will compute."""
        return [Piece(self.registry.load_all, 0)]

    async def on_rows(
        self, request: Request, scorer: Scorer, rows: np.ndarray, compute: Callable[[np.ndarray], T]
    ) -> list[T]:
        """Compute on blocks of the rows, shape (B, D), in the inference thread."""
        cost = scorer.model.evaluations_per_row()
        size = self.settings.batch_rows
        pieces = [
            Piece(lambda block=rows[start : start + size]: compute(block), cost * len(rows[start : start + size]))  # type: ignore[misc]  # a default binds the block now
            for start in range(0, len(rows), size)
        ]
        return await self.run(request, pieces)

    async def once(self, request: Request, compute: Callable[[], T], cost: int) -> T:
        """Compute one thing in the inference thread; `cost` in decoder evaluations."""
        return (await self.run(request, [Piece(compute, cost)]))[0]

    async def run(self, request: Request, pieces: list[Piece[T]]) -> list[T]:
        """Wait for the pieces until the deadline passes or the client hangs up, which leaves the rest undone."""
        timeout = self.timeout(request)
        future = self.inference.submit(pieces, timeout)
        answer = asyncio.wrap_future(future)
        hung_up = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait((answer, hung_up), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if hung_up.done():
                raise ClientDisconnect
            raise DeadlineError(f"the request's {timeout:g} s ran out")
        finally:
            answer.cancel()
            hung_up.cancel()

    def timeout(self, request: Request) -> float:
        """Seconds that the request may take: the deployment's, or fewer if the client says so."""
        header = request.headers.get("x-request-timeout")
        if header is None:
            return self.settings.request_timeout_s
        try:
            seconds = float(header)
        except ValueError:
            seconds = float("nan")
        if not 0 < seconds < float("inf"):
            raise InputError("X-Request-Timeout: expected a number of seconds above 0")
        return min(seconds, self.settings.request_timeout_s)

    def count(self, scorer: Scorer, scores: Scores, request: Request) -> None:
        """Metrics, the drift monitor, and the request's log line."""
        reference = scorer.published.reference
        self.metrics.count_scores(str(reference), scores)
        self.drift.add(scorer, scores)
        entry = request.scope.setdefault("state", {}).setdefault(
            "log", {"model": str(reference), "rows": 0, "invalid": 0}
        )
        entry["rows"] += len(scores)
        entry["invalid"] += int((scores.sides != 0).sum())


async def disconnected(request: Request) -> None:
    """Return when the client hangs up.

    While a body is still coming in, the messages that would tell belong to whoever reads it, who will notice.
    """
    if is_streamed(request):
        await asyncio.Event().wait()
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def body_of(request: Request) -> bytes:
    """The body, refused as soon as it is longer than the limit, whether it declares its length or not.

    Raises:
        MediaTypeError: it is compressed.
        TooLargeError: it is too long.
        DeadlineError: it did not come in time.
    """
    refuse_compressed(request)
    service = service_of(request)
    limit = service.settings.max_body_bytes
    declared = request.headers.get("content-length", "0")
    too_large = TooLargeError(f"the body has more than {limit:,} bytes, which this deployment accepts at most")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(service.timeout(request)):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineError("the request's time ran out before its body was there") from None
    return b"".join(chunks)


def is_streamed(request: Request) -> bool:
    """Whether the body is read while it is answered."""
    return bool(request.scope.get("state", {}).get("streamed"))


def refuse_compressed(request: Request) -> None:
    """A compressed body can hide any size."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("compressed bodies are not read; expected no Content-Encoding")


def model_id(scorer: Scorer) -> ModelId:
    """Which model answers."""
    published = scorer.published
    return ModelId(published.reference.name, published.reference.version, published.digest)


def service_of(request: Request) -> Service:
    """The application's parts."""
    service: Service = request.app.state.service
    return service
