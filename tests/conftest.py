"""Tiny real models: a linear-Gaussian VAE with a known density, and VAEs fitted to scikit-learn's embedded digits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import FactorAnalysis

from service.density.estimator import Estimator
from service.files.readers import Rows
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train
from service.vae.network import VAE, Architecture

REPOSITORY = Path(__file__).parents[1]
torch.set_num_threads(1)  # more would wait for each other on a machine that is busy


def linear_gaussian(analysis: FactorAnalysis, widening: float = 1.0, dtype=torch.float64) -> VAE:
    """The VAE that a factor analysis is: decoder W z + b, and the exact posterior as the encoder.

    The latents are rotated so that the posterior's covariance is diagonal; its std is then multiplied by `widening`.
    """
    noise = analysis.noise_variance_
    precision = np.eye(len(analysis.components_)) + (analysis.components_ / noise) @ analysis.components_.T
    eigenvalues, rotation = np.linalg.eigh(precision)
    loadings = rotation.T @ analysis.components_  # (L, D)
    latents, features = loadings.shape
    vae = VAE(Architecture(features, latents, (), likelihood="gaussian", min_std=0.0)).to(dtype)
    gain = (loadings / noise) / eigenvalues[:, None]  # (L, D)
    state = {
        "decoder.output.weight": loadings.T,
        "decoder.output.bias": analysis.mean_,
        "encoder.output.weight": np.concatenate([gain, np.zeros_like(gain)]),
        "encoder.output.bias": np.concatenate([-gain @ analysis.mean_, np.log(widening**2 / eigenvalues)]),
        "likelihood.log_std": 0.5 * np.log(noise),
    }
    vae.load_state_dict({name: torch.tensor(value, dtype=dtype) for name, value in state.items()})
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def factor_analysis() -> SimpleNamespace:
    """A factor analysis of wine's standardised columns, the rows, and their exact log densities."""
    x = load_wine().data
    x = (x - x.mean(0)) / x.std(0)
    analysis = FactorAnalysis(n_components=4, random_state=0).fit(x)
    return SimpleNamespace(analysis=analysis, rows=x, log_density=analysis.score_samples(x))


def digits() -> np.ndarray:
    """1,797 digits, shape (N, 8, 8), grey levels 0..255."""
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)


RECIPES = {
    "digits": Recipe(likelihood="bernoulli", latents=4, hidden=(64,), fit=FitOptions(epochs=40, importance_samples=3)),
    "grey": Recipe(latents=4, hidden=(32,), fit=FitOptions(epochs=10)),
    "wine": Recipe(latents=2, hidden=(32,), fit=FitOptions(epochs=40), estimator=Estimator.of("fast")),
}


def data_of(name: str) -> Rows:
    """The rows that a tiny model is trained on."""
    if name == "wine":
        wine = load_wine()
        return Rows(wine.data, tuple(wine.feature_names))
    return Rows(digits())


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """A store with a Bernoulli, a grey and a table model; read it, do not write."""
    root = tmp_path_factory.mktemp("store")
    for name, recipe in RECIPES.items():
        Store(root).publish(name, train(data_of(name), recipe).draft)
    Store(root).set_default("digits")
    return root


@pytest.fixture(scope="session", params=RECIPES)
def any_scorer(request, tiny_store):
    """A scorer of each kind of model, with rows that it can read."""
    return load_scorer(Store(tiny_store), request.param, "cpu"), data_of(request.param).array


@pytest.fixture(scope="session")
def digit_scorer(tiny_store):
    """The Bernoulli model."""
    return load_scorer(Store(tiny_store), "digits", "cpu")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_service(store: Path, log: Path, **settings: str):
    """A real server process on loopback; gives a client. It is ended by its id."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VOUCH_")}
    environment |= {"VOUCH_STORE": str(store), "VOUCH_PORT": str(port), "VOUCH_DRAIN_S": "0"}
    environment |= {f"VOUCH_{name.upper()}": value for name, value in settings.items()}
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"], env=environment, cwd=REPOSITORY, stderr=stderr
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until_loaded(client, process)
                client.process = process
                yield client
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_loaded(client: httpx.Client, process: subprocess.Popen) -> None:
    """Wait until the models are loaded, or cannot be; at most a minute."""
    for _ in range(600):
        assert process.poll() is None, "the service ended at its start"
        try:
            if client.get("/readyz").json()["status"] != "loading":
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not start within a minute")


@pytest.fixture(scope="session")
def client(tiny_store, tmp_path_factory):
    """A client of a service that serves the tiny models."""
    with running_service(tiny_store, tmp_path_factory.mktemp("log") / "log") as client:
        yield client
