"""A model made ready to score: its search starts, what its pilot rows say, and its calibration."""

from dataclasses import replace

import numpy as np
import pytest

from service.density import starts
from service.density.estimator import Estimator
from service.errors import CalibrationError, DamagedModelError
from service.scoring.calibration import calibrated
from tests.models import digits

ROWS = digits().reshape(-1, 64).astype(np.float32)


def ready(scorer, pilot, setting="standard", rows=ROWS[200:400]):
    model = scorer.model
    return calibrated([model.vae], model.input, Estimator.of(setting), pilot, rows)


def test_the_ends_come_from_the_pilot_rows_alone(digit_scorer):
    model, calibration = ready(digit_scorer, ROWS[:200])
    same, _ = ready(digit_scorer, ROWS[:200], rows=ROWS[400:700])
    other, _ = ready(digit_scorer, ROWS[100:300])
    assert model.estimator == same.estimator
    assert model.estimator.ends != other.estimator.ends
    assert model.estimator.typical_error > 0
    low, high = model.estimator.ends
    assert abs(calibration.band().low - low) < 10
    assert abs(calibration.band().high - high) < 10
    assert calibration.fingerprint == model.fingerprint


@pytest.mark.parametrize("setting", ["fast", "thorough"])
def test_only_the_standard_setting_stops_at_ends(digit_scorer, setting):
    model, _ = ready(digit_scorer, ROWS[:50], setting, ROWS[200:240])
    assert model.estimator.ends is None


@pytest.mark.parametrize("pilot", [0, 1, 2])
def test_too_few_pilot_rows_are_no_ends_and_no_failure(digit_scorer, pilot):
    model, calibration = ready(digit_scorer, ROWS[:pilot], rows=ROWS[200:220])
    assert model.estimator.ends is None
    assert len(calibration.scores) == 20
    assert model.members[0].starts.shape == (1024, 4)


def test_too_few_rows_are_refused_before_any_are_scored(digit_scorer):
    with pytest.raises(CalibrationError, match="need at least"):
        ready(digit_scorer, ROWS[:200], rows=ROWS[:2])


def test_the_search_starts_find_what_the_rows_came_from(digit_scorer):
    model = digit_scorer.model
    drawn = digit_scorer.sample(16, seed=3)
    import torch

    x = torch.from_numpy(model.input.encode(model.input.rows(drawn.samples)))
    search_starts = np.concatenate([drawn.latents.astype(np.float32), starts.build(model.vae, x.numpy())])
    book = starts.SearchStarts(model.vae, search_starts)
    chosen = book.likeliest(x, 3)
    assert chosen.shape == (16, 3, 4)
    separation = (chosen[:, 0] - chosen[:, 1]).square().mean(dim=-1).sqrt()
    assert (separation >= starts.SEPARATION - 1e-6).all()
    with torch.no_grad():
        plain = torch.stack(
            [model.vae.likelihood.log_prob(model.vae.decoder(book.latents), row).sum(-1).double() for row in x]
        ) + model.vae.prior.log_prob(book.latents.double())
    difference = book.log_joint(x) - plain
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-3, rtol=0)


def test_golden_rows_notice_what_scores_otherwise(digit_scorer):
    golden, model, calibration = digit_scorer.published.golden, digit_scorer.model, digit_scorer.calibration
    assert len(golden.rows) == 8
    golden.check(model, calibration)
    for shifted in (golden.log_likelihood + 0.01, golden.log_likelihood + 100.0 * (np.arange(8) == 3)):
        with pytest.raises(DamagedModelError, match="golden rows score differently"):
            replace(golden, log_likelihood=shifted).check(model, calibration)
    # A branch that turned in one row: another estimate, within its error.
    turned = golden.log_likelihood + 3.0 * golden.std_error * (np.arange(8) == 3)
    replace(golden, log_likelihood=turned).check(model, calibration)
