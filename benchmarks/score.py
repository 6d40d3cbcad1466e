"""How fast a model weighs draws, beside the bare matrix products of its decoder, and scores, timed in turn in one run.

    python benchmarks/score.py --model mnist

The floor is torch.mm into a buffer, for each of the decoder's layers, on tiles of the scorer's own shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from service import load
from service.density.block import WeightedDraws
from service.density.estimate import weighted_draws
from service.density.proposals import Diagonal
from service.density.quasirandom import row_points
from service.density.tiling import Tiling
from service.scoring.scorer import Scorer

SAMPLES = 1024


def main(
    model: Annotated[str, typer.Option(help="NAME, NAME@VERSION or NAME@ALIAS")] = "mnist",
    store: Annotated[Path, typer.Option(help="the model store")] = Path("model_store"),
    rows: Annotated[int, typer.Option(help="rows of a batch")] = 64,
    rounds: Annotated[int, typer.Option(help="rounds; each times every path once")] = 15,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
) -> None:
    """Print rows per second, microseconds per decoder evaluation, and the ratio to the floor."""
    torch.set_num_threads(threads)
    scorer = load(model, store, "cpu", threads)
    batch = scorer.sample(rows, seed=1).samples
    evaluations = rows * SAMPLES
    paths: dict[str, Callable[[], object]] = {
        "bare products": bare_products(scorer, evaluations),
        "draws": lambda: list(weighed(scorer, batch)),
        "naive": lambda: naive(scorer, batch),
        "score": lambda: scorer.score(batch),
    }
    times: dict[str, list[float]] = {name: [] for name in paths}
    with torch.inference_mode():
        for run in paths.values():
            run()
        for _ in range(rounds):
            for name, run in paths.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    print(
        f"{scorer.published.reference}, {rows} rows x {SAMPLES} draws, {threads} thread(s); a score takes what it needs"
    )
    print(f"{'path':<14} {'rows/s':>9} {'us/evaluation':>14} {'x bare (median of rounds; min to max)':>40}")
    floor = np.array(times["bare products"])
    for name in paths:
        seconds = np.array(times[name])
        ratios = seconds / floor
        middle = float(np.median(seconds))
        spread = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        print(f"{name:<14} {rows / middle:>9.0f} {1e6 * middle / evaluations:>14.2f} {spread:>40}")


def bare_products(scorer: Scorer, evaluations: int) -> Callable[[], None]:
    """The decoder's matrix products alone, tile by tile into buffers."""
    tile = Tiling.of(scorer.model.vae).evaluations
    weights = [p.detach().mT for n, p in scorer.model.vae.decoder.named_parameters() if n.endswith("weight")]
    inputs = [torch.randn(tile, weight.shape[0]) for weight in weights]
    outputs = [torch.empty(tile, weight.shape[1]) for weight in weights]

    def run() -> None:
        for _ in range(-(-evaluations // tile)):
            for x, weight, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(x, weight, out=out)

    return run


def naive(scorer: Scorer, batch: np.ndarray) -> torch.Tensor:
    """The plain way: all draws at once through the decoder, softplus column by column."""
    model = scorer.model
    x = torch.from_numpy(model.input.encode(model.input.rows(batch)))
    points = row_points(x.numpy(), 0, scorer.latents, 0, SAMPLES, x.device)
    vae, proposal = model.vae, Diagonal(model.vae.posterior(x))
    z = proposal.sample(points).to(vae.dtype)
    log_conditional = vae.likelihood.log_prob(vae.decoder(z), x).sum(dim=-1, dtype=torch.float64)
    return log_conditional + vae.prior.log_prob(z.double()) - proposal.log_prob(z)


def weighed(scorer: Scorer, batch: np.ndarray) -> Iterator[WeightedDraws]:
    """The scorer's own draws, search for modes included."""
    model = scorer.model
    return weighted_draws(model.estimator, model.members[0], model.input.encode(model.input.rows(batch)), SAMPLES)


if __name__ == "__main__":
    typer.run(main)
