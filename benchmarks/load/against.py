"""Rows per second over HTTP beside another checkout of the program: two services, loaded in turn in the same run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from load.servers import Server, generate, service, write_requests
from peers.peers import Kind, by_type
from service.store.loading import load_scorer
from service.store.store import Store

CLIENTS = 4
LOADS: tuple[tuple[Kind, int], ...] = (("json", 1), ("json", 64), ("binary", 1), ("binary", 64))


def against(
    store: Path, model: str, work: Path, other: Path | None, rounds: int, seconds: float, threads: int
) -> list[str]:
    """The ratios of rows per second and of CPU time a row, this checkout's to the other's: one of each round.

    Each of the two begins every other round. CPU time says what rows per second say, with less noise from other work.
    """
    if other is None:
        return ["name another checkout with --against"]
    scorer = load_scorer(Store(store), model, "cpu", threads=threads)
    rows = scorer.sample(256, seed=11).samples
    rows = np.rint(rows).astype(np.uint8) if scorer.model.input.kind == "image" else rows.round(4).astype(np.float32)
    lines = [
        f"`{model}`, {CLIENTS} clients, {rounds} rounds of {seconds:g} s each:",
        "",
        "| body | rows a request | rows/s here | rows/s there | rows/s: here / there (lowest to highest) | CPU a row: here / there |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    with (
        service(store, work / "here.log", threads=threads) as here,
        service(store, work / "there.log", other, threads=threads) as there,
    ):
        for kind, count in LOADS:
            parts = [rows[start : start + count] for start in range(0, len(rows), count)]
            folder = write_requests(
                work / f"against-{model}-{kind}-{count}",
                [by_type(f"/score?model={model}")(part, kind) for part in parts],
            )
            pairs = [pair(here, there, folder, count, seconds, number) for number in range(rounds)]
            ratios, cpu = ([ours[at] / theirs[at] for ours, theirs in pairs] for at in (0, 1))
            rates = [np.median([one[side][0] for one in pairs]) for side in (0, 1)]
            lines.append(f"| {kind} | {count} | {rates[0]:,.0f} | {rates[1]:,.0f} | {spread(ratios)} | {spread(cpu)} |")
    return lines


def pair(
    here: Server, there: Server, folder: Path, count: int, seconds: float, number: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Rows per second and CPU seconds a row of both, one right after the other."""
    found = {}
    for server in (here, there) if number % 2 == 0 else (there, here):
        before = server.cpu_s()
        seen = generate(server.port, folder, CLIENTS, seconds)
        rows = count * seen["counts"]["200"]
        found[server.port] = count * seen["requests_per_s"], (server.cpu_s() - before) / rows
    return found[here.port], found[there.port]


def spread(ratios: list[float]) -> str:
    """The median of some ratios, with the lowest and the highest."""
    return f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
