"""Detection on 22 sets of ADBench and 40 of OddBench, one-class: VAEDetector beside others, all at their defaults.

    python benchmarks/adbench.py --data FOLDER --out results.jsonl             run what is not in the file yet
    python benchmarks/adbench.py --part oddbench --seeds 1 --out odd.jsonl     the other part
    python benchmarks/adbench.py --out results.jsonl --report                  print the tables

Of ADBench a detector is fitted to a random half of the normal rows and ranks the other half among all anomalies; at most
10,000 rows of each. OddBench comes split. Labels are looked at by the measures alone. Each run of a detector on a set with
a seed is a line of the file, so that a run that was ended goes on. PyOD's detectors see rows as they are; those that are
named "standardised" see columns with mean 0 and standard deviation 1, as ours does.
Needs the extra: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

MOST = 10_000  # rows of a kind
MEASURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "caught": "Caught at 1 % false alarms",
    "fit_s": "Seconds to fit",
    "score_s": "Seconds to score",
}
ALARMS = 0.01
Scoring = Callable[[np.ndarray], np.ndarray]  # rows to how strange they are


@dataclass(frozen=True)
class Result:
    """One detector on one set with one seed."""

    name: str
    data: str
    seed: int
    auroc: float
    auprc: float
    fit_s: float
    score_s: float
    caught: float = float("nan")
    valid: int = 0  # test rows


@dataclass(frozen=True)
class Split:
    """Normal rows to fit to, and rows to rank with their labels, 1 for an anomaly."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray

    @staticmethod
    def of(path: Path, seed: int) -> Split:
        """The seed's split of a set, or the one that it comes with."""
        stored = np.load(path)
        if "train" in stored:
            return Split(stored["train"].astype(np.float64), stored["test"].astype(np.float64), stored["y"])
        rows, labels = stored["X"].astype(np.float64), stored["y"]
        generator = np.random.default_rng(seed)
        normal, strange = (generator.permutation(np.flatnonzero(labels == label)) for label in (0, 1))
        half = len(normal) // 2
        others, strange = normal[half:][:MOST], strange[:MOST]
        truth = np.repeat([0, 1], [len(others), len(strange)])
        return Split(rows[normal[:half][:MOST]], rows[np.concatenate([others, strange])], truth)


def vouch(train: np.ndarray, seed: int) -> dict[str, Scoring]:
    """Ours: the less likely the stranger, and by all statistics; both of one fit."""
    from service.detector import VAEDetector

    detector = VAEDetector(random_state=seed, rule="combined").fit(train)
    likely = copy.copy(detector).set_params(rule="log_likelihood")
    return {
        "Vouch": lambda rows: -likely.score_samples(rows),
        "Vouch combined": lambda rows: -detector.score_samples(rows),
    }


def pyod(module: str, name: str) -> Callable[[np.ndarray, int], dict[str, Scoring]]:
    """One of PyOD's."""

    def fitted(train: np.ndarray, seed: int) -> dict[str, Scoring]:
        kind = getattr(__import__(f"pyod.models.{module}", fromlist=[name]), name)
        torch.manual_seed(seed)
        options = {"n_features": train.shape[1]} if name == "DeepSVDD" else {}
        if "random_state" in kind.__init__.__code__.co_varnames:
            options["random_state"] = seed
        detector = kind(**options).fit(train)
        return {name: lambda rows: np.asarray(detector.decision_function(rows))}

    return fitted


def standardised(
    detector: Callable[[np.ndarray, int], dict[str, Scoring]], label: str
) -> Callable[[np.ndarray, int], dict[str, Scoring]]:
    """A detector of columns with mean 0 and standard deviation 1, by the rows that it is fitted to."""

    def fitted(train: np.ndarray, seed: int) -> dict[str, Scoring]:
        center, spread = train.mean(axis=0), train.std(axis=0)
        spread[spread == 0] = 1.0
        (scoring,) = detector((train - center) / spread, seed).values()
        return {label: lambda rows: scoring((rows - center) / spread)}

    return fitted


def mean_of_five(train: np.ndarray, seed: int) -> dict[str, Scoring]:
    """The mean distance to the five nearest rows: DTE-NP (Livernoche et al., 2024)."""
    neighbours = NearestNeighbors(n_neighbors=min(5, len(train))).fit(train)
    return {"DTE-NP": lambda rows: neighbours.kneighbors(rows)[0].mean(axis=1)}


DETECTORS: dict[str, Callable[[np.ndarray, int], dict[str, Scoring]]] = {
    "Vouch": vouch,
    "VAE": pyod("vae", "VAE"),
    "AutoEncoder": pyod("auto_encoder", "AutoEncoder"),
    "KNN": pyod("knn", "KNN"),
    "LOF": pyod("lof", "LOF"),
    "IForest": pyod("iforest", "IForest"),
    "ECOD": pyod("ecod", "ECOD"),
    "COPOD": pyod("copod", "COPOD"),
    "OCSVM": pyod("ocsvm", "OCSVM"),
    "PCA": pyod("pca", "PCA"),
    "GMM": pyod("gmm", "GMM"),
    "DeepSVDD": pyod("deep_svdd", "DeepSVDD"),
    "LUNAR": pyod("lunar", "LUNAR"),
    "DTE-NP, standardised": standardised(mean_of_five, "DTE-NP, standardised"),
    "KNN, standardised": standardised(pyod("knn", "KNN"), "KNN, standardised"),
    "LOF, standardised": standardised(pyod("lof", "LOF"), "LOF, standardised"),
    "LUNAR, standardised": standardised(pyod("lunar", "LUNAR"), "LUNAR, standardised"),
    "GMM, standardised": standardised(pyod("gmm", "GMM"), "GMM, standardised"),
}
# Detectors by neighbours: the opponent is the one of them with the best mean, measure by measure.
NEIGHBOURS = [name for name in DETECTORS if name.split(",")[0] in ("KNN", "LOF", "LUNAR", "DTE-NP")]
ENOUGH_VALID = 500  # test rows of a set, for a share at 1 % false alarms

