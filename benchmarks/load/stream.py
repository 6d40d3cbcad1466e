"""A long stream of JSON lines through one connection, and the probe beside a long batch."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from pathlib import Path

import numpy as np

from load.servers import Server, connected, request_bytes, service
from peers.peers import by_type
from service.store.loading import load_scorer
from service.store.store import Store

CHUNK_ROWS = 500


def stream(store: Path, model: str, work: Path, lines: int, threads: int) -> list[str]:
    """Send lines of a table through one connection while reading the answers; rows per second, and the memory."""
    scorer = load_scorer(Store(store), model, "cpu", threads=1)
    rows = scorer.sample(CHUNK_ROWS, seed=11).samples.round(3)
    chunk = b"".join(b"[" + ",".join(map(repr, row)).encode() + b"]\n" for row in rows.tolist())
    with service(store, work / "stream.log", threads=threads) as server, connected(server) as one:
        sender = threading.Thread(target=send_lines, args=(one, model, chunk, lines // CHUNK_ROWS))
        start = time.monotonic()
        sender.start()
        answered, most = read_lines(one, server)
        elapsed = time.monotonic() - start
        sender.join()
    return [
        f"- {answered:,} of {lines:,} lines of `{model}` ({scorer.model.input.features} columns) answered in "
        f"{elapsed:.0f} s, {answered / elapsed:,.0f} rows/s; the service took {most:.0f} MiB at most"
    ]


def send_lines(one: socket.socket, model: str, chunk: bytes, times: int) -> None:
    """A chunked body, the same lines again and again."""
    head = (
        f"POST /score?model={model} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    one.sendall(head.encode())
    framed = f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    for _ in range(times):
        one.sendall(framed)
    one.sendall(b"0\r\n\r\n")


def read_lines(one: socket.socket, server: Server) -> tuple[int, float]:
    """How many answers came, and the server's largest memory, MiB."""
    answer = http.client.HTTPResponse(one, method="POST")
    answer.begin()
    count, most, at = 0, 0.0, 0
    while block := answer.read1(65536):
        count += block.count(b"\n")
        at += 1
        if at % 200 == 0:
            most = max(most, server.memory_mib())
    return count, max(most, server.memory_mib())


def liveness(store: Path, model: str, work: Path, threads: int) -> list[str]:
    """How long /livez takes while batches of many seconds compute on every thread."""
    scorer = load_scorer(Store(store), model, "cpu", threads=1)
    rows = np.rint(np.tile(scorer.sample(100, seed=11).samples, (30, 1))).astype(np.uint8)
    request = request_bytes(*by_type(f"/score?model={model}")(rows, "json"))
    times = []
    with service(store, work / "liveness.log", threads=threads, batch_evaluations=10**9) as server:
        with connected(server) as busy:
            busy.sendall(request)
            time.sleep(1.0)
            until = time.monotonic() + 6.0
            probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            while time.monotonic() < until:
                start = time.perf_counter()
                probe.request("GET", "/livez")
                probe.getresponse().read()
                times.append(time.perf_counter() - start)
                time.sleep(0.02)
        batches = server.metric("vouch_batch_rows_count")
    p50, p99, longest = 1e3 * np.quantile(times, [0.5, 0.99, 1.0])
    return [
        f"- /livez {len(times)} times while batches of {len(rows) // threads:,} rows computed on every thread "
        f"({batches:.0f} had ended): p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.1f} ms"
    ]
