"""Rows that repeat, and rows that belong together."""

from dataclasses import replace

import numpy as np
import pytest

from service.training.recipe import Recipe, Split
from service.training.repeats import Repeats, hashes, numbered, one_of_each


def continuous(rows, seed=0):
    random = np.random.default_rng(seed)
    factor = random.normal(size=rows)
    return np.stack([factor, 3 * factor + random.normal(size=rows), random.poisson(4.0, rows).astype(float)], axis=1)


def whole(rows, values, seed=0):
    return np.random.default_rng(seed).integers(0, values, (rows, 3)).astype(float)


@pytest.mark.parametrize("copies", [2, 4, 10])
def test_copies_are_told_by_a_number_too_fine_to_be_drawn_twice(copies):
    rows = np.random.default_rng(1).permutation(np.repeat(continuous(300), copies, axis=0))
    found = Repeats.of(rows, "auto")
    assert found.kind == "copies"
    assert len(np.unique(found.groups)) == 300
    assert f"{300 * (copies - 1):,} of {300 * copies:,} rows" in found.note


def test_a_few_copies_among_many_rows_are_copies():
    rows = continuous(2_000)
    assert Repeats.of(np.concatenate([rows, rows[:5]]), "auto").kind == "copies"


def test_copies_are_told_in_numbers_of_few_decimals_too():
    rows = continuous(500).round(2)
    assert Repeats.of(np.concatenate([rows, rows, rows]), "auto").kind == "copies"


def test_a_row_that_comes_again_and_again_is_no_copy():
    rows = np.concatenate([continuous(1_000), np.zeros((700, 3)), np.full((90, 3), -1.0)])
    assert Repeats.of(rows, "auto").kind == "natural"


@pytest.mark.parametrize("scale", [1.0, 0.1, 1000.0, 1 / 7])
@pytest.mark.parametrize("values", [3, 12])
def test_draws_of_few_values_repeat_by_themselves_in_any_unit(values, scale):
    rows = whole(3_000, values) * scale
    found = Repeats.of(rows, "auto")
    assert found.kind == "natural"
    assert found.groups is None
    one_odd = rows.copy()
    one_odd[0, 0] = 3.14159265358979
    assert Repeats.of(one_odd, "auto").kind == "natural"


def test_what_the_user_says_is_so():
    assert Repeats.of(whole(500, 3), "copies").kind == "copies"
    twice = np.repeat(continuous(300), 2, axis=0)
    assert Repeats.of(twice, "natural").groups is None
    assert Repeats.of(continuous(300), "copies") == Repeats()
    pictures = np.random.default_rng(0).integers(0, 2, (50, 8, 8)) * 255
    assert Repeats.of(np.concatenate([pictures, pictures[:3]]), "auto", is_image=True).kind == "copies"


def test_rows_of_a_group_stay_on_one_side_and_one_of_each_calibrates():
    random = np.random.default_rng(0)
    groups, _ = numbered(np.repeat(np.arange(120), random.integers(1, 21, 120)))
    for folds in (1, 4):
        splits = Split.all_of(len(groups), replace(Recipe(), folds=folds), groups)
        for split in splits:
            parts = [set(groups[part].tolist()) for part in (split.train, split.validation, split.calibration)]
            assert sum(map(len, parts)) == len(set.union(*parts))  # disjoint
            assert len(split.calibration) == len(parts[2])
            assert len(split.validation) == len(parts[1])
            assert np.isin(groups, list(parts[0])).sum() == len(split.train)  # all rows of a group are trained on
        assert len({one for split in splits for one in split.calibration.tolist()}) == sum(
            len(split.calibration) for split in splits
        )


def test_one_of_each_is_any_of_its_rows():
    groups = np.repeat(np.arange(4), [1, 2, 3, 4])
    seen = np.zeros(10)
    for seed in range(600):
        chosen = one_of_each(groups, np.random.default_rng(seed))
        assert sorted(groups[chosen].tolist()) == [0, 1, 2, 3]
        seen[chosen] += 1
    assert seen[0] == 600
    assert np.allclose(seen[1:3], 300, atol=60)
    assert np.allclose(seen[6:], 150, atol=45)


def test_without_a_cell_a_row_is_a_group_of_its_own():
    found = Repeats.by_column(np.array(["a", None, "b", "a", None], dtype=object))
    assert len(np.unique(found.groups)) == 4
    assert found.groups[0] == found.groups[3]


def test_hashes_are_of_values():
    rows = np.array([[0.0, np.nan], [-0.0, -np.nan], [1.0, 2.0], [2.0, 1.0]])
    found = hashes(rows)
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 3


def test_rows_that_agree_where_a_cell_is_missing_are_no_copies():
    rows = continuous(3_000)
    rows = np.stack([np.where(np.random.default_rng(2).random(3_000) < 0.5, np.nan, rows[:, 0]), rows[:, 2]], axis=1)
    assert Repeats.of(rows, "auto").kind == "natural"
    with_copies = np.concatenate([rows, rows[~np.isnan(rows[:, 0])][:40]])
    found = Repeats.of(with_copies, "auto")
    assert found.kind == "copies"
    _, counts = np.unique(found.groups, return_counts=True)
    assert (counts > 1).sum() == 40  # rows without the fine number stay by themselves
