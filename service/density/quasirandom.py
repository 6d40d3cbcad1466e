"""Scrambled Sobol points for importance sampling: evenly spread, and randomised so that the error can be estimated.

A row's S points are REPLICATES independent scramblings of one sequence: point s is number s // REPLICATES of scrambling
s % REPLICATES, so that more points always continue the same sequences. A scrambling flips the same random bits of every
point (a digital shift). Each point is then uniform, the points stay evenly spread, and different scramblings give
independent estimates (L'Ecuyer and Lemieux, 2002).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

REPLICATES = 16
BITS = 30  # of a Sobol coordinate


@dataclass(frozen=True, slots=True)
class Points:
    """Points of the unit cube, float64: `selector` (S, B) picks a component, `uniform` (S, B, L) makes its draw."""

    selector: Tensor
    uniform: Tensor

    @property
    def normal(self) -> Tensor:
        """`uniform` mapped to standard-normal points, shape (S, B, L)."""
        return normal_quantile(self.uniform)


def normal_quantile(u: Tensor) -> Tensor:
    return math.sqrt(2.0) * torch.erfinv(2.0 * u - 1.0)


def row_points(rows: np.ndarray, seed: int, latents: int, first: int, count: int, device: torch.device) -> Points:
    """Points `first` to `first + count` for each row of the network's input, shape (B, D), seeded by the row itself."""
    assert first % REPLICATES == 0
    assert count % REPLICATES == 0
    generators = [row_generator(row, seed) for row in rows]
    drawn = [g.integers(2**BITS, size=(REPLICATES, latents + 1)) for g in generators]
    shifts = torch.from_numpy(np.stack(drawn, axis=1)).to(device)  # (R, B, L + 1)
    sequence = sobol_sequence(latents + 1, power_of_two(first + count) // REPLICATES).to(device)
    chosen = sequence[first // REPLICATES : (first + count) // REPLICATES]  # (S / R, L + 1)
    shifted = chosen[:, None, None] ^ shifts  # (S / R, R, B, L + 1)
    uniform = (shifted.flatten(0, 1).double() + 0.5) / 2**BITS
    return Points(uniform[..., 0], uniform[..., 1:])


@cache
def sobol_sequence(dimensions: int, length: int) -> Tensor:
    """The first points of a Sobol sequence with a fixed matrix scrambling, as integers of BITS bits."""
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0)
    return (engine.draw(length, dtype=torch.float64) * 2**BITS).long()


def power_of_two(number: int) -> int:
    """The number, rounded up to a power of two."""
    return 1 << max(0, number - 1).bit_length()


def row_generator(row: np.ndarray, seed: int) -> np.random.Generator:
    """A random generator that depends only on the row's content and the seed; -0.0 counts as 0.0."""
    content = (np.ascontiguousarray(row, dtype=np.float32) + np.float32(0.0)).tobytes()
    digest = hashlib.blake2b(content, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))
