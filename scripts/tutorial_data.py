"""Makes the tables in examples/machine, which docs/tutorial.md uses: rows of a machine, as its logger writes them."""

from __future__ import annotations

import argparse
import csv
import datetime
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "machine"
COLUMNS = ["", "time", "speed", "load", "temperature", "state", "cooling"]
START = datetime.datetime(2026, 3, 2, 6, 0)
Row = list[str]


def rows(random: np.random.Generator, first: int, count: int) -> list[Row]:
    """Rows of the machine when it runs well: the load follows the speed, the temperature both."""
    speed = random.gamma(9.0, 0.35, count)
    load = 12 * speed + random.normal(0, 2.0, count)
    temperature = 21 + 0.6 * load + 1.5 * speed + random.normal(0, 1.0, count)
    state = np.where(speed < 1.5, "idle", np.where(speed > 4.5, "fast", "normal"))
    cooling = np.where(temperature + random.normal(0, 2.0, count) > 45, "on", "off")
    gone = random.random((count, 5)) < 0.015
    found = []
    for at in range(count):
        cells = [f"{speed[at]:.2f}", f"{load[at]:.1f}", f"{temperature[at]:.1f}", str(state[at]), str(cooling[at])]
        time = (START + datetime.timedelta(minutes=first + at)).isoformat(timespec="minutes")
        found.append(
            [str(first + at), time, *("" if hole else cell for cell, hole in zip(cells, gone[at], strict=True))]
        )
    return found


def hotter(row: Row, degrees: float) -> Row:
    """Too hot for its load, though not for the machine."""
    return [*row[:4], f"{float(row[4]) + degrees:.1f}" if row[4] else "", *row[5:]]


def tables() -> dict[str, list[Row]]:
    """The tables by file name."""
    random = np.random.default_rng(0)
    valid = rows(random, 0, 1500)
    valid[810][3] = "E-17"  # what the logger writes if the load cell does not answer
    fresh, hot, stuck = (rows(random, first, count) for first, count in ((1500, 300), (1800, 100), (1900, 100)))
    return {
        "valid.csv": valid,
        "fresh.csv": fresh,
        "hot.csv": [hotter(row, 9.0) for row in hot],
        "stuck.csv": [[*row[:2], "2.40", *row[3:]] for row in stuck],
    }


def write(folder: Path) -> None:
    """Write the tables into a folder."""
    for name, table in tables().items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *table])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    write(FOLDER)
