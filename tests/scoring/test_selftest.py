"""A model tested against itself: the ways of spoiling rows, and what is told of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from service.cli.report import selftest_lines
from service.data.inputs import Binary, InputSpec, Standard
from service.errors import CalibrationError, InputError
from service.scoring.evaluation import CANDIDATES, Costs, RuleOnSet, cheapest, cost_sentence, rates_allowed
from service.scoring.options import ScoreOptions
from service.scoring.selftest import LEAST_ROWS, SelfTest
from service.scoring.selftesting import Judge, selftested
from service.scoring.spoils import Columns, Spoil, first_digit_twice, spoils_of, spoilt
from tests.models import digits

IMAGE = InputSpec(kind="image", shape=(8, 8), transform=Binary(threshold=127.5, high=255.0))
PLAIN = InputSpec(
    kind="table",
    shape=(3,),
    columns=("a", "b", "c"),
    transform=Standard(center=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0)),
    precision="float64",
)


@pytest.mark.parametrize("spec", [IMAGE, PLAIN], ids=["image", "table"])
def test_every_spoil_changes_every_row_that_it_returns_and_stays_readable(spec):
    generator = np.random.default_rng(0)
    rows = digits()[:60].reshape(60, -1) if spec.kind == "image" else generator.normal(size=(60, 3))
    rows = spec.rows(rows)
    spoils = spoils_of(spec)
    assert len({one.name for one in spoils}) == len(spoils) >= 15
    found = {one.name: spoilt(spec, rows, one) for one in spoils}
    for one in found.values():
        assert (one.rows != rows[one.of]).any(axis=1).all()
        assert np.array_equal(spec.rows(one.rows), one.rows, equal_nan=True)
    assert sum(len(one.rows) >= LEAST_ROWS for one in found.values()) >= 14
    again = spoilt(spec, rows, spoils[3])
    assert np.array_equal(again.rows, found[again.name].rows)


def test_one_cell_is_spoilt_and_said(any_scorer):
    scorer, rows = any_scorer
    spec = scorer.model.input
    if spec.kind == "image":
        pytest.skip("images are spoilt as a whole")
    rows = scorer.rows(rows[:50])
    tenfold = spoilt(spec, rows, next(one for one in spoils_of(spec) if one.name == "a number x 10"))
    for row, at, of in zip(tenfold.rows, tenfold.columns, tenfold.of, strict=True):
        assert row[at] == pytest.approx(10 * rows[of, at])
        assert np.array_equal(np.delete(row, at), np.delete(rows[of], at), equal_nan=True)
        assert Columns.of(spec).is_number[at]


def test_digits_are_doubled():
    assert first_digit_twice(np.array([37.0, 5.0, 0.0, -0.42, 1200.0])) == pytest.approx([337, 55, 0, -4.42, 11200])


def test_the_shares_are_those_of_the_rules_and_the_valid_rows_are_told(any_scorer):
    scorer, rows = any_scorer
    rows = scorer.read(rows[:60])
    spoils = spoils_of(scorer.model.input)[:3]
    found = selftested(scorer, rows, spoils=spoils)
    judge = Judge.of(scorer)
    assert found.false_alarm == judge.rate
    assert found.alarms == pytest.approx(judge.flagged(rows).mean(axis=1))
    for one in found.caught:
        spoil = next(spoil for spoil in spoils if spoil.name == one.spoil)
        bad = spoilt(scorer.model.input, rows[:, : scorer.model.input.features], spoil)
        whole = np.concatenate([bad.rows, rows[bad.of, scorer.model.input.features :]], axis=1)
        options = ScoreOptions("combined", false_alarm=judge.rate)
        assert one.shares[-1] == pytest.approx((~scorer.score_read(whole, options).valid).mean())
        assert one.rows == len(bad.rows)
        assert sum(number for number, _ in one.columns.values()) in (0, one.rows)
    assert SelfTest.model_validate(json.loads(found.model_dump_json())) == found


def test_a_test_without_time_finds_nothing_and_says_nothing(any_scorer):
    scorer, rows = any_scorer
    found = selftested(scorer, scorer.read(rows[:20]), until=-1.0)
    assert found.caught == ()
    assert all(0 <= share <= 1 for share in found.alarms)


def test_a_spoil_of_another_shape_is_refused(any_scorer):
    scorer, rows = any_scorer
    wrong = Spoil("half", lambda rows, chosen, generator: rows[:5])
    with pytest.raises(InputError, match="another shape"):
        selftested(scorer, scorer.read(rows[:20]), spoils=[wrong])


def test_own_spoils_are_tried_and_too_few_rows_refused(any_scorer):
    scorer, rows = any_scorer
    own = Spoil("nothing but ends", lambda rows, chosen, generator: np.full_like(rows, np.nanmax(rows)))
    found = selftested(scorer, scorer.read(rows[:20]), spoils=[own])
    assert [one.spoil for one in found.caught] == ["nothing but ends"]
    with pytest.raises(CalibrationError, match="at least 10 valid rows"):
        selftested(scorer, scorer.read(rows[:9]))
    with pytest.raises(CalibrationError, match=r"needs? at least"):
        selftested(scorer, scorer.read(rows[:20]), 1e-6)


def test_a_new_version_says_what_it_catches(any_scorer):
    card = any_scorer[0].published.card
    if card.selftest is None:
        pytest.skip("calibrated again, on rows that are all needed")
    lines = list(selftest_lines(card.selftest))
    assert "false alarms the rule combined catches" in lines[0]
    assert sum(line.count("%") for line in lines[1:]) == len(card.selftest.caught)
    whole = list(selftest_lines(card.selftest, is_whole=True))
    assert len(whole) == len(card.selftest.caught) + 5


def test_rows_that_are_spoilt_were_not_calibrated_on(any_scorer):
    """The split is of disjoint rows: what is tested is in neither part."""
    from service.training.aside import with_rows_aside
    from service.training.recipe import Split

    split = Split(np.arange(700), np.arange(700, 800), np.arange(800, 1000))
    (left,), aside = with_rows_aside([split], 150)
    assert (len(aside.testing), len(aside.weighing)) == (12, 0)
    assert are_disjoint(left.train, left.validation, left.calibration, aside.testing)
    assert len(left.calibration) + len(aside.testing) == 200
    (left,), aside = with_rows_aside([replace(split, calibration=split.calibration[:150])], 150)
    assert (len(aside.testing), len(aside.weighing)) == (33, 0)
    assert are_disjoint(left.train, left.validation, left.calibration, aside.testing)
    large = replace(split, calibration=np.arange(800, 1600))
    (left,), aside = with_rows_aside([large], 150)
    assert (len(left.calibration), len(aside.testing), len(aside.weighing)) == (550, 125, 125)
    assert are_disjoint(left.train, left.validation, left.calibration, aside.testing, aside.weighing)
    same, aside = with_rows_aside([large, large], 150)
    assert (len(same), len(aside.testing), len(aside.weighing)) == (2, 0, 0)


def are_disjoint(*parts):
    return len(np.unique(np.concatenate(parts))) == sum(map(len, parts))


def allowed_from(least):
    return lambda rule, rate: rate >= least


def test_a_rate_that_is_named_is_one_that_the_version_allows(any_scorer):
    allows = rates_allowed(any_scorer[0])
    for rule, name in (("band, both sides", "band"), ("combined", "combined")):
        rates = [rate for rate in CANDIDATES if allows(rule, rate)]
        any_scorer[0].check(ScoreOptions(name, false_alarm=min(rates)))
        assert not allows(rule, 1e-6)


def test_the_cheapest_rate_is_that_of_all_rates():
    generator = np.random.default_rng(0)
    p_valid, p_invalid = generator.random(5000), generator.random(5000) ** 6
    results = [RuleOnSet("combined", "one", (), (), 0.0, 0.0, p_valid, p_invalid)]
    costs = Costs(50.0, 1.0, 0.01)
    best = cheapest(results, costs, allowed_from(2 / 5001))
    by_hand = min(
        0.01 * 50.0 * (p_invalid > rate).mean() + 0.99 * max(rate, (p_valid <= rate).mean())
        for rate in np.linspace(1e-3, 0.5, 2000)
    )
    assert best.by_row == pytest.approx(by_hand, rel=0.02)
    assert "Cheapest: `?rule=combined&false_alarm=" in cost_sentence(best, costs)
    blind = [replace(results[0], p_invalid=p_valid)]
    nothing = cheapest(blind, Costs(1.0, 1.0, 0.01), allowed_from(2 / 5001))
    assert nothing.rate == 0
    assert cost_sentence(nothing, Costs(1.0, 1.0, 0.01)).startswith("Accept every")
    assert cheapest(results, costs, allowed_from(0.2)).rate >= 0.2
    for wrong in ((0.0, 1.0, 0.5), (1.0, -1.0, 0.5), (1.0, 1.0, 1.0), (float("nan"), 1.0, 0.5)):
        with pytest.raises(InputError):
            Costs(*wrong)
