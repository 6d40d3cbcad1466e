"""The estimator: exact where the answer is known, and the same number for a row wherever it stands."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.density.estimator import Estimator, Tiling, row_generator, worker_pool
from service.density.importance import log_likelihood, log_weights
from service.density.proposals import DefensiveMixture, proposal_for
from service.density.survey import KernelMixture
from service.errors import CalibrationError
from service.vae.network import VAE, Architecture, DiagonalNormal
from tests.conftest import digits, linear_gaussian

# A known answer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_the_exact_posterior_gives_factor_analysis_log_density(factor_analysis, dtype, tolerance):
    vae = linear_gaussian(factor_analysis.analysis, dtype=dtype)
    estimates = Estimator(64).estimate(vae, factor_analysis.rows)
    np.testing.assert_allclose(estimates.log_likelihood, factor_analysis.log_density, atol=tolerance, rtol=0)
    assert estimates.reliable.all()
    np.testing.assert_allclose(estimates.ess, 64, rtol=1e-5)


@pytest.mark.parametrize("proposal", ["encoder", "defensive"])
def test_an_inexact_posterior_gives_it_within_four_standard_errors(factor_analysis, proposal):
    vae = linear_gaussian(factor_analysis.analysis, widening=1.3)
    estimates = Estimator(1024, proposal).estimate(vae, factor_analysis.rows)
    error = np.abs(estimates.log_likelihood - factor_analysis.log_density)
    assert estimates.reliable.all()
    assert (error <= 4 * estimates.std_error).all()
    assert 0.5 < np.sqrt(np.mean((error / estimates.std_error) ** 2)) < 2.0


def grid_log_likelihood(vae, x, points=200, reach=5.0):
    """log of the integral of p(x | z) p(z) over a dense grid of two latents."""
    axis = torch.linspace(-reach, reach, points)
    z = torch.cartesian_prod(axis, axis)  # (points ** 2, 2)
    log_cell = 2 * math.log(2 * reach / (points - 1))
    with torch.inference_mode():
        log_prior = vae.prior().log_prob(z)
        given_z = vae.likelihood.log_prob(vae.decoder(z)[:, None], torch.from_numpy(x)).sum(-1, dtype=torch.float64)
        return ((given_z + log_prior[:, None]).logsumexp(0) + log_cell).numpy()


@pytest.mark.parametrize(("proposal", "reliable"), [("defensive", 0.5), ("survey", 0.95)])
def test_two_latents_agree_with_a_grid_or_say_that_they_are_not_reliable(proposal, reliable):
    torch.manual_seed(0)
    vae = VAE(Architecture(20, 2, (16,), "tanh")).requires_grad_(False)
    vae.decoder.output.weight.mul_(4.0)
    x = (np.random.default_rng(0).random((100, 20)) < 0.5).astype(np.float32)
    estimates = Estimator(1024, proposal).estimate(vae, x)
    error = np.abs(estimates.log_likelihood - grid_log_likelihood(vae, x))
    assert (~estimates.reliable | (error <= 4 * estimates.std_error + 1e-3)).all()
    assert estimates.reliable.mean() > reliable


# The naive way


@pytest.mark.parametrize("num_samples", [2, 17, 64, 256, 300])
@pytest.mark.parametrize("proposal", ["encoder", "defensive"])
def test_tiles_change_nothing_against_the_plain_way(digit_scorer, num_samples, proposal):
    model = digit_scorer.model
    estimator = Estimator(num_samples, proposal)
    x = model.input.encode(model.input.rows(digits()[:37]))
    estimates = estimator.estimate(model.vae, x)
    rows = torch.from_numpy(x)
    with torch.inference_mode():
        plain = proposal_for(proposal, model.vae, rows, num_samples)
        noise = estimator.noise(x, 4, torch.float32)
        expected = log_likelihood(log_weights(model.vae, rows, plain, noise))
    np.testing.assert_allclose(estimates.log_likelihood, expected.numpy(), atol=2e-4, rtol=0)


# The same row, the same number


def test_a_row_scores_the_same_alone_and_at_every_place_of_a_batch(any_scorer):
    scorer, rows = any_scorer
    row, others = rows[:1], rows[1:64]
    alone = scorer.score(row)
    for place in range(64):
        batch = np.concatenate([others[:place], row, others[place:]])
        scores = scorer.score(batch)
        for name in ("log_likelihood", "std_error", "ess", "khat", "p_value"):
            assert getattr(scores, name)[place] == getattr(alone, name)[0], f"{name} at place {place}"


@pytest.mark.parametrize("num_samples", [16, 128, 1000])
def test_it_does_so_for_any_number_of_samples(digit_scorer, num_samples):
    model = digit_scorer.model
    x = model.input.encode(model.input.rows(digits()[:50]))
    estimator = Estimator(num_samples)
    together = estimator.estimate(model.vae, x).log_likelihood
    apart = np.concatenate([estimator.estimate(model.vae, x[i : i + 1]).log_likelihood for i in range(50)])
    backwards = estimator.estimate(model.vae, x[::-1].copy()).log_likelihood[::-1]
    assert (together == apart).all()
    assert (together == backwards).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
@pytest.mark.parametrize("activation", ["silu", "gated", "tanh"])
def test_the_number_of_threads_changes_no_bit(likelihood, activation):
    """Sizes at which torch splits its operations among threads, unevenly for three and five of them."""
    torch.manual_seed(0)
    vae = VAE(Architecture(785, 5, (400,), activation, likelihood)).requires_grad_(False)
    x = (np.random.default_rng(0).random((3, 785)) < 0.5).astype(np.float32)
    estimator = Estimator(256 if likelihood == "bernoulli" else 3000)
    expected = estimator.estimate(vae, x).log_likelihood
    for threads in (2, 3, 5, 8):
        torch.set_num_threads(threads)
        assert (estimator.estimate(vae, x).log_likelihood == expected).all()
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert (estimator.estimate(vae, x, worker_pool(3)).log_likelihood == expected).all()


def test_a_restart_changes_no_bit(digit_scorer, tiny_store):
    code = (
        "import sys, numpy as np; from service import load; from tests.conftest import digits; "
        "print(load('digits', sys.argv[1], 'cpu').score(digits()[:20]).log_likelihood.tobytes().hex())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tiny_store)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert printed.stdout.strip() == digit_scorer.score(digits()[:20]).log_likelihood.tobytes().hex()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_the_type_that_a_row_comes_in_changes_no_bit(digit_scorer, dtype):
    expected = digit_scorer.score(digits()[:5]).log_likelihood
    assert (digit_scorer.score(digits()[:5].astype(dtype)).log_likelihood == expected).all()


def test_minus_zero_is_zero_and_another_seed_or_row_is_another_draw():
    def draw(row, seed=0):
        return row_generator(np.array(row, dtype=np.float32), seed).random()

    assert draw([0.0, 1.0]) == draw([-0.0, 1.0])
    assert len({draw([0.0, 1.0]), draw([0.0, 1.0], 1), draw([1.0, 0.0])}) == 3


# Edges


@settings(max_examples=60, deadline=None)
@given(
    likelihood=st.sampled_from(["bernoulli", "gaussian", "discretized_logistic"]),
    latents=st.sampled_from([1, 2, 7, 64]),
    features=st.integers(1, 9),
    value=st.sampled_from([0.0, 1.0, -1.0, 1e6, -1e15, 1e15]),
    scale=st.sampled_from([1.0, 1e3, 1e10]),
    proposal=st.sampled_from(["encoder", "defensive", "survey"]),
)
def test_rows_at_the_edges_are_finite_and_never_nan(likelihood, latents, features, value, scale, proposal):
    torch.manual_seed(0)
    latents = min(latents, 3) if proposal == "survey" else latents
    vae = VAE(Architecture(features, latents, (4,), "silu", likelihood)).requires_grad_(False)
    vae.decoder.output.weight.mul_(scale)
    value = np.clip(value, 0, 1) if likelihood != "gaussian" else value
    estimates = Estimator(32, proposal).estimate(vae, np.full((3, features), value, dtype=np.float32))
    for name in ("log_likelihood", "std_error", "ess"):
        assert np.isfinite(getattr(estimates, name)).all(), name
    assert not np.isinf(estimates.khat).any() or not estimates.reliable.any()


def test_a_decoder_that_gives_nan_is_not_reliable(digit_scorer):
    vae = VAE(Architecture(4, 2)).requires_grad_(False)
    vae.decoder.output.bias.fill_(math.nan)
    estimates = Estimator(64).estimate(vae, np.zeros((2, 4), dtype=np.float32))
    assert np.isfinite(estimates.log_likelihood).all()
    assert not estimates.reliable.any()


def test_no_rows_are_no_estimates(digit_scorer):
    assert len(Estimator().estimate(digit_scorer.model.vae, np.zeros((0, 64), dtype=np.float32)).ess) == 0


@pytest.mark.parametrize("tilt", [0.0, 0.1])
@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_a_survey_does_not_take_a_broad_mode_for_a_narrow_one(sigma, tilt):
    """Modes much broader than the points' spacing, of different heights: no reliable estimate is far off."""
    vae = squared(sigma, tilt)
    x = np.array([[2.25, 0.02]], dtype=np.float32)
    expected = by_integral(vae, x)
    estimates = [Estimator(512, "survey", seed).estimate(vae, x) for seed in range(40)]
    error = np.array([estimate.log_likelihood[0] for estimate in estimates]) - expected
    std_error = np.array([estimate.std_error[0] for estimate in estimates])
    reliable = np.array([estimate.reliable[0] for estimate in estimates])
    assert not (reliable & (np.abs(error) > 4 * std_error + 1e-3)).any()
    assert np.sqrt((error**2).mean()) < 0.15
    assert abs(np.exp(error).mean() - 1) < 4.5 * np.exp(error).std() / np.sqrt(40) + 1e-3


