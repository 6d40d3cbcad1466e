"""Priors: densities, derivatives and draws against torch's own distributions and automatic differentiation."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import grad, hessian

from service.vae.prior import NormalMixture, StandardNormal, base_points, prior_of


def mixture(components=4, latents=3):
    """A mixture of unlike components."""
    torch.manual_seed(0)
    prior = NormalMixture(components, latents).double().requires_grad_(False)
    prior.mean.mul_(2.0)
    prior.log_std.normal_(-0.5, 0.5)
    prior.logit.normal_()
    return prior


def reference(prior):
    """The same distribution by torch."""
    parts = Independent(Normal(prior.mean, prior.log_std.exp()), 1)
    return MixtureSameFamily(Categorical(logits=prior.logit), parts)


@pytest.fixture(params=["standard", "mixture"])
def prior(request):
    return mixture() if request.param == "mixture" else StandardNormal(3)


def test_the_density_is_that_of_the_distribution():
    prior, z = mixture(), 2 * torch.randn(5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), reference(prior).log_prob(z))
    standard = StandardNormal(3).log_prob(z)
    torch.testing.assert_close(standard, Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_derivatives_are_those_of_the_density(prior):
    torch.manual_seed(1)
    z = 2 * torch.randn(6, 3, dtype=torch.float64)
    bend = prior.bend(z)
    for row, latent in enumerate(z):
        torch.testing.assert_close(bend.gradient[row], grad(prior.log_prob)(latent))
        torch.testing.assert_close(prior.slope(z)[row], bend.gradient[row])
        torch.testing.assert_close(bend.hessian[row], -hessian(prior.log_prob)(latent))


def test_the_positive_part_is_positive_where_the_hessian_is_not():
    prior = mixture(2, 1)
    prior.mean.copy_(torch.tensor([[-2.0], [2.0]]))
    prior.log_std.fill_(-0.5)
    prior.logit.zero_()
    between = prior.bend(torch.zeros(1, 1, dtype=torch.float64))
    assert between.hessian.item() < 0 < between.positive.item()
    far = mixture().bend(torch.full((1, 3), 1e6, dtype=torch.float64))
    assert torch.isfinite(far.gradient).all()
    assert (torch.linalg.eigvalsh(far.positive) > 0).all()


def test_draws_have_the_density_s_moments(prior):
    draws = prior.draw(200_000, torch.Generator().manual_seed(0)).double()
    expected = reference(prior) if isinstance(prior, NormalMixture) else Independent(Normal(torch.zeros(3), 1.0), 1)
    error = expected.variance.sqrt() / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected.mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(draws.var(0), expected.variance.double(), rtol=0.03, atol=0.0)


def test_the_kl_of_a_mixture_is_estimated_without_bias():
    """KL(q || p) where p is one normal written as a mixture of two that are alike."""
    prior = mixture(2, 3)
    prior.mean.zero_()
    prior.log_std.zero_()
    mean, std = torch.tensor([[0.5, -1.0, 0.2]]).double(), torch.tensor([[0.5, 1.5, 0.9]]).double()
    z = mean + std * torch.randn(200_000, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimates = prior.kl(mean, std, z)[:, 0]
    exact = StandardNormal(3).kl(mean, std, z[0])
    assert abs(estimates.mean() - exact).item() < 4.5 * estimates.std().item() / math.sqrt(len(z))


def test_the_plane_of_a_standard_normal_is_its_quantiles():
    z = StandardNormal(4).plane((2, 0), base_points(5))
    u = Normal(0.0, 1.0).cdf(z)
    torch.testing.assert_close(u[:, [2, 0]].float(), base_points(5).float())
    assert (z[:, [1, 3]] == 0).all()
    assert base_points(5)[:3].tolist() == [[0.1, 0.1], [0.3, 0.1], [0.5, 0.1]]


def test_the_plane_of_a_mixture_holds_equal_shares_of_its_draws():
    """The map from probabilities to two coordinates, undone by counting draws below and left of its points."""
    prior = mixture()
    z = prior.plane((0, 2), torch.tensor([[0.3, 0.8], [0.9, 0.1]], dtype=torch.float64))
    draws = prior.draw(400_000, torch.Generator().manual_seed(0)).double()
    for point, (first, second) in zip(z, [(0.3, 0.8), (0.9, 0.1)], strict=True):
        assert (draws[:, 0] < point[0]).double().mean().item() == pytest.approx(first, abs=0.005)
        beside = draws[(draws[:, 0] - point[0]).abs() < 0.05]
        assert (beside[:, 2] < point[2]).double().mean().item() == pytest.approx(second, abs=0.03)
        near = draws[((draws[:, [0, 2]] - point[[0, 2]]).abs() < 0.15).all(dim=-1)]
        assert near[:, 1].mean().item() == pytest.approx(point[1].item(), abs=0.15)


def test_no_components_are_a_standard_normal():
    assert isinstance(prior_of(0, 2), StandardNormal)
    assert isinstance(prior_of(3, 2), NormalMixture)
