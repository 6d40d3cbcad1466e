"""Calibration by groups: which groups there are, and that each is promised, and gets, its own rate."""

import csv
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from service.data.columns import CategoryColumn
from service.data.inputs import InputSpec, Mixed
from service.data.table import IS_TEXT, Table
from service.density.estimator import Estimator
from service.errors import CalibrationError, DamagedModelError, DataError, InputError
from service.files.readers import Rows
from service.scoring.groups import HIDDEN, POOL, POOL_NAME, GroupPlan, Terms, expected_for
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.selftesting import selftested
from service.scoring.spoils import MISSING
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recalibrate import recalibrate
from service.training.recipe import Recipe
from service.training.train import train_table
from tests.tools import as_csv, running_service, vouch

RULE = ScoreOptions("combined", false_alarm=0.05)
RULES = {
    "the default": ScoreOptions(),
    "0.05 below": ScoreOptions("band", false_alarm=0.05, tail="low"),
    "combined": RULE,
}
RECIPE = Recipe(
    latents=2,
    hidden=(16,),
    fit=FitOptions(epochs=8, batch_size=64),
    estimator=Estimator.of("fast"),
    calibration_share=0.4,
    by="plant",
)
PLANTS = ("moss", "fern", "oak", "fig", "yew")  # of which oak and the others vary more
SHARES = (0.4, 0.3, 0.2, 0.06, 0.04)


def made(number, seed, plants=PLANTS, shares=SHARES):
    """Columns of rows of plants: some plants vary ten times as much as others."""
    random = np.random.default_rng(seed)
    plant = random.choice(plants, number, p=np.array(shares) / sum(shares))
    spread = np.select([plant == "moss", plant == "fern"], [0.3, 1.0], 3.0)
    height = spread * random.normal(size=number)
    return {
        "plant": plant.astype(object),
        "height": height.round(4),
        "width": (height + random.normal(size=number)).round(4),
    }


def as_table(found):
    return Table(tuple(found), tuple(found.values()))


def rows_of(found):
    return [dict(zip(found, row, strict=True)) for row in zip(*(one.tolist() for one in found.values()), strict=True)]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A store with a model that is calibrated by groups, and its scorer."""
    store = Store(tmp_path_factory.mktemp("groups") / "store")
    store.publish("plants", train_table(as_table(made(4000, 0)), RECIPE).draft)
    return SimpleNamespace(store=store, scorer=load_scorer(store, "plants", "cpu"))


@pytest.fixture(scope="module")
def fresh(grouped):
    """Many new rows of every plant, and their scores by each rule."""
    found = made(6000, 1)
    array = grouped.scorer.read(rows_of(found))
    return SimpleNamespace(
        found=found, array=array, scores={name: grouped.scorer.score_read(array, rule) for name, rule in RULES.items()}
    )


def spec_of(*values):
    """An input of a column of categories, and nothing else."""
    column = CategoryColumn(name="plant", kind="category", values=values, unseen=0.01)
    return InputSpec(kind="table", shape=(1,), columns=("plant",), transform=Mixed(columns=(column,)))


def training(*counts):
    """Rows of so many of each value, by its index."""
    return np.repeat(np.arange(len(counts)), counts)[:, None].astype(float)


# Which groups there are


def test_a_value_that_is_frequent_in_training_is_a_group_and_all_others_are_the_pool():
    spec = spec_of("a", "b", "c", "d")
    plan = GroupPlan.of(spec, "plant", training(500, 300, 150, 50), 1000, needed=20)
    # d alone would be a pool of 50 rows, so c joins it.
    assert plan == GroupPlan(column="plant", values=("a", "b"), has_pool=True)
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [np.nan]])  # 4 stands for any value that was never seen
    assert plan.numbers(spec, rows).tolist() == [1, 2, POOL, POOL, POOL, HIDDEN]
    assert plan.names == (POOL_NAME, "a", "b")


def test_without_rare_values_there_is_no_pool():
    plan = GroupPlan.of(spec_of("a", "b"), "plant", training(600, 400), 1000, needed=20)
    assert plan == GroupPlan(column="plant", values=("a", "b"), has_pool=False)


def test_groups_are_as_large_as_the_rate_needs():
    spec = spec_of("a", "b", "c")
    assert GroupPlan.of(spec, "plant", training(500, 300, 200), 1000, needed=100).values == ("a", "b", "c")
    assert expected_for(149) > 149 + 4 * np.sqrt(149)  # hardly ever fewer
    assert GroupPlan.of(spec, "plant", training(500, 300, 200), 1000, needed=149).values == ("a",)
    with pytest.raises(DataError, match=r"fewer than two groups are expected to have 2.. of 1,000 calibration rows"):
        GroupPlan.of(spec, "plant", training(900, 60, 40), 1000, needed=149)
    plan = GroupPlan.of(spec, "plant", training(500, 300, 200), 10_000, needed=149)
    assert 0.2 * plan.least_rows(spec, training(500, 300, 200), 149) == pytest.approx(expected_for(149), abs=1)


@pytest.mark.parametrize("name", ["height", "nothing"])
def test_only_a_column_of_categories_has_groups(grouped, name):
    with pytest.raises(DataError, match="expected one of these: plant"):
        GroupPlan.of(grouped.scorer.model.input, name, np.zeros((1, 3)), 1000, 10)


# Rates


@pytest.mark.parametrize("rule", RULES)
def test_each_group_has_the_rate_that_it_is_promised(grouped, fresh, rule):
    scores = fresh.scores[rule]
    names = np.array(scores.group_names)
    assert set(names) == {"moss", "fern", "oak", POOL_NAME}
    for name, accepted, rows in zip(scores.grouping.names, scores.grouping.accepted, scores.grouping.rows, strict=True):
        own = scores.valid[names == name]
        error = np.sqrt(accepted.expected * (1 - accepted.expected) * (1 / rows + 1 / len(own)))
        assert own.mean() > accepted.expected - 3.5 * error
        assert own.mean() < accepted.expected + (0.03 if accepted.is_bound else 0.0) + 3.5 * error


def test_without_groups_they_have_not(grouped, fresh):
    """Else the test above would show nothing."""
    scorer = without_groups(grouped.scorer)
    valid = scorer.score_read(fresh.array, RULES["0.05 below"]).valid
    assert valid[fresh.found["plant"] == "moss"].mean() > 0.99
    assert valid[fresh.found["plant"] == "oak"].mean() < 0.9


def without_groups(scorer):
    published = scorer.published
    card = published.card.calibration.model_copy(update={"groups": None})
    return Scorer(
        replace(
            published,
            calibration=replace(published.calibration, groups=None),
            card=published.card.model_copy(update={"calibration": card}),
        )
    )


def test_a_row_is_ranked_among_the_rows_of_its_group(grouped, fresh):
    """The naive way: by counting."""
    scores = fresh.scores["the default"]
    for at in range(0, 200, 7):
        known = grouped.scorer.groups.members[scores.group[at]].scores
        less = sum(score <= scores.log_likelihood[at] for score in known.tolist())
        assert scores.low_p_value[at] == pytest.approx((1 + less) / (len(known) + 1))
        assert scores.low[at] == sorted(known)[int((len(known) + 1) * 0.25) - 1]


def test_groups_are_all_complete_validation_rows(grouped):
    calibration = grouped.scorer.calibration
    together = np.sort(np.concatenate([one.scores for one in calibration.groups.members]))
    assert np.array_equal(together, calibration.scores)


def test_scores_do_not_depend_on_the_company(grouped, fresh):
    alone = [grouped.scorer.score_read(fresh.array[at : at + 1], RULE) for at in range(12)]
    assert [one.combined_p_value[0] for one in alone] == fresh.scores["combined"].combined_p_value[:12].tolist()


def test_a_rate_that_a_group_is_too_small_for_is_refused(grouped):
    smallest = min(len(one.scores) for one in grouped.scorer.groups.members)
    rate = 1.5 / (smallest + 1)  # more than all rows together need
    with pytest.raises(CalibrationError, match=r"group .* of plant: percentiles .* need at least"):
        grouped.scorer.check(ScoreOptions("band", false_alarm=rate))
    with pytest.raises(CalibrationError, match=r"group .* of plant: a combined rate"):
        grouped.scorer.check(ScoreOptions("combined", false_alarm=0.008))


def test_discoveries_need_what_the_largest_group_could_show(grouped, fresh):
    found = fresh.scores["the default"].discoveries(0.1)
    largest = max(len(one.scores) for one in grouped.scorer.groups.members)
    assert fresh.scores["the default"].grouping.finest == largest
    assert found.needed == np.ceil(len(fresh.array) / (largest + 1) / 0.1)


@pytest.mark.parametrize("rows", range(60, 300, 7))
def test_the_least_rate_of_a_group_is_one_that_it_allows(grouped, rows):
    """Its nearest float may be below it."""
    calibration, spec = grouped.scorer.calibration, grouped.scorer.model.input
    few = [some_of(one, rows) for one in calibration.groups.members[1:]]
    members = (calibration.groups.members[0], *few)
    smaller = replace(calibration, groups=replace(calibration.groups, members=members))
    assert smaller.combined_rule(spec).false_alarm >= 0.01


def some_of(group, rows):
    """A group of fewer rows."""
    violations = replace(group.violations, counts=np.array([rows]), codes=group.violations.codes[:1])
    return replace(group, scores=group.scores[:rows], violations=violations)


def test_rows_that_cannot_be_read_are_of_their_group_whatever_else_they_lack(grouped, fresh):
    rows = fresh.array[:60].copy()
    rows[:, 1], rows[:, 2] = IS_TEXT, np.nan
    spec, lowest = grouped.scorer.model.input, np.full(60, True)
    codes = grouped.scorer.domains.codes(spec, rows)
    wide = Terms((0.5, 99.5), grouped.scorer.groups.plan)
    numbers = grouped.scorer.group_numbers(rows, lowest)
    assert len(np.unique(numbers)) == 4
    more = np.tile(rows, (20, 1))
    with pytest.raises(CalibrationError, match=r"group .* of plant: .* rows cannot be read, and the band may refuse"):
        Terms((25.0, 75.0), wide.groups).numbers(spec, more, np.tile(codes, (20, 1)))
    whole = np.concatenate([np.tile(fresh.array[:60], (40, 1)), rows])
    found = Terms((25.0, 75.0), wide.groups).numbers(spec, whole, grouped.scorer.domains.codes(spec, whole))
    assert np.array_equal(found[-60:], numbers)


def test_groups_are_planned_by_the_rows_that_lack_nothing():
    """Else the fit would be lost when a group turns out too small."""
    found = made(2000, 0)
    gone = np.random.default_rng(0).random((2, 2000)) < 0.5
    for name, where in zip(("height", "width"), gone, strict=True):
        found[name] = np.where(where, np.nan, found[name])
    with pytest.raises(DataError, match=r"fewer than two groups are expected to have \d+ of [12]\d\d calibration rows"):
        train_table(as_table(found), RECIPE)


def test_a_group_whose_rows_are_all_alike_can_be_loaded(tmp_path):
    found = made(1500, 0, ("moss", "oak"), (0.5, 0.5))
    for name in ("height", "width"):
        found[name] = np.where(found["plant"] == "moss", 0.0, found[name])
    draft = train_table(as_table(found), replace(RECIPE, fit=FitOptions(epochs=1)), repeats="natural").draft
    store = Store(tmp_path)
    assert set(store.load(store.publish("plants", draft)).calibration.groups.plan.values) == {"oak", "moss"}


def test_reasons_name_the_group(grouped, fresh):
    scores = fresh.scores["0.05 below"]
    at = int(np.flatnonzero(~scores.valid & (np.array(scores.group_names) == "oak"))[0])
    assert "% of valid rows with plant oak" in scores.reasons()[at]


# Rows that have no group, or gaps


def test_values_never_seen_are_judged_with_the_pool_and_missing_ones_with_all(grouped):
    rows = [{"plant": "palm", "height": 0.1, "width": 0.1}, {"plant": None, "height": 0.1, "width": 0.1}]
    for options in RULES.values():
        assert grouped.scorer.score(rows, options).group_names == [POOL_NAME, None]


def test_a_row_with_another_gap_is_refused_by_name_and_place(grouped):
    rows = [{"plant": "oak", "height": 0.1, "width": 0.1}, {"plant": "oak", "height": None, "width": 0.1}]
    with pytest.raises(
        InputError, match="row 1, column height: missing; expected a value: the version is calibrated by"
    ):
        grouped.scorer.score(rows)
    assert np.isfinite(grouped.scorer.reconstruct(rows).mean).all()  # which needs no rows to compare with
    rows[1]["height"] = "high"  # cannot be judged by anything
    assert grouped.scorer.score(rows).unreadable.tolist() == [False, True]


# Versions


def test_a_published_version_keeps_its_groups(grouped):
    again = grouped.store.load(grouped.scorer.published.reference)
    assert again.card.calibration.groups == GroupPlan(column="plant", values=("moss", "fern", "oak"), has_pool=True)
    for one, other in zip(again.calibration.groups.members, grouped.scorer.groups.members, strict=True):
        assert one.name == other.name
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.statistics.combination.parts, other.statistics.combination.parts)
        assert np.array_equal(one.violations.codes, other.violations.codes)


def test_groups_that_do_not_belong_to_the_version_are_damage(grouped, tmp_path):
    draft = grouped.scorer.published.again(grouped.scorer.model, grouped.scorer.calibration, {})
    groups = draft.calibration.groups
    members = tuple(replace(one, scores=np.append(one.scores, one.scores[-1])) for one in groups.members)
    store = Store(tmp_path)
    store.publish(
        "plants", replace(draft, calibration=replace(draft.calibration, groups=replace(groups, members=members)))
    )
    with pytest.raises(DamagedModelError, match="the groups are not those of the validation rows"):
        store.load(store.resolve("plants"))


def test_calibration_on_other_rows_keeps_chooses_or_drops_the_groups(grouped):
    published, data = grouped.scorer.published, made(2500, 3)
    rows = Rows(grouped.scorer.read(rows_of(data)), None)
    kept = recalibrate(published, rows)
    assert kept.calibration.groups.plan == published.card.calibration.groups
    assert recalibrate(published, rows, by="").calibration.groups is None
    chosen = recalibrate(without_groups(grouped.scorer).published, rows, by="plant")
    assert chosen.calibration.groups.plan.values[:3] == ("moss", "fern", "oak")
    few = made(400, 3, ("moss", "fern", "oak"), (0.5, 0.49, 0.01))
    with pytest.raises(CalibrationError, match=r"group .* of plant: percentiles 25,75 need at least"):
        recalibrate(published, Rows(grouped.scorer.read(rows_of(few)), None))


def test_the_self_test_has_no_rows_with_gaps(grouped, fresh):
    found = selftested(grouped.scorer, fresh.array[:40], 0.05)
    assert len(found.caught) > 5
    assert MISSING not in [one.spoil for one in found.caught]


def test_folds_have_no_groups():
    with pytest.raises(CalibrationError, match="--by is not available for networks by folds"):
        train_table(as_table(made(400, 0)), replace(RECIPE, folds=2))


# Doors


@pytest.fixture(scope="module")
def client(grouped, tmp_path_factory):
    with running_service(grouped.store.root, tmp_path_factory.mktemp("log") / "log", model="plants") as client:
        yield client


def test_http_tells_the_group_and_what_each_is_promised(client, fresh):
    rows = rows_of(fresh.found)[:50]
    answer = client.post("/score?rule=combined&false_alarm=0.05", json={"instances": rows}).json()
    assert [one["group"] for one in answer["scores"]] == fresh.scores["combined"].group_names[:50]
    assert answer["groups"]["column"] == "plant"
    assert set(answer["groups"]["accepts"]) == {POOL_NAME, "fern", "moss", "oak"}
    rates = [one["expected"] for one in answer["groups"]["accepts"].values()]
    assert min(rates) <= answer["rule"]["accepts"]["expected"] <= max(rates)
    headers = {"content-type": "text/csv", "accept": "text/csv"}
    lines = client.post("/score?rule=combined&false_alarm=0.05", content=as_csv(rows), headers=headers)
    assert [one["group"] for one in csv.DictReader(io.StringIO(lines.text))] == fresh.scores["combined"].group_names[
        :50
    ]
    assert client.get("/models/plants").json()["card"]["calibration"]["groups"]["column"] == "plant"


def test_http_refuses_gaps_and_names_them(client):
    answer = client.post("/score", json={"instances": [{"plant": "oak", "height": 1, "width": None}]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["column"] == "width"
    assert (
        client.post("/reconstruct", json={"instances": [{"plant": "oak", "height": 1, "width": None}]}).status_code
        == 200
    )


def test_the_command_line_trains_by_groups_and_scores_with_them(grouped, fresh, tmp_path):
    file, gap = tmp_path / "rows.csv", tmp_path / "gap.csv"
    file.write_text(as_csv(rows_of(fresh.found)[:60]))
    gap.write_text(as_csv([{"plant": "oak", "height": "", "width": 1.0}]))
    of = ("--model", "plants", "--store", grouped.store.root)
    done = vouch("score", file, *of)
    assert [one["group"] for one in csv.DictReader(io.StringIO(done.stdout))] == fresh.scores["combined"].group_names[
        :60
    ]
    refused = vouch("score", gap, *of)
    assert refused.returncode == 2
    assert "line 2, column 'height': missing" in refused.stderr
    assert (
        "--by needs a table" in vouch("train", file, "--name", "x", "--likelihood", "gaussian", "--by", "plant").stderr
    )
