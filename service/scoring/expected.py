"""What a model expects in a row's columns, in the data's units: means, intervals, most likely categories.

E[x_j] is the weighted mean of E[x_j | z] over draws of z. A number's distribution given z is represented by quantiles at
evenly spaced probabilities, so that values are converted from the network's scale, which may be curved, before any mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.data.columns import CategoryColumn, NumberColumn
from service.data.inputs import InputSpec, Mixed
from service.density.block import Draws
from service.density.conditionals import ColumnDraws
from service.system.cancellation import CheckCancelled, never_cancelled
from service.vae.likelihoods import Elementwise, Likelihood
from service.vae.mixed import Columns
from service.vae.pixels import PixelLogistic

EXPECTING_DRAWS = 64  # fewer than for scores: expectations need less accuracy than likelihoods
POINTS = 8  # of a number's distribution given z
INTERVAL = (0.05, 0.95)
ROWS_AT_ONCE, NUMBERS_AT_ONCE = 64, 2**23  # rows, and numbers in the decoder outputs of all their draws
EXPECTED = ("value", "low", "high", "probability")  # what `expected_column` returns, in its last dimension


@dataclass(frozen=True, slots=True)
class Part:
    """One network's part of a prediction for B rows: decoder outputs (B, S, P) of draws with weights (B, S).

    A row's weights sum to 1 over all parts.
    """

    likelihood: Likelihood
    output: Tensor
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class MemberDraws:
    """A network's draws for some rows, with its likelihood and its decoder, (N, L) to outputs (N, P)."""

    likelihood: Likelihood
    decode: Callable[[Tensor], Tensor]
    draws: ColumnDraws


def expected_rows(spec: InputSpec, parts: Sequence[Part]) -> np.ndarray:
    """E[x] of B rows: shape (B, D), float64."""
    if isinstance(spec.transform, Mixed):
        return np.stack([expected_column(spec, parts, at)[:, 0] for at in range(spec.features)], axis=1)
    return spec.decode(sum((one.weights[..., None] * numbers(one.likelihood.mean(one.output))).sum(1) for one in parts))


def expected_cells(
    spec: InputSpec,
    members: Sequence[MemberDraws],
    rows: np.ndarray,
    chosen: np.ndarray,
    check_cancelled: CheckCancelled = never_cancelled,
) -> np.ndarray:
    """Predictions for some columns of rows from their other columns.

    Args:
        rows: in the data's units, shape (B, D).
        chosen: columns of each row, shape (B, N), -1 for none.

    Returns:
        Shape (B, N, 4): what EXPECTED names, NaN where it does not apply.
    """
    expected = np.full((*chosen.shape, len(EXPECTED)), np.nan)
    outputs_each = EXPECTING_DRAWS * members[0].likelihood.sizes(sum(spec.widths))[1]
    at_once = max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // outputs_each))
    for start in range(0, len(rows), at_once):
        check_cancelled()
        places = slice(start, start + at_once)
        all_draws = [WithoutColumn(spec, one, rows[places], start) for one in members]
        # Cells of one column with the same numbers of draws are processed together.
        alike: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for index, at in np.argwhere(chosen[places] >= 0).tolist():
            row = start + index
            column = int(chosen[row, at])
            alike[column, *(len(one.draws(row, column).z) for one in all_draws)].append((row, at))
        for (column, *_), cells in alike.items():
            given = [[one.given(row, column) for row, _ in cells] for one in all_draws]
            outputs = [torch.stack([output for output, _ in part]) for part in given]
            log_masses = [np.stack([masses for _, masses in part]) for part in given]
            total = np.logaddexp.reduce(np.concatenate(log_masses, axis=1), axis=1, keepdims=True)
            parts = [
                Part(one.likelihood, output, np.exp(masses - total))
                for one, output, masses in zip(members, outputs, log_masses, strict=True)
            ]
            expected[tuple(np.array(cells).T)] = expected_column(spec, parts, column)
    return expected


def strangest_of_each(
    spec: InputSpec,
    members: Sequence[MemberDraws],
    rows: np.ndarray,
    chosen: np.ndarray,
    check_cancelled: CheckCancelled = never_cancelled,
) -> tuple[np.ndarray, np.ndarray]:
    """The columns, (B, N), farthest from what was expected among those that belong to the chosen ones, (B, N).

    Returns:
        Those columns, and what was expected there (`expected_cells`).
    """
    together = members[0].likelihood.together
    if together == 1:
        return chosen, expected_cells(spec, members, rows, chosen, check_cancelled)
    columns = np.where(chosen[..., None] < 0, -1, chosen[..., None] + np.arange(together))  # (B, N, together)
    flat = columns.reshape(len(rows), -1)
    expected = expected_cells(spec, members, rows, flat, check_cancelled).reshape(*columns.shape, len(EXPECTED))
    values = np.take_along_axis(rows, np.maximum(flat, 0), axis=1).reshape(columns.shape)
    middle, low, high = (expected[..., EXPECTED.index(name)] for name in ("value", "low", "high"))
    far = np.nan_to_num(np.abs(values - middle) / np.maximum(high - low, 1.0), nan=-1.0)
    best = far.argmax(axis=2)[..., None]
    strangest = np.take_along_axis(columns, best, axis=2)[..., 0]
    return strangest, np.take_along_axis(expected, best[..., None], axis=2)[:, :, 0]


