"""What thresholds and likelihoods forget of images: size, grey, shades, texture, colours."""

from __future__ import annotations

import math
import zlib

import numpy as np

from service.data.inputs import InputSpec

WHITE = 255.0
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue (Rec. 601)
GRID = 4  # places of a thumbnail along a side
SHADES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SMALLEST = 0.1  # squared levels: smaller differences are rounding


def discarded(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """What a threshold discards of each pixel: how far it is from black or white, whichever it becomes. (B, D), 0 to 1."""
    return np.abs(rows - spec.decode(spec.encode(rows))) / WHITE


def discarded_apart(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """What a threshold discards of pixels whose neighbours all become the same colour, in the mean of all: shape (B,).

    The grey of an edge lies between black and white. What is drawn in grey on a plain ground does not, such as a faint
    letter beside a digit, which the network never sees.
    """
    shape = (-1, *spec.shape)
    black_and_white = spec.encode(rows).reshape(shape) > 0
    colours = [(0, 0)] * (black_and_white.ndim - 3)
    padded = np.pad(black_and_white, ((0, 0), (1, 1), (1, 1), *colours), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    is_plain = (around == black_and_white[..., None, None]).all(axis=(-2, -1))
    apart = np.where(is_plain, discarded(spec, rows).reshape(shape), 0.0)
    return apart.mean(axis=tuple(range(1, apart.ndim)))


def compressed_sizes(images: np.ndarray) -> np.ndarray:
    """Lossless size of each image, (B, H, W) or (B, H, W, 3), 0..255, in bytes: differences along its rows, by zlib."""
    levels = np.rint(images).astype(np.uint8)
    steps = np.diff(levels, axis=2, prepend=np.uint8(0))  # wraps around, as PNG's filter does
    return np.array([len(zlib.compress(image.tobytes(), 6)) for image in steps], dtype=np.float64)


def luminance(images: np.ndarray) -> np.ndarray:
    """Grey levels of images, shape (B, H, W) or (B, H, W, 3): (B, H, W)."""
    return images @ LUMA if images.ndim == 4 else images.astype(np.float64)


def extremes(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The darkest and the brightest place of each image, the mean of three by three pixels, in levels: (B,) both."""
    grey = luminance(images)
    size = min(3, *grey.shape[1:])
    places = np.lib.stride_tricks.sliding_window_view(grey, (size, size), axis=(1, 2)).mean(axis=(3, 4))
    return places.min(axis=(1, 2)), places.max(axis=(1, 2))


def textures(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much neighbours differ in each image, and how much of it is left at twice the distance: (B,) both.

    The first is the log of the mean squared difference of pixels side by side, the second the same less that of pixels two
    apart: what is blurred has little of the first for its second, and noise has much.
    """
    grey = luminance(images)

    def differences(apart: int) -> np.ndarray:
        total, count = np.zeros(len(grey)), 0
        for axis in (1, 2):
            length = grey.shape[axis]
            if length > apart:
                steps = np.take(grey, range(apart, length), axis) - np.take(grey, range(length - apart), axis)
                total, count = total + np.square(steps).sum(axis=(1, 2)), count + math.prod(steps.shape[1:])
        return np.log(np.maximum(total / max(1, count), SMALLEST))

    near, far = differences(1), differences(2)
    return near, near - far


def hues(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much redder than green, and how much yellower than blue each image is, in the mean, in levels: (B,) both."""
    red, green, blue = images.astype(np.float64).mean(axis=(1, 2)).T
    return red - green, 0.5 * (red + green) - blue


# What an image is like as a whole: numbers by which it is compared with those that the network was fitted to.


def thumbnails(images: np.ndarray) -> np.ndarray:
    """The mean of each channel in each place of a grid of four by four: shape (B, 16 * C)."""
    rows, columns = (np.linspace(0, side, min(GRID, side) + 1).round().astype(int) for side in images.shape[1:3])
    sums = np.add.reduceat(images.astype(np.float64), rows[:-1], axis=1)
    sums = np.add.reduceat(sums, columns[:-1], axis=2)
    sizes = np.diff(rows)[:, None] * np.diff(columns)
    means = sums.reshape(*sums.shape[:3], channels_of(images)) / sizes[..., None]
    return means.reshape(len(images), sizes.size * channels_of(images))


def shades(images: np.ndarray) -> np.ndarray:
    """Quantiles of each channel's levels, wherever in the image they are: shape (B, 7 * C)."""
    channels = channels_of(images)
    levels = np.sort(images.reshape(len(images), images.shape[1] * images.shape[2], channels), axis=1)
    places = np.rint(np.array(SHADES) * (levels.shape[1] - 1)).astype(int)
    return levels[:, places].astype(np.float64).reshape(len(images), len(SHADES) * channels)


def looks(images: np.ndarray) -> np.ndarray:
    """Texture, sharpness, extremes, compressed size, contrast, brightness and, with colours, hues: shape (B, 7 or 9)."""
    grey = luminance(images)
    sizes = np.log(np.maximum(compressed_sizes(images), 1.0))
    plain = [*textures(images), *extremes(images), sizes, grey.std(axis=(1, 2)), grey.mean(axis=(1, 2))]
    return np.stack([*plain, *(hues(images) if images.ndim == 4 else ())], axis=1)


def channels_of(images: np.ndarray) -> int:
    """3 for images with colours, shape (B, H, W, 3), and 1 for grey ones, (B, H, W)."""
    return 3 if images.ndim == 4 else 1
