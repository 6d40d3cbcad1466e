"""Images in colour: what is caught, what a pixel costs in bits, and what a score costs beside the bare convolutions.

    python benchmarks/images.py concrete --data FOLDER --minutes 10      cracks in concrete, by the rule combined
    python benchmarks/images.py density --data FOLDER --minutes 30       bits per pixel and channel of CIFAR-10
    python benchmarks/images.py one-class --data FOLDER --minutes 5      each class of CIFAR-10 against the others
    python benchmarks/images.py parts --minutes 12                       faults of drawn parts
    python benchmarks/images.py promise                                  realised false alarms of the bundled parts
    python benchmarks/images.py cost                                     seconds of a score beside those of convolutions
    python benchmarks/images.py audit                                    estimates beside ones of many more draws

Each trains as `vouch train` does and judges by `combined` as published; opponents see the same training images and are
computed in the same run. FOLDER holds concrete.npz and cifar10.zip. Needs the extra: pip install '.[bench]'.
"""

from __future__ import annotations

import io
import math
import sys
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from service.cli.console import fail_in_one_line, progress_bar
from service.density import starts
from service.density.estimate import Execution, Member, estimate
from service.density.estimator import Estimator
from service.density.tiling import worker_pool
from service.files.readers import Rows
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.store.loading import load_scorer
from service.store.store import Store
from service.system.cpus import cpu_quota
from service.training.recipe import IMAGE_FIT, TO_PUBLISH, Recipe
from service.training.train import Hooks, train
from service.vae.network import VAE

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import draw_parts  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "images"
LUMA = np.array([0.299, 0.587, 0.114])
COMBINED = ScoreOptions("combined")
Measure = Callable[[np.ndarray], np.ndarray]
app = typer.Typer(add_completion=False)
DataOption = Annotated[Path, typer.Option(help="folder of concrete.npz and cifar10.zip")]
MinutesOption = Annotated[float, typer.Option(help="time for each model")]


def trained(images: np.ndarray, minutes: float, latents: int | None = None) -> Scorer:
    """A model as `vouch train --rule combined` makes it."""
    fit = replace(IMAGE_FIT, minutes=minutes)
    with progress_bar() as on_progress:
        made = train(
            Rows(images), Recipe(fit=fit, latents=latents, rule="combined", least=TO_PUBLISH), Hooks(on_progress)
        )
    print(
        f"{len(images):,} images, {made.report.epochs} epochs in {made.report.seconds:.0f} s, {', '.join(made.notes)}"
    )
    return Scorer(made.draft.unpublished(), threads=cpu_quota())


def combined(scorer: Scorer, images: np.ndarray) -> np.ndarray:
    """How strange each image is by the rule combined: the combined statistic, of which its p-value is the rank."""
    reference = scorer.reference_statistics()
    rows, execution = scorer.read(images.astype(np.float32)), Execution(worker_pool(cpu_quota()))
    assessed = scorer.model.assess(rows, tuple(scorer.band.ends), None, scorer.row_statistics, execution)
    assert assessed.statistics is not None
    found: np.ndarray = reference.combination.combine(assessed.statistics)
    return found


# Opponents: each learns from training images and then tells how strange an image is


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)


def darkest(train_images: np.ndarray) -> Measure:
    return lambda x: -(x @ LUMA).min(axis=(1, 2))


def contrast(train_images: np.ndarray) -> Measure:
    return lambda x: flat(x).std(axis=1)


def neighbour(train_images: np.ndarray, place: int = 5) -> Measure:
    index = NearestNeighbors(n_neighbors=place).fit(flat(train_images))
    return lambda x: index.kneighbors(flat(x))[0][:, -1]


def thumbnails(train_images: np.ndarray) -> Measure:
    """The nearest by the colour means of four by four places."""

    def small(x: np.ndarray) -> np.ndarray:
        height, width = x.shape[1] // 4, x.shape[2] // 4
        return x.reshape(len(x), 4, height, 4, width, 3).mean(axis=(2, 4)).reshape(len(x), -1)

    index = NearestNeighbors(n_neighbors=5).fit(small(train_images))
    return lambda x: index.kneighbors(small(x))[0][:, -1]


