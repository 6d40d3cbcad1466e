"""Several statistics as one: monotone, calibrated, and deaf to scales and to what is constant."""

import numpy as np
import pytest
from scipy import stats

from service.validity.combination import Combination, surprise

ONES, SCALES = np.ones(3), np.full(3, 0.01)


def dependent(generator, count):
    """Statistics that have much to do with each other, one of them discrete."""
    base = generator.normal(size=count)
    return np.stack([base, base + 0.1 * generator.normal(size=count), np.round(np.exp(base))], axis=1)


def test_false_alarms_are_as_promised_whatever_the_dependence():
    generator, levels, alarms = np.random.default_rng(0), (0.01, 0.05, 0.1, 0.5), []
    for _ in range(400):
        both = Combination.fit(dependent(generator, 398), ONES, SCALES)  # 199 for each half
        p_values = both.p_value(dependent(generator, 50))
        alarms.append([(p_values <= level * (1 + 1e-12)).mean() for level in levels])
    means, errors = np.mean(alarms, axis=0), np.std(alarms, axis=0) / 20
    for level, mean, error in zip(levels, means, errors, strict=True):
        assert level - 1.5 / 200 - 4 * error < mean < level + 4 * error


def test_p_values_of_parts_are_conformal():
    known = np.arange(1.0, 10.0)[:, None] * ONES
    both = Combination.fit(np.concatenate([known, known]), ONES, SCALES)
    asked = np.array([[0.0, 5.0, 10.0]])
    assert both.part_p_values(asked)[0] == pytest.approx([1.0, 0.6, 0.1])


def test_surprise_grows_and_starts_at_nothing():
    known = np.sort(np.random.default_rng(0).exponential(size=4_000))
    asked = np.linspace(-1.0, 12.0, 500)
    found = surprise(known, asked, 0.01)
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    assert found[asked > 0] == pytest.approx(asked[asked > 0], rel=0.1, abs=0.05)  # -log of an exponential's tail


def test_one_strange_statistic_is_enough_and_others_take_nothing_away():
    statistics = np.random.default_rng(0).normal(size=(2_000, 3))
    both = Combination.fit(statistics, ONES, SCALES)
    assert both.p_value(np.array([[9.0, 0.0, 0.0], [9.0, -9.0, -9.0], [0.0, 0.0, 0.0]]))[:2] == pytest.approx(1 / 1001)


def test_little_is_made_of_a_statistic_that_never_varied():
    statistics = np.random.default_rng(0).normal(size=(200, 3))
    statistics[:, 2] = 1.0
    both = Combination.fit(statistics, ONES, SCALES)
    usual = np.array([[0.0, 0.0, 1.0]])
    assert both.p_value(usual) > 0.1
    assert both.p_value(usual + np.array([0, 0, 0.001])) == pytest.approx(both.p_value(usual), abs=0.1)
    assert both.p_value(usual + np.array([0, 0, 1.0])) == pytest.approx(1 / 101)


@pytest.mark.parametrize("rows", [8, 9, 20])
def test_few_rows_do(rows):
    both = Combination.fit(np.random.default_rng(0).normal(size=(rows, 3)), ONES, SCALES)
    p_values = both.p_value(np.random.default_rng(1).normal(size=(30, 3)))
    assert ((p_values > 0) & (p_values <= 1)).all()
    assert len(both.combined) == rows - rows // 2


def test_p_values_of_valid_rows_are_uniform():
    generator = np.random.default_rng(3)
    both = Combination.fit(generator.normal(size=(20_000, 3)), ONES, SCALES)
    p_values = both.p_value(generator.normal(size=(5_000, 3)))
    assert stats.kstest(p_values, "uniform").statistic < 1.63 * np.sqrt(1 / 5_000 + 1 / 10_000)
