"""How right the estimates of log p(x) are, how honest about their error, and what they cost.

    python benchmarks/estimator.py --latents 2 --latents 8 --latents 20 --latents 50

Models with so many latents are trained first where they are not there yet (`train_audited.py`). Every estimate is held
against references on which two methods agree: with two latents an integral over a dense grid at two spacings; with more,
importance sampling with 16,384 draws, and annealed importance sampling from the encoder (which knows nothing of the modes
that the first looks for), itself bounded from both sides on rows that the model made (Wu et al., 2017; Grosse et al.,
2015). Rows on which the two disagree by more than 0.3 nats are counted and left out of the first table. A cost is in
decoder evaluations per row, all searches, Jacobians and looks into the codebook included.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from evaluate import grid_log_likelihood
from mnist import DATA, Mnist, load_mnist
from train_audited import STORE, train_missing

from service.cli import fail_in_one_line
from service.data.readers import read
from service.density.annealing import annealed_log_weights
from service.density.estimator import Estimates, Estimator, differentiable_log_joint, one_thread
from service.density.importance import log_likelihood
from service.density.proposals import Diagonal
from service.density.quasirandom import Points
from service.model import Model
from service.scorer import Scorer, load_scorer
from service.store import Store
from service.vae.network import DiagonalNormal

BUDGETS = {2: (64, 128), 8: (128, 256), 20: (128, 512), 50: (128, 512)}
AGREEMENT = 0.3  # nats between the two methods; the annealing, of few particles, is the rougher one
PARTICLES, TEMPERATURES, LEAPFROGS = 16, 200, 3  # of the annealing
WIDENING = 1.5  # of the encoder's posterior, where the annealing starts


@fail_in_one_line
def main(
    latents: Annotated[list[int], typer.Option(help="numbers of latents")],
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz and fashion_mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="where the audited models are")] = STORE,
    rows: Annotated[int, typer.Option(help="test digits with a reference by sampling")] = 200,
    verdicts: Annotated[int, typer.Option(help="test digits whose verdicts are compared")] = 1000,
) -> None:
    """Print one table for each model."""
    torch.set_num_threads(1)
    images = load_mnist(data)
    train_missing(store, latents, images)
    for number in latents:
        scorer = load_scorer(Store(store), f"mnist-l{number}", "cpu", threads=1)
        chosen = np.random.default_rng(1).permutation(len(images.test))[: 1000 if number == 2 else rows]
        digits = images.test[chosen]
        print(f"\n## {number} latents\n")
        reference, agreed = references(scorer, digits)
        print(f"\n{agreed.sum()} of {len(digits)} test digits have a reference on which two methods agree.\n")
        budget_table(scorer, digits[agreed], reference[agreed], BUDGETS.get(number, (64, 128, 512)))
        invalid_table(scorer, images, read(data / "fashion_mnist.npz", "x_test").array)
        compare_verdicts(scorer, images.test[:verdicts])
        compare_speed(scorer, images.test[:64])


def references(scorer: Scorer, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) of digits by the sharper of two methods, and where both agree."""
    if scorer.latents == 2:
        fine, coarse = (grid_log_likelihood(scorer, digits, points) for points in (900, 600))
        print(f"Grids of 900 x 900 and 600 x 600 points differ by at most {np.abs(fine - coarse).max():.1e} nats.")
        return fine, np.abs(fine - coarse) < AGREEMENT
    model = scorer.model
    heavy = replace(Estimator.of("thorough"), first_samples=16384, anneal=False, starts=2, seed=77)
    sampled = model_estimates(model, heavy, digits).log_likelihood
    made = scorer.sample(32, seed=3)
    lower, upper = bounds(model, made.samples, made.latents)
    annealed, _ = bounds(model, digits, None)
    gap, apart = upper - lower, np.abs(sampled - annealed)
    print(
        f"Annealing from the encoder, forward and backward, encloses log p(x) of 32 rows that the model made within "
        f"{np.median(gap):.3f} nats (median; 90 %: {np.quantile(gap, 0.9):.3f}).\n"
        f"On test digits it differs from importance sampling with 16,384 draws by {np.median(apart):.3f} nats (median; "
        f"90 %: {np.quantile(apart, 0.9):.3f}; mean {np.mean(annealed - sampled):+.3f})."
    )
    return sampled, apart < AGREEMENT


