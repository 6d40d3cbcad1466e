"""What a journal costs, beside the same service without one; and a hundred kills: is every answer in the journal?"""

from __future__ import annotations

import json
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

from load.against import spread
from load.servers import HERE, Server, generate, service, write_requests
from peers.peers import by_type
from service.journal.chain import JournalKey
from service.journal.contents import RecordId
from service.journal.database import Database
from service.journal.verification import verified
from service.store.loading import load_scorer
from service.store.store import Store

CLIENTS = (1, 8, 64)
MODES = ("required", "best-effort")
LOADS = (1, 64)  # rows a request
KILLS, SCORING = 100, 4
KEPT_S = (0.05, 0.6)  # how long a service lives under load before it is killed


@contextmanager
def journalled(store: Path, work: Path, name: str, threads: int, **settings: object) -> Iterator[Server]:
    """A service with a journal in a folder of its own; its key is made if it is not there."""
    folder = work / name
    folder.mkdir(exist_ok=True)
    key = folder / "key"
    if not key.exists():
        key.write_text(secrets.token_hex(32))
    settings |= {"threads": threads, "journal": folder / "journal", "journal_key": key}
    with service(store, folder / "log", HERE.parent, **settings) as server:
        yield server


def journal_cost(store: Path, model: str, work: Path, rounds: int, seconds: float, threads: int) -> list[str]:
    """Rows per second and CPU time a row with a journal in each mode, as ratios to a service without one.

    All are asked in turn, in each round in another order.
    """
    scorer = load_scorer(Store(store), model, "cpu", threads=threads)
    rows = scorer.sample(64, seed=11).samples
    rows = np.rint(rows).astype(np.uint8) if scorer.model.input.kind == "image" else rows.round(4).astype(np.float32)
    lines = [
        f"`{model}`, npy bodies, {rounds} rounds of {seconds:g} s each; with a journal / without, median (lowest to "
        "highest), and what a request of 1 client takes longer at the median where the journal is required:",
        "",
        "| rows a request | clients | without, rows/s | required: rows/s | CPU a row | best-effort: rows/s | CPU a row | "
        "longer |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    with ExitStack() as stack:
        servers = {"none": stack.enter_context(service(store, work / "none.log", threads=threads))}
        for mode in MODES:
            servers[mode] = stack.enter_context(journalled(store, work, mode, threads, journal_mode=mode))
        for count in LOADS:
            parts = [rows[start : start + count] for start in range(0, len(rows), count)]
            requests = [by_type(f"/score?model={model}")(part, "binary") for part in parts]
            folder = write_requests(work / f"requests-{model}-{count}", requests)
            for clients in CLIENTS:
                lines.append(cost_line(servers, folder, count, clients, rounds, seconds))
        dropped = sum(server.metric("vouch_journal_dropped_rows_total") for server in servers.values())
    return [*lines, "", f"Verdicts that were dropped: {int(dropped):,}."]


def cost_line(servers: dict[str, Server], requests: Path, count: int, clients: int, rounds: int, seconds: float) -> str:
    """One row of the table."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    costs: dict[str, list[float]] = {name: [] for name in servers}
    medians: dict[str, list[float]] = {name: [] for name in servers}
    order = list(servers)
    for number in range(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            before = servers[name].cpu_s()
            seen = generate(servers[name].port, requests, clients, seconds)
            if set(seen["counts"]) != {"200"}:
                raise RuntimeError(f"{name} answered {seen['counts']}")
            rates[name].append(count * seen["requests_per_s"])
            costs[name].append((servers[name].cpu_s() - before) / (count * seen["counts"]["200"]))
            medians[name].append(seen["p50_s"])
    told = []
    for mode in MODES:
        for values in (rates, costs):
            told.append(spread([one / none for one, none in zip(values[mode], values["none"], strict=True)]))
    longer = 1000 * float(np.median(medians["required"]) - np.median(medians["none"]))
    told.append(f"{longer:+.2f} ms" if clients == 1 else "")
    return f"| {count} | {clients} | {np.median(rates['none']):,.0f} | {' | '.join(told)} |"


def journal_kills(store: Path, model: str, work: Path, threads: int) -> list[str]:
    """Kill a service that requires its journal, under load, again and again; every answered record has to be there."""
    scorer = load_scorer(Store(store), model, "cpu", threads=threads)
    rows = scorer.sample(3, seed=5).samples.tolist()
    generator = np.random.default_rng(3)
    told: list[str] = []
    start = time.monotonic()
    for _ in range(KILLS):
        with journalled(store, work, "kills", threads, journal_mode="required") as server:
            over = threading.Event()
            arguments = (server.port, model, rows, told, over)
            clients = [threading.Thread(target=score_until_killed, args=arguments) for _ in range(SCORING)]
            for client in clients:
                client.start()
            time.sleep(float(generator.uniform(*KEPT_S)))
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            over.set()
            for client in clients:
                client.join()
    seconds = time.monotonic() - start
    folder = work / "kills"
    with Database(folder / "journal", JournalKey.read(folder / "key")) as database:
        result = verified(database)
        missing = sum(not there(database, record) for record in told)
        starts = sum(1 for _ in database.records("start"))
    return [
        f"{KILLS} times SIGKILL under the load of {SCORING} clients, {starts} starts, in {seconds:.0f} s: {len(told):,} "
        f"verdicts were answered, {missing} of them are not in the journal; it has {result.records:,} records and "
        f"{len(result.faults)} faults by `vouch journal verify`."
    ]


def score_until_killed(port: int, model: str, rows: list[list[float]], told: list[str], over: threading.Event) -> None:
    """Score until the service is gone, and note the record of every verdict that came back."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        while not over.is_set():
            try:
                answer = client.post(f"/score?model={model}", json={"instances": rows})
                told += [one["record"] for one in json.loads(answer.content)["scores"]]
            except (httpx.HTTPError, ValueError):
                return


def there(database: Database, text: str) -> bool:
    """Whether the journal has a record."""
    one = RecordId.parse(text)
    return database.holds(text) and one.row < database.scores(one.batch)[1].rows
