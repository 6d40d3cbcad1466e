"""The fast path for Bernoulli columns against the plain one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.vae.conditional import BernoulliConditional, PlainConditional, conditional, log_product
from service.vae.network import VAE, Architecture


@settings(max_examples=40, deadline=None)
@given(
    features=st.integers(1, 200),
    latents=st.integers(1, 20),
    hidden=st.sampled_from([(), (5,), (8, 3)]),
    activation=st.sampled_from(["silu", "gated", "tanh"]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_the_fast_path_equals_the_plain_one(features, latents, hidden, activation, scale, seed):
    torch.manual_seed(seed)
    vae = VAE(Architecture(features, latents, hidden, activation)).requires_grad_(False)
    vae.decoder.output.weight.mul_(scale)
    x = (torch.rand(3, features) < 0.5).float()
    z = torch.randn(3, 11, latents)
    with torch.inference_mode():
        fast, plain = BernoulliConditional(vae, x), PlainConditional(vae, x)
        expected = plain.log_prob(z)
        tolerance = 1e-4 + 2e-6 * expected.abs().max().item()
        torch.testing.assert_close(fast.log_prob(z), expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(fast.select(slice(1, 2)).log_prob(z[1:2]), expected[1:2], atol=tolerance, rtol=0)


def test_it_is_chosen_for_float32_bernoulli_networks_alone():
    x = torch.zeros(1, 4)
    with torch.inference_mode():
        assert isinstance(conditional(VAE(Architecture(4, 2)), x), BernoulliConditional)
        assert isinstance(conditional(VAE(Architecture(4, 2)).double(), x.double()), PlainConditional)
        assert isinstance(conditional(VAE(Architecture(4, 2, likelihood="gaussian")), x), PlainConditional)


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 784, 8192])
def test_a_product_of_many_factors_neither_overflows_nor_loses_digits(columns):
    excess = torch.rand(4, columns, generator=torch.Generator().manual_seed(0)).clamp(min=0.9)
    expected = excess.double().log1p().sum(-1)
    torch.testing.assert_close(log_product(excess.clone()), expected, atol=0, rtol=1e-5)
