"""The Scorer: verdicts, reconstructions, samples, encodings, means and manifolds, in the data's own units."""

import numpy as np
import pytest
import torch
from scipy import stats

from service.density.estimate import weighted_draws
from service.errors import CalibrationError, InputError
from service.scoring.generator import POSTERIOR_DRAWS
from service.scoring.options import ScoreOptions
from service.scoring.scorer import torch_device
from tests.models import data_of, digits


def test_valid_rows_have_uniform_p_values_and_noise_is_invalid(digit_scorer):
    noise = np.random.default_rng(0).integers(0, 256, size=(100, 8, 8))
    assert (digit_scorer.score(noise).sides == -1).mean() > 0.95
    calibrated = digit_scorer.calibration.scores
    p_values = digit_scorer.score(digits()).p_value  # mostly rows that were trained on
    assert stats.kstest(p_values, "uniform").statistic < 0.15
    held_back = round(0.2 * len(digits()))
    assert len(calibrated) == held_back - int(0.25 * (held_back - 299))  # the others test the model


def test_the_scores_say_what_the_arrays_say(any_scorer):
    scorer, rows = any_scorer
    scores = scorer.score(rows[:30])
    assert [verdict == "valid" for verdict in scores.verdict] == [side == "inside" for side in scores.side]
    inside = (scores.log_likelihood >= scores.band.low) & (scores.log_likelihood <= scores.band.high)
    assert [side == "inside" for side in scores.side] == inside.tolist()
    assert len(scores) == 30


def test_another_band_changes_the_verdict_and_draws_on_where_it_is_not_certain(digit_scorer):
    default, wide = (
        digit_scorer.score(digits()[:200]),
        digit_scorer.score(digits()[:200], ScoreOptions(percentiles=(1.0, 99.0))),
    )
    same = default.num_samples == wide.num_samples
    assert (default.log_likelihood == wide.log_likelihood)[same].all()
    assert same.mean() > 0.5
    error = np.hypot(default.std_error, wide.std_error)
    assert (np.abs(default.log_likelihood - wide.log_likelihood) <= 5 * error).all()
    assert (wide.sides == 0).mean() > (default.sides == 0).mean()
    with pytest.raises(CalibrationError, match="need at least"):
        digit_scorer.score(digits()[:1], ScoreOptions(percentiles=(0.01, 99.0)))


def test_a_table_scores_the_same_whatever_its_columns_are_measured_in():
    """Densities are in the columns' own units: ten times the number, a tenth of the density."""
    from dataclasses import replace

    from service.data.inputs import InputSpec, Standard
    from service.density.estimate import Member
    from service.density.estimator import Estimator
    from service.scoring.model import Model
    from service.vae.network import VAE, Architecture

    torch.manual_seed(0)
    vae = VAE(Architecture(2, 1, (4,), "silu", "gaussian")).requires_grad_(False)
    small = InputSpec(kind="table", shape=(2,), transform=Standard(center=(0.0, 0.0), scale=(1.0, 2.0)))
    large = small.model_copy(update={"transform": Standard(center=(0.0, 0.0), scale=(16.0, 32.0))})
    model = Model(small, Estimator.of("fast"), (Member(vae, np.zeros((1, 1), dtype=np.float32)),))
    rows = np.array([[0.5, 1.0], [-3.0, 2.0]], dtype=np.float32)
    difference = model.estimates(rows).log_likelihood - replace(model, input=large).estimates(16 * rows).log_likelihood
    np.testing.assert_allclose(difference, 2 * np.log(16.0), rtol=1e-9)