def bounds(model: Model, rows: np.ndarray, latents: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Annealed estimates from below and, where the rows' true latents are given, from above."""
    x = torch.from_numpy(model.input.encode(model.input.rows(rows)))
    vae, generator = model.vae, torch.Generator().manual_seed(1)
    shape = (PARTICLES, len(x), vae.architecture.latents)
    with torch.no_grad():
        posterior = vae.posterior(x)
    start = Diagonal(DiagonalNormal(posterior.mean.double(), WIDENING * posterior.std.double()))
    betas = torch.linspace(0.0, 1.0, TEMPERATURES + 1, dtype=torch.float64) ** 2
    axes = torch.diag_embed(posterior.std.double())

    def noise() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield (
                torch.randn(shape, generator=generator),
                torch.rand(shape[:2], generator=generator, dtype=torch.float64),
            )

    def annealed(first: torch.Tensor, path: torch.Tensor) -> np.ndarray:
        weights = annealed_log_weights(
            start.log_prob,
            lambda z: differentiable_log_joint(vae, x, z),
            first,
            path,
            noise(),
            axes,
            step=0.5,
            leapfrogs=LEAPFROGS,
            adapt=True,
        )
        return log_likelihood(weights).numpy()

    with one_thread():
        points = Points(torch.zeros(shape[:2]), torch.rand(shape, generator=generator, dtype=torch.float64))
        below = annealed(start.sample(points), betas)
        if latents is None:
            return below, np.full(len(x), np.nan)
        return below, -annealed(torch.from_numpy(latents).expand(shape), betas.flip(0))


def model_estimates(model: Model, estimator: Estimator, rows: np.ndarray) -> Estimates:
    """Estimates of a model's rows by another estimator."""
    own = model.estimator
    estimator = replace(estimator, typical_error=own.typical_error, typical_decay=own.typical_decay)
    return replace(model, estimator=estimator).estimates(model.input.rows(rows))


def budget_table(scorer: Scorer, digits: np.ndarray, reference: np.ndarray, budgets: tuple[int, ...]) -> None:
    """Errors at growing budgets, beside the encoder alone at the same cost and at 64 times the cost."""
    head("estimator", "evaluations", "RMSE (95 % interval)", "bias", "largest error", "in +-1.96 std_error, of reliable",
         "reliable", "errors above 1 nat that say `reliable: false`")  # fmt: skip
    for samples in budgets:
        estimator = Estimator("fast", first_samples=samples, max_samples=samples, probed_axes=1000, anneal=False)
        estimates = model_estimates(scorer.model, estimator, digits)
        error = estimates.log_likelihood - reference
        cost = estimates.evaluations.mean()
        inside = (np.abs(error) <= 1.96 * estimates.std_error)[estimates.reliable].mean()
        wrong = np.abs(error) > 1.0
        said = f"{(~estimates.reliable[wrong]).sum()} of {wrong.sum()}"
        print(
            f"| ours, {samples} draws at first | {cost:,.0f} | {rmse(error)} | {error.mean():+.3f} | "
            f"{np.abs(error).max():.2f} | {100 * inside:.1f} % | {100 * estimates.reliable.mean():.1f} % | {said} |"
        )
        for factor in (1, 64):
            draws = round(factor * cost)
            plain = plain_estimates(scorer.model, digits, draws) - reference
            print(
                f"| encoder alone | {draws:,} | {rmse(plain)} | {plain.mean():+.3f} | {np.abs(plain).max():.2f} | | | |",
                flush=True,
            )


def rmse(error: np.ndarray) -> str:
    """The root mean square with a bootstrap interval."""
    generator = np.random.default_rng(0)
    again = [np.sqrt((generator.choice(error, len(error)) ** 2).mean()) for _ in range(1000)]
    low, high = np.quantile(again, [0.025, 0.975])
    return f"{np.sqrt((error**2).mean()):.3f} ({low:.3f} to {high:.3f})"


def plain_estimates(model: Model, rows: np.ndarray, draws: int, chunk: int = 128) -> np.ndarray:
    """The encoder's posterior and the mean of the weights, in chunked torch: what everybody does."""
    x = torch.from_numpy(model.input.encode(model.input.rows(rows)))
    vae, generator = model.vae, torch.Generator().manual_seed(0)
    totals = []
    with torch.inference_mode():
        for row in x.split(16):
            posterior = vae.posterior(row)
            weights = []
            for start in range(0, draws, chunk):
                shape = (min(chunk, draws - start), len(row), vae.architecture.latents)
                z = posterior.sample(torch.randn(shape, generator=generator))
                given = vae.likelihood.log_prob(vae.decoder(z), row).sum(dim=-1, dtype=torch.float64)
                weights.append(given + vae.prior().log_prob(z) - posterior.log_prob(z))
            totals.append(log_likelihood(torch.cat(weights)))
    return torch.cat(totals).numpy()


def invalid_table(scorer: Scorer, images: Mnist, fashion: np.ndarray, count: int = 50) -> None:
    """Rows that do not belong: how far off the estimate is from the best that we can do, and whether the verdict is."""
    generator = np.random.default_rng(0)
    small = load_digits().images[:count]
    enlarged = np.kron(small, np.ones((3, 3)))[:, 0:24, 0:24] * (255 / 16)
    kinds = {
        "Fashion-MNIST": fashion[:count],
        "inverted digits": 255 - images.test[:count],
        "noise": generator.integers(0, 256, size=(count, 28, 28), dtype=np.uint8),
        "scikit-learn's digits, enlarged": np.pad(enlarged, ((0, 0), (2, 2), (2, 2))),
    }
    print()
    head("rows that do not belong", "evaluations", "median error / abs(log p(x))", "same verdict",
         "encoder alone, 16,384 draws")  # fmt: skip
    best = Estimator(
        "thorough", first_samples=4096, max_samples=4096, newton_steps=8, starts=8, probed_axes=1000, seed=5
    )
    usual = Estimator(
        "fast", first_samples=512, max_samples=512, newton_steps=3, starts=3, probed_axes=1000, anneal=False
    )
    for name, rows in kinds.items():
        reference = model_estimates(scorer.model, best, rows).log_likelihood
        estimates = model_estimates(scorer.model, usual, rows)
        relative = np.abs(estimates.log_likelihood - reference) / np.abs(reference)
        same = scorer.band.sides(estimates.log_likelihood) == scorer.band.sides(reference)
        plain = plain_estimates(scorer.model, rows[:20], 16384) - reference[:20]
        print(
            f"| {name} | {estimates.evaluations.mean():,.0f} | {100 * np.median(relative):.2f} % | "
            f"{100 * same.mean():.1f} % | off by {np.median(np.abs(plain)):,.1f} nats (median) |",
            flush=True,
        )


def compare_verdicts(scorer: Scorer, digits: np.ndarray) -> None:
    """The standard setting against itself with another seed, and against far more draws."""
    model, band = scorer.model, scorer.band
    rows, ends = model.input.rows(digits), (band.low, band.high)
    first = model.estimates(rows, None, ends)
    other = replace(model, estimator=replace(model.estimator, seed=9)).estimates(rows, None, ends)
    sides = band.sides(first.log_likelihood)
    # Where the standard setting is 3 nats or more from both ends, a hundredth of its distance decides nothing.
    near = np.minimum(np.abs(first.log_likelihood - band.low), np.abs(first.log_likelihood - band.high)) < 3.0
    far_away = model_estimates(model, Estimator("fast", first_samples=1024, max_samples=1024, seed=31), digits[~near])
    close = model_estimates(model, replace(Estimator.of("thorough"), seed=31), digits[near])
    thorough = np.empty(len(rows))
    thorough[near], thorough[~near] = close.log_likelihood, far_away.log_likelihood
    fixed = band.sides(fixed_budget(model, digits))
    print(
        f"\nVerdicts on {len(rows):,} test digits under `standard`: {first.evaluations.mean():.0f} evaluations a row "
        f"(median {np.median(first.evaluations):.0f}).\n"
        f"With another seed {percent(sides != band.sides(other.log_likelihood))} differ, from `thorough` "
        f"{percent(sides != band.sides(thorough))} ({near.sum()} rows within 3 nats of an end; 1,024 draws for the others)."
        f"\nInside the band: {percent(sides == 0)} under stopping, {percent(fixed == 0)} at a fixed 512 draws."
    )


def fixed_budget(model: Model, digits: np.ndarray) -> np.ndarray:
    """Estimates at a fixed budget."""
    return model_estimates(
        model, Estimator("fast", first_samples=512, max_samples=512, anneal=False), digits
    ).log_likelihood


def compare_speed(scorer: Scorer, digits: np.ndarray, rounds: int = 3) -> None:
    """The standard score of a batch against the encoder alone with 4,096 draws, on one thread."""
    times: dict[str, list[float]] = {"standard": [], "encoder alone": []}
    for _ in range(rounds):
        for name, run in (
            ("standard", lambda: scorer.score(digits)),
            ("encoder alone", lambda: plain_estimates(scorer.model, digits, 4096)),
        ):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    ratios = np.array(times["encoder alone"]) / np.array(times["standard"])
    rate = {name: len(digits) / np.median(seconds) for name, seconds in times.items()}
    print(
        f"\n{len(digits)} digits on one thread: `standard` {rate['standard']:.0f} rows/s, encoder alone with 4,096 draws "
        f"{rate['encoder alone']:.1f} rows/s: {np.median(ratios):.1f} times faster "
        f"(rounds {ratios.min():.1f} to {ratios.max():.1f}).",
        flush=True,
    )


def head(*columns: str) -> None:
    """A table's head, in Markdown."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def percent(chosen: np.ndarray) -> str:
    """The share of True."""
    return f"{100 * chosen.mean():.2f} %"


if __name__ == "__main__":
    typer.run(main)
