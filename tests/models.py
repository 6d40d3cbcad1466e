"""Tiny real models: how they are made, of what rows, and where the whole session finds them trained once."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import FactorAnalysis

from service.density.estimator import Estimator
from service.files.readers import Rows
from service.files.tables import read_table
from service.scoring.version import Draft
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train, train_table
from service.vae.network import VAE, Architecture

# Networks whose log p(x) is known


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


def squared(sigma, tilt):
    """x = (z squared, tilt * z) with noise sigma: two modes for each row, and an encoder that sees one of them."""
    torch.manual_seed(0)
    vae = VAE(Architecture(2, 1, (64,), "tanh", "gaussian", min_std=0.0)).requires_grad_(False)
    vae.decoder.requires_grad_(True)
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=0.01)
    z = torch.linspace(-3, 3, 400)[:, None]
    with torch.enable_grad():
        for _ in range(800):
            loss = (vae.decoder(z) - torch.cat([z.square(), tilt * z], dim=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    vae.requires_grad_(False)
    vae.encoder.output.weight.zero_()
    vae.encoder.output.bias.copy_(torch.tensor([1.5, 2 * math.log(sigma)]))
    vae.likelihood.log_std.fill_(math.log(sigma))
    return vae


def bent(latents, likelihood="bernoulli", features=20, strength=4.0):
    """A small random decoder whose posteriors are no normals."""
    torch.manual_seed(0)
    vae = VAE(Architecture(features, latents, (16,), "tanh", likelihood)).requires_grad_(False)
    vae.decoder.output.weight.mul_(strength)
    return vae


# Rows


def digits() -> np.ndarray:
    """1,797 digits, shape (N, 8, 8), grey levels 0..255."""
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)


ROWS = digits()[:5].reshape(5, 64).tolist()
COLUMNS = ("height", "income", "age", "gain", "city", "member", "grade")
ROW = {"height": 181.2, "income": 31000.5, "age": 52, "gain": 0, "city": "Bern", "member": "yes", "grade": 4}


def made(number, seed=0):
    """Rows that hang together: tall people live in Bern, the old are rich and members."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=number)
    height = (170 + 9 * factor + 2 * rng.normal(size=number)).round(1)
    age = np.clip(45 + 14 * rng.normal(size=number), 18, 90).round()
    income = np.exp(9 + age / 45 + 0.3 * rng.normal(size=number)).round(2)
    gain = np.where(rng.random(number) < 0.8, 0.0, np.exp(7 + rng.normal(size=number)).round())
    city = np.where(factor > 0.4, "Bern", np.where(factor < -0.6, "Chur", "Basel"))
    member = np.where(age + 8 * rng.normal(size=number) > 50, "yes", "no")
    grade = np.clip(np.rint(3 + factor + 0.5 * rng.normal(size=number)), 1, 5)
    rows = list(zip(height, income, age.astype(int), gain, city, member, grade.astype(int), strict=True))
    hole = rng.random((number, len(COLUMNS))) < 0.03
    return [
        ["?" if gone else str(cell) for cell, gone in zip(row, at, strict=True)]
        for row, at in zip(rows, hole, strict=True)
    ]


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def complete(rows):
    return rows[~np.isnan(rows).any(axis=1)]


def with_few_patterns(rows: np.ndarray, count: int, patterns: int) -> np.ndarray:
    """The first rows whose missing cells are of few patterns, since each new one costs what hundreds of rows do."""
    found: dict[bytes, None] = {}
    chosen = []
    for row in rows:
        pattern = np.isnan(row).tobytes()
        if pattern in found or len(found) < patterns:
            found[pattern] = None
            chosen.append(row)
    assert len(chosen) >= count
    return np.stack(chosen[:count])


def data_of(name: str) -> Rows:
    """The rows that a tiny model of numbers or images is trained on."""
    if name == "wine":
        wine = load_wine()
        return Rows(wine.data, tuple(wine.feature_names))
    return Rows(digits())


# Trained models

PEOPLE = Recipe(
    latents=3,
    hidden=(48,),
    fit=FitOptions(epochs=60, importance_samples=5),
    estimator=Estimator.of("fast"),
    calibration_share=0.4,
)
TINY = ("digits", "grey", "wine")
RECIPES = {
    "digits": Recipe(likelihood="bernoulli", latents=4, hidden=(64,), fit=FitOptions(epochs=40, importance_samples=3)),
    "grey": Recipe(latents=4, hidden=(32,), fit=FitOptions(epochs=10)),
    "wine": Recipe(latents=2, hidden=(32,), fit=FitOptions(epochs=40), estimator=Estimator.of("fast")),
    "people": PEOPLE,  # a mixed table with holes
    "several": replace(
        PEOPLE, ensemble=3, prior="mixture", calibration_share=0.25, fit=FitOptions(epochs=40, importance_samples=3)
    ),
}
PEOPLE_ROWS = 1500  # each new pattern of missing cells costs as much as all those that calibrate


class TrainedModels:
    """Each of RECIPES, trained when it is first asked for, by whichever process of the session asks first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, root: Path, *names: str) -> Store:
        """A new store of copies of models; the first is the default."""
        for name in names:
            shutil.copytree(self.trained(name), root / name)
        Store(root).set_default(names[0])
        return Store(root)

    def trained(self, name: str) -> Path:
        """The folder of a model's versions."""
        with FileLock(self.folder / f"{name}.lock"):
            if not (self.folder / name).exists():
                Store(self.folder / "unfinished" / name).publish(name, self.draft(name))
                (self.folder / "unfinished" / name / name).rename(self.folder / name)
        return self.folder / name

    def draft(self, name: str) -> Draft:
        """A model as it comes from its recipe."""
        if name in TINY:
            return train(data_of(name), RECIPES[name]).draft
        table = read_table(write(self.folder / f"{name}.csv", made(PEOPLE_ROWS)))
        return train_table(table, RECIPES[name]).draft