def components(train_images: np.ndarray, number: int = 50) -> Measure:
    """The squared error of a reconstruction by principal components."""
    pca = PCA(number, random_state=0).fit(flat(train_images))
    return lambda x: np.square(flat(x) - pca.inverse_transform(pca.transform(flat(x)))).sum(axis=1)


def full_normal(train_images: np.ndarray) -> Measure:
    mean, spread = flat(train_images).mean(axis=0), np.cov(flat(train_images).T)
    inverse = np.linalg.inv(spread + 1.0 * np.eye(len(spread)))
    return lambda x: np.einsum("ij,jk,ik->i", flat(x) - mean, inverse, flat(x) - mean)


OPPONENTS: dict[str, Callable[[np.ndarray], Measure]] = {
    "darkest pixel": darkest,
    "fifth neighbour on pixels": neighbour,
    "contrast": contrast,
    "3 principal components": partial(components, number=3),
    "50 principal components": components,
    "full normal": full_normal,
    "4 x 4 colour means, fifth neighbour": thumbnails,
}


# Measures


def placements(valid: np.ndarray, invalid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of invalid scores above each valid one, and of valid ones below each invalid one; equal ones count half."""

    def below(sorted_: np.ndarray, values: np.ndarray) -> np.ndarray:
        ends = (np.searchsorted(sorted_, values, side) for side in ("left", "right"))
        return np.add(*ends) / (2 * len(sorted_))

    return 1.0 - below(np.sort(invalid), valid), below(np.sort(valid), invalid)


def compared(valid: dict[str, np.ndarray], invalid: dict[str, np.ndarray], ours: str = "combined") -> None:
    """Print AUROC and what is caught at 1 % of each, and how far ours is ahead, with the paired standard error."""
    own = placements(valid[ours], invalid[ours])
    print(f"{'':38} {'AUROC':>7} {'caught at 1 %':>14} {'ours ahead by':>14} {'+-':>7}")
    for name, of_valid in valid.items():
        theirs = placements(of_valid, invalid[name])
        ahead = [mine - other for mine, other in zip(own, theirs, strict=True)]
        error = math.sqrt(sum(one.var(ddof=1) / len(one) for one in ahead))
        limit = np.quantile(of_valid, 0.99)
        caught = (invalid[name] > limit).mean()
        print(f"{name:38} {theirs[1].mean():7.4f} {caught:14.3f} {ahead[1].mean():14.4f} {error:7.4f}")


def cifar(data: Path, split: str, of: Iterable[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's images of a split, (N, 32, 32, 3), and their classes."""
    images, classes = [], []
    with zipfile.ZipFile(data / "cifar10.zip") as file:
        for name in sorted(file.namelist()):
            _, part, kind, *_ = [*name.split("/"), "", ""]
            if part == split and name.endswith(".jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(file.read(name)))))
                classes.append(kind)
    return np.stack(images), np.array(classes)


@app.command()
@fail_in_one_line
def concrete(data: DataOption = DATA, minutes: MinutesOption = 10.0, seed: int = 0) -> None:
    """8,000 sound patches train; 3,000 others stand against the cracked ones."""
    file = np.load(data / "concrete.npz")
    order = np.random.default_rng(seed).permutation(len(file["sound"]))
    known, valid = file["sound"][order[:8000]], file["sound"][order[8000:11000]]
    scorer = trained(known, minutes)
    sets = {"valid": valid, "cracked": file["cracked"]}
    found = {name: {"combined": combined(scorer, images)} for name, images in sets.items()}
    for name, opponent in OPPONENTS.items():
        measure = opponent(known)
        for kind, images in sets.items():
            found[kind][name] = measure(images)
    compared(found["valid"], found["cracked"])
    alarms = [1.0 - float(scorer.score(images, COMBINED).valid.mean()) for images in sets.values()]
    print(f"as published, at 1 %: {100 * alarms[0]:.2f} % of valid, {100 * alarms[1]:.1f} % of cracked patches refused")


@app.command()
@fail_in_one_line
def density(data: DataOption = DATA, minutes: MinutesOption = 30.0, latents: int = 64, rows: int = 3000) -> None:
    """Bits per pixel and channel of CIFAR-10's test images, beside normals and lossless files."""
    known, _ = cifar(data, "train")
    test, _ = cifar(data, "test")
    test = test[np.random.default_rng(0).permutation(len(test))[:rows]]
    scorer = trained(known, minutes, latents)
    began = time.monotonic()
    spec, fixed = scorer.model.input, replace(scorer.model.estimator, ends=None)
    x = spec.encode(spec.rows(test.astype(np.float32)))
    estimates = estimate(fixed, scorer.model.members[0], x, execution=Execution(worker_pool(cpu_quota())))
    bits = -estimates.log_likelihood / (spec.features * math.log(2.0))
    print(
        f"vouch, {latents} latents: {bits.mean():.3f} +- {bits.std() / math.sqrt(len(bits)):.3f} bits; "
        f"{100 * estimates.reliable.mean():.1f} % reliable, median standard error "
        f"{np.median(estimates.std_error):.2f} nats, {len(bits) / (time.monotonic() - began):.1f} rows/s",
        flush=True,
    )
    print(f"64 principal components, chained channels: {chained_components(known, test):.3f} bits")
    print(f"a full normal: {normal_bits(known, test):.3f} bits")
    for kind, options in (("PNG", {"optimize": True}), ("WebP", {"lossless": True, "quality": 100, "method": 6})):
        sizes = []
        for image in test:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, kind, **options)
            sizes.append(8 * len(buffer.getvalue()) / image.size)
        print(f"{kind}, lossless: {np.mean(sizes):.3f} bits")


def normal_bits(known: np.ndarray, test: np.ndarray) -> float:
    """Of a full normal with a little noise, integrated over each level's bin by the midpoint."""
    mean, spread = flat(known).mean(axis=0), np.cov(flat(known).T) + 1.0 / 12.0 * np.eye(known[0].size)
    centred, (sign, log_det) = flat(test) - mean, np.linalg.slogdet(spread)
    assert sign > 0
    square = np.einsum("ij,ji->i", centred, np.linalg.solve(spread, centred.T))
    nats = 0.5 * (square + log_det + len(spread) * math.log(2.0 * math.pi))
    return float(nats.mean() / (len(spread) * math.log(2.0)))


def chained_components(known: np.ndarray, test: np.ndarray, number: int = 64) -> float:
    """Principal components with normal residuals, in which each channel of a pixel is predicted by those before it.

    The components are integrated out, so that log p(x) is exact (Tipping and Bishop, 1999), by Woodbury's identity.
    """
    pca = PCA(number, random_state=0).fit(flat(known))
    residual = (flat(known) - pca.inverse_transform(pca.transform(flat(known)))).reshape(-1, 3)
    chain, scales = np.eye(3), np.zeros(3)
    for channel in range(3):
        before = residual[:, :channel]
        slope = np.linalg.lstsq(before, residual[:, channel], rcond=None)[0] if channel else np.zeros(0)
        chain[channel, :channel] = -slope
        scales[channel] = (residual[:, channel] - before @ slope).std()
    whiten = chain / scales[:, None]  # of a pixel's residual channels

    def white(x: np.ndarray) -> np.ndarray:
        return (x.reshape(len(x), -1, 3) @ whiten.T).reshape(len(x), -1)

    loadings = white(pca.components_ * np.sqrt(pca.explained_variance_)[:, None])  # (L, D)
    inner = np.eye(number) + loadings @ loadings.T
    centred = white(flat(test) - pca.mean_)
    along = centred @ loadings.T
    square = np.square(centred).sum(axis=1) - np.einsum("ij,ij->i", along, np.linalg.solve(inner, along.T).T)
    pixels = centred.shape[1] // 3
    log_det = np.linalg.slogdet(inner)[1] - 2.0 * pixels * np.log(1.0 / scales).sum()
    nats = 0.5 * (square + log_det + centred.shape[1] * math.log(2.0 * math.pi))
    return float(nats.mean() / (centred.shape[1] * math.log(2.0)))


@app.command("one-class")
@fail_in_one_line
def one_class(
    data: DataOption = DATA,
    minutes: MinutesOption = 5.0,
    classes: Annotated[str, typer.Option(help="names of some, with commas; default: all")] = "",
    tested: Annotated[int, typer.Option(help="test images, at random")] = 3000,
) -> None:
    """Each class of CIFAR-10 trains a model that judges the test images of all."""
    known, known_kinds = cifar(data, "train")
    test, kinds = cifar(data, "test")
    some = np.random.default_rng(0).permutation(len(test))[:tested]
    test, kinds = test[some], kinds[some]
    names = ("4 x 4 colour means, fifth neighbour", "fifth neighbour on pixels", "50 principal components")
    totals: dict[str, list[float]] = {"combined": [], **{name: [] for name in names}}
    for kind in classes.split(",") if classes else sorted(set(known_kinds)):
        own = known[known_kinds == kind]
        scorer = trained(own, minutes)
        measures: dict[str, Measure] = {"combined": lambda x, scorer=scorer: combined(scorer, x)}  # type: ignore[misc]
        measures |= {name: OPPONENTS[name](own) for name in names}
        for name, measure in measures.items():
            found = measure(test)
            totals[name].append(float(placements(found[kinds == kind], found[kinds != kind])[1].mean()))
        print(kind, " ".join(f"{name} {values[-1]:.3f}" for name, values in totals.items()), flush=True)
    print("mean", " ".join(f"{name} {np.mean(values):.3f}" for name, values in totals.items()))


@app.command()
@fail_in_one_line
def parts(
    minutes: Annotated[float, typer.Option(help="time to train on parts of 64 x 64; 0: the bundled model")] = 12.0,
    number: int = 3000,
    tested: int = 200,
) -> None:
    """Drawn parts: what of each fault is refused at 1 %."""
    faults_of(trained(draw_parts.pictures(number, 1), minutes) if minutes else bundled(), tested)


def faults_of(scorer: Scorer, tested: int) -> None:
    """Print what of each fault of drawn parts is refused at 1 %."""
    for fault in (None, *draw_parts.FAULTS):
        images = resized(draw_parts.pictures(tested, 2, fault), scorer)
        refused = 1.0 - float(scorer.score(images, ScoreOptions("combined", false_alarm=0.01)).valid.mean())
        print(f"{fault or 'valid':14} {100 * refused:6.1f} % of {tested} refused", flush=True)


def resized(images: np.ndarray, scorer: Scorer) -> np.ndarray:
    """Images of the model's size."""
    height, width = scorer.model.input.shape[:2]
    if images.shape[1:3] == (height, width):
        return images
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.LANCZOS)) for one in images]
    )


