"""Estimates through convolutions: right where the answer is known, and the same bits in any company."""

import math

import numpy as np
import pytest
import torch

from service.density import starts
from service.density.conditionals import ColumnObserver, columns_of
from service.density.estimate import Execution, Member, estimate, observe
from service.density.estimator import Estimator
from service.density.tiling import worker_pool
from service.vae.network import VAE, Architecture

SHAPE = (6, 5, 3)
FEATURES = math.prod(SHAPE)


def network(latents, widths=(16,), shape=SHAPE):
    torch.manual_seed(0)
    features = math.prod(shape)
    vae = VAE(Architecture(features, latents, widths, "silu", "pixel_logistic", image=shape, network="conv"))
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2.0)
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        vae.decoder.bias[features:] = -3.0
    return vae.eval().requires_grad_(False)


def drawn(vae, number):
    """Rows that the network itself draws."""
    generator = torch.Generator().manual_seed(1)
    z = vae.prior.draw(number, generator)
    return vae.likelihood.sample(vae.decoder(z), generator).numpy().astype(np.float32)


def by_quadrature(vae, x, hidden=()):
    """log p(x) of a network with one latent, without some columns: (B,)."""
    z = torch.linspace(-8, 8, 40_001)[:, None]
    x = torch.from_numpy(x).clone()
    x[:, list(hidden)] = math.nan
    output = torch.cat([vae.decoder(part) for part in z.split(4000)])
    terms = torch.stack([vae.likelihood.total(output, row[None]) for row in x])  # (B, Z)
    return (terms + vae.prior.log_prob(z.double())).logsumexp(dim=1).numpy() + math.log(16 / 40_000)


def test_the_estimate_is_the_integral():
    vae = network(1)
    x = drawn(vae, 12)
    found = estimate(Estimator(tolerance=0.01), Member(vae, starts.build(vae, x)), x)
    error = found.log_likelihood - by_quadrature(vae, x)
    assert found.reliable.all()
    assert (np.abs(error) < 5 * found.std_error + 1e-3).all()


def test_a_pixel_is_judged_with_all_its_channels():
    vae = network(1)
    x = drawn(vae, 4)
    x[0, 3:6] = 1.0 - x[0, 3:6].round()
    pixels = FEATURES // 3
    observer = ColumnObserver([3] * pixels, np.full(pixels, -np.inf), np.zeros((4, pixels)))
    _, (cases,) = observe(Estimator(), Member(vae, starts.build(vae, x)), x, [observer])
    columns, _ = columns_of(cases, FEATURES, together=3)
    assert np.isnan(columns.log_likelihood[:, 1::3]).all()
    whole = by_quadrature(vae, x)
    for pixel in (1, 7):
        channels = range(3 * pixel, 3 * pixel + 3)
        expected = whole - by_quadrature(vae, x, channels)
        found, error = columns.log_likelihood[:, 3 * pixel], columns.std_error[:, 3 * pixel]
        trusted = columns.reliable[:, 3 * pixel]
        assert trusted.any()
        assert (np.abs(found - expected) < 5 * error + 0.05)[trusted].all()


@pytest.mark.parametrize("latents", [2, 12])
def test_a_row_scores_to_the_bit_in_any_company_and_on_any_number_of_threads(latents):
    vae = network(latents, (16, 32), (16, 16, 3))
    x = drawn(vae, 24)
    member = Member(vae, starts.build(vae, x))
    estimator = Estimator(max_samples=64, anneal=False)
    whole = estimate(estimator, member, x)
    for threads in (2, 4):
        shared = estimate(estimator, member, x, execution=Execution(worker_pool(threads)))
        assert np.array_equal(shared.log_likelihood, whole.log_likelihood)
    for rows in (slice(0, 1), slice(3, 8), slice(11, 24)):
        some = estimate(estimator, member, x[rows])
        assert np.array_equal(some.log_likelihood, whole.log_likelihood[rows])
        assert np.array_equal(some.std_error, whole.std_error[rows])


def test_a_missing_pixel_contributes_nothing():
    vae = network(1)
    x = drawn(vae, 6)
    x[:, 9:12] = np.nan
    found = estimate(Estimator(), Member(vae, starts.build(vae, np.nan_to_num(x))), x)
    expected = by_quadrature(vae, x, range(9, 12))
    assert (np.abs(found.log_likelihood - expected) < 5 * found.std_error + 1e-3).all()
