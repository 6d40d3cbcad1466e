"""Open-loop load at twice the capacity: only 200 and 429, a bounded wait, flat memory, and soon back to normal."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from load.servers import Server, generate, service, start_generator, write_requests
from peers.peers import by_type
from service.store.loading import load_scorer
from service.store.store import Store

ROWS = 8
WAIT_S = 4.0  # the queue's promise: its bound over the measured rate


def overload(store: Path, model: str, work: Path, seconds: float, threads: int) -> list[str]:
    """Measure the capacity, send twice that for so long, and look at the answers, the memory and what follows."""
    scorer = load_scorer(Store(store), model, "cpu", threads=1)
    rows = np.rint(scorer.sample(256, seed=11).samples).astype(np.uint8)
    cost = scorer.model.row_cost
    parts = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    requests = write_requests(work / "overload", [by_type(f"/score?model={model}")(part, "binary") for part in parts])
    one = write_requests(work / "overload-one", [by_type(f"/score?model={model}")(rows[:1], "binary")])
    with service(store, work / "overload.log", threads=threads) as server:
        capacity = generate(server.port, requests, 32, 10)["requests_per_s"]
    bound = round(WAIT_S * capacity * ROWS * cost)
    with service(store, work / "overload.log", threads=threads, max_queue_evaluations=bound) as server:
        before = generate(server.port, one, 1, 5)
        load = start_generator(server.port, requests, 500, seconds, 2 * capacity)
        memory, rates = watched(server, seconds)
        batch_s = server.metric("vouch_batch_seconds_sum") / server.metric("vouch_batch_seconds_count")
        output, _ = load.communicate(timeout=seconds + 120)
        after = [generate(server.port, one, 1, 1) for _ in range(5)]
    # Beside the queue: the batch that runs, and the request's own. The machine is faster at some times than at others.
    usual, slowest = (bound / float(rate) + 2 * batch_s for rate in (np.median(rates), min(rates[1:])))
    return [
        *report(output, capacity, memory, usual, slowest),
        *back_to_normal(before["p50_s"], [seen["p50_s"] for seen in after]),
    ]


def watched(server: Server, seconds: float) -> tuple[list[float], list[float]]:
    """The memory of the server, MiB, and its measured decoder evaluations per second, each second while the load runs."""
    memory, rates = [], []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(1.0)
        memory.append(server.memory_mib())
        rates.append(server.metric("vouch_evaluations_per_second"))
    return memory, rates


def report(output: bytes, capacity: float, memory: list[float], usual: float, slowest: float) -> list[str]:
    """What came back."""
    import json

    seen = json.loads(output)
    counts = {int(status): number for status, number in seen["counts"].items()}
    settled = memory[len(memory) // 4 :]
    return [
        f"- capacity {capacity:.1f} requests/s of {ROWS} rows; sent {2 * capacity:.1f}/s over 500 connections: "
        + ", ".join(f"{number:,} x {status}" for status, number in counts.items()),
        f"- of the 200s: p50 {seen['p50_s']:.2f} s, p99 {seen['p99_s']:.2f} s, longest {seen['max_s']:.2f} s; the queue's "
        f"bound over the rate that the service measured, and two batches more, was {usual:.2f} s in the median and "
        f"{slowest:.2f} s when it was slowest",
        f"- memory {settled[0]:.0f} MiB after a quarter of the time, {settled[-1]:.0f} at the end, {max(settled):.0f} at "
        f"most; the load generator took {seen['cpu_s'] / seen['elapsed_s']:.2f} CPU s/s",
    ]


def back_to_normal(before: float, after: list[float]) -> list[str]:
    """One client's latency before, and second by second after."""
    times = ", ".join(f"{1e3 * value:.0f}" for value in after)
    return [f"- one client, one row: p50 {1e3 * before:.0f} ms before; in each of the five seconds after: {times} ms"]
