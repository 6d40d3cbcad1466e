"""Convolutional networks: their derivatives are exact, any size of image fits, and a row's bits do not depend on others."""

import math

import pytest
import torch

from service.vae.convolution import level_count, level_sizes
from service.vae.curvature import MOST_NUMBERS, blocks_of, curvature
from service.vae.network import VAE, Architecture

SHAPES = [(10, 7, 3), (9, 9, 1), (16, 16, 3)]


def network(shape=(10, 7, 3), likelihood="pixel_logistic", latents=5, widths=(6, 8), dtype=torch.float64):
    torch.manual_seed(0)
    vae = VAE(Architecture(math.prod(shape), latents, widths, "silu", likelihood, image=shape, network="conv"))
    with torch.no_grad():  # the second convolutions start at zero
        for parameter in vae.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return vae.to(dtype).eval().requires_grad_(False)


def images(vae, number=4):
    torch.manual_seed(1)
    x = torch.randint(0, 256, (number, vae.architecture.features)).to(vae.dtype) / 255
    return x.round() if vae.architecture.likelihood == "bernoulli" else x


@pytest.mark.parametrize("likelihood", ["pixel_logistic", "gaussian", "discretized_logistic"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_and_hessian_are_the_derivatives(shape, likelihood):
    vae = network(shape, likelihood)
    x, z = images(vae), torch.randn(4, 5, dtype=torch.float64)
    x[0, :40], x[1, :40] = 0.0, 1.0  # bins without an end
    x[2, 6:9], x[3, 30:60] = math.nan, math.nan
    found = curvature(vae, vae.likelihood.read(x), z)
    for row in range(4):

        def value(latents, row=row):
            return vae.likelihood.total(vae.decoder(latents[None]), vae.likelihood.read(x[row : row + 1]))[0]

        gradient = torch.autograd.functional.jacobian(value, z[row])
        hessian = -torch.autograd.functional.hessian(value, z[row])
        torch.testing.assert_close(found.gradient[row], gradient, rtol=1e-9, atol=1e-7)
        torch.testing.assert_close(found.hessian[row], hessian, rtol=1e-9, atol=1e-6)
    assert (torch.linalg.eigvalsh(found.fisher) > -1e-9).all()


def test_blocks_of_bounded_size_change_nothing(monkeypatch):
    vae = network(dtype=torch.float32)
    x, z = images(vae, 12), torch.randn(12, 5)
    whole = curvature(vae, vae.likelihood.read(x), z)
    assert len(blocks_of(vae.decoder, 12)) == 1
    assert 5 * vae.decoder.largest * 12 < MOST_NUMBERS
    monkeypatch.setattr("service.vae.curvature.MOST_NUMBERS", 1)
    assert len(blocks_of(vae.decoder, 12)) == 3
    parts = curvature(vae, vae.likelihood.read(x), z)
    for name in ("gradient", "fisher", "hessian"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 40, 1), (28, 28, 1), (33, 65, 3)], ids=str)
def test_images_of_any_size_fit(shape):
    widths = (4,) * level_count(*shape[:2])
    vae = network(shape, widths=widths, dtype=torch.float32)
    x = images(vae)
    output = vae.decoder(vae.posterior(x).mean)
    assert output.shape == (4, 2 * math.prod(shape))
    assert vae.likelihood.mean(output).shape == x.shape
    assert max(level_sizes(shape, widths)[-1]) <= 7


def test_an_image_has_the_same_bits_in_any_company():
    vae = network((16, 16, 3), widths=(16, 32), dtype=torch.float32)
    torch.manual_seed(2)
    z, x = torch.randn(64, 5), images(vae, 64)
    whole, encoded = vae.decoder(z), vae.posterior(x)
    for count in (4, 8, 12, 20, 32, 60):
        for start in (0, 3):
            some = slice(start, start + count)
            assert torch.equal(vae.decoder(z[some]), whole[some]), (count, start)
            assert torch.equal(vae.posterior(x[some]).mean, encoded.mean[some]), (count, start)


def test_multiplications_are_counted():
    vae = network((16, 16, 3), widths=(16, 32))
    counted = vae.decoder.input.weight.numel()

    def count(module, inputs, output):
        nonlocal counted
        counted += output.shape[1] * output.shape[2] * module.weight.numel()

    for module in vae.decoder.modules():
        if type(module).__name__ == "Convolution":
            module.register_forward_hook(count)
    vae.decoder(torch.zeros(1, 5, dtype=torch.float64))
    assert vae.evaluation_size == counted
