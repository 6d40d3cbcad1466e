"""A survey of a small latent space: where in it a row could come from, wherever its encoder looks.

With few latents a posterior often has several separate modes, of which the encoder's normal sees one; weights cannot tell
of a mode that no draw visited. Some thousands of points spread over the prior can: their decoder outputs are computed
once, so that log p(x, z) of all of them costs a row about as much as a few decoder evaluations.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from service.vae.likelihoods import LOG_2PI, Bernoulli
from service.vae.network import VAE

MAX_LATENTS = 3  # beyond them the points are too sparse to find a mode
POINTS = 4096
CENTRES = 64  # points around which a row's draws are made
TEMPERATURE = 2.0  # flattens the points' posterior, so that lesser modes get draws, too
STRETCH = 1.2  # of the points beyond the prior


class Survey:
    """Points over the prior, shape (K, L), with the decoder's outputs, shape (K, D)."""

    def __init__(self, vae: VAE) -> None:
        latents = vae.architecture.latents
        sobol = torch.quasirandom.SobolEngine(latents, scramble=True, seed=0).draw(POINTS, dtype=torch.float64)
        normal = math.sqrt(2.0) * torch.erfinv(2.0 * sobol.clamp(1e-9, 1 - 1e-9) - 1.0)
        # In the sequence's own order, evenly spaced ranks would fall into step with it (`kernels`).
        normal = normal[torch.randperm(POINTS, generator=torch.Generator().manual_seed(0))]
        points = STRETCH * normal
        self.likelihood = vae.likelihood  # not the network: the cache below would never let go of it
        self.points = points.to(vae.device, vae.dtype)
        self.log_prior = vae.prior().log_prob(self.points)  # (K,)
        # The distance between neighbours: the points' density is that of a normal STRETCH wide.
        log_density = -0.5 * normal.square().sum(dim=-1) - latents * (0.5 * LOG_2PI + math.log(STRETCH))
        self.spacing = (-(math.log(POINTS) + log_density) / latents).exp().clamp(max=1.0).to(vae.device)  # (K,)
        self.output = vae.decoder(self.points)
        self.softplus = F.softplus(self.output).sum(dim=-1) if isinstance(vae.likelihood, Bernoulli) else None

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z_k) for rows of shape (B, D): shape (B, K), float64, nats."""
        if self.softplus is not None:
            given = (x @ self.output.mT - self.softplus).double()
        else:
            given = torch.stack([self.likelihood.log_prob(self.output, row).sum(-1, dtype=torch.float64) for row in x])
        return given.nan_to_num(-1e300, -1e300, -1e300) + self.log_prior

    def kernels(self, x: Tensor, draws: int) -> KernelMixture:
        """Normals around points that stand for each row's posterior, shape (B, D), that share out so many draws evenly.

        The points are resampled systematically by their flattened posterior. Where it is broad, a few of many likely
        points stand for all, and their normals are widened to reach each other.
        """
        probability = (self.log_joint(x) / TEMPERATURE).softmax(dim=-1)  # (B, K)
        ranks = (torch.arange(CENTRES, dtype=probability.dtype, device=x.device) + 0.5) / CENTRES
        cumulative = probability.cumsum(dim=-1)
        chosen = torch.searchsorted(cumulative, ranks.expand(len(x), CENTRES).contiguous()).clamp(
            max=POINTS - 1
        )  # (B, J)
        perplexity = 1.0 / probability.square().sum(dim=-1, keepdim=True)  # how many points are likely
        wider = (perplexity / CENTRES).clamp(min=1.0) ** (1.0 / self.points.shape[-1])
        widths = (self.spacing[chosen] * wider).clamp(max=1.0)
        ends = (torch.arange(1, CENTRES + 1, dtype=widths.dtype, device=x.device) * draws / CENTRES + 0.5).floor()
        return KernelMixture(self.points[chosen], widths, ends.clamp(max=draws).expand(len(x), CENTRES).contiguous())


class KernelMixture:
    """A mixture of round normals for each row, with the numbers of draws as its shares.

    Centres have shape (B, J, L), widths (B, J); `ends` (B, J) are the cumulative numbers of draws.
    """

    def __init__(self, centres: Tensor, widths: Tensor, ends: Tensor) -> None:
        self.centres = centres
        self.widths = widths
        self.ends = ends

    def sample(self, noise: Tensor) -> Tensor:
        """Each kernel's own number of draws, one kernel after the other, shape (S, B, L)."""
        samples, rows, _ = noise.shape
        draw = torch.arange(samples, device=noise.device, dtype=self.ends.dtype).expand(rows, samples)
        kernel = torch.searchsorted(self.ends, draw.contiguous(), right=True).T  # (S, B)
        row = torch.arange(rows, device=noise.device).expand(samples, rows)
        return self.centres[row, kernel] + self.widths[row, kernel, None].to(noise.dtype) * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log density of z, shape (S, B, L): shape (S, B), float64."""
        counts = self.ends.diff(dim=-1, prepend=torch.zeros_like(self.ends[:, :1]))
        log_share = (counts / self.ends[:, -1:]).log()  # (B, J), -inf where a kernel makes no draw
        distance = (z.double()[:, :, None] - self.centres.double()).square().sum(dim=-1)  # (S, B, J)
        latents = z.shape[-1]
        log_kernel = -0.5 * distance / self.widths.square() - latents * (self.widths.log() + 0.5 * LOG_2PI)
        return (log_share + log_kernel).logsumexp(dim=-1)

    def select(self, rows: slice) -> KernelMixture:
        """The same for some of the rows."""
        return KernelMixture(self.centres[rows], self.widths[rows], self.ends[rows])


SURVEYS: WeakKeyDictionary[VAE, Survey] = WeakKeyDictionary()


def survey_of(vae: VAE) -> Survey:
    """The survey of a network that no longer changes; made once."""
    if vae not in SURVEYS:
        SURVEYS[vae] = Survey(vae)
    return SURVEYS[vae]
