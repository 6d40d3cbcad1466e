"""Laws of importance weights, for any weights at all."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.density.importance import ess, log_likelihood, normalized_weights
from tests.density.oracles import elbo, std_error

weights = st.tuples(st.integers(1, 4), st.integers(1, 60)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-5000, 5000))
)


@settings(max_examples=200, deadline=None)
@given(weights, st.floats(-1000, 1000))
def test_the_laws_hold_for_any_weights(log_weights, constant):
    log_weights = torch.from_numpy(log_weights)
    samples = log_weights.shape[1]
    estimate, size = log_likelihood(log_weights), ess(normalized_weights(log_weights))
    assert (elbo(log_weights) <= estimate + 1e-9 * (1 + estimate.abs())).all()
    assert ((size >= 1) & (size <= samples)).all()
    torch.testing.assert_close(log_likelihood(log_weights + constant), estimate + constant, rtol=1e-12, atol=1e-9)
    shuffled = log_weights[:, torch.randperm(samples)]
    torch.testing.assert_close(log_likelihood(shuffled), estimate, rtol=1e-12, atol=1e-9)
    assert ((std_error(log_weights) >= 0) & (std_error(log_weights) <= 1 + 1e-9)).all()


def test_equal_weights_are_exact():
    log_weights = torch.full((2, 50), -3.25, dtype=torch.float64)
    assert torch.allclose(log_likelihood(log_weights), torch.tensor(-3.25, dtype=torch.float64))
    assert torch.allclose(ess(normalized_weights(log_weights)), torch.tensor(50.0, dtype=torch.float64))
    assert torch.allclose(std_error(log_weights), torch.tensor(0.0, dtype=torch.float64), atol=1e-12)


def test_the_std_error_is_the_spread_of_repeated_estimates():
    generator = torch.Generator().manual_seed(0)
    log_weights = 0.7 * torch.randn(5000, 400, generator=generator, dtype=torch.float64)
    spread = log_likelihood(log_weights).std()
    assert abs(std_error(log_weights).mean() / spread - 1) < 0.05


def test_normalized_weights_sum_to_one():
    log_weights = torch.tensor([[0.0, 1.0, -2000.0]], dtype=torch.float64)
    assert normalized_weights(log_weights).sum().item() == 1.0
