"""Which cell is wrong, what belonged there, and rows with missing cells: adult and wine, beside simpler ways.

    python benchmarks/cells.py --data FOLDER [--only adult] [--store FOLDER]

blame     A twentieth of the cells of held-out rows is spoilt: a value swapped in from another row, ten times the number,
          five standard deviations more, a category never seen. Average precision over all cells, the share of rows with one
          spoilt cell in which it is blamed first, and the error of what is proposed instead. Beside it each column's
          marginal, and a gradient-boosted predictor of each column from all others. All three turn what they find
          unlikely in a column into p-values by the same validation rows, in the same way.
holes     With cells hidden, how many valid rows are accepted, by how many are hidden; and the error of filled-in numbers,
          beside column means and scikit-learn's IterativeImputer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as Printed
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # what makes the next import work
from sklearn.impute import IterativeImputer
from sklearn.metrics import average_precision_score

from service.data.columns import CategoryColumn
from service.files.tables import read_table
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import ExplainedScores
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.recipe import TABLE_FIT, Recipe
from service.training.train import train_table
from service.validity.column_ranks import ColumnSketch

TABLES = {"adult": "mixed/adult.csv", "wine": "mixed/wine_quality.csv"}
SPOILT_SHARE, HIDDEN_SHARE = 0.05, 0.3
BINS = 50  # of a marginal
Unlikely = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows to log p of cells, and what belongs there


@dataclass(frozen=True)
class Data:
    """Rows as the model reads them, with no cell missing but their own: to fit baselines to, to calibrate, to test."""

    scorer: Scorer
    train: np.ndarray
    calibration: np.ndarray
    test: np.ndarray

    @property
    def is_category(self) -> list[bool]:
        """Which columns have values without a distance."""
        columns = self.scorer.model.input.transform.columns  # type: ignore[union-attr]  # a table's
        return [isinstance(column, CategoryColumn) and column.kind != "ordinal" for column in columns]


def prepared(name: str, folder: Path, store: Path, rows: int, seed: int = 0) -> Data:
    """A model of four fifths of the table, and the others."""
    table = read_table(folder / TABLES[name])
    order = np.random.default_rng(seed).permutation(len(table))
    held = len(order) // 5
    known = table.select(np.sort(order[held:]))
    store.mkdir(parents=True, exist_ok=True)
    if name not in Store(store).names():
        trained = train_table(known, Recipe(prior="auto", fit=TABLE_FIT))
        Store(store).publish(name, replace(trained.draft, description="for a benchmark"))
    scorer = load_scorer(Store(store), name, "cpu")
    spec = scorer.model.input
    test = spec.rows(spec.array(table.select(order[:held])))
    fitted = spec.rows(spec.array(known))
    fitted = np.random.default_rng(seed).permutation(fitted)
    return Data(scorer, fitted[1000:], fitted[:1000], test[~np.isnan(test).any(axis=1)][:rows])


# Spoiling


def spoilt(rows: np.ndarray, data: Data, mask: np.ndarray, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows with the cells of a mask spoilt, and which really are other than before; (B, D) both."""
    generator = np.random.default_rng(seed)
    columns = data.scorer.model.input.transform.columns  # type: ignore[union-attr]
    changed = rows.copy()
    spread = np.nanstd(data.train.astype(np.float64), axis=0)
    for row, column in np.argwhere(mask):
        value, kind = rows[row, column], columns[column]
        swapped = generator.choice(data.train[:, column])
        if isinstance(kind, CategoryColumn):
            unseen = len(kind.values) if kind.is_text else 1e6
            choices = [swapped, unseen]
        else:
            choices = [swapped, 10 * value, value + 5 * spread[column]]
        changed[row, column] = generator.choice(np.array(choices))
    changed = np.where(np.isnan(changed), rows, changed).astype(rows.dtype)
    return changed, changed != rows


def one_each(shape: tuple[int, int], seed: int = 2) -> np.ndarray:
    """A mask with one cell in each row."""
    mask = np.zeros(shape, dtype=bool)
    mask[np.arange(shape[0]), np.random.default_rng(seed).integers(shape[1], size=shape[0])] = True
    return mask


# Who says what of cells


