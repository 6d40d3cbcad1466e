"""Train the models that the estimator is audited on: MNIST in black and white, decoders z -> 200 -> 200 -> 784.

    python benchmarks/train_audited.py 2 8 20 50

They are published as `mnist-l2` and so on; each takes some minutes on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from mnist import DATA, Mnist, load_mnist

from service.cli import epoch_bar, fail_in_one_line, print_report
from service.data.readers import Rows
from service.store import Store
from service.trainer import Recipe, Split, train_on_split
from service.vae.training import FitOptions

STORE = Path("build/audited")
CALIBRATION = 3000  # rows to calibrate on


def recipe(latents: int) -> Recipe:
    """The network of the audit with so many latents."""
    return Recipe(
        likelihood="bernoulli",
        threshold=127.5,
        latents=latents,
        hidden=(200, 200),
        activation="tanh",
        fit=FitOptions(epochs=60, patience=60),
    )


def train_missing(store: Path, latents: list[int], images: Mnist) -> None:
    """Train and publish the models that the store does not have yet."""
    split = Split(images.train, images.validation, images.calibration[:CALIBRATION], images.pilot)
    for number in latents:
        name = f"mnist-l{number}"
        if name in Store(store).names():
            continue
        with epoch_bar() as on_epoch:
            digest = Rows(split.train).digest()
            reference, report = train_on_split(
                Store(store), name, split, None, recipe(number), on_epoch, "audited", digest
            )
        print_report(reference, report)


@fail_in_one_line
def main(
    latents: Annotated[list[int], typer.Argument(help="numbers of latents")],
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="where the models go")] = STORE,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
) -> None:
    """Train the models that are not there yet."""
    torch.set_num_threads(threads)
    train_missing(store, latents, load_mnist(data))


if __name__ == "__main__":
    typer.run(main)
