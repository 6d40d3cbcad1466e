"""The engine: loaded models, the queue, drift monitors and the shadow, without HTTP.

call's rows -> checked -> queue (`batching.py`) -> Scorer -> counted: metrics, drift, shadow -> answer
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from service.density.estimate import Execution
from service.density.tiling import Tiling
from service.errors import DeadlineError, OverloadedError
from service.scoring.options import DEFAULT, ScoreOptions
from service.scoring.scorer import Scorer, torch_device
from service.scoring.scores import Answer, ReferenceEstimates, Scores, concatenated, rows_of
from service.serving.batching import InferenceThreads
from service.serving.call import Call, CallerLeftError, deadline_passed
from service.serving.drift import DriftMonitors
from service.serving.health import Health
from service.serving.jobs import Task
from service.serving.metrics import Metrics
from service.serving.quotas import Quotas
from service.serving.recorder import Recorder
from service.serving.registry import Registry
from service.serving.shadow import Shadow
from service.settings import Settings
from service.store.store import Store
from service.system.cancellation import CheckCancelled
from service.system.threads import Worker

# Multiplications per decoder evaluation. Two threads are slower than one at 500 of them, and 1.3 times faster at 20,000.
TINY = 2**13
FEW_ROWS = 100  # rows: the drift monitor counts fewer of them faster than another thread wakes up
A = TypeVar("A", bound=Answer)
T = TypeVar("T")
Compute = Callable[[np.ndarray, CheckCancelled], A]


class Engine:
    """Scores rows for any number of concurrent callers.

    `start` it, `refresh` the registry, and `stop` it at the end.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.recorder = Recorder.of(settings, self.metrics.count_transaction, self.metrics.journal_dropped.inc)
        self.drift = DriftMonitors(settings.drift_level, settings.drift_folder, self.recorder.drift)
        self.registry = Registry(
            Store(settings.store, settings.cache()),
            settings.device,
            settings.loaded_versions,
            on_failure=self.metrics.reload_failures.inc,
            on_load=self.on_load,
            on_change=self.recorder.catalog,
        )
        on_cpu = torch_device(settings.device).type == "cpu"
        self.inference = InferenceThreads(
            settings.thread_count() if on_cpu else 1,
            settings.max_queue_evaluations,
            settings.batch_delay_ms / 1000,
            on_batch=self.metrics.count_batch,
            on_drop=lambda reason: self.metrics.dropped.labels(reason).inc(),
        )
        self.shadow: Shadow | None = None
        if settings.shadow is not None:
            self.shadow = Shadow(
                settings.shadow, settings.shadow_share, self.metrics, self.scorer, self.score_while_idle
            )
        # The store and the folder of the monitors may hang; each has a thread of its own.
        self.poller, self.loader, self.saver = Worker("store"), Worker("loader"), Worker("drift")
        self.quotas = Quotas()
        self.health = Health(self.inference, self.registry, settings.request_timeout_s)

    def start(self) -> None:
        self.recorder.start()
        self.inference.start()

    def stop(self) -> None:
        """Finish what is queued."""
        self.inference.stop()
        self.recorder.stop()

    def on_load(self, scorer: Scorer) -> None:
        """Prepare to serve a version."""
        self.drift.restore(scorer)
        self.recorder.loaded(scorer)

    async def refresh(self, timeout_s: float | None = None) -> None:
        """Poll the store, load what is new, and serve it.

        Raises:
            DeadlineError: the store did not answer in time.
        """
        await self.in_store(self.registry.refresh, timeout_s)

    async def in_store(self, work: Callable[[], T], timeout_s: float | None = None) -> T:
        """Work on the store, in its own thread.

        Raises:
            DeadlineError: the store did not answer in time.
        """
        try:
            return await self.poller.run(work, timeout_s)
        except TimeoutError:
            raise DeadlineError("the store did not answer in time: try again") from None

    async def save_drift(self, timeout_s: float | None = None) -> None:
        """Save the drift monitors, if their folder answers in time."""
        with contextlib.suppress(TimeoutError):
            await self.saver.run(self.drift.save, timeout_s)

    def is_alive(self) -> bool:
        """Whether the inference threads run, and are not beyond help."""
        return self.health.is_alive()

    def is_ready(self) -> bool:
        """Whether calls of the default model can be answered."""
        return self.health.is_ready() and self.registry.default_is_ready()

    def is_computing(self) -> bool:
        """Whether any batch is computed at the moment."""
        return bool(self.inference.computing)

    async def check_inference(self) -> None:
        """Try inference if it has failed several times in a row, or else note that it works."""
        await self.health.check(self.probe)

    async def probe(self, scorer: Scorer) -> None:
        """Score a row of the default model's own in the inference threads."""
        rows = scorer.sample(1, seed=0).samples
        task = self.row_task(
            scorer, lambda batch, check_cancelled: scorer.score_read(batch, DEFAULT, check_cancelled), "probe"
        )
        await self.inference.submit(task, scorer.read(rows), self.settings.request_timeout_s, "probe").future

    async def scorer(self, name: str | None) -> Scorer:
        """The named model; one that is not in memory is loaded and verified off the event loop.

        One thread does all loading: if the store is slow, only callers that need a model loaded wait for each other.
        """
        scorer = self.registry.in_memory(name)
        if scorer is not None:
            return scorer
        try:
            return await self.loader.run(lambda: self.registry.get(name), self.settings.request_timeout_s)
        except TimeoutError:
            raise DeadlineError("the model did not load in time: try again") from None

    def check_room(self, call: Call, scorer: Scorer) -> None:
        """Raise if the queue has no room for one more row, before the body is read in vain."""
        self.inference.check_room(call.caller, scorer.model.row_cost)

    async def score(self, call: Call, scorer: Scorer, rows: np.ndarray, options: ScoreOptions = DEFAULT) -> Scores:
        """Score rows that were read for the scorer, shape (B, D + C), in batches with those of other calls.

        The scores are counted, and recorded if there is a journal.

        Raises:
            UnavailableError: the journal is required, and cannot be written.
        """
        options = scorer.resolved(options)

        def compute(batch: np.ndarray, check_cancelled: CheckCancelled) -> Scores:
            scores = scorer.score_read(batch, options, check_cancelled)
            self.metrics.count_scores(str(scorer.published.reference), scores)  # once for all calls of the batch
            return scores

        with self.quotas.admitted(call.caller, call.quota, len(rows)):
            await self.learn_patterns(call, scorer, rows, options)
            scores = await self.computed(call, scorer, rows, compute, (scorer, options), scorer.extra_cost(options))
        call.note_scores(scorer.published, scores)
        if not call.is_trial:
            await self.watch(call, scorer, rows, scores)
        return await self.recorder.scores(call, scorer, rows, scores)

    async def watch(self, call: Call, scorer: Scorer, rows: np.ndarray, scores: Scores) -> None:
        """Count scored rows, shape (B, D + C), in the drift monitors, and compare them with the shadow's."""
        # The blocks of a stream belong to one request, but are not retries of each other.
        request_id = None if call.is_stream else call.request_id
        if len(scores) < FEW_ROWS:
            self.drift.add(scorer, scores, request_id, call.key_id)
        else:
            await asyncio.to_thread(self.drift.add, scorer, scores, request_id, call.key_id)
        if self.drift.is_due():
            self.drift.saved_at = time.monotonic()
            self.saving = asyncio.ensure_future(self.save_drift())
        if self.shadow is not None:
            self.shadow.compare(scorer, rows, scores)

    async def learn_patterns(self, call: Call, scorer: Scorer, rows: np.ndarray, options: ScoreOptions) -> None:
        """For each new pattern of missing cells, score the validation rows that such rows are compared with.

        What has been scored is kept, even if the deadline passes. This counts as the call's own work, in cost and deadline,
        and may not exceed the queue's limit: a caller that sends too many new patterns gets 429, and fewer of them are new
        when it retries.
        """
        if not scorer.model.input.reads_missing:
            return

        patterns, detail, extra = scorer.patterns, options.detail, scorer.extra_cost(options)

        def compute(batch: np.ndarray, check_cancelled: CheckCancelled) -> ReferenceEstimates:
            return patterns.estimate(batch, detail, Execution(scorer.pool, check_cancelled))

        async def learn(pattern: np.ndarray, start: int, part: np.ndarray) -> None:
            found = await self.computed(call, scorer, part, compute, (scorer, "reference", detail), extra)
            patterns.keep(pattern, detail, start, found)

        unknown = patterns.unknown(rows, detail)
        if not unknown:
            return
        spent = 0
        with call.timings.measured("patterns"):
            for pattern in unknown:
                parts = patterns.missing_parts(pattern, detail)
                cost = (scorer.model.row_cost + extra) * sum(map(len, parts.values()))
                spent += cost
                if spent > self.inference.max_cost and spent > cost:
                    raise OverloadedError("too many new patterns of missing cells in one request: send fewer rows", 1.0)
                # If one part is late, those that are done are kept for the next request.
                done = await asyncio.gather(*(learn(pattern, *part) for part in parts.items()), return_exceptions=True)
                for failure in done:
                    if failure is not None:
                        raise failure

    async def on_rows(self, call: Call, scorer: Scorer, rows: np.ndarray, compute: Compute[A], group: Any) -> A:
        """Compute on a caller's rows, shape (B, D), within its quota; as `computed`."""
        with self.quotas.admitted(call.caller, call.quota, len(rows)):
            return await self.computed(call, scorer, rows, compute, group)

    async def computed(
        self,
        call: Call,
        scorer: Scorer,
        rows: np.ndarray,
        compute: Compute[A],
        group: Any,
        extra: int = 0,
    ) -> A:
        """Compute on rows, shape (B, D), in the inference threads, in batches of bounded cost.

        Args:
            group: rows of equal groups may be computed together.
            extra: cost of a row in addition to its score, in decoder evaluations of a usual size.
        """
        return concatenated(await self.run(call, self.row_task(scorer, compute, group, extra), rows))

    async def once(self, call: Call, scorer: Scorer, compute: Callable[[], T], evaluations: int) -> T:
        """Compute one thing of a model in an inference thread, by so many decoder evaluations."""
        cost = evaluations * scorer.model.evaluation_cost
        task: Task[T] = Task(lambda rows, check_cancelled: compute(), indivisible, object(), cost, 1)
        with self.quotas.admitted(call.caller, call.quota, evaluations):
            return (await self.run(call, task, np.zeros((1, 0))))[0]

    async def aside(self, compute: Callable[[], T], cost: int) -> T:
        """Compute something in an inference thread that belongs to no caller, and counts in no quota."""
        task: Task[T] = Task(lambda rows, check_cancelled: compute(), indivisible, object(), cost, 1)
        job = self.inference.submit(task, np.zeros((1, 0)), self.settings.request_timeout_s, "aside")
        return (await job.future).answers[0]

    async def score_while_idle(self, scorer: Scorer, rows: np.ndarray, options: ScoreOptions) -> Scores:
        """Score rows that no caller waits for, when nothing else waits."""
        task = self.row_task(
            scorer,
            lambda batch, check_cancelled: scorer.score_read(batch, options, check_cancelled),
            (scorer, options),
            is_shadow=True,
        )
        job = self.inference.submit(task, scorer.read(rows), self.settings.request_timeout_s)
        answer: Scores = concatenated((await job.future).answers)
        return answer

    def row_task(
        self,
        scorer: Scorer,
        compute: Compute[A],
        group: Any,
        extra: int = 0,
        is_shadow: bool = False,
    ) -> Task[A]:
        """A task on a model's rows, in batches of as many as the budget allows, but no fewer than are worth one."""
        cost = scorer.model.row_cost + extra
        block = Tiling.of(scorer.model.vae).least_rows
        blocks = max(1, self.settings.batch_evaluations // (cost * block))
        is_tiny = scorer.model.vae.evaluation_size < TINY
        costs = partial(costs_of, scorer.model.evaluation_cost)
        return Task(compute, rows_of, (is_shadow, group), cost, blocks * block, is_shadow, is_tiny, costs)

    async def run(self, call: Call, task: Task[T], rows: np.ndarray) -> list[T]:
        """Run a task on rows, and wait for the answers. If the deadline passes or the caller leaves, drop the rest.

        Raises:
            CallerLeftError, DeadlineError.
        """
        self.health.check_works()
        left_s = call.time_left_s()
        hung_up = call.hang_up()
        await asyncio.sleep(0)
        if hung_up.done():  # do not spend a batch on a caller that has already left
            self.metrics.dropped.labels("disconnect").inc()
            raise CallerLeftError
        job = self.inference.submit(task, rows, left_s, call.caller)

        def give_up(reason: str, error: Exception) -> None:
            self.inference.abandon(job, reason)
            if not job.future.done():
                job.future.set_exception(error)

        def on_hang_up(_: object) -> None:
            give_up("disconnect", CallerLeftError())

        late = deadline_passed(call.timeout_s())
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


def costs_of(evaluation_cost: int, answer: Answer) -> np.ndarray | None:
    """What each row of an answer cost in decoder evaluations of a usual size, if it tells."""
    return answer.evaluations * evaluation_cost if isinstance(answer, Scores) else None


def indivisible(answer: Any, rows: slice) -> Any:
    """The `part` of a task that is computed once, which has no parts."""
    raise AssertionError("one row has no parts")
