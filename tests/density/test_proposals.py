"""Proposals: each draws from the density that it states, alone and composed."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from service.density.proposals import BentNormal, Diagonal, Mixture
from service.density.quasirandom import REPLICATES, Points, row_points
from service.vae.network import DiagonalNormal


def skewed_normal(**changes):
    """In one dimension, with a longer upper side."""
    one = torch.ones((1, 1), dtype=torch.float64)
    parts = {"mean": 0.5 * one, "axes": 2.0 * one[..., None], "inverse": 0.5 * one[..., None]}
    parts |= {"bend": 0 * one[..., None], "skew": 0.3 * one, "tails": torch.tensor([[1.0, 1.6]], dtype=torch.float64)}
    parts |= {"log_volume": torch.tensor([2.0], dtype=torch.float64).log()}
    return BentNormal(**(parts | changes))


def banana():
    """In two dimensions, bent: y_2 follows y_1 squared, and its width follows y_1."""
    axes = torch.tensor([[[1.0, 0.5], [0.0, 2.0]]], dtype=torch.float64)
    return BentNormal(
        mean=torch.tensor([[0.5, -1.0]], dtype=torch.float64),
        axes=axes,
        inverse=torch.linalg.inv(axes),
        bend=torch.tensor([[[0.3, 0.8], [0.4, -0.2]]], dtype=torch.float64),
        skew=torch.tensor([[0.1, -0.2]], dtype=torch.float64),
        tails=torch.tensor([[1.0, 1.3]], dtype=torch.float64),
        log_volume=torch.linalg.slogdet(axes)[1],
    )


def diagonal(mean, std):
    return Diagonal(
        DiagonalNormal(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[std]], dtype=torch.float64))
    )


PROPOSALS = {
    "diagonal": diagonal(-1.0, 2.0),
    "skewed normal": skewed_normal(),
    "mixture": Mixture(
        [skewed_normal(), diagonal(6.0, 0.3), diagonal(0.0, 1.0)], torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    ),
    "mixture of mixtures": Mixture(
        [
            Mixture([diagonal(-3.0, 0.5), diagonal(3.0, 1.0)], torch.tensor([[0.2, 0.8]], dtype=torch.float64)),
            diagonal(0.0, 4.0),
        ],
        torch.tensor([[0.7, 0.3]], dtype=torch.float64),
    ),
}


@pytest.fixture(params=PROPOSALS)
def proposal(request):
    return PROPOSALS[request.param]


def cumulative(proposal, at):
    """The distribution function by the trapezoid rule, and the whole integral."""
    z = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    density = proposal.log_prob(z.view(1, -1, 1)).exp()[0]
    integral = torch.cumulative_trapezoid(density, z)
    return np.interp(at, z[1:].numpy(), integral.numpy()), integral[-1].item()


def test_the_density_integrates_to_one_and_is_that_of_the_draws(proposal):
    generator = torch.Generator().manual_seed(0)
    points = Points(
        *(torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((1, 5000), (1, 5000, 1)))
    )
    draws = proposal.sample(points).flatten().numpy()
    uniform, whole = cumulative(proposal, draws)
    assert whole == pytest.approx(1.0, abs=1e-5)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4


def test_some_rows_are_those_rows(proposal):
    z = torch.linspace(-3, 3, 7, dtype=torch.float64).view(1, -1, 1)
    twice = proposal.select(torch.tensor([0, 0]))
    torch.testing.assert_close(twice.log_prob(z.expand(2, -1, -1))[1], proposal.log_prob(z)[0], rtol=1e-12, atol=0)


def test_a_bent_density_integrates_to_one_and_is_that_of_the_draws():
    proposal = banana()
    axis = torch.linspace(-16, 16, 1201, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    mass = proposal.log_prob(z[None])[0].exp() * (32 / 1200) ** 2
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 40_000), (1, 40_000, 2))
    points = Points(*(torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes))
    draws = proposal.sample(points)[0]
    for function in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z[:, 0] ** 2, lambda z: z[:, 0] * z[:, 1]):
        values = function(draws)
        error = values.mean() - (mass * function(z)).sum()
        assert abs(error) < 4.5 * values.std() / 200 + 0.01


def test_a_bend_follows_the_third_derivatives_of_a_density():
    """Weights against exp(-|y|^2 / 2 + y_1^2 y_2 / 2 * bend + ...) are far more even than a normal's."""
    bend = torch.tensor([[[0.0, 0.25], [0.15, 0.0]]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)[None]
    zero, tails = torch.zeros((1, 2), dtype=torch.float64), torch.ones((1, 1), dtype=torch.float64)
    flat = torch.zeros(1, dtype=torch.float64)
    straight = BentNormal(zero, eye, eye, 0 * bend, zero, tails, flat)
    bent = BentNormal(0.5 * bend.sum(dim=1), eye, eye, bend, zero, tails, flat)
    points = row_points(np.zeros((1, 2), dtype=np.float32), 0, 2, 0, 4096, torch.device("cpu"))

    def variance(proposal):
        y = proposal.sample(points)
        first, second = y.clamp(-2.5, 2.5).unbind(dim=-1)
        cubic = 0.5 * (bend[0, 0, 1] * first**2 * second + bend[0, 1, 0] * second**2 * first)
        return (cubic - 0.5 * y.square().sum(dim=-1) - proposal.log_prob(y)).var().item()

    assert variance(bent) < 0.35 * variance(straight)


def test_without_bend_skew_and_tails_it_is_a_normal():
    plain = skewed_normal(skew=torch.zeros((1, 1), dtype=torch.float64), tails=torch.ones((1, 1), dtype=torch.float64))
    z = torch.linspace(-3, 3, 7, dtype=torch.float64).view(1, -1, 1)
    torch.testing.assert_close(plain.log_prob(z), diagonal(0.5, 2.0).log_prob(z), rtol=1e-12, atol=1e-12)


def test_more_points_continue_the_same_sequences_and_every_scrambling_is_even():
    rows = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    cpu = torch.device("cpu")
    whole = row_points(rows, 3, 2, 0, 1024, cpu)
    parts = [row_points(rows, 3, 2, first, 256, cpu) for first in range(0, 1024, 256)]
    assert torch.equal(whole.uniform, torch.cat([part.uniform for part in parts], dim=1))
    assert torch.equal(whole.selector, torch.cat([part.selector for part in parts], dim=1))
    for replicate in range(REPLICATES):
        own = whole.uniform[0, replicate::REPLICATES]  # 64 points
        counts = torch.histc(own[:, 0], bins=64, min=0, max=1)
        assert (counts == 1).all()
    assert not torch.equal(whole.uniform[0], whole.uniform[1])


def test_the_error_of_replicates_is_the_spread_of_repeated_estimates():
    """Sobol points integrate a smooth function far better than independent ones: the error must know."""
    from service.density.importance import log_likelihood, normalized_weights, replicated_std_error
    from tests.density.oracles import std_error

    estimates, errors, naive = [], [], []
    for seed in range(200):
        points = row_points(np.zeros((1, 1), dtype=np.float32), seed, 2, 0, 256, torch.device("cpu"))
        log_weights = 0.5 * points.normal.sum(dim=-1)
        estimates.append(log_likelihood(log_weights).item())
        errors.append(replicated_std_error(normalized_weights(log_weights)).item())
        naive.append(std_error(log_weights).item())
    spread = np.std(estimates)
    assert abs(np.mean(estimates) - 0.25) < 4.5 * spread / math.sqrt(200)
    assert 0.8 < np.sqrt(np.mean(np.square(errors))) / spread < 1.25
    assert np.mean(naive) > 1.5 * spread
