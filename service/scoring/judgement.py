"""From estimates and their reference distributions to verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.data.domains import counted
from service.data.inputs import InputSpec
from service.scoring.missing_patterns import Comparison
from service.scoring.model import Assessment
from service.scoring.scores import CombinedRule
from service.validity.band import Band, margins
from service.validity.conformal import ScoreRanks
from service.validity.cross_conformal import leads, ranks_by_folds
from service.validity.violations import ViolationReference


@dataclass(frozen=True, slots=True)
class Compared:
    """Some of B rows, given by a mask of shape (B,), and what they are compared with."""

    rows: np.ndarray
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class BandJudgement:
    """Ranks of B rows among their validation rows; arrays of shape (B,), explained in `Scores`."""

    sides: np.ndarray
    certain: np.ndarray
    percentile: np.ndarray
    p_value: np.ndarray
    low_p_value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class CombinedJudgement:
    """The combined rule's p-value of each of B rows, (B,), and the p-value of each of E statistics, (B, E).

    `certain` (B,) is False if an error of log p(x) could change the verdict.
    """

    p_value: np.ndarray
    certain: np.ndarray
    p_values: np.ndarray


@dataclass(frozen=True, slots=True)
class Violations:
    """What is wrong with the cells of B rows: codes (B, D + C), and which rows rank below every number, (B,)."""

    codes: np.ndarray
    lowest: np.ndarray
    reference: ViolationReference | None = None


def judge_by_band(
    band: Band, assessment: Assessment, everything: Comparison, compared: Sequence[Compared], lowest: np.ndarray
) -> BandJudgement:
    """Judge B rows by a band: all are compared with `everything`, except those listed in `compared`.

    `lowest` rows, (B,), rank below every number: they are below any band, for certain.
    """
    judged = judged_by_band(everything, band, assessment, np.full(len(lowest), True), lowest)
    for one in compared:
        own_band = Band.fit(one.comparison.scores, band.percentiles, band.folds)
        theirs = judged_by_band(one.comparison, own_band, assessment, one.rows, lowest)
        for whole, some in zip(judged, theirs, strict=True):
            whole[one.rows] = some
    sides, certain = judged[0], judged[1]
    sides[lowest], certain[lowest] = -1, True
    return BandJudgement(*judged)


def judged_by_band(
    comparison: Comparison, band: Band, assessment: Assessment, rows: np.ndarray, lowest: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The arrays of a `BandJudgement` for the rows in a mask of shape (B,)."""
    log_likelihood = np.where(lowest, -np.inf, assessment.estimates.log_likelihood)[rows]
    if comparison.folds is None:
        ranks = ScoreRanks.of(comparison.scores, log_likelihood)
        estimates = assessment.estimates
        certain = band.certain(estimates.log_likelihood[rows], estimates.std_error[rows], estimates.reliable[rows])
        low, high = np.full(len(log_likelihood), band.low), np.full(len(log_likelihood), band.high)
    else:
        by_each = np.stack([np.where(lowest, -np.inf, one.log_likelihood)[rows] for one in assessment.by_member])
        margin = np.stack([margins(one.std_error[rows], one.reliable[rows]) for one in assessment.by_member])
        ranks, less, more = (
            ranks_by_folds(comparison.scores, comparison.folds, by_each + shift) for shift in (0.0, -margin, margin)
        )
        certain = band.sides_of(less) == band.sides_of(more)
        lower, higher = leads(comparison.scores, comparison.folds, np.nan_to_num(by_each), band.outside)
        low, high = (
            np.where(lowest[rows], end, own)
            for end, own in ((band.low, log_likelihood - lower), (band.high, log_likelihood + higher))
        )
    return (
        band.sides_of(ranks),
        certain,
        ranks.percentile,
        ranks.two_sided_p_value,
        ranks.low_p_value,
        low,
        high,
    )


def judge_combined(
    rule: CombinedRule,
    spec: InputSpec,
    assessment: Assessment,
    everything: Comparison,
    compared: Sequence[Compared],
    violations: Violations,
) -> CombinedJudgement:
    """Judge B rows by the combined rule: all are compared with `everything`, except those listed in `compared`."""
    assert assessment.statistics is not None
    of_all = np.where(violations.lowest[:, None], np.inf, assessment.statistics)
    of_violations, codes = np.ones(len(of_all)), counted(violations.codes)
    width = margins(assessment.estimates.std_error, assessment.estimates.reliable)
    others = np.logical_or.reduce([one.rows for one in compared]) if compared else np.zeros(len(width), dtype=bool)
    p_value, certain = np.ones(len(width)), np.ones(len(width), dtype=bool)
    p_values = np.ones((len(width), len(rule.statistics)))
    for one in (Compared(~others, everything), *compared):
        if not one.rows.any():
            continue
        reference = one.comparison.statistics
        assert reference is not None
        if (known := one.comparison.violations or violations.reference) is not None:
            of_violations[one.rows] = known.p_values(codes[one.rows], violations.lowest[one.rows])
        statistics, beside = of_all[one.rows], of_violations[one.rows]
        p_value[one.rows] = rule.p_values(reference.combination.p_value(statistics), beside)
        of_each = reference.p_values(assessment.statistics[one.rows], spec)
        p_values[one.rows, : of_each.shape[1]] = of_each
        moved = (shifted(statistics, sign * width[one.rows]) for sign in (-1, 1))
        less, more = (rule.are_valid(rule.p_values(reference.combination.p_value(other), beside)) for other in moved)
        certain[one.rows] = (less == more) | violations.lowest[one.rows]
    if rule.violation_rows:
        p_values[:, -1] = of_violations
    return CombinedJudgement(p_value, certain, p_values)


def shifted(statistics: np.ndarray, nats: np.ndarray) -> np.ndarray:
    """Statistics of rows if their log p(x) were higher by `nats`; its two sides are the first two columns."""
    moved = statistics.copy()
    moved[:, 0] -= nats
    moved[:, 1] += nats
    return moved
