"""Weights that are chosen by what they catch of spoilt rows: only for a clear gain, on rows that serve nothing else."""

import numpy as np
import pytest

from service.data.columns import CategoryColumn
from service.data.inputs import Grey, InputSpec, Mixed
from service.data.kinds import infer
from service.data.learn import learn
from service.data.table import Table
from service.density.estimator import Estimator
from service.scoring.spoils import APART, spoils_of
from service.scoring.statistic_kinds import GENERATION, names_of, weights_of
from service.scoring.weighing import RATES, USUAL, Half, best_weights, caught_by, weightings
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train_table
from service.validity.combination import Combination


def made(number, seed=0):
    random = np.random.default_rng(seed)
    speed = random.normal(size=number)
    return Table(("speed", "load"), (speed.round(4), (speed + 0.3 * random.normal(size=number)).round(4)))


def spec_of(table):
    columns = learn(infer(table), table)
    assert not any(isinstance(one, CategoryColumn) for one in columns)
    names = tuple(one.name for one in columns)
    return InputSpec(
        kind="table", shape=(len(names),), columns=names, transform=Mixed(columns=columns), precision="float64"
    )


SPEC = spec_of(made(500))
SIDES = ["unlikely", "likely", *names_of(SPEC)[1:]]
WORST = SIDES.index("worst_column")


def statistics(number, seed, shift=None, by=6.0):
    """Statistics of rows, (N, K), of which one may be far higher than valid rows have it."""
    found = np.random.default_rng(seed).normal(size=(number, len(SIDES)))
    if shift is not None:
        found[:, shift] += by
    return found


def test_the_weightings_to_choose_between():
    found, usual = weightings(SPEC, GENERATION), weights_of(SPEC)[0]
    assert next(iter(found)) == USUAL
    for name, weight in zip(SIDES[2:], usual[2:], strict=True):
        if weight < 1:
            assert [SIDES[at] for at in np.flatnonzero(found[f"{name} in full"] != usual)] == [name]
    assert {name for name, weights in found.items() if weights[0] < 1} == {"all but log p(x)", "distances alone"}
    assert [SIDES[at] for at in np.flatnonzero(found["distances alone"] == 1)] == ["nearest_row", "isolation"]


def test_what_is_caught_is_the_share_above_the_threshold_of_valid_rows():
    weights, scales = weights_of(SPEC)
    combination = Combination(np.sort(statistics(200, 1), axis=0), np.zeros(0), weights, scales)
    valid, ways = statistics(99, 2), {"one": statistics(50, 3, WORST), "other": statistics(50, 4)}
    naive = []
    for rows in ways.values():
        shares = []
        for rate in RATES:
            threshold = sorted(combination.combine(valid))[-int(100 * rate)]
            shares.append(sum(one > threshold for one in combination.combine(rows)) / len(rows))
        naive.append(sum(shares) / len(shares))
    assert caught_by(combination, valid, ways).tolist() == pytest.approx(naive)


def halves(shift=None, ways=8):
    """Both halves: valid rows, and rows of which a statistic is higher, more so in some ways than in others."""
    return [
        Half(
            statistics(150, seed),
            {f"way {at}": statistics(60, seed + at, shift, 2.0 + 0.3 * at) for at in range(1, ways + 1)},
        )
        for seed in (100, 200)
    ]


def test_a_statistic_that_clearly_catches_more_gets_full_weight():
    weights, chosen = best_weights(SPEC, GENERATION, *halves(WORST))
    assert chosen.name == "worst_column in full"
    assert weights[WORST] == 1
    assert chosen.caught > chosen.usual + 0.05
    assert (chosen.rows, chosen.ways) == (300, 8)


def test_without_a_clear_gain_in_both_halves_the_weights_stay_as_they_are():
    first, second = halves(WORST)
    for some in (halves(), (first, halves()[1]), (halves()[0], second)):
        weights, chosen = best_weights(SPEC, GENERATION, *some)
        assert chosen.name == USUAL
        assert np.array_equal(weights, weights_of(SPEC)[0])
    assert best_weights(SPEC, GENERATION, *halves(ways=1)) is None


def test_a_quarter_of_all_ways_never_choose():
    image = InputSpec(kind="image", shape=(8, 8), transform=Grey())
    for spec in (SPEC, image):
        ways = spoils_of(spec)
        assert {one.name for one in ways if not one.chooses} <= APART
        assert 0.15 <= np.mean([not one.chooses for one in ways]) <= 0.3


@pytest.fixture(scope="module")
def trained():
    recipe = Recipe(
        latents=1, hidden=(16,), fit=FitOptions(epochs=5), estimator=Estimator.of("fast"), calibration_share=0.4
    )
    return {number: train_table(made(number), recipe).draft for number in (900, 2000)}


def test_weights_are_chosen_where_enough_rows_were_held_back(trained, tmp_path):
    few, many = trained[900], trained[2000]
    assert few.calibration.weighting is None
    chosen = many.calibration.weighting
    assert chosen.rows >= 100
    assert chosen.ways >= 5
    store = Store(tmp_path)
    for name, draft in (("few", few), ("many", many)):
        published = store.load(store.publish(name, draft))
        assert published.card.calibration.weighting == draft.calibration.weighting
        weights = published.calibration.statistics.combination.weights
        assert np.array_equal(weights, draft.calibration.statistics.combination.weights)
    assert "weighting" not in published_fields(store, "few")
    assert "weighting" in published_fields(store, "many")


def published_fields(store, name):
    return store.load(store.resolve(name)).card.model_dump()["calibration"]
