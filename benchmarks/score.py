"""What a score costs, beside its arithmetic: bulk, one row alone, and a new pattern of missing cells; one thread.

    python benchmarks/score.py                                 # today's tree
    python benchmarks/score.py --against ../before             # and another one, each in a process of its own, in turn
    python benchmarks/score.py --against ../before --case adult-1 --case mnist-1

Times are CPU seconds. A case's floor is what its decoder evaluations take as bare products (torch.mm into a buffer, on the
scorer's own tiles), and at the pace of one large product (fp32 peak), measured in the same run. Operations are top-level
aten calls, as torch's profiler counts them. Models of tables are trained first, if they are not there yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "build" / "score_models"
BUNDLED = ROOT / "model_store"
LARGE = 1024  # rows and columns of the product that counts as the peak
FITTED = 4000  # rows that the peers are fitted to


@dataclass(frozen=True)
class Case:
    """Rows scored in one call: `holed` columns are missing, each call in another pattern if `is_new`."""

    model: str
    rows: int
    options: dict[str, Any]
    holed: int = 0
    is_new: bool = False
    calls: int = 1  # in a round


ALARM = {"false_alarm": 0.01}
CASES = {
    "mnist-64": Case("mnist", 64, {}),
    "mnist-1": Case("mnist", 1, {}, calls=5),
    "adult-64": Case("adult", 64, {}),
    "adult-1": Case("adult", 1, {}, calls=5),
    "columns10-2048": Case("columns10", 2048, {}),
    "columns30-2048": Case("columns30", 2048, {}),
    "columns30-1": Case("columns30", 1, {}, calls=5),
    "adult-64-combined": Case("adult", 64, {"rule": "combined", **ALARM}),
    "adult-64-holed": Case("adult", 64, ALARM, holed=2),
    "adult-pattern": Case("adult", 1, ALARM, holed=2, is_new=True),
    "adult-pattern-combined": Case("adult", 1, {"rule": "combined", **ALARM}, holed=2, is_new=True),
    "adult-pattern-explain": Case("adult", 1, {"explain": 3, **ALARM}, holed=2, is_new=True),
    "columns20-pattern": Case("columns20", 1, ALARM, holed=2, is_new=True),
}
SMALL = ("--epochs", "25", "--hidden")
TABLES = {
    "columns10": (10, 6000, (*SMALL, "64,64")),
    "columns20": (20, 1200, ()),
    "columns30": (30, 6000, (*SMALL, "100,100")),
}


def main(
    case: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(CASES)}; default: all")] = None,
    against: Annotated[Path | None, typer.Option(help="another checkout, such as a git worktree")] = None,
    rounds: Annotated[int, typer.Option(help="rounds; each runs every tree once")] = 5,
    peers: Annotated[bool, typer.Option(help="PyOD's KNN and IForest on the same rows; needs the extra bench")] = False,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print a line for each case."""
    torch.set_num_threads(1)
    if worker:
        serve()
        return
    for name in case or CASES:
        train_missing(CASES[name].model)
    trees = {"today": ROOT} | ({"before": against.resolve()} if against else {})
    workers = {name: Worker(tree) for name, tree in trees.items()}
    floor = Floor()
    heads = ["case", *(f"{name}: ms a row" for name in trees), *(["before : today"] if against else [])]
    heads += ["evaluations a row", "x bare products", "x fp32 peak", "operations a row"]
    heads += ["operations before"] if against else []
    print(f"fp32 peak: {floor.peak / 1e9:.0f} GFLOP/s, from a product of {LARGE} x {LARGE} by {LARGE}")
    print(f"\n| {' | '.join(heads)} |\n|---|{'--:|' * (len(heads) - 1)}", flush=True)
    for name in case or CASES:
        one = CASES[name]
        told = {tree: each.ask("begin", name) for tree, each in workers.items()}
        times: dict[str, list[float]] = {tree: [] for tree in trees}
        for _ in range(rounds):
            for tree, each in workers.items():
                times[tree].append(each.ask("run", name)["seconds"] / one.rows / one.calls)
        today, evaluations = float(np.median(times["today"])), told["today"]["evaluations"]
        bare, peak = floor.seconds(one.model)
        cells = [name, *(f"{1e3 * np.median(each):.3g}" for each in times.values())]
        if against:
            ratios = np.array(times["before"]) / np.array(times["today"])
            cells.append(f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
        cells += [f"{evaluations:.0f}", f"{today / evaluations / bare:.1f}", f"{today / evaluations / peak:.1f}"]
        cells += [f"{told[tree]['operations']:.0f}" for tree in trees]
        print(f"| {' | '.join(cells)} |", flush=True)
    if peers:
        print_peers([name for name in case or CASES if not CASES[name].holed and not CASES[name].options])
    for each in workers.values():
        each.close()


# A process for each tree


class Worker:
    """This script in a process of its own, with the code of some checkout."""

    def __init__(self, tree: Path) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        environment = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment
        )

    def ask(self, verb: str, case: str) -> dict[str, float]:
        """`begin` a case, or `run` one round of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{verb} {case}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{case}: the process of a tree ended")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Answer a Worker's lines."""
    running: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        verb, name = line.split()
        if verb == "begin":
            running[name] = call_of(CASES[name])
            scores = running[name]()  # warm
            answer = {"evaluations": float(np.mean(scores.evaluations)), "operations": operations(running[name])}
            answer["operations"] /= CASES[name].rows
        else:
            start = time.process_time()
            for _ in range(CASES[name].calls):
                running[name]()
            answer = {"seconds": time.process_time() - start}
        print(json.dumps(answer), flush=True)


