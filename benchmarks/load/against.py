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
    """The ratios of rows per second, this checkout's to the other's: one of each round, which begins with each in turn."""
    if other is None:
        return ["name another checkout with --against"]
    rows = load_scorer(Store(store), model, "cpu", threads=threads).sample(256, seed=11).samples
    rows = np.rint(rows).astype(np.uint8)
    lines = [
        f"`{model}`, {CLIENTS} clients, {rounds} rounds of {seconds:g} s each:",
        "",
        "| body | rows a request | rows/s here | rows/s there | here / there: median (lowest to highest) |",
        "|---|--:|--:|--:|--:|",
    ]
    with (
        service(store, work / "here.log", threads=threads) as here,
        service(store, work / "there.log", other, threads=threads) as there,
    ):
        for kind, count in LOADS:
            parts = [rows[start : start + count] for start in range(0, len(rows), count)]
            folder = write_requests(
                work / f"against-{kind}-{count}", [by_type(f"/score?model={model}")(part, kind) for part in parts]
            )
            pairs = [pair(here, there, folder, count, seconds, number) for number in range(rounds)]
            ratios = [ours / theirs for ours, theirs in pairs]
            ours, theirs = (np.median(rates) for rates in zip(*pairs, strict=True))
            lines.append(
                f"| {kind} | {count} | {ours:,.0f} | {theirs:,.0f} | {np.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}) |"
            )
    return lines


def pair(here: Server, there: Server, folder: Path, count: int, seconds: float, number: int) -> tuple[float, float]:
    """Rows per second of both, one right after the other."""
    rates = {}
    for server in (here, there) if number % 2 == 0 else (there, here):
        rates[server.port] = count * generate(server.port, folder, CLIENTS, seconds)["requests_per_s"]
    return rates[here.port], rates[there.port]
