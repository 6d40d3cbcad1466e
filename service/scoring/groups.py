"""Calibration by groups: a row is compared with valid rows of its own group, so that each group has the promised rate.

Which groups there are follows from the rows that the network was fitted to: a value that is frequent among them is a group
by itself, and all others together are the pool, which promises its rate as a whole, not its members'. This is Mondrian
conformal prediction (Vovk, Lindsay, Nouretdinov and Gammerman, 2003).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from service.data.columns import CategoryColumn, plain
from service.data.domains import counted, has_missing, is_lowest
from service.data.inputs import InputSpec, Mixed
from service.errors import CalibrationError, DataError
from service.scoring.scores import USUAL_FALSE_ALARM, CombinedRule, Grouping
from service.scoring.statistics import ReferenceStatistics
from service.system.frozen import Frozen
from service.validity.band import Band
from service.validity.violations import ViolationReference

LEAST_ROWS = 100  # calibration rows that a group is expected to have
SPREAD = 4.0  # standard deviations by which a group may have fewer calibration rows than expected
POOL = 0  # the number of the pool
POOL_NAME = "(others)"
MOST_KEPT = 100  # groupings, and bands
HIDDEN = -1  # instead of a number, for rows whose group is missing

T = TypeVar("T")


class GroupPlan(Frozen):
    """A column of categories, and which of its values are groups by themselves; all others are the pool.

    `has_pool` is False if the rows that the network was fitted to had no other values. Others are then compared with all
    validation rows.
    """

    column: str
    values: tuple[float, ...] | tuple[str, ...]
    has_pool: bool

    @staticmethod
    def of(spec: InputSpec, name: str, rows: np.ndarray, calibration: int, needed: int) -> GroupPlan:
        """The groups of a column, by whole rows that a network was fitted to, shape (n, D).

        Groups and pool are expected to have enough of `calibration` rows that hardly any has fewer than `needed`, and at
        least LEAST_ROWS: if the pool would not, the smallest groups join it.

        Raises:
            DataError: the model reads no such column of categories, or fewer than two groups are large enough.
        """
        column, places = category_column(spec, name), places_in(spec, name, rows)
        places = places[~np.isnan(places)].astype(int)
        expected = np.bincount(places, minlength=len(column.values) + 1) / max(1, len(places)) * calibration
        least = max(LEAST_ROWS, expected_for(needed))
        order = [place for place in np.argsort(-expected[:-1], kind="stable").tolist() if expected[place] >= least]
        pool = calibration - expected[order].sum()
        while order and 1e-9 < pool < least:
            pool += expected[order.pop()]
        if len(order) + (pool > 1e-9) < 2:
            raise DataError(
                f"--by {name}: fewer than two groups are expected to have {least:,} of {calibration:,} calibration rows; "
                "collect more rows, allow a higher rate, or leave out --by"
            )
        values = [column.values[place] for place in sorted(order)]
        if POOL_NAME in values:
            raise DataError(f"--by {name}: the value {POOL_NAME} is what the pool of all other values is called")
        return GroupPlan(column=name, values=tuple(values), has_pool=bool(pool > 1e-9))

    def least_rows(self, spec: InputSpec, rows: np.ndarray, needed: int) -> int:
        """How many calibration rows are enough for the smallest group, by the rows that a network was fitted to."""
        numbers = self.numbers(spec, rows)
        counts = np.bincount(numbers[numbers >= 0], minlength=len(self.values) + 1)
        smallest = counts[0 if self.has_pool else 1 :].min() / max(1, counts.sum())
        return math.ceil(max(LEAST_ROWS, expected_for(needed)) / max(smallest, 1e-6))

    def check(self, spec: InputSpec) -> None:
        """Raise ValueError unless the input has the column, with these values."""
        try:
            known = category_column(spec, self.column).values
        except DataError as error:
            raise ValueError(str(error)) from None
        if not set(self.values) <= set(known) or len(set(self.values)) < len(self.values):
            raise ValueError("groups of values that the column does not have")

    def numbers(self, spec: InputSpec, rows: np.ndarray, lowest: np.ndarray | None = None) -> np.ndarray:
        """The number of each row's group, from rows of shape (B, D): POOL, 1 to G, or HIDDEN; shape (B,).

        Rows that rank below every number, `lowest` (B,), are of the pool if their group is missing: nothing is hidden.
        """
        column, places = category_column(spec, self.column), places_in(spec, self.column, rows)
        number_of = np.zeros(len(column.values) + 2, dtype=int)
        for number, value in enumerate(self.values, start=1):
            number_of[list(column.values).index(value)] = number
        number_of[-1] = HIDDEN
        numbers = number_of[np.nan_to_num(places, nan=-1).astype(int)]
        return numbers if lowest is None else np.where(lowest, np.maximum(numbers, POOL), numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the groups by their numbers, first that of the pool."""
        return (POOL_NAME, *(str(plain(value)) if isinstance(value, float) else value for value in self.values))


