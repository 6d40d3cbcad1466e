"""p-values over folds: that they count as they say, that bands say the same, and how often valid rows are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import CalibrationError
from service.validity import cross_conformal as folds_module
from service.validity.band import Band
from service.validity.conformal import ScoreRanks
from service.validity.cross_conformal import accepted_by_folds, leads, ranks_by_folds


@st.composite
def calibrations(draw):
    """Validation scores with their folds, ascending, and scores of rows by each network."""
    num_folds, size, rows = draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    numbers = st.integers(-6, 6)
    scores = np.array(draw(st.lists(numbers, min_size=num_folds * size, max_size=num_folds * size)), dtype=float)
    given_rows = draw(st.lists(numbers, min_size=num_folds * rows, max_size=num_folds * rows))
    order, of_fold = np.argsort(scores, kind="stable"), np.repeat(np.arange(num_folds), size)
    return scores[order], of_fold[order], np.array(given_rows, dtype=float).reshape(num_folds, rows)


@given(calibrations())
def test_each_row_is_counted_beside_each_fold_by_that_fold_s_network(calibration):
    scores, folds, asked = calibration
    places = ranks_by_folds(scores, folds, asked)
    for row in range(asked.shape[1]):
        pairs = [(score, asked[fold, row]) for score, fold in zip(scores, folds, strict=True)]
        assert places.below[row] == sum(score < own for score, own in pairs)
        assert places.at_most[row] == sum(score <= own for score, own in pairs)
    assert places.rows == len(scores)


@given(calibrations(), st.sampled_from([(25.0, 75.0), (30.0, 90.0), (40.0, 100.0)]))
def test_a_row_s_own_band_says_what_its_p_values_say(calibration, percentiles):
    scores, folds, asked = calibration
    try:
        band = Band.fit(scores, percentiles, int(folds.max()) + 1)
    except CalibrationError:
        return
    lower, higher = leads(scores, folds, asked, band.outside)
    sides = band.sides_of(ranks_by_folds(scores, folds, asked))
    assert (sides == (higher < 0).astype(int) - (lower < 0).astype(int)).all()
    inside = np.flatnonzero(sides == 0)
    for shift, is_side in ((-lower, -1), (higher, 1)):  # at the end it is still inside, and past it no more
        moved = asked[:, inside] + np.where(np.isinf(shift), 0.0, shift)[inside]
        assert (band.sides_of(ranks_by_folds(scores, folds, moved)) == 0).all()
        past = band.sides_of(ranks_by_folds(scores, folds, moved + 0.5 * is_side))
        assert (past == np.where(np.isinf(shift), 0, is_side)[inside]).all()


def test_rows_are_taken_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    scores, folds = np.sort(generator.normal(size=20)), generator.permutation(np.repeat(np.arange(4), 5))
    asked = generator.normal(size=(4, 13))
    whole = leads(scores, folds, asked, (2, 3))
    monkeypatch.setattr(folds_module, "CELLS", 60)
    assert np.array_equal(whole, leads(scores, folds, asked, (2, 3)))


def test_one_fold_is_the_ordinary_calibration():
    generator = np.random.default_rng(0)
    scores, asked = np.sort(generator.normal(size=30)), generator.normal(size=50)
    places, plain = ranks_by_folds(scores, np.zeros(30, dtype=int), asked[None]), ScoreRanks.of(scores, asked)
    assert (places.below == plain.below).all()
    assert (places.at_most == plain.at_most).all()
    band = Band.fit(scores, (10.0, 80.0))
    lower, higher = leads(scores, np.zeros(30, dtype=int), asked[None], band.outside)
    assert np.allclose(asked - lower, band.low)
    assert np.allclose(asked + higher, band.high)


def test_what_is_proved_is_barber_s_bound():
    # n = 40, K = 5, a tenth of 41 places: 2 * 4 / 41 and the lesser of 2 * 0.8 / 9 and 0.875 / 6.
    accepted = accepted_by_folds((4, 0), 40, 5)
    assert accepted.expected == pytest.approx(37 / 41)
    assert accepted.interval is None
    assert accepted.proven == pytest.approx(1 - 8 / 41 - 0.875 / 6)
    assert accepted_by_folds((2, 2), 40, 5).proven == pytest.approx(1 - 8 / 41 - 2 * 0.875 / 6)
    assert accepted_by_folds((4, 0), 40, 40).proven == pytest.approx(1 - 8 / 41)  # jackknife+: twice the level
    assert accepted_by_folds((10, 10), 40, 5).proven == 0.0
    assert Band.fit(np.arange(40.0), (10.0, 90.0), 5).accepted == accepted_by_folds((4, 4), 40, 5)


@pytest.mark.parametrize("num_folds", [2, 5, 20])
def test_valid_rows_are_refused_about_as_often_as_is_said_and_never_as_often_as_is_proved_impossible(num_folds):
    """Networks that are the mean of what they saw: log p(x) falls with the distance from it."""
    generator, rows, times = np.random.default_rng(0), 20, 4000
    folds = np.repeat(np.arange(num_folds), rows // num_folds)
    refused = np.zeros(times)
    for at in range(times):
        x, new = generator.normal(size=rows), generator.normal()
        means = np.array([x[folds != fold].mean() for fold in range(num_folds)])
        scores = -np.abs(x - means[folds])
        order = np.argsort(scores)
        places = ranks_by_folds(scores[order], folds[order], -np.abs(new - means)[:, None])
        refused[at] = places.low_p_value[0] <= 4 / (rows + 1)
    error = refused.std() / np.sqrt(times)
    said = accepted_by_folds((4, 0), rows, num_folds)
    assert refused.mean() < 1 - said.proven + 3 * error
    assert refused.mean() == pytest.approx(1 - said.expected, abs=4 * error + 0.02)
