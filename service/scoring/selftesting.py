"""A model tested against itself: how many of its own valid rows, spoilt in known ways, do its rules catch?

This needs no invalid row. The rows are valid ones that neither the networks nor the calibration have seen. Every rule is
held to the same rate of false alarms, which the same rows, not spoilt, show as well.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.data.domains import is_lowest
from service.data.inputs import InputSpec
from service.errors import CalibrationError
from service.scoring.evaluation import RULES
from service.scoring.options import RuleName, ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.selftest import LEAST_ROWS, Caught, SelfTest
from service.scoring.spoils import MADE_ZERO, Spoil, spoils_of, spoilt

RATE = 0.01  # of false alarms, or the lowest whole percentage that the version allows
MOST_PERCENT = 50
COMBINED: RuleName = "combined"


def selftested(
    scorer: Scorer,
    rows: np.ndarray,
    false_alarm: float | None = None,
    spoils: Sequence[Spoil] | None = None,
    most: int | None = None,
    seed: int = 0,
    on_spoil: Callable[[int, int], None] = lambda done, number: None,
    until: float = math.inf,
) -> SelfTest:
    """Test a model with valid rows that it has not seen, as read for it, shape (N, D + C).

    Args:
        false_alarm: by default RATE or, with few validation rows, the lowest whole percentage that the version allows.
        spoils: by default all that apply to the input.
        most: rows that are spoilt in each way, and judged as they are; by default all.
        on_spoil: hears how many of the ways are done.
        until: a time of `time.monotonic`; ways that are not begun by then are left out.

    Raises:
        CalibrationError: the version does not allow the rate, or there are fewer than LEAST_ROWS rows.
    """
    judge, spec = Judge.of(scorer, false_alarm), scorer.model.input
    rows = rows[~is_lowest(scorer.domains.codes(spec, rows), spec.features)]  # others are invalid in any case
    whole = complete_rows(rows, spec, must=scorer.groups is not None)[:most]
    rows = rows if scorer.groups is None else whole
    if len(whole) < LEAST_ROWS:
        raise CalibrationError(f"a self-test needs at least {LEAST_ROWS} valid rows, there are {len(whole):,}")
    chosen = spoils_of(spec) if spoils is None else list(spoils)
    alarms, caught = judge.flagged(whole).mean(axis=1), []
    for number, spoil in enumerate(chosen):
        if time.monotonic() >= until:
            break
        one = caught_of(judge, spec, rows[:most] if spoil.name == MADE_ZERO else whole, spoil, seed)
        caught += [] if one is None else [one]
        on_spoil(number + 1, len(chosen))
    return SelfTest(
        false_alarm=judge.rate,
        rules=tuple(judge.rules),
        rows=len(whole),
        alarms=tuple(alarms.tolist()),
        caught=tuple(caught),
    )


def complete_rows(rows: np.ndarray, spec: InputSpec, must: bool = False) -> np.ndarray:
    """The rows without missing cells, shape (N, D + C), if at least half are or they must be; otherwise all.

    What rows with missing cells are compared with has to be scored for each pattern of them.
    """
    complete = ~np.isnan(rows[:, : spec.features]).any(axis=1)
    return rows[complete] if must or 2 * complete.sum() >= len(rows) else rows


def caught_of(judge: Judge, spec: InputSpec, rows: np.ndarray, spoil: Spoil, seed: int) -> Caught | None:
    """What is caught of rows, shape (N, D + C), spoilt in one way; None if it changes too few of them."""
    found = spoilt(spec, rows[:, : spec.features], spoil, seed)
    found = found if judge.scorer.groups is None else found.whole()  # others cannot be judged by groups
    if len(found.rows) < LEAST_ROWS:
        return None
    flagged = judge.flagged(np.concatenate([found.rows, rows[found.of, spec.features :]], axis=1))
    columns = {
        str(spec.column(at)): (int((found.columns == at).sum()), int(flagged[-1, found.columns == at].sum()))
        for at in np.unique(found.columns[found.columns >= 0]).tolist()
    }
    return Caught(spoil=spoil.name, rows=len(found.rows), shares=tuple(flagged.mean(axis=1).tolist()), columns=columns)


@dataclass(frozen=True)
class Judge:
    """Rules at one rate of false alarms, all of which judge by the same scores."""

    scorer: Scorer
    rules: tuple[str, ...]
    rate: float

    @staticmethod
    def of(scorer: Scorer, false_alarm: float | None = None) -> Judge:
        """All rules that a version has, at a rate that all of them allow.

        Raises:
            CalibrationError: the version does not allow the rate.
        """
        can_combine = scorer.calibration.statistics is not None
        rules = tuple(rule for rule in RULES if can_combine or rule != COMBINED)

        def check(rate: float) -> float:
            scorer.check(ScoreOptions("band", false_alarm=rate))
            if can_combine:
                scorer.check(ScoreOptions(COMBINED, false_alarm=rate))
            return rate

        if false_alarm is not None:
            return Judge(scorer, rules, check(false_alarm))
        for percent in range(round(100 * RATE), MOST_PERCENT):
            with contextlib.suppress(CalibrationError):
                return Judge(scorer, rules, check(percent / 100.0))
        raise CalibrationError("too few validation rows for a self-test")

    def flagged(self, rows: np.ndarray) -> np.ndarray:
        """Which rows, shape (B, D + C), each rule calls invalid: shape (number of rules, B), bool."""
        can_combine = self.rules[-1] == COMBINED
        options = ScoreOptions(COMBINED, false_alarm=self.rate) if can_combine else ScoreOptions()
        scores = self.scorer.score_read(rows, options)
        return np.stack([RULES[rule](scores) <= self.rate * (1.0 + 1e-12) for rule in self.rules])
