"""Train the bundled models, from real data or from drawn pictures, calibrate them on held-back rows, and publish them.

    python scripts/train_bundled.py mnist mnist-2d adult --minutes 30
    python scripts/train_bundled.py parts --minutes 12
    python scripts/train_bundled.py mnist --recalibrate
    python scripts/train_bundled.py mnist --selftest

Every run publishes a new version; remove what is not to be bundled.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from draw_parts import main as draw
from mnist import DATA, load_mnist

from service.cli.console import fail_in_one_line, progress_bar
from service.cli.report import print_report, weighting_lines
from service.data.domains import Domains
from service.data.image_reading import ImageReading
from service.errors import DataError
from service.files.image_folders import ImageOptions
from service.files.readers import Rows, read
from service.files.tables import read_table
from service.scoring.groups import Terms
from service.scoring.scorer import Scorer
from service.scoring.selftesting import selftested
from service.scoring.version import Draft, Published, Reference
from service.store.store import Store
from service.system.cpus import cpu_quota
from service.training.aside import MOST_WEIGHING
from service.training.fit import FitOptions
from service.training.recalibrate import recalibrate_on
from service.training.recipe import IMAGE_FIT, TABLE_FIT, Recipe, Split
from service.training.train import Hooks, Trained, train, train_on_splits, train_table

TEST_ROWS = 400
TABLES = {
    "adult": (
        Recipe(prior="auto", fit=TABLE_FIT, hidden=(200, 200)),
        "mixed/adult.csv",
        "Rows of the 1994 census of the United States, as in UCI's adult data set: numbers, categories, missing cells",
    ),
}
PARTS = (
    Recipe(network="conv", latents=12, hidden=(16, 32, 48), prior="mixture", rule="combined", fit=IMAGE_FIT),
    3_000,
    (48, 48),
    "Pictures of a red part on a belt under changing light, drawn by scripts/draw_parts.py, read in colour at 48 x 48",
)
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


def again(
    store: Store,
    published: Published,
    pilot: np.ndarray,
    rows: np.ndarray,
    known: np.ndarray,
    testing: np.ndarray,
    digest: str,
) -> Reference:
    """The same network, calibrated anew, and tested with other rows."""
    spec, card = published.model.input, published.card.calibration
    domains, (rows, weighing) = Domains.learnt(spec, known), np.split(rows, [len(rows) - MOST_WEIGHING])
    terms = Terms(card.percentiles, card.groups, spec.rows(weighing))
    draft = recalibrate_on(published, pilot, rows, digest, terms=terms, known=known, domains=domains)
    print("\n".join(weighting_lines(draft)))
    return store.publish(published.reference.name, tested(draft, testing))


def tested(draft: Draft, testing: np.ndarray) -> Draft:
    """A draft that says what it catches of some rows, all of them."""
    scorer = Scorer(draft.unpublished(), threads=cpu_quota())
    return replace(draft, selftest=selftested(scorer, scorer.read(testing)))


def with_test(store: Store, published: Published, testing: np.ndarray) -> Reference:
    """The same version, tested anew: it scores to the bit as it did."""
    data = published.card.calibration.data
    draft = published.again(published.model, published.calibration, data)
    return store.publish(published.reference.name, tested(draft, testing))


def publish(store: Store, name: str, trained: Trained, description: str, started: float) -> None:
    """Publish a model that is trained, and report on it."""
    # A checkout keeps no permissions, so that anybody could read the fingerprints.
    reference = store.publish(name, replace(trained.draft, description=description, fingerprints=None))
    print_report(reference, trained, time.monotonic() - started)


def train_parts(store: Store, minutes: float) -> None:
    """Train on a folder of drawn pictures, as a user would."""
    recipe, number, size, description = PARTS
    recipe = replace(recipe, fit=replace(recipe.fit, minutes=minutes))
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        draw(Path(folder), number, faults=False)
        rows = read(Path(folder), images=ImageOptions(size, "colour", ImageReading(fit="crop")))
    with progress_bar() as on_progress:
        trained = train(rows, recipe, Hooks(on_progress))
    publish(store, "parts", trained, description, started)


@fail_in_one_line
def main(
    names: Annotated[list[str], typer.Argument(help="which of: " + ", ".join([*MODELS, *TABLES, "parts"]))],
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz")] = DATA,
    store: Annotated[Path, typer.Option(help="the model store")] = Path("model_store"),
    minutes: Annotated[float, typer.Option(help="time for each model")] = 30.0,
    threads: Annotated[int, typer.Option(help="torch threads")] = 2,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="keep the networks")] = False,
    selftest: Annotated[bool, typer.Option("--selftest", help="keep the calibration of images, too")] = False,
) -> None:
    """Train and publish the bundled models."""
    torch.set_num_threads(threads)
    unknown = set(names) - set(MODELS) - set(TABLES) - {"parts"}
    if unknown:
        raise DataError(f"no bundled model is called so; expected some of {', '.join([*MODELS, *TABLES, 'parts'])}")
    if "parts" in names:
        train_parts(Store(store), minutes)
    for name in sorted(set(names) & set(TABLES)):
        recipe, path, description = TABLES[name]
        recipe = replace(recipe, fit=replace(recipe.fit, minutes=minutes))
        table = read_table(data / path)
        if recalibrate:
            published = Store(store).load(Store(store).resolve(name))
            rows = published.model.input.array(table)
            split = Split.shuffled(len(rows), recipe).map(rows.__getitem__)  # as it was when the network was trained
            digest = published.card.calibration.data["digest"]
            calibration, testing = split.calibration[:-TEST_ROWS], split.calibration[-TEST_ROWS:]
            print(again(Store(store), published, split.validation, calibration, split.train, testing, digest))
            continue
        started = time.monotonic()
        with progress_bar() as on_progress:
            trained = train_table(table, recipe, hooks=Hooks(on_progress))
        publish(Store(store), name, trained, description, started)
    image_names = [name for name in names if name in MODELS]
    if not image_names:
        return
    images = load_mnist(data)
    split = Split(images.train, images.validation, images.calibration, images.pilot)
    for name in image_names:
        recipe, description = MODELS[name]
        if recalibrate or selftest:
            published = Store(store).load(Store(store).resolve(name))
            digest = published.card.calibration.data["digest"]
            testing = images.audit[:TEST_ROWS]
            if selftest:
                print(with_test(Store(store), published, testing))
            else:
                parts = images.pilot, images.calibration, images.train, testing
                print(again(Store(store), published, *parts, digest))
            continue
        recipe = replace(recipe, fit=replace(recipe.fit, minutes=minutes))  # the same, in the time given
        started = time.monotonic()
        with progress_bar() as on_progress:
            trained = train_on_splits([split], None, recipe, Rows(split.train).digest(), Hooks(on_progress))
        publish(Store(store), name, trained, description, started)
    if "mnist" in Store(store).names():
        Store(store).set_default("mnist")


if __name__ == "__main__":
    typer.run(main)