def test_few_samples_say_nothing_of_their_tail_and_are_not_vouched_for(digit_scorer):
    model = digit_scorer.model
    estimates = Estimator(16).estimate(model.vae, model.input.encode(model.input.rows(digits()[:5])))
    assert np.isnan(estimates.khat).all()
    assert not estimates.reliable.any()


@pytest.mark.parametrize("options", [{"num_samples": 1}, {"num_samples": 10**9}, {"proposal": "guess"}])
def test_an_estimator_that_cannot_be_is_refused(options):
    with pytest.raises(CalibrationError):
        Estimator(**options)


# Proposals


def test_a_mixture_integrates_to_one_and_draws_from_itself():
    narrow = DiagonalNormal(torch.tensor([[0.5]]), torch.tensor([[0.1]]))
    wide = DiagonalNormal(torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    mixture = DefensiveMixture([narrow, wide], [0.75, 0.25])
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64).view(-1, 1, 1)
    density = mixture.log_prob(z).exp().squeeze(-1)
    assert torch.trapezoid(density, z.view(-1)).item() == pytest.approx(1.0, abs=1e-4)
    draws = mixture.sample(torch.randn(40_000, 1, 1, generator=torch.Generator().manual_seed(0)))
    assert draws.mean().item() == pytest.approx(0.75 * 0.5 - 0.25, abs=0.03)


