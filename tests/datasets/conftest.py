"""A model of a mixed table, and one of plain numbers, with data sets in every format."""

from types import SimpleNamespace

import pytest

from service.files.tables import read_table
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.train import train_table
from tests.test_tables import RECIPE, made, write


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """A model of a table with text and holes, and a CSV file of rows that it has not seen."""
    folder = tmp_path_factory.mktemp("people")
    Store(folder / "store").publish(
        "people", train_table(read_table(write(folder / "train.csv", made(2500))), RECIPE).draft
    )
    return SimpleNamespace(
        store=folder / "store",
        scorer=load_scorer(Store(folder / "store"), "people", "cpu", threads=1),
        csv=write(folder / "fresh.csv", made(500, seed=1)),
    )


@pytest.fixture(scope="session")
def wine(tiny_store):
    """A model of thirteen numbers."""
    return load_scorer(Store(tiny_store), "wine", "cpu", threads=1)
