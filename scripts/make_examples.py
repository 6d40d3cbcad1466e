"""The rows in examples/: some real digits and images that are none; rows of the census, some with a wrong cell.

python scripts/make_examples.py --data ../shared/data
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from draw_parts import FAULTS, pictures
from mnist import DATA, load_mnist

from service.cli.console import fail_in_one_line
from service.files.images import png
from service.files.readers import read

EXAMPLES = Path("examples")


@fail_in_one_line
def main(data: Annotated[Path, typer.Option(help="folder of the real data")] = DATA) -> None:
    """Write PNG files, a JSON body, an npy body and a CSV table."""
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
    chosen = np.random.default_rng(1).permutation(len(test))[:60]
    np.savez_compressed(EXAMPLES / "gate" / "images.npz", digits=test[chosen], clothes=fashion[chosen])
    write_census(data / "mixed" / "adult.csv")
    write_parts()


def write_parts() -> None:
    """Drawn parts: some sound ones, and one of each fault."""
    sound = {f"part-{number}": picture for number, picture in enumerate(pictures(6, seed=7))}
    faulty = {fault: pictures(1, seed=7, fault=fault)[0] for fault in FAULTS}
    for folder, images in (("valid", sound), ("faults", faulty)):
        place = EXAMPLES / "parts" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            (place / f"{name}.png").write_bytes(png(image))


def write_census(path: Path) -> None:
    """Rows as they came, one of them with missing cells, and three of them again with one cell that cannot be."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    incomplete = next(row for row in rows if "?" in row)
    wrong = {"hours-per-week": "400", "relationship": "Wife", "workclass": "Astronaut"}
    spoilt = [
        [wrong[name] if name == column else cell for name, cell in zip(header, row, strict=True)]
        for column, row in zip(wrong, rows, strict=False)
    ]
    with (EXAMPLES / "adult.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows[:4], incomplete, *spoilt])
    named = {name: int(cell) if cell.isdecimal() else cell for name, cell in zip(header, spoilt[0], strict=True)}
    body = {"instances": [named | {"native-country": None}]}
    (EXAMPLES / "adult.json").write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