NAMES = ["Vouch combined", *DETECTORS]


def run(name: str, split: Split, data: str, seed: int) -> list[Result]:
    """Fit, rank by each of the detector's rules, measure."""
    start = time.perf_counter()
    rules = DETECTORS[name](split.train, seed)
    fit_s = time.perf_counter() - start
    results = []
    for rule, scoring in rules.items():
        start = time.perf_counter()
        strangeness = np.nan_to_num(scoring(split.test), posinf=1e300, neginf=-1e300)
        score_s = time.perf_counter() - start
        limit = np.quantile(strangeness[split.labels == 0], 1.0 - ALARMS)
        results.append(
            Result(
                rule,
                data,
                seed,
                float(roc_auc_score(split.labels, strangeness)),
                float(average_precision_score(split.labels, strangeness)),
                fit_s,
                score_s,
                float((strangeness[split.labels == 1] > limit).mean()),
                int((split.labels == 0).sum()),
            )
        )
    return results


def results_of(path: Path) -> list[Result]:
    """The lines of a file of results."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def table_of(results: Iterable[Result], measure: str) -> Table:
    """Means over seeds for every set and detector, the best of a set marked, and means over the sets."""
    results = list(results)
    names = [name for name in NAMES if any(result.name == name for result in results)]
    table = Table("set", *names, box=box.MARKDOWN)
    by_set: dict[str, list[float]] = {}
    for data in sorted({result.data for result in results}):
        by_set[data] = [
            float(np.mean([getattr(r, measure) for r in results if (r.name, r.data) == (name, data)] or [np.nan]))
            for name in names
        ]
    best = min if measure.endswith("_s") else max
    for data, values in by_set.items():
        table.add_row(data, *(f"{v:.3f}{' *' if v == best(values) else ''}" for v in values))
    whole = np.array(list(by_set.values()))
    table.add_row("mean", *(f"{value:.4f}" for value in whole.mean(axis=0)))
    if best is max:
        first = whole[:, :1]
        losses = (whole > first + 0.005).sum(axis=0)
        table.add_row(f"above {names[0]} by 0.005 on", *("" if at == 0 else str(n) for at, n in enumerate(losses)))
    return table


def against(results: list[Result], measure: str, ours: str = "Vouch combined") -> str:
    """Ours beside the opponent: the neighbours' detector with the best mean over all sets that both have been run on."""
    some = [one for one in results if measure != "caught" or one.valid >= ENOUGH_VALID]
    own = by_set(some, ours, measure)
    others = {name: by_set(some, name, measure) for name in NEIGHBOURS}
    whole = {name: values for name, values in others.items() if own.keys() <= values.keys()}
    if not own or not whole:
        return ""
    opponent = max(whole, key=lambda name: float(np.mean([whole[name][data] for data in own])))
    gaps = np.array([own[data] - whole[opponent][data] for data in own])
    means = np.mean(list(own.values())), np.mean([whole[opponent][data] for data in own])
    error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float("nan")
    return (
        f"{ours} {means[0]:.4f}, {opponent} {means[1]:.4f}, {MEASURES[measure]}: {gaps.mean():+.4f} +- {error:.4f} over "
        f"{len(gaps)} sets, ratio {means[0] / means[1]:.3f}"
    )


def by_set(results: Iterable[Result], name: str, measure: str) -> dict[str, float]:
    """A detector's mean over the seeds of each set."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in results:
        if one.name == name:
            values[one.data].append(getattr(one, measure))
    return {data: float(np.mean(found)) for data, found in values.items()}


def report(results: list[Result]) -> None:
    """The tables of a file of results."""
    console = Console(width=200)
    for measure, title in MEASURES.items():
        console.print(f"\n{title}\n", table_of(results, measure))
    seeds = sorted({result.seed for result in results})
    for measure in ("auroc", "auprc", "caught"):
        console.print(against(results, measure))
    for name in NAMES:
        means = [
            np.mean([result.auroc for result in results if (result.name, result.seed) == (name, seed)])
            for seed in seeds
            if any((result.name, result.seed) == (name, seed) for result in results)
        ]
        if means:
            console.print(f"{name}: mean AUROC by seed {', '.join(f'{mean:.4f}' for mean in means)}")


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("adbench.jsonl"))
    parser.add_argument("--part", choices=("adbench", "oddbench"), default="adbench")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a detector, or a set; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        report(results_of(options.out))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    paths = sorted((options.data / options.part).glob("*.npz"), key=lambda path: path.stat().st_size)
    if not paths:
        sys.exit(f"{options.data / options.part}: no sets there")
    wanted = set(options.only or ())
    names = [name for name in DETECTORS if not wanted & set(DETECTORS) or name in wanted]
    sets = [path for path in paths if not wanted - set(DETECTORS) or path.stem in wanted]
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for path in sets:
            split = Split.of(path, seed)
            done = {(result.name, result.data, result.seed) for result in results_of(options.out)}
            for name in names:
                if (name, path.stem, seed) in done:
                    continue
                for result in run(name, split, path.stem, seed):
                    with options.out.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
                    print(
                        f"{path.stem} seed {seed} {result.name}: AUROC {result.auroc:.4f}, AUPRC {result.auprc:.4f}, "
                        f"caught {result.caught:.4f}, fit {result.fit_s:.1f} s, score {result.score_s:.1f} s",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
