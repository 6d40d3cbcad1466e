"""The state of a running application, and of each request: deadline, body, timings, and whether its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ParamSpec, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from service.errors import DeadlineError, InputError, NotAcceptableError, OverloadedError, ScopeError, TooLargeError
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.scoring.version import Published
from service.serving.call import CallerLeftError, Timings, deadline_passed
from service.serving.engine import Engine
from service.serving.quotas import UNLIMITED, Quota
from service.serving.sharing import SharedRoom
from service.settings import Settings
from service.system.threads import Worker
from service.web.access import Key, KeyRing
from service.web.answers import ModelId
from service.web.batch import Limits
from service.web.compression import MEMORY, MOST_RATIO, Inflater, coding_of, inflated
from service.web.media_types import FORMATS, media_type
from service.web.negotiation import negotiate
from service.web.pacing import Arrivals, Breaks
from service.web.query import policy_of

CONTEXT = "context"  # our only key in a request's state
FEW = 500  # rows of scores, or numbers: fewer are encoded faster than another thread wakes up
SMALL = 65_536  # bytes of a body: fewer are parsed faster than that
LARGE = 2**20  # bytes: such a body must not keep others from the interpreter
SPARE_BYTES = 4  # a fraction of `max_held_bytes`: what callers may hold beyond it who hold less than their share
NUMBER_BYTES = 32  # of a number in an answer: in an array, and as text
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Service:
    """The parts of one application."""

    settings: Settings
    engine: Engine
    keys: KeyRing
    draining: bool = False
    reload_requested: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        most = self.settings.max_held_bytes
        self.memory = SharedRoom(most, most // SPARE_BYTES)  # of all unanswered requests
        self.policy = policy_of(self.settings.policy)
        self.key_reader = Worker("keys")
        self.parser, self.large_parser = Worker("parser"), Worker("large-parser")
        self.arrivals = Arrivals()

    def is_ready(self) -> bool:
        """Whether the default model can answer and the service is not shutting down."""
        return not self.draining and self.engine.is_ready()

    def problems(self) -> dict[str, str]:
        """What does not work, though the service may still answer: `held_back` of /readyz."""
        problems = dict(self.engine.registry.problems())
        if self.engine.health.problem is not None:
            problems["inference"] = f"inference fails: {self.engine.health.problem}"
        if self.keys.problem is not None:
            problems["keys"] = self.keys.problem
        return problems | self.engine.recorder.problems()


@dataclass
class RequestContext:
    """Everything known about one request. `Observe` creates it, and `RequestContext.of` looks it up.

    It implements `serving.call.Call`, the engine's view of a request.
    """

    service: Service
    request: Request
    request_id: str
    timings: Timings = field(default_factory=Timings)
    is_stream: bool = False  # the body is read while the answer is written
    is_trial: bool = False  # its rows are only tried
    log_entry: dict[str, Any] = field(default_factory=dict)  # fields of the log line about scores
    key: Key | None = None  # where keys are set
    held_bytes: int = 0
    is_released: bool = False
    hang_up_task: asyncio.Task[None] | None = None

    @staticmethod
    def start(service: Service, scope: Scope, receive: Receive, request_id: str) -> RequestContext:
        """Create the context of a new request and keep it in the scope."""
        context = RequestContext(service, Request(scope, receive), request_id)
        scope.setdefault("state", {})[CONTEXT] = context
        return context

    @staticmethod
    def of(request: Request) -> RequestContext:
        context: RequestContext = request.scope["state"][CONTEXT]
        return context

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def settings(self) -> Settings:
        return self.service.settings

    @cached_property
    def content_type(self) -> str:
        return self.request.headers.get("content-type", "")

    @cached_property
    def media_type(self) -> str:
        """The media type that the request declares, empty if it declares none."""
        return media_type(self.content_type)

    @property
    def accept(self) -> str:
        """The Accept header; several header lines are joined."""
        return ",".join(self.request.headers.getlist("accept"))

    def answer_type(self, offered: Sequence[str]) -> str:
        """The type of the answer: that of the path, as in /sample.png, or the one that the Accept header prefers.

        Raises:
            NotAcceptableError: the answer cannot be given so.
        """
        ending = self.request.path_params.get("extension")
        if ending is None:
            return negotiate(self.accept, offered)
        if FORMATS.get(ending) not in offered:
            possible = [name for name, kind in FORMATS.items() if kind in offered]
            raise NotAcceptableError(f"this answer cannot be given so: ask for one of {', '.join(possible)}")
        return FORMATS[ending]

    @property
    def caller(self) -> str:
        """Who asks: the key's id, or else the client's address."""
        if self.key is not None:
            return self.key.id
        client = self.request.scope.get("client")
        return client[0] if client else ""

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    @property
    def quota(self) -> Quota:
        return UNLIMITED if self.key is None else self.key.quota

    def who(self) -> dict[str, Any]:
        """Who asks, for the log."""
        client = self.request.scope.get("client")
        return {"request_id": self.request_id, "key": self.key_id, "address": client[0] if client else None}

    async def scorer(self, name: str | None) -> Scorer:
        """The named model.

        Raises:
            ScopeError: the key may not use it.
        """
        registry = self.engine.registry
        self.check_model(registry.resolve(name).name)
        return await self.engine.scorer(name)

    def check_model(self, name: str) -> None:
        """Raise unless the request's key may use a model."""
        if not self.may_use(name):
            raise ScopeError("the API key may not use this model: use one that may")

    def may_use(self, name: str) -> bool:
        return self.key is None or not self.key.models or name in self.key.models

    # Deadline and hang-up

    def timeout_s(self) -> float:
        """Seconds that the request may take: the deployment's limit, or less if the client asks for it.

        Raises:
            InputError: the client's header is not a positive number of seconds.
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
        """Seconds until the deadline; in a stream, each block of lines has its own."""
        return self.timeout_s() if self.is_stream else self.timeout_s() - self.timings.elapsed_s()

    def hang_up(self) -> asyncio.Future[None]:
        """A future that is done when the client hangs up; watching starts with the first call."""
        if self.hang_up_task is None:
            self.hang_up_task = asyncio.ensure_future(self.disconnected())
        return self.hang_up_task

    async def disconnected(self) -> None:
        """Return when the client hangs up.

        For a stream it never returns: the messages belong to the reader of the body, who notices the hang-up.
        """
        if self.is_stream:
            await asyncio.Event().wait()
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def check_cancelled(self) -> None:
        """Raise if nobody waits for the answer any more; for work in other threads.

        Raises:
            DeadlineError, CallerLeftError.
        """
        if self.time_left_s() <= 0:
            raise deadline_passed(self.timeout_s())
        if self.hang_up_task is not None and self.hang_up_task.done():
            raise CallerLeftError

    def note_scores(self, published: Published, scores: Scores) -> None:
        """Add the scores to the request's log line."""
        if not self.log_entry:
            self.log_entry = {
                "model": str(published.reference), "digest": published.digest, "rows": 0, "invalid": 0
            }  # fmt: skip
        self.log_entry["rows"] += len(scores)
        self.log_entry["invalid"] += int(np.count_nonzero(~scores.valid))

    def release(self) -> None:
        """Release the memory of an answered request, and stop watching for a hang-up."""
        self.give_back(self.held_bytes)
        self.is_released = True
        if self.hang_up_task is not None:
            self.hang_up_task.cancel()

    # Body and answer

    async def body(self, most: int | None = None) -> bytearray:
        """Read the body; refuse it as soon as it exceeds the limit, whether or not its length was declared.

        It comes into memory that grows with it: to join its pieces at the end would hold up everything else.

        Args:
            most: bytes; default: the deployment's limit.

        Raises:
            MediaTypeError: it is compressed in a way that cannot be read.
            MalformedError: it is not compressed so.
            TooLargeError: it is too long.
            DeadlineError: it did not arrive in time.
            OverloadedError: the bodies of all requests exceed their limit.
        """
        coding = self.coding()
        limit = min(self.settings.max_body_bytes, most or self.settings.max_body_bytes)
        declared = self.request.headers.get("content-length", "0")
        too_large = TooLargeError(f"the body has more than {limit:,} bytes, which is the limit: send fewer rows")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large
        body = bytearray()
        try:
            with self.timings.measured("body"):
                async with asyncio.timeout(self.time_left_s()):
                    async for chunk in self.request.stream():
                        if len(body) + len(chunk) > limit:
                            raise too_large
                        self.hold(len(chunk))
                        body += chunk
                        if len(body) > LARGE:
                            await asyncio.sleep(self.service.arrivals.pause_s(self.caller, len(chunk)))
        except TimeoutError:
            raise DeadlineError(
                "the deadline passed before the body was read: send fewer rows, or allow more time"
            ) from None
        self.hang_up()  # watch while the body is parsed, too
        if coding is None:
            return body
        with self.timings.measured("parse"):
            whole = await self.beside(
                self.service.large_parser,
                partial(inflated, body, coding, limit, self.limits().check, self.hold),
            )
        self.give_back(len(body))
        return whole

    def coding(self) -> str | None:
        """The coding of a compressed body, None for others.

        Raises:
            MediaTypeError: it cannot be read.
        """
        return coding_of(",".join(self.request.headers.getlist("content-encoding")))

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, inflated if it is compressed.

        Raises:
            MalformedError: it is not compressed as it says.
            TooLargeError: it inflates to far more than was sent.
        """
        coding = self.coding()
        if coding is None:
            async for chunk in self.request.stream():
                yield chunk
            return
        self.hold(MEMORY[coding])
        inflater, room = Inflater(coding), self.settings.max_body_bytes
        async for chunk in self.request.stream():
            room += MOST_RATIO * len(chunk)
            for piece in inflater.pieces(chunk):
                room -= len(piece)
                if room < 0:
                    raise TooLargeError("the stream inflates to far more than was sent: send it uncompressed")
                yield piece
                await asyncio.sleep(0)
        inflater.end()

    def hold(self, size: int) -> None:
        """Reserve memory for the body, or for what becomes of it.

        Raises:
            OverloadedError: all requests together hold too much.
            CallerLeftError: the request is over.
        """
        if self.is_released:
            raise CallerLeftError
        if not self.service.memory.take(self.caller, size, self.held_bytes):
            raise OverloadedError("too many request bodies are in progress: try again after Retry-After", 1.0)
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        """Release a part of the request's memory."""
        self.service.memory.give_back(self.caller, size)
        self.held_bytes -= size

    def hold_answer(self, numbers: int) -> None:
        """Reserve memory for an answer of so many numbers, before it is computed."""
        if numbers > FEW:
            self.hold(NUMBER_BYTES * numbers)

    def limits(self) -> Limits:
        """The budgets of the request's body."""
        settings = self.settings
        check = (
            Breaks(self.check_cancelled, self.engine.is_computing) if self.held_bytes > LARGE else self.check_cancelled
        )
        return Limits(settings.max_rows, settings.max_pixels, check, self.hold)

    async def parsed(self, size: int, parse: Callable[[], T], always_beside: bool = False) -> T:
        """Parse a body of `size` bytes; all but small ones are parsed in a thread, off the event loop."""
        with self.timings.measured("parse"):
            if size < SMALL and not always_beside:
                return parse()
            worker = self.service.parser if size < LARGE else self.service.large_parser
            return await self.beside(worker, parse)

    async def encoded(self, size: int, encode: Callable[P, Response], *args: P.args, **kwargs: P.kwargs) -> Response:
        """Encode an answer of `size` rows or numbers; large ones are encoded in a thread, off the event loop."""
        with self.timings.measured("encode"):
            if size < FEW:
                return encode(*args, **kwargs)
            return await self.beside(self.service.parser, partial(encode, *args, **kwargs))

    async def beside(self, worker: Worker, work: Callable[[], T]) -> T:
        """Work in a thread; if its turn comes too late, not at all.

        Raises:
            DeadlineError: it was not done in time.
        """

        def do() -> T:
            self.check_cancelled()
            return work()

        dropped = self.engine.metrics.dropped
        try:
            return await worker.run(do, max(0.0, self.time_left_s()), self.caller)
        except CallerLeftError:
            dropped.labels("disconnect").inc()
            raise
        except (TimeoutError, DeadlineError):
            dropped.labels("deadline").inc()
            raise deadline_passed(self.timeout_s()) from None


def model_id(scorer: Scorer) -> ModelId:
    """Name, version and digest of the scorer's model."""
    published = scorer.published
    return ModelId(published.reference.name, published.reference.version, published.digest)
