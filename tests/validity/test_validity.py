"""The band's ranks, the p-values, and that they say the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.errors import CalibrationError
from service.validity import Band, percentile, two_sided_p_value


def test_the_ends_are_the_order_statistics_of_the_contract():
    band = Band.fit(np.arange(1.0, 100.0), (25.0, 75.0))  # n = 99: ranks 25 from either end
    assert (band.low, band.high) == (25.0, 75.0)
    assert band.sides(np.array([24.999, 25.0, 75.0, 75.001])).tolist() == [-1, 0, 0, 1]


def test_ranks_are_computed_exactly():
    # (999 + 1) * 0.1 / 100 is exactly 1, and 0.1 % of 1,000 is a rank that floats may miss.
    scores = np.arange(999.0)
    assert Band.fit(scores, (0.1, 99.9)).low == 0.0
    assert Band.fit(scores, (57.3, 99.9)).low == 572.0


@pytest.mark.parametrize(
    ("n", "pair", "needed"), [(2, (25, 75), 3), (98, (1, 99), 99), (998, (0.1, 75), 999), (0, (50, 75), 3)]
)
def test_too_few_rows_are_refused_with_the_number_that_is_needed(n, pair, needed):
    with pytest.raises(CalibrationError, match=f"at least {needed:,} validation rows, there are {n}"):
        Band.fit(np.arange(float(n)), pair)
    Band.fit(np.arange(float(needed)), pair)


@pytest.mark.parametrize("pair", [(75, 25), (0, 50), (50, 100), (-1, 50), (50, 50), (float("nan"), 50)])
def test_percentiles_out_of_order_or_range_are_refused(pair):
    with pytest.raises(CalibrationError, match="expected two numbers"):
        Band.fit(np.arange(1000.0), pair)


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=60),
    st.lists(st.integers(-22, 22), min_size=1, max_size=20),
    st.sampled_from([1, 2.5, 5, 10, 25, 33.3, 40, 49]),
)
def test_a_row_is_invalid_exactly_when_its_p_value_is_at_most_twice_the_tail(scores, asked, a):
    scores, asked = np.sort(np.array(scores, dtype=float)), np.array(asked, dtype=float)
    try:
        band = Band.fit(scores, (a, 100 - a))
    except CalibrationError:
        return
    p_values = two_sided_p_value(scores, asked)
    assert ((band.sides(asked) != 0) == (p_values <= 2 * a / 100 + 1e-12)).all()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(-7, 7))
def test_p_values_and_percentiles_count_as_they_say(scores, asked):
    scores = np.sort(np.array(scores, dtype=float))
    n = len(scores)
    below, above = (1 + (scores <= asked).sum()) / (n + 1), (1 + (scores >= asked).sum()) / (n + 1)
    assert two_sided_p_value(scores, np.array([asked]))[0] == pytest.approx(min(1, 2 * min(below, above)))
    assert percentile(scores, np.array([asked]))[0] == pytest.approx(100 * (scores < asked).mean())


def test_p_values_of_valid_rows_are_uniform():
    generator = np.random.default_rng(0)
    p_values = two_sided_p_value(np.sort(generator.normal(size=20_000)), generator.normal(size=5_000))
    assert stats.kstest(p_values, "uniform").statistic < 1.63 * np.sqrt(1 / 5_000 + 1 / 20_000)


def test_certain_means_that_no_end_lies_within_three_standard_errors_or_nine_unreliable_ones():
    band = Band((25.0, 75.0), -100.0, -80.0)
    log_likelihood, error = np.array([-90.0, -90.0, -99.0, -101.0, -500.0]), np.array([1.0, 5.0, 0.5, 0.2, 1.0])
    assert band.certain(log_likelihood, error, np.full(5, True)).tolist() == [True, False, False, True, True]
    assert band.certain(log_likelihood, error, np.full(5, False)).tolist() == [True, False, False, False, True]
