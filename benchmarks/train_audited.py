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

from mnist import DATA, load_mnist  # the scripts' folder is no package

from service.cli import epoch_bar, fail_in_one_line, print_report
from service.data.readers import Rows
from service.store import Store
from service.trainer import Recipe, Split, train_on_split
from service.vae.training import FitOptions

STORE = Path("build/audited")


def recipe(latents: int) -> Recipe:
    """The network of the audit with so many latents."""
    return Recipe(
        likelihood="bernoulli",
        threshold=127.5,
        latents=latents,
        hidden=(200, 200),
        activation="tanh",
        fit=FitOptions(epochs=200, patience=200),
    )


@fail_in_one_line
def main(
    latents: Annotated[list[int], typer.Argument(help="numbers of latents")],
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="where the models go")] = STORE,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
) -> None:
    """Train and publish one model for each number of latents."""
    torch.set_num_threads(threads)
    images = load_mnist(data)
    split = Split(images.train, images.validation, images.calibration, images.pilot)
    for number in latents:
        with epoch_bar() as on_epoch:
            reference, report = train_on_split(
                Store(store),
                f"mnist-l{number}",
                split,
                None,
                recipe(number),
                on_epoch,
                "audited",
                Rows(split.train).digest(),
            )
        print_report(reference, report)


if __name__ == "__main__":
    typer.run(main)
