"""log p(x_j | the other columns): exact where the answer is known, also for a cell that the draws' proposal saw."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from service.density import starts
from service.density.conditionals import ColumnObserver, columns_of
from service.density.estimate import Member, estimate, observe
from service.density.estimator import Estimator
from service.vae.mixed import Real
from service.vae.network import VAE, Architecture
from tests.models import linear_gaussian


def with_columns(vae, x, suspect=np.inf, estimator=None, widths=None, **options):
    """Estimates of rows and their columns, in the network's units."""
    x = np.asarray(x, dtype=np.float32)
    widths = widths or [1] * x.shape[1]
    observer = ColumnObserver(widths, np.full(len(widths), suspect), np.zeros((len(x), len(widths))))
    member = Member(vae, starts.build(vae, np.nan_to_num(x)))
    estimates, (cases,) = observe(estimator or Estimator(), member, x, [observer], **options)
    return estimates, columns_of(cases, len(widths))[0]


def exact_conditionals(analysis, x, without=None):
    """log p(x_j | x_-j) of a factor analysis, by its precision matrix: shape (B, D); or without a column, NaN there."""
    kept = np.delete(np.arange(x.shape[1]), [] if without is None else [without])
    precision = np.linalg.inv(analysis.get_covariance()[np.ix_(kept, kept)])
    variance = 1.0 / np.diag(precision)
    residual = ((x - analysis.mean_)[:, kept] @ precision) * variance
    found = np.full(x.shape, np.nan)
    found[:, kept] = stats.norm.logpdf(residual, scale=np.sqrt(variance))
    return found


@pytest.fixture
def spoilt(factor_analysis):
    """Rows with one cell ten standard deviations off, given the others, each; and which."""
    rows = factor_analysis.rows[:26].astype(np.float32).astype(np.float64)
    covariance = factor_analysis.analysis.get_covariance()
    scale = np.sqrt(1.0 / np.diag(np.linalg.inv(covariance)))
    columns = np.arange(26) % 13
    rows[np.arange(26), columns] += 10.0 * scale[columns] * np.where(np.arange(26) < 13, 1.0, -1.0)
    return rows.astype(np.float32).astype(np.float64), columns


def test_columns_of_valid_rows_have_their_exact_conditionals(factor_analysis):
    vae = linear_gaussian(factor_analysis.analysis)
    x = factor_analysis.rows[:60].astype(np.float32)
    estimates, columns = with_columns(vae, x, suspect=-np.inf)
    exact = exact_conditionals(factor_analysis.analysis, x)
    np.testing.assert_allclose(estimates.log_likelihood, factor_analysis.analysis.score_samples(x), atol=1e-5)
    error = np.abs(columns.log_likelihood - exact)
    assert columns.reliable.mean() > 0.5
    assert (error <= 4 * columns.std_error + 0.1)[columns.reliable].mean() > 0.98
    assert np.sqrt((error[columns.reliable] ** 2).mean()) < 0.15


def test_a_cell_ten_standard_deviations_off_has_its_exact_conditional(factor_analysis, spoilt):
    vae, (x, blamed) = linear_gaussian(factor_analysis.analysis), spoilt
    _, columns = with_columns(vae, x, suspect=-12.0)
    rows = np.arange(len(x))
    exact = exact_conditionals(factor_analysis.analysis, x)[rows, blamed]
    assert exact.max() < -30
    found, error = columns.log_likelihood[rows, blamed], columns.std_error[rows, blamed]
    assert (np.abs(found - exact) <= 4 * error + 1e-3).all()
    assert (np.nanargmin(columns.log_likelihood, axis=1) == blamed).all()


def test_the_other_columns_are_judged_without_the_one_to_blame(factor_analysis, spoilt):
    """Or the wrong cell would make right ones look wrong."""
    vae, (x, blamed) = linear_gaussian(factor_analysis.analysis), spoilt
    _, columns = with_columns(vae, x, suspect=-12.0)
    naive, fair = [], []
    for row, column in enumerate(blamed):
        others = np.arange(x.shape[1]) != column
        exact = exact_conditionals(factor_analysis.analysis, x[row : row + 1], column)[0, others]
        fair.append(np.abs(columns.log_likelihood[row, others] - exact).mean())
        naive.append(np.abs(exact_conditionals(factor_analysis.analysis, x[row : row + 1])[0, others] - exact).mean())
    assert np.mean(fair) < 0.2  # of few draws
    assert np.mean(naive) > 1.0


