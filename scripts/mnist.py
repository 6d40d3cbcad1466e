"""MNIST as the bundled models see it: the file, and which of its training images are used for what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.files.readers import read

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CALIBRATION, AUDIT, PILOT, VALIDATION = 10_000, 5_000, 5_000, 1_000


@dataclass(frozen=True)
class Mnist:
    """Disjoint random parts of the 60,000 training images, and the test images; uint8, shape (N, 28, 28)."""

    train: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray
    audit: np.ndarray
    pilot: np.ndarray
    test: np.ndarray


def load_mnist(folder: Path) -> Mnist:
    """The images of `mnist.npz` in the folder, split as the bundled models were."""
    images = read(folder / "mnist.npz", "x_train").array
    order = np.random.default_rng(20260101).permutation(len(images))
    parts = np.split(images[order], np.cumsum([CALIBRATION, AUDIT, PILOT, VALIDATION]))
    test = read(folder / "mnist.npz", "x_test").array
    calibration, audit, pilot, validation, train = parts
    return Mnist(train, validation, calibration, audit, pilot, test)
