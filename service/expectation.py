"""What a model expects in a row's columns, in the units of the training data: means, intervals, likeliest categories.

E[x_j] is the mean of E[x_j | z] over draws of z by their weights. A number's distribution given z is taken at evenly spaced
probabilities, so that the way back from the network's scale to the column's, however bent, comes before any mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.data.columns import CategoryColumn, NumberColumn
from service.data.schema import InputSpec, Mixed
from service.density.columns import ColumnEstimates
from service.vae.columns import Columns
from service.vae.likelihoods import Elementwise, Likelihood

POINTS = 16  # of a number's distribution given z
INTERVAL = (0.05, 0.95)
ROWS_AT_ONCE = 64


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


def expected_cells(
    spec: InputSpec,
    likelihood: Likelihood,
    decode: Callable[[Tensor], Tensor],
    rows: np.ndarray,
    columns: ColumnEstimates,
    chosen: np.ndarray,
) -> np.ndarray:
    """What the other columns let expect in some columns of rows.

    Args:
        decode: latents (N, L) to decoder outputs (N, P).
        rows: in their own units, shape (B, D).
        chosen: columns of each row, shape (B, N), -1 for none.

    Returns:
        Shape (B, N, 4): value, low, high and probability, NaN where they do not apply.
    """
    expected = np.full((*chosen.shape, 4), np.nan)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        places = range(start, min(start + ROWS_AT_ONCE, len(rows)))
        wanted = [
            (row, at, int(column), columns.without[row].get(int(column)))
            for row in places
            for at, column in enumerate(chosen[row])
            if column >= 0
        ]
        # The draws of the rows, then those of rows with a column hidden, all decoded together.
        draws = [columns.draws[row] for row in places] + [own for *_, own in wanted if own is not None]
        if not draws:
            continue
        outputs = decode(torch.cat([one.z for one in draws])).split([len(one.z) for one in draws])
        of_row = dict(zip(places, outputs, strict=False))
        own_outputs = iter(outputs[len(places) :])
        x = torch.from_numpy(spec.encode(rows[start : places.stop])).to(outputs[0])
        terms = {
            row: spec.by_column(likelihood.log_prob(output, x[row - start]).double().cpu().numpy())
            for row, output in of_row.items()
        }
        for row, at, column, own in wanted:
            if own is None:
                log_weights = columns.draws[row].log_weights.cpu().numpy() - terms[row][:, column]
                output = of_row[row]
            else:
                log_weights, output = own.log_weights.cpu().numpy(), next(own_outputs)
            weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
            one = expected_cell(spec, likelihood, output, weights, column)
            expected[row, at] = one.value, one.low, one.high, one.probability
    return expected


def expected_cell(
    spec: InputSpec, likelihood: Likelihood, output: Tensor, weights: np.ndarray, column: int
) -> Expected:
    """What is expected in a column, by decoder outputs (S, P) of draws of such weights, (S,)."""
    if isinstance(spec.transform, Mixed):
        assert isinstance(likelihood, Columns)
        given = Conditionals.of(likelihood, output, torch.from_numpy(weights).to(output.device))
        return expected_column(spec.transform, given, column)
    assert isinstance(likelihood, Elementwise)
    u = (torch.arange(POINTS, dtype=output.dtype, device=output.device) + 0.5) / POINTS
    points = likelihood.quantile(output[:, column, None], u, column).double().cpu().numpy()
    mean = weights @ likelihood.mean(output)[:, column].double().cpu().numpy()
    low, high = weighted_interval(points.ravel(), np.repeat(weights / POINTS, POINTS))
    # These transforms go column by column, and never down where the column goes up.
    x = np.zeros((3, spec.features))
    x[:, column] = mean, low, high
    return Expected(*spec.decode(x)[:, column].tolist())


def weighted_interval(values: np.ndarray, masses: np.ndarray) -> tuple[float, float]:
    """The quantiles of INTERVAL, of values whose masses sum to 1."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(masses[order])
    low, high = values[order][np.searchsorted(below, INTERVAL).clip(max=len(order) - 1)].tolist()
    return low, high


def expected_column(mixed: Mixed, given: Conditionals, at: int) -> Expected:
    """What is expected in column `at`."""
    column, start = mixed.columns[at], sum(mixed.widths[:at])
    if isinstance(column, CategoryColumn):
        probabilities = given.weights @ given.cells_of(start)
        likeliest = int(probabilities.argmax())
        value = float(likeliest) if column.is_text else float(column.values[likeliest])
        return Expected(value, probability=float((1.0 - column.unseen) * probabilities[likeliest]))
    values, masses = number_distribution(column, given, start)
    return Expected(float(values @ masses), *weighted_interval(values, masses))


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