def call_of(case: Case) -> Callable[[], Any]:
    """One call of a case."""
    from service import load
    from service.scoring.options import ScoreOptions

    scorer = load(case.model, store_of(case.model), "cpu", 1)
    rows, options = scorer.sample(case.rows, seed=1).samples, ScoreOptions(**case.options)
    generator = np.random.default_rng(0)

    def call() -> Any:
        some = rows.copy()
        if case.holed:
            some[:, generator.choice(rows.shape[1], case.holed, replace=False) if case.is_new else [0, 3]] = np.nan
        if case.is_new:
            scorer.patterns.known.clear()
        return scorer.score(some, options)

    return call


def operations(call: Callable[[], Any]) -> float:
    """Top-level aten calls."""
    with torch.autograd.profiler.profile() as profile:
        call()
    return sum(event.cpu_parent is None and event.name.startswith("aten::") for event in profile.function_events)


# The floor


class Floor:
    """The pace of bare products, and of one large product: seconds of a decoder evaluation."""

    def __init__(self) -> None:
        x, out = torch.randn(LARGE, LARGE), torch.empty(LARGE, LARGE)
        self.peak = 2 * LARGE**3 / fastest(lambda: torch.mm(x, x, out=out))

    def seconds(self, model: str) -> tuple[float, float]:
        """Of one decoder evaluation of a model: as bare products on tiles of the scorer's size, and at the peak."""
        from service import load
        from service.density.tiling import Tiling

        vae = load(model, store_of(model), "cpu", 1).model.vae
        tile = Tiling.of(vae).evaluations
        weights = [p.detach().mT for name, p in vae.decoder.named_parameters() if name.endswith("weight")]
        layers = [(torch.randn(tile, one.shape[0]), one, torch.empty(tile, one.shape[1])) for one in weights]

        def run() -> None:
            for x, weight, out in layers:
                torch.mm(x, weight, out=out)

        return fastest(run) / tile, 2 * vae.evaluation_size / self.peak


def fastest(run: Callable[[], object], times: int = 20) -> float:
    """The least CPU seconds of a run."""
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


# Models of tables, and others that score them


def store_of(model: str) -> Path:
    return STORE if model in TABLES else BUNDLED


def gaussian_rows(columns: int, rows: int) -> np.ndarray:
    """Normal columns that depend on each other through a third as many factors."""
    generator = np.random.default_rng(columns)
    factors = max(2, columns // 3)
    loadings = generator.standard_normal((factors, columns))
    return generator.standard_normal((rows, factors)) @ loadings + 0.5 * generator.standard_normal((rows, columns))


def train_missing(model: str) -> None:
    """Train a model of a table as users do, if it is not there."""
    if model not in TABLES or (STORE / model).exists():
        return
    columns, rows, options = TABLES[model]
    STORE.mkdir(parents=True, exist_ok=True)
    file = STORE.parent / f"{model}.csv"
    header = ",".join(f"c{number}" for number in range(columns))
    np.savetxt(file, gaussian_rows(columns, rows), fmt="%.6f", delimiter=",", header=header, comments="")
    command = [str(Path(sys.executable).parent / "vouch"), "train", str(file), "--name", model, "--store", str(STORE)]
    subprocess.run([*command, *options], check=True)


def print_peers(cases: list[str]) -> None:
    """Milliseconds a row of PyOD's detectors, which promise nothing of their scores, on the same rows."""
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN

    from service import load

    print("\n| case | KNN: ms a row | IForest: ms a row |\n|---|--:|--:|")
    for name in cases:
        case = CASES[name]
        scorer = load(case.model, store_of(case.model), "cpu", 1)
        known = scorer.sample(FITTED, seed=2).samples
        rows = scorer.sample(case.rows, seed=1).samples
        found = []
        for detector in (KNN(), IForest(n_jobs=1, random_state=0)):
            detector.fit(known)
            found.append(fastest(partial(detector.decision_function, rows), 5) / case.rows)
        print(f"| {name} | {1e3 * found[0]:.3g} | {1e3 * found[1]:.3g} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
