"""Distributions over z, given rows, to draw importance samples from.

A proposal turns standard-normal noise into z and knows its own density. Where the noise comes from (a row's own seed) is
the estimator's business. `DiagonalNormal`, the encoder's posterior, is the simplest one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from service.density.survey import survey_of
from service.vae.network import VAE, DiagonalNormal

ProposalName = Literal["encoder", "defensive", "survey"]
PROPOSALS: tuple[ProposalName, ...] = get_args(ProposalName)


class Proposal(Protocol):
    """A distribution over z for each of B rows."""

    def sample(self, noise: Tensor) -> Tensor:
        """Standard-normal noise, shape (S, B, L), to draws of z of the same shape."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """log density of z, shape (S, B, L): shape (S, B), float64, nats."""
        ...

    def select(self, rows: slice) -> Proposal:
        """The same for some of the rows."""
        ...


class DefensiveMixture:
    """Mostly one proposal, and a share each of others that reach where it does not (Hesterberg, 1995).

    The draws are split by the shares and every weight has the whole mixture in its denominator (the deterministic
    mixture, or balance heuristic, of Veach and Guibas, 1995): where one component misses, the weight stays bounded by
    another's share.
    """

    def __init__(self, components: Sequence[Proposal], shares: list[float]) -> None:
        assert len(components) == len(shares)
        assert math.isclose(sum(shares), 1.0)
        self.components = components
        self.shares = shares

    def counts(self, samples: int) -> list[int]:
        """How many of the draws each component makes; the first takes what rounding leaves."""
        others = [self.count(share, samples) for share in self.shares[1:]]
        return [samples - sum(others), *others]

    @staticmethod
    def count(share: float, samples: int) -> int:
        """A share of the draws as a whole number."""
        return round(share * samples)

    def sample(self, noise: Tensor) -> Tensor:
        """Draws of the components one after the other, shape (S, B, L)."""
        parts = noise.split(self.counts(len(noise)))
        return torch.cat([component.sample(part) for component, part in zip(self.components, parts, strict=True)])

    def log_prob(self, z: Tensor) -> Tensor:
        """log of the mixture's density, with the shares that were really drawn: shape (S, B)."""
        parts = [
            component.log_prob(z) + math.log(count / len(z))
            for component, count in zip(self.components, self.counts(len(z)), strict=True)
            if count
        ]
        return torch.stack(parts).logsumexp(dim=0)

    def select(self, rows: slice) -> DefensiveMixture:
        """The same for some of the rows."""
        return DefensiveMixture([component.select(rows) for component in self.components], self.shares)


def proposal_for(name: ProposalName, vae: VAE, x: Tensor, num_samples: int) -> Proposal:
    """The named proposal for so many draws for each of the rows x, shape (B, D).

    - `encoder`: the encoder's posterior.
    - `defensive`: a tenth of the draws from it at three times its width, and a tenth from the prior.
    - `survey`: half of the draws around points of a survey of the prior that the row is likely to come from, and a tenth
      from the prior; for up to three latents, where an encoder alone misses modes.
    """
    posterior = vae.posterior(x)
    if name == "encoder":
        return posterior
    prior = vae.prior()
    everywhere = DiagonalNormal(prior.mean.expand_as(posterior.mean), prior.std.expand_as(posterior.std))
    if name == "defensive":
        wide = DiagonalNormal(posterior.mean, 3.0 * posterior.std)
        return DefensiveMixture([posterior, wide, everywhere], [0.8, 0.1, 0.1])
    kernels = survey_of(vae).kernels(x, DefensiveMixture.count(0.5, num_samples))
    return DefensiveMixture([posterior, kernels, everywhere], [0.4, 0.5, 0.1])
