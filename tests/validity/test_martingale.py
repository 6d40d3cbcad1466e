"""The drift test: what it pays, what its ranks are, that it keeps its promise and notices."""

import numpy as np
import pytest
from scipy import stats

from service.validity.martingale import BETS, Martingale, Ranks, densities, log_limit


def test_every_bet_is_fair():
    p_values = (np.arange(10_000) + 0.5) / 10_000
    assert densities(p_values).mean(axis=0) == pytest.approx(1.0)
    assert densities(np.array([0.0, 1.0])).shape == (2, 1 + len(BETS))


def test_the_capital_is_that_of_the_bets_written_out():
    p_values = np.random.default_rng(0).random(300) ** 1.5
    martingale = Martingale()
    path = np.concatenate([martingale.bet(part) for part in np.split(p_values, [0, 1, 120])])
    shares = np.array([0.8, 0.1, 0.1 / 3, 0.1 / 3, 0.1 / 3])
    parts = shares
    for p_value, expected in zip(p_values, path, strict=True):
        odds = [1.0]
        for side, share in (("low", 0.05), ("low", 0.25), ("high", 0.05), ("high", 0.25)):
            hit = p_value <= share if side == "low" else p_value > 1 - share
            odds.append(2.0 if hit else (1 - 2 * share) / (1 - share))
        parts = parts * np.array(odds)
        assert np.log(parts.sum()) == pytest.approx(expected)
        parts = 0.999 * parts + 0.001 * parts.sum() * shares
    assert martingale.log_capital == pytest.approx(path[-1])


def test_it_survives_what_no_float_holds():
    martingale = Martingale()
    martingale.bet(np.full(100_000, 1e-9))
    assert 60_000 < martingale.log_capital < np.inf
    martingale.bet(np.full(100_000, 0.5))
    assert np.isfinite(martingale.log_capital)


def test_ranks_are_counted_as_they_say():
    generator = np.random.default_rng(0)
    ranks, before = Ranks(0.0, 1.0), []
    scores = np.round(generator.normal(size=400), 1)
    uniforms = generator.random(400)
    found = np.concatenate([ranks.p_values(scores[part], uniforms[part]) for part in (slice(300), slice(300, 400))])
    cells = Ranks(0.0, 1.0).cells(scores)
    for cell, uniform, p_value in zip(cells, uniforms, found, strict=True):
        lower, equal = sum(one < cell for one in before), sum(one == cell for one in before)
        assert p_value == pytest.approx((lower + uniform * (equal + 1)) / (len(before) + 1))
        before.append(cell)
    assert ranks.total == 400


def test_the_grid_is_fine_where_rows_are_and_holds_whatever_comes():
    ranks = Ranks(-90.0, 10.0)
    cells = ranks.cells(np.array([-1e300, -1e6, -90.0, -89.9, 1e300]))
    assert (np.diff(cells) > 0).all()
    assert cells[0] == 0
    assert cells[-1] == Ranks.CELLS - 1


def test_p_values_of_one_stream_are_uniform_and_independent():
    generator = np.random.default_rng(1)
    ranks = Ranks(0.0, 1.0)
    ranks.add(ranks.cells(generator.normal(size=200)))
    p_values = ranks.p_values(generator.normal(size=5_000), generator.random(5_000))
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(p_values[1:], p_values[:-1])[0, 1]) < 4 / np.sqrt(5_000)


def test_valid_streams_seldom_alarm_and_shifted_ones_do():
    generator = np.random.default_rng(2)
    alarms, delays = 0, []
    for _ in range(60):
        ranks, martingale = Ranks(0.0, 1.0), Martingale()
        ranks.p_values(generator.normal(size=300), generator.random(300))
        path = martingale.bet(ranks.p_values(generator.normal(size=2_000), generator.random(2_000)))
        alarms += path.max() >= log_limit(0.05)
        path = martingale.bet(ranks.p_values(generator.normal(-1.0, 1.0, size=500), generator.random(500)))
        over = np.flatnonzero(path >= log_limit(0.05))
        delays.append(over[0] if over.size else 500)
    assert alarms <= stats.binom.ppf(0.9999, 60, 0.05)
    assert np.quantile(delays, 0.9) < 200


def test_all_starts_together_spend_the_level():
    assert sum(np.exp(-log_limit(0.01, restarts)) for restarts in range(100_000)) == pytest.approx(0.01, rel=1e-3)
