"""What a running application holds, and how a request's work gets to the inference threads and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from service.density.conditionals import KEPT_DRAWS
from service.density.estimator import Tiling
from service.density.row_statistics import BOUND_DRAWS, WITNESS_DRAWS
from service.errors import DeadlineError, InputError, MediaTypeError, OverloadedError, TooLargeError
from service.scoring.scorer import Answer, Detail, Likelihoods, Scorer, Scores, joined, part
from service.serving.batching import Checkpoint, InferenceThreads, Task
from service.serving.drift import DriftMonitor
from service.serving.metrics import Metrics
from service.serving.registry import Registry
from service.serving.shadow import Shadow
from service.settings import Settings
from service.validity.conformal import Tail
from service.web.access import KeyRing
from service.web.answers import ModelId

# Multiplications of a decoder evaluation. Two threads are slower than one at 500 of them, and 1.3 times faster at 20,000.
TINY = 2**13
EXPLAINING_EVALUATIONS = 2 * KEPT_DRAWS
MAX_INTERVALS = 64  # of a request's parts; a stream has more of them than anybody will look at
FEW = 500  # rows of scores, or numbers, that are written in less time than another thread takes to wake up
FEW_WATCHED = 100  # rows that the drift monitor takes in less time than that
P = ParamSpec("P")
A = TypeVar("A", bound=Answer)
T = TypeVar("T")


@dataclass
class Timings:
    """Seconds that parts of a request took, by name: for its log line, its metrics and `Server-Timing`."""

    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    intervals: list[tuple[str, int, int]] = field(default_factory=list)  # name, start and end, ns since the epoch

    def add(self, name: str, seconds: float, ended_ago_s: float = 0.0) -> None:
        """Some more of a part, which ended just now or a while ago."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if len(self.intervals) < MAX_INTERVALS:
            end = time.time_ns() - round(1e9 * ended_ago_s)
            self.intervals.append((name, end - round(1e9 * seconds), end))

    def elapsed_s(self) -> float:
        """Since the request's head was read."""
        return time.perf_counter() - self.started

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Count the time that this takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants of its scores.

    Another band, so many columns to blame, verdicts by all evidence combined at a rate of false alarms, and a bound on the
    rate of false discoveries.
    """

    percentiles: tuple[float, float] | None = None
    explain: int = 0
    combined: bool = False
    false_alarm: float | None = None
    fdr: float | None = None
    fdr_tail: Tail = "low"

    @property
    def detail(self) -> Detail:
        """What is to be known of rows beside log p(x)."""
        return Detail(self.explain > 0, self.combined)

    @property
    def more_evaluations(self) -> int:
        """What that costs a row, in decoder evaluations."""
        explaining = EXPLAINING_EVALUATIONS if self.explain else 0
        return explaining + (WITNESS_DRAWS + BOUND_DRAWS if self.combined else 0)

    def check(self, scorer: Scorer) -> None:
        """Refuse what the calibration cannot give, before any row is read."""
        if self.percentiles is not None:
            scorer.calibration.band(self.percentiles)
        if self.explain:
            scorer.sketch()
        if self.combined:
            scorer.rule(self.false_alarm)
        if self.fdr is not None:
            scorer.calibration.check_has_no_folds()


AS_IT_IS = Wanted()


@dataclass
class Service:
    """One application's parts."""

    settings: Settings
    registry: Registry
    inference: InferenceThreads
    keys: KeyRing
    metrics: Metrics
    drift: DriftMonitor
    shadow: Shadow | None
    draining: bool = False
    held_bytes: int = 0  # of the bodies of all requests that are not answered yet
    loader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "loader"))

    def is_ready(self) -> bool:
        """Whether a request that names no model will be answered, and for some time to come."""
        return not self.draining and self.inference.is_alive() and self.registry.default_is_ready()

    async def scorer(self, name: str | None) -> Scorer:
        """The named model; one that is not in memory is read and verified beside the event loop.

        By a thread of its own: those who ask for versions of a slow store wait for each other, and nobody else does.
        """
        scorer = self.registry.in_memory(name)
        if scorer is not None:
            return scorer
        loading = asyncio.get_running_loop().run_in_executor(self.loader, self.registry.get, name)
        try:
            return await asyncio.wait_for(loading, self.settings.request_timeout_s)
        except TimeoutError:
            raise DeadlineError("the model was not read in time") from None

    async def score(self, request: Request, scorer: Scorer, rows: np.ndarray, wanted: Wanted = AS_IT_IS) -> Scores:
        """Score checked rows, shape (B, D), together with those of other requests, and count them."""

        def compute(batch: np.ndarray, checkpoint: Checkpoint) -> Scores:
            scores = scorer.score(
                batch, wanted.percentiles, checkpoint, wanted.explain, wanted.combined, wanted.false_alarm
            )
            self.metrics.count_scores(str(scorer.published.reference), scores)  # once for all requests of the batch
            return scores

        await self.learn_patterns(request, scorer, rows, wanted)
        scores = await self.on_rows(request, scorer, rows, compute, (scorer, wanted), wanted.more_evaluations)
        self.note(request, scorer, scores)
        # A stream's blocks are one request; they are no retries of each other.
        request_id = None if is_streamed(request) else request.scope["state"]["request_id"]
        if len(scores) < FEW_WATCHED:
            self.drift.add(scorer, scores, request_id)
        else:
            await asyncio.to_thread(self.drift.add, scorer, scores, request_id)
        if self.drift.is_due():
            await asyncio.to_thread(self.drift.save)
        if self.shadow is not None:
            self.shadow.compare(self, scorer, rows, scores)
        return scores

    async def learn_patterns(self, request: Request, scorer: Scorer, rows: np.ndarray, wanted: Wanted) -> None:
        """Score the validation rows beside which rows with holes are judged, where such holes are new.

        It is the request's own work, by cost and by deadline, and by as much as may wait at a time: whoever sends ever new
        patterns gets 429, and has fewer new ones when he comes back.
        """
        if not scorer.model.input.reads_holes:
            return

        def compute(batch: np.ndarray, checkpoint: Checkpoint) -> Likelihoods:
            return scorer.likelihoods(batch, wanted.detail, checkpoint)

        spent, more = 0, wanted.more_evaluations
        for pattern in scorer.unknown_patterns(rows, wanted.detail):
            reference = scorer.reference_rows(pattern)
            cost = (scorer.model.row_cost + more) * len(reference)
            spent += cost
            if spent > self.inference.max_cost and spent > cost:
                raise OverloadedError(
                    "the rows have more new patterns of missing cells than may be learnt at a time", 1.0
                )
            group = (scorer, "reference", wanted.detail)
            scorer.remember(pattern, await self.on_rows(request, scorer, reference, compute, group, more))

    async def on_rows(
        self,
        request: Request,
        scorer: Scorer,
        rows: np.ndarray,
        compute: Callable[[np.ndarray, Checkpoint], A],
        group: Any,
        more: int = 0,
    ) -> A:
        """Compute on the rows, shape (B, D), in the inference threads, in batches of bounded cost.

        A row costs what its score costs, and so many decoder evaluations more.
        """
        answers = await self.run(request, self.row_task(scorer, compute, group, more), rows)
        return joined(answers)

    def row_task(
        self,
        scorer: Scorer,
        compute: Callable[[np.ndarray, Checkpoint], A],
        group: Any,
        more: int = 0,
        shadow: bool = False,
    ) -> Task[A]:
        """What is to be done with a model's rows, in batches of whole blocks: one, or as many as the budget holds.

        A block is what goes through the networks at a time: a part of it costs little less.
        """
        cost = scorer.model.row_cost + more
        block = Tiling.of(scorer.model.vae).rows
        blocks = max(1, self.settings.batch_evaluations // (cost * block))
        is_tiny = scorer.model.vae.evaluation_size < TINY
        return Task(compute, part, (shadow, group), cost, blocks * block, shadow, is_tiny)

    async def once(self, request: Request, compute: Callable[[], T], cost: int) -> T:
        """Compute one thing in an inference thread; `cost` in decoder evaluations."""
        task: Task[T] = Task(lambda rows, checkpoint: compute(), no_part, object(), cost, 1)
        return (await self.run(request, task, np.zeros((1, 0))))[0]

    async def run(self, request: Request, task: Task[T], rows: np.ndarray) -> list[T]:
        """Wait for the answers until the deadline passes or the client hangs up, which leaves the rest undone."""
        left_s = self.time_left(request)
        hung_up = hang_up_of(request)
        await asyncio.sleep(0)
        if hung_up.done():  # a client that is gone already is not worth a batch
            self.metrics.dropped.labels("disconnect").inc()
            raise ClientDisconnect
        job = self.inference.submit(task, rows, left_s)

        def give_up(reason: str, error: Exception) -> None:
            self.inference.abandon(job, reason)
            if not job.future.done():
                job.future.set_exception(error)

        def on_hang_up(_: object) -> None:
            give_up("disconnect", ClientDisconnect())

        late = DeadlineError(f"the request's {self.timeout(request):g} s ran out")
        timer = asyncio.get_running_loop().call_later(left_s, give_up, "deadline", late)
        hung_up.add_done_callback(on_hang_up)
        try:
            done = await job.future
        finally:
            timer.cancel()
            hung_up.remove_done_callback(on_hang_up)
            self.inference.abandon(job, "disconnect")  # cancelled with its request; nothing to do where it is over
        timings = timings_of(request)
        timings.add("queue", done.waited_s, done.computed_s)
        timings.add("compute", done.computed_s)
        return done.answers

    def hold(self, request: Request, size: int) -> None:
        """Set memory aside for more of a request's body.

        Raises:
            OverloadedError: all that may be is.
        """
        if self.held_bytes + size > self.settings.max_held_bytes and self.held_bytes:
            raise OverloadedError("too many bodies are being read", 1.0)
        self.held_bytes += size
        request.scope["state"]["held"] = request.scope["state"].get("held", 0) + size

    def release(self, scope: Scope) -> None:
        """The request is answered: its body is no more, and nobody looks whether its client hangs up."""
        self.held_bytes -= scope["state"].pop("held", 0)
        if "hang_up" in scope["state"]:
            scope["state"].pop("hang_up").cancel()

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

    def time_left(self, request: Request) -> float:
        """Seconds until the request's deadline; a stream has one for each block of its lines."""
        timeout = self.timeout(request)
        return timeout if is_streamed(request) else timeout - timings_of(request).elapsed_s()

    def note(self, request: Request, scorer: Scorer, scores: Scores) -> None:
        """What the request's log line says of its scores."""
        published = scorer.published
        entry = request.scope["state"].setdefault(
            "log", {"model": str(published.reference), "digest": published.digest, "rows": 0, "invalid": 0}
        )
        entry["rows"] += len(scores)
        entry["invalid"] += int(np.count_nonzero(~scores.valid))


def no_part(answer: Any, rows: slice) -> Any:
    """What is computed once is nobody else's."""
    raise AssertionError("one row has no parts")


def hang_up_of(request: Request) -> asyncio.Task[None]:
    """Done when the client hangs up; watched from the first call on."""
    state = request.scope["state"]
    if "hang_up" not in state:
        state["hang_up"] = asyncio.ensure_future(disconnected(request))
    task: asyncio.Task[None] = state["hang_up"]
    return task


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
        OverloadedError: the bodies of all requests are too much.
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
        with timings_of(request).measured("body"):
            async with asyncio.timeout(service.time_left(request)):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise too_large
                    service.hold(request, len(chunk))
                    chunks.append(chunk)
    except TimeoutError:
        raise DeadlineError("the request's time ran out before its body was there") from None
    hang_up_of(request)  # while the body is parsed, too
    return b"".join(chunks)


async def parsed(request: Request, size: int, parse: Callable[[], T], always_beside: bool = False) -> T:
    """What a body of so many bytes says; large ones are parsed beside the event loop."""
    with timings_of(request).measured("parse"):
        if size < 65536 and not always_beside:
            return parse()
        return await asyncio.to_thread(parse)


async def encoded(
    request: Request, size: int, encode: Callable[P, Response], *args: P.args, **kwargs: P.kwargs
) -> Response:
    """An answer of so many rows or numbers; large ones are written beside the event loop."""
    with timings_of(request).measured("encode"):
        if size < FEW:
            return encode(*args, **kwargs)
        return await asyncio.to_thread(encode, *args, **kwargs)


def timings_of(request: Request) -> Timings:
    """The request's timings; they are made by whoever wraps it (`observe.py`)."""
    timings: Timings = request.scope["state"]["timings"]
    return timings


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
