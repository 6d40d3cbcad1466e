"""Gradient, Fisher information and Hessian against automatic differentiation."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

from service.vae.conditional import PlainConditional
from service.vae.curvature import Curvature, curvature
from service.vae.network import VAE, Architecture

# torch's own: glu has no batching rule for forward-mode derivatives yet, and functorch still scripts a function.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]


@pytest.fixture(params=["bernoulli", "gaussian", "discretized_logistic"])
def likelihood(request):
    return request.param


@pytest.fixture(params=[("gated", (7, 5)), ("silu", (7, 5)), ("tanh", (7,)), ("silu", ())], ids=str)
def pairs(request, likelihood):
    """A network in float64 with four rows and a latent for each."""
    activation, hidden = request.param
    torch.manual_seed(0)
    vae = VAE(Architecture(6, 3, hidden, activation, likelihood)).double().requires_grad_(False)
    x = torch.rand(4, 6, dtype=torch.float64)
    x = {"bernoulli": x.round(), "gaussian": x, "discretized_logistic": (255 * x).round() / 255}[likelihood]
    x[0, 0], x[0, 1] = 0.0, 1.0
    return vae, x, torch.randn(4, 3, dtype=torch.float64)


def log_prob(vae, x):
    return lambda z: vae.likelihood.log_prob(vae.decoder(z), x).sum()


def forward_mode_curvature(vae, x, z):
    """For any decoder that treats rows independently: forward-mode derivatives in all latents at once."""
    directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)

    def total(latents):
        return vae.likelihood.log_prob(vae.decoder(latents), x).sum()

    def along(function):
        """Derivatives along each latent, shape (N, L, ...)."""

        def derivative(direction):
            return jvp(function, (z,), (direction.expand_as(z),))[1]

        return vmap(derivative)(directions).transpose(0, 1)

    fisher = vae.likelihood.fisher_gram(along(vae.decoder), vae.decoder(z), x)
    return Curvature(grad(total)(z).double(), fisher.double(), -along(grad(total)).double())


def test_the_gradient_is_the_derivative(pairs):
    vae, x, z = pairs
    expected = torch.stack([grad(log_prob(vae, row))(latent) for row, latent in zip(x, z, strict=True)])
    torch.testing.assert_close(curvature(vae, x, z).gradient, expected)
    value, gradient = PlainConditional(vae, x).value_and_gradient(z[:, None])
    torch.testing.assert_close(gradient[:, 0], expected)
    torch.testing.assert_close(value, PlainConditional(vae, x).log_prob(z[:, None]))


def test_the_hessian_is_the_second_derivative(pairs):
    vae, x, z = pairs
    expected = torch.stack([-hessian(log_prob(vae, row))(latent) for row, latent in zip(x, z, strict=True)])
    torch.testing.assert_close(curvature(vae, x, z).hessian, expected)


def test_any_decoder_gives_the_same_derivatives(pairs):
    vae, x, z = pairs
    fast, plain = curvature(vae, x, z), forward_mode_curvature(vae, x, z)
    torch.testing.assert_close(fast.fisher, plain.fisher)
    torch.testing.assert_close(fast.gradient, plain.gradient)
    torch.testing.assert_close(fast.hessian, plain.hessian)
    assert (torch.linalg.eigvalsh(fast.fisher) > -1e-9).all()


def test_the_fisher_information_is_the_expected_square_of_the_score(likelihood):
    torch.manual_seed(0)
    family = VAE(Architecture(3, 1, (), "silu", likelihood)).likelihood.requires_grad_(False)
    output = torch.tensor([-1.0, 0.2, 1.5])
    draws = family.sample(output.expand(200_000, 3), torch.Generator().manual_seed(0))
    squares = family.grad_log_prob(output, draws).square()
    error = (squares.mean(0) - family.fisher_information(output)).abs()
    # Bins and both ends take some of a discretized logistic's information away.
    slack = 0.3 * family.fisher_information(output) if likelihood == "discretized_logistic" else 0.0
    assert (error < 5 * squares.std(0) / 200_000**0.5 + slack).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
@pytest.mark.parametrize("features", [16, 64, 784])
@pytest.mark.parametrize("hidden", [(), (5,), (7, 10)], ids=str)
def test_equal_pairs_have_equal_derivatives_wherever_they_stand(likelihood, features, hidden):
    torch.manual_seed(0)
    vae = VAE(Architecture(features, 5, hidden, "tanh", likelihood)).requires_grad_(False)
    x = torch.rand(1, features).round().expand(16, -1).contiguous()
    z = torch.randn(1, 5).expand(16, -1).contiguous()
    for name in ("gradient", "fisher", "hessian"):
        derivative = getattr(curvature(vae, x, z), name)
        assert torch.equal(derivative, derivative[:1].expand_as(derivative)), name
