"""Clients that behave badly beside one that behaves well, and clients that hang up."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from load.servers import Server, connected, generate, request_bytes, service, write_requests
from peers.peers import by_type
from service.store.loading import load_scorer
from service.store.store import Store

HANG_UPS, AT_A_TIME, SLOW, HALF_CLOSED = 1000, 50, 100, 100


def strangers(store: Path, model: str, work: Path, seconds: float, threads: int) -> list[str]:
    """The latency of a well-behaved client with and without the others."""
    scorer = load_scorer(Store(store), model, "cpu", threads=1)
    rows = np.rint(scorer.sample(64, seed=11).samples).astype(np.uint8)
    good = write_requests(work / "good", [by_type(f"/score?model={model}")(rows[n : n + 1], "json") for n in range(64)])
    request = request_bytes(*by_type(f"/score?model={model}")(rows, "json"))
    acts: dict[str, Callable[[Server, bytes, threading.Event], None]] = {
        f"{HANG_UPS:,} that hang up in mid-body, {AT_A_TIME} a second": hang_ups,
        f"{HANG_UPS:,} that hang up in mid-body, all at once": hang_ups_at_once,
        f"{SLOW} slow writers": slow_writers,
        f"{HALF_CLOSED} half-closed sockets": half_closed,
    }
    lines = ["| beside | p50 ms | p99 ms | p99, of that alone | failed |", "|---|--:|--:|--:|--:|"]
    with service(store, work / "strangers.log", threads=threads) as server:
        generate(server.port, good, 1, 2)
        alone = generate(server.port, good, 1, seconds)
        lines.append(line("nobody", alone, alone["p99_s"]))
        for name, act in acts.items():
            over = threading.Event()
            thread = threading.Thread(target=act, args=(server, request, over))
            thread.start()
            seen = generate(server.port, good, 1, seconds)
            over.set()
            thread.join()
            lines.append(line(name, seen, alone["p99_s"]))
        again = generate(server.port, good, 1, seconds)
        lines.append(line("nobody, afterwards", again, alone["p99_s"]))
    return lines


def line(name: str, seen: dict[str, object], alone_p99: float) -> str:
    """A line of the table."""
    p50, p99, counts = float(str(seen["p50_s"])), float(str(seen["p99_s"])), seen["counts"]
    assert isinstance(counts, dict)
    failed = sum(number for status, number in counts.items() if status != "200")
    return f"| {name} | {1e3 * p50:.1f} | {1e3 * p99:.1f} | {p99 / alone_p99:.2f} | {failed} |"


def hang_ups(server: Server, request: bytes, over: threading.Event) -> None:
    """A thousand clients, some at a time, each second."""
    for _ in range(HANG_UPS // AT_A_TIME):
        hang_up(server, request, AT_A_TIME)
        if over.wait(1.0):
            return


def hang_ups_at_once(server: Server, request: bytes, over: threading.Event) -> None:
    """A thousand clients at the same moment."""
    over.wait(5.0)
    hang_up(server, request, HANG_UPS)


def hang_up(server: Server, request: bytes, clients: int) -> None:
    """Clients that connect, each send a part of a request, and hang up, half of them rudely."""
    draw = random.Random(0)
    ones = [connected(server) for _ in range(clients)]
    for number, one in enumerate(ones):
        if number % 2:  # a reset instead of an orderly end
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.sendall(request[: draw.randrange(1, len(request))])
    for one in ones:
        one.close()


def slow_writers(server: Server, request: bytes, over: threading.Event) -> None:
    """Connections that send a byte a second, half of them in the head."""
    ones = [connected(server) for _ in range(SLOW)]
    begun = request.index(b"\r\n\r\n") + 4
    for number, one in enumerate(ones):
        if number % 2:
            one.sendall(request[:begun])
    at = begun
    while not over.wait(1.0):
        for number, one in enumerate(ones):
            try:
                one.sendall(request[at : at + 1] if number % 2 else b"G")
            except OSError:
                continue  # the service has hung up on it
        at += 1
    for one in ones:
        one.close()


def half_closed(server: Server, request: bytes, over: threading.Event) -> None:
    """Connections that say that they send no more, in the middle of a request."""
    ones = [connected(server) for _ in range(HALF_CLOSED)]
    for one in ones:
        one.sendall(request[: len(request) // 2])
        one.shutdown(socket.SHUT_WR)
    over.wait()
    for one in ones:
        one.close()


def hang_up_with_work(store: Path, model: str, work: Path, threads: int) -> list[str]:
    """What is computed of ten thousand rows whose sender hangs up."""
    scorer = load_scorer(Store(store), model, "cpu", threads=1)
    rows = np.rint(np.tile(scorer.sample(100, seed=11).samples, (100, 1))).astype(np.uint8)
    request = request_bytes(*by_type(f"/score?model={model}")(rows, "binary"))
    lines = [
        "| hangs up after | rows computed before | rows computed after | batches of at most |",
        "|--:|--:|--:|--:|",
    ]
    with service(store, work / "hangup.log", threads=threads) as server:
        for delay in (0.0, 0.1, 0.3, 0.5, 1.0):
            start = server.metric("vouch_batch_rows_sum")
            with connected(server) as one:
                one.sendall(request)
                time.sleep(delay)
                before = server.metric("vouch_batch_rows_sum") - start
            time.sleep(2.0)
            after = server.metric("vouch_batch_rows_sum") - start - before
            lines.append(f"| {delay:g} s | {before:.0f} | {after:.0f} | 32 |")
        waiting = server.metric("vouch_queue_evaluations")
    return [*lines, "", f"Left in the queue at the end: {waiting:.0f} evaluations."]
