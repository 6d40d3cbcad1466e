"""How long a table takes to be understood and trained on: a CSV file of 1,000,000 rows and 10 columns.

    python benchmarks/tables.py [--rows N] [--part schema] [--part train]

schema    The process time (user and system) of `vouch schema FILE`, start included, beside that of a Python process that
          imports pandas and calls `pandas.read_csv` on the same file. The two run in turn; medians and their ratio.
train     The time from start to end of `vouch train FILE --minutes M`, and what it printed last.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CITIES, PLANS = ["Bern", "Chur", "Basel", "Genf", "Zug"], ["free", "pro", "team"]
DAYS = [f"2024-{month:02d}-{day:02d}" for month in range(1, 13) for day in range(1, 29)]
TURNS = 5


def write(path: Path, rows: int) -> None:
    """Seven columns of numbers, two of text, one of dates."""
    random = np.random.default_rng(0)
    numbers = random.normal(size=(rows, 7))
    numbers[:, 1] += numbers[:, 0]
    numbers[:, 2] = np.rint(20 + 5 * numbers[:, 2])
    city, plan, day = (random.integers(0, len(names), rows) for names in (CITIES, PLANS, DAYS))
    with path.open("w") as file:
        file.write("a,b,c,d,e,f,g,city,plan,day\n")
        for at, row in enumerate(numbers):
            cells = "%.4f,%.4f,%d,%.3f,%.5f,%.2f,%.6f" % tuple(row)  # noqa: UP031  # many times as fast
            file.write(f"{cells},{CITIES[city[at]]},{PLANS[plan[at]]},{DAYS[day[at]]}\n")


def process_time(*command: str) -> float:
    """User and system seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def schema(path: Path, vouch: list[str]) -> None:
    """Print the process times of both, and their ratio."""
    ours, others = [], []
    for _ in range(TURNS):
        others.append(process_time(sys.executable, "-c", f"import pandas; pandas.read_csv({str(path)!r})"))
        ours.append(process_time(*vouch, "schema", str(path)))
    ratios = sorted(one / other for one, other in zip(ours, others, strict=True))
    print(
        f"vouch schema {statistics.median(ours):.2f} s, pandas.read_csv {statistics.median(others):.2f} s of process time"
    )
    print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {TURNS} turns)")


def train(path: Path, vouch: list[str], minutes: float, store: str) -> None:
    """Print how long training took, beside the time that it was given."""
    began = time.monotonic()
    command = [*vouch, "train", str(path), "--name", "table", "--store", store, "--minutes", str(minutes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = (time.monotonic() - began) / 60.0
    print(f"vouch train --minutes {minutes:g}: {took:.2f} minutes with start and reading")
    print(done.stderr[done.stderr.index("published") :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--part", choices=["schema", "train"], action="append")
    given = parser.parse_args()
    vouch = [sys.executable, "-m", "service.cli"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, given.rows)
        print(f"{given.rows:,} rows, {os.path.getsize(path) / 2**20:.0f} MiB")
        if given.part is None or "schema" in given.part:
            schema(path, vouch)
        if given.part is None or "train" in given.part:
            train(path, vouch, given.minutes, str(Path(folder) / "store"))


if __name__ == "__main__":
    main()
