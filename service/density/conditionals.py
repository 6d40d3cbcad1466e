"""log p(x_j | the other columns) for every column of a row at once, from the draws behind its score.

With draws z_s of a proposal and weights w_s = p(x, z_s) / q(z_s), columns independent given z,

    log p(x_j | x_-j) = log p(x) - log p(x_-j),    p(x_-j) ~= mean of w_s / p(x_j | z_s)

If x_j is far from what the other columns predict, this is not enough. The draws came from a proposal that saw x_j: hardly
any lie where p(z | x_-j) has its mass, so the estimate of log p(x_j | x_-j) is too high (as in leave-one-out
cross-validation: Vehtari, Gelman and Gabry, 2017). Also, a wrong cell makes correct ones look wrong. A row with suspicious
columns is therefore estimated again with each of the worst columns hidden in turn. Attributed is the column without which
the others are most likely; the others are then judged without it, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.density import importance
from service.density.block import Block, Draws
from service.density.diagnostics import is_usual
from service.density.estimator import END_TOLERANCE
from service.density.pareto import khat

KEPT_DRAWS = 128  # draws of a row evaluated column by column, even if its score needs fewer
MAX_CANDIDATES = 3  # columns of a row that are hidden, one at a time, to find the one to attribute
MAX_ATTRIBUTED = 3  # most columns of a row that are attributed
HIDDEN_SAMPLES = 256  # most draws for a row with a column hidden


@dataclass(frozen=True, slots=True)
class ColumnEstimates:
    """log p(x_j | others) of B rows, shape (B, D), nats, with standard errors; NaN for missing cells.

    The others are all other columns except those attributed before this one, whose `log_likelihood` was below the suspect
    level. `log_others` is log p(others). `reliable` is True if the tail of the weights gives no reason to doubt the
    estimate; if False, it may be too high.
    """

    log_likelihood: np.ndarray
    std_error: np.ndarray
    reliable: np.ndarray
    log_others: np.ndarray


@dataclass(frozen=True, slots=True)
class ColumnDraws:
    """The weighted draws behind B rows' column estimates: of z given each row's columns that are not attributed.

    `without` maps each column that was hidden to its weighted draws of p(z | others).
    """

    draws: Sequence[Draws]
    without: Sequence[dict[int, Draws]]


@dataclass(frozen=True)
class ColumnObserver:
    """Observes log p(x_j | the other columns) of each row, and attributes suspicious rows to columns.

    Attributes:
        widths: how many network columns each of the D columns takes.
        suspect: log p(x_j | others) below which a column is suspicious, shape (D,), nats.
        log_abs_det: log-determinant by column that converts log p(x_j) to the data's units, for all estimated rows, shape
            (B, D), nats.
    """

    widths: Sequence[int]
    suspect: np.ndarray
    log_abs_det: np.ndarray
    kept_draws: int = KEPT_DRAWS

    def __call__(self, block: Block, chosen: np.ndarray) -> list[Case]:
        """The column estimates of each row of a block whose draws are complete."""
        # A score may have needed few draws; more continue the same sequence.
        few = np.flatnonzero(block.kept < KEPT_DRAWS)
        for size in np.unique(block.kept[few]):
            for part, z, log_weights in block.drawn(few[block.kept[few] == size], int(size), KEPT_DRAWS - int(size)):
                block.keep(part, z, log_weights, int(size))
        cases = [Case.of(*one) for one in zip(rows_of(block), block.rows, self.log_abs_det[chosen], strict=True)]
        attributor = Attributor(block, self.widths, self.suspect)
        attributor.leave_out(cases)
        attributor.attribute(cases)
        return cases


def columns_of(cases: Sequence[Case], features: int, together: int = 1) -> tuple[ColumnEstimates, ColumnDraws]:
    """Column estimates of B rows as arrays, (B, D), and the draws behind them.

    Of `together` adjacent columns, which were estimated as one, the first has the estimate, and the others have none.
    """

    def placed(values: list[np.ndarray], nothing: float) -> np.ndarray:
        array = np.full((len(cases), features), nothing)
        array[:, ::together] = np.array(values).reshape(len(cases), features // together)
        return array

    columns = ColumnEstimates(
        placed([case.values for case in cases], np.nan),
        placed([case.errors for case in cases], np.nan),
        placed([~case.doubtful for case in cases], 0.0) > 0,
        placed([case.log_others for case in cases], np.nan),
    )
    without = [{together * one: draws for one, draws in case.without.items()} for case in cases]
    return columns, ColumnDraws([case.draws for case in cases], without)


@dataclass(frozen=True, slots=True)
class Row:
    """The estimate of one row's log p(x), with the draws that are kept of it."""

    log_likelihood: float
    std_error: float
    reliable: bool
    draws: Draws


