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


def expected_rows(spec: InputSpec, likelihood: Likelihood, output: Tensor, weights: Tensor) -> np.ndarray:
    """E[x] over draws: decoder outputs (S, B, P) and weights (S, B) that sum to 1 over the draws; rows (B, D), float64."""
    if isinstance(spec.transform, Mixed):
        assert isinstance(likelihood, Columns)
        outputs = output.unbind(dim=1)
        rows = [
            [expected_column(spec.transform, likelihood, one, weights[:, row], at).value for at in range(spec.features)]
            for row, one in enumerate(outputs)
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), spec.features)
    mean = (weights[..., None] * likelihood.mean(output)).sum(dim=0)
    return spec.decode(mean.double().cpu().numpy())


def expected_column(mixed: Mixed, likelihood: Columns, output: Tensor, weights: Tensor, at: int) -> Expected:
    """What is expected in column `at`, from outputs (S, P) with weights (S,)."""
    column, start = mixed.columns[at], sum(mixed.widths[:at])
    share = weights.double().cpu().numpy()
    if isinstance(column, CategoryColumn):
        probabilities = share @ cells(likelihood, output, start)
        likeliest = int(probabilities.argmax())
        value = float(likeliest) if column.is_text else float(column.values[likeliest])
        return Expected(value, probability=float((1.0 - column.unseen) * probabilities[likeliest]))
    values, masses = number_distribution(column, likelihood, output, share, start)
    order = np.argsort(values, kind="stable")
    below = np.cumsum(masses[order])
    low, high = values[order][np.searchsorted(below, INTERVAL).clip(max=len(order) - 1)].tolist()
    return Expected(float(values @ masses), low, high)


def number_distribution(
    column: NumberColumn, likelihood: Columns, output: Tensor, share: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values that a number may have and their masses, which sum to 1; none is beyond what training rows had."""
    u = (torch.arange(POINTS, dtype=output.dtype) + 0.5) / POINTS
    x = likelihood.number_quantiles(output, start + column.width - 1, u).double().cpu().numpy()  # (S, POINTS)
    numbers = np.clip(column.number(x), column.low, column.high)
    masses = np.repeat(share[:, None] / POINTS, POINTS, axis=1)
    if not column.atoms:
        return numbers.ravel(), masses.ravel()
    gate = cells(likelihood, output, start)  # (S, atoms + 1)
    masses = masses * gate[:, -1:]
    values = np.concatenate([numbers.ravel(), np.array(column.atoms)])
    return values, np.concatenate([masses.ravel(), share @ gate[:, :-1]])


def cells(likelihood: Columns, output: Tensor, at: int) -> np.ndarray:
    """Probabilities of a categorical column's cells, shape (S, cells), float64; those of a row sum to 1."""
    probabilities = likelihood.cell_probabilities(output, at).double().cpu().numpy()
    total: np.ndarray = probabilities / probabilities.sum(axis=-1, keepdims=True)
    return total
