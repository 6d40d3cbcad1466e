"""A load generator: keeps connections busy with requests whose bytes were made beforehand, and prints what came of it.

    python -m load.generator 8000 requests/ --clients 8 --count 500            # closed: each client waits for its answer
    python -m load.generator 8000 requests/ --clients 500 --rate 100 ...       # open: requests come by the clock

One process, one thread; it prints a JSON object, with the CPU time that it took itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


class Connection(asyncio.Protocol):
    """A connection that sends the request when it is told to, and notes when the answer is whole."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: Any = None
        self.received = bytearray()
        self.started = 0.0
        self.is_waiting = False

    def connection_made(self, transport: Any) -> None:
        """Wait to be told."""
        self.transport = transport

    def send(self, started: float) -> None:
        """Send the request; it was due at `started`."""
        self.started, self.is_waiting = started, True
        self.transport.write(next(self.load.requests))

    def data_received(self, data: bytes) -> None:
        """Collect the answer."""
        self.received += data
        end = self.received.find(HEAD_END)
        if end < 0:
            return
        head = bytes(self.received[:end]).lower()
        if len(self.received) < end + len(HEAD_END) + body_length(head):
            return
        self.received.clear()
        self.is_waiting = False
        self.load.answered(self, int(head[9:12]), b"connection: close" in head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Without an answer that is a failure, unless all is over."""
        if self.is_waiting:
            self.is_waiting = False
            self.load.answered(self, 0, closes=True)


def body_length(head: bytes) -> int:
    """The Content-Length of a head in lower case."""
    start = head.find(LENGTH)
    if start < 0:
        return 0
    end = head.find(b"\r\n", start)
    return int(head[start + len(LENGTH) : end if end > 0 else len(head)])


class Load:
    """What is sent, and what came back: seconds by status, 0 for a connection that broke."""

    def __init__(self, port: int, requests: list[bytes], clients: int, seconds: float, count: int, rate: float) -> None:
        self.port, self.requests, self.clients, self.seconds, self.rate = port, cycle(requests), clients, seconds, rate
        self.left = count or 10**12
        self.latencies: dict[int, list[float]] = {}
        self.idle: deque[Connection] = deque()
        self.due: deque[float] = deque()
        self.connecting: set[asyncio.Future[None]] = set()
        self.running = 0
        self.until = 0.0

    async def run(self) -> dict[str, Any]:
        """Connect, send for so many seconds, and wait for what is still to come."""
        cpu = time.process_time()
        connections = [await self.connect() for _ in range(self.clients)]
        start = time.perf_counter()
        self.until = start + self.seconds
        if self.rate:
            await self.by_the_clock(connections, start)
        else:
            for connection in connections:
                self.begin(connection, time.perf_counter())
        while self.running or self.due:
            await asyncio.sleep(0.005)
        elapsed = time.perf_counter() - start
        for connection in connections:
            connection.transport.abort()
        return self.summary(elapsed, time.process_time() - cpu)

    async def connect(self) -> Connection:
        """One more connection."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        return connection

    async def by_the_clock(self, connections: list[Connection], start: float) -> None:
        """Send at the rate, whatever comes back; what finds no free connection waits, and its clock runs."""
        self.idle.extend(connections)
        number = 0
        while (now := time.perf_counter()) < self.until:
            while start + number / self.rate <= now:
                self.due.append(start + number / self.rate)
                number += 1
            self.send_due()
            await asyncio.sleep(0.001)

    def send_due(self) -> None:
        """Send what is due over the connections that are free."""
        while self.due and self.idle:
            self.begin(self.idle.popleft(), self.due.popleft())

    def begin(self, connection: Connection, started: float) -> None:
        """Send over a connection."""
        if self.left:
            self.left -= 1
            self.running += 1
            connection.send(started)

    def answered(self, connection: Connection, status: int, closes: bool) -> None:
        """Note an answer, and go on."""
        now = time.perf_counter()
        self.running -= 1
        self.latencies.setdefault(status, []).append(now - connection.started)
        if closes:
            self.running += 1
            self.connecting.add(task := asyncio.ensure_future(self.reconnect()))
            task.add_done_callback(self.connecting.discard)
        else:
            self.next(connection, now)

    async def reconnect(self) -> None:
        """Go on over a new connection, while there is anybody to connect to."""
        try:
            connection = await self.connect()
        except OSError:
            connection = None
        self.running -= 1
        if connection is not None:
            self.next(connection, time.perf_counter())

    def next(self, connection: Connection, now: float) -> None:
        """The next request over this connection."""
        if self.rate:
            self.idle.append(connection)
            self.send_due()
        elif now < self.until:
            self.begin(connection, now)

    def summary(self, elapsed: float, cpu_s: float) -> dict[str, Any]:
        """Counts by status, rate and percentiles of those with 200."""
        good = np.array(self.latencies.get(200, []))
        counts = Counter({status: len(values) for status, values in self.latencies.items()})
        percentiles = np.percentile(good, [50, 99, 100]).tolist() if len(good) else [float("nan")] * 3
        return {
            "counts": dict(sorted(counts.items())),
            "elapsed_s": elapsed,
            "requests_per_s": len(good) / elapsed,
            "p50_s": percentiles[0],
            "p99_s": percentiles[1],
            "max_s": percentiles[2],
            "cpu_s": cpu_s,
        }


def main(
    port: Annotated[int, typer.Argument(help="on 127.0.0.1")],
    folder: Annotated[Path, typer.Argument(help="of files, each a request's bytes, head and body; sent in turn")],
    clients: Annotated[int, typer.Option(min=1, max=2000)] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, max=300)] = 5.0,
    count: Annotated[int, typer.Option(help="requests in all; 0: as many as the time allows")] = 0,
    rate: Annotated[float, typer.Option(help="requests a second; 0: as fast as answers come")] = 0.0,
) -> None:
    """Send requests again and again, and print what came of it as JSON."""
    requests = [path.read_bytes() for path in sorted(folder.iterdir())]
    print(json.dumps(uvloop.run(Load(port, requests, clients, seconds, count, rate).run())))


if __name__ == "__main__":
    typer.run(main)
