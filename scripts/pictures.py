"""The pictures of the README and the docs, and the rows in examples/ with their verdicts.

python scripts/pictures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from mnist import DATA

from service import load
from service.cli.console import drawn_rules, fail_in_one_line
from service.data.image_reading import ImageReading
from service.files.images import decode, grid, png
from service.files.readers import read
from service.scoring.evaluation import evaluated
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.validity.martingale import Martingale, Ranks, log_limit

EXAMPLES = Path("examples")


@fail_in_one_line
def main(
    store: Annotated[Path, typer.Option(help="the model store")] = Path("model_store"),
    out: Annotated[Path, typer.Option(help="folder of the pictures")] = Path("docs/pictures"),
    data: Annotated[Path, typer.Option(help="folder that holds mnist.npz and fashion_mnist.npz")] = DATA,
    only_parts: Annotated[bool, typer.Option("--only-parts", help="draw those of docs/images.md alone")] = False,
) -> None:
    """Draw the example images with their verdicts, the manifold of mnist-2d, and what the docs explain."""
    mpl.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    draw_of_parts(load("parts", store, "cpu"), out)
    if only_parts:
        return
    draw_verdicts(store, out / "verdicts.png")
    manifold = load("mnist-2d", store, "cpu").manifold(20)
    (out / "manifold.png").write_bytes(png(grid(manifold.means.reshape(-1, 28, 28), gap=0)))
    samples = load("mnist", store, "cpu").sample(48, seed=7)
    (out / "samples.png").write_bytes(png(grid(samples.samples.reshape(-1, 28, 28), columns=12, gap=2)))
    draw_p_values(load("mnist", store, "cpu"), out / "p_value.png")
    draw_drift(out / "drift.png")
    draw_posteriors(load("mnist-2d", store, "cpu"), out / "posterior.png")
    draw_likelihoods(load("mnist", store, "cpu"), out / "likelihoods.png")
    if not (data / "mnist.npz").exists():
        print(f"{data}: no data, so rules.png stays as it is")
        return
    draw_rules(load("mnist", store, "cpu"), data, out / "rules.png")


def draw_of_parts(scorer: Scorer, out: Path) -> None:
    """Samples, reconstructions and maps of the model of drawn parts."""
    shape = scorer.model.input.shape
    files = [*sorted((EXAMPLES / "parts" / "valid").iterdir())[:3], *sorted((EXAMPLES / "parts" / "faults").iterdir())]
    reading = ImageReading(mode="colour", fit="crop")
    images = np.stack([decode(file.read_bytes(), reading, shape).pixels for file in files])
    samples = scorer.sample(16, seed=1).samples.reshape(-1, *shape)
    means = scorer.reconstruct(images).mean.reshape(images.shape)
    scores = scorer.score(images, ScoreOptions("combined", maps=True))
    maps = scorer.pixel_maps(scores, images.reshape(len(images), -1))
    strips = {
        "parts-samples.png": (samples, 8),
        "parts-reconstructions.png": (np.concatenate([images, means]), len(images)),
        "parts-maps.png": (np.concatenate([images, maps.drawn(images)]), len(images)),
    }
    for name, (shown, columns) in strips.items():
        enlarged = np.repeat(np.repeat(shown, 2, axis=1), 2, axis=2)
        (out / name).write_bytes(png(grid(enlarged, columns, gap=2)))


def draw_p_values(scorer: Scorer, path: Path) -> None:
    """Validation scores with the band, and where a digit and a boot come to lie."""
    known, band = scorer.calibration.scores, scorer.band
    figure, axis = plt.subplots(figsize=(8.5, 3.4))
    axis.hist(known, bins=120, range=(-150, 0), color="0.75")
    axis.axvspan(band.low, band.high, color="tab:green", alpha=0.15)
    top = axis.get_ylim()[1]
    axis.text((band.low + band.high) / 2, 0.94 * top, "band 25-75: valid", ha="center", color="tab:green")
    for file, colour, height in (("valid/digit-0", "tab:blue", 0.6), ("invalid/blank", "tab:red", 0.6)):
        scores = scorer.score(decode((EXAMPLES / f"{file}.png").read_bytes()).pixels[None])
        place = float(scores.log_likelihood[0])
        axis.axvline(place, color=colour)
        axis.text(
            place + 1,
            height * top,
            f"{file.partition('/')[2]}: log p(x) {place:.0f}\n{scores.percentile[0]:.1f} % of valid rows\nare less likely\n"
            f"p_value {scores.p_value[0]:.2g}",
            color=colour,
            fontsize=9,
        )
    axis.set(xlabel="log p(x) of validation rows, nats", ylabel="rows", xlim=(-150, 12))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_drift(path: Path) -> None:
    """Some streams' capital: valid rows, then rows of which twice as many are below the fifth percentile."""
    generator = np.random.default_rng(3)
    figure, axis = plt.subplots(figsize=(8.5, 3.2))
    for _ in range(8):
        ranks = Ranks(0.5, 0.1)
        ranks.add(ranks.cells(generator.random(1_000)))
        late = np.where(
            generator.random(2_000) < 0.1, 0.05 * generator.random(2_000), 0.05 + 0.95 * generator.random(2_000)
        )
        scores = np.concatenate([generator.random(3_000), late])
        path_of_capital = Martingale().bet(ranks.p_values(scores, generator.random(len(scores))))
        axis.plot(path_of_capital / np.log(10), linewidth=1)
    axis.axhline(log_limit(0.01) / np.log(10), color="k", linestyle="--")
    axis.axvline(3_000, color="0.6")
    axis.text(50, log_limit(0.01) / np.log(10) + 0.2, "limit", va="bottom")
    axis.text(3_050, -1.6, "from here on, twice the share\nbelow the fifth percentile", va="center")
    axis.set(xlabel="rows served", ylabel="log10 of the capital", xlim=(0, 5_000), ylim=(-2.5, 8))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_posteriors(scorer: Scorer, path: Path) -> None:
    """p(z | x) of three images over the plane of two latents, and the ellipse that holds 95 % of q(z | x)."""
    vae, side = scorer.model.vae, np.linspace(-4, 4, 321)
    plane = torch.tensor(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), dtype=torch.float32)
    with torch.inference_mode():
        output = scorer.decoded(vae, plane)
        log_prior = vae.prior.log_prob(plane)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.5))
    turn = np.linspace(0, 2 * np.pi, 200)
    for axis, name in zip(axes, ("valid/digit-0", "valid/digit-4", "invalid/boot"), strict=True):
        image = decode((EXAMPLES / f"{name}.png").read_bytes()).pixels[None]
        x = torch.from_numpy(scorer.model.input.encode(scorer.rows(image)))
        with torch.inference_mode():
            log_joint = (log_prior + vae.likelihood.log_prob(output, x).sum(dim=1)).double().numpy()
        guess, density = scorer.encode(image), np.exp(log_joint - log_joint.max()).reshape(len(side), -1)
        axis.imshow(density**0.35, extent=(-4, 4, -4, 4), origin="lower", cmap="Greys")
        reach = 2.448 * guess.std[0]  # the 95 % quantile of Rayleigh's distribution
        axis.plot(
            guess.mean[0, 0] + reach[0] * np.cos(turn), guess.mean[0, 1] + reach[1] * np.sin(turn), color="tab:red"
        )
        place = np.unravel_index(density.argmax(), density.shape)
        middle = side[place[1]], side[place[0]]
        reach_shown = max(0.6, 1.3 * float(np.abs(np.array(middle) - guess.mean[0]).max() + reach.max()))
        axis.set(
            xlim=(middle[0] - reach_shown, middle[0] + reach_shown),
            ylim=(middle[1] - reach_shown, middle[1] + reach_shown),
        )
        axis.set(title=name.partition("/")[2], xlabel="first latent", ylabel="second latent")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_likelihoods(scorer: Scorer, path: Path) -> None:
    """log p(x) of validation digits, clothes and noise."""
    clothes = np.load(EXAMPLES / "gate" / "images.npz")["clothes"]
    noise = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    figure, axis = plt.subplots(figsize=(8.5, 3.2))
    bins = (-np.geomspace(10, 2000, 60)[::-1]).tolist()
    sets = {
        "validation digits": scorer.calibration.scores,
        "clothes": scorer.score(clothes).log_likelihood,
        "noise": scorer.score(noise).log_likelihood,
    }
    for (name, values), colour in zip(sets.items(), ("0.6", "tab:orange", "tab:red"), strict=True):
        axis.hist(
            np.maximum(values, bins[0]),
            bins=bins,
            weights=np.full(len(values), 1 / len(values)),
            color=colour,
            alpha=0.7,
            label=name,
        )
    axis.axvspan(scorer.band.low, scorer.band.high, color="tab:green", alpha=0.15, label="band 25-75")
    axis.set_xscale("symlog", linthresh=10)
    axis.set(xlabel="log p(x), nats (logarithmic)", ylabel="share of rows", xlim=(-2000, -10))
    axis.set_xticks(
        [-2000, -1000, -500, -200, -100, -50, -20, -10], ["-2000", "-1000", "-500", "-200", "-100", "-50", "-20", "-10"]
    )
    axis.minorticks_off()
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_rules(scorer: Scorer, data: Path, path: Path) -> None:
    """What `vouch evaluate --picture` draws, of three kinds of invalid images."""
    digits = read(data / "mnist.npz", "x_test").array
    sets = {
        "Fashion-MNIST": read(data / "fashion_mnist.npz", "x_test").array[:300],
        "digits at half brightness": (digits[1000:1300] * 0.45).round(),
        "digits, 10 x 10 pixels blackened": digits[1300:1600].copy(),
    }
    sets["digits, 10 x 10 pixels blackened"][:, 9:19, 9:19] = 0
    invalid = {name: scorer.read(one) for name, one in sets.items()}
    path.write_bytes(drawn_rules(evaluated(scorer, scorer.read(digits[:1000]), invalid)))


def draw_verdicts(store: Path, path: Path) -> None:
    """Each example image with its log p(x) and verdict, at 25-75 and at 1-99."""
    scorer = load("mnist", store, "cpu")
    files = sorted((EXAMPLES / "valid").glob("*.png")) + sorted((EXAMPLES / "invalid").glob("*.png"))
    images = np.stack([decode(file.read_bytes()).pixels for file in files])
    scores, wide = scorer.score(images), scorer.score(images, ScoreOptions(percentiles=(1.0, 99.0)))
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
