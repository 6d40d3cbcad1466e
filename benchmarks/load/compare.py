"""Side by side: the service and the same Scorer behind other model servers, and the Scorer alone.

What a server costs is what a row takes through it less what it takes in the Scorer, called in a loop with batches of as
many rows as the clients of the cell have under way, at most 64. It is told in two ways: by the clock, and in CPU time of
the server's processes, which is deaf to what else runs on the machine.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from load.servers import Server, generate, peer_server, service, write_requests
from peers.peers import BENTOML, LITSERVE, MLSERVER, NAIVE, PEERS, Kind, Request, by_type
from service.scoring.scorer import Scorer
from service.store.loading import load_scorer
from service.store.store import Store

CLIENTS, ROWS = (1, 8, 64), (1, 64)
KINDS: tuple[Kind, ...] = ("json", "binary")
MOST_ROWS = 64  # in a batch of the Scorer alone
MOST_SECONDS = 120.0  # of a load
WARMING = 48  # requests before anything is measured: BentoML learns from its first how long to wait for more
OURS = "vouch"


@dataclass
class Cell:
    """What one server did in one cell, over all rounds: rows, seconds, CPU seconds, and the 99th percentiles."""

    rows: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    generator_s: float = 0.0
    p99_s: list[float] = field(default_factory=list)
    failures: int = 0

    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds

    def p99(self) -> float:
        """The median over the rounds, seconds."""
        return float(np.median(self.p99_s))


@dataclass
class Alone:
    """The Scorer in a loop: seconds and CPU seconds a row."""

    seconds: float
    cpu_s: float


def compare(store: Path, model: str, work: Path, venvs: Path, rounds: int, seconds: float, threads: int) -> list[str]:
    """Load every server in turn in every cell; lines of a table for each cell."""
    scorer = load_scorer(Store(store), model, "cpu", threads=threads)
    rows = scorer.sample(256, seed=11).samples
    rows = np.rint(rows).astype(np.uint8) if scorer.model.input.kind == "image" else rows.round(4).astype(np.float32)
    cells: dict[tuple[int, int, Kind, str], Cell] = {}
    alone: dict[int, Alone] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(service(store, work / "vouch.log", threads=threads))]
        servers += [
            stack.enter_context(peer_server(peer, venvs, store, model, work / f"{peer.name}.log")) for peer in PEERS
        ]
        check(servers, model, scorer, rows, work)
        for turn in range(rounds):
            for clients in CLIENTS:
                for count in ROWS:
                    batch = min(MOST_ROWS, clients * count)
                    alone[batch] = better(alone.get(batch), scorer_alone(scorer, rows, batch, seconds))
                    for kind in KINDS:
                        for server in rotated(servers, turn + clients + count):
                            cell = cells.setdefault((clients, count, kind, server.name), Cell())
                            # Everyone gets the same rows, some of which cost more than others.
                            sets = max(1, round(seconds / alone[batch].seconds / len(rows)))
                            requests = max(clients, sets * len(rows) // count)
                            load(cell, server, model, rows, clients, count, kind, work, requests)
    return table(cells, alone)


def rotated(servers: list[Server], by: int) -> list[Server]:
    """The servers, beginning with another one each time."""
    start = by % len(servers)
    return servers[start:] + servers[:start]


def better(old: Alone | None, new: Alone) -> Alone:
    """The faster of two measurements: the Scorer must not look slow because something else ran."""
    return new if old is None or new.seconds < old.seconds else old


def scorer_alone(scorer: Scorer, rows: np.ndarray, batch: int, seconds: float) -> Alone:
    """The Scorer called in a loop."""
    scorer.score(rows[:batch])
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    # Whole sets only: some rows cost more than others.
    while done % len(rows) or time.perf_counter() - start < seconds:
        scorer.score(rows[done % len(rows) : done % len(rows) + batch])
        done += batch
    return Alone((time.perf_counter() - start) / done, (time.process_time() - cpu) / done)


def load(
    cell: Cell,
    server: Server,
    model: str,
    rows: np.ndarray,
    clients: int,
    count: int,
    kind: Kind,
    work: Path,
    requests: int,
) -> None:
    """One round of one server in one cell."""
    folder = work / f"{server.name}-{count}-{kind}"
    if not folder.exists():
        parts = [rows[start : start + count] for start in range(0, len(rows), count)]
        write_requests(folder, [request(server.name, model, part, kind) for part in parts])
    cpu = server.cpu_s()
    seen = generate(server.port, folder, clients, MOST_SECONDS, count=requests)
    cell.cpu_s += server.cpu_s() - cpu
    good = seen["counts"].get("200", 0)
    cell.rows += good * count
    cell.failures += sum(seen["counts"].values()) - good
    cell.seconds += seen["elapsed_s"]
    cell.generator_s += seen["cpu_s"]
    cell.p99_s.append(seen["p99_s"])


def request(name: str, model: str, rows: np.ndarray, kind: Kind) -> Request:
    """A request for a server, ours or a peer's."""
    if name == OURS:
        return by_type(f"/score?model={model}")(rows, kind)
    return next(peer for peer in PEERS if peer.name == name).body(rows, kind)


