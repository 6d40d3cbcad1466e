"""Bitwise equal results for a row at any position in a batch.

Libraries compute in SIMD vectors, and round differently for elements that do not fill one: at the end of an array, or
in a row that starts at an unaligned address. Arrays of tiny networks often have such elements; padding them with zeros
to whole vectors makes all elements round alike. Networks of usual sizes need no padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

VECTOR = 16  # float32 numbers in the widest registers
UNROLLED = 4 * VECTOR  # torch's loops take several vectors at a time


def in_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise function to x, padded to whole vectors."""
    missing = -x.numel() % UNROLLED
    if not missing:
        return function(x)
    return function(F.pad(x.reshape(-1), (0, missing)))[: x.numel()].view(x.shape)


def is_alike(weight: Tensor) -> bool:
    """Whether products with a weight (N, K) round alike for all rows without padding."""
    outputs, inputs = weight.shape
    return inputs % VECTOR == 0 or (outputs >= VECTOR and inputs % 4 == 0)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T for x of shape (..., K) and a contiguous weight of shape (N, K).

    With few outputs, or rows of an odd length, both are padded so that every row starts at an aligned address.
    """
    assert weight.is_contiguous()
    if is_alike(weight):
        return x @ weight.mT
    missing = -weight.shape[1] % VECTOR
    return F.pad(x, (0, missing)) @ F.pad(weight, (0, missing)).mT


def gram(x: Tensor, y: Tensor) -> Tensor:
    """x @ y^T for matrices x and y of shape (N, L, D): shape (N, L, L)."""
    missing = -x.shape[-1] % VECTOR
    return F.pad(x, (0, missing)) @ F.pad(y, (0, missing)).mT


def mapped(matrix: Tensor, y: Tensor) -> Tensor:
    """Each row's matrix, shape (B, L, L), times its vectors, shape (S, B, L): shape (S, B, L)."""
    latents = y.shape[-1]
    missing = -latents % VECTOR
    wide = torch.einsum("blk,sbk->sbl", F.pad(matrix, (0, missing, 0, missing)), F.pad(y, (0, missing)))
    return wide[..., :latents]


def by_matrix(function: Callable[..., tuple[Tensor, ...]], *matrices: Tensor) -> tuple[Tensor, ...]:
    """Apply a linear-algebra function to each of N matrices; one at a time if some would start unaligned."""
    if all(matrix[0].numel() % VECTOR == 0 for matrix in matrices):
        return function(*matrices)
    single = [function(*(matrix[at : at + 1].clone() for matrix in matrices)) for at in range(len(matrices[0]))]
    return tuple(torch.cat(parts) for parts in zip(*single, strict=True))
