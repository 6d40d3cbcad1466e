"""log p(x_j | the other columns) for every column of a row at once, from the draws that its score rests on.

With draws z_s of a proposal and weights w_s = p(x, z_s) / q(z_s), columns independent given z,

    log p(x_j | x_-j) = log p(x) - log p(x_-j),    p(x_-j) ~= mean of w_s / p(x_j | z_s)

The draws came from a proposal that saw x_j. Where x_j is far from what the others say, hardly any of them lie where
p(z | x_-j) has its mass, and the estimate is too kind; the tail of the divided weights says so (as it does in leave-one-out
cross-validation: Vehtari, Gelman and Gabry, 2017). There the column is hidden and the row is estimated again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from service.density import importance
from service.density.codebook import codebook_of
from service.density.estimator import (
    END_TOLERANCE,
    Block,
    BlockOfRows,
    Draws,
    Estimates,
    Estimator,
    Row,
    Tiling,
    estimates_of,
    go_on,
    is_usual,
    one_thread,
)
from service.density.pareto import khat
from service.vae.alike import VECTOR
from service.vae.network import VAE

KEPT_DRAWS = 128  # of a row, that are looked at column by column, even where its score needs fewer
MAX_HIDDEN = 3  # columns of a row for which it is estimated again
HIDDEN_SAMPLES = 256  # draws at most, of a row without a column


@dataclass(frozen=True, slots=True)
class ColumnEstimates:
    """log p(x_j | x_-j) of B rows, shape (B, D), nats, with standard errors; NaN for holes.

    `reliable` says where the tail of the weights gives no reason to distrust them; elsewhere they may be too high.
    """

    log_likelihood: np.ndarray
    std_error: np.ndarray
    reliable: np.ndarray


@dataclass(frozen=True, slots=True)
class ColumnDraws:
    """What the estimates of B rows' columns rest on: weighted draws of p(z | x) for each row, `draws`.

    `without` has those of p(z | x_-j) where column j was hidden.
    """

    draws: Sequence[Draws]
    without: Sequence[dict[int, Draws]]


def estimate_with_columns(
    estimator: Estimator,
    vae: VAE,
    codes: np.ndarray,
    x: np.ndarray,
    widths: Sequence[int],
    suspect: np.ndarray,
    measures: np.ndarray,
    pool: Executor | None = None,
    band_ends: tuple[float, ...] = (),
    checkpoint: Callable[[], None] = go_on,
    incomplete: np.ndarray | None = None,
) -> tuple[Estimates, ColumnEstimates, ColumnDraws]:
    """What `Estimator.estimate` says of rows, and what it takes to say which column is to blame.

    Args:
        widths: how many of the network's columns each of the D columns is.
        suspect: log p(x_j | x_-j) below which a column's estimate is looked at twice, shape (D,), nats.
        measures: what log p(x_j) is more in the units in which everything is told, shape (B, D), nats.
    """
    book = codebook_of(vae, codes)

    def found(block: BlockOfRows) -> list[tuple[Row, np.ndarray, np.ndarray, np.ndarray, dict[int, Draws]]]:
        with one_thread(), torch.inference_mode(False), torch.no_grad():
            more = measures[block.chosen]
            rows = Block(
                block.estimator, vae, book, block.x, block.band_ends, None, checkpoint, more.sum(axis=1), KEPT_DRAWS
            )
            rows.sample(block.estimator.first_samples)
            columns = Columns(rows, widths, more)
            columns.look_twice(suspect)
            parts = (columns.values, columns.errors, ~columns.doubtful, columns.without)
            return list(zip(rows.rows, *parts, strict=True))

    found_rows = estimator.by_block(vae, x, band_ends, incomplete, found, pool)
    rows, *arrays, without = zip(*found_rows, strict=True) if found_rows else ((),) * 5
    values, errors, reliable = (np.array(array).reshape(len(rows), len(widths)) for array in arrays)
    columns = ColumnEstimates(values, errors, reliable.astype(bool))
    return estimates_of(rows), columns, ColumnDraws([row.draws for row in rows], without)


class Columns:
    """The columns of a block of rows whose draws are done."""

    def __init__(self, block: Block, widths: Sequence[int], measures: np.ndarray) -> None:
        self.block, self.measures = block, measures
        self.starts = np.cumsum([0, *widths[:-1]])
        self.owner = np.repeat(np.arange(len(widths)), widths)
        shape = (len(block.rows), len(widths))
        self.values, self.errors = np.zeros(shape), np.zeros(shape)
        self.doubtful = np.zeros(shape, dtype=bool)  # an estimate that is not to be trusted
        self.without: list[dict[int, Draws]] = [{} for _ in block.rows]
        self.draw_enough()
        self.leave_out()

    def draw_enough(self) -> None:
        """More draws for rows whose scores need few; they follow the others in the same sequence."""
        by_size = self.by_size()
        for size, rows in by_size.items():
            if size < KEPT_DRAWS:
                for chosen, z, log_weights in self.block.drawn(rows, size, KEPT_DRAWS - size):
                    self.block.keep(chosen, z, log_weights)

    def by_size(self) -> dict[int, list[int]]:
        """The rows that have kept so many draws, by that number."""
        sizes = [len(row.draws.log_weights) for row in self.block.rows]
        return {size: [index for index, one in enumerate(sizes) if one == size] for size in sorted(set(sizes))}

    def leave_out(self) -> None:
        """Estimates by the rows' own draws: tiles of rows that have as many."""
        for size, rows in self.by_size().items():
            group = self.block.tiling.group(size)
            for start in range(0, len(rows), group):
                self.block.checkpoint()
                self.leave_out_of(rows[start : start + group], group)

    def leave_out_of(self, rows: list[int], group: int) -> None:
        """The same for a tile of at most `group` rows."""
        filled = rows + [rows[-1]] * (group - len(rows))
        z = torch.stack([self.block.rows[index].draws.z for index in filled], dim=1)  # (S, B, L)
        log_weights = torch.stack([self.block.rows[index].draws.log_weights for index in filled], dim=1)
        terms = self.by_column(z, filled)  # (S, B, D)
        divided = log_weights[..., None] - terms
        values = log_weights.logsumexp(dim=0)[:, None] - divided.logsumexp(dim=0)
        errors = importance.ratio_std_error(log_weights[..., None], divided)
        count, width = len(rows), len(self.starts)
        holes = np.logical_and.reduceat(np.isnan(self.block.block[rows]), self.starts, axis=1)
        self.values[rows] = np.where(holes, np.nan, values[:count, :width].cpu().numpy() + self.measures[rows])
        self.errors[rows] = np.where(holes, np.nan, errors[:count, :width].cpu().numpy())
        samples = len(divided)
        tail, size = khat(divided.flatten(1)), importance.ess(divided.flatten(1))
        trusted = is_usual(tail, size, samples) | (size >= (1.0 - 1e-6) * samples)
        self.doubtful[rows] = ~holes & ~trusted.view(len(filled), -1)[:count, :width].cpu().numpy()

    def by_column(self, z: Tensor, rows: list[int]) -> Tensor:
        """log p(x_j | z) in the network's units for some rows: z of shape (S, B, L) to (S, B, D), float64.

        D is filled up with columns that say nothing, to whole vectors, in which all elements round alike.
        """
        vae = self.block.vae
        terms = vae.likelihood.log_prob(vae.decoder(z), self.block.x[rows]).double()
        if len(self.starts) < terms.shape[-1]:
            together = np.add.reduceat(terms.cpu().numpy(), self.starts, axis=-1)
            terms = torch.from_numpy(together).to(terms.device)
        return F.pad(terms, (0, -terms.shape[-1] % VECTOR))

    def look_twice(self, suspect: np.ndarray) -> None:
        """Estimate rows again without the columns that look worst, where their estimates are not to be trusted."""
        usual = np.where(np.isfinite(suspect), suspect, 0.0)
        is_suspect = self.doubtful & (self.values < suspect)
        short = np.where(is_suspect, usual - self.values, -np.inf)  # (B, D)
        worst = np.argsort(-short, axis=1, kind="stable")[:, :MAX_HIDDEN]
        pairs = [(row, int(column)) for row, few in enumerate(worst) for column in few if is_suspect[row, column]]
        length = few_rows(self.block.vae).rows
        for start in range(0, len(pairs), length):
            self.hide(pairs[start : start + length])

    def hide(self, pairs: list[tuple[int, int]]) -> None:
        """log p(x_j | x_-j) as the difference of two estimates, for pairs of a row and a column, at most a block."""
        block, rows, columns = self.block, [row for row, _ in pairs], [column for _, column in pairs]
        x = np.where(self.owner == np.array(columns)[:, None], np.float32(np.nan), block.block[rows])
        hidden = Block(
            without_ends(block.estimator), block.vae, block.book, x, (), None, block.checkpoint,
            self.measures[rows].sum(axis=1) - self.measures[rows, columns], KEPT_DRAWS, few_rows(block.vae),
        )  # fmt: skip
        hidden.sample(hidden.estimator.first_samples, may_restart=False)
        for (row, column), again in zip(pairs, hidden.rows, strict=True):
            whole = block.rows[row]
            difference = whole.log_likelihood - again.log_likelihood
            # Both kinds are too kind where they fail: an estimate of log p(x_-j) that is too low is no reason to forgive.
            if again.reliable or difference < self.values[row, column]:
                self.values[row, column] = difference
                self.errors[row, column] = np.hypot(whole.std_error, again.std_error)
                self.doubtful[row, column] = not (again.reliable and whole.reliable)
                self.without[row][column] = again.draws


def few_rows(vae: VAE) -> Tiling:
    """Small blocks: few of a block's rows have a column that is hidden."""
    return Tiling.of(vae, max_scale=1)


def without_ends(estimator: Estimator) -> Estimator:
    """The estimator of rows without a column: no band's ends are near, and no more effort than the difference is worth."""
    return replace(
        estimator,
        ends=None,
        tolerance=max(estimator.tolerance, END_TOLERANCE),
        max_samples=max(estimator.first_samples, min(estimator.max_samples, HIDDEN_SAMPLES)),
        anneal=False,
    )
