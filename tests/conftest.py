"""Fixtures for all tests: known densities, models that the whole session shares, and a running service."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.decomposition import FactorAnalysis

from service.store.loading import load_scorer
from service.store.store import Store
from tests.models import TINY, TrainedModels, data_of
from tests.tools import running_service

# Whole files go to processes (--dist loadfile). The dearest are begun first, so that none is left for the end.
LONGEST = (
    "scoring/test_explain.py",
    "datasets/test_run.py",
    "test_detector.py",
    "density/test_estimator.py",
    "web/test_life.py",
    "test_doors.py",
    "test_tables.py",
    "training/test_distributed.py",
    "test_gate.py",
    "training/test_folds.py",
    "console/test_panels.py",
    "web/test_contract.py",
    "test_docs.py",
    "test_readme.py",
    "density/test_conditionals.py",
    "test_table_attacks.py",
    "scoring/test_statistics.py",
    "datasets/test_scored.py",
    "cli/test_cli.py",
)
# How long an example takes says nothing where processes share the CPUs.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")
torch.set_num_threads(1)  # more would wait for each other on a machine that is busy


def pytest_terminal_summary(terminalreporter) -> None:
    """One line where the console was not tested."""
    if shutil.which("chromium") is None:
        terminalreporter.write_line(
            "tests/console is skipped: Debian's chromium is not here (apt-get install chromium)"
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items) -> None:
    """Put the dearest files first."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(Path(__file__).parent).as_posix(), len(order)))


@pytest.fixture(scope="session")
def factor_analysis() -> SimpleNamespace:
    """A factor analysis of wine's standardised columns, the rows, and their exact log densities."""
    x = load_wine().data
    x = (x - x.mean(0)) / x.std(0)
    analysis = FactorAnalysis(n_components=4, random_state=0).fit(x)
    return SimpleNamespace(analysis=analysis, rows=x, log_density=analysis.score_samples(x))


@pytest.fixture(scope="session")
def trained_models(tmp_path_factory, worker_id) -> TrainedModels:
    """Each kind of model, trained once for all processes that run tests; with TEST_MODELS, for several runs."""
    root = tmp_path_factory.getbasetemp()
    own = (root if worker_id == "master" else root.parent) / "models"
    folder = Path(os.environ.get("TEST_MODELS", own))
    folder.mkdir(exist_ok=True)
    return TrainedModels(folder)


@pytest.fixture(scope="session")
def tiny_store(trained_models, tmp_path_factory) -> Path:
    """A store with a Bernoulli, a grey and a table model; read it, do not write."""
    return trained_models.store(tmp_path_factory.mktemp("tiny") / "store", *TINY).root


@pytest.fixture(scope="session")
def people_store(trained_models, tmp_path_factory) -> Path:
    """A store with a model of a mixed table with holes; read it, do not write."""
    return trained_models.store(tmp_path_factory.mktemp("people") / "store", "people").root


@pytest.fixture(scope="session", params=TINY)
def any_scorer(request, tiny_store):
    """A scorer of each kind of model, with rows that it can read."""
    return load_scorer(Store(tiny_store), request.param, "cpu"), data_of(request.param).array


@pytest.fixture(scope="session")
def digit_scorer(tiny_store):
    """The Bernoulli model."""
    return load_scorer(Store(tiny_store), "digits", "cpu")


@pytest.fixture(scope="session")
def client(tiny_store, tmp_path_factory):
    """A client of a service that serves the tiny models."""
    with running_service(tiny_store, tmp_path_factory.mktemp("log") / "log") as client:
        yield client
