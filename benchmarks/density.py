"""The density that half an hour of training gives on the fixed binarization of MNIST.

    python benchmarks/density.py --data ../shared/data

Trains on the 50,000 training rows, stops by the 10,000 validation rows, and prints the log-likelihood of the 10,000 test
rows: by the estimator, of all of them, or as the IWAE bound of all and what that lacks of some. Nothing is chosen by the
test rows.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.cli.console import fail_in_one_line, progress_bar
from service.density import starts
from service.density.estimate import Member, estimate
from service.density.estimator import Estimator
from service.files.readers import Rows, read
from service.training.augmentation import Augmentation
from service.training.bounds import iwae_bound
from service.training.course import Course
from service.training.fit import FitOptions, fit
from service.training.inputs import network_rows, plain_input
from service.training.networks import augmentation_of
from service.training.recipe import Recipe
from service.vae.network import VAE

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RECIPE = Recipe(
    likelihood="bernoulli",
    latents=40,
    hidden=(400, 400),
    augment=1.0,
    fit=FitOptions(epochs=1000, patience=1000, importance_samples=5),
)


@fail_in_one_line
def main(
    data: Annotated[Path, typer.Option(help="folder that holds binarized_mnist.npz")] = DATA,
    minutes: Annotated[float, typer.Option(help="time to train")] = 30.0,
    threads: Annotated[int, typer.Option(help="torch threads")] = 2,
    network: Annotated[Literal["mlp", "conv"], typer.Option(help="kind of network")] = "mlp",
    latents: Annotated[int, typer.Option(help="of a convolutional network")] = 32,
    channels: Annotated[str | None, typer.Option(help="of a convolutional network, such as 16,32")] = None,
    tested: Annotated[int, typer.Option(help="so many test rows, drawn at random")] = 10_000,
    num_samples: Annotated[int, typer.Option(help="draws for a test row, a power of two")] = 512,
    weights: Annotated[Path | None, typer.Option(help="file of weights: read if it is there, else written")] = None,
) -> None:
    """Train, and print the test log-likelihood."""
    torch.set_num_threads(threads)
    file = data / "binarized_mnist.npz"
    rows = {key: read(file, key).array.reshape(-1, 28, 28) * 255 for key in ("x_train", "x_valid", "x_test")}
    recipe = replace(RECIPE, network=network)
    if network == "conv":
        hidden = None if channels is None else tuple(map(int, channels.split(",")))
        recipe = replace(recipe, hidden=hidden, latents=latents)
    spec, architecture = plain_input(Rows(rows["x_train"]), recipe)
    torch.manual_seed(recipe.fit.seed)
    vae = VAE(architecture)
    train, validation = network_rows(spec, rows["x_train"]), network_rows(spec, rows["x_valid"])
    if weights is not None and weights.exists():
        vae.load_state_dict(load_file(weights))
    else:
        trained(vae, train, validation, augmentation_of(spec, rows["x_train"], RECIPE), minutes)
        if weights is not None:
            save_file(vae.state_dict(), weights)
    start = time.monotonic()
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows["x_test"]))[:tested])
    bounds = bound_of_each(vae, network_rows(spec, rows["x_test"]))
    print(f"all test rows: IWAE-{RECIPE.fit.importance_samples} bound {bounds.mean():.2f} nats", flush=True)
    member = Member(vae, starts.build(vae.eval().requires_grad_(False), validation.numpy()[:2000]))
    fixed = Estimator("fast", first_samples=num_samples, max_samples=num_samples)
    estimates = estimate(fixed, member, spec.encode(spec.rows(rows["x_test"][chosen])))
    # Blocks of test rows differ by tens of nats; what the bound lacks differs little from row to row.
    lacks = estimates.log_likelihood - bounds[chosen]
    error = lacks.std() / np.sqrt(len(lacks)) if tested < len(bounds) else 0.0
    print(
        f"test log-likelihood {bounds.mean() + lacks.mean():.2f} nats (+- {error:.2f}: the bound of all, and what it lacks "
        f"of {len(lacks):,} rows; {estimates.evaluations.mean():,.0f} evaluations each, {time.monotonic() - start:.0f} s)"
    )


@torch.no_grad()
def bound_of_each(vae: VAE, rows: Tensor, block: int = 500) -> np.ndarray:
    """The IWAE bound on log p(x) of each row, shape (N, D): (N,), nats."""
    generator = torch.Generator().manual_seed(RECIPE.fit.seed)
    parts = [iwae_bound(vae, x, vae.posterior(x), RECIPE.fit.importance_samples, generator) for x in rows.split(block)]
    return torch.cat(parts).double().numpy()


def trained(vae: VAE, train: Tensor, validation: Tensor, augment: Augmentation | None, minutes: float) -> None:
    """Train, and print how that went."""
    with progress_bar() as on_progress:
        course, options = Course(on_progress), replace(RECIPE.fit, minutes=minutes)
        course.enter("fitting")
        report = fit(vae, train, validation, options, augment=augment, on_step=course.move)
    print(
        f"trained {report.epochs} epochs in {report.seconds / 60:.1f} minutes on {torch.get_num_threads()} thread(s), best "
        f"of them {report.best_epoch}: IWAE-{RECIPE.fit.importance_samples} bound on the validation rows "
        f"{report.validation.bound:.2f} nats, {report.validation.active_latents} active latents",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