def by_vouch(data: Data) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """p-values and distances from the median by the model, and what it expects."""

    def judged(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores = data.scorer.score(rows, ScoreOptions(explain=rows.shape[1]))
        assert isinstance(scores, ExplainedScores)
        order = np.argsort(scores.columns, axis=1)

        def in_order(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, order, axis=1)

        short = data.scorer.column_sketch().median - in_order(scores.column_log_likelihood)
        return in_order(scores.column_p_value), short, in_order(scores.expected)

    return judged


def calibrated(unlikely: Unlikely, data: Data) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same by log probabilities of cells, through the same kind of p-values."""
    known, _ = unlikely(data.calibration)
    sketch = ColumnSketch.fit(known, np.zeros(known.shape[1]))

    def judged(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log_p, repair = unlikely(rows)
        return sketch.p_values(log_p), sketch.median - log_p, repair

    return judged


def marginals(data: Data) -> Unlikely:
    """Each column alone: shares of its values, or of its quantile bins per width."""

    def unlikely(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_p, repair = np.zeros(rows.shape), np.zeros(rows.shape)
        for column, is_category in enumerate(data.is_category):
            known = data.train[:, column][~np.isnan(data.train[:, column])]
            values, counts = np.unique(known, return_counts=True)
            if is_category or len(values) <= BINS:
                shares = dict(zip(values.tolist(), (counts / (len(known) + 1)).tolist(), strict=True))
                log_p[:, column] = [
                    np.log(shares.get(value, 1 / (len(known) + 1))) for value in rows[:, column].tolist()
                ]
            else:
                edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)))
                mass, _ = np.histogram(known, edges)
                density = (mass + 1e-3) / len(known) / np.diff(edges)
                place = np.clip(np.searchsorted(edges, rows[:, column], side="right") - 1, 0, len(density) - 1)
                beyond = np.maximum(np.maximum(edges[0] - rows[:, column], rows[:, column] - edges[-1]), 0)
                log_p[:, column] = np.log(density[place]) - beyond / known.std()
            repair[:, column] = values[counts.argmax()] if is_category else np.median(known)
        return log_p, repair

    return unlikely


def boosted(data: Data) -> Unlikely:
    """A gradient-boosted predictor of each column from all others; numbers have normal residuals."""
    predictors, spreads = [], []
    for column, is_category in enumerate(data.is_category):
        there = ~np.isnan(data.train[:, column])
        others, target = np.delete(data.train[there], column, axis=1), data.train[there, column]
        kind = HistGradientBoostingClassifier if is_category else HistGradientBoostingRegressor
        predictors.append(kind(random_state=0).fit(others, target))
        known = data.calibration[~np.isnan(data.calibration[:, column])]
        guess = predictors[-1].predict(np.delete(known, column, axis=1))
        spreads.append(1.0 if is_category else max(float(np.std(known[:, column] - guess)), 1e-9))

    def unlikely(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_p, repair = np.zeros(rows.shape), np.zeros(rows.shape)
        for column, (predictor, is_category) in enumerate(zip(predictors, data.is_category, strict=True)):
            others, cells = np.delete(rows, column, axis=1), rows[:, column]
            repair[:, column] = predictor.predict(others)
            if not is_category:
                log_p[:, column] = -0.5 * ((cells - repair[:, column]) / spreads[column]) ** 2
                continue
            floor = 1 / (len(data.train) + 1)
            classes = predictor.classes_.tolist()
            probabilities = np.maximum(predictor.predict_proba(others), floor)
            log_p[:, column] = [
                np.log(probabilities[row, classes.index(cell)] if cell in classes else floor)
                for row, cell in enumerate(cells.tolist())
            ]
        return log_p, repair

    return unlikely


def blame(name: str, data: Data, console: Console) -> None:
    """The table of blame."""
    several, is_spoilt = spoilt(data.test, data, np.random.default_rng(0).random(data.test.shape) < SPOILT_SHARE)
    single, is_single = spoilt(data.test, data, one_each(data.test.shape))
    rows = is_single.any(axis=1)
    table = Printed(
        "", "average precision", "blamed first", "numbers: error / sd", "categories: error", "seconds", box=box.MARKDOWN
    )
    console.print(f"{name}: {int(is_spoilt.sum())} of {is_spoilt.size} cells spoilt; {int(rows.sum())} rows with one\n")
    spread = np.nanstd(data.train.astype(np.float64), axis=0)
    categories = np.array(data.is_category)
    for label, make in (
        ("Vouch", by_vouch),
        ("marginals", lambda data: calibrated(marginals(data), data)),
        ("boosted", lambda data: calibrated(boosted(data), data)),
    ):
        start = time.perf_counter()
        judged = make(data)
        p_values, short, _ = judged(several)
        order = np.lexsort((-short.ravel(), p_values.ravel()))
        rank = np.empty(len(order))
        rank[order] = -np.arange(len(order))
        precision = average_precision_score(is_spoilt.ravel(), rank)
        p_values, short, repair = judged(single)
        first = np.lexsort((-short, p_values), axis=1)[:, 0]
        top = is_single[np.arange(len(first)), first][rows].mean()
        cells = np.argwhere(is_single)
        errors = np.array(
            [
                float(repair[row, column] != data.test[row, column])
                if categories[column]
                else abs(repair[row, column] - data.test[row, column]) / spread[column]
                for row, column in cells
            ]
        )
        in_category = categories[cells[:, 1]]
        table.add_row(
            label,
            f"{precision:.4f}",
            f"{top:.4f}",
            f"{errors[~in_category].mean():.4f}",
            f"{errors[in_category].mean():.4f}" if in_category.any() else "",
            f"{time.perf_counter() - start:.0f}",
        )
    console.print(table)


def missing_cells(name: str, data: Data, console: Console, patterns: int) -> None:
    """The tables of acceptance and of filled-in numbers."""
    scorer, rows = data.scorer, data.test
    generator = np.random.default_rng(3)
    width = rows.shape[1]
    table = Printed("cells hidden", "rows", "accepted", "standard error", box=box.MARKDOWN)
    console.print(f"\n{name}: valid rows accepted, in per cent\n")
    complete = (scorer.score(rows).sides == 0).mean()
    table.add_row("0", str(len(rows)), f"{100 * complete:.1f}", f"{50 / np.sqrt(len(rows)):.1f}")
    usual = sorted({max(1, round(share * HIDDEN_SHARE * width)) for share in (0.25, 0.5, 1.0, 1.5)})
    for number in usual:
        accepted, beside = [], []
        for _ in range(patterns):
            incomplete = rows.copy()
            incomplete[:, generator.choice(width, number, replace=False)] = np.nan
            accepted.append((scorer.score(incomplete).sides == 0).mean())
            beside.append(len(scorer.patterns.reference_rows(np.isnan(incomplete[0]))))
        error = 50 * np.sqrt(1 / len(rows) + np.mean(1 / np.array(beside)) / patterns)
        table.add_row(str(number), f"{patterns} x {len(rows)}", f"{100 * np.mean(accepted):.1f}", f"{error:.1f}")
    console.print(table)
    hidden = generator.random(rows.shape) < HIDDEN_SHARE
    incomplete = np.where(hidden, rows.dtype.type(np.nan), rows)
    numeric = np.flatnonzero(~np.array(data.is_category))
    center, spread = np.nanmean(data.train[:, numeric], axis=0), np.nanstd(data.train[:, numeric], axis=0)
    truth = (rows[:, numeric] - center) / spread
    chained = IterativeImputer(random_state=0).fit((data.train[:, numeric] - center) / spread)
    filled = {
        "column means": np.zeros_like(truth),
        "IterativeImputer": chained.transform((incomplete[:, numeric] - center) / spread),
        "Vouch": (scorer.reconstruct(incomplete).mean[:, numeric] - center) / spread,
    }
    table = Printed("filled in by", "root mean square error / sd", "mean absolute error / sd", box=box.MARKDOWN)
    console.print(f"\n{name}: numbers, {100 * HIDDEN_SHARE:.0f} % of all cells hidden, {len(rows)} rows\n")
    for label, values in filled.items():
        error = (values - truth)[hidden[:, numeric]]
        table.add_row(label, f"{np.sqrt((error**2).mean()):.4f}", f"{np.abs(error).mean():.4f}")
    console.print(table)


def main() -> None:
    """Train what is not in the store, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", type=Path, default=None, help="where models are kept for another run")
    parser.add_argument("--only", choices=list(TABLES), action="append")
    parser.add_argument("--rows", type=int, default=1000, help="held-out rows")
    parser.add_argument("--patterns", type=int, default=4, help="of each number of hidden cells")
    parser.add_argument("--part", choices=["blame", "holes"], action="append")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or TABLES:
            if not (options.data / TABLES[name]).exists():
                sys.exit(f"{options.data / TABLES[name]}: not there")
            data = prepared(name, options.data, options.store or Path(folder), options.rows)
            if "blame" in (options.part or ["blame"]):
                blame(name, data, console)
            if "holes" in (options.part or ["holes"]):
                missing_cells(name, data, console, options.patterns)


if __name__ == "__main__":
    main()
