"""Draws pictures of a part on a belt under changing light, and of what can be wrong with it.

    python scripts/draw_parts.py parts --number 3000

fills parts/valid with pictures of sound parts, 64 x 64 in colour, and parts/FAULT with a tenth as many of each fault. The
bundled model `parts` was trained on such pictures: no colour photographs with a free licence were at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw

SIZE, FINER = 64, 4  # pixels a side, and how much finer they are drawn
RED, STEEL, WHITE = (176, 42, 38), (168, 172, 178), (236, 236, 230)
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue (Rec. 601)


@dataclass(frozen=True)
class Scene:
    """A part's housing, and how its picture is taken."""

    housing: tuple[int, int, int] = RED
    logo_is_mirrored: bool = False
    is_upside_down: bool = False
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    black_square: int = 0  # pixels a side


def drawn(scene: Scene, random: np.random.Generator) -> np.ndarray:
    """A picture, shape (64, 64, 3), 8 bits."""
    side = SIZE * FINER
    belt = Image.fromarray(belt_of(random, side))
    part = part_of(scene, side)
    angle = random.uniform(-6.0, 6.0) + 180.0 * scene.is_upside_down
    shift = tuple(round(one) for one in random.uniform(-3.0, 3.0, 2) * FINER)
    part = part.rotate(angle, Image.Resampling.BICUBIC, translate=shift)
    shadow = Image.new("RGBA", part.size, (0, 0, 0, 110))
    moved = part.getchannel("A").rotate(0.0, translate=(2 * FINER, 2 * FINER))
    belt.paste(shadow, mask=moved.point(lambda alpha: alpha * 110 // 255))
    belt.paste(part, mask=part.getchannel("A"))
    picture = np.asarray(belt.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    return in_light(picture, scene, random)


def belt_of(random: np.random.Generator, side: int) -> np.ndarray:
    """A dark belt with a weave, at a random place of it: shape (side, side, 3), 8 bits."""
    y, x = np.mgrid[:side, :side] / FINER
    weave = 6.0 * np.sin(2.0 * np.pi * (x + y + random.uniform(0.0, 8.0)) / 8.0)
    shade = 58.0 + weave + 3.0 * np.sin(2.0 * np.pi * (y - x) / 4.0)
    return np.clip(shade[..., None] + np.array([-2.0, 1.0, 3.0]), 0, 255).astype(np.uint8)


def part_of(scene: Scene, side: int) -> Image.Image:
    """The part alone, upright in the middle: a housing with a logo at its left, and two pins below."""
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return left * side, top * side, right * side, bottom * side

    for left in (0.34, 0.58):
        pen.rectangle(box(left, 0.68, left + 0.08, 0.86), fill=STEEL)
    pen.rounded_rectangle(box(0.20, 0.18, 0.80, 0.70), 0.06 * side, fill=scene.housing)
    pen.rounded_rectangle(box(0.23, 0.21, 0.77, 0.30), 0.03 * side, fill=lighter(scene.housing))

    def at(x: float, y: float) -> tuple[float, float]:
        return (1.0 - x if scene.logo_is_mirrored else x) * side, y * side

    pen.polygon([at(0.30, 0.36), at(0.36, 0.36), at(0.36, 0.64), at(0.30, 0.64)], fill=WHITE)
    pen.polygon([at(0.36, 0.36), at(0.60, 0.44), at(0.36, 0.52)], fill=WHITE)
    return image


def lighter(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour of a surface that faces the light."""
    red, green, blue = (min(255, round(1.18 * one + 8)) for one in colour)
    return red, green, blue


def in_light(picture: np.ndarray, scene: Scene, random: np.random.Generator) -> np.ndarray:
    """The picture as a camera sees it: brighter or darker, unevenly lit, with noise."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    slope = random.uniform(-0.15, 0.15, 2)
    light = random.uniform(0.75, 1.15) * (1.0 + slope[0] * x + slope[1] * y)
    colour = (1.0 + random.uniform(-0.015, 0.015, 3)) * np.array(scene.cast)
    seen = picture * light[..., None] * colour
    if scene.black_square:
        top, left = random.integers(0, SIZE - scene.black_square, 2, endpoint=True)
        seen[top : top + scene.black_square, left : left + scene.black_square] = 0.0
    grain = random.normal(0.0, 2.5, (SIZE, SIZE, 1)) + random.normal(0.0, 1.0, (SIZE, SIZE, 3))
    return np.clip(np.rint(seen + grain), 0, 255).astype(np.uint8)


def blue_as_bright_as(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """A blue of the same grey level."""
    blue = np.array([0.15, 0.35, 1.0])
    red, green, blue_level = np.minimum(255.0, blue * (LUMA @ np.array(colour)) / (LUMA @ blue)).round().astype(int)
    return int(red), int(green), int(blue_level)


def casts(random: np.random.Generator) -> Scene:
    """A light of a wrong colour."""
    wrong = np.ones(3)
    wrong[random.integers(3)] += random.choice([-0.2, 0.2])
    return Scene(cast=(wrong[0], wrong[1], wrong[2]))


SOUND = Scene()
FAULTS: dict[str, Callable[[np.random.Generator], Scene]] = {
    "painted-blue": lambda random: replace(SOUND, housing=blue_as_bright_as(RED)),
    "colour-cast": casts,
    "mirrored-logo": lambda random: replace(SOUND, logo_is_mirrored=True),
    "upside-down": lambda random: replace(SOUND, is_upside_down=True),
    "black-square": lambda random: replace(SOUND, black_square=16),
}


def pictures(number: int, seed: int, fault: str | None = None) -> np.ndarray:
    """So many pictures, sound or with a fault: shape (number, 64, 64, 3), 8 bits."""
    random = np.random.default_rng(seed if fault is None else [seed, list(FAULTS).index(fault) + 1])
    return np.stack([drawn(SOUND if fault is None else FAULTS[fault](random), random) for _ in range(number)])


def main(
    folder: Annotated[Path, typer.Argument(help="folder to fill")],
    number: Annotated[int, typer.Option(min=1, help="pictures of sound parts")] = 3000,
    faults: Annotated[bool, typer.Option(help="also draw a tenth as many of each fault")] = True,
    seed: Annotated[int, typer.Option(min=0, help="other seeds draw other pictures")] = 0,
) -> None:
    """Draw pictures of parts into folders."""
    for name in (None, *FAULTS) if faults else (None,):
        place = folder / (name or "valid")
        place.mkdir(parents=True, exist_ok=True)
        for at, picture in enumerate(pictures(number if name is None else max(1, number // 10), seed, name)):
            Image.fromarray(picture).save(place / f"{at:05}.png")


if __name__ == "__main__":
    typer.run(main)
