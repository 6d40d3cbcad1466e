"""The rows in examples/: a few real digits and a few images that are none.

python scripts/make_examples.py --data ../shared/data
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from mnist import DATA, load_mnist

from service.cli import fail_in_one_line
from service.data.images import png
from service.data.readers import read

EXAMPLES = Path("examples")


@fail_in_one_line
def main(data: Annotated[Path, typer.Option(help="folder of the real data")] = DATA) -> None:
    """Write PNG files, a JSON body and an npy body."""
    test = load_mnist(data).test
    labels = read(data / "mnist.npz", "y_test").array.reshape(-1)
    digits = {f"digit-{label}": test[np.flatnonzero(labels == label)[3]] for label in range(10)}
    fashion = read(data / "fashion_mnist.npz", "x_test").array
    garments = read(data / "fashion_mnist.npz", "y_test").array.reshape(-1)
    generator = np.random.default_rng(0)
    seven = digits["digit-7"]
    others = {
        "boot": fashion[garments == 9][0],
        "shirt": fashion[garments == 6][0],
        "inverted-7": 255 - seven,
        "noise": generator.integers(0, 256, size=(28, 28), dtype=np.uint8),
        "shuffled-7": generator.permutation(seven.reshape(-1)).reshape(28, 28),
        "blank": np.zeros((28, 28), dtype=np.uint8),
    }
    for folder, images in (("valid", digits), ("invalid", others)):
        (EXAMPLES / folder).mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            (EXAMPLES / folder / f"{name}.png").write_bytes(png(image))
    rows = [seven.reshape(-1).tolist(), others["boot"].reshape(-1).tolist()]
    (EXAMPLES / "rows.json").write_text(json.dumps({"instances": rows}, separators=(",", ":")) + "\n")
    np.save(EXAMPLES / "digits.npy", np.stack(list(digits.values())))


if __name__ == "__main__":
    typer.run(main)