def rows_of(block: Block) -> list[Row]:
    """The rows of a block, one by one."""
    found = block.estimates
    numbers = zip(found.log_likelihood.tolist(), found.std_error.tolist(), found.reliable.tolist(), strict=True)
    return [Row(*one, block.draws_of(at)) for at, one in enumerate(numbers)]


@dataclass
class Case:
    """What is known about a row's columns so far, each an array of shape (D,).

    `row` is the estimate without the attributed columns, `x` (D',) the whole row.
    """

    row: Row
    x: np.ndarray
    log_abs_det: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    doubtful: np.ndarray
    log_others: np.ndarray
    attributed: list[int]
    without: dict[int, Draws]

    @staticmethod
    def of(row: Row, x: np.ndarray, log_abs_det: np.ndarray) -> Case:
        """A row of which only the score is known."""
        nothing = np.full(len(log_abs_det), np.nan)
        doubtful = np.zeros(len(log_abs_det), dtype=bool)
        return Case(row, x, log_abs_det, nothing, nothing.copy(), doubtful, nothing.copy(), [], {})

    @property
    def draws(self) -> Draws:
        """Weighted draws of p(z | the columns that are not attributed)."""
        return self.row.draws

    def suspicious(self, suspect: np.ndarray) -> list[int]:
        """Suspicious columns that are not attributed yet, worst first; at most MAX_CANDIDATES."""
        usual = np.where(np.isfinite(suspect), suspect, 0.0)
        short = np.where(self.values < suspect, usual - self.values, -np.inf)
        short[self.attributed] = -np.inf
        worst = np.argsort(-short, kind="stable")[:MAX_CANDIDATES]
        return [int(column) for column in worst if short[column] > -np.inf]

    def know(self, column: int, without: Row) -> None:
        """Update log p(x_j | others) by the difference of two estimates, with and without column j."""
        difference = self.row.log_likelihood - without.log_likelihood
        # Both estimates of log p(x_j | others) err upwards if they fail: unless log p(others) is reliable, keep the lower.
        if without.reliable or difference < self.values[column]:
            self.values[column] = difference
            self.errors[column] = np.hypot(self.row.std_error, without.std_error)
            self.doubtful[column] = not (without.reliable and self.row.reliable)
            self.log_others[column] = without.log_likelihood
            self.without[column] = without.draws


