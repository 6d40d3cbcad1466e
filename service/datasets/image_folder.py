"""A folder of images, divided into valid and invalid ones, with scores by file and a sheet of the strangest."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from service.errors import CalibrationError, DataError
from service.files.image_folders import images_in
from service.files.images import grid, png
from service.scoring.options import ScoreOptions
from service.scoring.pixel_maps import sheet as with_maps
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.scoring.tables import Origin, file_scores_csv
from service.validity.conformal import Discoveries

STRANGEST = 48  # images on the sheet
Placing = Literal["link", "copy"]


@dataclass(frozen=True, slots=True)
class Divided:
    """What became of a folder: how many images are valid and invalid, and what is to be said of them all."""

    valid: int
    invalid: int
    warnings: tuple[str, ...]


def are_images(root: Path) -> bool:
    """Whether a path is a folder that holds images."""
    return root.is_dir() and bool(images_in(root)[0])


def divide(
    scorer: Scorer,
    root: Path,
    out: Path,
    rows: np.ndarray,
    names: tuple[str, ...],
    scores: Scores,
    options: ScoreOptions,
    placing: Placing = "link",
) -> Divided:
    """Put the images of a folder into `out`: valid/, invalid/, scores.csv and strangest.png, all of it or nothing.

    Args:
        rows: the images as the model reads them, shape (N, D), with their names in the folder and their scores.
        placing: `link` makes hard links where the file system can, and copies elsewhere.

    Raises:
        DataError: `out` is there and not empty, or lies in the folder.
    """
    discoveries = None if options.fdr is None else scores.discoveries(options.fdr, options.tail or "low")
    is_valid = scores.valid if discoveries is None else ~discoveries.chosen
    with whole_folder(root, out) as folder:
        for name, valid in zip(names, is_valid.tolist(), strict=True):
            place(root / name, folder / ("valid" if valid else "invalid") / name, placing)
        origin = Origin.of(None, len(scores), files=names)
        (folder / "scores.csv").write_text(file_scores_csv(scores, origin, discoveries), encoding="utf-8")
        (folder / "strangest.png").write_bytes(sheet(scorer, rows, scores, options))
    return Divided(int(is_valid.sum()), int((~is_valid).sum()), warnings_of(scores, discoveries))


def warnings_of(scores: Scores, discoveries: Discoveries | None) -> tuple[str, ...]:
    """What is to be said beside the counts."""
    found = [*scores.warnings(), None if discoveries is None else discoveries.warning()]
    return tuple(filter(None, found))


def sheet(scorer: Scorer, rows: np.ndarray, scores: Scores, options: ScoreOptions) -> bytes:
    """The strangest images as the model reads them, the strangest first, each with its map, as a PNG file.

    Versions that know no typical values of pixels have no maps.
    """
    p_values = scores.low_p_value if scores.rule is None else scores.combined_p_value
    chosen = rows[np.lexsort((scores.log_likelihood, p_values))[:STRANGEST]]
    images, asked = chosen.reshape(-1, *scorer.model.input.shape), replace(options, maps=True, explain=0)
    try:
        scorer.check(asked)
    except CalibrationError:
        return png(grid(images))
    return png(with_maps(images, scorer.pixel_maps(scorer.score_read(chosen, asked), chosen)))


@contextlib.contextmanager
def whole_folder(root: Path, out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end; if anything fails, nothing is left."""
    if out.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{out}: lies in the folder of the images; choose another place")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already; expected a new folder, or an empty one")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.parent / f".{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        for name in ("valid", "invalid"):
            (unfinished / name).mkdir()
        yield unfinished
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def place(source: Path, target: Path, placing: Placing) -> None:
    """Link or copy a file, into a folder that need not be there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if placing == "link":
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), target)
            return
    shutil.copy2(source, target)
