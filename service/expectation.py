"""What a model expects in a row's columns, in the units of the training data: means, intervals, likeliest categories.

E[x_j] is the mean of E[x_j | z] over draws of z by their weights. A number's distribution given z is taken at evenly spaced
probabilities, so that the way back from the network's scale to the column's, however bent, comes before any mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.data.columns import CategoryColumn, NumberColumn
from service.data.schema import InputSpec, Mixed
from service.vae.columns import Columns
from service.vae.likelihoods import Likelihood

POINTS = 16  # of a number's distribution given z
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one column: a mean and the interval that holds nine tenths, or the likeliest category and its probability."""

    value: float
    low: float = np.nan
    high: float = np.nan
    probability: float = np.nan


@dataclass(frozen=True, slots=True)
class Conditionals:
    """A row's columns given each of S draws of z, of weights (S,) that sum to 1.

    `cells` (S, K) holds the probabilities of all categories' cells, `numbers` (S, POINTS, R + C) quantiles of all numbers
    on the network's scale. All float64.
    """

    likelihood: Columns
    weights: np.ndarray
    cells: np.ndarray
    numbers: np.ndarray

    @staticmethod
    def of(likelihood: Columns, output: Tensor, weights: Tensor) -> Conditionals:
        """By the decoder's outputs, shape (S, P)."""
        u = (torch.arange(POINTS, dtype=output.dtype, device=output.device) + 0.5) / POINTS
        wide = u[:, None].expand(-1, likelihood.reals + likelihood.counts)
        numbers = likelihood.quantile(output[:, None], wide)
        parts = (weights, likelihood.probabilities(output), numbers)
        return Conditionals(likelihood, *(part.double().cpu().numpy() for part in parts))

    def cells_of(self, at: int) -> np.ndarray:
        """The probabilities of a categorical column's cells, shape (S, cells); those of a draw sum to 1."""
        cells = self.cells[:, self.likelihood.cells_of(at)]
        total: np.ndarray = cells / cells.sum(axis=-1, keepdims=True)
        return total


def expected_rows(spec: InputSpec, likelihood: Likelihood, output: Tensor, weights: Tensor) -> np.ndarray:
    """E[x] over draws: decoder outputs (S, B, P) and weights (S, B) that sum to 1 over the draws; rows (B, D), float64."""
    if isinstance(spec.transform, Mixed):
        assert isinstance(likelihood, Columns)
        rows = []
        for row in range(output.shape[1]):
            given = Conditionals.of(likelihood, output[:, row], weights[:, row])
            rows.append([expected_column(spec.transform, given, at).value for at in range(spec.features)])
        return np.array(rows, dtype=np.float64).reshape(len(rows), spec.features)
    mean = (weights[..., None] * likelihood.mean(output)).sum(dim=0)
    return spec.decode(mean.double().cpu().numpy())


def expected_column(mixed: Mixed, given: Conditionals, at: int) -> Expected:
    """What is expected in column `at`."""
    column, start = mixed.columns[at], sum(mixed.widths[:at])
    if isinstance(column, CategoryColumn):
        probabilities = given.weights @ given.cells_of(start)
        likeliest = int(probabilities.argmax())
        value = float(likeliest) if column.is_text else float(column.values[likeliest])
        return Expected(value, probability=float((1.0 - column.unseen) * probabilities[likeliest]))
    values, masses = number_distribution(column, given, start)
    order = np.argsort(values, kind="stable")
    below = np.cumsum(masses[order])
    low, high = values[order][np.searchsorted(below, INTERVAL).clip(max=len(order) - 1)].tolist()
    return Expected(float(values @ masses), low, high)


def number_distribution(column: NumberColumn, given: Conditionals, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Values that a number may have and their masses, which sum to 1; none is beyond what training rows had."""
    x = given.numbers[..., given.likelihood.number_of(start + column.width - 1)]  # (S, POINTS)
    numbers = np.clip(column.number(x), column.low, column.high)
    masses = np.repeat(given.weights[:, None] / POINTS, POINTS, axis=1)
    if not column.atoms:
        return numbers.ravel(), masses.ravel()
    gate = given.cells_of(start)  # (S, atoms + 1)
    masses = masses * gate[:, -1:]
    values = np.concatenate([numbers.ravel(), np.array(column.atoms)])
    return values, np.concatenate([masses.ravel(), given.weights @ gate[:, :-1]])
