"""Do weights that the self-test chooses order rows as real anomalies do? On the sets of ADBench and OddBench.

    python benchmarks/weighing.py --data FOLDER --out weighing.jsonl           run what is not in the file yet
    python benchmarks/weighing.py --out weighing.jsonl --report                print the table

On each set a model is trained as `vouch train` does, on at most 6,000 normal rows, of which 300 are kept to choose weights.
The test rows, at most 4,000, are ranked by every weighting of `service.scoring.weighing` and by the chosen one; labels are
looked at by the measures alone. A set is a line of the file. Needs the extra: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as Listing
from sklearn.metrics import average_precision_score, roc_auc_score

from adbench import Split
from service.data.table import Table
from service.density.estimate import DIRECT
from service.errors import VouchError
from service.scoring.scorer import Scorer
from service.scoring.statistic_kinds import weights_of
from service.scoring.weighing import Half, best_weights, spoilt_rows, weightings
from service.training.recipe import TABLE_FIT, LeastRows, Recipe
from service.training.train import train_table
from service.validity.combination import Combination

MOST_ROWS, MOST_TEST, KEPT = 6_000, 4_000, 300
CHOSEN = "chosen"


def table_of(rows: np.ndarray) -> Table:
    return Table(tuple(f"x{at}" for at in range(rows.shape[1])), tuple(np.ascontiguousarray(one) for one in rows.T))


def measured(split: Split) -> dict[str, object]:
    """AUROC and AUPRC of each weighting on a set, and which of them is chosen without its labels."""
    generator = np.random.default_rng(0)
    train = generator.permutation(split.train)[:MOST_ROWS]
    kept = min(KEPT, len(train) // 6)
    some = np.sort(generator.permutation(len(split.test))[:MOST_TEST])
    recipe = Recipe(prior="auto", fit=TABLE_FIT, least=LeastRows())
    scorer = Scorer(train_table(table_of(train[kept:]), recipe).draft.unpublished())
    spec, reference = scorer.model.input, scorer.reference_statistics()
    generation, scales = reference.known.generation, weights_of(spec)[1]

    def statistics(rows: np.ndarray) -> np.ndarray:
        found = scorer.model.assess(rows, statistics=scorer.row_statistics, execution=DIRECT).statistics
        assert found is not None
        return np.nan_to_num(found, posinf=1e30, neginf=-1e30)

    halves = []
    for half, rows in enumerate(np.array_split(spec.rows(spec.array(table_of(train[:kept]))), 2)):
        ways = {name: statistics(bad) for name, bad in spoilt_rows(spec, rows[:40], half).items()}
        halves.append(Half(statistics(rows), ways))
    choice = best_weights(spec, generation, *halves)
    tested = statistics(spec.rows(spec.array(table_of(split.test[some]))))
    found: dict[str, object] = {"chosen": "usual" if choice is None else choice[1].name}
    for name, weights in weightings(spec, generation).items():
        strange = Combination(reference.combination.parts, np.zeros(0), weights, scales).combine(tested)
        labels = split.labels[some]
        found[name] = [float(roc_auc_score(labels, strange)), float(average_precision_score(labels, strange))]
    return found


def report(lines: list[dict[str, object]]) -> None:
    """Means over the sets, of each weighting where it is one of theirs and of the usual one where it is not."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("data", CHOSEN)))
    listing = Listing("weighting", "AUROC", "AUPRC", "chosen on", box=box.MARKDOWN)
    for name in (*names, CHOSEN):
        values = np.array([line.get(str(line[CHOSEN]) if name == CHOSEN else name, line["usual"]) for line in lines])
        times = "" if name == CHOSEN else str(sum(line[CHOSEN] == name for line in lines))
        listing.add_row(name, *(f"{value:.4f}" for value in values.mean(axis=0)), times)
    Console(width=100).print(f"{len(lines)} sets", listing)


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("weighing.jsonl"))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.report:
        report(lines)
        return
    paths = [path for part in ("adbench", "oddbench") for path in (options.data / part).glob("*.npz")]
    for path in sorted(paths, key=lambda path: path.stat().st_size):
        name = f"{path.parent.name}/{path.stem}"
        if any(line["data"] == name for line in lines):
            continue
        try:
            line = {"data": name} | measured(Split.of(path, 0))
        except VouchError as error:
            print(f"{name}: {error}", flush=True)
            continue
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {line[CHOSEN]}", flush=True)


if __name__ == "__main__":
    main()