def test_without_a_second_look_that_cell_is_forgiven(factor_analysis, spoilt):
    """What the second look is for: the draws saw the cell."""
    vae, (x, blamed) = linear_gaussian(factor_analysis.analysis), spoilt
    _, columns = with_columns(vae, x, suspect=-np.inf)
    rows = np.arange(len(x))
    kindness = columns.log_likelihood[rows, blamed] - exact_conditionals(factor_analysis.analysis, x)[rows, blamed]
    assert kindness.max() > 30
    assert not columns.reliable[rows, blamed][kindness > 5].any()


def test_conditionals_are_those_of_a_grid_where_the_posterior_is_no_normal():
    torch.manual_seed(0)
    vae = VAE(Architecture(8, 2, (16,), "tanh", "bernoulli")).requires_grad_(False)
    vae.decoder.output.weight.mul_(4.0)
    x = (np.random.default_rng(0).random((40, 8)) < 0.5).astype(np.float32)
    axis = torch.linspace(-6, 6, 300)
    z = torch.cartesian_prod(axis, axis)
    terms = vae.likelihood.log_prob(vae.decoder(z)[:, None], torch.from_numpy(x)).double()  # (G, B, D)
    joint = terms.sum(-1) + vae.prior.log_prob(z.double())[:, None]
    exact = (joint.logsumexp(0)[:, None] - (joint[..., None] - terms).logsumexp(0)).numpy()
    _, columns = with_columns(vae, x, suspect=-np.inf)
    error = np.abs(columns.log_likelihood - exact)
    assert (error <= 4.5 * columns.std_error + 0.05).mean() > 0.98
    assert np.sqrt((error**2).mean()) < 0.1


def test_what_is_said_of_the_row_is_the_same(factor_analysis):
    vae = linear_gaussian(factor_analysis.analysis, widening=1.3)
    x = factor_analysis.rows[:30].astype(np.float32)
    plain = estimate(Estimator(), Member(vae, starts.build(vae, x)), x)
    explained, _ = with_columns(vae, x)
    for name in ("log_likelihood", "std_error", "khat", "num_samples"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(explained, name))


SOME = (0, 1, 2, 3, 13, 20, 27, 34, 38, 39)  # with a missing cell, with a wild one, and plain ones


@pytest.mark.parametrize("alone_rows", [SOME, pytest.param(range(40), marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "columns"])
def test_a_row_s_columns_are_the_same_in_any_company(likelihood, alone_rows):
    torch.manual_seed(0)
    kinds = (Real(),) * 9 if likelihood == "columns" else ()
    vae = VAE(Architecture(9, 3, (16,), "tanh", likelihood, columns=kinds)).requires_grad_(False)
    vae.decoder.output.weight.mul_(3.0)
    x = np.random.default_rng(0).random((40, 9)).round().astype(np.float32)
    x[::3, 2] = np.nan
    x[1, 4] = 7.0 if likelihood == "columns" else x[1, 4]
    suspect = np.full(3, math.log(0.3))
    member = Member(vae, starts.build(vae, np.nan_to_num(x)))

    def found(rows):
        observer = ColumnObserver([2, 3, 4], suspect, np.zeros((len(rows), 3)))
        return columns_of(observe(Estimator(), member, x[rows], [observer])[1][0], 3)

    together, draws = found(np.arange(40))
    for row in alone_rows:
        alone, own_draws = found(np.array([row]))
        np.testing.assert_array_equal(alone.log_likelihood[0], together.log_likelihood[row])
        np.testing.assert_array_equal(alone.std_error[0], together.std_error[row])
        assert own_draws.without[0].keys() == draws.without[row].keys()
        assert torch.equal(own_draws.draws[0].z, draws.draws[row].z)


def test_holes_have_no_conditional(factor_analysis):
    vae = linear_gaussian(factor_analysis.analysis)
    x = factor_analysis.rows[:6].astype(np.float32)
    x[0, 3] = x[2, 0] = np.nan
    _, columns = with_columns(vae, x)
    np.testing.assert_array_equal(np.isnan(columns.log_likelihood), np.isnan(x))


def test_no_rows_have_no_columns(factor_analysis):
    _, columns = with_columns(linear_gaussian(factor_analysis.analysis), np.zeros((0, 13)))
    assert columns.log_likelihood.shape == (0, 13)
