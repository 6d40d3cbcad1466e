"""What the bundled models say of digits that they have not seen, and of images that are no digits.

    python scripts/evaluate.py --data ../shared/data

For `mnist`: the share of the test digits inside the band and how uniform their p-values are, the same for a second split of
training images that was held back from everything, and the invalid images that are caught. For `mnist-2d`: log p(x) beside
an integral over a dense grid.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from mnist import DATA, Mnist, load_mnist
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from service import load
from service.cli.console import fail_in_one_line
from service.density.block import Estimates
from service.density.estimate import Execution
from service.density.estimator import Estimator, SearchName
from service.density.search import EVERY_AXIS
from service.density.tiling import Workers, worker_pool
from service.files.readers import read
from service.scoring.model import Model
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores

GRID_POINTS, GRID_REACH = 900, 5.0


@fail_in_one_line
def main(
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz and fashion_mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="the model store")] = Path("model_store"),
    invalid: Annotated[int, typer.Option(help="images of each invalid kind")] = 1000,
    grid_rows: Annotated[int, typer.Option(help="test digits to integrate for mnist-2d")] = 200,
    verdicts: Annotated[int, typer.Option(help="test digits whose verdicts are compared")] = 2000,
    threads: Annotated[int, typer.Option(help="torch threads")] = 2,
) -> None:
    """Print the figures that the README quotes."""
    torch.set_num_threads(threads)
    images = load_mnist(data)
    fashion = read(data / "fashion_mnist.npz", "x_test").array
    judge_digits(load("mnist", store, "cpu"), images, fashion, invalid)
    compare_verdicts(load("mnist", store, "cpu"), images.test[:verdicts], worker_pool(threads))
    judge_integral(load("mnist-2d", store, "cpu"), images.test, grid_rows)


def judge_digits(scorer: Scorer, images: Mnist, fashion: np.ndarray, count: int) -> None:
    """Verdicts of one model on valid and invalid images."""
    start = time.monotonic()
    test, audit = scorer.score(images.test), scorer.score(images.audit)
    print(f"{scorer.published.reference}: {scorer.model.estimator.setting}, band {scorer.band.percentiles}")
    for name, scores in (("test digits", test), ("held-back digits", audit)):
        print(
            f"  {name:<17} {len(scores):>6,} rows: {100 * (scores.sides == 0).mean():5.1f} % inside the band, "
            f"KS distance of p_value from uniform {kstest(scores.p_value, 'uniform').statistic:.4f}, "
            f"log p(x) {scores.log_likelihood.mean():7.2f}, "
            f"certain {100 * scores.certain.mean():.1f} %, {scores.num_samples.mean():.0f} samples"
        )
    columns = f"{'below':>7} {'above':>7} {'invalid':>8} {'AUROC of -log p(x)':>19} {'of 1 - p_value':>15}"
    print(f"  {'invalid images':<17} {columns}")
    for name, pictures in invalid_images(images.test, fashion, count).items():
        scores = scorer.score(pictures)
        below, above = 100 * (scores.sides < 0).mean(), 100 * (scores.sides > 0).mean()
        print(
            f"  {name:<17} {below:>5.1f} % {above:>5.1f} % {below + above:>6.1f} % "
            f"{auroc(-test.log_likelihood, -scores.log_likelihood):>19.4f} {auroc(-test.p_value, -scores.p_value):>15.4f}"
        )
    rows = 2 * len(test) + 5 * count
    print(f"  {rows:,} rows in {time.monotonic() - start:.0f} s")


def invalid_images(test: np.ndarray, fashion: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Images that are no valid digits."""
    generator = np.random.default_rng(0)
    digits = test[generator.permutation(len(test))[:count]]
    shuffled = generator.permuted(digits.reshape(len(digits), -1), axis=1).reshape(digits.shape)
    return {
        "Fashion-MNIST": fashion[:count],
        "inverted digits": 255 - digits,
        "noise": generator.integers(0, 256, size=digits.shape, dtype=np.uint8),
        "shuffled pixels": shuffled,
        "blank": np.zeros_like(digits),
    }


def auroc(valid: np.ndarray, invalid: np.ndarray) -> float:
    """How often an invalid image has the higher number."""
    labels = np.repeat([0, 1], [len(valid), len(invalid)])
    return float(roc_auc_score(labels, np.concatenate([valid, invalid])))


