"""Rows per second over HTTP beside another checkout of the program: two services, asked in turn in the same run."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from load.servers import Server, service
from peers.peers import Kind, by_type
from service.store.loading import load_scorer
from service.store.store import Store

LOADS: tuple[tuple[Kind, int], ...] = (("json", 1), ("json", 64), ("binary", 1), ("binary", 64))
TURNS = 8  # of each of the two in a round: other work on the machine meets both
Requests = list[tuple[str, dict[str, str], bytes]]


@dataclass
class Asked:
    """A service, and what it took to ask it: requests, seconds, and its CPU seconds."""

    server: Server
    connection: http.client.HTTPConnection
    requests: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    def ask(self, requests: Requests) -> None:
        """Ask each once, one after the other."""
        cpu, start = self.server.cpu_s(), time.perf_counter()
        for path, headers, body in requests:
            self.connection.request("POST", path, body, headers)
            answer = self.connection.getresponse()
            answer.read()
            if answer.status != http.client.OK:
                raise RuntimeError(f"{self.server.name} answered {answer.status}")
        self.requests += len(requests)
        self.seconds += time.perf_counter() - start
        self.cpu_s += self.server.cpu_s() - cpu


def against(
    store: Path, model: str, work: Path, other: Path | None, rounds: int, seconds: float, threads: int
) -> list[str]:
    """The ratios of rows per second and of CPU time a row, this checkout's to the other's, by rounds.

    One request is under way at a time, so that batches do not differ; each of the two is asked in short turns.
    """
    if other is None:
        return ["name another checkout with --against"]
    scorer = load_scorer(Store(store), model, "cpu", threads=threads)
    rows = scorer.sample(64, seed=11).samples
    rows = np.rint(rows).astype(np.uint8) if scorer.model.input.kind == "image" else rows.round(4).astype(np.float32)
    lines = [
        f"`{model}`, one client, {rounds} rounds of {seconds:g} s; here / there, median (lowest to highest):",
        "",
        "| body | rows a request | rows/s here | rows/s there | rows/s | CPU a row |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    with (
        service(store, work / "here.log", threads=threads) as here,
        service(store, work / "there.log", other, threads=threads) as there,
    ):
        for kind, count in LOADS:
            parts = [rows[start : start + count] for start in range(0, len(rows), count)]
            requests = [by_type(f"/score?model={model}")(part, kind) for part in parts]
            asked = [compared(here, there, requests, seconds) for _ in range(rounds)]
            rates = [np.median([count * one[side].requests / one[side].seconds for one in asked]) for side in (0, 1)]
            faster = [theirs.seconds / ours.seconds for ours, theirs in asked]
            dearer = [ours.cpu_s / theirs.cpu_s for ours, theirs in asked]
            shown = f"{rates[0]:,.0f} | {rates[1]:,.0f} | {spread(faster)} | {spread(dearer)}"
            lines.append(f"| {kind} | {count} | {shown} |")
    return lines


def compared(here: Server, there: Server, requests: Requests, seconds: float) -> tuple[Asked, Asked]:
    """Both, asked in turn for about so many seconds each; each begins every other turn."""
    both = [Asked(one, http.client.HTTPConnection("127.0.0.1", one.port, timeout=120)) for one in (here, there)]
    for one in both:
        one.ask(requests[:4])
        one.requests, one.seconds, one.cpu_s = 0, 0.0, 0.0
    turn = 0
    while turn < TURNS or both[0].seconds < seconds:
        part = requests[turn % TURNS :: TURNS] or requests
        for one in both if turn % 2 else both[::-1]:
            one.ask(part)
        turn += 1
    for one in both:
        one.connection.close()
    return both[0], both[1]


def spread(ratios: list[float]) -> str:
    """The median of some ratios, with the lowest and the highest."""
    return f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
