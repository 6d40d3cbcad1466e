"""Pairs of values that are rare together."""

import numpy as np
import pytest

from service.density.pairs import RarePairs


def naive(known, row, is_category, bins):
    """The largest lift by counting, for columns that are categories or already bins."""
    most = 0.0
    for b in range(known.shape[1]):
        for a in range(b):
            if not (is_category[a] or is_category[b]) or np.isnan(row[[a, b]]).any():
                continue
            both = ~np.isnan(known[:, [a, b]]).any(axis=1)
            x, y = bins[a](known[both, a]), bins[b](known[both, b])
            mine, theirs = bins[a](row[a : a + 1])[0], bins[b](row[b : b + 1])[0]
            unseen = [is_category[at] and not (known[:, at] == row[at]).any() for at in (a, b)]
            if any(unseen):
                continue
            expected = (x == mine).sum() * (y == theirs).sum() / len(x)
            seen = ((x == mine) & (y == theirs)).sum()
            most = max(most, np.log((expected + 0.5) / (seen + 0.5)))
    return most


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_lifts_are_those_of_counting(holes):
    generator = np.random.default_rng(0)
    role = generator.integers(4, size=500).astype(float)
    state = np.where(role < 2, 0.0, generator.integers(3, size=500))
    hours = generator.normal(size=500) + role
    known = np.stack([role, hours, state], axis=1)
    known[generator.random(known.shape) < holes] = np.nan
    is_category = np.array([True, False, True])
    pairs = RarePairs(known, is_category)
    ends = pairs.levels[1]
    bins = [lambda x: x, lambda x: np.searchsorted(ends, x, side="right"), lambda x: x]
    asked = np.concatenate([known[:40], [[0.0, 0.0, 2.0], [9.0, 0.0, 1.0], [np.nan, 1e9, 2.0], [3.0, -1e9, 0.0]]])
    found, _ = pairs.rarest(asked)
    assert found == pytest.approx([naive(known, row, is_category, bins) for row in asked])


def test_a_contradiction_is_named_and_what_is_only_rare_is_not():
    generator = np.random.default_rng(0)
    role = generator.choice(3, 4000, p=[0.6, 0.39, 0.01]).astype(float)
    state = np.where(role == 0, 0.0, generator.integers(2, size=4000))
    pairs = RarePairs(np.stack([role, state, generator.normal(size=4000)], axis=1), np.array([True, True, False]))
    lifts, columns = pairs.rarest(np.array([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]))
    assert lifts[0] > 5
    assert columns[0].tolist() == [0, 1]
    assert lifts[1] < 1


def test_many_rows_are_looked_up_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    rows = generator.integers(3, size=(300, 4)).astype(float)
    pairs = RarePairs(rows, np.ones(4, dtype=bool))
    whole = pairs.rarest(rows)
    monkeypatch.setattr("service.density.pairs.PAIRS_AT_ONCE", 60)
    for part, all_at_once in zip(pairs.rarest(rows), whole, strict=True):
        assert np.array_equal(part, all_at_once)


def test_columns_of_numbers_alone_have_no_pairs_and_nothing_breaks():
    rows = np.random.default_rng(0).normal(size=(50, 3))
    lifts, columns = RarePairs(rows, np.zeros(3, dtype=bool)).rarest(rows)
    assert (lifts == 0).all()
    assert (columns == -1).all()
    empty = RarePairs(np.full((5, 2), np.nan), np.array([True, False])).rarest(np.array([[1.0, 2.0], [np.nan, np.nan]]))
    assert (empty[0] == 0).all()
