"""What a row's draws say beside log p(x): exact in a linear-Gaussian model, and the same in any company."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from service.density import starts
from service.density.estimate import Member, estimate, observe
from service.density.estimator import Estimator
from service.density.neighbours import Neighbours
from service.density.row_statistics import DrawObserver, DrawStatistics, encodings
from tests.models import linear_gaussian


def statistics_of(vae, x, known):
    member, observer = Member(vae, starts.build(vae, x)), DrawObserver([1] * x.shape[1], encodings(vae, known))
    estimates, (seen,) = observe(Estimator.of("fast"), member, x.astype(np.float32), [observer])
    return estimates, DrawStatistics.stacked(seen, x.shape[1])


@pytest.fixture(scope="module")
def exact(factor_analysis):
    """E[log p(x_j | z)] and KL of p(z | x) from p(z) for each row, by the formulas for normals."""
    analysis, x = factor_analysis.analysis, factor_analysis.rows
    loadings, noise = analysis.components_.T, analysis.noise_variance_
    precision = np.eye(loadings.shape[1]) + (loadings.T / noise) @ loadings
    covariance = np.linalg.inv(precision)
    mean = (x - analysis.mean_) @ (covariance @ (loadings.T / noise)).T
    spread = np.einsum("jl,lk,jk->j", loadings, covariance, loadings)
    residual = x - analysis.mean_ - mean @ loadings.T
    reconstruction = -0.5 * (np.log(2 * np.pi * noise) + (residual**2 + spread) / noise)
    log_det = np.linalg.slogdet(covariance)[1]
    divergence = 0.5 * (np.trace(covariance) + (mean**2).sum(axis=1) - loadings.shape[1] - log_det)
    return SimpleNamespace(reconstruction=reconstruction, divergence=divergence)


def test_what_is_given_back_and_the_divergence_are_the_exact_ones(factor_analysis, exact):
    x = factor_analysis.rows
    _, by_draws = statistics_of(linear_gaussian(factor_analysis.analysis), x, x[:50])
    # Sixteen draws each; over all rows their errors are small.
    assert by_draws.reconstruction.mean(axis=0) == pytest.approx(exact.reconstruction.mean(axis=0), abs=0.1)
    assert by_draws.divergence.mean() == pytest.approx(exact.divergence.mean(), abs=0.2)
    assert np.corrcoef(by_draws.divergence, exact.divergence)[0, 1] > 0.95
    assert np.corrcoef(by_draws.reconstruction.sum(axis=1), exact.reconstruction.sum(axis=1))[0, 1] > 0.99


def test_the_gap_is_what_the_encoder_misses(factor_analysis):
    x = factor_analysis.rows
    _, good = statistics_of(linear_gaussian(factor_analysis.analysis), x, x[:50])
    assert np.abs(good.gap).max() < 1e-3
    # A posterior that is twice as wide misses L (w^2 - 1 - log w^2) / 2 nats, whatever the row.
    _, wide = statistics_of(linear_gaussian(factor_analysis.analysis, widening=2.0), x, x[:50])
    assert wide.gap.mean() == pytest.approx(4 * (4 - 1 - np.log(4)) / 2, rel=1e-3)


def test_the_distance_is_to_the_nearest_encoding(factor_analysis):
    x = factor_analysis.rows
    vae = linear_gaussian(factor_analysis.analysis)
    _, by_draws = statistics_of(vae, x, x[:50])
    means = encodings(vae, x).numpy()
    expected = np.linalg.norm(means[:, None] - means[None, :50], axis=2).min(axis=1)
    assert by_draws.latent_distance == pytest.approx(expected, abs=1e-6)


def test_the_estimates_are_the_usual_ones_and_what_is_seen_is_the_same_in_any_company(factor_analysis):
    x, vae = factor_analysis.rows.astype(np.float32), linear_gaussian(factor_analysis.analysis, 1.3, torch.float32)
    estimates, together = statistics_of(vae, x, x[:50])
    plain = estimate(Estimator.of("fast"), Member(vae, starts.build(vae, x)), x)
    assert (estimates.log_likelihood == plain.log_likelihood).all()
    member, observer = Member(vae, starts.build(vae, x)), DrawObserver([1] * x.shape[1], encodings(vae, x[:50]))
    for rows in ([0], [5, 0, 177], list(range(100))):
        _, (seen,) = observe(Estimator.of("fast"), member, x[rows], [observer])
        alone = DrawStatistics.stacked(seen, x.shape[1])
        assert (alone.reconstruction == together.reconstruction[rows]).all()
        assert (alone.divergence == together.divergence[rows]).all()
        assert (alone.gap == together.gap[rows]).all()
        assert (alone.latent_distance == together.latent_distance[rows]).all()


# Neighbours


def gower(known, row, is_category):
    """The naive way."""
    best = np.inf
    span = np.nanmax(known, axis=0) - np.nanmin(known, axis=0)
    for other in known:
        terms = [
            float(a != b) if category else ((a - b) / (width or 1.0)) ** 2
            for a, b, category, width in zip(row, other, is_category, span, strict=True)
            if not np.isnan(a) and not np.isnan(b)
        ]
        best = min(best, np.sqrt(np.mean(terms))) if terms else best
    return best


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_distances_are_gower_s(holes):
    generator = np.random.default_rng(0)
    rows = np.column_stack(
        [generator.normal(size=90), 1e6 * generator.random(90), generator.integers(3, size=90), np.full(90, 7.0)]
    )
    rows[generator.random(rows.shape) < holes] = np.nan
    rows[:, 3] = 7.0
    is_category = np.array([False, False, True, False])
    known, asked = rows[:60], rows[60:]
    found = Neighbours(known, is_category).nearest(asked, 1)[0][:, 0]
    assert found == pytest.approx([gower(known, row, is_category) for row in asked], abs=1e-9)
    assert Neighbours(known, is_category).nearest(known[:5], 1)[0][:, 0] == pytest.approx(0.0)


def test_neighbours_bear_rows_from_anywhere():
    neighbours = Neighbours(np.random.default_rng(0).normal(size=(20, 3)), np.zeros(3, dtype=bool))
    far = neighbours.nearest(np.array([[1e38, 0, 0], [np.nan] * 3, [-1e38, 1e38, 1e38]]), 1)[0][:, 0]
    assert np.isfinite(far).all()
    assert neighbours.nearest(np.zeros((0, 3)), 1)[0].shape == (0, 1)


def test_a_row_s_distance_does_not_depend_on_its_company():
    generator = np.random.default_rng(1)
    neighbours = Neighbours(generator.random((300, 64)), np.zeros(64, dtype=bool))
    rows = generator.random((150, 64))
    together = neighbours.nearest(rows, 1)[0][:, 0]
    assert [neighbours.nearest(rows[at : at + 1], 1)[0][0, 0] for at in (0, 63, 64, 149)] == together[
        [0, 63, 64, 149]
    ].tolist()


def test_numbers_may_share_a_range():
    known = np.array([[0.0, 0.0], [200.0, 0.0]])
    found = Neighbours(known, np.zeros(2, dtype=bool), 255.0).nearest(np.array([[200.0, 51.0]]), 1)[0][:, 0]
    assert found == pytest.approx(np.sqrt(0.5 * 0.2**2))