def test_the_features_log_likelihoods_are_those_of_the_weighted_posterior(any_scorer):
    scorer, rows = any_scorer
    reconstructions = scorer.reconstruct(rows[:3], draws=2)
    features = scorer.model.input.features
    assert reconstructions.mean.shape == (3, features)
    assert reconstructions.draws.shape == (3, 2, features)
    assert reconstructions.feature_log_likelihood.shape == (3, features)
    # The naive way: the same draws and weights, one row at a time.
    x = scorer.model.input.encode(scorer.rows(rows[:3]))
    vae = scorer.model.vae
    for index in range(3):
        draws = next(
            iter(weighted_draws(scorer.model.estimator, scorer.model.members[0], x[index : index + 1], POSTERIOR_DRAWS))
        )
        weights = draws.log_weights[0].softmax(0)
        with torch.inference_mode():
            output = vae.decoder(draws.z[0])
            mean = (weights[:, None] * vae.likelihood.mean(output)).sum(0).numpy()
            given = vae.likelihood.log_prob(output, torch.from_numpy(x[index])).double()
            features = (weights[:, None] * given.exp()).sum(0).log().numpy()
        np.testing.assert_allclose(reconstructions.mean[index], scorer.model.input.decode(mean), rtol=1e-4, atol=1e-3)
        if scorer.model.input.transform.kind == "standard":
            features = features - np.log(scorer.model.input.transform.scale)
        np.testing.assert_allclose(reconstructions.feature_log_likelihood[index], features, rtol=1e-3, atol=1e-3)


def test_posterior_draws_are_the_same_on_every_call_and_lie_among_the_datas_values(digit_scorer):
    first, second = (digit_scorer.reconstruct(digits()[:2], draws=3).draws for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert set(np.unique(first)) <= {0.0, 255.0}


def test_samples_repeat_by_seed_and_look_like_the_data(digit_scorer):
    first = digit_scorer.sample(300, seed=5)
    np.testing.assert_array_equal(first.samples, digit_scorer.sample(300, seed=5).samples)
    assert not np.array_equal(first.samples, digit_scorer.sample(300, seed=6).samples)
    binary = 255.0 * (digits() > 127.5)
    assert np.abs(first.samples.mean(0) - binary.reshape(-1, 64).mean(0)).max() < 60
    means = digit_scorer.sample(5, seed=5, of="mean").samples
    assert ((means > 0) & (means < 255)).all()


def test_encodings_are_the_posterior(any_scorer):
    scorer, rows = any_scorer
    encodings = scorer.encode(rows[:40], draws=500)
    x = torch.from_numpy(scorer.model.input.encode(scorer.rows(rows[:40])))
    posterior = scorer.model.vae.posterior(x)
    np.testing.assert_allclose(encodings.mean, posterior.mean.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encodings.std, posterior.std.numpy(), rtol=1e-4)
    standard = (encodings.draws - encodings.mean[:, None]) / encodings.std[:, None]
    assert abs(standard.mean()) < 4.5 / np.sqrt(standard.size)
    assert abs(standard.std() - 1) < 0.02


def test_the_manifold_is_a_grid_of_prior_quantiles(any_scorer):
    scorer, _ = any_scorer
    manifold = scorer.manifold(3, (1, 0))
    expected = stats.norm.ppf([1 / 6, 1 / 2, 5 / 6])
    np.testing.assert_allclose(manifold.latents[:3, 1], expected, atol=1e-12)
    np.testing.assert_allclose(manifold.latents[::3, 0], expected, atol=1e-12)
    assert not manifold.latents[:, 2:].any()
    np.testing.assert_array_equal(scorer.decode(manifold.latents), manifold.means)
    for axes in ((0, 0), (0, 99), (-1, 0)):
        with pytest.raises(InputError):
            scorer.manifold(3, axes)


@pytest.mark.parametrize("latents", [np.zeros((1, 3)), np.zeros(4), np.full((1, 4), np.nan), np.full((1, 4), 1e39)])
def test_latents_that_cannot_be_decoded_are_refused(digit_scorer, latents):
    with pytest.raises(InputError):
        digit_scorer.decode(latents)


def test_rows_that_cannot_be_read_are_refused(any_scorer):
    scorer, _ = any_scorer
    for rows in (np.zeros((1, 3)), np.zeros(3), np.full((1, scorer.model.input.features), np.nan)):
        with pytest.raises(InputError):
            scorer.score(rows)


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        assert torch_device("auto").type == "cpu"
        with pytest.raises(InputError, match="no GPU"):
            torch_device("cuda")


def test_the_three_lines_of_the_readme_score_a_row(tiny_store):
    from service import load

    scorer = load("wine", store=tiny_store)
    assert scorer.score(data_of("wine").array[:2]).verdict
