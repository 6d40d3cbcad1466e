"""Train the models that the estimator is audited on: MNIST in black and white, decoders z -> 200 -> 200 -> 784.

    python benchmarks/train_audited.py 2 8 20 50

They are published as `mnist-l2` and so on; each takes some minutes on one core. A pixel is white with a probability of its
grey level, as in most density papers since Salakhutdinov and Murray (2008). With `--threshold` it is white above 127.5
(`mnist-l2-threshold`): such rows have less noise, posteriors are narrower, and the encoder is further from them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from mnist import DATA, Mnist, load_mnist

from service.cli.console import fail_in_one_line, progress_bar
from service.cli.report import print_report
from service.files.readers import Rows
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe, Split
from service.training.train import Hooks, train_on_splits

STORE = Path("build/audited")
CALIBRATION = 3000  # rows to calibrate on
DRAWS = 4  # black-and-white versions of a training image


def recipe(latents: int, passes: int = 100) -> Recipe:
    """The network of the audit with so many latents."""
    epochs = passes // DRAWS
    return Recipe(
        likelihood="bernoulli",
        threshold=127.5,
        latents=latents,
        hidden=(200, 200),
        activation="tanh",
        fit=FitOptions(epochs=epochs, patience=epochs, warmup_epochs=3),
    )


def audited_name(latents: int, threshold: bool) -> str:
    """What the model is called."""
    return f"mnist-l{latents}-threshold" if threshold else f"mnist-l{latents}"


def black_and_white(images: np.ndarray, seed: int) -> np.ndarray:
    """Images of the same shape whose pixels are 255 with a probability of their grey level, and 0 otherwise."""
    chance = np.random.default_rng(seed).random(images.shape, dtype=np.float32)
    return np.where(chance * 255 < images, np.uint8(255), np.uint8(0))


def load_audited(data: Path, threshold: bool) -> Mnist:
    """The parts of MNIST as the audited models see them."""
    images = load_mnist(data)
    if threshold:
        return replace(images, train=np.concatenate([images.train] * DRAWS))
    parts = {field.name: black_and_white(getattr(images, field.name), at) for at, field in enumerate(fields(Mnist))}
    parts["train"] = np.concatenate([black_and_white(images.train, 100 + draw) for draw in range(DRAWS)])
    return Mnist(**parts)


def train_missing(store: Path, latents: list[int], images: Mnist, threshold: bool) -> None:
    """Train and publish the models that the store does not have yet."""
    split = Split(images.train, images.validation, images.calibration[:CALIBRATION], images.pilot)
    for number in latents:
        name = audited_name(number, threshold)
        if name in Store(store).names():
            continue
        started = time.monotonic()
        with progress_bar() as on_progress:
            digest = Rows(split.train).digest()
            trained = train_on_splits([split], None, recipe(number), digest, Hooks(on_progress))
        reference = Store(store).publish(name, replace(trained.draft, description="audited"))
        print_report(reference, trained, time.monotonic() - started, str(store))


@fail_in_one_line
def main(
    latents: Annotated[list[int], typer.Argument(help="numbers of latents")],
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="where the models go")] = STORE,
    threshold: Annotated[bool, typer.Option(help="white above 127.5, instead of by chance")] = False,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
) -> None:
    """Train the models that are not there yet."""
    torch.set_num_threads(threads)
    train_missing(store, latents, load_audited(data, threshold), threshold)


if __name__ == "__main__":
    typer.run(main)
