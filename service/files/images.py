"""Encoded images to pixels and back."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from service.errors import InputError, MalformedError, TooLargeError

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF")


@dataclass(frozen=True, slots=True)
class GreyImage:
    """Pixels of shape (H, W), uint8; `converted` says that the image had colours or transparency."""

    pixels: np.ndarray
    converted: bool


def read_image(
    content: bytes | bytearray,
    shape: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> GreyImage:
    """Decode an image to grey levels. The size in its header is checked before any pixel is decoded.

    Raises:
        MalformedError: not an image in one of these formats, or a truncated one.
        TooLargeError: more than `max_pixels`.
        InputError: not of `shape` (height, width).
    """
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        width, height = image.size
        if width * height > max_pixels:
            raise TooLargeError(f"the image has {width} x {height} pixels, at most {max_pixels:,} are accepted")
        if shape is not None and (height, width) != shape:
            raise InputError(f"the image is {width} x {height}, the model reads {shape[1]} x {shape[0]}")
        image.load()
        return GreyImage(grey_pixels(image), image.mode not in ("L", "1", "I;16", "I"))
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"image dimensions exceed the limit of {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise MalformedError("unknown image format") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError) as error:
        raise MalformedError("the image is damaged or truncated") from error


def grey_pixels(image: Image.Image) -> np.ndarray:
    """Grey levels 0..255, shape (H, W); 16-bit levels are scaled, transparency is composited on black."""
    if image.mode.startswith("I"):
        return (np.asarray(image, dtype=np.float64) / 257.0).clip(0, 255).round().astype(np.uint8)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    return np.asarray(image.convert("L"), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Grey levels, shape (H, W), as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def grid(images: np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Tile images, shape (N, H, W), into one with `columns` per row (default: square), separated by black."""
    count, height, width = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    lines = math.ceil(count / columns)
    canvas = np.zeros((lines * (height + gap) - gap, columns * (width + gap) - gap))
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas
