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
ALIGNED = 4  # rows: products of multiples of these round alike, whatever their number


def in_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise function to x, as one array without gaps, padded to whole vectors."""
    missing = -x.numel() % UNROLLED
    if not missing:
        return function(x.contiguous())
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


def pulled_back(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight for x of shape (..., N) and a contiguous weight of shape (N, K)."""
    if weight.shape[1] >= VECTOR and len(weight) % 4 == 0:
        return x @ weight
    return product(x, weight.mT.contiguous())


def gram(x: Tensor, y: Tensor) -> Tensor:
    """x @ y^T for matrices x and y of shape (N, L, D): shape (N, L, L)."""
    missing = -x.shape[-1] % VECTOR
    return F.pad(x, (0, missing)) @ F.pad(y, (0, missing)).mT


def mapped(matrix: Tensor, y: Tensor) -> Tensor:
    """Each row's matrix, shape (B, L, K), times its vectors, shape (B, S, K), padded to ALIGNED: shape (B, S, L)."""
    vectors = y.shape[1]
    return (F.pad(y, (0, 0, 0, -vectors % ALIGNED)) @ matrix.mT)[:, :vectors]


def principal_axes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, (N, L), and eigenvectors, in columns, of symmetric matrices, (N, L, L)."""
    latents = matrix.shape[-1]
    beyond = 2.0 * matrix.abs().sum(dim=-1).amax(dim=-1) + 1.0  # all eigenvalues, by Gershgorin's theorem: (N,)
    values, vectors = torch.linalg.eigh(enlarged(matrix, beyond))
    return values[:, :latents], vectors[:, :latents, :latents].contiguous()


def solved(factor: Tensor, right: Tensor) -> Tensor:
    """Solutions of linear systems, from the Cholesky factors of their matrices, (N, L, L), and right sides, (N, L)."""
    latents = right.shape[-1]
    wide = F.pad(right, (0, -latents % ALIGNED))
    return torch.cholesky_solve(wide[..., None], enlarged(factor, right.new_ones(len(right))))[:, :latents, 0]


def inverted(factor: Tensor) -> Tensor:
    """Inverses of matrices, (N, L, L), from their Cholesky factors."""
    latents = factor.shape[-1]
    return torch.cholesky_inverse(enlarged(factor, factor.new_ones(len(factor))))[:, :latents, :latents]


def enlarged(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """Matrices, (N, L, L), of which each starts at an aligned address: with further rows and columns, 0 but for a diagonal.

    `diagonal` (N,) is its value in each.
    """
    latents = matrix.shape[-1]
    missing = -latents % ALIGNED
    if not missing:
        return matrix
    further = F.pad(diagonal[:, None].expand(-1, missing), (latents, 0))
    return F.pad(matrix, (0, missing, 0, missing)) + torch.diag_embed(further)


def aligned(index: Tensor, step: int = ALIGNED) -> Tensor:
    """An index of rows, filled up to a multiple of `step` by repeating its last."""
    missing = -len(index) % step
    return torch.cat([index, index[-1:].expand(missing)]) if missing else index
