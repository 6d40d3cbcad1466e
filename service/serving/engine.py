"""The engine: loaded models, the queue, drift monitors and the shadow, without HTTP.

call's rows -> checked -> queue (`batching.py`) -> Scorer -> counted: metrics, drift, shadow -> answer
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from service.density.estimate import Execution
from service.density.tiling import CheckCancelled, Tiling
from service.errors import DeadlineError, OverloadedError
from service.scoring.options import DEFAULT, ScoreOptions
from service.scoring.scorer import Scorer, torch_device
from service.scoring.scores import Answer, ReferenceEstimates, Scores, concatenated, rows_of
from service.serving.batching import InferenceThreads
from service.serving.call import Call, CallerLeftError
from service.serving.drift import DriftMonitors
from service.serving.jobs import Task
from service.serving.metrics import Metrics
from service.serving.registry import Registry
from service.serving.shadow import Shadow
from service.settings import Settings
from service.store.store import Store

# Multiplications per decoder evaluation. Two threads are slower than one at 500 of them, and 1.3 times faster at 20,000.
TINY = 2**13
FEW_ROWS = 100  # rows: the drift monitor counts fewer of them faster than another thread wakes up
A = TypeVar("A", bound=Answer)
T = TypeVar("T")


class Engine:
    """Scores rows for any number of concurrent callers.

    `start` it, `refresh` the registry, and `stop` it at the end.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.registry = Registry(
            Store(settings.store, settings.cache()),
            settings.device,
            settings.loaded_versions,
            on_failure=self.metrics.reload_failures.inc,
        )
        on_cpu = torch_device(settings.device).type == "cpu"
        self.inference = InferenceThreads(
            settings.thread_count() if on_cpu else 1,
            settings.max_queue_evaluations,
            settings.batch_delay_ms / 1000,
            on_batch=self.metrics.count_batch,
            on_drop=lambda reason: self.metrics.dropped.labels(reason).inc(),
        )
        self.drift = DriftMonitors(settings.drift_level, settings.drift_folder)
        self.shadow: Shadow | None = None
        if settings.shadow is not None:
            self.shadow = Shadow(
                settings.shadow, settings.shadow_share, self.metrics, self.scorer, self.score_while_idle
            )
        self.loader = ThreadPoolExecutor(1, "loader")

    def start(self) -> None:
        self.inference.start()

    def stop(self) -> None:
        """Finish what is queued, and save the drift monitors."""
        self.loader.shutdown(wait=False, cancel_futures=True)
        self.inference.stop()
        self.drift.save()

    def is_alive(self) -> bool:
        """Whether every inference thread runs."""
        return self.inference.is_alive()

    def is_ready(self) -> bool:
        """Whether calls of the default model can be answered."""
        return self.is_alive() and self.registry.default_is_ready()

    async def scorer(self, name: str | None) -> Scorer:
        """The named model; one that is not in memory is loaded and verified off the event loop.

        One thread does all loading: if the store is slow, only callers that need a model loaded wait for each other.
        """
        scorer = self.registry.in_memory(name)
        if scorer is not None:
            return scorer
        loading = asyncio.get_running_loop().run_in_executor(self.loader, self.registry.get, name)
        try:
            return await asyncio.wait_for(loading, self.settings.request_timeout_s)
        except TimeoutError:
            raise DeadlineError("the model did not load in time") from None

    def check_room(self, scorer: Scorer) -> None:
        """Raise if the queue has no room for one more row, before the body is read in vain."""
        self.inference.check_room(scorer.model.row_cost)

    async def score(self, call: Call, scorer: Scorer, rows: np.ndarray, options: ScoreOptions = DEFAULT) -> Scores:
        """Score checked rows, shape (B, D), in batches with those of other calls, and count them."""

        def compute(batch: np.ndarray, check_cancelled: CheckCancelled) -> Scores:
            scores = scorer.score(batch, options, check_cancelled)
            self.metrics.count_scores(str(scorer.published.reference), scores)  # once for all calls of the batch
            return scores

        await self.learn_patterns(call, scorer, rows, options)
        scores = await self.on_rows(call, scorer, rows, compute, (scorer, options), options.extra_evaluations)
        call.note_scores(scorer.published, scores)
        # The blocks of a stream belong to one request, but are not retries of each other.
        request_id = None if call.is_stream else call.request_id
        if len(scores) < FEW_ROWS:
            self.drift.add(scorer, scores, request_id)
        else:
            await asyncio.to_thread(self.drift.add, scorer, scores, request_id)
        if self.drift.is_due():
            await asyncio.to_thread(self.drift.save)
        if self.shadow is not None:
            self.shadow.compare(scorer, rows, scores)
        return scores

    async def learn_patterns(self, call: Call, scorer: Scorer, rows: np.ndarray, options: ScoreOptions) -> None:
        """For each new pattern of missing cells, score the validation rows that such rows are compared with.

        This counts as the call's own work, in cost and deadline, and may not exceed the queue's limit: a caller that sends
        too many new patterns gets 429, and fewer of them are new when it retries.
        """
        if not scorer.model.input.reads_missing:
            return

        def compute(batch: np.ndarray, check_cancelled: CheckCancelled) -> ReferenceEstimates:
            return scorer.patterns.estimate(batch, options.detail, Execution(scorer.pool, check_cancelled))

        spent, extra = 0, options.extra_evaluations
        for pattern in scorer.patterns.unknown(rows, options.detail):
            reference = scorer.patterns.reference_rows(pattern)
            cost = (scorer.model.row_cost + extra) * len(reference)
            spent += cost
            if spent > self.inference.max_cost and spent > cost:
                raise OverloadedError("too many new patterns of missing cells in one request", 1.0)
            group = (scorer, "reference", options.detail)
            scorer.patterns.remember(pattern, await self.on_rows(call, scorer, reference, compute, group, extra))

    async def on_rows(
        self,
        call: Call,
        scorer: Scorer,
        rows: np.ndarray,
        compute: Callable[[np.ndarray, CheckCancelled], A],
        group: Any,
        extra: int = 0,
    ) -> A:
        """Compute on the rows, shape (B, D), in the inference threads, in batches of bounded cost.

        Args:
            group: rows of equal groups may be computed together.
            extra: cost of a row in addition to its score, in decoder evaluations.
        """
        return concatenated(await self.run(call, self.row_task(scorer, compute, group, extra), rows))

    async def once(self, call: Call, compute: Callable[[], T], cost: int) -> T:
        """Compute one thing in an inference thread; `cost` in decoder evaluations."""
        task: Task[T] = Task(lambda rows, check_cancelled: compute(), indivisible, object(), cost, 1)
        return (await self.run(call, task, np.zeros((1, 0))))[0]

    async def score_while_idle(self, scorer: Scorer, rows: np.ndarray, options: ScoreOptions) -> Scores:
        """Score rows that no caller waits for, when nothing else waits."""
        task = self.row_task(
            scorer,
            lambda batch, check_cancelled: scorer.score(batch, options, check_cancelled),
            (scorer, options),
            is_shadow=True,
        )
        job = self.inference.submit(task, scorer.rows(rows), self.settings.request_timeout_s)
        answer: Scores = concatenated((await job.future).answers)
        return answer

    def row_task(
        self,
        scorer: Scorer,
        compute: Callable[[np.ndarray, CheckCancelled], A],
        group: Any,
        extra: int = 0,
        is_shadow: bool = False,
    ) -> Task[A]:
        """A task on a model's rows, in batches of whole blocks: one, or as many as the budget allows.

        A block is the number of rows that pass through the networks together; a partial one costs little less.
        """
        cost = scorer.model.row_cost + extra
        block = Tiling.of(scorer.model.vae).rows
        blocks = max(1, self.settings.batch_evaluations // (cost * block))
        is_tiny = scorer.model.vae.evaluation_size < TINY
        return Task(compute, rows_of, (is_shadow, group), cost, blocks * block, is_shadow, is_tiny)

    async def run(self, call: Call, task: Task[T], rows: np.ndarray) -> list[T]:
        """Run a task on rows, and wait for the answers. If the deadline passes or the caller leaves, drop the rest.

        Raises:
            CallerLeftError, DeadlineError.
        """
        left_s = call.time_left_s()
        hung_up = call.hang_up()
        await asyncio.sleep(0)
        if hung_up.done():  # do not spend a batch on a caller that has already left
            self.metrics.dropped.labels("disconnect").inc()
            raise CallerLeftError
        job = self.inference.submit(task, rows, left_s)

        def give_up(reason: str, error: Exception) -> None:
            self.inference.abandon(job, reason)
            if not job.future.done():
                job.future.set_exception(error)

        def on_hang_up(_: object) -> None:
            give_up("disconnect", CallerLeftError())

        late = DeadlineError(f"the deadline of {call.timeout_s():g} s passed")
        timer = asyncio.get_running_loop().call_later(left_s, give_up, "deadline", late)
        hung_up.add_done_callback(on_hang_up)
        try:
            done = await job.future
        finally:
            timer.cancel()
            hung_up.remove_done_callback(on_hang_up)
            self.inference.abandon(job, "disconnect")  # if the request was cancelled; a finished job is left alone
        call.timings.add("queue", done.waited_s, done.computed_s)
        call.timings.add("compute", done.computed_s)
        return done.answers


def indivisible(answer: Any, rows: slice) -> Any:
    """The `part` of a task that is computed once, which has no parts."""
    raise AssertionError("one row has no parts")
