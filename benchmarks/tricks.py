"""What passes a rule though it is no digit: random tricks, and gradients of somebody who has the model.

    python benchmarks/tricks.py [--rows 20]

The images are made of digits that the model carries, of blanks, and of patterns. A budget is what a trick may spend: random
tries of each image, or the share of its pixels that may change. Printed is the share of images that pass: the band from 25
to 75 % of log p(x), a one-sided rate, and the rule `combined`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.store.loading import load_scorer
from service.store.store import Store

RULES = {
    "25-75 %": ScoreOptions(),
    "rate 2 %, low": ScoreOptions(false_alarm=0.02, tail="low"),
    "combined, 2 %": ScoreOptions(rule="combined", false_alarm=0.02),
}
STEPS = 12
SIDE = 28


def passing(scorer: Scorer, images: np.ndarray, options: ScoreOptions) -> np.ndarray:
    """Which images a rule calls valid, shape (B,)."""
    return scorer.score(images.reshape(len(images), -1), options).valid


# Random tricks: each makes an image of a start, with new randomness at every try


def blank(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An image without anything."""
    return np.zeros_like(digit)


def dots(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Four white dots."""
    image = np.zeros_like(digit)
    image[tuple(random.integers(4, SIDE - 4, (2, 4)))] = 255
    return image


def stripe(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A bar of some size and place."""
    image, (top, left) = np.zeros_like(digit), random.integers(2, 16, 2)
    image[top : top + random.integers(3, 12), left : left + random.integers(1, 4)] = 255
    return image


def inverted(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A digit, black on white."""
    return 255 - digit


def turned(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A digit that lies on its side."""
    return np.rot90(digit, random.choice([1, 3]))


def faint_letter(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A digit, with a letter beside or below it that is too faint for the threshold."""
    image, level = digit.copy(), random.integers(90, 111)
    top, left = random.integers(1, SIDE - 11, 2)
    strokes = np.zeros((10, 8), bool)
    strokes[:, :2] = strokes[:2] = strokes[4:6, :6] = True  # an F
    part = image[top : top + 10, left : left + 8]
    image[top : top + 10, left : left + 8] = np.where(strokes, np.maximum(part, level), part)
    return image


def two_digits(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A digit over its own mirror image."""
    return np.maximum(digit, digit[:, ::-1])


def specks(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A digit with ten white specks."""
    image = digit.copy()
    image[tuple(random.integers(0, SIDE, (2, 10)))] = 255
    return image


RANDOM: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "a blank image": blank,
    "four dots": dots,
    "a bar": stripe,
    "a digit, inverted": inverted,
    "a digit on its side": turned,
    "a faint letter beside a digit": faint_letter,
    "a digit over its mirror image": two_digits,
    "a digit with ten specks": specks,
}


def best_of(
    scorer: Scorer, digits: np.ndarray, trick: Callable[..., np.ndarray], tries: int, rule: ScoreOptions
) -> float:
    """Share of starts of which any of so many tries passes."""
    random, found = np.random.default_rng(0), np.zeros(len(digits), bool)
    for _ in range(tries):
        images = np.stack([trick(digit, random) for digit in digits])
        found |= passing(scorer, images, rule)
    return float(found.mean())


# Gradients


def towards_likely(scorer: Scorer, images: np.ndarray, budget: float) -> np.ndarray:
    """Change so many pixels to where log p(x | z) rises most, z being the encoder's mean of the image so far."""
    vae, changed = scorer.model.vae, images.reshape(len(images), -1).copy()
    for _ in range(STEPS):
        with torch.no_grad():
            x = torch.from_numpy(scorer.model.input.encode(changed))
            logits = vae.decoder(vae.posterior(x).mean).numpy()
        gain = np.where(x.numpy() > 0, -logits, logits)
        changed = flipped(changed, gain, budget / STEPS)
    return changed


def towards_known(scorer: Scorer, images: np.ndarray, budget: float) -> np.ndarray:
    """Change so many pixels to those of the nearest row that the version carries."""
    assert scorer.calibration.statistics is not None
    known = scorer.calibration.statistics.known.rows.astype(np.float64)
    changed = images.reshape(len(images), -1).copy()
    for row in changed:
        nearest = known[np.argmin(np.abs(known - row).sum(axis=1))]
        order = np.argsort(-np.abs(nearest - row))[: round(budget * len(row))]
        row[order] = nearest[order]
    return changed


GRADIENTS = {"a pattern, towards log p(x)": towards_likely, "a pattern, towards a known row": towards_known}


def flipped(rows: np.ndarray, gain: np.ndarray, share: float) -> np.ndarray:
    """Rows with a share of their pixels inverted: those that gain most, and gain at all."""
    order = np.argsort(-gain, axis=1)[:, : max(1, round(share * rows.shape[1]))]
    inverted_rows = rows.copy()
    for row, chosen, gains in zip(inverted_rows, order, gain, strict=True):
        good = chosen[gains[chosen] > 0]
        row[good] = np.where(row[good] > 127, 0, 255)
    return inverted_rows


def starts(count: int) -> np.ndarray:
    """Patterns that are no digits: checkerboards, bars and noise."""
    random, images = np.random.default_rng(1), np.zeros((count, SIDE, SIDE))
    for at, image in enumerate(images):
        kind, size = at % 3, int(random.integers(2, 6))
        rows, columns = np.indices(image.shape)
        if kind == 0:
            image[(rows // size + columns // size) % 2 == 0] = 255
        elif kind == 1:
            image[(rows // size) % 2 == 0] = 255
        else:
            image[random.random(image.shape) < 0.3] = 255
    return images


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--rows", type=int, default=20)
    options = parser.parse_args()
    scorer = load_scorer(Store(options.store), options.model, "cpu")
    assert scorer.calibration.statistics is not None
    known = scorer.calibration.statistics.known.rows
    digits = known[np.random.default_rng(2).choice(len(known), options.rows, replace=False)].reshape(-1, SIDE, SIDE)
    table = Table(
        "trick", "budget", *RULES, title=f"{scorer.published.reference}: passes, in per cent of {options.rows}"
    )
    table.add_row(
        "a digit as it is", "", *(f"{100 * passing(scorer, digits, rule).mean():.0f}" for rule in RULES.values())
    )
    for name, trick in RANDOM.items():
        for tries in (1, 10) if trick is not blank else (1,):
            shares = [best_of(scorer, digits, trick, tries, rule) for rule in RULES.values()]
            table.add_row(name, f"{tries} tries" if tries > 1 else "1 try", *(f"{100 * share:.0f}" for share in shares))
    patterns = starts(options.rows)
    for name, gradient in (
        ("a pattern, towards log p(x)", towards_likely),
        ("a pattern, towards a known row", towards_known),
    ):
        for budget in (0.02, 0.05, 0.1, 0.2, 0.4):
            images = gradient(scorer, patterns, budget)
            shares = [passing(scorer, images, rule).mean() for rule in RULES.values()]
            table.add_row(name, f"{100 * budget:.0f} % of pixels", *(f"{100 * share:.0f}" for share in shares))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