class Attributor:
    """Attributes the low likelihood of rows to columns, once their draws are complete."""

    def __init__(self, block: Block, widths: Sequence[int], suspect: np.ndarray) -> None:
        self.vae, self.search_starts, self.check_cancelled = block.vae, block.starts, block.check_cancelled
        self.estimator = block.estimator.endless(END_TOLERANCE, HIDDEN_SAMPLES)
        self.suspect, self.tiling = suspect, block.tiling
        self.firsts = np.cumsum([0, *widths[:-1]])
        self.owner = np.repeat(np.arange(len(widths)), widths)

    # From the rows' own draws

    def leave_out(self, cases: Sequence[Case]) -> None:
        """Estimate all columns that are not attributed from the rows' own draws, in tiles of rows with equally many."""
        for size in sorted({len(case.draws.log_weights) for case in cases}):
            alike = [case for case in cases if len(case.draws.log_weights) == size]
            for index in self.tiling.tiles(torch.arange(len(alike)), size):
                self.check_cancelled()
                self.leave_out_of([alike[at] for at in index.tolist()])

    def leave_out_of(self, cases: Sequence[Case]) -> None:
        """`leave_out` for one tile."""
        log_weights = torch.stack([case.draws.log_weights for case in cases])[:, None]  # (B, 1, S)
        divided = log_weights - self.by_column(cases)  # (B, D, S)
        values = (log_weights.logsumexp(dim=-1) - divided.logsumexp(dim=-1)).cpu().numpy()
        all_normalized, normalized = importance.normalized_weights(log_weights), importance.normalized_weights(divided)
        errors = importance.ratio_std_error(all_normalized, normalized).cpu().numpy()
        samples, size = divided.shape[-1], importance.ess(normalized)
        tail = khat(divided.flatten(0, 1)).view(size.shape)
        trusted = is_usual(tail, size, samples) | (size >= (1.0 - 1e-6) * samples)
        doubtful = ~trusted.cpu().numpy()
        for at, case in enumerate(cases):
            judged = ~np.logical_and.reduceat(np.isnan(case.x), self.firsts)
            judged[case.attributed] = False
            case.values[judged] = (values[at] + case.log_abs_det)[judged]
            case.errors[judged], case.doubtful[judged] = errors[at, judged], doubtful[at, judged]
            case.log_others[judged] = case.row.log_likelihood - case.values[judged]

    def by_column(self, cases: Sequence[Case]) -> Tensor:
        """log p(x_j | z) in the network's units for the rows' draws: shape (B, D, S), float64."""
        z = torch.stack([case.draws.z for case in cases])  # (B, S, L)
        x = torch.from_numpy(np.stack([case.x for case in cases])).to(z)
        terms = self.vae.likelihood.log_prob(self.vae.decoder(z), self.vae.likelihood.read(x)[:, None]).double()
        if len(self.firsts) < terms.shape[-1]:
            together = np.add.reduceat(terms.cpu().numpy(), self.firsts, axis=-1)
            terms = torch.from_numpy(together).to(terms.device)
        return terms.mT.contiguous()

    # With columns hidden

    def attribute(self, cases: Sequence[Case]) -> None:
        """Attribute columns one after another while some look suspicious."""
        open_cases = list(cases)
        for _ in range(MAX_ATTRIBUTED):
            candidates = [(case, column) for case in open_cases for column in case.suspicious(self.suspect)]
            hidden = self.without_columns([(case, [*case.attributed, column]) for case, column in candidates])
            found: dict[int, dict[int, Row]] = {}
            for (case, column), row in zip(candidates, hidden, strict=True):
                case.know(column, row)
                found.setdefault(id(case), {})[column] = row
            open_cases = [case for case in open_cases if self.attributes_to_worst(case, found.get(id(case), {}))]
            self.leave_out(open_cases)

    def attributes_to_worst(self, case: Case, rows: dict[int, Row]) -> bool:
        """Attribute the worst of the columns that were hidden, if it is still suspicious; whether there was one."""
        worst = next((column for column in case.suspicious(self.suspect) if column in rows), None)
        if worst is None:
            return False
        case.attributed.append(worst)
        case.row = rows[worst]
        return True

    def without_columns(self, wanted: Sequence[tuple[Case, list[int]]]) -> list[Row]:
        """Estimates of rows with columns hidden, in order, in separate blocks."""
        rows: list[Row] = []
        for start in range(0, len(wanted), self.tiling.rows):
            part = wanted[start : start + self.tiling.rows]
            x = np.stack([np.where(np.isin(self.owner, out), np.float32(np.nan), case.x) for case, out in part])
            log_abs_det = np.array([np.delete(case.log_abs_det, out).sum() for case, out in part])
            block = Block(
                self.estimator,
                self.vae,
                self.search_starts,
                x,
                check_cancelled=self.check_cancelled,
                log_abs_det=log_abs_det,
                kept_draws=KEPT_DRAWS,
            )
            block.sample(self.estimator.first_samples, may_restart=False)
            rows += rows_of(block)
        return rows