def bundled() -> Scorer:
    return load_scorer(Store(ROOT / "model_store"), "parts", "cpu", cpu_quota())


@app.command()
@fail_in_one_line
def promise(number: int = 1200, partitions: int = 20, rate: float = 0.05) -> None:
    """New drawn parts in re-partitions: half calibrates the rule combined anew, half tells how many it refuses."""
    scorer = bundled()
    reference = scorer.reference_statistics()
    images = resized(draw_parts.pictures(number, 3), scorer)
    rows, execution = scorer.read(images.astype(np.float32)), Execution(worker_pool(cpu_quota()))
    found = scorer.model.assess(rows, tuple(scorer.band.ends), None, scorer.row_statistics, execution).statistics
    assert found is not None
    random, half, realised = np.random.default_rng(0), number // 2, []
    for _ in range(partitions):
        order = random.permutation(number)
        fitted = reference.fit_alike(found[order[:half]])
        assert fitted is not None
        realised.append(float((fitted.combination.p_value(found[order[half:]]) <= rate).mean()))
    expected = math.floor(rate * (half // 2 + 1)) / (half // 2 + 1)
    error = math.sqrt(expected * (1 - expected) * (1 / half + 1 / (half // 2 + 2)))
    print(
        f"{partitions} re-partitions at {100 * expected:.2f} %: mean {100 * np.mean(realised):.2f} %, from "
        f"{100 * min(realised):.2f} to {100 * max(realised):.2f} %; the farthest is "
        f"{max(abs(one - expected) for one in realised) / error:.1f} standard errors away"
    )


@app.command()
@fail_in_one_line
def cost(rows: int = 64, rounds: int = 5) -> None:
    """Seconds of a score, per decoder evaluation that it takes, beside those of the decoder's convolutions alone."""
    scorer = bundled()
    vae, images = scorer.model.vae, resized(draw_parts.pictures(rows, 4), scorer)
    x = scorer.read(images.astype(np.float32))
    torch.set_num_threads(1)
    bare, whole = [], []
    with torch.inference_mode():
        z = torch.randn(64, vae.architecture.latents)
        for _ in range(rounds + 1):
            began = time.perf_counter()
            for _ in range(10):
                vae.decoder(z)
            bare.append((time.perf_counter() - began) / (10 * len(z)))
            began = time.perf_counter()
            estimates = scorer.model.estimates(x, tuple(scorer.band.ends))
            whole.append((time.perf_counter() - began) / estimates.evaluations.sum())
    ratios = [one / other for one, other in zip(whole[1:], bare[1:], strict=True)]
    print(
        f"one thread, {rows} images of {' x '.join(map(str, scorer.model.input.shape))}: a score takes "
        f"{estimates.evaluations.mean():.0f} evaluations, each {np.median(ratios):.2f} times the time of bare convolutions "
        f"({1e3 * np.median(bare[1:]):.2f} ms); {1 / (np.median(whole[1:]) * estimates.evaluations.mean()):.1f} rows/s"
    )


@app.command()
@fail_in_one_line
def audit(latents: str = "32,64", rows: int = 64, steps: int = 300, data: DataOption = DATA) -> None:
    """Errors of estimates by convolutional networks of some latents, beside 64 times as many draws."""
    file = np.load(data / "concrete.npz")["sound"]
    known = file[:6000].reshape(6000, -1).astype(np.float32) / 255
    tested = file[-rows:].reshape(rows, -1).astype(np.float32) / 255
    for number in map(int, latents.split(",")):
        vae = fitted(known, number, steps)
        member, execution = Member(vae, starts.build(vae, known[:500])), Execution(worker_pool(cpu_quota()))
        truth = estimate(Estimator("fast", first_samples=2**13, max_samples=2**13), member, tested, execution=execution)
        for tolerance in (0.03, 0.0768):
            found = estimate(Estimator(tolerance=tolerance, seed=1), member, tested, execution=execution)
            error = found.log_likelihood - truth.log_likelihood
            within = np.abs(error) <= 2.0 * np.hypot(found.std_error, truth.std_error)
            print(
                f"{number} latents, tolerance {tolerance:g}: RMSE {np.sqrt(np.square(error).mean()):.3f} nats, told "
                f"{np.sqrt(np.square(found.std_error).mean()):.3f}; within two "
                f"standard errors {100 * within.mean():.0f} %; "
                f"reliable {100 * found.reliable.mean():.0f} %; {found.evaluations.mean():.0f} evaluations",
                flush=True,
            )


def fitted(known: np.ndarray, latents: int, steps: int) -> VAE:
    """A convolutional network after some optimizer steps on rows, shape (N, D)."""
    from service.training.fit import fit
    from service.vae.network import Architecture

    torch.manual_seed(0)
    shape = (16, 16, 3)
    vae = VAE(Architecture(768, latents, (64, 128), "silu", "pixel_logistic", image=shape, network="conv"))
    x, epochs = torch.from_numpy(known), max(1, steps * 64 // len(known))
    fit(vae, x[600:], x[:600], replace(IMAGE_FIT, epochs=epochs))
    return vae.eval().requires_grad_(False)


if __name__ == "__main__":
    app()
