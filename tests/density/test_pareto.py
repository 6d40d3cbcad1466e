"""khat against the plain algorithm of the paper, and against tails whose shape is known."""

import math

import numpy as np
import pytest
import torch

from service.density.pareto import generalized_pareto_shape, khat, tail_length


def naive_shape(x):
    """Zhang and Stephens' estimate as the PSIS paper writes it, for one row of ascending exceedances."""
    n = len(x)
    points = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    b = [1 / x[-1] + (1 - math.sqrt(points / (j - 0.5))) / (3 * quartile) for j in range(1, points + 1)]
    k = [np.mean(np.log1p(-b_j * x)) for b_j in b]
    profile = [n * (math.log(-b_j / k_j) - k_j - 1) for b_j, k_j in zip(b, k, strict=True)]
    weights = [1 / sum(math.exp(other - own) for other in profile) for own in profile]
    b_mean = sum(w * b_j for w, b_j in zip(weights, b, strict=True)) / sum(weights)
    return (n * np.mean(np.log1p(-b_mean * x)) + 10 * 0.5) / (n + 10)


def pareto(shape, size, seed):
    u = np.random.default_rng(seed).random(size)
    return ((1 - u) ** -shape - 1) / shape


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9, 1.5])
@pytest.mark.parametrize("size", [8, 50, 300])
def test_the_batched_fit_equals_the_plain_one(shape, size):
    x = np.sort(np.stack([pareto(shape, size, seed) for seed in range(4)]), axis=1)
    fitted = generalized_pareto_shape(torch.from_numpy(x))
    np.testing.assert_allclose(fitted.numpy(), [naive_shape(row) for row in x], rtol=1e-6)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8])
def test_a_known_tail_is_found(shape):
    log_weights = np.log(np.stack([pareto(shape, 20_000, seed) + 1 for seed in range(20)]))
    found = khat(torch.from_numpy(log_weights)).numpy()
    error = found.std() / math.sqrt(20)
    assert abs(found.mean() - shape) < 4.5 * error + 0.03  # the tail of a shifted Pareto is one in the limit only


def test_too_few_samples_or_no_tail_say_nothing():
    assert khat(torch.zeros(2, 16, dtype=torch.float64)).isnan().all()
    assert khat(torch.randn(2, 16, dtype=torch.float64)).isnan().all()
    assert khat(torch.full((2, 200), 7.0, dtype=torch.float64)).isnan().all()


def test_a_constant_added_to_the_weights_and_their_order_change_nothing():
    log_weights = torch.randn(3, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    torch.testing.assert_close(khat(log_weights), khat(log_weights + 123.0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(khat(log_weights), khat(log_weights.flip(1)))


def test_one_weight_that_holds_everything_is_not_trusted():
    log_weights = torch.zeros(1, 256, dtype=torch.float64)
    log_weights[0, 3] = 500.0
    assert khat(log_weights)[0] > 0.7


def test_the_tail_is_a_fifth_of_few_samples_and_three_roots_of_many():
    assert [tail_length(samples) for samples in (25, 100, 10_000)] == [5, 20, 300]
