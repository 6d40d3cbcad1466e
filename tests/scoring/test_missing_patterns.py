"""Rows with missing cells: what they are compared with depends on version and pattern alone, and no work is lost."""

import numpy as np
import pytest

from service.density.estimate import MISSING_TOLERANCE
from service.scoring import missing_patterns
from service.scoring.options import Detail, ScoreOptions
from service.scoring.reference_rows import PATTERN_ROWS
from service.store import serialization
from service.store.loading import load_scorer
from service.store.store import Store

PLAIN, ALL = Detail(), Detail(columns=True, statistics=True)


@pytest.fixture
def scorer(people_store):
    return load_scorer(Store(people_store), "people", "cpu")


def hidden(scorer, *columns):
    mask = np.zeros(scorer.model.input.features, dtype=bool)
    mask[list(columns)] = True
    return mask


def test_the_usual_patterns_travel_with_the_version(scorer):
    usual = scorer.calibration.patterns
    assert 0 < len(usual) <= missing_patterns.USUAL_PATTERNS
    masks, counts = np.unique(scorer.calibration.reference.missing, axis=0, return_counts=True)
    often = {mask.tobytes(): count for mask, count in zip(masks, counts, strict=True) if mask.any()}
    assert often[usual[0].mask.tobytes()] == max(often.values())
    for one in usual:
        assert scorer.patterns.known[one.mask.tobytes()].has(ALL)
        again = scorer.patterns.estimate(scorer.patterns.reference_rows(one.mask), ALL)
        for name in ("log_likelihood", "by_member", "columns", "statistics"):
            np.testing.assert_array_equal(getattr(again, name), getattr(one.estimates, name), err_msg=name)


def test_patterns_that_were_estimated_by_another_rule_are_learnt_anew(people_store, monkeypatch):
    monkeypatch.setattr(serialization, "PATTERN_RULE", np.array([200.0, 0.3, 512.0]))
    assert not load_scorer(Store(people_store), "people", "cpu").calibration.patterns


def test_a_row_is_judged_alike_whether_its_pattern_was_known_beforehand_or_not(scorer):
    usual = scorer.calibration.patterns[0].mask
    rows = scorer.sample(40, seed=1).samples
    rows[:, usual] = np.nan
    options = ScoreOptions("combined", false_alarm=0.05, explain=2)
    known = scorer.score(rows, options)
    scorer.patterns.known.clear()
    learnt = scorer.score(rows, options)
    for name in ("p_value", "combined_p_value", "valid", "columns", "column_p_value"):
        np.testing.assert_array_equal(getattr(known, name), getattr(learnt, name), err_msg=name)


def test_work_on_a_pattern_goes_on_where_it_was_left(scorer, monkeypatch):
    monkeypatch.setattr(missing_patterns, "PART_ROWS", 64)
    patterns, mask = scorer.patterns, hidden(scorer, 0, 1, 2)
    whole = patterns.estimate(patterns.reference_rows(mask), PLAIN)
    todo = patterns.missing_parts(mask, PLAIN)
    starts = list(todo)
    assert len(starts) > 2
    for start in starts[1:]:
        patterns.keep(mask, PLAIN, start, patterns.estimate(todo[start], PLAIN))
    assert list(patterns.missing_parts(mask, PLAIN)) == [0]
    assert len(patterns.missing_parts(mask, ALL)) == len(starts)  # other detail is other work
    assert mask.tobytes() not in patterns.known
    patterns.keep(mask, PLAIN, 0, patterns.estimate(todo[0], PLAIN))
    np.testing.assert_array_equal(patterns.known[mask.tobytes()].scores, np.sort(whole.log_likelihood))
    assert not patterns.parts


def test_parts_that_nobody_finishes_do_not_pile_up(scorer, monkeypatch):
    monkeypatch.setattr(missing_patterns, "MAX_PATTERNS", 2)
    monkeypatch.setattr(missing_patterns, "PART_ROWS", 64)
    for column in range(4):
        mask = hidden(scorer, column, column + 1)
        start, rows = next(iter(scorer.patterns.missing_parts(mask, PLAIN).items()))
        scorer.patterns.keep(mask, PLAIN, start, scorer.patterns.estimate(rows, PLAIN))
    assert len(scorer.patterns.parts) == 2


def test_the_reference_rows_of_a_pattern_are_enough_and_evenly_spaced(scorer):
    reference = scorer.calibration.reference
    for columns in ((0,), (1, 2), range(6)):
        rows = reference.usable(hidden(scorer, *columns))
        assert (
            len(rows) >= min(400, len(reference.rows))
            or not reference.missing[rows][:, ~hidden(scorer, *columns)].any()
        )
        assert len(rows) <= PATTERN_ROWS
        assert (np.diff(rows) > 0).all()


def test_rows_with_missing_cells_cost_little_more_than_complete_ones(scorer):
    """In decoder evaluations."""
    complete = scorer.sample(60, seed=2).samples
    holed = complete.copy()
    holed[:, [1, 3]] = np.nan
    found, whole = scorer.score(holed), scorer.score(complete)
    assert found.evaluations.mean() <= 1.5 * whole.evaluations.mean()
    assert found.reliable.mean() > 0.9
    assert np.median(found.std_error[found.reliable]) <= MISSING_TOLERANCE
