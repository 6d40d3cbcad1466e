"""The search for a mode and the bent normal there, against automatic differentiation."""

import math

import pytest
import torch
from torch.func import grad, hessian, jacfwd

from service.density import laplace
from service.density.laplace import Derivatives, Sites
from service.vae.conditional import conditional
from service.vae.network import VAE, Architecture
from service.vae.prior import NormalMixture

# torch's own: functorch still scripts a function, and forward mode batches some others slowly.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]


@pytest.fixture(params=[("bernoulli", 0), ("gaussian", 0), ("discretized_logistic", 0), ("bernoulli", 3)], ids=str)
def sites(request):
    """Four rows of a network in float64, each at a latent of its own."""
    torch.manual_seed(0)
    likelihood, components = request.param
    architecture = Architecture(12, 3, (8,), "tanh", likelihood, prior_components=components)
    vae = VAE(architecture).double().requires_grad_(False)
    vae.decoder.output.weight.mul_(3.0)
    x = torch.rand(4, 12, dtype=torch.float64)
    x = {"bernoulli": x.round(), "gaussian": x, "discretized_logistic": (255 * x).round() / 255}[likelihood]
    with torch.no_grad():
        return Sites.at(vae, conditional(vae, x), torch.randn(4, 3, dtype=torch.float64))


def log_joint(sites, row):
    """log p(x, z) of one row as a function of z, the plain way."""

    def function(z):
        given = sites.vae.likelihood.log_prob(sites.vae.decoder(z), sites.given.x[row]).sum()
        if isinstance(sites.vae.prior, NormalMixture):
            return given + sites.vae.prior.log_prob(z)
        return given - 0.5 * z.square().sum() - 0.5 * len(z) * math.log(2 * math.pi)

    return function


def identity(sites):
    """A covariance for each row to begin with."""
    return torch.eye(3, dtype=torch.float64).expand(len(sites.z), 3, 3)


def test_a_climb_never_goes_down_and_ends_where_the_gradient_is_zero(sites):
    with torch.no_grad():
        for newton_steps, steps in ((0, 30), (12, 0), (2, 12)):
            top, covariance = sites, identity(sites)
            for _ in range(newton_steps):
                top, covariance = laplace.newton(top, Derivatives.at(top))
            top = laplace.quasi_newton(top, covariance, steps)
            assert (top.log_joint >= sites.log_joint).all()
            for row, z in enumerate(top.z):
                assert log_joint(top, row)(z).item() == pytest.approx(top.log_joint[row].item(), abs=1e-9)
                assert grad(log_joint(top, row))(z).norm() < 0.05


def test_an_updated_covariance_takes_the_fall_of_the_gradient_to_the_step():
    torch.manual_seed(0)
    step = torch.randn(5, 3, dtype=torch.float64)
    fall = step + 0.3 * torch.randn(5, 3, dtype=torch.float64)
    fall[0] = -step[0]  # log p(x, z) bends up
    before = torch.eye(3, dtype=torch.float64).expand(5, 3, 3) * 2.0
    after = laplace.updated(before, step, fall)
    assert torch.equal(after[0], before[0])
    taken = (after @ fall[..., None])[..., 0]
    usable = (step * fall).sum(-1) > 0
    torch.testing.assert_close(taken[usable], step[usable])
    assert (torch.linalg.eigvalsh(after) > 0).all()


def test_a_mode_is_described_by_the_hessian_and_newtons_step(sites):
    with torch.no_grad():
        mode = laplace.mode_of(Derivatives.at(sites))
    for row, z in enumerate(sites.z):
        precision = -hessian(log_joint(sites, row))(z)
        restored = mode.rotation[row] @ torch.diag(mode.precision[row]) @ mode.rotation[row].T
        torch.testing.assert_close(restored, precision, rtol=1e-6, atol=1e-6)
        step = mode.axes[row] @ mode.uphill[row]
        if (mode.precision[row] >= laplace.MIN_PRECISION).all():
            torch.testing.assert_close(precision @ step, grad(log_joint(sites, row))(z), rtol=1e-5, atol=1e-6)


def test_the_bend_is_the_third_derivative(sites, monkeypatch):
    if isinstance(sites.vae.likelihood, type(VAE(Architecture(1, 1, (), "tanh", "gaussian")).likelihood)):
        sites.vae.likelihood.log_std.fill_(0.0)
    monkeypatch.setattr(laplace, "REACH", 1e-3)
    monkeypatch.setattr(laplace, "EXACT", 0.0)
    with torch.no_grad():
        mode = laplace.mode_of(Derivatives.at(sites))
        normal, exact = laplace.fit(sites, mode, 3)
    assert not exact.any()
    for row, z in enumerate(sites.z):
        third = jacfwd(hessian(log_joint(sites, row)))(z)
        axes = mode.axes[row]
        expected = torch.einsum("abc,ak,bk,cj->kj", third, axes, axes, axes).clamp(-laplace.MAX_BEND, laplace.MAX_BEND)
        torch.testing.assert_close(normal.bend[row], expected, rtol=0.02, atol=0.01)
