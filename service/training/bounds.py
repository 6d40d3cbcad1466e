"""The bounds on log p(x) that a fit maximises, and their values on validation rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.vae.likelihoods import LOG_2PI, normal_like
from service.vae.network import VAE, DiagonalNormal

ACTIVE_VARIANCE = 0.01  # of the posterior mean over rows; a latent below it carries no information (Burda et al., 2016)


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on mean log p(x) over some rows, with the ELBO's two terms; nats per row."""

    bound: float
    reconstruction: float
    kl: float
    active_latents: int


class Loss(nn.Module):
    """The loss as a module, since DistributedDataParallel averages gradients behind a module's `forward`."""

    def __init__(self, vae: VAE, importance_samples: int, generator: torch.Generator) -> None:
        super().__init__()
        self.vae, self.importance_samples, self.generator = vae, importance_samples, generator

    def forward(self, x: Tensor, kl_weight: float) -> Tensor:
        return negative_bound(self.vae, x, self.importance_samples, kl_weight, self.generator)


def negative_bound(
    vae: VAE, x: Tensor, importance_samples: int, kl_weight: float, generator: torch.Generator
) -> Tensor:
    """The loss: minus the ELBO (its KL term weighted), or minus the IWAE bound (Burda et al., 2016). A scalar, nats."""
    posterior = vae.posterior(x)
    if importance_samples == 1:
        reconstruction, kl = elbo_terms(vae, x, posterior, generator)
        return -(reconstruction - kl_weight * kl).mean()
    return -iwae_bound(vae, x, posterior, importance_samples, generator).mean()


def elbo_terms(vae: VAE, x: Tensor, posterior: DiagonalNormal, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """E_q[log p(x | z)] from one draw, and KL(q || p), in closed form if there is one: shapes (B,), nats."""
    z = posterior.sample(normal_like(posterior.mean, generator))
    reconstruction = vae.likelihood.log_prob(vae.decoder(z), x).sum(dim=-1)
    return reconstruction, vae.prior.kl(posterior.mean, posterior.std, z)


def iwae_bound(vae: VAE, x: Tensor, posterior: DiagonalNormal, num_samples: int, generator: torch.Generator) -> Tensor:
    """Log (1/S) sum_s p(x, z_s) / q(z_s | x), shape (B,), nats; in float32, for gradients only."""
    noise = normal_like(posterior.mean.expand(num_samples, -1, -1), generator)
    z = posterior.sample(noise)  # (S, B, L)
    log_posterior = (-0.5 * noise.square() - posterior.std.log() - 0.5 * LOG_2PI).sum(dim=-1)
    log_weights = vae.likelihood.log_prob(vae.decoder(z), x).sum(dim=-1) + vae.prior.log_prob(z) - log_posterior
    return log_weights.logsumexp(dim=0) - math.log(num_samples)


@torch.no_grad()
def evaluate(vae: VAE, rows: Tensor, importance_samples: int = 1, seed: int = 0, block: int = 500) -> Bound:
    """The trained bound (with beta = 1), the ELBO's terms and the active latents on `rows`, shape (N, D)."""
    generator = torch.Generator(rows.device).manual_seed(seed)
    bounds, reconstructions, kls, means = [], [], [], []
    for x in rows.split(block):
        posterior = vae.posterior(x)
        reconstruction, kl = elbo_terms(vae, x, posterior, generator)
        bounds.append(
            reconstruction - kl
            if importance_samples == 1
            else iwae_bound(vae, x, posterior, importance_samples, generator)
        )
        reconstructions.append(reconstruction)
        kls.append(kl)
        means.append(posterior.mean)
    bound, expected, divergence = (torch.cat(parts).double().mean().item() for parts in (bounds, reconstructions, kls))
    spread = torch.cat(means).var(dim=0, unbiased=False)
    return Bound(bound, expected, divergence, int((spread > ACTIVE_VARIANCE).sum()))


def objective(bound: Bound, beta: float) -> float:
    """What a fit maximises, on validation rows: the bound or, with beta, the ELBO with its KL term weighted."""
    return bound.bound if beta == 1.0 else bound.reconstruction - beta * bound.kl
