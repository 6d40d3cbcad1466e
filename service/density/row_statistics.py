"""Further test statistics from the draws behind a row's score.

Rows that do not belong need not be unlikely (Nalisnick et al., 2019): a blank image is more likely than any digit. But the
same draws also show how badly a row's own posterior reconstructs it, how far that posterior is from the prior, how far the
encoder was off, and how far the encoding is from those of known rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from service.density.block import Block
from service.density.diagnostics import IMPOSSIBLE
from service.density.quasirandom import normal_quantile
from service.vae.determinism import product
from service.vae.network import VAE

OBSERVED_DRAWS = 16  # draws of a row that are evaluated column by column
BOUND_DRAWS = 8  # draws from the encoder for its evidence lower bound
Seen = tuple[np.ndarray, np.ndarray]  # for a row: E[log p(x_j | z)], (D,); divergence, gap and distance, (3,)


@dataclass(frozen=True, slots=True)
class DrawStatistics:
    """Statistics of B rows from their draws.

    `reconstruction` (B, D) is E[log p(x_j | z)] over p(z | x), nats; `divergence` (B,) is KL(p(z | x) || p(z)), nats; `gap`
    (B,) is log p(x) minus the encoder's evidence lower bound, nats; `latent_distance` (B,) is the distance from the row's
    encoding to the nearest encoding of a known row.
    """

    reconstruction: np.ndarray
    divergence: np.ndarray
    gap: np.ndarray
    latent_distance: np.ndarray

    @staticmethod
    def stacked(rows: Sequence[Seen], columns: int) -> DrawStatistics:
        reconstruction = np.array([one for one, _ in rows]).reshape(len(rows), columns)
        return DrawStatistics(reconstruction, *np.array([numbers for _, numbers in rows]).reshape(len(rows), 3).T)

    @staticmethod
    def averaged(members: Sequence[DrawStatistics]) -> DrawStatistics:
        """The mean over an ensemble's networks."""
        arrays = zip(*((w.reconstruction, w.divergence, w.gap, w.latent_distance) for w in members), strict=True)
        return DrawStatistics(*(np.mean(part, axis=0) for part in arrays))


def encodings(vae: VAE, x: np.ndarray) -> Tensor:
    """The encoder's means for rows in the network's units, shape (m, D): (m, L), float64."""
    with torch.inference_mode():
        rows = torch.from_numpy(np.ascontiguousarray(x)).to(vae.device, vae.dtype)
        return torch.cat([vae.posterior(part).mean.double() for part in rows.split(512)])


@dataclass(frozen=True)
class DrawObserver:
    """Observes further statistics of each row's draws.

    Attributes:
        widths: how many network columns each of the D columns takes.
        known: the encoder's means for known rows, shape (m, L).
    """

    widths: Sequence[int]
    known: Tensor
    kept_draws: int = OBSERVED_DRAWS

    def __call__(self, block: Block, chosen: np.ndarray) -> list[Seen]:
        return seen_in(block, self.widths, self.known)


def seen_in(block: Block, widths: Sequence[int], known: Tensor) -> list[Seen]:
    """Statistics of each row of a block whose draws are complete.

    Args:
        widths: how many network columns each of the D columns takes.
        known: encodings of known rows, shape (m, L).
    """
    z, log_weights = block.draws.z[:, :OBSERVED_DRAWS], block.draws.log_weights[:, :OBSERVED_DRAWS]  # (B, S, L), (B, S)
    terms = block.vae.likelihood.log_prob(block.vae.decoder(z), block.given.x[:, None]).double()  # (B, S, D')
    terms = terms.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE)
    mean = (log_weights.softmax(dim=-1)[..., None] * terms).sum(dim=1).cpu().numpy()[: len(block)]
    log_likelihood = block.estimates.log_likelihood - block.log_abs_det
    numbers = np.stack(
        [
            mean.sum(axis=1) - log_likelihood,
            log_likelihood - encoder_bound(block).cpu().numpy()[: len(block)],
            nearest_distance(block.encoder.mean.double(), known).cpu().numpy()[: len(block)],
        ],
        axis=1,
    )
    starts = np.cumsum([0, *widths[:-1]])
    return list(zip(np.add.reduceat(mean, starts, axis=1), numbers, strict=True))


def encoder_bound(block: Block) -> Tensor:
    """The evidence lower bound of each row of a block under the encoder's posterior: shape (B,), nats."""
    points = bound_points(block.latents).to(block.x.device)
    encoder = block.encoder.select((slice(None), None))
    z = encoder.mean.double() + encoder.std.double() * points  # (B, S, L)
    log_conditional = block.given.log_prob(z.to(block.vae.dtype))
    log_joint = log_conditional + block.vae.prior.log_prob(z) - encoder.log_prob(z)
    return log_joint.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).mean(dim=1)


@cache
def bound_points(latents: int) -> Tensor:
    """Standard-normal draws shared by all rows, with mean 0 and variance 1 on each axis: shape (BOUND_DRAWS, L)."""
    engine = torch.quasirandom.SobolEngine(latents, scramble=True, seed=0)
    half = normal_quantile(engine.draw(BOUND_DRAWS // 2, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))
    half = half / half.square().mean(dim=0).sqrt()
    return torch.cat([half, -half])


def nearest_distance(x: Tensor, known: Tensor) -> Tensor:
    """Distance of each of B points, shape (B, L), to the nearest known one, (m, L): shape (B,), in float32 precision."""
    square = x.square().sum(dim=1)[:, None] + known.square().sum(dim=1) - 2.0 * product(x, known)
    return square.amin(dim=1).clamp(min=0.0).sqrt().float().double()
