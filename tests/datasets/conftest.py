"""A model of a mixed table, and one of plain numbers, with data sets in every format."""

from types import SimpleNamespace

import pytest

from service.store.loading import load_scorer
from service.store.store import Store
from tests.models import made, write


@pytest.fixture(scope="session")
def people(people_store, tmp_path_factory):
    """A model of a table with text and holes, and a CSV file of rows that it has not seen."""
    return SimpleNamespace(
        store=people_store,
        scorer=load_scorer(Store(people_store), "people", "cpu", threads=1),
        csv=write(tmp_path_factory.mktemp("fresh") / "fresh.csv", made(500, seed=1)),
    )


@pytest.fixture(scope="session")
def wine(tiny_store):
    """A model of thirteen numbers."""
    return load_scorer(Store(tiny_store), "wine", "cpu", threads=1)
