"""The results of a scorer: frozen dataclasses of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

import numpy as np

from service.data.inputs import InputSpec
from service.errors import CalibrationError
from service.scoring.statistics import ReferenceStatistics, names_of
from service.validity.band import SIDES, Band, Side, Verdict, exact, rank
from service.validity.conformal import Acceptance, Discoveries, Tail, check_share

USUAL_FALSE_ALARM = 0.01  # of the combined rule


@dataclass(frozen=True, slots=True)
class CombinedRule:
    """The combined rule of several test statistics: a row is invalid if its combined p-value is at most `false_alarm`.

    `rows` is the number of validation rows behind a combined p-value, and `statistics` the names of the test statistics.
    """

    false_alarm: float
    rows: int
    statistics: tuple[str, ...]

    @staticmethod
    def of(evidence: ReferenceStatistics, spec: InputSpec, false_alarm: float | None = None) -> CombinedRule:
        """The rule at a false-alarm rate; by default USUAL_FALSE_ALARM, or the smallest that so many rows allow.

        Raises:
            CalibrationError: unless 0 < false_alarm < 1, or too few rows for this rate.
        """
        rate = max(USUAL_FALSE_ALARM, 1.0 / (evidence.rows + 1)) if false_alarm is None else false_alarm
        check_share("false alarm rate", rate)
        if false_alarm is not None and rank(evidence.rows, 100 * exact(rate)) < 1:
            needed = -(-1 // exact(rate)) - 1
            raise CalibrationError(
                f"a combined rate of {rate:g} needs at least {needed:,} validation rows in the calibrating half, there "
                f"are {evidence.rows:,}"
            )
        return CombinedRule(rate, evidence.rows, tuple(names_of(spec, evidence.known.generation)))

    def are_valid(self, p_values: np.ndarray) -> np.ndarray:
        """Which rows the rule accepts, from their combined p-values: shape (B,), bool.

        The tolerance absorbs floating-point rounding.
        """
        return p_values > self.false_alarm * (1.0 + 1e-12)

    @property
    def accepted(self) -> Acceptance:
        """The share of valid rows that the rule accepts."""
        return Acceptance.of(self.rows + 1 - max(1, rank(self.rows, 100 * exact(self.false_alarm))), self.rows)


@dataclass(frozen=True, slots=True)
class Scores:
    """Verdicts on B rows and the numbers behind them; arrays of shape (B,).

    `khat` is NaN if there is no tail to fit. `p_value` is two-sided; `low_p_value` is small only for unlikely rows. `valid`
    is the verdict: the row is inside the band or, with a `rule`, its `combined_p_value` exceeds the rule's rate. With a
    `rule`, `evidence` (B, E) holds the p-value of each of its statistics; without one, `combined_p_value` is NaN and
    `evidence` has shape (B, 0). `missing` counts a row's missing cells. A row with missing cells is compared with
    validation rows that have the same cells hidden: `low` and `high` are the ends of its own band. With folds every row has
    a band of its own. `evaluations` is what the estimate cost, in decoder evaluations.
    """

    band: Band
    rule: CombinedRule | None
    sides: np.ndarray
    valid: np.ndarray
    certain: np.ndarray
    reliable: np.ndarray
    log_likelihood: np.ndarray
    std_error: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    num_samples: np.ndarray
    evaluations: np.ndarray
    percentile: np.ndarray
    p_value: np.ndarray
    low_p_value: np.ndarray
    missing: np.ndarray
    low: np.ndarray
    high: np.ndarray
    combined_p_value: np.ndarray
    evidence: np.ndarray

    def __len__(self) -> int:
        return len(self.log_likelihood)

    def discoveries(self, level: float, tail: Tail = "low") -> Discoveries:
        """The rows to reject together so that the expected share of valid rows among them is at most `level`.

        This is not proved for p-values by folds (`Calibration.check_has_no_folds`).

        Raises:
            CalibrationError: unless 0 < level < 1.
        """
        if self.rule is not None:
            return Discoveries.of(self.combined_p_value, level, "low", self.rule.rows)
        p_values = self.low_p_value if tail == "low" else self.p_value
        return Discoveries.of(p_values, level, tail, self.band.rows)

    def sides_of(self, percentiles: tuple[float, float]) -> np.ndarray:
        """The sides of another band: -1 below, 0 inside, 1 above, shape (B,), int.

        The tolerance absorbs floating-point rounding.
        """
        low, high = percentiles[0] / 100.0, 1.0 - percentiles[1] / 100.0
        is_low = self.low_p_value <= low * (1.0 + 1e-12)
        is_high = (self.p_value <= 2.0 * high * (1.0 + 1e-12)) & (self.p_value < 2.0 * self.low_p_value)
        return is_high.astype(int) - is_low.astype(int)

    @property
    def side(self) -> list[Side]:
        """`below`, `inside` or `above` the band."""
        return [SIDES[side + 1] for side in self.sides.tolist()]

    @property
    def verdict(self) -> list[Verdict]:
        """`valid` if inside the band, ends included, or accepted by the combined rule; else `invalid`."""
        return ["valid" if one else "invalid" for one in self.valid.tolist()]


@dataclass(frozen=True, slots=True)
class ExplainedScores(Scores):
    """Scores with the N most suspicious columns of each row, smallest p-value first; arrays of shape (B, N).

    `columns` holds column indices, -1 if a row has no more, and `cells` the row's values there. `column_log_likelihood` is
    log p(x_j | the other columns), with its standard error and whether it is `column_reliable`. `column_p_value` is the
    share of validation cells at least as unlikely. From the other columns follows `expected`: a mean, with the central
    90 % interval from `expected_low` to `expected_high`, or a category with `expected_probability`. What does not apply is
    NaN.
    """

    columns: np.ndarray
    cells: np.ndarray
    column_log_likelihood: np.ndarray
    column_std_error: np.ndarray
    column_reliable: np.ndarray
    column_p_value: np.ndarray
    expected: np.ndarray
    expected_low: np.ndarray
    expected_high: np.ndarray
    expected_probability: np.ndarray


@dataclass(frozen=True, slots=True)
class Reconstructions:
    """Reconstructions of B rows: `mean` (B, D), `draws` (B, N, D), `feature_log_likelihood` (B, D), nats."""

    mean: np.ndarray
    draws: np.ndarray
    feature_log_likelihood: np.ndarray


@dataclass(frozen=True, slots=True)
class Samples:
    """Ancestral samples: `latents` (N, L) from the prior and `samples` (N, D) given them."""

    seed: int
    latents: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True, slots=True)
class Encodings:
    """q(z | x) of B rows: `mean` and `std` (B, L), and `draws` from it (B, N, L)."""

    mean: np.ndarray
    std: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True, slots=True)
class Manifold:
    """E[x | z] over a grid of two latents: `latents` (size * size, L) and `means` (size * size, D), row-major."""

    axes: tuple[int, int]
    latents: np.ndarray
    means: np.ndarray


@dataclass(frozen=True, slots=True)
class ReferenceEstimates:
    """log p(x) of B rows, shape (B,), the same by each network, (B, V), and log p(x_j | x_-j), (B, D), nats.

    `statistics` has shape (B, K). Arrays that were not requested have shape (B, 0).
    """

    log_likelihood: np.ndarray
    by_member: np.ndarray
    columns: np.ndarray
    statistics: np.ndarray


Answer = Scores | Reconstructions | Encodings | ReferenceEstimates


A = TypeVar("A", bound=Answer)


def rows_of(answer: A, rows: slice) -> A:
    """Some rows of a result for B rows, such as `Scores`."""
    return with_arrays(answer, {name: value[rows] for name, value in arrays_of(answer).items()})


def concatenated(answers: Sequence[A]) -> A:
    """Concatenate results for consecutive rows."""
    if len(answers) == 1:
        return answers[0]
    columns = [arrays_of(answer) for answer in answers]
    together = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
    return with_arrays(answers[0], together)


def with_arrays(answer: A, arrays: dict[str, np.ndarray]) -> A:
    changed: A = replace(cast("Any", answer), **arrays)
    return changed


def arrays_of(answer: A) -> dict[str, np.ndarray]:
    """A result's arrays by name, all indexed by row."""
    values = ((entry.name, getattr(answer, entry.name)) for entry in fields(answer))
    return {name: value for name, value in values if isinstance(value, np.ndarray)}
