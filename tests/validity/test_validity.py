"""The band's ranks, the p-values, and that they say the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.errors import CalibrationError
from service.validity.band import Band, percentiles_of
from service.validity.conformal import (
    CONFIDENCE,
    Acceptance,
    Discoveries,
    ScoreRanks,
    smallest_p_value,
)


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


@pytest.mark.parametrize("pair", [(75, 25), (0, 50), (50, 101), (100, 100), (-1, 50), (50, 50), (float("nan"), 50)])
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
    places = ScoreRanks.of(scores, asked)
    assert ((band.sides(asked) != 0) == (places.two_sided_p_value <= 2 * a / 100 + 1e-12)).all()
    assert (band.sides(asked) == band.sides_of(places)).all()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(-7, 7))
def test_p_values_and_percentiles_count_as_they_say(scores, asked):
    scores = np.sort(np.array(scores, dtype=float))
    n = len(scores)
    below, above = (1 + (scores <= asked).sum()) / (n + 1), (1 + (scores >= asked).sum()) / (n + 1)
    places = ScoreRanks.of(scores, np.array([asked]))
    assert places.two_sided_p_value[0] == pytest.approx(min(1, 2 * min(below, above)))
    assert places.percentile[0] == pytest.approx(100 * (scores < asked).mean())


def test_p_values_of_valid_rows_are_uniform():
    generator = np.random.default_rng(0)
    p_values = ScoreRanks.of(np.sort(generator.normal(size=20_000)), generator.normal(size=5_000)).two_sided_p_value
    assert stats.kstest(p_values, "uniform").statistic < 1.63 * np.sqrt(1 / 5_000 + 1 / 20_000)


def test_certain_means_that_no_end_lies_within_three_standard_errors_or_nine_unreliable_ones():
    band = Band((25.0, 75.0), -100.0, -80.0, (2, 3), 9)
    log_likelihood, error = np.array([-90.0, -90.0, -99.0, -101.0, -500.0]), np.array([1.0, 5.0, 0.5, 0.2, 1.0])
    assert band.certain(log_likelihood, error, np.full(5, True)).tolist() == [True, False, False, True, True]
    assert band.certain(log_likelihood, error, np.full(5, False)).tolist() == [True, False, False, False, True]


def test_a_rate_of_false_alarms_is_a_band():
    scores = np.arange(1.0, 1000.0)  # n = 999
    both, low = (Band.fit(scores, percentiles_of(0.01, tail)) for tail in ("both", "low"))
    assert (both.percentiles, both.low, both.high, both.tail) == ((0.5, 99.5), 5.0, 995.0, "both")
    assert (low.percentiles, low.low, low.high, low.tail) == ((1.0, 100.0), 10.0, np.inf, "low")
    assert low.sides(np.array([9.0, 10.0, 1e9])).tolist() == [-1, 0, 0]
    assert both.accepted.expected == low.accepted.expected == 0.99
    assert low.ends == (10.0,)


@pytest.mark.parametrize(("tail", "needed"), [("low", 99), ("both", 199)])
def test_one_per_cent_needs_99_rows_on_one_side_and_199_on_two(tail, needed):
    pair = percentiles_of(0.01, tail)
    with pytest.raises(CalibrationError, match=f"need at least {needed} validation rows, there are {needed - 1}"):
        Band.fit(np.arange(needed - 1.0), pair)
    assert smallest_p_value(needed, tail) == pytest.approx(0.01)
    Band.fit(np.arange(float(needed)), pair)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(CalibrationError, match="above 0 and below 1"):
        percentiles_of(rate)
    with pytest.raises(CalibrationError, match="above 0 and below 1"):
        Discoveries.of(np.array([0.5]), rate, "low", 10)


def test_rates_are_the_decimal_numbers_that_were_written():
    assert percentiles_of(0.57, "low") == (57.0, 100.0)  # 100 * 0.57 is 56.99999999999999
    assert percentiles_of(0.07) == (3.5, 96.5)


@pytest.mark.parametrize(("between", "rows"), [(1, 1), (1, 40), (40, 40), (20, 39), (2600, 5000), (99_000, 99_999)])
def test_what_a_band_accepts_has_the_beta_law_of_order_statistics(between, rows):
    accepted = Acceptance.of(between, rows)
    law = stats.beta(between, rows + 1 - between)
    assert accepted.expected == pytest.approx(law.mean())
    assert accepted.interval == pytest.approx(law.interval(CONFIDENCE), rel=1e-9)


def test_what_bands_accept_is_what_they_say():
    generator = np.random.default_rng(0)
    accepted = []
    for _ in range(2000):
        band = Band.fit(np.sort(generator.random(39)), (10.0, 85.0))
        accepted.append(band.high - band.low)  # of a uniform score, the probability itself
    said = band.accepted
    assert np.mean(accepted) == pytest.approx(said.expected, abs=4 * np.std(accepted) / np.sqrt(2000))
    assert said.interval is not None
    inside = np.mean([said.interval[0] <= share <= said.interval[1] for share in accepted])
    assert inside == pytest.approx(CONFIDENCE, abs=4 * np.sqrt(0.05 * 0.95 / 2000))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_discoveries_are_those_of_scipy(counts, level):
    p_values = np.array(counts) / 40
    for tail, method in (("low", "bh"), ("both", "by")):
        chosen = Discoveries.of(p_values, level, tail, 39).chosen
        adjusted = stats.false_discovery_control(p_values, method=method)
        assert (chosen == (adjusted <= level * (1 + 1e-9))).all()


def test_it_is_said_how_many_rows_it_takes_for_a_discovery():
    smallest = smallest_p_value(99, "low")
    needed = Discoveries.of(np.ones(1000), 0.05, "low", 99).needed
    assert needed == 200
    for count, found in ((199, False), (200, True)):
        p_values = np.where(np.arange(1000) < count, smallest, 1.0)
        assert Discoveries.of(p_values, 0.05, "low", 99).chosen.any() == found
    assert "200" in (Discoveries.of(np.ones(1000), 0.05, "low", 99).warning() or "")
    assert "no row can be" in (Discoveries.of(np.ones(10), 0.01, "low", 9).warning() or "")
    assert Discoveries.of(np.ones(10), 0.05, "low", 9999).warning() is None
    assert not Discoveries.of(np.zeros(0), 0.05, "low", 9).chosen.size


def test_low_p_values_count_unlikely_rows_alone():
    scores = np.arange(9.0)
    assert ScoreRanks.of(scores, np.array([-1.0, 0.0, 4.0, 99.0])).low_p_value.tolist() == [0.1, 0.2, 0.6, 1.0]
