"""From estimates and their reference distributions to verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.data.inputs import InputSpec
from service.scoring.missing_patterns import Comparison
from service.scoring.model import Assessment
from service.scoring.scores import CombinedRule
from service.validity.band import Band, margins
from service.validity.conformal import ScoreRanks
from service.validity.cross_conformal import leads, ranks_by_folds


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


def judge_by_band(
    band: Band, assessment: Assessment, everything: Comparison, compared: Sequence[Compared]
) -> BandJudgement:
    """Judge B rows by a band: all are compared with `everything`, except those listed in `compared`."""
    size = len(assessment.estimates.log_likelihood)
    judged = judged_by_band(everything, band, assessment, np.full(size, True))
    for one in compared:
        own_band = Band.fit(one.comparison.scores, band.percentiles, band.folds)
        theirs = judged_by_band(one.comparison, own_band, assessment, one.rows)
        for whole, some in zip(judged, theirs, strict=True):
            whole[one.rows] = some
    return BandJudgement(*judged)


def judged_by_band(
    comparison: Comparison, band: Band, assessment: Assessment, rows: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The arrays of a `BandJudgement` for the rows in a mask of shape (B,)."""
    log_likelihood = assessment.estimates.log_likelihood[rows]
    if comparison.folds is None:
        ranks = ScoreRanks.of(comparison.scores, log_likelihood)
        certain = band.certain(
            log_likelihood, assessment.estimates.std_error[rows], assessment.estimates.reliable[rows]
        )
        low, high = np.full(len(log_likelihood), band.low), np.full(len(log_likelihood), band.high)
    else:
        by_each = np.stack([one.log_likelihood[rows] for one in assessment.by_member])  # (V, B)
        margin = np.stack([margins(one.std_error[rows], one.reliable[rows]) for one in assessment.by_member])
        ranks, less, more = (
            ranks_by_folds(comparison.scores, comparison.folds, by_each + shift) for shift in (0.0, -margin, margin)
        )
        certain = band.sides_of(less) == band.sides_of(more)
        lower, higher = leads(comparison.scores, comparison.folds, by_each, band.outside)
        low, high = log_likelihood - lower, log_likelihood + higher
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
    rule: CombinedRule, spec: InputSpec, assessment: Assessment, everything: Comparison, compared: Sequence[Compared]
) -> CombinedJudgement:
    """Judge B rows by the combined rule: all are compared with `everything`, except those listed in `compared`."""
    assert assessment.statistics is not None
    width = margins(assessment.estimates.std_error, assessment.estimates.reliable)
    others = np.logical_or.reduce([one.rows for one in compared]) if compared else np.zeros(len(width), dtype=bool)
    p_value, certain = np.ones(len(width)), np.ones(len(width), dtype=bool)
    p_values = np.ones((len(width), len(rule.statistics)))
    for one in (Compared(~others, everything), *compared):
        reference = one.comparison.statistics
        assert reference is not None
        statistics = assessment.statistics[one.rows]
        p_value[one.rows] = reference.combination.p_value(statistics)
        p_values[one.rows] = reference.p_values(statistics, spec)
        less, more = (
            rule.are_valid(reference.combination.p_value(shifted(statistics, sign * width[one.rows])))
            for sign in (-1, 1)
        )
        certain[one.rows] = less == more
    return CombinedJudgement(p_value, certain, p_values)


def shifted(statistics: np.ndarray, nats: np.ndarray) -> np.ndarray:
    """Statistics of rows if their log p(x) were higher by `nats`; its two sides are the first two columns."""
    moved = statistics.copy()
    moved[:, 0] -= nats
    moved[:, 1] += nats
    return moved
