"""A codebook: latents kept with the model, whose decoder outputs are computed once.

log p(x, z) of all of them costs a row about one matrix product. It tells where in the latent space a row could come from,
wherever its encoder looks: a start for the search of modes. With few latents a posterior often has several separate modes,
of which the encoder sees one; with a row that does not belong, the encoder's guess may be anywhere.
"""

from __future__ import annotations

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
WIDER = 2.0  # the points beyond the prior: where rows that do not belong come to lie
SEPARATION = 0.5  # root mean square distance between two starts, in standard deviations of the prior


def build(vae: VAE, x: np.ndarray) -> np.ndarray:
    """Latents for a codebook, shape (K, L), float32: encodings of rows x, shape (N, D), points of the prior and wider ones.

    Few latents are covered densely; many cannot be, and more codes would find no more.
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
    codes: np.ndarray = torch.cat([mean, prior]).numpy().astype(np.float32)
    return codes


class SearchStarts:
    """Latents, shape (K, L), with what is known of them before a row comes."""

    def __init__(self, vae: VAE, latents: np.ndarray) -> None:
        self.sufficient_statistics = vae.likelihood.sufficient_statistics
        with torch.inference_mode():
            self.latents = torch.from_numpy(latents).to(vae.device, vae.dtype)
            output = torch.cat([vae.decoder(part) for part in self.latents.split(256)])  # (K, D)
            self.slope, self.offset = vae.likelihood.linear_in_statistics(output)
            self.offset = self.offset + vae.prior.log_prob(self.latents.double())
            is_dense = vae.architecture.latents <= FEW_LATENTS and len(latents) > NEIGHBOURS
            self.neighbours = nearest(self.latents, NEIGHBOURS) if is_dense else None

    def __len__(self) -> int:
        return len(self.latents)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z_k) up to a number for each row of x, shape (B, D): shape (B, K), float64, nats."""
        return (product(self.sufficient_statistics(x), self.slope).double() + self.offset).nan_to_num(
            -1e300, -1e300, -1e300
        )

    def likeliest(self, x: Tensor, count: int) -> Tensor:
        """Likely codes for each row, each in a place of its own: shape (count, B, L).

        Few latents are covered densely: a code that is likelier than its neighbours is next to a mode. Among many latents
        no code has near neighbours, and a distance has to do.
        """
        count = min(count, len(self))
        if self.neighbours is not None:
            score = self.log_joint(x).float()
            is_peak = score >= score[:, self.neighbours].amax(dim=-1)
            peaks = score.masked_fill(~is_peak, -1e30).topk(count, dim=-1).indices  # (B, count)
            return self.latents[peaks].movedim(1, 0)
        return self.spread_starts(x, count)

    def spread_starts(self, x: Tensor, count: int) -> Tensor:
        """The likeliest codes for each row, none close to a likelier one: shape (count, B, L)."""
        score = self.log_joint(x)  # (B, K)
        chosen = [self.latents[score.argmax(dim=-1)]]
        while len(chosen) < count:
            distance = (self.latents - chosen[-1][:, None]).square().mean(dim=-1)  # (B, K)
            score = score.masked_fill(distance < SEPARATION**2, -1e300)
            chosen.append(self.latents[score.argmax(dim=-1)])
        return torch.stack(chosen)


def nearest(latents: Tensor, count: int) -> Tensor:
    """The indices of each latent's nearest others, shape (K, count)."""
    parts = [torch.cdist(part, latents).topk(count + 1, largest=False).indices for part in latents.split(512)]
    return torch.cat(parts)[:, 1:]


def lookup_evaluations(vae: VAE, codes: int) -> float:
    """What a row's look into the codebook costs in decoder evaluations: its multiplications over theirs."""
    return codes * vae.architecture.features / vae.evaluation_size


STARTS: WeakKeyDictionary[VAE, tuple[bytes, SearchStarts]] = WeakKeyDictionary()


def starts_of(vae: VAE, latents: np.ndarray) -> SearchStarts:
    """The codebook of a network that no longer changes; made once."""
    key = latents.tobytes()
    if vae not in STARTS or STARTS[vae][0] != key or STARTS[vae][1].latents.device != vae.device:
        STARTS[vae] = (key, SearchStarts(vae, latents))
    return STARTS[vae][1]
