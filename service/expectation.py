"""What a model expects in a row's columns, in the units of the training data: means, intervals, likeliest categories.

E[x_j] is the mean of E[x_j | z] over draws of z by their weights. A number's distribution given z is taken at evenly spaced
probabilities, so that the way back from the network's scale to the column's, however bent, comes before any mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from service.data.columns import CategoryColumn, NumberColumn
from service.data.schema import InputSpec, Mixed
from service.density.columns import ColumnEstimates
from service.density.estimator import Draws
from service.vae.columns import Columns
from service.vae.likelihoods import Elementwise, Likelihood

EXPECTING_DRAWS = 64  # what is expected need not be known as well as how likely something is
POINTS = 8  # of a number's distribution given z
INTERVAL = (0.05, 0.95)
ROWS_AT_ONCE = 64
EXPECTED = ("value", "low", "high", "probability")  # what `expected_column` returns, in its last dimension


def expected_rows(spec: InputSpec, likelihood: Likelihood, output: Tensor, weights: Tensor) -> np.ndarray:
    """E[x] over draws: decoder outputs (S, B, P) and weights (S, B) that sum to 1 over the draws; rows (B, D), float64."""
    if isinstance(spec.transform, Mixed):
        by_row, shares = output.transpose(0, 1), numbers(weights.T)
        columns = [expected_column(spec, likelihood, by_row, shares, at)[:, 0] for at in range(spec.features)]
        return np.stack(columns, axis=1)
    mean = (weights[..., None] * likelihood.mean(output)).sum(dim=0)
    return spec.decode(numbers(mean))


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
        Shape (B, N, 4): what EXPECTED names, NaN where it does not apply.
    """
    expected = np.full((*chosen.shape, len(EXPECTED)), np.nan)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        places = slice(start, start + ROWS_AT_ONCE)
        shares = WithoutColumn(spec, likelihood, decode, rows[places], columns, start)
        # Cells of one column with as many draws are looked at together.
        alike: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for index, at in np.argwhere(chosen[places] >= 0).tolist():
            row = start + index
            column = int(chosen[row, at])
            alike[column, len(shares.draws(row, column).z)].append((row, at))
        for (column, _), cells in alike.items():
            given = [shares.given(row, column) for row, _ in cells]
            outputs, weights = torch.stack([output for output, _ in given]), np.stack([share for _, share in given])
            found = expected_column(spec, likelihood, outputs, weights, column)
            expected[tuple(np.array(cells).T)] = found
    return expected


class WithoutColumn:
    """Some rows' draws, as draws from p(z | x_-j) for any column j."""

    def __init__(
        self,
        spec: InputSpec,
        likelihood: Likelihood,
        decode: Callable[[Tensor], Tensor],
        rows: np.ndarray,
        columns: ColumnEstimates,
        start: int,
    ) -> None:
        self.columns = columns
        numbers_of_rows = range(start, start + len(rows))
        keys = [(row, -1) for row in numbers_of_rows]
        keys += [(row, column) for row in numbers_of_rows for column in columns.without[row]]
        all_z = [self.draws(row, column).z for row, column in keys]
        outputs = decode(torch.cat(all_z)).split([len(z) for z in all_z])
        self.outputs = dict(zip(keys, outputs, strict=True))
        x = torch.from_numpy(spec.encode(rows)).to(outputs[0])
        each = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(z) for z in all_z[: len(rows)]]))
        terms = spec.by_column(numbers(likelihood.log_prob(torch.cat(outputs[: len(rows)]), x[each.to(x.device)])))
        ends = np.cumsum([len(z) for z in all_z[: len(rows)]])
        self.terms = dict(zip(numbers_of_rows, np.split(terms, ends[:-1]), strict=True))

    def draws(self, row: int, column: int) -> Draws:
        """Some of those in which the column was hidden, where there are such; else of the row's own."""
        draws = self.columns.without[row].get(column, self.columns.draws[row])
        return Draws(draws.z[:EXPECTING_DRAWS], draws.log_weights[:EXPECTING_DRAWS])

    def given(self, row: int, column: int) -> tuple[Tensor, np.ndarray]:
        """Decoder outputs, shape (S, P), and weights that sum to 1, (S,)."""
        log_weights = numbers(self.draws(row, column).log_weights)
        key = (row, column) if column in self.columns.without[row] else (row, -1)
        if key[1] < 0:
            log_weights = log_weights - self.terms[row][:, column]
        return self.outputs[key], np.exp(log_weights - np.logaddexp.reduce(log_weights))


