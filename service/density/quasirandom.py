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
    """Points of the unit cube, float64: `selector` (B, S) picks a component, `uniform` (B, S, L) makes its draw."""

    selector: Tensor
    uniform: Tensor

    @property
    def normal(self) -> Tensor:
        """`uniform` mapped to standard-normal points, shape (B, S, L)."""
        return normal_quantile(self.uniform)


def normal_quantile(u: Tensor) -> Tensor:
    return math.sqrt(2.0) * torch.erfinv(2.0 * u - 1.0)


def row_points(rows: np.ndarray, seed: int, latents: int, first: int, count: int, device: torch.device) -> Points:
    """Points `first` to `first + count` for each row of the network's input, shape (B, D), seeded by the row itself."""
    return shifted_points(row_shifts(rows, seed, latents).to(device), first, count)


def row_shifts(rows: np.ndarray, seed: int, latents: int) -> Tensor:
    """The random bits of each row's scramblings, shape (B, REPLICATES, L + 1), drawn from the row itself.

    They are `row_generator(row, seed).integers(2**BITS, ...)`, from one generator that is set to each row's key in turn.
    """
    generator = np.random.Philox(key=0)
    state = generator.state
    drawn = np.empty((len(rows), REPLICATES * (latents + 1) // 2), dtype="<u8")
    for at, row in enumerate(np.ascontiguousarray(rows, dtype=np.float32)):
        state["state"]["key"] = row_key(row, seed)
        generator.state = state
        drawn[at] = generator.random_raw(drawn.shape[1])
    halves = drawn.view("<u4") >> (32 - BITS)
    return torch.from_numpy(halves.astype(np.int64).reshape(len(rows), REPLICATES, latents + 1))


def shifted_points(shifts: Tensor, first: int, count: int) -> Points:
    """Points `first` to `first + count` of rows with these shifts, shape (B, REPLICATES, L + 1)."""
    assert first % REPLICATES == 0
    assert count % REPLICATES == 0
    length, dimensions = (first + count) // REPLICATES, shifts.shape[-1]
    sequence = sobol_sequence(dimensions, power_of_two(first + count) // REPLICATES).to(shifts.device)
    shifted = sequence[first // REPLICATES : length, None] ^ shifts[:, None]  # (B, S / R, R, L + 1)
    uniform = (shifted.flatten(1, 2).double() + 0.5) / 2**BITS
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
    return np.random.Generator(np.random.Philox(key=row_key(row, seed)))


def row_key(row: np.ndarray, seed: int) -> np.ndarray:
    content = (np.ascontiguousarray(row, dtype=np.float32) + np.float32(0.0)).tobytes()
    digest = hashlib.blake2b(content, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()
    return np.frombuffer(digest, dtype=np.uint64)
