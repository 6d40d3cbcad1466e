"""Where rows repeat or lie unevenly, and where one cell contradicts the others: what the combined rule makes of it."""

import numpy as np
import pytest

from service.data.columns import CategoryColumn
from service.data.table import Table
from service.density.estimator import Estimator
from service.density.neighbours import Neighbours
from service.scoring.options import ScoreOptions
from service.scoring.statistic_kinds import kind_of, names_of, weights_of
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train_table
from service.validity.column_ranks import ColumnSketch
from service.validity.combination import Combination, surprise
from tests.tools import detected_cells

PLAIN = np.zeros(2, dtype=bool)


def naive_nearest(known, rows, count):
    span = np.ptp(known, axis=0)
    distance = np.sqrt((((rows[:, None] - known) / span) ** 2).mean(axis=2))
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distance, order, axis=1)


def test_the_nearest_rows_are_those_of_all_distances():
    generator = np.random.default_rng(0)
    known, rows = generator.normal(size=(200, 2)), generator.normal(size=(70, 2))
    distances, which = Neighbours(known, PLAIN).nearest(rows, 5)
    assert distances == pytest.approx(naive_nearest(known, rows, 5), abs=1e-12)
    assert which.shape == (70, 5)
    few = Neighbours(known[:3], PLAIN).nearest(rows, 5)[0]
    assert few == pytest.approx(naive_nearest(known[:3], rows, 3), abs=1e-12)


def test_the_resolution_is_that_of_distinct_rows():
    grid = np.array([[x, y] for x in range(11) for y in range(11)], dtype=float)
    assert Neighbours(np.repeat(grid, 7, axis=0), PLAIN).resolution() == pytest.approx(0.1 / np.sqrt(2))
    assert Neighbours(np.ones((5, 2)), PLAIN).resolution() == 1.0
    generator = np.random.default_rng(0)
    known = generator.normal(size=(250, 2))
    assert Neighbours(known, PLAIN).resolution() == pytest.approx(np.min(naive_nearest(known, known, 2)[:, 1]))


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_surprise_is_never_less_than_the_ranks_say(share):
    """Most values are piled up far below the others, as the logarithms of distances that are zero."""
    generator = np.random.default_rng(0)
    known = np.sort(np.where(generator.random(400) < share, np.log(1e-9), generator.normal(size=400)))
    beyond = surprise(known, np.array([known[-1] + 0.1]), 0.01)
    assert beyond[0] >= np.log(401 / 1.5)
    assert (np.diff(surprise(known, np.linspace(-25, 10, 500), 0.01)) >= -1e-12).all()
    of_before = surprise(known, np.array([known[-1] + 0.1]), 0.01, by_ranks=False)
    assert (of_before < beyond) == (share < 0.9)


def test_rows_that_a_distance_separates_are_found_though_valid_ones_repeat():
    """One statistic that is zero for three valid rows in four, and large for what is wrong; the other says nothing."""
    generator = np.random.default_rng(0)
    distance = np.where(generator.random(2000) < 0.75, 0.0, generator.uniform(0.9, 1.1, 2000))
    valid = np.stack([np.log(np.maximum(distance, 0.5)), generator.normal(size=2000)], axis=1)
    wrong = np.stack([np.log(generator.uniform(3.0, 5.0, 200)), generator.normal(size=200)], axis=1)
    rule = Combination.fit(valid, np.ones(2), np.full(2, 0.01))
    assert (rule.p_value(wrong) <= 0.01).mean() > 0.95


def test_a_cell_s_surprise_is_its_share_and_goes_on_beyond():
    generator = np.random.default_rng(0)
    cells = np.log(generator.random((5000, 1)))  # P(cell <= t) = exp(t)
    sketch = ColumnSketch.fit(cells, np.array([-3.0]))
    asked = np.array([[-0.1], [-1.0], [-3.0], [-6.0], [-20.0], [np.nan]])
    found = sketch.surprise(asked)[:, 0]
    assert found[:4] == pytest.approx([0.1, 1.0, 3.0, 6.0], abs=0.25)
    assert found[4] == pytest.approx(20.0, rel=0.15)
    assert np.isnan(found[5])
    assert (np.diff(sketch.surprise(np.linspace(0, -30, 300)[:, None])[:, 0]) >= -1e-9).all()


def test_of_sketches_the_quantiles_are_averaged():
    generator = np.random.default_rng(0)
    one, other = (ColumnSketch.fit(at + generator.normal(size=(200, 2)), np.full(2, -1.0)) for at in (0.0, 2.0))
    both = ColumnSketch.averaged([one, other])
    assert both.values == pytest.approx(0.5 * (one.values + other.values))
    assert both.counts.tolist() == [200, 200]


@pytest.fixture(scope="module")
def married(tmp_path_factory):
    """A model of a table in which the state follows from the role, and a number from neither."""
    generator = np.random.default_rng(0)
    role = generator.integers(4, size=3000)
    state = np.where(role < 2, 0, np.where(role == 2, 1, 2))
    hours = 40 + 8 * generator.normal(size=3000) + 3 * role
    names = ("role", "state", "hours")
    words = ["husband", "wife", "child", "other"], ["married", "single", "divorced"]
    cells = (*(detected_cells([w[at] for at in codes]) for w, codes in zip(words, (role, state), strict=True)), hours)
    root = tmp_path_factory.mktemp("married")
    recipe = Recipe(latents=3, hidden=(64,), fit=FitOptions(epochs=40), estimator=Estimator.of("fast"))
    Store(root).publish("married", train_table(Table(names, cells), recipe).draft)
    return load_scorer(Store(root), "married", "cpu")


def test_a_category_that_contradicts_another_is_invalid(married):
    spec = married.model.input
    assert kind_of(spec) == "mixed table"
    assert any(isinstance(one, CategoryColumn) for one in spec.transform.columns)
    assert "worst_cell" in names_of(spec)
    rows = [{"role": "husband", "state": "single", "hours": 41.0}] * 5 + [
        {"role": "husband", "state": "married", "hours": 41.0}
    ] * 5
    scores = married.score(rows, ScoreOptions("combined", false_alarm=0.02))
    assert not scores.valid[:5].any()
    assert scores.valid[5:].all()
    named = dict(zip(scores.rule.statistics, scores.evidence[0], strict=True))
    assert named["worst_cell"] < 0.05
    assert named["rare_pair"] < 0.01


def test_older_versions_lack_what_came_later(any_scorer):
    spec = any_scorer[0].model.input
    assert len(names_of(spec, 1)) <= len(names_of(spec, 2)) <= len(names_of(spec, 3))
    assert not {"worst_cell", "rare_pair", "isolation"} & set(names_of(spec, 2))
    weights, scales = weights_of(spec)
    assert len(weights) == len(scales)
    assert (weights > 0).all()