def squared(sigma, tilt):
    """x = (z squared, tilt * z) with noise sigma: two modes for each row, and an encoder that sees one of them."""
    torch.manual_seed(0)
    vae = VAE(Architecture(2, 1, (64,), "tanh", "gaussian", min_std=0.0)).requires_grad_(False)
    vae.decoder.requires_grad_(True)
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=0.01)
    z = torch.linspace(-3, 3, 400)[:, None]
    with torch.enable_grad():
        for _ in range(800):
            loss = (vae.decoder(z) - torch.cat([z.square(), tilt * z], dim=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    vae.requires_grad_(False)
    vae.encoder.output.weight.zero_()
    vae.encoder.output.bias.copy_(torch.tensor([1.5, 2 * math.log(sigma)]))
    vae.likelihood.log_std.fill_(math.log(sigma))
    return vae


def by_integral(vae, x):
    """log p(x) of a network with one latent, by a fine grid."""
    z = torch.linspace(-6, 6, 100_001)[:, None]
    given = vae.likelihood.log_prob(vae.decoder(z), torch.from_numpy(x)).sum(-1).double()
    return (given + vae.prior().log_prob(z)).logsumexp(0).item() + math.log(12 / 100_000)


def test_a_survey_finds_the_mode_that_the_encoder_does_not_look_at():
    vae = squared(0.14, 0.0)
    x = np.array([[2.25, 0.0]], dtype=np.float32)
    expected = by_integral(vae, x)
    blind, surveyed = (Estimator(2048, proposal).estimate(vae, x) for proposal in ("encoder", "survey"))
    assert blind.log_likelihood[0] == pytest.approx(expected - math.log(2), abs=0.15)  # half of p(x), and sure of it
    assert abs(surveyed.log_likelihood[0] - expected) < 4 * surveyed.std_error[0]
    assert surveyed.reliable[0]


def test_kernels_integrate_to_one_and_draw_their_shares():
    kernels = KernelMixture(
        torch.tensor([[[0.0], [2.0], [9.0]]]),
        torch.tensor([[0.5, 0.2, 1.0]], dtype=torch.float64),
        torch.tensor([[3.0, 10.0, 10.0]], dtype=torch.float64),
    )
    z = torch.linspace(-20, 20, 40_001, dtype=torch.float64).view(-1, 1, 1)
    assert torch.trapezoid(kernels.log_prob(z).exp().squeeze(-1), z.view(-1)).item() == pytest.approx(1.0, abs=1e-6)
    assert kernels.sample(torch.zeros(10, 1, 1)).flatten().tolist() == [0.0] * 3 + [2.0] * 7
    assert torch.equal(kernels.select(slice(0, 1)).log_prob(z), kernels.log_prob(z))


@given(st.sampled_from([2, 16, 64, 100, 256, 5000]))
def test_rows_share_a_tile_in_groups_that_divide_the_block(samples):
    tiling = Tiling(rows=16, evaluations=256)
    group = tiling.group(samples)
    assert tiling.rows % group == 0
    assert group == 1 or group * samples <= 256
