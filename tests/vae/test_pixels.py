"""The likelihood of pixels: masses sum to one, channels know each other, and what is drawn has the mean that is told."""

import math

import pytest
import torch

from service.vae.pixels import PixelLogistic

LEVELS = torch.arange(256, dtype=torch.float64) / 255


def likelihood(features=3, channels=3):
    torch.manual_seed(0)
    made = PixelLogistic(features, channels).double().requires_grad_(False)
    made.coupling.copy_(torch.randn(channels, channels))
    return made


def test_the_masses_of_a_grey_pixel_sum_to_one():
    made = likelihood(1, 1)
    output = torch.tensor([[0.3, -2.0], [3.0, 0.5], [-0.9, -9.0]], dtype=torch.float64)
    masses = made.total(output[:, None], LEVELS[None, :, None]).exp()
    torch.testing.assert_close(masses.sum(dim=1), torch.ones(3, dtype=torch.float64))


def test_the_masses_of_a_coloured_pixel_sum_to_one():
    made = likelihood()
    output = torch.tensor([[0.1, -0.4, 0.6, -2.5, -2.0, -1.5]], dtype=torch.float64)
    first, second = torch.meshgrid(LEVELS, LEVELS, indexing="ij")
    total = 0.0
    for level in LEVELS:
        pixels = torch.stack([first, second, level.expand_as(first)], dim=-1).view(-1, 3)
        total += float(made.total(output, pixels).exp().sum())
    assert total == pytest.approx(1.0, abs=1e-9)


def test_draws_have_the_means_and_quantiles_of_each_channel():
    made = likelihood()
    made.coupling.copy_(torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.2, 0.7, 0.0]]))
    output = torch.tensor([[0.1, -0.2, 0.0, -3.5, -3.0, -3.2]], dtype=torch.float64)
    drawn = made.sample(output.expand(200_000, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=0), made.mean(output)[0], atol=0.001, rtol=0)
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for channel in range(3):
        found = made.quantile(output, u, channel)[0]
        torch.testing.assert_close(found, torch.quantile(drawn[:, channel], u), atol=0.01, rtol=0)
    correlation = torch.corrcoef(drawn.T)
    assert correlation[0, 1] > 0.4  # one channel tells of the next
    assert correlation[1, 2] > 0.4


def test_the_derivative_in_the_output_is_that_of_the_log_mass():
    made = likelihood(12, 3)
    output = torch.randn(5, 24, dtype=torch.float64)
    output[0, 12:] = 2.0  # beyond the largest scale
    x = (torch.rand(5, 12, dtype=torch.float64) * 255).round() / 255
    x[1, :3], x[2, :3], x[3, 4] = 0.0, 1.0, math.nan
    read = made.read(x)
    expected = torch.autograd.functional.jacobian(lambda one: made.total(one, read).sum(), output)
    torch.testing.assert_close(made.grad_log_prob(output, x), expected)


def test_a_pixel_that_lacks_a_channel_is_missing():
    made = likelihood(6, 3)
    output = torch.randn(1, 12, dtype=torch.float64)
    x = torch.full((1, 6), 0.5, dtype=torch.float64)
    whole = made.log_prob(output, x)
    x[0, 1] = math.nan
    terms = made.log_prob(output, x)
    assert (terms[0, :3] == 0).all()
    assert torch.equal(terms[0, 3:], whole[0, 3:])
    torch.testing.assert_close(made.total(output, x), terms.sum(dim=-1))


def test_search_starts_are_ranked_nearly_as_by_the_likelihood():
    made = likelihood(12, 3)
    made.coupling.copy_(torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.0, 0.8, 0.0]]))
    torch.manual_seed(1)
    outputs = torch.cat([0.2 * torch.randn(50, 12), torch.full((50, 12), -3.5)], dim=1).double()
    x = made.sample(outputs[:20], torch.Generator().manual_seed(0))
    slope, offset = made.linear_in_statistics(outputs)
    rough = made.sufficient_statistics(x) @ slope.mT + offset
    exact = made.total(outputs, x[:, None])
    assert (rough.argmax(dim=1) == exact.argmax(dim=1)).all()


def test_means_of_colours_at_the_ends_of_the_range_are_those_of_draws():
    made = likelihood(12, 3)
    made.coupling.copy_(torch.tensor([[0.0, 0.0, 0.0], [0.95, 0.0, 0.0], [0.1, 0.85, 0.0]]))
    torch.manual_seed(3)
    output = torch.cat([2.5 * torch.randn(1, 12), -3.0 + torch.randn(1, 12)], dim=1).double()
    drawn = made.sample(output.expand(100_000, -1), torch.Generator().manual_seed(0))
    mean = made.mean(output)[0]
    assert (255 * (drawn.mean(dim=0) - mean)).abs().max() < 6  # levels; it ignores how the clipped ones are spread
    for column in (0, 4, 11):
        assert made.mean_of(output, column)[0] == pytest.approx(float(mean[column]), abs=1e-9)
