"""Realised false alarms of versions calibrated by folds on forty rows: `vouch train --folds 5`, at its defaults.

    python benchmarks/folds.py --data FOLDER [--folds 5] [--splits 12] [--set wine]

Each of the splits has forty rows to train and calibrate on and others that are fresh; splits share no row, so that the
standard errors are those of independent numbers.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from service.data.table import Table as Rows
from service.files.tables import read_table
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.recipe import TABLE_FIT, Recipe
from service.training.train import train_table
from service.validity.band import Band, percentiles_of
from service.validity.conformal import Tail

KNOWN, FRESH = 40, 200
RULES: list[tuple[Tail, float]] = [
    ("low", 0.5),
    ("low", 0.1),
    ("low", 0.05),
    ("both", 0.5),
    ("both", 0.1),
    ("both", 0.05),
]
CONSOLE = Console(width=140)


def sets(folder: Path) -> dict[str, Rows]:
    """Tables of valid rows."""
    stored = np.load(folder / "adbench" / "22_magic.gamma.npz")
    normal = stored["X"][stored["y"] == 0]
    return {
        "wine": read_table(folder / "mixed" / "wine_quality.csv"),
        "adult": read_table(folder / "mixed" / "adult.csv"),
        "magic.gamma": Rows(tuple(f"x{at}" for at in range(normal.shape[1])), tuple(normal.T)),
    }


def realised(known: Rows, fresh: Rows, recipe: Recipe) -> list[float]:
    """The share of fresh valid rows that each of RULES refuses."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        reference = store.publish("few", train_table(known, recipe).draft)
        scorer = load_scorer(store, str(reference), "cpu", threads=1)
    scores = scorer.score(scorer.model.input.array(fresh))
    return [float((scores.sides_of(percentiles_of(rate, tail)) != 0).mean()) for tail, rate in RULES]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=12)
    parser.add_argument("--set", action="append", choices=("wine", "adult", "magic.gamma"), help="default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(prior="auto", fit=TABLE_FIT, folds=options.folds)
    bands = [Band.fit(np.arange(float(KNOWN)), percentiles_of(rate, tail), options.folds) for tail, rate in RULES]
    chosen = {name: rows for name, rows in sets(options.data).items() if name in (options.set or [name])}
    shown = Table("rule", "usual", "proved: at most", *chosen, box=box.MARKDOWN)
    columns = []
    for name, rows in chosen.items():
        order = np.random.default_rng(0).permutation(len(rows))
        found = []
        for split in range(options.splits):
            part = order[split * (KNOWN + FRESH) :][: KNOWN + FRESH]
            known, fresh = rows.select(part[:KNOWN]), rows.select(part[KNOWN:])
            found.append(realised(known, fresh, replace(recipe, fit=replace(recipe.fit, seed=split))))
            print(f"{name} {split}: {found[-1]}", flush=True)
        means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(options.splits)
        columns.append([f"{100 * m:.2f} (+-{100 * e:.2f})" for m, e in zip(means, errors, strict=True)])
    for at, ((tail, rate), band) in enumerate(zip(RULES, bands, strict=True)):
        usual, most = (100 * (1 - share) for share in (band.accepted.expected, band.accepted.proven))
        cells = [column[at] for column in columns]
        shown.add_row(f"{tail}, {100 * rate:g} %", f"{usual:.2f}", f"{most:.2f}", *cells)
    CONSOLE.print(f"\nFalse alarms in per cent, {KNOWN} rows by {options.folds} folds, {options.splits} splits\n")
    CONSOLE.print(shown)


if __name__ == "__main__":
    main()
