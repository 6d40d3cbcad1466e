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
import math
import multiprocessing
import os
import random
import shutil
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

from service.datasets.plan import RunOptions
from service.datasets.run import Run, engine_of
from service.files.readers import Rows
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train

COLUMNS, FACTORS = 30, 6
NAMES = tuple(f"c{at}" for at in range(COLUMNS))
LOADINGS = np.random.default_rng(0).normal(size=(FACTORS, COLUMNS))
CHUNK = 2**17
POLL_S = 0.2
MIB = 2**20
KILLS, LEVEL, FDR_ROWS = 50, 0.05, 1_000


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
    Store(store).publish("thirty", train(Rows(rows_of(30_000, 1), NAMES), recipe).draft)
    return store


# What is run


def filtering(source: Path, out: Path, store: Path, *options: str) -> list[str]:
    """The command."""
    program = [sys.executable, "-m", "service.cli", "filter", str(source), "--out", str(out), "--store", str(store)]
    return [*program, "--model", "thirty", "--device", "cpu", *options]


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds that it takes, its start included, and the peak of its processes' memory together, MiB."""
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


def side_by_side(target: Callable[..., None], workers: int, *arguments: Any) -> float:
    """The speeds of so many processes together."""
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=target, args=(*arguments, ready, found)) for _ in range(workers)]
    for process in processes:
        process.start()
    speeds = [found.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(speeds))


def bare_speed(store: Path, workers: int, seconds: float) -> float:
    """Rows a second of so many processes with a Scorer each."""
    return side_by_side(bare, workers, str(store), rows_of(8192 * 8, 7), seconds)


def product_speed(workers: int, seconds: float) -> float:
    """Products a second of so many processes."""
    return side_by_side(products, workers, seconds)


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


def steady(out: Path, rows: int) -> float:
    """Rows a second from the first shard that was done to the last: without imports, models and a cluster's start."""
    done = sorted(
        (path.stat().st_mtime, json.loads(path.read_text())["rows"]) for path in (out / ".vouch").rglob("*/*.json")
    )
    return float(sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0]))


def digest_of(out: Path) -> str:
    """sha256 of all names and contents of a folder."""
    content = hashlib.sha256()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        content.update(str(path.relative_to(out)).encode() + path.read_bytes())
    return content.hexdigest()


def workers(folder: Path, rows: int) -> None:
    """One worker and two, of each engine, beside bare products; and a Ray worker that is killed."""
    store, source = store_with_model(folder), folder / "rows.parquet"
    write_parquet(source, rows)
    alone, together = product_speed(1, 10), product_speed(2, 10)
    print(f"bare products, two processes beside one: {together / alone:.2f}")
    speeds: dict[tuple[str, int], list[float]] = {}
    digests = set()
    for engine, number in (
        ("ray", 1),
        ("local", 1),
        ("local", 2),
        ("ray", 2),
        ("ray", 2),
        ("local", 2),
        ("local", 1),
        ("ray", 1),
    ):
        out = folder / "out"
        options = ("--engine", engine, "--workers", str(number), "--shard-rows", "4096")
        seconds, _ = timed(filtering(source, out, store, *options))
        speeds.setdefault((engine, number), []).append(steady(out, rows))
        print(
            f"{engine}, {number}: {speeds[engine, number][-1]:,.0f} rows a second, {seconds:.0f} s with its start",
            flush=True,
        )
        digests.add(digest_of(out))
        shutil.rmtree(out)
    mean = {key: float(np.mean(found)) for key, found in speeds.items()}
    again_alone, again = product_speed(1, 10), product_speed(2, 10)
    plain = (together / alone + again / again_alone) / 2
    scaling = mean["ray", 2] / mean["ray", 1]
    print(
        f"two Ray workers beside one: {scaling:.2f}; two plain processes: {plain:.2f}; "
        f"ratio {scaling / plain:.3f} (target 0.9)\n"
        f"local, two beside one: {mean['local', 2] / mean['local', 1]:.2f}\n"
        f"Ray beside local, two workers each: {mean['ray', 2] / mean['local', 2]:.3f} (target 0.9)"
    )
    killed = killed_in_ray(
        filtering(source, folder / "killed", store, "--engine", "ray", "--workers", "2", "--shard-rows", "4096"),
        folder / "killed",
    )
    digests.add(digest_of(folder / "killed"))
    print(
        f"a Ray worker killed after {killed} shards: the run finished; different results among all runs: {len(digests)}"
    )


