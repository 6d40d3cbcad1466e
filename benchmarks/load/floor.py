"""The floor: rows per second over HTTP beside the Scorer called in a loop, with the same batches of 64 rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from load.compare import scorer_alone
from load.servers import generate, service, write_requests
from peers.peers import Kind, by_type
from service.store.loading import load_scorer
from service.store.store import Store

ROWS, CLIENTS = 64, 4
TARGETS: dict[Kind, float] = {"binary": 0.9, "json": 0.75}


def floor(store: Path, model: str, work: Path, rounds: int, seconds: float, threads: int) -> list[str]:
    """The share of the Scorer's own speed that comes over HTTP, by rounds; the Scorer runs right before each load."""
    scorer = load_scorer(Store(store), model, "cpu", threads=threads)
    rows = scorer.sample(256, seed=11).samples
    rows = np.rint(rows).astype(np.uint8) if scorer.model.input.kind == "image" else rows.round(4).astype(np.float32)
    shares: dict[Kind, list[float]] = {kind: [] for kind in TARGETS}
    parts = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    folders = {
        kind: write_requests(
            work / f"floor-{model}-{kind}", [by_type(f"/score?model={model}")(part, kind) for part in parts]
        )
        for kind in TARGETS
    }
    with service(store, work / "floor.log", threads=threads) as server:
        for _ in range(rounds):
            for kind in TARGETS:
                alone = scorer_alone(scorer, rows, ROWS, seconds)
                seen = generate(server.port, folders[kind], CLIENTS, seconds)
                shares[kind].append(ROWS * seen["requests_per_s"] * alone.seconds)
    lines = [
        f"`{model}`, {ROWS} rows a request, {CLIENTS} clients, {threads} threads:",
        "",
        "| body | of the Scorer's rows/s: median (rounds) | target |",
        "|---|--:|--:|",
    ]
    for kind, target in TARGETS.items():
        values = ", ".join(f"{share:.2f}" for share in shares[kind])
        lines.append(f"| {kind} | {np.median(shares[kind]):.2f} ({values}) | {target} |")
    return lines
