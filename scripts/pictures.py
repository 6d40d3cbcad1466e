"""The pictures of the README, and the rows in examples/ with their verdicts.

python scripts/pictures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import typer

from service import load
from service.cli import fail_in_one_line
from service.data.images import grid, png, read_image

EXAMPLES = Path("examples")


@fail_in_one_line
def main(
    store: Annotated[Path, typer.Option(help="the model store")] = Path("model_store"),
    out: Annotated[Path, typer.Option(help="folder of the pictures")] = Path("docs/pictures"),
) -> None:
    """Draw the example images with their verdicts, and the manifold of mnist-2d."""
    mpl.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    draw_verdicts(store, out / "verdicts.png")
    manifold = load("mnist-2d", store, "cpu").manifold(20)
    (out / "manifold.png").write_bytes(png(grid(manifold.means.reshape(-1, 28, 28), gap=0)))
    samples = load("mnist", store, "cpu").sample(48, seed=7)
    (out / "samples.png").write_bytes(png(grid(samples.samples.reshape(-1, 28, 28), columns=12, gap=2)))


def draw_verdicts(store: Path, path: Path) -> None:
    """Each example image with its log p(x) and verdict, at 25-75 and at 1-99."""
    scorer = load("mnist", store, "cpu")
    files = sorted((EXAMPLES / "valid").glob("*.png")) + sorted((EXAMPLES / "invalid").glob("*.png"))
    images = np.stack([read_image(file.read_bytes()).pixels for file in files])
    scores, wide = scorer.score(images), scorer.score(images, (1.0, 99.0))
    columns = 8
    lines = -(-len(files) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(columns * 1.5, lines * 2.4))
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        colour = "tab:green" if scores.sides[index] == 0 else "tab:orange" if wide.sides[index] == 0 else "tab:red"
        axis.set_title(
            f"{scores.log_likelihood[index]:.0f} nats\np = {scores.p_value[index]:.2g}\n{scores.side[index]}",
            fontsize=9,
            color=colour,
        )
    figure.suptitle(
        "green: valid inside percentiles 25-75; orange: only inside 1-99; red: invalid in both", fontsize=10
    )
    figure.tight_layout(h_pad=1.2, rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
