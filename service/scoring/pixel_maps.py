"""Where an image does not belong: each pixel's log-likelihood beside what valid images have there.

It describes, and promises nothing for a single pixel: of a thousand pixels of a valid image some always look strange.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from service.data.inputs import InputSpec
from service.errors import InputError
from service.files.images import grid
from service.scoring.image_statistics import luminance

# Strangeness at which a pixel begins to be coloured, and at which it is so fully. 1 is that of one valid image in twenty.
FAINT, FULL = 1.5, 5.0
MARK = (255.0, 32.0, 0.0)
MOST_MARKED = 0.85  # of a pixel's colour


@dataclass(frozen=True, slots=True)
class PixelMaps:
    """Maps of B images.

    Attributes:
        log_likelihood: E[log p(pixel | z)] over p(z | x), nats, all channels together, (B, H, W); NaN for missing pixels.
        median: the sum of its channels' medians among valid images, (H, W).
        spread: the sum of how far below its median each channel is in one valid image of twenty, at least 1 nat, (H, W).
    """

    log_likelihood: np.ndarray
    median: np.ndarray
    spread: np.ndarray

    @staticmethod
    def of(spec: InputSpec, rows: np.ndarray, by_column: np.ndarray, usual: np.ndarray) -> PixelMaps:
        """Maps of images as rows, shape (B, D).

        Args:
            by_column: E[log p(x_j | z)] of each column, shape (B, D).
            usual: its median and its spread among valid images, shape (2, D) (`service.scoring.statistics.KnownRows`).
        """
        height, width, *_ = spec.shape
        whole = np.where(np.isnan(rows), np.nan, by_column).reshape(len(rows), height, width, -1).sum(axis=3)
        median, spread = usual.reshape(2, height, width, -1).sum(axis=3)
        return PixelMaps(whole, median, spread)

    @staticmethod
    def check(spec: InputSpec) -> None:
        """Raise unless an input has maps.

        Raises:
            InputError: it is a table.
        """
        if spec.kind != "image":
            raise InputError("explain=map: is for images, and this model reads tables; explain=3 names columns")

    @property
    def strangeness(self) -> np.ndarray:
        """How far below the median each pixel is, in spreads, (B, H, W): 0 at the median or above it."""
        return np.maximum(0.0, (self.median - self.log_likelihood) / self.spread)

    def drawn(self, images: np.ndarray) -> np.ndarray:
        """Images, shape (B, H, W) or (B, H, W, 3), in grey, with their strange pixels in red: (B, H, W, 3), uint8."""
        share = np.clip((np.nan_to_num(self.strangeness) - FAINT) / (FULL - FAINT), 0.0, 1.0) * MOST_MARKED
        grey = (1.0 - share) * luminance(np.nan_to_num(images))
        return np.stack([np.rint(grey + share * mark).astype(np.uint8) for mark in MARK], axis=-1)


def sheet(images: np.ndarray, maps: PixelMaps) -> np.ndarray:
    """Images, (B, H, W) or (B, H, W, 3), each beside its map, tiled into one that is about square: (H', W', 3)."""
    return grid(beside(images, maps), 2 * max(1, math.ceil(math.sqrt(len(images) / 2))))


def beside(images: np.ndarray, maps: PixelMaps) -> np.ndarray:
    """Each image, (B, H, W) or (B, H, W, 3), followed by its map: (2 * B, H, W, 3), uint8."""
    shown = np.rint(np.clip(np.nan_to_num(images), 0.0, 255.0)).astype(np.uint8)
    coloured = shown if shown.ndim == 4 else np.repeat(shown[..., None], 3, axis=3)
    return np.stack([coloured, maps.drawn(images)], axis=1).reshape(-1, *coloured.shape[1:])
