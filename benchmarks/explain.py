"""What `explain=5` costs, of the score alone: the bundled adult model, 64 rows at a time.

python benchmarks/explain.py --data FOLDER
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from service import load
from service.files.tables import read_table
from service.scoring.options import ScoreOptions

BATCHES, ROWS, EXPLAIN = 6, 64, 5
EXPLAINED = ScoreOptions(explain=EXPLAIN)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print medians and their ratios, of valid rows and of rows with one wrong cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", default="model_store")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scorer = load("adult", options.store, "cpu", threads=1)
    table = read_table(options.data / "mixed" / "adult.csv")
    rows = scorer.rows(scorer.model.input.array(table))
    generator = np.random.default_rng(0)
    rows = generator.permutation(rows[~np.isnan(rows).any(axis=1)])[: BATCHES * ROWS]
    spoilt = rows.copy()
    columns = generator.integers(rows.shape[1], size=len(rows))
    spread = rows.std(axis=0)
    spoilt[np.arange(len(rows)), columns] += np.rint(5 * spread[columns])
    scorer.score(rows[:ROWS], EXPLAINED)  # what is set up once
    for name, content in (("valid rows", rows), ("one wrong cell each", spoilt)):
        alone, explained = [], []
        for batch in np.split(content, BATCHES):
            alone.append(seconds(lambda batch=batch: scorer.score(batch)))  # type: ignore[misc]  # binds the batch now
            explained.append(seconds(lambda batch=batch: scorer.score(batch, EXPLAINED)))  # type: ignore[misc]
        ratios = [more / less for more, less in zip(explained, alone, strict=True)]
        print(
            f"{name}: score {1e3 * statistics.median(alone) / ROWS:.2f} ms a row, with explain={EXPLAIN} "
            f"{1e3 * statistics.median(explained) / ROWS:.2f}; ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
