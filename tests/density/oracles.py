"""The plain ways, which the fast ones are tested against."""

import torch

from service.density.importance import normalized_weights


def log_weights(vae, x, proposal, points):
    """log p(x | z) + log p(z) - log proposal(z), the plain way: what every faster path is tested against.

    Args:
        x: rows in the network's units, shape (B, D).
        points: points of the unit cube, S for each row, that the proposal turns into z.

    Returns:
        Shape (B, S), float64, nats.
    """
    z = proposal.sample(points).to(vae.dtype)  # (B, S, L)
    log_conditional = vae.likelihood.log_prob(vae.decoder(z), x[:, None]).sum(dim=-1, dtype=torch.float64)
    return log_conditional + vae.prior.log_prob(z.double()) - proposal.log_prob(z)


def elbo(log_weights):
    """The mean log weight, shape (B,), nats: never above `log_likelihood` of the same weights (Jensen)."""
    return log_weights.mean(dim=-1)


def std_error(log_weights):
    """Standard error of `log_likelihood` for independent draws, shape (B,), nats.

    By the delta method: the standard error of the mean weight over the mean weight. It holds where the weights have a
    variance, which `khat` judges.
    """
    samples = log_weights.shape[-1]
    deviations = normalized_weights(log_weights) - 1.0 / samples
    return (deviations.square().sum(dim=-1) * (samples / max(samples - 1, 1))).sqrt()
