"""What a model generates: reconstructions, samples, encodings, decoded latents, and manifolds of two latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.density.block import Draws
from service.density.estimate import Member, weighted_draws
from service.density.quasirandom import row_generator
from service.density.tiling import Tiling, padded
from service.errors import InputError
from service.scoring.expected import Part, expected_rows, numbers
from service.scoring.model import Model, shares_of
from service.scoring.scores import Encodings, Manifold, Reconstructions, Samples
from service.vae.likelihoods import Likelihood
from service.vae.network import VAE
from service.vae.prior import base_points

POSTERIOR_DRAWS = 256  # weighted draws of z for a reconstruction


@dataclass(frozen=True, slots=True)
class RowPart:
    """A network's outputs, shape (S, P), for one row's draws of z, and log weights, (S,), normalised over all networks."""

    likelihood: Likelihood
    output: Tensor
    log_weights: np.ndarray

    def of_one_row(self) -> Part:
        return Part(self.likelihood, self.output[None], np.exp(self.log_weights)[None])


class Generator:
    """A model that reconstructs rows, samples new ones, encodes and decodes.

    Methods take rows of shape (B, D) or (B, *input shape), in any numeric type and in the units of the training data, and
    raise `InputError` for rows that cannot be read.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def latents(self) -> int:
        """L, the number of latents."""
        return self.model.vae.architecture.latents

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Check rows and cast them to the input's precision, shape (B, D)."""
        return self.model.input.rows(np.asarray(rows))

    def reconstruct(self, rows: np.ndarray, draws: int = 0) -> Reconstructions:
        """The mean of E[x | z] over p(z | x), by importance weights, with draws and a log likelihood of each column.

        Draws resample z by the weights and then draw x given z, from the row's own seed. A column's log likelihood is the
        log of the weighted mean of p(x_j | z), whose weights depend on x_j itself.
        """
        spec, rows = self.model.input, self.rows(rows)
        x = spec.encode(rows)
        estimator, members = self.model.estimator, self.model.members
        means, observed, features = [], [], []
        with torch.inference_mode():
            drawing = [weighted_draws(estimator, one, x, POSTERIOR_DRAWS) for one in members]
            done = 0
            for tiles in zip(*drawing, strict=True):
                for index in range(len(tiles[0].z)):
                    parts = self.posterior(tiles, index)
                    means.append(expected_rows(spec, [one.of_one_row() for one in parts])[0])
                    features.append(self.feature_log_likelihood(parts, x[done]))
                    observed.append(spec.decode(self.posterior_draws(parts, x[done], draws)))
                    done += 1
        width = spec.features
        log_abs_det = spec.log_abs_det_jacobian(rows)
        feature = np.reshape(features, (len(x), width)) + log_abs_det
        return Reconstructions(
            mean=np.reshape(means, (len(x), width)),
            draws=np.reshape(observed, (len(x), draws, width)),
            # Masses are at most 1: undo rounding above it. Densities may exceed 1.
            feature_log_likelihood=np.where(log_abs_det == 0.0, np.minimum(feature, 0.0), feature),
        )

    def posterior(self, tiles: Sequence[Draws], index: int) -> list[RowPart]:
        """Each network's outputs and log weights for row `index` of the tiles."""
        log_masses = [numbers(tile.log_weights[index]) - np.log(tile.log_weights.shape[1]) for tile in tiles]
        total = np.logaddexp.reduce(np.concatenate(log_masses))
        return [
            RowPart(one.vae.likelihood, self.decoded(one.vae, tile.z[index]), masses - total)
            for one, tile, masses in zip(self.model.members, tiles, log_masses, strict=True)
        ]

    def feature_log_likelihood(self, parts: Sequence[RowPart], row: np.ndarray) -> np.ndarray:
        """log of the weighted mean of p(x_j | z) for each column of one encoded row, shape (D,)."""
        given = [
            self.model.input.by_column(
                numbers(one.likelihood.log_prob(one.output, torch.from_numpy(row).to(one.output)))
            )
            + one.log_weights[:, None]
            for one in parts
        ]
        return np.logaddexp.reduce(np.concatenate(given), axis=0)

    def posterior_draws(self, parts: Sequence[RowPart], row: np.ndarray, draws: int) -> np.ndarray:
        """Draws of x given z, with z resampled by the weights: shape (draws, D'), in the network's units."""
        seed = int(row_generator(row, self.model.estimator.seed + 1).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        drawn = np.zeros((draws, len(row)))
        if not draws:
            return drawn
        weights = torch.from_numpy(np.exp(np.concatenate([one.log_weights for one in parts])))
        picks = torch.multinomial(weights, draws, replacement=True, generator=generator)
        start = 0
        for one in parts:
            mine = (picks >= start) & (picks < start + len(one.output))
            chosen = (picks[mine] - start).to(one.output.device)
            drawn[mine.numpy()] = numbers(one.likelihood.sample(one.output[chosen], generator))
            start += len(one.output)
        return drawn

    def sample(self, num: int, seed: int, of: str = "observation") -> Samples:
        """Ancestral samples: z from the prior, then x given z (`observation`) or E[x | z] (`mean`).

        An ensemble's networks contribute equal parts, one after another.
        """
        generator = torch.Generator().manual_seed(seed)
        latents, samples = [], []
        with torch.inference_mode():
            for one, part in zip(self.model.members, shares_of(num, len(self.model.members)), strict=True):
                z = one.vae.prior.draw(part, generator)
                output = self.decoded(one.vae, z.to(one.vae.device, one.vae.dtype))
                latents.append(numbers(z))
                samples.append(
                    self.means(one.vae, output)
                    if of == "mean"
                    else self.model.input.decode(numbers(one.vae.likelihood.sample(output, generator)))
                )
        return Samples(seed, np.concatenate(latents), np.concatenate(samples))

    def means(self, vae: VAE, output: Tensor) -> np.ndarray:
        """E[x | z] for decoder outputs, shape (N, P), in the data's units: shape (N, D)."""
        return expected_rows(self.model.input, [Part(vae.likelihood, output[:, None], np.ones((len(output), 1)))])

    def member(self, number: int) -> Member:
        """One of the model's networks.

        Raises:
            InputError: no network has this number.
        """
        members = self.model.members
        if not 0 <= number < len(members):
            raise InputError(f"no member {number}: the model has members 0 to {len(members) - 1}")
        return members[number]

    def encode(self, rows: np.ndarray, draws: int = 0, member: int = 0) -> Encodings:
        """q(z | x) of each row, and draws from it with the row's own seed; for an ensemble, from one of its networks."""
        x = self.model.input.encode(self.rows(rows))
        vae = self.member(member).vae
        tiling = Tiling.of(vae)
        means, stds = [np.zeros((0, self.latents))], [np.zeros((0, self.latents))]
        with torch.inference_mode():
            for start in range(0, len(x), tiling.rows):
                block = x[start : start + tiling.rows]
                posterior = vae.posterior(torch.from_numpy(padded(block, tiling.step)).to(vae.device, vae.dtype))
                means.append(numbers(posterior.mean)[: len(block)])
                stds.append(numbers(posterior.std)[: len(block)])
        mean, std = np.concatenate(means), np.concatenate(stds)
        seed = self.model.estimator.seed + 2  # other noise than the score's
        noise = [row_generator(row, seed).standard_normal((draws, self.latents)) for row in x]
        drawn = mean[:, None] + std[:, None] * np.reshape(noise, (len(x), draws, self.latents))
        return Encodings(mean, std, drawn)

    def decode(self, latents: np.ndarray, member: int = 0) -> np.ndarray:
        """E[x | z] for latents of shape (B, L): shape (B, D); for an ensemble, from one of its networks."""
        vae = self.member(member).vae
        z = np.asarray(latents)
        if z.ndim != 2 or z.shape[1] != self.latents:
            raise InputError(f"the latents have shape {z.shape}, the model reads (rows, {self.latents})")
        with np.errstate(over="ignore", invalid="ignore"):
            z = z.astype(np.float32)
        if not np.isfinite(z).all():
            raise InputError("some latents are not finite float32 numbers: send others")
        with torch.inference_mode():
            output = self.decoded(vae, torch.from_numpy(z).to(vae.device, vae.dtype))
            means = self.means(vae, output)
        if not np.isfinite(means).all():
            raise InputError("some latents overflow the decoder: send smaller ones, such as from -3 to 3")
        return means

    def manifold(self, size: int, axes: tuple[int, int] = (0, 1), member: int = 0) -> Manifold:
        """E[x | z] over a grid of prior quantiles u = (i + 0.5) / size of two latents, the others at their means.

        The first axis runs along a row of the grid, the second from row to row; its quantiles are conditional on the first.
        """
        if self.latents < 2:
            raise InputError("the model has one latent, a manifold needs two")
        if axes[0] == axes[1] or not all(0 <= axis < self.latents for axis in axes):
            raise InputError(f"axes: expected two different latents from 0 to {self.latents - 1}")
        latents = self.member(member).vae.prior.plane(axes, base_points(size)).numpy()
        return Manifold(axes, latents, self.decode(latents, member))

    def decoded(self, vae: VAE, z: Tensor) -> Tensor:
        """A decoder's output for z, shape (N, L), computed in tiles: shape (N, P)."""
        outputs = [z.new_zeros((0, vae.likelihood.sizes(vae.architecture.features)[1]))]
        for index in Tiling.of(vae).tiles(torch.arange(len(z), device=z.device), 1):
            outputs.append(vae.decoder(z[index]))
        return torch.cat(outputs)[: len(z)]  # the last tile may be filled up
