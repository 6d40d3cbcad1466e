"""How right the estimates of log p(x) are, how honest about their error, and what they cost.

    python benchmarks/estimator.py --latents 2 --latents 8 --latents 20 --latents 50

Models with so many latents are trained first where they are not there yet (`train_audited.py`). Every estimate is held
against references on which two methods agree: with two latents an integral over a dense grid at two spacings; with more,
importance sampling with 16,384 draws, and annealed importance sampling from the encoder (which knows nothing of the modes
that the first looks for), itself bounded from both sides on rows that the model made (Wu et al., 2017; Grosse et al.,
2015). Rows on which the two disagree are annealed longer, and counted and left out of the first table where they still do.
For rows that do not belong the reference is the highest of three estimates with searches from different starts: none
exceeds log p(x) by more than b nats with a probability above exp(-b). A cost is in decoder evaluations per row, all
searches, Jacobians and looks at the search starts included.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from evaluate import compare_verdicts, fixed, grid_log_likelihood, model_estimates, percent
from mnist import DATA, Mnist

from service.cli.console import fail_in_one_line
from service.density.annealing import annealed_log_weights
from service.density.block import Estimates, differentiable_log_joint
from service.density.estimate import Member
from service.density.estimator import Estimator
from service.density.importance import log_likelihood
from service.density.laplace import Derivatives, Sites, mode_of, quasi_newton
from service.density.proposals import Diagonal
from service.density.quasirandom import Points
from service.density.tiling import one_thread
from service.files.readers import read
from service.scoring.model import Model
from service.scoring.scorer import Scorer
from service.store.loading import load_scorer
from service.store.store import Store
from service.vae.conditional import conditional
from service.vae.network import DiagonalNormal
from train_audited import STORE, audited_name, load_audited, train_missing

BUDGETS = {2: (128, 512), 8: (256, 512), 20: (128, 512), 50: (128, 512)}
AGREEMENT = 0.2  # nats between the two methods; the annealing, of few particles, is the rougher one
PARTICLES, LEAPFROGS = 32, 3  # of the annealing
TEMPERATURES = (200, 800)  # the second where the first disagrees
WIDENING = 1.2  # of the encoder's posterior, where the annealing starts
BOUNDED = 32  # rows that the model made
REFERENCE_DRAWS = 16384


@fail_in_one_line
def main(
    latents: Annotated[list[int], typer.Option(help="numbers of latents")],
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz and fashion_mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="where the audited models are")] = STORE,
    threshold: Annotated[bool, typer.Option(help="models of images that are white above 127.5")] = False,
    rows: Annotated[int, typer.Option(help="test digits with a reference by sampling")] = 200,
    grid_rows: Annotated[int, typer.Option(help="test digits with a reference by a grid")] = 1000,
    invalid: Annotated[int, typer.Option(help="rows of each kind that do not belong")] = 250,
    verdicts: Annotated[int, typer.Option(help="test digits whose verdicts are compared")] = 10_000,
) -> None:
    """Print one table for each model."""
    torch.set_num_threads(1)
    images = load_audited(data, threshold)
    fashion = read(data / "fashion_mnist.npz", "x_test").array
    train_missing(store, latents, images, threshold)
    for number in latents:
        scorer = load_scorer(Store(store), audited_name(number, threshold), "cpu", threads=1)
        order = np.random.default_rng(1).permutation(len(images.test))
        digits = images.test[order[: grid_rows if number == 2 else rows]]
        print(f"\n### {number} latents\n")
        reference, agreed = references(scorer, digits)
        print(f"{agreed.sum()} of {len(digits)} test digits have a reference on which two methods agree.\n", flush=True)
        budget_table(scorer, digits[agreed], reference[agreed], BUDGETS.get(number, (128, 512)))
        invalid_table(scorer, invalid_rows(images, fashion, invalid))
        print()
        compare_verdicts(scorer, images.test[:verdicts])
        compare_speed(scorer, images.test[:64])


def references(scorer: Scorer, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) of digits by the sharper of two methods, and where both agree."""
    if scorer.latents == 2:
        fine, coarse = (grid_log_likelihood(scorer, digits, points) for points in (900, 600))
        apart = np.abs(fine - coarse)
        print(f"Grids of 900 x 900 and 600 x 600 points differ by {quantiles(apart)} nats.")
        return fine, apart < 0.01
    model = scorer.model
    heavy = fixed(REFERENCE_DRAWS, search="wide", seed=77)
    sampled = model_estimates(model, heavy, digits).log_likelihood
    made = scorer.sample(BOUNDED, seed=3)
    gap = annealed(model, made.samples, TEMPERATURES[0], made.latents) + annealed(model, made.samples, TEMPERATURES[0])
    below = annealed(model, digits, TEMPERATURES[0])
    again = np.flatnonzero(np.abs(sampled - below) > AGREEMENT / 2)
    below[again] = annealed(model, digits[again], TEMPERATURES[1])
    apart = np.abs(sampled - below)
    print(
        f"Annealing from the encoder, forward and backward, encloses log p(x) of {BOUNDED} rows that the model made within "
        f"{quantiles(-gap)} nats.\n"
        f"On test digits it differs from importance sampling with {REFERENCE_DRAWS:,} draws by {quantiles(apart)} nats "
        f"(mean {np.mean(below - sampled):+.3f})."
    )
    return sampled, apart < AGREEMENT


