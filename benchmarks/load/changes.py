"""Aliases that move under load, a service that is told to end under load, and publishers that are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

from load.servers import HERE, Server, service, start_generator, write_requests
from peers.peers import by_type
from service.client import Client
from service.errors import VouchError
from service.scoring.generator import Generator
from service.scoring.version import Draft, Reference
from service.store.store import Store

ANSWERED = "answered"
SWAPS, PAUSE_S, KILLS, SCORING = 200, 0.1, 100, 4


def alias_swaps(store: Path, model: str, work: Path, threads: int) -> list[str]:
    """Move an alias to and fro while clients score; every answer's digest must have been current during its request."""
    own = copied(store, work / "swaps")
    first = own.resolve(model)
    published = own.load(first)
    second = own.publish(model, Draft(published.model, published.calibration, {}, {}))
    digests = {one.version: own.load(one).digest for one in (first, second)}
    own.set_alias(model, "production", first.version)
    rows = np.rint(Generator(published.model).sample(1, seed=11).samples).astype(np.uint8)
    moves: list[tuple[float, float, str]] = [(0.0, 0.0, digests[first.version])]  # asked, done, digest from then on
    seen: list[tuple[float, float, str, str]] = []
    over = threading.Event()
    with service(own.root, work / "swaps.log", threads=threads) as server:
        clients = [threading.Thread(target=score_until, args=(server, model, rows, over, seen)) for _ in range(SCORING)]
        for client in clients:
            client.start()
        memory = []
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as admin:
            for number in range(SWAPS):
                target = (second, first)[number % 2]
                asked = time.monotonic()
                move = {"alias": "production", "version": target.version}
                admin.post(f"/models/{model}/aliases", json=move).raise_for_status()
                moves.append((asked, time.monotonic(), digests[target.version]))
                memory.append(server.memory_mib())
                time.sleep(PAUSE_S)
        over.set()
        for client in clients:
            client.join()
    outcomes = Counter(outcome for _, _, outcome, _ in seen)
    stale = sum(
        outcome == ANSWERED and digest not in current(moves, start, end) for start, end, outcome, digest in seen
    )
    return [
        f"- {SWAPS} swaps beside {SCORING} clients: {len(seen):,} calls, {dict(outcomes)}, {stale} with a "
        f"digest that was not current during the request; memory {memory[SWAPS // 4]:.0f} MiB after a quarter of the "
        f"swaps, {memory[-1]:.0f} at the end"
    ]


def current(moves: list[tuple[float, float, str]], start: float, end: float) -> set[str]:
    """The digests that an alias may have named at some time between start and end."""
    found = set()
    for at, (asked, _, digest) in enumerate(moves):
        until = moves[at + 1][1] if at + 1 < len(moves) else float("inf")
        if asked <= end and until >= start:
            found.add(digest)
    return found


def score_until(
    server: Server, model: str, rows: np.ndarray, over: threading.Event, seen: list[tuple[float, float, str, str]]
) -> None:
    """Score one row after the other, each once; note when, how it ended, and the digest that answered."""
    with Client(f"http://127.0.0.1:{server.port}", model=model, deadline_s=60, attempts=1) as client:
        while not over.is_set():
            start = time.monotonic()
            try:
                outcome, digest = ANSWERED, client.score(rows).digest
            except VouchError as error:
                outcome, digest = type(error).__name__, ""
            seen.append((start, time.monotonic(), outcome, digest))


def end_under_load(store: Path, model: str, work: Path, threads: int) -> list[str]:
    """SIGTERM while clients score: what was accepted is answered."""
    own = Store(store)
    generator = Generator(own.load(own.resolve(model)).model)
    rows = np.rint(generator.sample(4, seed=11).samples).astype(np.uint8)
    requests = write_requests(work / "ending", [by_type(f"/score?model={model}")(rows, "binary")])
    with service(store, work / "ending.log", threads=threads, drain_s=3) as server:
        load = start_generator(server.port, requests, 32, 15)
        time.sleep(4)
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(60)
        output, _ = load.communicate(timeout=60)
    counts = json.loads(output)["counts"]
    return [
        f"- SIGTERM beside 32 clients, 3 s of drain: statuses {counts} (0: accepted and not answered), exit status {status}"
    ]


PUBLISH = """
import sys
from service.scoring.version import Draft
from service.store.store import Store
store = Store(sys.argv[1])
published = store.load(store.resolve(sys.argv[2]))
print("ready", flush=True)
while True:
    store.publish(sys.argv[2], Draft(published.model, published.calibration, {}, {}))
"""


def killed_publishers(store: Path, model: str, work: Path) -> list[str]:
    """`kill -9` at random moments of publishing: every version that is there afterwards loads, and no file is amiss."""
    own = copied(store, work / "killed")
    draw = random.Random(0)
    versions = broken = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(own.root), model], cwd=HERE.parent, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.4))
        process.kill()
        process.wait()
        for version in own.versions(model)[1:]:
            try:
                own.load(Reference(model, version))
                versions += 1
            except VouchError:
                broken += 1
            shutil.rmtree(own.root / model / version)
        own.resolve(model)
    left = len([entry for entry in (own.root / model).iterdir() if entry.name.startswith(".")])
    return [
        f"- {KILLS} publishers killed: {versions:,} versions published in all, {broken} of them unreadable; "
        f"{left} temporary folders left, which a later publisher removes after an hour"
    ]


def copied(store: Path, folder: Path) -> Store:
    """A store of its own, to be changed."""
    shutil.copytree(store, folder)
    return Store(folder)
