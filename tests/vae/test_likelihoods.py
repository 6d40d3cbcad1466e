"""Likelihood families against torch.distributions and against sums over all values."""

import math

import pytest
import torch

from service.vae.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian


def test_bernoulli_is_torchs():
    output, x = torch.randn(5, 7) * 10, (torch.rand(5, 7) < 0.5).float()
    expected = torch.distributions.Bernoulli(logits=output).log_prob(x)
    torch.testing.assert_close(Bernoulli().log_prob(output, x), expected)


def test_gaussian_is_torchs_with_the_floor_under_its_std():
    family = Gaussian(7, min_std=0.5)
    output, x = torch.randn(5, 7), torch.randn(5, 7)
    std = (0.25 + (2 * family.log_std).exp()).sqrt()
    torch.testing.assert_close(family.log_prob(output, x), torch.distributions.Normal(output, std).log_prob(x))


@pytest.mark.parametrize("log_scale", [-8.0, -5.0, -2.0, 0.0])
@pytest.mark.parametrize("output", [-9.0, -0.3, 0.0, 2.0, 12.0])
def test_the_256_grey_masses_sum_to_one_and_give_the_mean(log_scale, output):
    family = DiscretizedLogistic(1).double()
    family.log_scale.data.fill_(log_scale)
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    location = torch.full((1, 1), output, dtype=torch.float64)
    masses = family.log_prob(location, levels).exp()
    assert masses.sum().item() == pytest.approx(1.0, abs=1e-9)
    by_sum = (masses * levels).sum().item()
    assert family.mean(location).item() * 255 == pytest.approx(by_sum * 255, abs=0.02)


def test_a_grey_level_far_from_the_location_keeps_a_finite_log_prob():
    family = DiscretizedLogistic(1)
    family.log_scale.data.fill_(-20.0)
    log_prob = family.log_prob(torch.tensor([[30.0]]), torch.tensor([[0.0], [0.5], [1.0]]))
    assert log_prob.isfinite().all()
    assert log_prob[0] < log_prob[1] < log_prob[2]


@pytest.mark.parametrize("family", [Bernoulli(), Gaussian(3), DiscretizedLogistic(3)], ids=lambda f: type(f).__name__)
def test_samples_have_the_mean_that_the_family_says(family):
    generator = torch.Generator().manual_seed(1)
    output = torch.tensor([-1.0, 0.2, 1.5])
    with torch.no_grad():
        draws = family.sample(output.expand(40_000, 3), generator)
        error = draws.std(dim=0) / math.sqrt(len(draws))
        assert ((draws.mean(dim=0) - family.mean(output)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("family", [Bernoulli(), Gaussian(3), DiscretizedLogistic(3)], ids=lambda f: type(f).__name__)
def test_a_fit_starts_at_the_columns_means(family):
    x = torch.rand(100, 3) * 0.5 + 0.2
    with torch.no_grad():
        family.eval()
        if isinstance(family, DiscretizedLogistic):
            family.log_scale.fill_(-5.0)
        torch.testing.assert_close(family.mean(family.initial_bias(x)), x.mean(0), atol=5e-3, rtol=0)
