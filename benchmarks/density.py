"""The density that half an hour of training gives on the fixed binarization of MNIST.

    python benchmarks/density.py --data ../shared/data

Trains on the 50,000 training rows, stops by the 10,000 validation rows, and prints the log-likelihood of the 10,000 test
rows by 5,000 importance samples each. Nothing is chosen by the test rows, which are looked at once.
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
from service.training.bounds import evaluate
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
    tested: Annotated[int, typer.Option(help="so many test rows, drawn at random: blocks of them differ")] = 10_000,
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
    order = np.random.default_rng(0).permutation(len(rows["x_test"]))[:tested]
    chosen = rows["x_test"][np.sort(order)]
    x = spec.encode(spec.rows(chosen))
    bound = evaluate(vae, network_rows(spec, chosen), RECIPE.fit.importance_samples, RECIPE.fit.seed).bound
    print(f"the same test rows: IWAE-{RECIPE.fit.importance_samples} bound {bound:.2f} nats", flush=True)
    member = Member(vae, starts.build(vae.eval().requires_grad_(False), validation.numpy()[:2000]))
    fixed = Estimator("fast", first_samples=num_samples, max_samples=num_samples)
    estimates = estimate(fixed, member, x)
    log_likelihood = estimates.log_likelihood
    error = log_likelihood.std() / np.sqrt(len(log_likelihood))
    print(
        f"test log-likelihood {log_likelihood.mean():.2f} nats (+- {error:.2f} over {len(log_likelihood):,} rows, "
        f"{estimates.evaluations.mean():,.0f} evaluations each, {time.monotonic() - start:.0f} s)"
    )


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