def killed_in_ray(command: Sequence[str], out: Path) -> int:
    """Kill one of a run's actors in the midst of it; after how many shards."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list((out / ".vouch" / "done").glob("*.json"))) < 5:
        time.sleep(0.05)
    done = len(list((out / ".vouch" / "done").glob("*.json")))
    children = psutil.Process(process.pid).children(recursive=True)
    actors = [one for one in children if "ray::MapWorker" in " ".join(one.cmdline())]
    actors[0].kill()
    assert process.stderr is not None
    said = process.stderr.read()
    if process.wait():
        raise SystemExit(said)
    return done


def kills(folder: Path, rows: int) -> None:
    """Runs that are ended at random moments and begun again, until there were KILLS; the results are compared."""
    store, source, generator = store_with_model(folder), folder / "rows.parquet", random.Random(0)
    write_parquet(source, rows)
    options = ("--shard-rows", "512", "--workers", "2", "--fdr", "0.05")
    seconds, _ = timed(filtering(source, folder / "undisturbed", store, *options))
    expected = digest_of(folder / "undisturbed")
    ended = finished = different = 0
    while ended < KILLS:
        out = folder / f"out{finished}"
        process = subprocess.Popen(filtering(source, out, store, *options), stderr=subprocess.DEVNULL)
        try:
            process.wait(generator.uniform(0.0, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended += 1
            continue
        finished += 1
        different += digest_of(out) != expected
    status = subprocess.run(
        filtering(source, folder / f"out{finished}", store, *options), check=False, capture_output=True
    )
    different += digest_of(folder / f"out{finished}") != expected or status.returncode != 0
    print(
        f"kill -9 at {ended} random moments of runs of {seconds:.0f} s ({rows:,} rows, {rows // 512 + 1} shards, --fdr): "
        f"{finished + 1} runs finished, {different} with other bytes than the undisturbed one"
    )


def fdr(folder: Path, sets: int) -> None:
    """What --fdr 0.05 holds and finds, over resampled data sets of which every twentieth row is an outlier."""
    store = store_with_model(folder)
    scorer = load_scorer(Store(store), "thirty", "cpu", threads=1)
    valid, outliers = rows_of(20_000, 50), outliers_of(4_000, 60)
    generator, shares, powers = np.random.default_rng(0), [], []
    chosen = RunOptions(
        model=str(scorer.published.reference), model_digest=scorer.published.digest, fdr=LEVEL, shard_rows=FDR_ROWS
    )
    for number in range(sets):
        strange = np.arange(FDR_ROWS) % 20 == 0
        rows = np.where(
            strange[:, None],
            outliers[generator.integers(len(outliers), size=FDR_ROWS)],
            valid[generator.integers(len(valid), size=FDR_ROWS)],
        )
        source, out = folder / "set.npy", folder / f"out{number}"
        np.save(source, rows)
        run = Run.start(str(source), str(out), chosen, scorer)
        engine = engine_of("local", run, str(store), "cpu", 1)
        engine.score(run.undone(), nothing)
        run.finish(engine, nothing)
        found = pq.read_table(out / "scores" / "set.npy.parquet").column("discovery").to_numpy()
        shares.append((found & ~strange).sum() / max(1, found.sum()))
        powers.append((found & strange).sum() / strange.sum())
        shutil.rmtree(out)
    error = np.std(shares) / math.sqrt(sets)
    print(
        f"--fdr {LEVEL} over {sets} resampled data sets of {FDR_ROWS:,} rows, one in twenty an outlier, "
        f"{scorer.band.rows:,} validation rows: {np.mean(shares):.4f} +- {error:.4f} of the removed rows are valid, "
        f"in the mean; power {np.mean(powers):.3f}"
    )


def nothing(rows: int, invalid: int) -> None:
    """Progress that nobody follows."""


PARTS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "speed": (speed, 5_000_000),
    "workers": (workers, 200_000),
    "kills": (kills, 12_000),
    "fdr": (fdr, 200),
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--rows", type=int, help="of the data set, or how many sets; default: what suits the part")
    arguments = parser.parse_args()
    part, usual = PARTS[arguments.part]
    with tempfile.TemporaryDirectory() as folder:
        part(Path(folder), arguments.rows or usual)


if __name__ == "__main__":
    main()