def expected_column(
    spec: InputSpec, likelihood: Likelihood, output: Tensor, weights: np.ndarray, at: int
) -> np.ndarray:
    """What is expected in column `at` of B rows, by outputs (B, S, P) of draws of such weights, (B, S): (B, EXPECTED).

    A number's mean and the interval that holds nine tenths, or the likeliest category and its probability.
    """
    nothing = np.full(len(output), np.nan)
    if not isinstance(spec.transform, Mixed):
        assert isinstance(likelihood, Elementwise)
        points = numbers(likelihood.quantile(output[..., at, None], probabilities(output), at))
        mean = (weights * numbers(likelihood.mean(output)[..., at])).sum(axis=1)
        low, high = intervals(points.reshape(len(output), -1), np.repeat(weights / POINTS, POINTS, axis=1))
        # These transforms go column by column, and never down where the column goes up.
        x = np.zeros((3, len(output), spec.features))
        x[..., at] = mean, low, high
        return np.stack([*spec.decode(x)[..., at], nothing], axis=1)
    assert isinstance(likelihood, Columns)
    column, start = spec.transform.columns[at], sum(spec.widths[:at])
    if isinstance(column, CategoryColumn):
        shares = (weights[..., None] * numbers(likelihood.probabilities_of(output, start))).sum(axis=1)
        place = shares.argmax(axis=1)
        value = place.astype(np.float64) if column.is_text else np.array(column.values)[place]
        return np.stack([value, nothing, nothing, (1.0 - column.unseen) * shares.max(axis=1)], axis=1)
    values, masses = number_distribution(column, likelihood, output, weights, start)
    return np.stack([(values * masses).sum(axis=1), *intervals(values, masses), nothing], axis=1)


def number_distribution(
    column: NumberColumn, likelihood: Columns, output: Tensor, weights: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values that a number of B rows may have and their masses, which sum to 1, (B, N) both.

    None is beyond what training rows had.
    """
    x = numbers(likelihood.quantile_of(output, probabilities(output), start + column.width - 1))  # (B, S, POINTS)
    values = np.clip(column.number(x), column.low, column.high).reshape(len(x), -1)
    masses = np.repeat(weights[..., None] / POINTS, POINTS, axis=2)
    if not column.atoms:
        return values, masses.reshape(values.shape)
    gate = numbers(likelihood.probabilities_of(output, start))  # (B, S, atoms + 1)
    between = (masses * gate[..., -1:]).reshape(values.shape)
    at_atoms = (weights[..., None] * gate[..., :-1]).sum(axis=1)
    atoms = np.broadcast_to(np.array(column.atoms), at_atoms.shape)
    return np.concatenate([values, atoms], axis=1), np.concatenate([between, at_atoms], axis=1)


def intervals(values: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """The quantiles of INTERVAL, of B rows' values whose masses sum to 1, (B, N): shape (2, B)."""
    order = np.argsort(values, axis=1)
    below = np.cumsum(np.take_along_axis(masses, order, axis=1), axis=1)
    places = [(below < level).sum(axis=1, keepdims=True).clip(max=values.shape[1] - 1) for level in INTERVAL]
    return np.stack([np.take_along_axis(values, np.take_along_axis(order, at, axis=1), axis=1)[:, 0] for at in places])


def probabilities(like: Tensor) -> Tensor:
    """Evenly spaced ones, shape (POINTS,)."""
    return (torch.arange(POINTS, dtype=like.dtype, device=like.device) + 0.5) / POINTS


def numbers(tensor: Tensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return tensor.double().cpu().numpy()
