"""The results of a scorer: frozen dataclasses of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, TypeVar, cast

import numpy as np

from service.data.domains import MISSING, Domains, Violation, num_unreadable
from service.data.inputs import InputSpec
from service.errors import CalibrationError
from service.scoring.reasons import reasons_of, with_cells
from service.scoring.statistic_kinds import names_of
from service.scoring.statistics import ReferenceStatistics
from service.validity.band import SIDES, Band, Side, Verdict, exact, rank
from service.validity.conformal import Acceptance, Discoveries, Tail, check_share, places_refused
from service.validity.violations import ViolationReference

USUAL_FALSE_ALARM = 0.01  # of the combined rule
# How a combined rate is split between the statistics and the violations. Half of the validation rows rank the statistics,
# and all of them the violations: with these shares both need about as many rows for a rate.
STATISTICS_SHARE, VIOLATIONS_SHARE = Fraction(2, 3), Fraction(1, 3)
VIOLATIONS = "violations"  # the name of their p-value among those of the statistics
CERTAIN = Acceptance(1.0, (1.0, 1.0), 1.0)  # everything is accepted


@dataclass(frozen=True, slots=True)
class CombinedRule:
    """The combined rule of several test statistics: a row is invalid if its combined p-value is at most `false_alarm`.

    `rows` is the number of validation rows that rank the combined statistic, and `statistics` the names of the p-values
    behind it. If the version knows how often valid rows violate domains, the last of them is that of a row's violations and
    missing cells, among `violation_rows` validation rows; the rate is then split between them and the statistics, and the
    combined p-value is the smaller of the two after its share. `accepted` is the share of valid rows that the rule accepts.
    """

    false_alarm: float
    rows: int
    statistics: tuple[str, ...]
    accepted: Acceptance
    violation_rows: int = 0

    @staticmethod
    def of(
        evidence: ReferenceStatistics,
        spec: InputSpec,
        false_alarm: float | None = None,
        violations: ViolationReference | None = None,
    ) -> CombinedRule:
        """The rule at a false-alarm rate; by default USUAL_FALSE_ALARM, or the smallest that so many rows allow.

        Raises:
            CalibrationError: unless 0 < false_alarm < 1, or too few rows for this rate.
        """
        share = STATISTICS_SHARE if violations is not None else Fraction(1)
        smallest = 1 / (share * (evidence.rows + 1))
        if violations is not None:
            smallest = max(smallest, 1 / (VIOLATIONS_SHARE * (violations.rows + 1)))
        rate = max(USUAL_FALSE_ALARM, float(smallest)) if false_alarm is None else false_alarm
        check_share("false alarm rate", rate)
        if false_alarm is not None and exact(rate) < smallest:
            raise CalibrationError(too_few_rows(rate, evidence.rows, violations))
        places = max(1, rank(evidence.rows, 100 * exact(rate) * share))  # the lowest rate is rounded to a float
        accepted = accepts(evidence.rows, places_refused(evidence.combination.combined, places))
        names = tuple(names_of(spec, evidence.known.generation))
        if violations is None:
            return CombinedRule(rate, evidence.rows, names, accepted)
        places = max(1, rank(violations.rows, 100 * exact(rate) * VIOLATIONS_SHARE))
        refused = violations.places_refused(places)
        # Rows that cannot be read are refused at infinite statistics already.
        accepted = accepted.both(accepts(violations.rows, refused - violations.lowest))
        return CombinedRule(rate, evidence.rows, (*names, VIOLATIONS), accepted, violations.rows)

    def p_values(self, statistics: np.ndarray, violations: np.ndarray) -> np.ndarray:
        """The combined p-values of rows from those of their statistics and of their violations, (B,) both: (B,)."""
        if not self.violation_rows:
            return statistics
        smaller = np.minimum(statistics / float(STATISTICS_SHARE), violations / float(VIOLATIONS_SHARE))
        return np.minimum(smaller, 1.0)

    def are_valid(self, p_values: np.ndarray) -> np.ndarray:
        """Which rows the rule accepts, from their combined p-values: shape (B,), bool.

        The tolerance absorbs floating-point rounding.
        """
        return p_values > self.false_alarm * (1.0 + 1e-12)

    @property
    def finest(self) -> int:
        """The number of validation rows whose smallest p-value is that of the rule."""
        if not self.violation_rows:
            return self.rows
        return max(int((self.rows + 1) * STATISTICS_SHARE), int((self.violation_rows + 1) * VIOLATIONS_SHARE)) - 1


def too_few_rows(rate: float, rows: int, violations: ViolationReference | None) -> str:
    """Why a combined rate is too low for so many validation rows in the calibrating half, or for all of them."""
    if violations is not None:
        needed = -(-1 // (exact(rate) * VIOLATIONS_SHARE)) - 1
        if violations.rows < needed:
            return (
                f"a combined rate of {rate:g} needs at least {needed:,} validation rows, there are {violations.rows:,}"
            )
    needed = -(-1 // (exact(rate) * (1 if violations is None else STATISTICS_SHARE))) - 1
    where = "validation rows in the calibrating half"
    return f"a combined rate of {rate:g} needs at least {needed:,} {where}, there are {rows:,}"


def accepts(rows: int, refused: int) -> Acceptance:
    """The share of valid rows that is accepted if a new row is refused at so many of its n + 1 places among the rows."""
    return Acceptance.of(max(1, rows + 1 - refused), rows) if refused else CERTAIN


@dataclass(frozen=True, slots=True)
class Grouping:
    """The groups of a column by which rows are judged: G names, and what is accepted of each group's valid rows.

    `rows` are the validation rows of each, and `finest` is the number of rows behind the finest p-values. The first group
    is the pool; it has 0 rows if there is none, and is then compared with all.
    """

    column: str
    names: tuple[str, ...]
    accepted: tuple[Acceptance, ...]
    rows: tuple[int, ...]
    finest: int

    @property
    def together(self) -> Acceptance:
        """The share of all valid rows that is accepted, if groups are as frequent as among the validation rows."""
        shares = np.array(self.rows) / sum(self.rows)

        def mean(values: Sequence[float]) -> float:
            return float(shares @ np.array(values))

        lows, highs = zip(*(one.interval or (0.0, 1.0) for one in self.accepted), strict=True)
        expected = mean([one.expected for one in self.accepted])
        return Acceptance(expected, (mean(lows), mean(highs)), expected, any(one.is_bound for one in self.accepted))


@dataclass(frozen=True, slots=True)
class Scores:
    """Verdicts on B rows and the numbers behind them; arrays of shape (B,).

    `khat` is NaN if there is no tail to fit. `p_value` is two-sided; `low_p_value` is small only for unlikely rows. `valid`
    is the verdict: the row is inside the band or, with a `rule`, its `combined_p_value` exceeds the rule's rate. With a
    `rule`, `evidence` (B, E) holds the p-value of each of its statistics; without one, `combined_p_value` is NaN and
    `evidence` has shape (B, 0). `missing` counts a row's missing cells. A row with missing cells is compared with
    validation rows that have the same cells hidden: `low` and `high` are the ends of its own band. With folds every row has
    a band of its own. `evaluations` is what the estimate cost, in decoder evaluations.

    With a `grouping` each row is compared with validation rows of its own group, `group`: the number of its name; -1 if its
    group is missing, so that it is compared with rows of all groups.

    `record` is the id under which a journal keeps the rows' verdicts; None if there is none.

    `by_column` (B, D) is E[log p(x_j | z)] over p(z | x), nats, if maps were asked for.

    Rows that are `unreadable` have a cell that cannot be read, or no value: they rank below every number, and are always
    invalid. `codes` (B, D + C) tell what is wrong with each cell by the columns' `domains`; `violations` puts it in words.
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
    unreadable: np.ndarray
    codes: np.ndarray
    group: np.ndarray
    by_column: np.ndarray | None
    grouping: Grouping | None
    domains: Domains
    spec: InputSpec
    record: str | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.log_likelihood)

    @property
    def records(self) -> list[str] | None:
        """The record id of each row, if there is a journal."""
        return None if self.record is None else [f"{self.record}.{row}" for row in range(len(self))]

    def discoveries(self, level: float, tail: Tail = "low") -> Discoveries:
        """The rows to reject together so that the expected share of valid rows among them is at most `level`.

        This is not proved for p-values by folds (`Calibration.check_has_no_folds`).

        Raises:
            CalibrationError: unless 0 < level < 1.
        """
        finest = self.band.rows if self.rule is None else self.rule.finest
        finest = finest if self.grouping is None else self.grouping.finest
        if self.rule is not None:
            return Discoveries.of(self.combined_p_value, level, "low", finest)
        return Discoveries.of(self.low_p_value if tail == "low" else self.p_value, level, tail, finest)

    @property
    def accepted(self) -> Acceptance:
        """The share of valid rows that the band or the rule accepts."""
        if self.grouping is not None:
            return self.grouping.together
        return self.band.accepted if self.rule is None else self.rule.accepted

    @property
    def group_names(self) -> list[str | None]:
        """The group by which each row is judged; None for rows that are compared with all."""
        if self.grouping is None:
            return [None] * len(self)
        pool, *others = self.grouping.names
        names = [pool if self.grouping.rows[0] else None, *others, None]  # -1 is the last
        return [names[number] for number in self.group.tolist()]

    def sides_of(self, percentiles: tuple[float, float]) -> np.ndarray:
        """The sides of another band: -1 below, 0 inside, 1 above, shape (B,), int.

        The tolerance absorbs floating-point rounding.
        """
        low, high = percentiles[0] / 100.0, 1.0 - percentiles[1] / 100.0
        is_low = self.low_p_value <= low * (1.0 + 1e-12)
        is_high = (self.p_value <= 2.0 * high * (1.0 + 1e-12)) & (self.p_value < 2.0 * self.low_p_value)
        return np.where(self.unreadable, -1, is_high.astype(int) - is_low.astype(int))

    def violations(self) -> list[list[Violation]]:
        """What is wrong with each row, by its cells' domains."""
        found: list[list[Violation]] = [[] for _ in range(len(self))]
        for row in np.flatnonzero(self.unreadable | (self.codes > MISSING).any(axis=1)).tolist():
            found[row] = self.domains.violations(self.spec, self.codes[row])
        return found

    def reasons(self) -> list[str | None]:
        """Why each row is invalid, in a sentence; None for valid ones."""
        return reasons_of(self)

    @property
    def num_violations(self) -> np.ndarray:
        """How many violations each row has, shape (B,)."""
        is_empty = self.unreadable & (num_unreadable(self.codes) == 0)  # of which that alone is told
        return np.where(is_empty, 1, (self.codes > MISSING).sum(axis=1))

    def warnings(self) -> list[str]:
        """What to tell beside the verdicts: later dates, and a rate that cannot be kept since too many cannot be read."""
        return [*self.domains.notes(self.codes), *filter(None, [self.rate_warning()])]

    def rate_warning(self) -> str | None:
        """A warning if valid rows are refused more often than was asked for, since too many cannot be read; else None."""
        low, high = self.band.percentiles
        refused = (low + 100.0 - high) / 100.0 if self.rule is None else self.rule.false_alarm
        if self.accepted.expected > 1.0 - refused - 1e-6:
            return None
        return (
            f"only {100 * self.accepted.expected:.3g} % of valid rows are accepted: more validation rows than the rate "
            "allows have a cell that cannot be read"
        )

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

    def reasons(self) -> list[str | None]:
        """Why each row is invalid, with its most suspicious cell; None for valid ones."""
        return with_cells(self, reasons_of(self))


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
