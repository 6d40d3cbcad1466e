"""Folders of images: every file is read, or told of.

Hidden files and folders, which tools leave behind, never count.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.data.image_reading import USUAL_IMAGES, ImageReading, Mode
from service.errors import DataError, VouchError
from service.files.images import FORMATS, SUFFIXES, Decoded, decode, opened

MOST_TOLD, FEW_TOLD = 20, 4
LEFT_BEHIND = {"__macosx", "thumbs.db", "desktop.ini"}  # by other systems, beside what is hidden


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How images are read: for training, or as a version was trained.

    Attributes:
        size: height and width that all become; None: they have one size.
        mode: grey levels or colours; None: what the files are.
        skip_bad: whether files that cannot be read are left out and told of; otherwise they are an error.
        learns_range: whether the range of floats is that of these images; otherwise it is the reading's.
    """

    size: tuple[int, int] | None = None
    mode: Mode | None = None
    reading: ImageReading = USUAL_IMAGES
    skip_bad: bool = False
    learns_range: bool = True


AS_THEY_ARE = ImageOptions()


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The images of a folder, sorted by path: pixels of shape (N, H, W) or (N, H, W, 3), uint8, and the files' names.

    `notes` say what was left out, and what decoding changed.
    """

    pixels: np.ndarray
    names: tuple[str, ...]
    reading: ImageReading
    notes: tuple[str, ...] = ()


def read_folder(root: Path, options: ImageOptions = AS_THEY_ARE) -> ImageFolder:
    """All images of a folder, or of one file.

    Raises:
        DataError: there is none; some cannot be read, or differ in size, and all of these are listed.
    """
    files, others = images_in(root)
    if not files:
        raise DataError(f"{root}: the folder holds no images; expected {', '.join(FORMATS)}")
    reading = replace_mode(options.reading, options.mode or "colour")
    if options.learns_range:
        reading = reading.model_copy(update={"floats": float_range(files)})
    found: dict[str, Decoded] = {}
    bad: dict[str, str] = {}
    for name, file in files.items():
        if not name.isprintable():
            bad["".join(one if one.isprintable() else "?" for one in name)] = (
                "its name has characters that cannot be printed"
            )
            continue
        try:
            found[name] = decode(file.read_bytes(), reading, options.size)
        except VouchError as error:
            bad[name] = str(error)
        except OSError as error:
            bad[name] = error.strerror or type(error).__name__
    if not found and root.is_file():
        raise DataError(f"{root}: {next(iter(bad.values()))}")
    if not found:
        raise DataError(f"{root}: none of {len(files):,} images can be read: {told(listed(bad), FEW_TOLD)}")
    if bad and not options.skip_bad:
        count = f"{len(bad):,} of {len(files):,}"
        raise DataError(f"{root}: {count} images cannot be read (--skip-bad passes over them): {told(listed(bad))}")
    check_one_size(root, found)
    mode, notes = options.mode, list[str]()
    if mode is None:
        mode, notes = mode_of(found)
    pixels = np.stack([one.pixels for one in found.values()])
    if mode == "grey" and pixels.ndim == 4:
        pixels = pixels[..., 0]  # all channels are equal
    notes += [f"{count:,} images: {note}" for note, count in decoding_notes(found.values()).items()]
    notes += [f"skipped, cannot be read: {one}" for one in listed(bad)]
    notes += others
    return ImageFolder(pixels, tuple(found), replace_mode(reading, mode), tuple(notes))


def replace_mode(reading: ImageReading, mode: Mode) -> ImageReading:
    return reading.model_copy(update={"mode": mode})


def images_in(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The image files of a folder by their path in it, or the only one; and what else there is, in words."""
    if root.is_file():
        return {root.name: root}, []
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    notes: list[str] = []

    def on_error(error: OSError) -> None:
        notes.append(f"skipped, cannot be opened: a folder: {error.strerror}")

    paths = [
        Path(folder) / name for folder, inner, outer in os.walk(root, onerror=on_error) for name in (*inner, *outer)
    ]
    for file in sorted(paths):
        path = file.relative_to(root)
        if any(part.startswith(".") or part.lower() in LEFT_BEHIND for part in path.parts):
            continue
        if not file.is_file():
            if file.is_symlink():
                others["links to folders, or to nothing"] += 1
            continue
        if file.suffix.lower() in SUFFIXES:
            files[path.as_posix()] = file
        else:
            others[f"files with {ascii(file.suffix.lower())[1:-1] or 'no suffix'}"] += 1
    return files, [*notes, *(f"skipped, no images: {count:,} {what}" for what, count in sorted(others.items()))]


def float_range(files: dict[str, Path]) -> tuple[float, float] | None:
    """The least and the greatest value of those images that hold floats; None if none does."""
    ends: list[float] = []
    for file in files.values():
        with contextlib.suppress(Exception):  # which is told when it is read
            image = opened(file.read_bytes())
            if image.mode == "F":
                values = np.asarray(image, dtype=np.float64)
                ends += [float(np.nanmin(values)), float(np.nanmax(values))]
    finite = [end for end in ends if np.isfinite(end)]
    return (min(finite), max(finite)) if finite else None


def check_one_size(root: Path, found: dict[str, Decoded]) -> None:
    """Raise if images differ in size; says which sizes there are, and of which files."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for name, one in found.items():
        sizes.setdefault(one.pixels.shape[:2], []).append(name)
    if len(sizes) == 1:
        return
    most = sorted(sizes.items(), key=lambda item: -len(item[1]))
    lines = [f"{width} x {height}: {len(names):,} images, such as {names[0]}" for (height, width), names in most]
    raise DataError(
        f"{root}: images of {len(sizes):,} sizes; choose one by --size, such as --size 64: {told(lines, FEW_TOLD)}"
    )


def mode_of(found: dict[str, Decoded]) -> tuple[Mode, list[str]]:
    """Whether images are read as colours or grey levels, and a mixture in words."""
    colour = sum(one.is_colour for one in found.values())
    if not colour:
        return "grey", []
    if colour == len(found):
        return "colour", []
    return "colour", [f"{colour:,} of {len(found):,} images have colours: all are read as colours (--grey: none)"]


def decoding_notes(found: Iterable[Decoded]) -> Counter[str]:
    """What decoding did to images, each with how many of them; sizes they had are not told apart."""
    counts: Counter[str] = Counter()
    for one in found:
        counts.update("resized" if note.startswith("resized") else note for note in one.notes)
    return counts


def listed(bad: Mapping[str, str]) -> list[str]:
    """What is wrong with each file, in words."""
    return [f"{name}: {why}" for name, why in bad.items()]


def told(lines: Sequence[str], most: int = MOST_TOLD) -> str:
    """Entries of an error's list, the first of many."""
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return "; ".join((*lines[:most], *more))
