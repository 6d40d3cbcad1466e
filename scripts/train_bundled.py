"""Train the bundled models from mnist.npz, calibrate them on held-back images, and publish them.

    python scripts/train_bundled.py mnist mnist-2d --minutes 30

Every run publishes a new version; remove what is not to be bundled.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from mnist import DATA, load_mnist

from service.cli import epoch_bar, fail_in_one_line, print_report
from service.data.readers import Rows
from service.errors import DataError
from service.store import Store
from service.trainer import Recipe, Split, train_on_split
from service.vae.training import FitOptions

MODELS = {
    "mnist": (
        Recipe(
            likelihood="bernoulli",
            threshold=127.5,
            latents=40,
            hidden=(400, 400),
            augment=1.0,
            fit=FitOptions(epochs=1000, patience=1000, importance_samples=5, augment_share=0.9),
        ),
        "MNIST digits, black and white at 127.5",
    ),
    "mnist-2d": (
        Recipe(
            likelihood="bernoulli",
            threshold=127.5,
            latents=2,
            hidden=(400, 400),
            augment=1.0,
            fit=FitOptions(epochs=1000, patience=1000, importance_samples=16),
        ),
        "MNIST digits, black and white at 127.5, with two latents to look at",
    ),
}


@fail_in_one_line
def main(
    names: Annotated[list[str], typer.Argument(help="which of: " + ", ".join(MODELS))],
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="the model store")] = Path("model_store"),
    minutes: Annotated[float, typer.Option(help="time for each model")] = 30.0,
    threads: Annotated[int, typer.Option(help="torch threads")] = 2,
) -> None:
    """Train and publish the bundled models."""
    torch.set_num_threads(threads)
    unknown = set(names) - set(MODELS)
    if unknown:
        raise DataError(f"no bundled model is called so; expected some of {', '.join(MODELS)}")
    images = load_mnist(data)
    split = Split(images.train, images.validation, images.calibration, images.pilot)
    for name in names:
        recipe, description = MODELS[name]
        recipe = replace(recipe, fit=replace(recipe.fit, minutes=minutes))  # the same, in the time given
        with epoch_bar() as on_epoch:
            reference, report = train_on_split(
                Store(store), name, split, None, recipe, on_epoch, description, Rows(split.train).digest()
            )
        print_report(reference, report)
    if "mnist" in Store(store).names():
        Store(store).set_default("mnist")


if __name__ == "__main__":
    typer.run(main)
