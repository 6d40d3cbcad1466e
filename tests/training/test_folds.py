"""A version calibrated by folds: from forty rows to its answers."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.density.estimator import Estimator
from service.errors import CalibrationError, DamagedModelError, DataError
from service.files.readers import Rows
from service.files.tables import read_table
from service.scoring.options import ScoreOptions
from service.scoring.version import Draft
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe, Split
from service.training.train import train, train_table
from service.web import schemas
from tests.models import complete, digits, made, with_few_patterns, write
from tests.tools import npy, running_service

RECIPE = Recipe(
    latents=2,
    hidden=(16,),
    fit=FitOptions(epochs=40, importance_samples=3),
    estimator=Estimator.of("fast"),
    folds=4,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    Store(folder / "store").publish("few", train_table(read_table(write(folder / "few.csv", made(42))), RECIPE).draft)
    return folder / "store"


@pytest.fixture(scope="module")
def scorer(store):
    return load_scorer(Store(store), "few", "cpu", threads=1)


@pytest.fixture(scope="module")
def rows(scorer, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("fresh") / "fresh.csv", made(120, seed=1))
    return scorer.rows(scorer.model.input.array(read_table(path)))


def test_folds_are_disjoint_and_of_one_size_and_no_network_saw_its_own():
    splits = Split.by_folds(43, replace(RECIPE, folds=5))
    held = [set(split.calibration.tolist()) for split in splits]
    assert [len(fold) for fold in held] == [8] * 5
    assert len(set.union(*held)) == 40
    for split, fold in zip(splits, held, strict=True):
        seen = set(split.train.tolist()) | set(split.validation.tolist())
        assert not seen & fold
        assert seen | fold == set(range(43))
        assert len(split.validation) == 4


def test_all_rows_calibrate_each_by_the_network_that_did_not_see_it(scorer, tmp_path):
    calibration, spec = scorer.calibration, scorer.model.input
    assert len(calibration.scores) == 40  # two are left over
    assert len(scorer.model.members) == calibration.num_folds == 4
    table = read_table(write(tmp_path / "few.csv", made(42)))
    given = spec.rows(spec.array(table))
    for fold, split in enumerate(Split.by_folds(len(given), RECIPE)):
        theirs = complete(given[split.calibration])
        mine = calibration.scores[calibration.folds == fold]
        by_its_network = scorer.model.alone(fold).estimates(theirs).log_likelihood
        assert np.isin(by_its_network, mine).all()
        assert len(mine) == 10


def test_verdicts_are_by_the_naive_count_over_folds(scorer, rows):
    rows, calibration = complete(rows), scorer.calibration
    scores = scorer.score(rows, ScoreOptions(percentiles=(10.0, 80.0)))
    each = [scorer.model.alone(fold).estimates(rows).log_likelihood for fold in range(4)]
    for at in range(len(rows)):
        pairs = [(score, each[fold][at]) for score, fold in zip(calibration.scores, calibration.folds, strict=True)]
        low = (1 + sum(score <= own for score, own in pairs)) / 41
        high = (1 + sum(score >= own for score, own in pairs)) / 41
        assert scores.low_p_value[at] == pytest.approx(low)
        assert scores.p_value[at] == pytest.approx(min(1, 2 * min(low, high)))
        assert scores.sides[at] == (-1 if low <= 0.1 else 1 if high <= 0.2 else 0)
    inside = (scores.log_likelihood >= scores.low) & (scores.log_likelihood <= scores.high)
    hair = 1e-9 * np.abs(scores.log_likelihood)  # differences are taken from the row, and the ends from them
    at_an_end = (np.abs(scores.log_likelihood - scores.low) < hair) | (
        np.abs(scores.log_likelihood - scores.high) < hair
    )
    assert ((scores.sides == 0) == inside)[~at_an_end].all()
    assert (scores.sides == scores.sides_of((10.0, 80.0))).all()
    assert (scores.valid == (scores.sides == 0)).all()
    assert len(set(np.round(scores.high - scores.low, 6))) > 1  # each row has a band of its own


def test_certain_rows_stay_where_they_are_if_every_network_errs_at_once(scorer, rows):
    scores = scorer.score(rows)
    assert 0 < scores.certain.mean() < 1


def test_rows_with_holes_are_judged_beside_their_fold_s_rows_with_the_same_holes(scorer, rows):
    some = complete(rows)[:20].copy()
    some[:, 1] = np.nan
    scores = scorer.score(some)
    pattern = np.isnan(some[0])
    reference = scorer.calibration.reference
    beside, folds = reference.with_missing(pattern), reference.folds_with_missing(pattern)
    assert set(folds.tolist()) == {0, 1, 2, 3}
    expected = np.zeros(len(some))
    for fold in range(4):
        alone = scorer.model.alone(fold)
        known = alone.estimates(beside[folds == fold]).log_likelihood
        own = alone.estimates(some).log_likelihood
        expected += (known[None] <= own[:, None]).sum(axis=1)
    assert np.allclose(scores.low_p_value, (1 + expected) / (len(beside) + 1))


@pytest.mark.slow
def test_columns_are_blamed(scorer, rows):
    rows = with_few_patterns(rows, 20, patterns=2)
    assert np.isnan(rows).any()
    explained = scorer.score(rows, ScoreOptions(explain=2))
    assert (explained.columns >= 0).all()
    assert (explained.column_p_value >= 1 / 41 - 1e-9).all()
    plain = scorer.score(rows)
    assert np.array_equal(explained.sides, plain.sides)


def test_what_is_not_proved_for_folds_is_refused(scorer, rows):
    with pytest.raises(CalibrationError, match="calibrated by folds"):
        scorer.calibration.check_has_no_folds()
    with pytest.raises(CalibrationError, match="without the combined rule"):
        scorer.score(rows, ScoreOptions("combined"))
    with pytest.raises(CalibrationError, match="at least 99 validation rows, there are 40"):
        scorer.score(rows, ScoreOptions(false_alarm=0.01, tail="low"))


def test_a_version_by_folds_carries_what_it_needs(store, scorer, rows, tmp_path):
    again = load_scorer(Store(store), "few", "cpu", threads=1)
    assert np.array_equal(again.score(rows).p_value, scorer.score(rows).p_value)
    card = scorer.published.card
    assert card.members == card.calibration.data["folds"] == card.training["folds"] == 4
    again.warm_up()
    broken = replace(scorer.calibration, folds=scorer.calibration.folds % 3)
    reference = Store(tmp_path).publish("broken", Draft(scorer.model, broken, {}, {}))
    with pytest.raises(DamagedModelError, match="folds do not match the card's 4 networks"):
        Store(tmp_path).load(reference)


@pytest.mark.slow
def test_images_and_plain_arrays_are_calibrated_by_folds_too(tmp_path):
    store = Store(tmp_path)
    reference = store.publish("digits", train(Rows(digits()[:60]), RECIPE).draft)
    scores = load_scorer(store, str(reference), "cpu", threads=1).score(digits()[60:90])
    assert scores.band.rows == 60
    assert scores.band.folds == 4


def test_too_few_rows_for_so_many_folds_are_refused():
    with pytest.raises(DataError, match="0 are left to calibrate on"):
        Store("nowhere").publish("few", train(Rows(digits()[:30]), replace(RECIPE, folds=31)).draft)
    with pytest.raises(CalibrationError, match="at least 99 validation rows, there are 40"):
        Store("nowhere").publish(
            "few", train(Rows(digits()[:40]), replace(RECIPE, folds=5, percentiles=(1.0, 99.0))).draft
        )


def test_the_service_says_what_is_proved(store, rows, tmp_path):
    is_npy = {"content-type": "application/x-npy"}
    with running_service(store, tmp_path / "log") as client:
        answer = client.post("/score?percentiles=10,90", content=npy(complete(rows)), headers=is_npy)
        assert answer.status_code == 200, answer.text
        scores = schemas.ScoresAnswer.model_validate_json(answer.content)
        accepts = scores.band.accepts
        assert accepts.folds == 4
        assert accepts.interval is None
        assert accepts.proven < accepts.expected == pytest.approx(33 / 41)
        assert all(score.band is not None for score in scores.scores)
        refused = client.post("/score?fdr=0.1", content=npy(rows), headers=is_npy)
        assert refused.status_code == 422, refused.text
        assert "folds" in refused.json()["detail"]
        drift = client.get("/drift").json()["drift"][0]
        assert (drift["rows"], drift["watched_rows"]) == (len(complete(rows)), 0)


@pytest.mark.slow
def test_the_command_line_trains_by_folds_and_says_what_it_costs(tmp_path):
    data, store = write(tmp_path / "few.csv", made(40)), ["--store", str(tmp_path / "store")]
    small = ["--hidden", "8", "--latents", "2", "--epochs", "5", "--prior", "normal", "--estimator", "fast"]
    result = CliRunner().invoke(app, ["train", str(data), "--name", "few", "--folds", "5", *small, *store])
    assert result.exit_code == 0, result.output
    assert "5 networks" in result.output
    scored = CliRunner().invoke(app, ["score", str(data), "--model", "few", "--false-alarm", "0.1", *store])
    assert "proved" in scored.output
    for option in (["--ensemble", "2"], ["--calibration-share", "0.5"]):
        refused = CliRunner().invoke(app, ["train", str(data), "--name", "few", "--folds", "5", *option, *store])
        assert refused.exit_code == 2
        assert "--folds" in refused.output
