"""Search starts: latents kept with the model, whose decoder outputs are computed once.

log p(x, z) at all of them costs a row about one matrix product. It shows where in latent space a row could come from,
independently of the encoder, and so where to start searching for modes. With few latents a posterior often has several
separate modes, of which the encoder sees only one; for a row that does not belong, the encoder's guess may be anywhere.
"""

from __future__ import annotations

from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from service.density.laplace import FEW_LATENTS
from service.density.quasirandom import normal_quantile
from service.vae.determinism import product
from service.vae.network import VAE

MANY_LATENTS = 10
NEIGHBOURS = 10
WIDER = 2.0  # scale of the points beyond the prior, where rows that do not belong end up
SEPARATION = 0.5  # least root mean square distance between two starts of a row, in standard deviations of the prior


def build(vae: VAE, x: np.ndarray) -> np.ndarray:
    """Search starts, shape (K, L), float32: encodings of rows x, shape (N, D), prior points, and wider prior points.

    A space of few latents is covered densely. One of many cannot be, and more starts would find no more modes.
    """
    latents = vae.architecture.latents
    size = 4096 if latents <= FEW_LATENTS else 1024 if latents <= MANY_LATENTS else 512
    encodings = x[: size // 4]
    with torch.inference_mode():
        rows = torch.from_numpy(np.ascontiguousarray(encodings)).to(vae.device, vae.dtype)
        mean = vae.posterior(rows).mean.double().cpu() if len(rows) else torch.zeros((0, latents), dtype=torch.float64)
    count = size - len(mean)
    points = torch.quasirandom.SobolEngine(latents + 1, scramble=True, seed=0).draw(count, dtype=torch.float64)
    prior = vae.prior.placed(normal_quantile(points[:, :latents].clamp(1e-9, 1 - 1e-9)), points[:, latents])
    prior[count // 2 :] *= WIDER
    starts: np.ndarray = torch.cat([mean, prior]).numpy().astype(np.float32)
    return starts


class SearchStarts:
    """Search starts, shape (K, L), with everything about them that does not depend on a row."""

    def __init__(self, vae: VAE, latents: np.ndarray) -> None:
        self.decoder, self.likelihood, self.prior = vae.decoder, vae.likelihood, vae.prior
        self.sufficient_statistics = vae.likelihood.sufficient_statistics
        with torch.inference_mode():
            self.latents = torch.from_numpy(latents).to(vae.device, vae.dtype)
            is_dense = vae.architecture.latents <= FEW_LATENTS and len(latents) > NEIGHBOURS
            self.neighbours = nearest_indices(self.latents, NEIGHBOURS) if is_dense else None

    @cached_property
    def linear(self) -> tuple[Tensor, Tensor]:
        """Slopes, (K, T), and offsets, (K,), of log p(x, z_k); with many latents only a wide search asks for them."""
        with torch.inference_mode():
            output = torch.cat([self.decoder(part) for part in self.latents.split(256)])  # (K, D)
            slope, offset = self.likelihood.linear_in_statistics(output)
            return slope, offset + self.prior.log_prob(self.latents.double())

    def __len__(self) -> int:
        return len(self.latents)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z_k) for rows x, shape (B, D), up to a constant for each row: shape (B, K), float64, nats."""
        slope, offset = self.linear
        return (product(self.sufficient_statistics(x), slope).double() + offset).nan_to_num(-1e300, -1e300, -1e300)

    def likeliest(self, x: Tensor, count: int) -> Tensor:
        """The best starts of each row, well separated: shape (B, count, L).

        Few latents are covered densely: a start that beats its neighbours is next to a mode. With many latents, starts have
        no near neighbours, and a least distance between starts is used instead.
        """
        count = min(count, len(self))
        if self.neighbours is not None:
            score = self.log_joint(x).float()
            is_peak = score >= score[:, self.neighbours].amax(dim=-1)
            peaks = score.masked_fill(~is_peak, -1e30).topk(count, dim=-1).indices  # (B, count)
            return self.latents[peaks]
        return self.spread_starts(x, count)

    def spread_starts(self, x: Tensor, count: int) -> Tensor:
        """The best starts of each row, none within SEPARATION of a better one: shape (B, count, L)."""
        score = self.log_joint(x)  # (B, K)
        chosen = [self.latents[score.argmax(dim=-1)]]
        while len(chosen) < count:
            distance = (self.latents - chosen[-1][:, None]).square().mean(dim=-1)  # (B, K)
            score = score.masked_fill(distance < SEPARATION**2, -1e300)
            chosen.append(self.latents[score.argmax(dim=-1)])
        return torch.stack(chosen, dim=1)


def nearest_indices(latents: Tensor, count: int) -> Tensor:
    """Indices of each latent's nearest neighbours, shape (K, count)."""
    parts = [torch.cdist(part, latents).topk(count + 1, largest=False).indices for part in latents.split(512)]
    return torch.cat(parts)[:, 1:]


def lookup_evaluations(vae: VAE, starts: int) -> float:
    """Cost per row of log p(x, z) at all starts, in decoder evaluations: the ratio of multiplications."""
    return starts * vae.architecture.features / vae.evaluation_size


STARTS: WeakKeyDictionary[VAE, tuple[bytes, SearchStarts]] = WeakKeyDictionary()


def starts_of(vae: VAE, latents: np.ndarray) -> SearchStarts:
    """The search starts of a network whose weights no longer change; cached."""
    key = latents.tobytes()
    if vae not in STARTS or STARTS[vae][0] != key or STARTS[vae][1].latents.device != vae.device:
        STARTS[vae] = (key, SearchStarts(vae, latents))
    return STARTS[vae][1]