def quantiles(numbers: np.ndarray) -> str:
    """The middle and the end of some numbers, in words."""
    return f"{np.median(numbers):.3f} (median; 90 %: {np.quantile(numbers, 0.9):.3f}; at most {numbers.max():.3f})"


def annealed(model: Model, rows: np.ndarray, temperatures: int, latents: np.ndarray | None = None) -> np.ndarray:
    """log p(x) by annealing from the encoder; where true latents are given, minus log p(x), from there to the encoder."""
    x = torch.from_numpy(model.input.encode(model.input.rows(rows)))
    vae, generator = model.vae, torch.Generator().manual_seed(1 if latents is None else 2)
    shape = (len(x), PARTICLES, vae.architecture.latents)
    with torch.no_grad():
        posterior = vae.posterior(x)
        near = quasi_newton(
            Sites.at(vae, conditional(vae, x), posterior.mean), torch.diag_embed(posterior.std.double().square()), 10
        )
        # Of the momenta: they make steps of the right length, and take no part in the weights.
        axes = mode_of(Derivatives.at(near)).axes
    start = Diagonal(DiagonalNormal(posterior.mean.double(), WIDENING * posterior.std.double()))
    betas = torch.linspace(0.0, 1.0, temperatures + 1, dtype=torch.float64) ** 2

    def noise() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            momenta = torch.randn(shape, generator=generator)
            yield momenta, torch.rand(shape[:2], generator=generator, dtype=torch.float64)

    with one_thread():
        if latents is None:
            points = Points(torch.zeros(shape[:2]), torch.rand(shape, generator=generator, dtype=torch.float64))
            first, path = start.sample(points), betas
        else:
            first, path = torch.from_numpy(latents)[:, None].expand(shape), betas.flip(0)
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


def budget_table(scorer: Scorer, digits: np.ndarray, reference: np.ndarray, budgets: tuple[int, ...]) -> None:
    """Errors at fixed budgets and of the settings, beside the encoder alone at the same cost and at 64 times the cost."""
    model = scorer.model
    head("estimator", "evaluations", "RMSE (95 % interval)", "bias", "largest error", "in +-1.96 std_error, of reliable",
         "of all", "reliable", "errors above 1 nat that say `reliable: false`")  # fmt: skip
    for samples in budgets:
        cost = error_line(f"ours, {samples} draws", model_estimates(model, fixed(samples), digits), reference)
        for factor in (1, 64):
            draws = round(factor * cost)
            plain = plain_estimates(model, digits, draws) - reference
            print(
                f"| encoder alone | {draws:,} | {rmse(plain)} | {plain.mean():+.3f} | {np.abs(plain).max():.2f} "
                "| | | | |",
                flush=True,
            )
    ends = (scorer.band.low, scorer.band.high)
    error_line("`standard`, stopped by the band", model.estimates(model.input.rows(digits), ends), reference)
    error_line("`thorough`", model_estimates(model, Estimator.of("thorough"), digits), reference)


