"""The inference threads: bounded, fair, and alive after whatever a request does to them."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.errors import DeadlineError, OverloadedError, UnavailableError
from service.serving.batching import InferenceThreads
from service.serving.jobs import Task
from service.serving.waiting import Costs


def rows(*values):
    return np.array(values, dtype=float)[:, None]


class Recorder:
    """Computes twice the rows, a batch at a time; the first batch waits for the gate."""

    def __init__(self, gate=None):
        self.gate = gate
        self.batches = []

    def __call__(self, batch, check_cancelled):
        self.batches.append(batch[:, 0].tolist())
        if self.gate is not None:
            self.gate.wait(10)
        return 2 * batch

    def task(self, group="g", cost=1, most=4, shadow=False):
        return Task(self, lambda answer, part: answer[part], (shadow, group), cost, most, shadow)


@pytest.fixture
def make():
    """Makes threads, and ends them."""
    made = []

    def threads(number=1, max_cost=100, **options):
        made.append(InferenceThreads(number, max_cost, **options))
        made[-1].start()
        return made[-1]

    yield threads
    for one in made:
        one.stop()


async def answers(job):
    return np.concatenate((await asyncio.wait_for(job.future, 10)).answers)[:, 0].tolist()


async def blocked(inference, gate):
    """Keep the only thread busy until the gate opens."""
    recorder = Recorder(gate)
    job = inference.submit(recorder.task("blocker"), rows(0), 10)
    while not recorder.batches:
        await asyncio.sleep(0.01)
    return job


def test_each_job_gets_its_own_rows_back_in_order(make):
    async def run():
        inference, recorder = make(2), Recorder()
        jobs = [inference.submit(recorder.task(), rows(*range(start, start + 7)), 10) for start in range(0, 70, 10)]
        for start, job in zip(range(0, 70, 10), jobs, strict=True):
            assert await answers(job) == [2.0 * value for value in range(start, start + 7)]
        assert sorted(value for batch in recorder.batches for value in batch) == sorted(
            value for start in range(0, 70, 10) for value in range(start, start + 7)
        )
        assert max(map(len, recorder.batches)) <= 4
        assert inference.waiting_cost == 0
        assert not inference.groups

    asyncio.run(run())


def test_rows_of_several_requests_are_computed_together_and_those_of_another_kind_apart(make):
    async def run():
        gate, inference, recorder = threading.Event(), make(), Recorder()
        first = await blocked(inference, gate)
        jobs = [inference.submit(recorder.task("a"), rows(value), 10) for value in (1, 2)]
        jobs += [inference.submit(recorder.task("b"), rows(3), 10)]
        jobs += [inference.submit(recorder.task("a"), rows(value), 10) for value in (4, 5, 6)]
        gate.set()
        for job in (first, *jobs):
            await answers(job)
        assert recorder.batches == [[1, 2, 4, 5], [3], [6]]

    asyncio.run(run())


def test_a_single_row_waits_for_one_batch_of_a_long_request_and_not_for_all(make):
    async def run():
        gate, inference, recorder = threading.Event(), make(), Recorder()
        first = await blocked(inference, gate)
        long = inference.submit(recorder.task(), rows(*range(100, 120)), 10)
        short = inference.submit(recorder.task(), rows(7), 10)
        gate.set()
        assert await answers(short) == [14]
        assert recorder.batches[0] == [100, 101, 102, 103]
        assert recorder.batches[1][0] == 7
        assert await answers(long) == [2.0 * value for value in range(100, 120)]
        await answers(first)

    asyncio.run(run())


def test_what_is_left_of_a_request_that_was_cut_goes_first(make):
    async def run():
        gate, inference, recorder = threading.Event(), make(), Recorder()
        first = await blocked(inference, gate)
        jobs = [inference.submit(recorder.task(), rows(*range(start, start + 3)), 10) for start in (10, 20, 30)]
        gate.set()
        for job in (first, *jobs):
            await answers(job)
        assert recorder.batches == [[10, 11, 12, 20], [21, 22, 30, 31], [32]]

    asyncio.run(run())


def test_a_full_queue_refuses_and_says_when_to_come_back(make):
    async def run():
        gate, inference = threading.Event(), make()
        recorder = Recorder(gate)
        first = inference.submit(recorder.task(cost=90), rows(1), 10)
        with pytest.raises(OverloadedError) as refused:
            inference.submit(recorder.task(cost=20), rows(1), 10)
        assert refused.value.retry_after_s == pytest.approx(10 / inference.rate())
        second = inference.submit(recorder.task(cost=10), rows(1), 10)
        gate.set()
        await answers(first)
        await answers(second)
        # Larger than the queue is, and taken when nothing waits.
        assert await answers(inference.submit(recorder.task(cost=1000), rows(3), 10)) == [6]

    asyncio.run(run())


def test_the_rate_is_that_of_all_threads(make):
    async def run():
        inference = make(2, max_cost=10**9)

        def compute(batch, check_cancelled):
            time.sleep(0.01)
            return batch

        task = Task(compute, lambda answer, part: answer[part], "g", 100, 1)
        await answers(inference.submit(task, rows(*range(400)), 30))
        assert 2 * 100 / 0.01 / 3 < inference.rate() < 2 * 100 / 0.01

    asyncio.run(run())


def test_what_is_abandoned_or_late_is_not_computed(make):
    async def run():
        dropped = []
        gate, inference, recorder = threading.Event(), make(on_drop=dropped.append), Recorder()
        first = await blocked(inference, gate)
        abandoned = inference.submit(recorder.task(), rows(1, 2, 3, 4, 5, 6), 10)
        late = inference.submit(recorder.task("late"), rows(7), 0.01)
        inference.abandon(abandoned, "disconnect")
        assert inference.waiting_cost == 2
        await asyncio.sleep(0.05)
        gate.set()
        await answers(first)
        with pytest.raises(DeadlineError):
            await answers(late)
        assert await answers(inference.submit(recorder.task(), rows(9), 10)) == [18]
        assert recorder.batches == [[9]]
        assert dropped == ["disconnect", "deadline"]
        assert inference.waiting_cost == 0

    asyncio.run(run())


def test_a_request_that_is_abandoned_half_way_computes_no_more_than_the_batch_that_runs(make):
    async def run():
        gate, inference = threading.Event(), make()
        recorder = Recorder(gate)
        job = inference.submit(recorder.task(), rows(*range(40)), 10)
        while not recorder.batches:
            await asyncio.sleep(0.01)
        inference.abandon(job, "disconnect")
        gate.set()
        assert await answers(inference.submit(recorder.task("other"), rows(9), 10)) == [18]
        assert recorder.batches == [[0, 1, 2, 3], [9]]
        assert inference.waiting_cost == 0

    asyncio.run(run())


def test_a_batch_that_nobody_waits_for_any_more_ends_at_its_next_checkpoint(make):
    async def run():
        inference, steps, gate = make(), [], threading.Event()

        def compute(batch, check_cancelled):
            for step in range(100):
                steps.append(step)
                gate.wait(10)
                check_cancelled()
            return batch

        task = Task(compute, lambda answer, part: answer[part], "g", 1, 4)
        jobs = [inference.submit(task, rows(value), 10) for value in (1, 2)]
        while not steps:
            await asyncio.sleep(0.01)
        inference.abandon(jobs[0], "disconnect")
        inference.abandon(jobs[1], "disconnect")
        gate.set()
        assert await answers(inference.submit(Recorder().task(), rows(9), 10)) == [18]
        assert len(steps) == 1
        assert inference.waiting_cost == 0

    asyncio.run(run())


@pytest.mark.parametrize("error", [ValueError, SystemExit, StopIteration, KeyboardInterrupt])
def test_a_request_that_raises_anything_harms_no_other_and_no_thread(make, error):
    async def run():
        gate, inference = threading.Event(), make()

        def compute(batch, check_cancelled):
            if 13 in batch:
                raise error("bad")
            return batch

        task = Task(compute, lambda answer, part: answer[part], "g", 1, 8)
        first = await blocked(inference, gate)
        good, bad, fine = (inference.submit(task, rows(value), 10) for value in (1, 13, 2))
        gate.set()
        assert await answers(good) == [1]
        assert await answers(fine) == [2]
        with pytest.raises((ValueError, RuntimeError)):
            await answers(bad)
        await answers(first)
        assert inference.is_alive()
        assert inference.waiting_cost == 0

    asyncio.run(run())


def test_a_batch_that_is_not_full_waits_as_long_as_it_is_told(make):
    async def run():
        inference, recorder = make(delay_s=0.2), Recorder()
        start = time.monotonic()
        jobs = [inference.submit(recorder.task(), rows(1), 10)]
        await asyncio.sleep(0.05)
        jobs.append(inference.submit(recorder.task(), rows(2), 10))
        for job in jobs:
            await answers(job)
        assert 0.2 <= time.monotonic() - start < 5
        full = inference.submit(recorder.task(), rows(1, 2, 3, 4), 10)
        assert recorder.batches[0] == [1, 2]
        assert (await asyncio.wait_for(full.future, 10)).waited_s < 0.15

    asyncio.run(run())


def test_idle_threads_share_a_request_that_is_worth_it(make):
    async def run():
        inference, recorder = make(2, max_cost=1000), Recorder()
        await asyncio.sleep(0.05)
        await answers(inference.submit(recorder.task(most=32), rows(*range(20)), 10))
        assert sorted(map(len, recorder.batches)) == [10, 10]
        recorder.batches.clear()
        await asyncio.sleep(0.05)
        await answers(inference.submit(recorder.task(most=32), rows(*range(6)), 10))
        assert sorted(map(len, recorder.batches)) == [6]

    asyncio.run(run())


def test_batches_of_tiny_networks_run_one_at_a_time(make):
    async def run():
        inference, running, most = make(3, max_cost=1000), [], []

        def compute(batch, check_cancelled):
            running.append(1)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()
            return batch

        task = Task(compute, lambda answer, part: answer[part], "g", 1, 4, is_alone=True)
        jobs = [inference.submit(task, rows(*range(6)), 10) for _ in range(5)]
        for job in jobs:
            assert await answers(job) == [0, 1, 2, 3, 4, 5]
        assert max(most) == 1

    asyncio.run(run())


def test_a_shadow_waits_until_nothing_else_does(make):
    async def run():
        gate, inference, recorder = threading.Event(), make(), Recorder()
        first = await blocked(inference, gate)
        shadow = inference.submit(recorder.task(shadow=True), rows(1), 10)
        others = [inference.submit(recorder.task(most=1), rows(value), 10) for value in (2, 3)]
        gate.set()
        for job in (first, shadow, *others):
            await answers(job)
        assert recorder.batches == [[2], [3], [1]]

    asyncio.run(run())


def test_a_shadow_takes_no_room_from_others_and_is_dropped_at_the_end(make):
    async def run():
        gate, inference, recorder = threading.Event(), make(max_cost=10), Recorder()
        first = await blocked(inference, gate)
        shadow = inference.submit(recorder.task(shadow=True), rows(*range(10)), 10)
        with pytest.raises(OverloadedError):
            inference.submit(recorder.task(shadow=True), rows(1), 10)
        other = inference.submit(recorder.task(), rows(*range(9)), 10)
        with ThreadPoolExecutor(1) as pool:
            stopped = asyncio.get_running_loop().run_in_executor(pool, inference.stop)
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(shadow.future, 10)
            gate.set()
            await stopped
        await answers(first)
        assert len(await answers(other)) == 9
        assert inference.waiting_cost == inference.shadow_room.total == 0

    asyncio.run(run())


def test_a_full_batch_does_not_wait_behind_one_that_waits_to_fill(make):
    async def run():
        inference, recorder = make(delay_s=5.0), Recorder()
        few = inference.submit(recorder.task("few"), rows(1), 10)
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(answers(inference.submit(recorder.task("full"), rows(2, 3, 4, 5), 10)), 2)
        inference.abandon(few, "disconnect")

    asyncio.run(run())


@pytest.mark.parametrize("step", ["on_batch", "part"])
def test_whatever_fails_beside_the_computation_harms_no_thread(make, step):
    def fails(*arguments):
        raise MemoryError

    async def run():
        inference, recorder = make(), Recorder()
        inference.on_batch = fails if step == "on_batch" else inference.on_batch
        gate = threading.Event()
        first = await blocked(inference, gate)
        task = Task(recorder, fails if step == "part" else recorder.task().part, "h", 1, 4)
        jobs = [inference.submit(task, rows(value), 10) for value in (1, 2)]
        gate.set()
        for job in jobs if step == "part" else (first, *jobs):
            if step == "on_batch":
                with pytest.raises(MemoryError):
                    await asyncio.wait_for(job.future, 10)
            else:  # alone, a job's answer needs no parting
                assert len(await answers(job)) == 1
        inference.on_batch = lambda rows, seconds: None
        assert await answers(inference.submit(recorder.task(), rows(4), 10)) == [8]
        assert inference.is_alive()
        assert inference.waiting_cost == 0

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_noticed(make):
    inference = make(2)
    inference.drop_expired = lambda: 1 / 0  # what no request can do
    asyncio.run(asyncio.wait_for(wake_and_wait(inference), 10))
    inference.drop_expired = lambda: None
    assert not inference.is_alive()


async def wake_and_wait(inference):
    inference.submit(Recorder().task(), rows(1), 10)
    while inference.is_alive():
        await asyncio.sleep(0.01)


def test_after_the_stop_nothing_is_taken_and_what_was_is_done(make):
    async def run():
        inference, recorder = make(2), Recorder()
        job = inference.submit(recorder.task(), rows(*range(50)), 10)
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, inference.stop)
        assert len(await answers(job)) == 50
        with pytest.raises(UnavailableError):
            inference.submit(recorder.task(), rows(1), 10)
        assert not inference.is_alive()

    asyncio.run(run())


# Callers


class Dear:
    """Computes rows that each cost what they say, in hundredths of a second, with a checkpoint after each."""

    def __init__(self):
        self.order = []

    def __call__(self, batch, check_cancelled):
        for cost in batch[:, 0]:
            for _ in range(max(1, round(cost))):
                time.sleep(0.01)
                check_cancelled()
        self.order.append(batch[:, 0].tolist())
        return 1000.0 * batch

    def task(self, most=32):
        return Task(self, lambda answer, part: answer[part], "g", 100, most, costs=lambda answer: 0.1 * answer[:, 0])


@pytest.mark.parametrize("caller", ["hostile", "honest"])
def test_a_single_row_does_not_wait_for_rows_that_take_a_hundred_times_as_long(make, caller):
    """Neither behind those of another caller, nor behind those of its own."""

    async def run():
        inference, compute = make(1, 10**9), Dear()
        await answers(inference.submit(compute.task(), rows(1), 60, "warm"))  # so that the rate is known
        long = [inference.submit(compute.task(), rows(*[20] * 10), 60, "hostile") for _ in range(4)]  # two seconds each
        await asyncio.sleep(0.5)
        started = time.perf_counter()
        await answers(inference.submit(compute.task(), rows(1), 60, caller))
        waited = time.perf_counter() - started
        assert not any(job.future.done() for job in long)
        for job in long:
            await answers(job)
        return waited

    assert asyncio.run(run()) < 1.5  # 0.05 s on an idle machine; 7.5 s in the order of arrival


def test_callers_take_turns_by_the_time_that_they_have_used(make):
    async def run():
        gate = threading.Event()
        inference, compute = make(1, 10**9), Dear()
        await blocked(inference, gate)
        hostile = [inference.submit(compute.task(), rows(3), 60, "hostile") for _ in range(20)]
        honest = [inference.submit(compute.task(), rows(2), 60, "honest") for _ in range(3)]
        inference.waiting.costs.learn("hostile", "g", 3.0, 100)
        gate.set()
        for job in (*honest, *hostile):
            await answers(job)
        order = [batch[0] for batch in compute.order]
        assert max(index for index, cost in enumerate(order) if cost == 2) <= 6

    asyncio.run(run())


def test_rows_that_cost_much_more_are_not_computed_with_others(make):
    async def run():
        inference, compute = make(1, 10**6), Dear()
        dear = rows(*[2.5] * 100)
        await answers(inference.submit(compute.task(100), dear, 60, "hostile"))
        ratio = inference.waiting.costs.of("hostile", "g")
        assert 2.0 < ratio <= 2.5
        gate = threading.Event()
        await blocked(inference, gate)
        callers = (2, "hostile"), (1, "a"), (1, "b"), (2, "hostile")
        jobs = [inference.submit(compute.task(), rows(value), 60, caller) for value, caller in callers]
        assert inference.waiting_cost == 1 + 2 * round(100 * ratio) + 2 * 100  # charged as what they cost
        gate.set()
        for job in jobs:
            await answers(job)
        assert [1.0, 1.0] in compute.order
        assert [2.0, 2.0] in compute.order  # those of one caller go together

    asyncio.run(run())


def test_a_single_dear_row_does_not_make_its_caller_s_rows_dear():
    costs = Costs()
    for at in range(300):
        costs.learn("a", "g", 8.0 if at % 20 == 0 else 0.7, 1)
        assert costs.of("a", "g") < 2.0


def test_a_full_queue_still_takes_the_share_of_another_caller(make):
    async def run():
        gate = threading.Event()
        inference, recorder = make(1, 100), Recorder()
        await blocked(inference, gate)
        inference.submit(recorder.task(), rows(*range(99)), 10, "hostile")
        with pytest.raises(OverloadedError):
            inference.submit(recorder.task(), rows(1), 10, "hostile")
        job = inference.submit(recorder.task(), rows(1, 2), 10, "honest")
        gate.set()
        assert await answers(job) == [2.0, 4.0]

    asyncio.run(run())
