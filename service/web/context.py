"""What a running application holds, and one object for each request: its deadline, its body, its timings, who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from service.errors import DeadlineError, InputError, MediaTypeError, OverloadedError, TooLargeError
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.scoring.version import Published
from service.serving.call import Timings
from service.serving.engine import Engine
from service.settings import Settings
from service.web.access import KeyRing
from service.web.answers import ModelId

CONTEXT = "context"  # the one key of ours in a request's state
FEW = 500  # rows of scores, or numbers, that are written in less time than another thread takes to wake up
SMALL = 65_536  # bytes of a body that are parsed in less time than that
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Service:
    """One application's parts."""

    settings: Settings
    engine: Engine
    keys: KeyRing
    draining: bool = False
    held_bytes: int = 0  # of the bodies of all requests that are not answered yet

    def is_ready(self) -> bool:
        """Whether a request that names no model will be answered, and for some time to come."""
        return not self.draining and self.engine.is_ready()


@dataclass
class RequestContext:
    """Everything that is known of one request; `Observe` makes it, `RequestContext.of` finds it again.

    It is the `serving.call.Call` for which the engine computes.
    """

    service: Service
    request: Request
    request_id: str
    timings: Timings = field(default_factory=Timings)
    is_stream: bool = False  # the body is read while it is answered
    log_entry: dict[str, Any] = field(default_factory=dict)  # what the log line says of scores
    held_bytes: int = 0
    hang_up_task: asyncio.Task[None] | None = None

    @staticmethod
    def begun(service: Service, scope: Scope, receive: Receive, request_id: str) -> RequestContext:
        """The context of a request that has just come in, kept in its scope."""
        context = RequestContext(service, Request(scope, receive), request_id)
        scope.setdefault("state", {})[CONTEXT] = context
        return context

    @staticmethod
    def of(request: Request) -> RequestContext:
        """The context of a request."""
        context: RequestContext = request.scope["state"][CONTEXT]
        return context

    @property
    def engine(self) -> Engine:
        """What scores."""
        return self.service.engine

    @property
    def settings(self) -> Settings:
        """The deployment's settings."""
        return self.service.settings

    @property
    def content_type(self) -> str:
        """The Content-Type header."""
        return self.request.headers.get("content-type", "")

    @property
    def accept(self) -> str:
        """The Accept header, which may come in several lines."""
        return ",".join(self.request.headers.getlist("accept"))

    # Until when, and for whom

    def timeout_s(self) -> float:
        """Seconds that the request may take: the deployment's, or fewer if the client says so.

        Raises:
            InputError: the client's header is not a number of seconds.
        """
        header = self.request.headers.get("x-request-timeout")
        if header is None:
            return self.settings.request_timeout_s
        try:
            seconds = float(header)
        except ValueError:
            seconds = float("nan")
        if not 0 < seconds < float("inf"):
            raise InputError("X-Request-Timeout: expected a number of seconds above 0")
        return min(seconds, self.settings.request_timeout_s)

    def time_left_s(self) -> float:
        """Seconds until the deadline; a stream has one for each block of its lines."""
        return self.timeout_s() if self.is_stream else self.timeout_s() - self.timings.elapsed_s()

    def hang_up(self) -> asyncio.Future[None]:
        """Done when the client hangs up; watched from the first call on."""
        if self.hang_up_task is None:
            self.hang_up_task = asyncio.ensure_future(self.disconnected())
        return self.hang_up_task

    async def disconnected(self) -> None:
        """Return when the client hangs up.

        While a body is still coming in, the messages that would tell belong to its reader, who will notice.
        """
        if self.is_stream:
            await asyncio.Event().wait()
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def note_scores(self, published: Published, scores: Scores) -> None:
        """Note what the log line says of scores."""
        if not self.log_entry:
            self.log_entry = {
                "model": str(published.reference), "digest": published.digest, "rows": 0, "invalid": 0
            }  # fmt: skip
        self.log_entry["rows"] += len(scores)
        self.log_entry["invalid"] += int(np.count_nonzero(~scores.valid))

    def release(self) -> None:
        """The request is answered: give its memory back, and stop watching for a hang-up."""
        self.service.held_bytes -= self.held_bytes
        self.held_bytes = 0
        if self.hang_up_task is not None:
            self.hang_up_task.cancel()

    # The body, and the answer

    async def body(self) -> bytes:
        """The body, refused as soon as it is longer than the limit, whether it declares its length or not.

        Raises:
            MediaTypeError: it is compressed.
            TooLargeError: it is too long.
            DeadlineError: it did not come in time.
            OverloadedError: the bodies of all requests are too much.
        """
        self.refuse_compressed()
        limit = self.settings.max_body_bytes
        declared = self.request.headers.get("content-length", "0")
        too_large = TooLargeError(f"the body has more than {limit:,} bytes, the most that this deployment accepts")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large
        chunks, size = [], 0
        try:
            with self.timings.measured("body"):
                async with asyncio.timeout(self.time_left_s()):
                    async for chunk in self.request.stream():
                        size += len(chunk)
                        if size > limit:
                            raise too_large
                        self.hold(len(chunk))
                        chunks.append(chunk)
        except TimeoutError:
            raise DeadlineError("the deadline passed while the body was read") from None
        self.hang_up()  # while the body is parsed, too
        return b"".join(chunks)

    def refuse_compressed(self) -> None:
        """Raise for a compressed body, which can hide any size."""
        if self.request.headers.get("content-encoding", "identity").lower() != "identity":
            raise MediaTypeError("compressed bodies are not supported; send it without Content-Encoding")

    def hold(self, size: int) -> None:
        """Set memory aside for more of the body.

        Raises:
            OverloadedError: the bodies of all requests take as much as they may.
        """
        service = self.service
        if service.held_bytes + size > self.settings.max_held_bytes and service.held_bytes:
            raise OverloadedError("too many request bodies are in progress", 1.0)
        service.held_bytes += size
        self.held_bytes += size

    async def parsed(self, size: int, parse: Callable[[], T], always_beside: bool = False) -> T:
        """What a body of so many bytes says; large ones are parsed beside the event loop."""
        with self.timings.measured("parse"):
            if size < SMALL and not always_beside:
                return parse()
            return await asyncio.to_thread(parse)

    async def encoded(self, size: int, encode: Callable[P, Response], *args: P.args, **kwargs: P.kwargs) -> Response:
        """An answer of so many rows or numbers; large ones are written beside the event loop."""
        with self.timings.measured("encode"):
            if size < FEW:
                return encode(*args, **kwargs)
            return await asyncio.to_thread(encode, *args, **kwargs)


def model_id(scorer: Scorer) -> ModelId:
    """Which model answers."""
    published = scorer.published
    return ModelId(published.reference.name, published.reference.version, published.digest)