def compare_verdicts(scorer: Scorer, digits: np.ndarray, pool: Workers | None = None) -> None:
    """What verdicts cost, and how often they differ with another seed, and from those of far more draws."""
    model, band = scorer.model, scorer.band
    rows, ends, execution = model.input.rows(digits), (band.low, band.high), Execution(pool)
    first = model.estimates(rows, ends, execution)
    other = replace(model, estimator=replace(model.estimator, seed=9)).estimates(rows, ends, execution)
    thorough = model_estimates(model, replace(Estimator.of("thorough"), seed=31), digits, pool)
    at_512 = band.sides(model_estimates(model, fixed(512), digits, pool).log_likelihood)
    sides, settled = band.sides(first.log_likelihood), band.sides(thorough.log_likelihood)
    print(
        f"Verdicts on {len(rows):,} test digits under `{model.estimator.setting}`: {first.evaluations.mean():.0f} "
        f"evaluations a row (median {np.median(first.evaluations):.0f}), {percent(first.reliable)} reliable; under "
        f"`thorough` {thorough.evaluations.mean():,.0f}, {percent(thorough.reliable)} reliable.\n"
        f"With another seed {percent(sides != band.sides(other.log_likelihood))} of the verdicts differ, from `thorough` "
        f"{percent(sides != settled)}.\n"
        f"Inside the band: {percent(sides == 0)} under stopping, {percent(at_512 == 0)} at a fixed 512 draws, "
        f"{percent(settled == 0)} under `thorough`.",
        flush=True,
    )


def model_estimates(model: Model, estimator: Estimator, rows: np.ndarray, pool: Workers | None = None) -> Estimates:
    """Estimates of a model's rows by another estimator."""
    own = model.estimator
    estimator = replace(estimator, typical_error=own.typical_error, typical_decay=own.typical_decay)
    return replace(model, estimator=estimator).estimates(model.input.rows(rows), execution=Execution(pool))


def fixed(samples: int, search: SearchName = "narrow", seed: int = 0) -> Estimator:
    """An estimator that draws so many samples and no more."""
    return Estimator(
        "fast",
        first_samples=samples,
        max_samples=samples,
        search=search,
        probed_axes=EVERY_AXIS,
        anneal=False,
        seed=seed,
    )


def percent(chosen: np.ndarray) -> str:
    """The share of True."""
    return f"{100 * chosen.mean():.2f} %"


def judge_integral(scorer: Scorer, test: np.ndarray, count: int) -> None:
    """log p(x) of a model with two latents against a dense grid."""
    digits = test[np.random.default_rng(0).permutation(len(test))[:count]]
    scores = scorer.score(digits)
    exact, coarse = (grid_log_likelihood(scorer, digits, points) for points in (GRID_POINTS, 2 * GRID_POINTS // 3))
    error = scores.log_likelihood - exact
    wrong = np.abs(error) > 4 * scores.std_error
    print(
        f"{scorer.published.reference}: {count} test digits against a grid of {GRID_POINTS} x {GRID_POINTS} points "
        f"(a coarser grid differs by at most {np.abs(exact - coarse).max():.1e} nats):\n"
        f"  {(~scores.reliable).sum()} say reliable: false; of the others {(wrong & scores.reliable).sum()} are more than "
        f"4 standard errors off; RMSE {math.sqrt((error**2).mean()):.3f} nats, of the reliable ones "
        f"{math.sqrt((error[scores.reliable] ** 2).mean()):.3f}"
    )
    show_worst(scores, error)


def show_worst(scores: Scores, error: np.ndarray) -> None:
    """The largest errors in standard errors, of reliable rows."""
    ratio = np.where(scores.reliable, np.abs(error) / scores.std_error, 0.0)
    print(
        "  largest errors of reliable rows, in standard errors: "
        + ", ".join(f"{r:.1f}" for r in np.sort(ratio)[:-6:-1])
    )


def grid_log_likelihood(scorer: Scorer, rows: np.ndarray, points: int) -> np.ndarray:
    """log of the integral of p(x | z) p(z) over a grid, shape (B,), a line of the grid at a time."""
    vae = scorer.model.vae
    x = torch.from_numpy(scorer.model.input.encode(scorer.rows(rows)))
    axis = torch.linspace(-GRID_REACH, GRID_REACH, points)
    lines = []
    with torch.inference_mode():
        for first in axis:
            z = torch.stack([first.expand(points), axis], dim=1)
            logits = vae.decoder(z)
            given = logits @ x.mT - torch.nn.functional.softplus(logits).sum(dim=-1, keepdim=True)  # (points, B)
            lines.append((given.double() + vae.prior.log_prob(z.double())[:, None]).logsumexp(dim=0))
    cell = 2 * math.log(2 * GRID_REACH / (points - 1))
    return (torch.stack(lines).logsumexp(dim=0) + cell).numpy()


if __name__ == "__main__":
    typer.run(main)
