"""`vouch filter`: beside the bare Scorer, with one worker and two, by Ray, ended at random moments, and what --fdr holds.

    python benchmarks/filter.py --part speed --rows 5000000     # 1. memory, and rows a second beside the Scorer's
    python benchmarks/filter.py --part workers                  # 2. one worker and two, beside bare products; Ray
    python benchmarks/filter.py --part kills                    # 3. kill -9 at 50 random moments
    python benchmarks/filter.py --part fdr                      # 5. 200 resampled data sets with known outliers

The data are thirty columns from six hidden factors. Every figure is of this run; machines with neighbours give other ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from service.data.readers import Rows
from service.scorer import load_scorer
from service.store import Store
from service.trainer import Recipe, train
from service.vae.training import FitOptions

COLUMNS, FACTORS = 30, 6
NAMES = tuple(f"c{at}" for at in range(COLUMNS))
LOADINGS = np.random.default_rng(0).normal(size=(FACTORS, COLUMNS))
CHUNK = 2**17
POLL_S = 0.2
MIB = 2**20


def rows_of(count: int, seed: int) -> np.ndarray:
    """Valid rows, shape (count, COLUMNS)."""
    generator = np.random.default_rng(seed)
    factors = np.tanh(generator.normal(size=(count, FACTORS)))
    return (factors @ LOADINGS + 0.3 * generator.normal(size=(count, COLUMNS))).astype(np.float32)


def outliers_of(count: int, seed: int) -> np.ndarray:
    """Rows whose columns are as they should be, each by itself, but belong to different rows."""
    rows = rows_of(count, seed)
    generator = np.random.default_rng(seed + 1)
    return np.stack([generator.permutation(column) for column in rows.T], axis=1)


def write_parquet(path: Path, rows: int) -> None:
    """So many rows, one in twenty of them strange, chunk by chunk."""
    schema = pa.schema([(name, pa.float32()) for name in NAMES])
    with pq.ParquetWriter(path, schema) as writer:
        for number, start in enumerate(range(0, rows, CHUNK)):
            chunk = rows_of(min(CHUNK, rows - start), 100 + number)
            chunk[::20] = outliers_of(len(chunk[::20]), 10_000 + number)
            writer.write_table(pa.table(list(chunk.T), schema=schema))


def store_with_model(folder: Path) -> Path:
    """A store with the model that `vouch train` would make of plain columns."""
    store = folder / "store"
    recipe = Recipe(likelihood="gaussian", fit=FitOptions(epochs=30))
    train(Store(store), "thirty", Rows(rows_of(30_000, 1), NAMES), recipe)
    return store


# What is run


def filtering(source: Path, out: Path, store: Path, *options: str) -> list[str]:
    """The command."""
    program = [sys.executable, "-m", "service.cli", "filter", str(source), "--out", str(out), "--store", str(store)]
    return [*program, "--model", "thirty", "--device", "cpu", *options]


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds from when the first rows were scored, and the peak of its processes' memory together, MiB.

    What comes before, such as imports, models and a cluster's start, is told by the command's own first row.
    """
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(POLL_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    assert process.stderr is not None
    said = process.stderr.read()
    status, seconds = process.wait(), time.perf_counter() - start
    watcher.join()
    if status:
        raise SystemExit(said)
    return seconds, peak


def memory_of(pid: int) -> float:
    """Resident memory of a process and all below it, MiB; what they share counts for each."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total / MIB


def bare(store: str, rows: np.ndarray, seconds: float, ready: Any, found: Any) -> None:
    """In a process of its own: the Scorer on rows in memory, again and again; how many a second."""
    torch.set_num_threads(1)
    scorer = load_scorer(Store(store), "thirty", "cpu", threads=1)
    scorer.score(rows[:1000])
    ready.wait()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        scorer.score(rows[done % len(rows) :][:8192])
        done += min(8192, len(rows) - done % len(rows))
    found.put(done / (time.perf_counter() - start))


def bare_speed(store: Path, workers: int, seconds: float) -> float:
    """Rows a second of so many processes with a Scorer each."""
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(workers), context.Queue()
    rows = rows_of(8192 * 8, 7)
    processes = [context.Process(target=bare, args=(str(store), rows, seconds, ready, found)) for _ in range(workers)]
    for process in processes:
        process.start()
    speeds = [found.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(speeds))


def products(seconds: float, ready: Any, found: Any) -> None:
    """In a process of its own: bare matrix products; how many a second."""
    torch.set_num_threads(1)
    a, b = torch.randn(1024, 128), torch.randn(128, 128)
    ready.wait()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(100):
            torch.mm(a, b)
        done += 100
    found.put(done / (time.perf_counter() - start))


def product_speed(workers: int, seconds: float) -> float:
    """Products a second of so many processes."""
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=products, args=(seconds, ready, found)) for _ in range(workers)]
    for process in processes:
        process.start()
    speeds = [found.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(speeds))


# The parts


def speed(folder: Path, rows: int) -> None:
    """Peak memory, and rows a second beside the Scorer alone, measured before and after."""
    store, source = store_with_model(folder), folder / "rows.parquet"
    write_parquet(source, rows)
    workers = os.cpu_count() or 1
    before = bare_speed(store, workers, 60)
    seconds, peak = timed(filtering(source, folder / "out", store, "--false-alarm", "0.01", "--workers", str(workers)))
    after = bare_speed(store, workers, 60)
    mean = (before + after) / 2
    report = json.loads((folder / "out" / "report.json").read_text())
    print(
        f"{rows:,} rows x {COLUMNS} of Parquet ({source.stat().st_size / MIB:,.0f} MiB), {workers} workers: "
        f"{rows / seconds:,.0f} rows a second in {seconds:,.0f} s, start and report included\n"
        f"the Scorer alone, {workers} processes, arrays in memory: {before:,.0f} before, {after:,.0f} after\n"
        f"ratio {rows / seconds / mean:.3f} (target 0.85)\n"
        f"peak memory of all processes {peak:,.0f} MiB (target below 1,536); {report['invalid']:,} rows invalid"
    )


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "workers", "kills", "fdr"), required=True)
    parser.add_argument("--rows", type=int, default=0, help="of the data set; default: what suits the part")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), arguments.rows or 5_000_000)


if __name__ == "__main__":
    main()