def error_line(name: str, estimates: Estimates, reference: np.ndarray) -> float:
    """Print how far off some estimates are; what they cost a row."""
    error = estimates.log_likelihood - reference
    inside = np.abs(error) <= 1.96 * estimates.std_error
    wrong, reliable = np.abs(error) > 1.0, estimates.reliable
    cost = float(estimates.evaluations.mean())
    print(
        f"| {name} | {cost:,.0f} | {rmse(error)} | {error.mean():+.3f} | {np.abs(error).max():.2f} | "
        f"{percent(inside[reliable])} | {percent(inside)} | {percent(reliable)} | "
        f"{(wrong & ~reliable).sum()} of {wrong.sum()} |",
        flush=True,
    )
    return cost


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
                weights.append(given + vae.prior.log_prob(z.double()) - posterior.log_prob(z))
            totals.append(log_likelihood(torch.cat(weights).T))
    return torch.cat(totals).numpy()


def invalid_rows(images: Mnist, fashion: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Rows that do not belong, so many of each kind."""
    generator = np.random.default_rng(0)
    small = load_digits().images[:count]
    enlarged = np.kron(small, np.ones((3, 3))) * (255 / 16)  # (N, 24, 24)
    return {
        "Fashion-MNIST": fashion[:count],
        "inverted digits": 255 - images.test[:count],
        "noise": generator.integers(0, 256, size=(count, 28, 28), dtype=np.uint8),
        "scikit-learn's digits, enlarged": np.pad(enlarged, ((0, 0), (2, 2), (2, 2))),
    }


def invalid_table(scorer: Scorer, kinds: dict[str, np.ndarray]) -> None:
    """How far off the estimates of rows that do not belong are from the highest that we can find, and whether verdicts are.

    The search has to find the one of many modes that holds the mass: it is a wide one, and still within 2,048 evaluations.
    """
    model, band = scorer.model, scorer.band
    print()
    head("rows that do not belong", "evaluations", "median error / abs(log p(x))", "90 %", "verdict as by the reference",
         "evaluations of `standard`", "its verdict", "encoder alone, 16,384 draws")  # fmt: skip
    same_everywhere = []
    for name, rows in kinds.items():
        reference = best_known(model, rows)
        estimates = model_estimates(model, fixed(256, search="wide"), rows)
        standard = model.estimates(model.input.rows(rows), (band.low, band.high))
        relative = np.abs(estimates.log_likelihood - reference) / np.abs(reference)
        sides = band.sides(reference)
        same = band.sides(estimates.log_likelihood) == sides
        as_standard = band.sides(standard.log_likelihood) == sides
        same_everywhere.append(as_standard)
        plain = plain_estimates(model, rows[:20], 16384) - reference[:20]
        print(
            f"| {name} | {estimates.evaluations.mean():,.0f} | {100 * np.median(relative):.2f} % | "
            f"{100 * np.quantile(relative, 0.9):.2f} % | {percent(same)} | {standard.evaluations.mean():,.0f} | "
            f"{percent(as_standard)} | off by {np.median(np.abs(plain)):,.1f} nats (median) |",
            flush=True,
        )
    whole = np.concatenate(same_everywhere)
    print(f"\n`standard` gives {whole.sum():,} of {len(whole):,} such rows the verdict that the reference gives.")


def best_known(model: Model, rows: np.ndarray) -> np.ndarray:
    """The highest of some estimates with searches from different starts."""
    generator = np.random.default_rng(4)
    latents = model.vae.architecture.latents
    member = model.members[0]
    several = [member.starts, *(scale * generator.standard_normal((4096, latents)) for scale in (1.0, 2.0))]
    return np.max(
        [
            model_estimates(
                replace(model, members=(Member(member.vae, starts.astype(np.float32)),)), fixed(1024, "wide", at), rows
            ).log_likelihood
            for at, starts in enumerate(several)
        ],
        axis=0,
    )


def compare_speed(scorer: Scorer, digits: np.ndarray, rounds: int = 5) -> None:
    """The standard score of a batch against the encoder alone with 4,096 draws, on one thread."""
    paths: dict[str, Callable[[], object]] = {
        "standard": lambda: scorer.score(digits),
        "encoder alone": lambda: plain_estimates(scorer.model, digits, 4096),
    }
    times: dict[str, list[float]] = {name: [] for name in paths}
    scorer.score(digits)
    for _ in range(rounds):
        for name, run in paths.items():
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


if __name__ == "__main__":
    typer.run(main)
