"""The estimator: exact where the answer is known, and the same number for a row wherever it stands."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from service.density import starts
from service.density.block import END_TOLERANCE, Block
from service.density.estimate import Execution, Member, estimate
from service.density.estimator import SETTINGS, Estimator
from service.density.importance import log_likelihood
from service.density.proposals import Diagonal
from service.density.quasirandom import BITS, REPLICATES, row_generator, row_points, row_shifts
from service.density.starts import starts_of
from service.density.tiling import Tiling, worker_pool
from service.errors import CalibrationError
from service.vae.mixed import Categorical, Count, Real
from service.vae.network import VAE, Architecture
from service.vae.prior import NormalMixture
from tests.density.oracles import log_weights
from tests.models import bent, digits, linear_gaussian, squared


def fixed(samples, **options):
    """An estimator that draws so many samples and no more."""
    return Estimator("fast", first_samples=samples, max_samples=samples, anneal=False, **options)


def estimated(estimator, vae, x, pool=None, band_ends=()):
    """Estimates with search starts that are made of the rows themselves."""
    x = np.asarray(x, dtype=np.float32)
    return estimate(estimator, Member(vae, starts.build(vae, x)), x, band_ends, execution=Execution(pool))


# A known answer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
@pytest.mark.parametrize("widening", [1.0, 1.3])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_linear_gaussian_gives_factor_analysis_log_density(factor_analysis, dtype, tolerance, widening, setting):
    """Whatever its encoder says: the posterior is a normal, the search finds it, and all weights are equal."""
    vae = linear_gaussian(factor_analysis.analysis, widening=widening, dtype=dtype)
    estimates = estimated(Estimator.of(setting), vae, factor_analysis.rows)
    exact = factor_analysis.analysis.score_samples(factor_analysis.rows.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(estimates.log_likelihood, exact, atol=tolerance, rtol=0)
    assert estimates.reliable.all()
    assert (estimates.std_error < tolerance).all()
    np.testing.assert_allclose(estimates.ess, estimates.num_samples, rtol=1e-5)


def test_a_mixture_of_factor_analyses_has_its_exact_density(factor_analysis):
    """A mixture prior through a linear decoder is a mixture of normals; its posteriors have up to three modes."""
    vae = linear_gaussian(factor_analysis.analysis)
    vae.prior = NormalMixture(3, 4).double().requires_grad_(False)
    vae.prior.mean.copy_(torch.tensor([[3.0, 0, 0, 0], [-1.0, 2, 0, 0], [0, 0, 0, 0]]))
    vae.prior.log_std.copy_(torch.log(torch.tensor([[0.5], [0.8], [1.5]]).expand(3, 4)))
    vae.prior.logit.copy_(torch.log(torch.tensor([0.2, 0.3, 0.5])))
    loadings, noise = vae.decoder.output.weight.numpy(), vae.likelihood.std.square().numpy()
    x = factor_analysis.rows.astype(np.float32)
    parts = [
        math.log(share)
        + stats.multivariate_normal(
            loadings @ mean + factor_analysis.analysis.mean_, (loadings * std**2) @ loadings.T + np.diag(noise)
        ).logpdf(x)
        for share, mean, std in zip([0.2, 0.3, 0.5], vae.prior.mean.numpy(), [0.5, 0.8, 1.5], strict=True)
    ]
    estimates = estimated(Estimator(tolerance=0.01), vae, x)
    error = np.abs(estimates.log_likelihood - np.logaddexp.reduce(parts, axis=0))
    assert estimates.reliable.mean() > 0.95
    # Where a component holds a hundredth of the mass, all draws may agree without it.
    assert (error <= 4 * estimates.std_error + 0.01)[estimates.reliable].all()
    assert np.sqrt((error**2).mean()) < 0.02


def grid_log_likelihood(vae, x, points=200, reach=5.0):
    """log of the integral of p(x | z) p(z) over a dense grid of two latents."""
    axis = torch.linspace(-reach, reach, points)
    z = torch.cartesian_prod(axis, axis)  # (points ** 2, 2)
    log_cell = 2 * math.log(2 * reach / (points - 1))
    with torch.inference_mode():
        log_prior = vae.prior.log_prob(z.double())
        given_z = vae.likelihood.log_prob(vae.decoder(z)[:, None], torch.from_numpy(x)).sum(-1, dtype=torch.float64)
        return ((given_z + log_prior[:, None]).logsumexp(0) + log_cell).numpy()


def by_integral(vae, x):
    """log p(x) of a network with one latent, by a fine grid."""
    z = torch.linspace(-6, 6, 100_001)[:, None]
    given = vae.likelihood.log_prob(vae.decoder(z), torch.from_numpy(x)).sum(-1).double()
    return (given + vae.prior.log_prob(z.double())).logsumexp(0).item() + math.log(12 / 100_000)


def test_two_latents_agree_with_a_grid_or_say_that_they_are_not_reliable():
    vae = bent(2)
    x = (np.random.default_rng(0).random((100, 20)) < 0.5).astype(np.float32)
    exact = grid_log_likelihood(vae, x)
    estimates = estimated(fixed(256), vae, x)
    error = np.abs(estimates.log_likelihood - exact)
    assert (~estimates.reliable | (error <= 4 * estimates.std_error + 1e-3)).all()
    assert estimates.reliable.mean() > 0.95
    assert np.sqrt((error**2).mean()) < 0.05


def test_more_samples_are_nearer_and_the_tolerance_is_kept():
    vae = bent(2)
    x = (np.random.default_rng(0).random((60, 20)) < 0.5).astype(np.float32)
    exact = grid_log_likelihood(vae, x)
    few, many = estimated(fixed(32), vae, x), estimated(fixed(2048), vae, x)
    assert np.abs(many.log_likelihood - exact).mean() < 0.5 * np.abs(few.log_likelihood - exact).mean()
    near = estimated(Estimator(first_samples=32, max_samples=16384, tolerance=0.01), vae, x)
    assert (near.std_error[near.reliable] <= 0.01).mean() > 0.95
    assert (near.num_samples < 16384).any()


def test_the_encoder_alone_is_half_right_where_there_are_two_modes_and_the_estimator_finds_both():
    vae = squared(0.14, 0.0)
    x = np.array([[2.25, 0.0]], dtype=np.float32)
    expected = by_integral(vae, x)
    points = row_points(x, 0, 1, 0, 2048, torch.device("cpu"))
    rows = torch.from_numpy(x)
    blind = log_likelihood(log_weights(vae, rows, Diagonal(vae.posterior(rows)), points))
    assert blind.item() == pytest.approx(expected - math.log(2), abs=0.15)  # half of p(x), and sure of it
    found = estimated(fixed(512), vae, x)
    assert abs(found.log_likelihood[0] - expected) < 4 * found.std_error[0] + 1e-3
    assert found.reliable[0]


@pytest.mark.slow
@pytest.mark.parametrize("tilt", [0.0, 0.1])
@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_modes_of_different_heights_are_weighed_without_bias(sigma, tilt):
    vae = squared(sigma, tilt)
    x = np.array([[2.25, 0.02]], dtype=np.float32)
    expected = by_integral(vae, x)
    estimates = [estimated(fixed(128, seed=seed), vae, x) for seed in range(40)]
    error = np.array([each.log_likelihood[0] for each in estimates]) - expected
    assert np.sqrt((error**2).mean()) < 0.1
    assert abs(np.exp(error).mean() - 1) < 4.5 * np.exp(error).std() / np.sqrt(40) + 1e-3


@pytest.mark.slow
def test_annealing_agrees_with_a_grid():
    vae = bent(2, strength=8.0)
    x = (np.random.default_rng(1).random((8, 20)) < 0.5).astype(np.float32)
    exact = grid_log_likelihood(vae, x)
    with torch.no_grad():
        block = Block(Estimator(), vae, starts_of(vae, starts.build(vae, x)), x)
        block.anneal(np.arange(8))
    found = block.estimates
    assert (np.abs(found.log_likelihood - exact) < 5 * found.std_error + 0.02).all()
    assert (found.std_error < 0.3).all()


# Stopping


def test_rows_far_from_the_ends_stop_first_and_near_ones_go_on():
    vae = bent(4)
    x = (np.random.default_rng(0).random((64, 20)) < 0.5).astype(np.float32)
    far = estimated(fixed(4096), vae, x)
    end = float(np.median(far.log_likelihood))
    estimator = Estimator(first_samples=32, max_samples=4096, tolerance=0.0, ends=(end, 0.0), anneal=False)
    stopped = estimated(estimator, vae, x, band_ends=(end, 0.0))
    distance = np.abs(far.log_likelihood - end)
    assert stopped.num_samples[distance > 3].mean() < 0.2 * stopped.num_samples[distance < 0.1].mean()
    assert ((stopped.log_likelihood < end) == (far.log_likelihood < end)).mean() >= 63 / 64
    assert (stopped.evaluations >= stopped.num_samples).all()


def test_rows_near_the_frozen_ends_alone_stop_once_they_are_known_well():
    vae = bent(4)
    x = (np.random.default_rng(0).random((64, 20)) < 0.5).astype(np.float32)
    end = float(np.median(estimated(fixed(1024), vae, x).log_likelihood))
    estimator = Estimator(max_samples=4096, tolerance=0.0, ends=(end, 0.0), anneal=False)
    unjudged, judged = estimated(estimator, vae, x), estimated(estimator, vae, x, band_ends=(end, 0.0))
    assert (unjudged.std_error[unjudged.reliable] <= 0.5).all()
    near = np.abs(unjudged.log_likelihood - end) < 3 * unjudged.std_error
    assert near.any()
    assert (unjudged.std_error[near] <= END_TOLERANCE).all()
    assert (judged.num_samples >= unjudged.num_samples).all()
    assert (judged.num_samples > unjudged.num_samples).any()


def test_a_usual_error_widens_that_of_rows_that_look_lucky():
    vae = bent(4)
    x = (np.random.default_rng(0).random((32, 20)) < 0.5).astype(np.float32)
    own = estimated(fixed(64), vae, x)
    moderated = estimated(fixed(64, typical_error=0.2, typical_decay=1.5), vae, x)
    usual = 0.2**2 * 2**1.5
    variance = (own.std_error / student(15)) ** 2
    expected = student(19) * np.sqrt((15 * variance + 4 * usual) / 19)
    np.testing.assert_allclose(moderated.std_error, expected, rtol=1e-9)
    assert (own.log_likelihood == moderated.log_likelihood).all()
    assert student(15) == pytest.approx(stats.t(15).ppf(0.975) / 1.96, abs=0.01)


def student(degrees):
    """How much wider than a normal's the 95 % interval of Student's t is, to first order."""
    return 1 + (1.96**2 + 1) / (4 * degrees)


# The naive way


@pytest.mark.parametrize("num_samples", [16, 64, 256, 1024])
def test_tiles_change_nothing_against_the_plain_way(digit_scorer, num_samples):
    model = digit_scorer.model
    rows = 128
    x = model.input.encode(model.input.rows(digits()[:rows]))
    book = starts_of(model.vae, model.members[0].starts)
    with torch.no_grad():
        block = Block(fixed(num_samples), model.vae, book, x)
        drawn = torch.cat([weights for _, _, weights in block.drawn(np.arange(rows), 0, num_samples)])
        points = row_points(x, 0, 4, 0, num_samples, torch.device("cpu"))
        plain = log_weights(model.vae, torch.from_numpy(x), block.proposal, points)
    torch.testing.assert_close(drawn, plain, atol=2e-4, rtol=0)
    estimates = estimate(fixed(num_samples), model.members[0], x)
    if num_samples < 512:  # with more, rows that are not to be trusted are estimated anew
        np.testing.assert_allclose(estimates.log_likelihood, log_likelihood(plain).numpy(), atol=2e-4, rtol=0)


def test_small_networks_take_more_rows_at_a_time():
    small, large = (VAE(Architecture(features, 4, (hidden,))) for features, hidden in ((20, 30), (784, 800)))
    assert Tiling.of(large) == Tiling(rows=128, evaluations=256)
    assert Tiling.of(small) == Tiling(rows=512, evaluations=4096)


def test_the_shifts_are_drawn_from_the_row_s_own_generator():
    rows = np.array([[0.0, -1.5], [-0.0, -1.5], [3.0, np.nan]], dtype=np.float32)
    for latents in (1, 2, 9):
        naive = [row_generator(row, 7).integers(2**BITS, size=(REPLICATES, latents + 1)) for row in rows]
        assert np.array_equal(row_shifts(rows, 7, latents).numpy(), naive)


# The same row, the same number


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_row_scores_the_same_alone_and_at_every_place_of_a_batch(any_scorer, step):
    scorer, rows = any_scorer
    row, others = rows[:1], rows[1:64]
    alone = scorer.score(row)
    for place in range(0, 64, step):  # 0 to 63, every one or every seventh
        batch = np.concatenate([others[:place], row, others[place:]])
        scores = scorer.score(batch)
        for name in ("log_likelihood", "std_error", "ess", "khat", "p_value"):
            assert getattr(scores, name)[place] == getattr(alone, name)[0], f"{name} at place {place}"


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_does_so_in_every_setting(digit_scorer, setting):
    model = digit_scorer.model
    x = model.input.encode(model.input.rows(digits()[:40]))
    estimator = replace(Estimator.of(setting), max_samples=max(1024, Estimator.of(setting).first_samples))
    together = estimate(estimator, model.members[0], x).log_likelihood
    parts = [estimate(estimator, model.members[0], x[i : i + 1]).log_likelihood for i in range(40)]
    backwards = estimate(estimator, model.members[0], x[::-1].copy()).log_likelihood[::-1]
    assert (together == np.concatenate(parts)).all()
    assert (together == backwards).all()


@pytest.mark.slow
@pytest.mark.parametrize("latents", [2, 5])
def test_it_does_so_with_a_mixture_of_normals_as_its_prior(latents):
    torch.manual_seed(0)
    vae = VAE(Architecture(20, latents, (16,), "tanh", prior_components=3)).requires_grad_(False)
    vae.decoder.output.weight.mul_(4.0)
    x = (np.random.default_rng(0).random((40, 20)) < 0.5).astype(np.float32)
    search_starts = starts.build(vae, x)
    together = estimate(Estimator(), Member(vae, search_starts), x).log_likelihood
    parts = [estimate(Estimator(), Member(vae, search_starts), x[i : i + 1]).log_likelihood for i in range(40)]
    assert (together == np.concatenate(parts)).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
@pytest.mark.parametrize("activation", ["silu", "gated", "tanh"])
def test_the_number_of_threads_changes_no_bit(likelihood, activation):
    """Sizes at which torch splits its operations among threads, unevenly for three and five of them."""
    torch.manual_seed(0)
    vae = VAE(Architecture(785, 5, (400,), activation, likelihood)).requires_grad_(False)
    x = (np.random.default_rng(0).random((3, 785)) < 0.5).astype(np.float32)
    estimator = fixed(256 if likelihood == "bernoulli" else 2048)
    expected = estimated(estimator, vae, x).log_likelihood
    for threads in (2, 3, 5, 8):
        torch.set_num_threads(threads)
        assert (estimated(estimator, vae, x).log_likelihood == expected).all()
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert (estimated(estimator, vae, x, worker_pool(3)).log_likelihood == expected).all()


def test_a_restart_changes_no_bit(digit_scorer, tiny_store):
    code = (
        "import sys, numpy as np; from service import load; from tests.models import digits; "
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


EDGES = given(
    likelihood=st.sampled_from(["bernoulli", "gaussian", "discretized_logistic"]),
    activation=st.sampled_from(["silu", "gated", "tanh"]),
    latents=st.sampled_from([1, 2, 7, 64]),
    features=st.integers(1, 9),
    value=st.sampled_from([0.0, 1.0, -1.0, 1e6, -1e15, 1e15]),
    scale=st.sampled_from([1.0, 1e3, 1e10]),
    setting=st.sampled_from(SETTINGS),
)


@settings(max_examples=8, deadline=None)
@EDGES
def test_rows_at_the_edges_are_finite_and_never_nan(**edge):
    check_finite(**edge)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@EDGES
def test_rows_at_many_edges_are_finite_and_never_nan(**edge):
    check_finite(**edge)


def check_finite(likelihood, activation, latents, features, value, scale, setting):
    torch.manual_seed(0)
    vae = VAE(Architecture(features, latents, (4,), activation, likelihood)).requires_grad_(False)
    vae.decoder.output.weight.mul_(scale)
    value = np.clip(value, 0, 1) if likelihood != "gaussian" else value
    estimator = Estimator.of(setting)
    estimator = replace(estimator, max_samples=max(estimator.first_samples, 512))
    estimates = estimated(estimator, vae, np.full((3, features), value))
    for name in ("log_likelihood", "std_error", "ess", "evaluations"):
        assert np.isfinite(getattr(estimates, name)).all(), name
    assert not np.isinf(estimates.khat).any() or not estimates.reliable.any()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    likelihood=st.sampled_from(["bernoulli", "gaussian", "discretized_logistic"]),
    latents=st.sampled_from([1, 2, 5, 16]),
    seed=st.integers(0, 1000),
)
def test_the_laws_hold_over_random_small_decoders(likelihood, latents, seed):
    torch.manual_seed(seed)
    vae = VAE(Architecture(6, latents, (8,), "tanh", likelihood)).requires_grad_(False)
    vae.decoder.output.weight.mul_(3.0)
    x = np.random.default_rng(seed).random((5, 6)).astype(np.float32)
    x = np.round(x) if likelihood == "bernoulli" else x
    with torch.no_grad():
        block = Block(fixed(64), vae, starts_of(vae, starts.build(vae, x)), x)
        weights = torch.cat([part for _, _, part in block.drawn(np.arange(5), 0, 64)])
    estimates = estimated(fixed(64), vae, x)
    np.testing.assert_allclose(estimates.log_likelihood, log_likelihood(weights).numpy(), rtol=1e-12)
    assert (weights.mean(1).numpy() <= estimates.log_likelihood + 1e-9).all()
    assert ((estimates.ess >= 1) & (estimates.ess <= 64)).all()
    order = np.random.default_rng(seed).permutation(5)
    search_starts = starts.build(vae, x)
    assert (
        estimate(fixed(64), Member(vae, search_starts), x[order]).log_likelihood
        == estimate(fixed(64), Member(vae, search_starts), x).log_likelihood[order]
    ).all()


def test_a_decoder_that_gives_nan_is_not_reliable():
    vae = VAE(Architecture(4, 2)).requires_grad_(False)
    vae.decoder.output.bias.fill_(math.nan)
    estimates = estimated(fixed(64), vae, np.zeros((2, 4)))
    assert np.isfinite(estimates.log_likelihood).all()
    assert not estimates.reliable.any()


def test_no_rows_are_no_estimates(digit_scorer):
    model = digit_scorer.model
    assert len(estimate(Estimator(), model.members[0], np.zeros((0, 64), dtype=np.float32)).ess) == 0


def test_few_samples_say_nothing_of_their_tail_and_are_not_vouched_for(digit_scorer):
    model = digit_scorer.model
    x = model.input.encode(model.input.rows(digits()[:5]))
    estimates = estimate(fixed(16), model.members[0], x)
    assert np.isnan(estimates.khat).all()
    assert not estimates.reliable.any()


@pytest.mark.parametrize(
    "options",
    [{"first_samples": 1}, {"max_samples": 10**9}, {"first_samples": 48}, {"first_samples": 8192}, {"tolerance": -1}],
)
def test_an_estimator_that_cannot_be_is_refused(options):
    with pytest.raises(CalibrationError):
        Estimator(**options)


def test_a_setting_that_is_not_there_is_refused():
    with pytest.raises(CalibrationError, match="fast, standard, thorough"):
        Estimator.of("slow")


@given(st.integers(0, 300), st.sampled_from([1, 16, 100, 5000]))
def test_tiles_cover_every_row_and_are_filled_to_whole_steps(rows, cost):
    tiling = Tiling(rows=64, evaluations=256)
    parts = list(tiling.tiles(torch.arange(rows), cost))
    assert all(len(part) % tiling.step == 0 and len(part) * cost <= max(256, tiling.step * cost) for part in parts)
    assert torch.cat([torch.zeros(0, dtype=torch.long), *parts]).unique().tolist() == list(range(rows))


# Holes


def holed(rows, share, seed=0):
    """The rows with some cells missing, none of them all."""
    mask = np.random.default_rng(seed).random(rows.shape) < share
    mask[np.arange(len(rows)), np.arange(len(rows)) % rows.shape[1]] = False
    return np.where(mask, np.nan, rows).astype(np.float32)


def marginal_log_densities(analysis, rows):
    """log N of the cells that are there, under factor analysis: the exact marginal."""
    covariance, found = analysis.get_covariance(), []
    for row in rows.astype(np.float64):
        there = ~np.isnan(row)
        found.append(
            stats.multivariate_normal(analysis.mean_[there], covariance[np.ix_(there, there)]).logpdf(row[there])
        )
    return np.array(found)


@pytest.mark.parametrize("family", ["gaussian", "columns"])
def test_a_row_with_holes_has_the_density_of_the_cells_that_are_there(factor_analysis, family):
    vae = linear_gaussian(factor_analysis.analysis, dtype=torch.float64)
    vae = vae if family == "gaussian" else as_columns(vae)
    rows = holed(factor_analysis.rows[:40], 0.3)
    estimates = estimated(Estimator(), vae, rows)
    exact = marginal_log_densities(factor_analysis.analysis, rows)
    assert (np.abs(estimates.log_likelihood - exact) <= 4.0 * estimates.std_error + 1e-4).all()
    assert estimates.reliable.all()


def as_columns(vae):
    """The same VAE with a likelihood of real columns whose standard deviations do not depend on z."""
    features = vae.architecture.features
    columns = (Real(min_std=1e-6),) * features
    wide = VAE(replace(vae.architecture, likelihood="columns", columns=columns)).double()
    with torch.no_grad():
        wide.decoder.output.weight.zero_()
        wide.decoder.output.weight[:features] = vae.decoder.output.weight
        wide.decoder.output.bias[:features] = vae.decoder.output.bias
        wide.decoder.output.bias[features:] = vae.likelihood.std.log()
        for parameter in wide.encoder.parameters():
            parameter.zero_()
    return wide.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digit_rows(digit_scorer):
    model = digit_scorer.model
    return model, model.input.encode(model.input.rows(digits()[:20]))


def test_a_row_scores_the_same_in_the_company_of_rows_with_holes(digit_rows):
    model, x = digit_rows
    mixed = np.concatenate([holed(x[:20], 0.2), x[:20]])[::-1].copy()
    together = estimate(Estimator(), model.members[0], mixed)
    alone = estimate(Estimator(), model.members[0], x[:20])
    assert (together.log_likelihood[:20][::-1] == alone.log_likelihood).all()
    one_by_one = [estimate(Estimator(), model.members[0], mixed[at : at + 1]).log_likelihood for at in range(40)]
    assert (together.log_likelihood == np.concatenate(one_by_one)).all()


def test_estimates_are_told_in_the_units_that_a_row_is_measured_in(digit_rows):
    model, x = digit_rows
    measure = np.linspace(-3.0, 3.0, 20)
    plain = estimate(fixed(64), model.members[0], x[:20])
    moved = estimate(fixed(64), model.members[0], x[:20], log_abs_det=measure)
    np.testing.assert_allclose(moved.log_likelihood, plain.log_likelihood + measure, rtol=1e-12)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["bernoulli", "gaussian", "discretized_logistic", "columns"]),
    activation=st.sampled_from(["silu", "gated", "tanh"]),
    latents=st.sampled_from([1, 2, 3, 5, 9, 15]),
    hidden=st.sampled_from([(), (5,), (8,), (17, 6), (32, 32)]),
    features=st.sampled_from([2, 4, 7, 13, 33]),
    components=st.sampled_from([0, 3]),
    seed=st.integers(0, 1000),
)
def test_a_row_has_the_same_bits_among_any_number_of_rows(
    kind, activation, latents, hidden, features, components, seed
):
    torch.manual_seed(seed)
    kinds = (Real(), Count(1.0, 0.0, 1.0), Categorical(3, 0.1))
    columns = tuple(kinds[at % 3] for at in range(features)) if kind == "columns" else ()
    architecture = Architecture(
        features, latents, hidden, activation, kind, columns=columns, prior_components=components
    )
    vae = VAE(architecture).requires_grad_(False)
    vae.decoder.output.weight.mul_(2.0)
    x = np.random.default_rng(seed).random((530, features)).astype(np.float32)
    x = x if kind in ("gaussian", "discretized_logistic") else np.round(2 * x) if kind == "columns" else np.round(x)
    member, estimator = Member(vae, starts.build(vae, x[:50])), Estimator.of("fast")
    together = estimate(estimator, member, x)
    for rows in (slice(0, 1), slice(3, 9), slice(100, 229), slice(511, 530)):
        few = estimate(estimator, member, x[rows])
        for name in ("log_likelihood", "std_error", "khat"):
            np.testing.assert_array_equal(getattr(few, name), getattr(together, name)[rows], err_msg=f"{name} {rows}")
