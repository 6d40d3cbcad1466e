"""Sketches of columns: p-values that hold, and who is blamed."""

import numpy as np
import pytest

from service.validity.column_ranks import RANKS, ColumnSketch


@pytest.mark.parametrize("n", [1, 7, 60, 999, 20_000])
def test_p_values_are_those_by_all_rows_or_a_little_more(n):
    generator = np.random.default_rng(0)
    calibration, new = generator.standard_normal((n, 3)), generator.standard_normal((500, 3)) * 2
    exact = (1 + (calibration[None] <= new[:, None]).sum(axis=1)) / (n + 1)
    p_values = ColumnSketch.fit(calibration, np.zeros(3)).p_values(new)
    assert (p_values >= exact - 1e-12).all()
    assert (p_values <= 1.25 * exact + 2 / (n + 1)).all()
    assert p_values.min() >= 1 / (n + 1)


def test_a_valid_cell_falls_below_any_level_no_more_often_than_that():
    generator = np.random.default_rng(1)
    below = []
    for _ in range(300):
        rows = generator.standard_normal((240, 1))
        below.append(ColumnSketch.fit(rows[:200], np.zeros(1)).p_values(rows[200:]) <= 0.05)
    assert np.mean(below) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300 / 40 * 5)
    assert np.mean(below) > 0.03


def test_holes_have_no_p_value_and_count_for_nothing():
    calibration = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 5.0], [4.0, np.nan]])
    sketch = ColumnSketch.fit(calibration, np.zeros(2))
    assert sketch.counts.tolist() == [4, 1]
    p_values = sketch.p_values(np.array([[0.0, 4.0], [np.nan, 6.0], [2.0, 5.0]]))
    np.testing.assert_allclose(p_values, [[0.2, 0.5], [np.nan, 1.0], [0.6, 1.0]])


def test_a_column_that_no_validation_row_had_is_never_unusual():
    sketch = ColumnSketch.fit(np.array([[1.0, np.nan], [2.0, np.nan]]), np.zeros(2))
    assert sketch.p_values(np.array([[1.5, -100.0]]))[0, 1] == 1.0


def test_the_smallest_p_value_is_blamed_first_and_ties_go_by_the_distance_from_the_median():
    calibration = np.tile(np.arange(100.0)[:, None], (1, 4))
    sketch = ColumnSketch.fit(calibration, np.zeros(4))
    given = np.array([[-5.0, 50.0, -7.0, 1.0], [np.nan, 50.0, np.nan, 1.0]])
    assert sketch.most_suspicious(given, sketch.p_values(given), 3).tolist() == [[2, 0, 3], [3, 1, -1]]
    assert sketch.most_suspicious(given, sketch.p_values(given), 9).shape == (2, 4)


def test_columns_with_a_few_holes_tie_with_the_others():
    calibration = np.tile(np.arange(100.0)[:, None], (1, 3))
    calibration[:10, 0] = calibration[:60, 1] = np.nan
    sketch = ColumnSketch.fit(calibration, np.zeros(3))
    np.testing.assert_allclose(sketch.p_values(np.full((1, 3), -9.0)), [[1 / 91, 1 / 41, 1 / 91]])
    given = np.array([[-5.0, -9.0, -7.0]])
    assert sketch.most_suspicious(given, sketch.p_values(given), 3).tolist() == [[0, 2, 1]]


def test_a_sketch_is_small():
    sketch = ColumnSketch.fit(np.random.default_rng(0).standard_normal((5_000, 784)), np.zeros(784))
    assert sketch.values.shape == (RANKS, 784)
    assert sketch.values.nbytes < 250_000
