"""What a new pattern of missing cells costs: the first row that has it, the rows after it, and many patterns by HTTP.

    python benchmarks/holes.py

CPU seconds, one thread. By HTTP, 100 rows of 20 normal columns have 88 patterns; the server's deadline is short enough for
the first requests to end in 504, and the same request is sent until it is answered: nothing is lost in between.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from score import BUNDLED, STORE, train_missing
from service import load
from service.scoring.options import ScoreOptions

OPTIONS = {
    "band": ScoreOptions(false_alarm=0.01),
    "band, explained": ScoreOptions(false_alarm=0.01, explain=3),
    "combined": ScoreOptions("combined", false_alarm=0.01),
    "combined, explained": ScoreOptions("combined", false_alarm=0.01, explain=3),
}
AFTER = 64  # rows
PATTERNS, ROWS, DEADLINE_S = 88, 100, 5
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    torch.set_num_threads(1)
    by_http()
    first_rows()


def first_rows() -> None:
    """The bundled model of people: the first row of a pattern, then rows of that pattern beside complete ones."""
    scorer = load("adult", BUNDLED, "cpu", 1)
    rows, generator = scorer.sample(AFTER, seed=1).samples, np.random.default_rng(0)
    print("| adult | first row: CPU s | rows after it: ms | complete rows: ms | ratio |\n|---|--:|--:|--:|--:|")
    for name, options in OPTIONS.items():
        scorer.score(rows, options)
        firsts, after = [], []
        for _ in range(3):
            scorer.patterns.known.clear()
            holed = rows.copy()
            holed[:, generator.choice(rows.shape[1], 2, replace=False)] = np.nan
            firsts.append(cpu_seconds(partial(scorer.score, holed[:1], options)))
            after.append(cpu_seconds(partial(scorer.score, holed, options)) / AFTER)
        complete = cpu_seconds(partial(scorer.score, rows, options)) / AFTER
        row, first = float(np.median(after)), float(np.median(firsts))
        print(f"| {name} | {first:.2f} | {1e3 * row:.2f} | {1e3 * complete:.2f} | {row / complete:.2f} |", flush=True)


def by_http() -> None:
    """Rows with many new patterns in one request, until it is answered."""
    train_missing("columns20")
    scorer, generator = load("columns20", STORE, "cpu", 1), np.random.default_rng(0)
    masks = [generator.random(scorer.model.input.features) < 0.2 for _ in range(PATTERNS)]
    rows = scorer.sample(ROWS, seed=1).samples
    holed = np.where([masks[at % PATTERNS] for at in range(ROWS)], np.nan, rows)
    body = {"instances": [[None if np.isnan(cell) else cell for cell in row] for row in holed.tolist()]}
    patterns = len({tuple(row) for row in np.isnan(holed).tolist()})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "VOUCH_STORE": str(STORE),
        "VOUCH_REQUEST_TIMEOUT_S": str(DEADLINE_S),
        "VOUCH_THREADS": "1",
    }
    command = [str(Path(sys.executable).parent / "vouch"), "serve", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            query = {"model": "columns20", "false_alarm": "0.01"}
            whole = {"instances": rows[:1].tolist()}
            wait_for(lambda: client.post("/score", params=query, json=whole).status_code == 200)
            before = process_seconds(server.pid)
            answers: list[int] = []
            while not answers or answers[-1] != 200:
                answer = client.post("/score", params=query, json=body)
                answers.append(answer.status_code)
                assert answers[-1] in (200, 429, 504), answer.text[:300]
                assert len(answers) < 100, answers
            spent = process_seconds(server.pid) - before
    finally:
        server.terminate()
        server.wait()
    print(
        f"\nby HTTP: {ROWS} rows with {patterns} patterns: {spent:.1f} CPU s, {spent / patterns:.3f} a pattern; "
        f"answers, with a deadline of {DEADLINE_S} s: {', '.join(map(str, answers))}"
    )


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def process_seconds(pid: int) -> float:
    """CPU seconds of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def wait_for(is_there: Callable[[], bool]) -> None:
    """Until the server answers."""
    for _ in range(300):
        with contextlib.suppress(httpx.TransportError):
            if is_there():
                return
        time.sleep(0.2)
    raise SystemExit("the server does not start")


if __name__ == "__main__":
    main()
