"""Encoded images to pixels and back.

What a model reads of an image is told by an `ImageReading`, which its card keeps: training and serving decode alike. Only
formats of the list are opened, none of them by another program, and no pixel is decoded before the size is known.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from service.data.image_reading import USUAL_IMAGES, ImageReading
from service.errors import InputError, MalformedError, TooLargeError, VouchError

MAX_PIXELS = 50_000_000
# Pillow's name of each format, the suffixes of its files, and its media types.
FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "PNG": ((".png",), ("image/png",)),
    "JPEG": ((".jpg", ".jpeg", ".jpe", ".jfif"), ("image/jpeg",)),
    "WEBP": ((".webp",), ("image/webp",)),
    "GIF": ((".gif",), ("image/gif",)),
    "BMP": ((".bmp", ".dib"), ("image/bmp",)),
    "TIFF": ((".tif", ".tiff"), ("image/tiff",)),
    "PPM": ((".ppm", ".pgm", ".pbm", ".pnm"), ("image/x-portable-anymap",)),
    **({"AVIF": ((".avif",), ("image/avif",))} if features.check("avif") else {}),
}
SUFFIXES = frozenset(suffix for suffixes, _ in FORMATS.values() for suffix in suffixes)
# AVIF's decoder cannot be bounded: its container may lie about the size of what is in it. So strangers may not send it.
FROM_STRANGERS = tuple(name for name in FORMATS if name != "AVIF")
MEDIA_TYPES = {kind: name for name in FROM_STRANGERS for kind in FORMATS[name][1]}
RESAMPLING = Image.Resampling.LANCZOS
WHITE = 255.0
DEEP = 65_535.0  # white of 16 bits
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 100  # of JPEG: each scan may cost as much as a whole image
TILE_SIZE = (322, 323)  # TIFF's tags
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels of shape (H, W) or (H, W, 3), uint8, and what decoding did to the image, in words.

    `is_colour` says that the file's pixels had colours, whatever became of them.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    is_colour: bool = False


def decode(
    content: bytes | bytearray,
    reading: ImageReading = USUAL_IMAGES,
    shape: Sequence[int] | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = tuple(FORMATS),
) -> Decoded:
    """Decode an image; its orientation is that of its EXIF entry.

    Args:
        shape: height and width of the result, and perhaps channels; None: those of the image.

    Raises:
        MalformedError: not an image in one of these formats, or a damaged one.
        TooLargeError: more than `max_pixels`.
        InputError: of another size than `shape`, and the reading does not change sizes; of floats, without a range.
    """
    try:
        image = opened(content, max_pixels, formats)
        size = None if shape is None else (shape[1], shape[0])
        if size is not None and size not in (image.size, image.size[::-1]):
            check_fit(image.size, size, reading)  # before any pixel is decoded
        notes = ["the first of several frames was read"] if getattr(image, "is_animated", False) else []
        image.load()
        turned = upright(image)
        check_fit(turned.size, size, reading)
        plain, more = flattened(turned, reading)
        is_colour = plain.mode == "RGB" and has_colour(plain)
        if is_colour and reading.mode == "grey":
            more.append("colours were ignored: grey levels were read")
        plain = plain.convert("RGB" if reading.mode == "colour" else "L")
        if size is not None and plain.size != size:
            more.append(f"resized from {plain.width} x {plain.height}")
            plain = fitted(plain, size, reading)
        return Decoded(np.asarray(plain, dtype=np.uint8), (*notes, *more), is_colour)
    except VouchError:
        raise
    except Exception as error:  # a damaged image can make its decoder raise anything
        raise MalformedError("the image is damaged or truncated: send the whole file") from error


def opened(
    content: bytes | bytearray, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = tuple(FORMATS)
) -> Image.Image:
    """An image whose pixels have not been decoded, and are few enough to be.

    Raises:
        MalformedError: not an image in one of these formats, or a damaged one.
        TooLargeError: more than `max_pixels`, or more work than so many are.
    """
    try:
        check_webp_size(content, max_pixels)
        image = Image.open(io.BytesIO(content), formats=tuple(formats))
        check_size(image.size, max_pixels)
        if image.format == "TIFF":
            check_tiles(image, max_pixels)
        if image.format in ("JPEG", "MPO") and bytes(content).count(START_OF_SCAN) > MOST_SCANS:
            raise TooLargeError(f"the image has more than {MOST_SCANS} scans: send it as PNG")
        return image
    except VouchError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"image dimensions exceed the limit of {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise MalformedError(f"unknown image format; expected one of {', '.join(formats)}") from error
    except Exception as error:  # likewise
        raise MalformedError("the image is damaged or truncated: send the whole file") from error


def check_tiles(image: Image.Image, max_pixels: int) -> None:
    """Raise if a tile of a TIFF image claims more pixels than are accepted: it is decoded whole."""
    tags = getattr(image, "tag_v2", {})
    width, height = (int(tags.get(tag, 0) or 0) for tag in TILE_SIZE)
    if width * height > max_pixels:
        raise TooLargeError(f"the image has tiles of {width} x {height} pixels, at most {max_pixels:,} are accepted")


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF entry says; other entries, however odd, do not matter."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # metadata of any kind of damage cost no image
        turn = None
    return image if turn is None else image.transpose(turn)


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise if an image has too many pixels, or none."""
    width, height = size
    if width * height > max_pixels:
        raise TooLargeError(f"the image has {width} x {height} pixels, at most {max_pixels:,} are accepted")
    if not width * height:
        raise MalformedError("the image has no pixels: send one that has")