def expected_for(needed: int) -> int:
    """How many rows a group should be expected to have, so that it hardly ever has fewer than `needed`."""
    return math.ceil((0.5 * (SPREAD + math.sqrt(SPREAD**2 + 4.0 * needed))) ** 2)


def category_column(spec: InputSpec, name: str) -> CategoryColumn:
    """A column of categories, by its name.

    Raises:
        DataError: the model reads no such column.
    """
    columns = spec.transform.columns if isinstance(spec.transform, Mixed) else ()
    column = next((one for one in columns if one.name == name), None)
    if isinstance(column, CategoryColumn):
        return column
    known = ", ".join(one.name for one in columns if isinstance(one, CategoryColumn)) or "none"
    raise DataError(f"--by {name}: not a column of categories that the model reads; expected one of these: {known}")


def places_in(spec: InputSpec, name: str, rows: np.ndarray) -> np.ndarray:
    """The place of each row's cell among the values of a column of categories, NaN for a missing one: shape (B,)."""
    at = (spec.columns or ()).index(name)
    return category_column(spec, name).encode(rows[:, at].astype(np.float64))[:, 0]


@dataclass(frozen=True)
class Group:
    """The validation rows of a group: their scores, (n,), ascending, and what the rule combined compares with."""

    name: str
    scores: np.ndarray
    statistics: ReferenceStatistics | None = None
    violations: ViolationReference | None = None

    @staticmethod
    def fit(
        name: str,
        scores: np.ndarray,
        statistics: np.ndarray | None,
        like: ReferenceStatistics | None,
        codes: np.ndarray | None,
        lowest: np.ndarray,
    ) -> Group:
        """From n validation rows in random order.

        Args:
            scores, lowest: shape (n,), and which rank below every number, (n,).
            statistics, codes: shape (n, K) and (n, W), if they are known.
            like: the reference statistics of all rows, whose weights are used.
        """
        return Group(
            name,
            np.sort(scores),
            None if statistics is None or like is None else like.fit_alike(statistics),
            None if codes is None else ViolationReference.of(counted(codes), lowest),
        )

    def rule(self, spec: InputSpec, false_alarm: float | None) -> CombinedRule:
        """The rule combined by this group's rows alone.

        Raises:
            CalibrationError: too few rows for the rate.
        """
        if self.statistics is None:
            raise CalibrationError(
                "too few validation rows for the rule combined: use the band, or a higher false_alarm"
            )
        return CombinedRule.of(self.statistics, spec, false_alarm, self.violations)


@dataclass(frozen=True)
class Groups:
    """A plan, and its groups by their numbers: first the pool or, if there is none, all validation rows in its place."""

    plan: GroupPlan
    members: tuple[Group, ...]

    def grouping(self, spec: InputSpec, band: Band, rule: CombinedRule | None) -> Grouping:
        """What a band or, if given, a rule accepts of each group's valid rows.

        Raises:
            CalibrationError: a group has too few rows for it; names the group.
        """
        key = band.percentiles, None if rule is None else rule.false_alarm
        known = self.known.get(key)
        if known is not None:
            return known
        if len(self.known) >= MOST_KEPT:
            self.known.clear()
        if rule is None:
            bands = self.bands(band.percentiles)
            accepted, finest = [one.accepted for one in bands], [one.rows for one in bands]
        else:
            rules = self.of_each(lambda one: one.rule(spec, rule.false_alarm))
            accepted, finest = [one.accepted for one in rules], [one.finest for one in rules]
        rows = [len(one.scores) for one in self.members]
        if not self.plan.has_pool:
            rows[POOL] = 0
        found = Grouping(self.plan.column, self.plan.names, tuple(accepted), tuple(rows), max(finest))
        self.known[key] = found
        return found

    def ends(self, band: Band) -> tuple[float, ...]:
        """The ends of a band of all rows, and those of the groups' own between the same percentiles."""
        own = [end for one in self.bands(band.percentiles) for end in one.ends]
        return tuple(dict.fromkeys((*band.ends, *own)))

    def bands(self, percentiles: tuple[float, float]) -> list[Band]:
        """The band of each group.

        Raises:
            CalibrationError: a group has too few rows for it; names the group.
        """
        bands = self.known_bands.get(percentiles)
        if bands is None:
            bands = self.of_each(lambda one: Band.fit(one.scores, percentiles))
            if len(self.known_bands) >= MOST_KEPT:
                self.known_bands.clear()
            self.known_bands[percentiles] = bands
        return bands

    @cached_property
    def known_bands(self) -> dict[tuple[float, float], list[Band]]:
        """Bands that were computed before, by percentiles: each request needs them."""
        return {}

    @cached_property
    def known(self) -> dict[tuple[tuple[float, float], float | None], Grouping]:
        """Groupings that were computed before, by percentiles and rate."""
        return {}

    def least_rate(self, spec: InputSpec) -> float:
        """The usual rate of the rule combined or, if a group has too few rows for it, the smallest that all allow.

        Raises:
            CalibrationError: a group has too few rows for the rule.
        """
        rate = max(one.false_alarm for one in self.of_each(lambda one: one.rule(spec, None)))
        # The smallest rate of a group is a fraction; its nearest float may be below it.
        return rate if rate == USUAL_FALSE_ALARM else math.nextafter(rate, 1.0)

    def of_each(self, made: Callable[[Group], T]) -> list[T]:
        """Something of each group; errors name it."""
        found = []
        for one in self.members:
            try:
                found.append(made(one))
            except CalibrationError as error:
                raise CalibrationError(f"group {one.name} of {self.plan.column}: {error}") from None
        return found


@dataclass(frozen=True, slots=True)
class Terms:
    """What a calibration is for: the percentiles of its own band, and the groups to calibrate by, if any.

    `weighing` are valid rows that choose the weights of the statistics, shape (m, D); without any they are the usual ones.
    """

    percentiles: tuple[float, float] = (25.0, 75.0)
    groups: GroupPlan | None = None
    weighing: np.ndarray | None = None

    def numbers(self, spec: InputSpec, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The group of each of n calibration rows, (n, D + C), with codes (n, D + C): (n,); HIDDEN if a cell is missing.

        Without groups, the number says nothing.

        Raises:
            CalibrationError: a group has too few rows for the percentiles; names it.
        """
        plan = self.groups
        if plan is None:
            return np.zeros(len(rows), dtype=int)
        lowest = is_lowest(codes, spec.features)
        numbers = plan.numbers(spec, rows, lowest)
        numbers[has_missing(codes, spec.features) & ~lowest] = HIDDEN
        members = [
            Group(name, np.where(lowest[numbers == number], -np.inf, 0.0))
            for number, name in enumerate(plan.names)
            if number != POOL or plan.has_pool
        ]
        Groups(plan, tuple(members)).of_each(self.check)
        return numbers

    def check(self, group: Group) -> None:
        """Raise CalibrationError unless a group has enough rows for the percentiles, and few enough that rank lowest."""
        allowed, unreadable = Band.fit(group.scores, self.percentiles).outside[0], int(np.isinf(group.scores).sum())
        if unreadable > allowed:
            raise CalibrationError(
                f"{unreadable:,} of {len(group.scores):,} rows cannot be read, and the band may refuse {allowed:,} of them "
                "as unlikely: correct them"
            )

    def grouped(
        self,
        numbers: np.ndarray,
        scores: np.ndarray,
        statistics: np.ndarray | None,
        like: ReferenceStatistics | None,
        codes: np.ndarray | None,
        lowest: np.ndarray,
    ) -> Groups | None:
        """The groups of n validation rows in random order, by their `numbers`, (n,); others as in `Group.fit`."""
        if self.groups is None:
            return None
        members = []
        for number, name in enumerate(self.groups.names):
            is_all = number == POOL and not self.groups.has_pool
            own = np.full(len(numbers), True) if is_all else numbers == number
            some, of_codes = (None if one is None else one[own] for one in (statistics, codes))
            members.append(Group.fit(name, scores[own], some, like, of_codes, lowest[own]))
        return Groups(self.groups, tuple(members))


USUAL = Terms()