class WithoutColumn:
    """A network's draws for some rows, reweighted to p(z | x_-j) for any column j."""

    def __init__(self, spec: InputSpec, member: MemberDraws, rows: np.ndarray, start: int) -> None:
        self.of, self.together = member.draws, member.likelihood.together
        places = range(start, start + len(rows))
        keys = [(row, -1) for row in places]
        keys += [(row, column) for row in places for column in self.of.without[row]]
        all_z = [self.draws(row, column).z for row, column in keys]
        outputs = member.decode(torch.cat(all_z)).split([len(z) for z in all_z])
        self.outputs = dict(zip(keys, outputs, strict=True))
        counts = [len(z) for z in all_z[: len(rows)]]
        x = torch.from_numpy(spec.encode(rows)).to(outputs[0])
        each = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)).to(x.device)
        terms = spec.by_column(numbers(member.likelihood.log_prob(torch.cat(outputs[: len(rows)]), x[each])))
        terms = terms.reshape(len(terms), -1, self.together).sum(axis=-1)
        self.terms = dict(zip(places, np.split(terms, np.cumsum(counts)[:-1]), strict=True))

    def draws(self, row: int, column: int) -> Draws:
        """Draws with the column hidden, if there are any; else the row's own. At most EXPECTING_DRAWS."""
        draws = self.of.without[row].get(self.first(column), self.of.draws[row])
        return Draws(draws.z[:EXPECTING_DRAWS], draws.log_weights[:EXPECTING_DRAWS])

    def given(self, row: int, column: int) -> tuple[Tensor, np.ndarray]:
        """Decoder outputs, shape (S, P), and the log of each draw's contribution to p(x_-j), (S,)."""
        log_weights = numbers(self.draws(row, column).log_weights)
        own = self.first(column) in self.of.without[row]
        log_masses = log_weights if own else log_weights - self.terms[row][:, column // self.together]
        return self.outputs[row, self.first(column) if own else -1], log_masses - np.log(len(log_masses))

    def first(self, column: int) -> int:
        """The first of the columns that depend on each other given z, and on this one."""
        return column - column % self.together


def expected_column(spec: InputSpec, parts: Sequence[Part], at: int) -> np.ndarray:
    """The prediction for column `at` of B rows: shape (B, 4), as named by EXPECTED.

    A number's mean and its central 90 % interval, or the most likely category and its probability.
    """
    nothing = np.full(len(parts[0].output), np.nan)
    column, start = spec.transform.columns[at] if isinstance(spec.transform, Mixed) else None, sum(spec.widths[:at])
    if isinstance(column, CategoryColumn):
        shares = sum((one.weights[..., None] * cell_probabilities(one, start)).sum(axis=1) for one in parts)
        place = shares.argmax(axis=1)
        value = place.astype(np.float64) if column.is_text else np.array(column.values)[place]
        return np.stack([value, nothing, nothing, (1.0 - column.unseen) * shares.max(axis=1)], axis=1)
    both = [plain_values(one, at) if column is None else number_values(column, one, start) for one in parts]
    values, masses = (np.concatenate(arrays, axis=1) for arrays in zip(*both, strict=True))
    middle, (low, high) = (values * masses).sum(axis=1), intervals(values, masses)
    if column is not None:
        return np.stack([middle, low, high, nothing], axis=1)
    # These transforms act on each column alone and are increasing, so they map interval ends to interval ends.
    middle = sum((one.weights * numbers(one.likelihood.mean_of(one.output, at))).sum(axis=1) for one in parts)
    x = np.zeros((3, len(middle), spec.features))
    x[..., at] = middle, low, high
    return np.stack([*spec.decode(x)[..., at], nothing], axis=1)


def cell_probabilities(part: Part, at: int) -> np.ndarray:
    """Probabilities of the cells of network column `at`, a category: shape (B, S, cells)."""
    assert isinstance(part.likelihood, Columns)
    return numbers(part.likelihood.probabilities_of(part.output, at))


def plain_values(part: Part, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of x_j in the network's units, and their masses, (B, N) both."""
    assert isinstance(part.likelihood, Elementwise | PixelLogistic)
    points = numbers(part.likelihood.quantile(part.output, probabilities(part.output), at))
    return points.reshape(len(points), -1), np.repeat(part.weights / POINTS, POINTS, axis=1)


def number_values(column: NumberColumn, part: Part, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Possible values of a numeric column in B rows, and their masses, (B, N) both.

    Values are clipped to the range of the training rows.
    """
    assert isinstance(part.likelihood, Columns)
    x = numbers(part.likelihood.quantile_of(part.output, probabilities(part.output), start + column.width - 1))
    values = np.clip(column.number(x), column.low, column.high).reshape(len(x), -1)  # of (B, S, POINTS)
    masses = np.repeat(part.weights[..., None] / POINTS, POINTS, axis=2)
    if not column.atoms:
        return values, masses.reshape(values.shape)
    gate = cell_probabilities(part, start)  # (B, S, atoms + 1)
    between = (masses * gate[..., -1:]).reshape(values.shape)
    at_atoms = (part.weights[..., None] * gate[..., :-1]).sum(axis=1)
    atoms = np.broadcast_to(np.array(column.atoms), at_atoms.shape)
    return np.concatenate([values, atoms], axis=1), np.concatenate([between, at_atoms], axis=1)


def intervals(values: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Quantiles at INTERVAL of B rows' values, (B, N), whose masses sum to 1: shape (2, B)."""
    order = np.argsort(values, axis=1)
    below = np.cumsum(np.take_along_axis(masses, order, axis=1), axis=1)
    places = [(below < level).sum(axis=1, keepdims=True).clip(max=values.shape[1] - 1) for level in INTERVAL]
    return np.stack([np.take_along_axis(values, np.take_along_axis(order, at, axis=1), axis=1)[:, 0] for at in places])


def probabilities(like: Tensor) -> Tensor:
    """Evenly spaced probabilities, shape (POINTS,)."""
    return (torch.arange(POINTS, dtype=like.dtype, device=like.device) + 0.5) / POINTS


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
