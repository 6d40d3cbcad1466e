"""What the draws that a row's score rests on say beside log p(x): more opinions on whether it belongs.

Rows that do not belong need not be unlikely (Nalisnick et al., 2019): a blank image is likelier than any digit. But the
same draws say how badly a row's own posterior gives it back, how far that posterior is from the prior, how far the encoder
was off, and how far the encoding is from those of known rows.
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
from service.vae.network import VAE

OBSERVED_DRAWS = 16  # of a row's, that are looked at column by column
BOUND_DRAWS = 8  # from the encoder, that tell its bound
Seen = tuple[np.ndarray, np.ndarray]  # of a row: E[log p(x_j | z)], (D,), and divergence, gap and distance, (3,)


@dataclass(frozen=True, slots=True)
class DrawStatistics:
    """What is known of B rows from their draws.

    `given_back` (B, D) is E[log p(x_j | z)] over p(z | x), nats; `divergence` (B,) KL of p(z | x) from p(z), nats; `gap`
    (B,) log p(x) less the encoder's bound on it, nats; `latent_distance` (B,) from the encoding to the nearest of known
    rows.
    """

    given_back: np.ndarray
    divergence: np.ndarray
    gap: np.ndarray
    latent_distance: np.ndarray

    @staticmethod
    def joined(rows: Sequence[Seen], columns: int) -> DrawStatistics:
        """Of what was seen of rows one by one."""
        given_back = np.array([one for one, _ in rows]).reshape(len(rows), columns)
        return DrawStatistics(given_back, *np.array([numbers for _, numbers in rows]).reshape(len(rows), 3).T)

    @staticmethod
    def averaged(members: Sequence[DrawStatistics]) -> DrawStatistics:
        """The mean of what an ensemble's networks say."""
        arrays = zip(*((w.given_back, w.divergence, w.gap, w.latent_distance) for w in members), strict=True)
        return DrawStatistics(*(np.mean(part, axis=0) for part in arrays))


def encodings(vae: VAE, x: np.ndarray) -> Tensor:
    """The encoder's means for rows in the network's units, shape (m, D): (m, L), float64."""
    with torch.inference_mode():
        rows = torch.from_numpy(np.ascontiguousarray(x)).to(vae.device, vae.dtype)
        return torch.cat([vae.posterior(part).mean.double() for part in rows.split(512)])


@dataclass(frozen=True)
class DrawObserver:
    """Observes what each row's draws say beside log p(x).

    Attributes:
        widths: how many of the network's columns each of the D columns is.
        known: the encoder's means for known rows, shape (m, L).
    """

    widths: Sequence[int]
    known: Tensor
    kept_draws: int = OBSERVED_DRAWS

    def __call__(self, block: Block, chosen: np.ndarray) -> list[Seen]:
        """What the draws of each row of a block say."""
        return seen_in(block, self.widths, self.known)


def seen_in(block: Block, widths: Sequence[int], known: Tensor) -> list[Seen]:
    """What is seen of each row of a block that has its draws.

    Args:
        widths: how many of the network's columns each of the D columns is.
        known: encodings of known rows, shape (m, L).
    """
    filled = block.rows + block.rows[-1:] * (block.tiling.rows - len(block.rows))
    z = torch.stack([row.draws.z[:OBSERVED_DRAWS] for row in filled], dim=1)  # (S, B, L)
    log_weights = torch.stack([row.draws.log_weights[:OBSERVED_DRAWS] for row in filled], dim=1)
    terms = block.vae.likelihood.log_prob(block.vae.decoder(z), block.x).double()  # (S, B, D')
    terms = terms.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE)
    mean = (log_weights.softmax(dim=0)[..., None] * terms).sum(dim=0).cpu().numpy()
    log_likelihood = np.array([row.log_likelihood - row.log_abs_det for row in filled])
    numbers = np.stack(
        [
            mean.sum(axis=1) - log_likelihood,
            log_likelihood - encoder_bound(block).cpu().numpy(),
            nearest(block.encoder.mean.double(), known).cpu().numpy(),
        ],
        axis=1,
    )
    starts = np.cumsum([0, *widths[:-1]])
    by_column = np.add.reduceat(mean, starts, axis=1)
    return list(zip(by_column[: len(block.rows)], numbers[: len(block.rows)], strict=True))


def encoder_bound(block: Block) -> Tensor:
    """The evidence lower bound of each row of a block, by the encoder's posterior: shape (B,), nats."""
    points = bound_points(block.latents).to(block.x.device)
    z = block.encoder.mean.double() + block.encoder.std.double() * points[:, None]  # (S, B, L)
    log_conditional = block.given.log_prob(z.to(block.vae.dtype))
    log_joint = log_conditional + block.vae.prior.log_prob(z) - block.encoder.log_prob(z)
    return log_joint.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).mean(dim=0)


@cache
def bound_points(latents: int) -> Tensor:
    """The same standard normal draws for all rows, of mean 0 and variance 1 on each axis: shape (BOUND_DRAWS, L)."""
    engine = torch.quasirandom.SobolEngine(latents, scramble=True, seed=0)
    half = normal_quantile(engine.draw(BOUND_DRAWS // 2, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))
    half = half / half.square().mean(dim=0).sqrt()
    return torch.cat([half, -half])


def nearest(x: Tensor, known: Tensor) -> Tensor:
    """The distance of each of B points, shape (B, L), to the nearest known one, (m, L): shape (B,), float32's digits."""
    square = x.square().sum(dim=1)[:, None] + known.square().sum(dim=1) - 2.0 * x @ known.mT
    return square.amin(dim=1).clamp(min=0.0).sqrt().float().double()