def check(servers: list[Server], model: str, scorer: Scorer, rows: np.ndarray, work: Path) -> None:
    """Every server has to give the Scorer's own numbers, for each kind and number of rows; then they are warmed up."""
    import httpx

    for server in servers:
        for kind in KINDS:
            for count in ROWS:
                path, headers, body = request(server.name, model, rows[:count], kind)
                address = f"http://127.0.0.1:{server.port}{path}"
                answer = httpx.post(address, content=body, headers=headers, timeout=120)
                read = next((peer.log_likelihoods for peer in PEERS if peer.name == server.name), NAIVE.log_likelihoods)
                given = read(answer.headers["content-type"], answer.headers, answer.content)
                expected = scorer.score(rows[:count]).log_likelihood
                if not np.array_equal(given, expected):
                    raise RuntimeError(f"{server.name} gives other scores ({kind}, {count} rows)")
            one = write_requests(work / f"{server.name}-warming-{kind}", [request(server.name, model, rows[:1], kind)])
            generate(server.port, one, 4, MOST_SECONDS, count=WARMING)


def table(cells: dict[tuple[int, int, Kind, str], Cell], alone: dict[int, Alone]) -> list[str]:
    """A line for each server in each cell, and after each cell how we stand against the best of the others."""
    names = (OURS, LITSERVE.name, BENTOML.name, MLSERVER.name, NAIVE.name)
    lines = [
        "| clients | rows | body | server | rows/s | of the Scorer alone | overhead us/row | CPU overhead us/row | p99 ms "
        "| failed | load's CPU s/s |",
        "|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for clients in CLIENTS:
        for count in ROWS:
            floor = alone[min(MOST_ROWS, clients * count)]
            for kind in KINDS:
                for name in names:
                    cell = cells[clients, count, kind, name]
                    overhead, cpu = overheads(cell, floor)
                    lines.append(
                        f"| {clients} | {count} | {kind} | {name} | {cell.rate():.1f} | {cell.rate() * floor.seconds:.2f} "
                        f"| {1e6 * overhead:.0f} | {1e6 * cpu:.0f} | {1e3 * cell.p99():.1f} | {cell.failures} "
                        f"| {cell.generator_s / cell.seconds:.2f} |"
                    )
    return [*lines, "", *standing(cells, alone, names[1:])]


def overheads(cell: Cell, floor: Alone) -> tuple[float, float]:
    """What the server adds to a row, by the clock and in CPU time, seconds."""
    return 1 / cell.rate() - floor.seconds, cell.cpu_s / cell.rows - floor.cpu_s


def standing(
    cells: dict[tuple[int, int, Kind, str], Cell], alone: dict[int, Alone], others: tuple[str, ...]
) -> list[str]:
    """For each cell how we stand against the best of the others, which may be another one in each column."""
    lines = [
        "| clients | rows | body | rows/s, of the best peer's | overhead us/row, ours : least of theirs "
        "| CPU overhead us/row | p99, of the least of theirs |",
        "|--:|--:|---|--:|--:|--:|--:|",
    ]
    for clients in CLIENTS:
        for count in ROWS:
            floor = alone[min(MOST_ROWS, clients * count)]
            for kind in KINDS:
                ours, *theirs = (cells[clients, count, kind, name] for name in (OURS, *others))
                (wall, cpu), *rest = (overheads(cell, floor) for cell in (ours, *theirs))
                least_wall, least_cpu = min(other[0] for other in rest), min(other[1] for other in rest)
                rate = ours.rate() / max(cell.rate() for cell in theirs)
                p99 = ours.p99() / min(cell.p99() for cell in theirs)
                lines.append(
                    f"| {clients} | {count} | {kind} | {rate:.2f} | {1e6 * wall:.0f} : {1e6 * least_wall:.0f} "
                    f"| {1e6 * cpu:.0f} : {1e6 * least_cpu:.0f} | {p99:.2f} |"
                )
    return lines