def check_fit(found: tuple[int, int], size: tuple[int, int] | None, reading: ImageReading) -> None:
    """Raise if an image has another size, (width, height), than the model reads, and the reading does not change sizes."""
    if size is not None and found != size and reading.fit == "exact":
        raise InputError(
            f"the image is {found[0]} x {found[1]}, the model reads {size[0]} x {size[1]}; with --size and --fit, training "
            "makes a model of other sizes"
        )


def check_webp_size(content: bytes | bytearray, max_pixels: int) -> None:
    """Raise if a WebP image claims too many pixels: its decoder reserves memory for all of them when it is opened."""
    head = bytes(content[:30])
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return
    if head[12:16] == b"VP8X":
        size = 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        size = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = struct.unpack("<HH", head[26:30])
        size = width & 0x3FFF, height & 0x3FFF
    check_size(size, max_pixels)


def flattened(image: Image.Image, reading: ImageReading) -> tuple[Image.Image, list[str]]:
    """An image of 8-bit grey levels or colours without transparency, and what was done to it, in words."""
    if image.mode == "F":
        if reading.floats is None:
            raise InputError("the image has floats for pixels, and the model was trained on none: send 8 or 16 bits")
        low, high = reading.floats
        levels = (np.asarray(image, dtype=np.float64) - low) / max(high - low, 1e-30)
        return grey_image(WHITE * np.nan_to_num(levels)), []
    if image.mode.startswith("I"):
        return grey_image(np.asarray(image, dtype=np.float64) * (WHITE / DEEP)), []
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layers = image.convert("RGBA")
        is_opaque = bool((np.asarray(layers)[..., 3] == WHITE).all())
        ground = Image.new("RGBA", image.size, (*reading.background, 255))
        red, green, blue = reading.background
        note = f"transparent pixels were put on a ground of {red},{green},{blue}"
        return Image.alpha_composite(ground, layers).convert("RGB"), [] if is_opaque else [note]
    return (image.convert("L") if image.mode in ("L", "1") else image.convert("RGB")), []


def grey_image(levels: np.ndarray) -> Image.Image:
    """Grey levels, shape (H, W), as an image."""
    return Image.fromarray(np.rint(levels.clip(0.0, WHITE)).astype(np.uint8))


def has_colour(image: Image.Image) -> bool:
    """Whether the channels of a colour image differ anywhere."""
    pixels = np.asarray(image)
    return bool((pixels != pixels[..., :1]).any())


def fitted(image: Image.Image, size: tuple[int, int], reading: ImageReading) -> Image.Image:
    """An image of another size, (width, height), by the reading's way."""
    if reading.fit == "stretch":
        return image.resize(size, RESAMPLING)
    if reading.fit == "crop":
        return ImageOps.fit(image, size, RESAMPLING)
    inside = ImageOps.contain(image, size, RESAMPLING)
    whole = Image.new("RGB", size, reading.background).convert(image.mode)
    whole.paste(inside, ((size[0] - inside.width) // 2, (size[1] - inside.height) // 2))
    return whole


def png(pixels: np.ndarray) -> bytes:
    """Grey levels, shape (H, W), or colours, (H, W, 3), as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def grid(images: np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Tile images, shape (N, H, W) or (N, H, W, 3), into one with `columns` per row (default: square), on black."""
    count, height, width = images.shape[:3]
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    lines = math.ceil(count / columns)
    canvas = np.zeros((lines * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:]))
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas
