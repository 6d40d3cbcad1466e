"""A training run from its first row to its publication: what it tells meanwhile, and how it keeps to its minutes."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from service.data.inputs import InputSpec
from service.density.estimate import DIRECT
from service.density.estimator import Estimator
from service.files.tables import read_table
from service.scoring.calibration import calibrated
from service.scoring.pace import COSTS, LEAST_PILOT, Pace
from service.scoring.version import Draft
from service.store.store import Store
from service.training.checkpoints import Checkpoints
from service.training.course import Course
from service.training.fit import FitOptions, fit
from service.training.inputs import standard
from service.training.networks import ONE_PRIOR
from service.training.recipe import Recipe
from service.training.train import Hooks, train_table
from service.vae.network import VAE, Architecture
from tests.models import made, write

RECIPE = Recipe(
    latents=2,
    hidden=(16,),
    prior="auto",
    fit=FitOptions(epochs=6),
    estimator=Estimator.of("fast"),
    calibration_share=0.3,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return read_table(write(tmp_path_factory.mktemp("course") / "rows.csv", made(400)))


def numbers_of(draft: Draft) -> list[np.ndarray]:
    """Everything that was computed, in arrays."""
    calibration = draft.calibration
    return [
        *(tensor.numpy() for one in draft.model.members for tensor in one.vae.state_dict().values()),
        calibration.scores,
        calibration.reference.rows,
        calibration.columns.values,
        *([] if calibration.statistics is None else [calibration.statistics.combination.combined]),
    ]


SEVERAL = [pytest.param(one, marks=pytest.mark.slow) for one in ({"ensemble": 2, "prior": "normal"}, {"folds": 2})]


@pytest.mark.parametrize("more", [{}, *SEVERAL])
def test_progress_never_falls_and_ends_at_one_and_changes_nothing(table, more):
    told, recipe = [], replace(RECIPE, **more)
    followed = train_table(table, recipe, hooks=Hooks(told.append)).draft
    fractions = [one.fraction for one in told]
    assert fractions == sorted(fractions)
    assert (fractions[-1], told[-1].seconds_left, told[-1].stage) == (1.0, 0.0, "publishing")
    stages = list(dict.fromkeys(one.stage for one in told))
    fits = [stage for stage in stages if stage.startswith("fitting ")]
    assert fits == (
        [f"fitting {at} of 3" for at in (1, 2, 3)] if "folds" in more else ["fitting 1 of 2", "fitting 2 of 2"]
    )
    if "folds" not in more:
        assert stages.pop(-2) == "testing the model against itself"
    assert stages[-2] == f"calibrating on {len(followed.calibration.scores):,} rows"
    known = [one for one in told if one.seconds_left is not None]
    assert all(math.isfinite(one.seconds_left) and one.seconds_left >= 0 for one in known)
    assert {one.stage for one in known} >= {*fits, "preparing the calibration", stages[-2]}
    alone = train_table(table, recipe).draft
    assert alone.model.fingerprint == followed.model.fingerprint
    for mine, theirs in zip(numbers_of(alone), numbers_of(followed), strict=True):
        assert np.array_equal(mine, theirs, equal_nan=True)


def test_interrupting_the_fit_goes_on_to_calibrate(table):
    told = []

    def interrupt(progress):
        told.append(progress.stage)
        if progress.detail.startswith("epoch"):
            raise KeyboardInterrupt

    trained = train_table(table, replace(RECIPE, fit=FitOptions(epochs=10**6)), hooks=Hooks(interrupt))
    assert trained.report.stopped == "interrupted"
    assert told[-1] == "publishing"
    assert "fitting 2 of 2" not in told
    assert len(trained.draft.calibration.scores) == 120


@pytest.mark.slow
def test_minutes_bound_the_whole_run(table, tmp_path):
    start, told = time.monotonic(), []
    recipe = Recipe(prior="auto", fit=FitOptions(minutes=0.2, importance_samples=5, epochs=10**6, patience=10**6))
    trained = train_table(table, recipe, hooks=Hooks(told.append))
    Store(tmp_path).publish("quick", trained.draft)
    assert time.monotonic() - start < 1.5 * 12.0  # on a machine with nothing else to do, 1.1
    assert trained.report.stopped == "minutes"
    assert len(trained.draft.calibration.scores) == 80
    assert trained.draft.calibration.statistics is not None


def test_too_few_minutes_for_two_fits_make_one_and_say_so(table):
    recipe = replace(RECIPE, fit=FitOptions(minutes=0.02, epochs=10**6))
    trained = train_table(table, recipe)
    assert ONE_PRIOR in trained.notes
    assert list(trained.draft.training["validation_bounds"]) == ["normal"]


# Time for the calibration


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    vae = VAE(Architecture(4, 2, (8,), likelihood="gaussian"))
    rows = np.random.default_rng(0).normal(size=(700, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    x = torch.from_numpy(rows.astype(np.float32))
    fit(vae, x[:300], x[300:400], FitOptions(epochs=2))
    spec = InputSpec(kind="table", shape=(4,), transform=standard(rows, None))
    return vae.eval().requires_grad_(False), spec, spec.rows(rows)


def calibration_of(network, pace=None):
    vae, spec, rows = network
    return calibrated([vae], spec, Estimator.of("fast"), rows[300:400], rows[400:], known=rows[:300], pace=pace)[1]


@pytest.mark.slow
def test_a_calibration_tells_its_stages_and_how_long_they_take(network):
    told = []
    heard = calibration_of(network, Pace(lambda *one: told.append(one), seconds=1.0))
    plain = calibration_of(network)
    assert np.array_equal(heard.scores, plain.scores)
    assert np.array_equal(heard.columns.values, plain.columns.values)
    assert np.array_equal(heard.statistics.combination.combined, plain.statistics.combination.combined)
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["preparing the calibration", "calibrating on 300 rows"]
    pilot = 100 * sum(COSTS[step] for step in ("few", "some", "known", "suspects"))
    assert told[0][1] == pytest.approx(pilot + 300 * COSTS["calibration"])  # by what was measured before
    assert told[-1][1] == 0.0


@pytest.mark.slow
def test_a_calibration_whose_time_is_short_uses_the_first_rows_and_no_fewer_than_the_least(network):
    vae, spec, rows = network
    short = calibration_of(network, Pace(until=time.monotonic() + 0.01, least=120, seconds=0.001))
    model, long = calibrated([vae], spec, Estimator.of("fast"), rows[300:400], rows[400:520], known=rows[:300])
    assert len(short.scores) == 120
    assert np.array_equal(short.scores, long.scores)
    assert short.fingerprint == model.fingerprint
    assert len(calibration_of(network, Pace(until=time.monotonic() + 600.0, least=120, seconds=0.001)).scores) == 300


def test_what_the_time_allows_is_by_the_pace():
    pace = Pace(until=time.monotonic() + 100.0, least=50, round_rows=10, seconds=0.01)
    assert LEAST_PILOT <= pace.pilot_rows(100_000) < 100_000
    assert pace.seconds * pace.pilot_cost(pace.pilot_rows(100_000), 1) < 40.0
    assert pace.pilot_rows(70) == 70
    rows = pace.calibration_rows(100_000)
    assert rows == pytest.approx(0.9 * 100.0 / (0.01 * COSTS["calibration"]), abs=20)
    assert pace.calibration_rows(100_000, networks=2) == pytest.approx(rows / 2, abs=20)
    assert pace.calibration_rows(20) == 20
    late = Pace(until=time.monotonic() - 5.0, least=50, round_rows=10, seconds=0.01)
    assert (late.calibration_rows(1000), late.pilot_rows(1000)) == (50, LEAST_PILOT)
    pace.plan(1000, 100_000)
    assert pace.seconds_left() == pytest.approx(100.0, abs=1.0)  # not the hours that all rows would take
    assert Pace().calibration_rows(100_000) == Pace().pilot_rows(100_000) == 100_000


def test_minutes_are_shared_by_what_is_still_to_do():
    course = Course(minutes=2.0)
    course.expect(Pace(until=course.until, least=100, seconds=0.001), 1000, 10_000, 1)
    assert course.reserved == pytest.approx(course.publishing + 1000 * (0.4 + 0.7 + 0.6 + 1.0) * 0.001 + 13.0, abs=0.01)
    assert course.fit_minutes(2) == pytest.approx(0.5 * (120.0 - course.reserved) / 60.0, abs=0.001)
    course.expect(Pace(until=course.until, least=100, seconds=0.03), 1000, 10_000, 1)
    assert 0.35 * 120.0 < course.reserved < 0.45 * 120.0  # more would leave too little to fit in
    course.expect(Pace(until=course.until, least=100, round_rows=512, seconds=0.03), 1000, 10_000, 1)
    least = 0.03 * 512 * sum(COSTS[step] for step in ("few", "some", "known", "suspects", "calibration"))
    assert course.reserved == pytest.approx(course.publishing + least)  # whatever is left to fit in
    assert Course().fit_minutes(2) is None


def test_a_resumed_run_counts_the_time_that_its_fits_have_taken(tmp_path):
    kept = Checkpoints(tmp_path, resumes=True, key="key")
    assert kept.seconds() == {}
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    report = fit(
        VAE(Architecture(4, 2, (8,), likelihood="gaussian")),
        rows,
        rows[:50],
        FitOptions(epochs=2),
        checkpoint=kept.of("normal-0"),
    )
    assert kept.seconds() == {"normal-0": pytest.approx(report.seconds, abs=0.2)}


@pytest.mark.slow
def test_estimates_are_the_same_however_their_blocks_are_counted(network):
    vae, spec, rows = network
    counted = []
    model = calibrated([vae], spec, Estimator.of("fast"), rows[300:400], rows[400:500])[0]
    many = np.tile(rows[:300], (2, 1))
    one = model.estimates(rows[:300])
    other = model.estimates(many, execution=replace(DIRECT, on_rows=counted.append))
    assert np.array_equal(np.tile(one.log_likelihood, 2), other.log_likelihood)
    assert sum(counted) == 600
    assert len(counted) > 1
