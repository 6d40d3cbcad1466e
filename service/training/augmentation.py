"""Augmentations: what training does to rows before the network sees them.

Small random distortions of images keep a network that is larger than its data from memorising it. They are used only in
the first part of training: the last epochs see unchanged rows, so that the model learns the density of the data and not
of its distortions. Hidden cells teach the encoder to do without any of them. They stay to the end and leave the density
unchanged, since a hidden cell has no term in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from service.vae.likelihoods import uniform_like

MAX_HIDDEN = 0.8  # largest share of a row's cells that is hidden
Interpolated = Literal["keep", "threshold", "draw"]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def random_affine(
    height: int, width: int, interpolated: Interpolated, strength: float = 1.0, channels: int = 1
) -> Augmentation:
    """An augmentation that rotates, scales, shears and shifts images, shape (B, H * W * channels), values in [0, 1].

    Standard deviations at strength 1: 6 degrees, 5 %, 0.1, and 0.5 % of the width. Interpolated pixels are kept for
    grey images, thresholded for images whose black and white came from a threshold, and drawn, with the grey level as
    the probability of white, for images with noisy edges.
    """
    shape = height, width, channels
    return partial(moved, shape=shape, interpolated=interpolated, strength=strength)


def moved(
    x: Tensor, generator: torch.Generator, *, shape: tuple[int, int, int], interpolated: Interpolated, strength: float
) -> Tensor:
    """Apply random affine maps to images of a shape (H, W, C), given as (B, H * W * C)."""
    rows, images = len(x), x.view(len(x), *shape).permute(0, 3, 1, 2)
    angle, stretch_x, stretch_y, shear, *shift = strength * torch.randn(
        (6, rows), generator=generator, device=generator.device
    )
    angle, shear = 0.1 * angle, 0.1 * shear
    matrix = x.new_zeros((rows, 2, 3))
    matrix[:, 0, 0] = (1.0 + 0.05 * stretch_x) * angle.cos()
    matrix[:, 0, 1] = shear - angle.sin()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 1, 1] = (1.0 + 0.05 * stretch_y) * angle.cos()
    matrix[:, :, 2] = 0.01 * torch.stack(shift, dim=1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    grey = F.grid_sample(images, grid, align_corners=False).permute(0, 2, 3, 1).reshape(rows, -1)
    if interpolated == "keep":
        return grey
    if interpolated == "threshold":
        return (grey > 0.5).to(x.dtype)
    return (uniform_like(grey, generator) < grey).to(x.dtype)


def hidden_cells(widths: Sequence[int], share: float) -> Augmentation:
    """An augmentation that hides cells in a share of the rows, shape (B, D'), each at its own random rate.

    Args:
        widths: how many of the D' columns belong together and are hidden at once.
    """
    return partial(hidden, owner=torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)), share=share)


def hidden(x: Tensor, generator: torch.Generator, *, owner: Tensor, share: float) -> Tensor:
    """Hide cells of rows, shape (B, D'); `owner`, (D',), is the table column that each of the D' belongs to."""
    shares = torch.rand((2, len(x), 1), generator=generator, device=generator.device)
    rate = torch.where(shares[0] < share, MAX_HIDDEN * shares[1], 0.0)
    cells = torch.rand((len(x), int(owner.max()) + 1), generator=generator, device=generator.device) < rate
    return x.masked_fill(cells[:, owner.to(cells.device)].to(x.device), torch.nan)
