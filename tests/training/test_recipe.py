"""How rows are split, and how few are too few."""

from dataclasses import replace

import numpy as np
import pytest

from service.errors import CalibrationError, DataError
from service.training.recipe import (
    MOST_CALIBRATION,
    MOST_VALIDATION,
    TO_PUBLISH,
    TO_PUBLISH_BY_FOLDS,
    Recipe,
    Split,
    calibration_needed,
    check_sizes,
    rows_needed,
    sizes_of,
)
from service.validity.band import Band

PUBLISHED = Recipe(least=TO_PUBLISH)
BY_FOLDS = Recipe(least=TO_PUBLISH_BY_FOLDS, folds=5)


def test_of_many_rows_no_more_are_held_back_than_count():
    rows = np.arange(600_000)
    split = Split.shuffled(len(rows), Recipe())
    assert (len(split.validation), len(split.calibration)) == (MOST_VALIDATION, MOST_CALIBRATION)
    assert np.array_equal(np.sort(np.concatenate([split.train, split.validation, split.calibration])), rows)
    assert split.calibration.std() == pytest.approx(rows.std(), rel=0.02)  # at random
    folds = Split.by_folds(len(rows), BY_FOLDS)
    assert [len(fold.calibration) for fold in folds] == [MOST_CALIBRATION // 5] * 5
    for fold in folds:
        assert len(fold.validation) == MOST_VALIDATION
        assert np.array_equal(np.sort(np.concatenate([fold.train, fold.validation, fold.calibration])), rows)


def test_few_rows_are_split_as_they_ever_were():
    order = np.random.default_rng(3).permutation(1000)
    split = Split.shuffled(1000, replace(Recipe(), fit=replace(Recipe().fit, seed=3)))
    assert np.array_equal(np.concatenate([split.calibration, split.validation, split.train]), order)
    assert sizes_of(1000, Recipe()) == (700, 100, 200)
    assert sizes_of(43, replace(Recipe(), folds=5)) == (31, 4, 8)


@pytest.mark.parametrize("recipe", [PUBLISHED, BY_FOLDS, replace(PUBLISHED, percentiles=(1.0, 100.0)), Recipe()])
def test_the_number_that_is_asked_for_is_the_fewest_that_will_do(recipe):
    enough = rows_needed(recipe)
    check_sizes(Split.all_of(enough, recipe), recipe)
    with pytest.raises((DataError, CalibrationError)):
        check_sizes(Split.all_of(enough - 1, recipe), recipe)


def test_what_calibrates_tells_the_share_that_is_accepted_to_within_twenty_points():
    for percentiles in ((25.0, 75.0), (5.0, 95.0), (2.0, 100.0)):
        rows = calibration_needed(replace(PUBLISHED, percentiles=percentiles))
        low, high = Band.fit(np.zeros(rows), percentiles).accepted.interval
        assert high - low <= 0.4
    assert calibration_needed(Recipe()) == 3
    assert calibration_needed(replace(Recipe(), percentiles=(0.1, 99.0))) == 999


def test_too_few_rows_are_told_with_a_remedy():
    for rows, recipe, message in (
        (
            18,
            PUBLISHED,
            "18 rows are too few: 12 are left to train on, expected at least 50; 4 are left to calibrate on",
        ),
        (18, PUBLISHED, "Collect at least 108 rows, or 27 and use --folds 5"),
        (60, PUBLISHED, "Use --folds 5, or collect at least 108 rows"),
        (18, BY_FOLDS, "Collect at least 27 rows$"),
    ):
        with pytest.raises(DataError, match=message):
            check_sizes(Split.all_of(rows, recipe), recipe)
    with pytest.raises(CalibrationError, match="0 < first < second"):
        check_sizes(Split.all_of(3, PUBLISHED), replace(PUBLISHED, percentiles=(50.0, 20.0)))
