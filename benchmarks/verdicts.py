"""What verdicts promise and what they catch: the combined rule, false alarms over many resplits, false discoveries, drift.

    python benchmarks/verdicts.py --data FOLDER [--part images] [--part alarms] [--part drift] ...

clothes      A model of Fashion-MNIST, trained where it is not there yet, on MNIST's digits: likelier than most clothes.
images       `mnist` on fifteen kinds of images that are none of its digits: AUROC of the combined rule and of log p(x).
alarms       Realised false alarms of every rule over 200 resplits of valid rows into validation and fresh ones.
discoveries  Realised false discovery rate over 200 mixtures of valid rows and known outliers.
drift        Valid streams that ever alarm, and how soon a doubled share below the fifth percentile is noticed.
cost         Time of a score under the combined rule, of that of the score alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service import load
from service.density.estimate import Execution
from service.density.tiling import worker_pool
from service.detector import VAEDetector
from service.errors import CalibrationError
from service.files.readers import read
from service.files.tables import read_table
from service.scoring.evaluation import RATES, evaluated
from service.scoring.model import Model
from service.scoring.options import ScoreOptions
from service.scoring.statistic_kinds import weights_of
from service.scoring.statistics import RowStatistics
from service.store.store import Store
from service.system.cpus import cpu_quota
from service.training.fit import FitOptions
from service.training.recipe import Recipe, Split
from service.training.train import train
from service.validity.band import exact, rank
from service.validity.combination import Combination
from service.validity.conformal import Discoveries, ScoreRanks
from service.validity.martingale import Martingale, Ranks, log_limit

COMBINED = ScoreOptions(rule="combined")
CLOTHES = Path("build/clothes")
RESPLITS = 200
MIN_HALF = 150
CONSOLE = Console(width=160)


# Images


def digits_of(folder: Path) -> np.ndarray:
    """The test digits, uint8."""
    return read(folder / "mnist.npz", "x_test").array


def invalid_images(digits: np.ndarray, fashion: np.ndarray) -> dict[str, np.ndarray]:
    """Fifteen kinds of images, each of the shape of `digits`, (N, 28, 28), floats 0..255."""
    generator = np.random.default_rng(0)
    count, plain = len(digits), digits.astype(np.float64)
    sparse = np.where(generator.random(plain.shape) < 0.1, 255.0, 0.0)
    greys = np.broadcast_to(generator.integers(1, 256, size=(count, 1, 1)), plain.shape).astype(np.float64)
    shuffled = generator.permuted(plain.reshape(count, -1), axis=1).reshape(plain.shape)
    return {
        "Fashion-MNIST": fashion[:count].astype(np.float64),
        "inverted": 255.0 - plain,
        "uniform noise": generator.integers(0, 256, size=plain.shape).astype(np.float64),
        "sparse noise": sparse,
        "blank black": np.zeros_like(plain),
        "constant grey": greys,
        "shuffled pixels": shuffled,
        "rotated by 90 degrees": np.rot90(plain, axes=(1, 2)).copy(),
        "white occlusion": occluded(plain, 255.0, generator),
        "black occlusion": occluded(plain, 0.0, generator),
        "blurred": each(plain, blurred),
        "dimmed": 0.4 * plain,
        "mean of two digits": 0.5 * (plain + plain[generator.permutation(count)]),
        "8 x 8 digits, enlarged": each(
            load_digits().images[generator.permutation(1797)[:count]] * (255.0 / 16), enlarged
        ),
        "flipped": plain[:, :, ::-1].copy(),
    }


def occluded(images: np.ndarray, value: float, generator: np.random.Generator) -> np.ndarray:
    """A square of 10 x 10 pixels laid over each, somewhere near the middle."""
    changed = images.copy()
    for image, (top, left) in zip(changed, generator.integers(4, 14, size=(len(images), 2)), strict=True):
        image[top : top + 10, left : left + 10] = value
    return changed


def each(images: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """What a function makes of each image."""
    pictures = (Image.fromarray(np.rint(image).clip(0, 255).astype(np.uint8)) for image in images)
    return np.stack([np.asarray(function(picture), dtype=np.float64) for picture in pictures])


def blurred(image: Image.Image) -> Image.Image:
    """By a normal of 1.5 pixels."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(1.5))


def enlarged(image: Image.Image) -> Image.Image:
    """To the size of a digit."""
    return image.resize((28, 28), Image.Resampling.BILINEAR)


def images(folder: Path, store: str, count: int) -> None:
    """The table of fifteen kinds."""
    scorer, digits = load("mnist", store, "cpu"), digits_of(folder)
    fashion = read(folder / "fashion_mnist.npz", "x_test").array
    generator = np.random.default_rng(1)
    chosen = generator.permutation(len(digits))
    valid, basis = digits[chosen[count : 3 * count]], digits[chosen[:count]]
    spec = scorer.model.input
    good = scorer.score(valid, COMBINED)
    table = Table(
        *("kind", "combined", "log p(x), one-sided", "two-sided", "caught at 1 %", "unchanged by the threshold"),
        box=box.MARKDOWN,
    )
    means = []
    for kind, pictures in invalid_images(basis, fashion).items():
        rows = scorer.rows(pictures)
        bad = scorer.score(rows, COMBINED)
        same = (spec.encode(rows) == spec.encode(scorer.rows(basis[: len(rows)]))).all(axis=1).mean()
        areas = [
            area(-good.combined_p_value, -bad.combined_p_value),
            area(-good.log_likelihood, -bad.log_likelihood),
            area(-good.p_value, -bad.p_value),
        ]
        means.append(areas)
        table.add_row(
            kind,
            *(f"{one:.4f}" for one in areas),
            f"{100 * (bad.combined_p_value <= 0.01).mean():.1f} %",
            f"{100 * same:.1f} %",
        )
    table.add_row("mean", *(f"{one:.4f}" for one in np.mean(means, axis=0)))
    alarms = ", ".join(f"{100 * (good.combined_p_value <= rate).mean():.1f} % at {100 * rate:g} %" for rate in RATES)
    CONSOLE.print(
        f"\n{scorer.published.reference}, {len(valid):,} test digits, {count} of each kind; false alarms: {alarms}\n"
    )
    CONSOLE.print(table)


def clothes(folder: Path, count: int) -> None:
    """Digits under a model of clothes."""
    store = Store(CLOTHES)
    if not store.names():
        recipe = Recipe(fit=FitOptions(minutes=12.0), calibration_share=0.1, validation_share=0.05)
        store.publish("fashion", train(read(folder / "fashion_mnist.npz", "x_train"), recipe).draft)
    scorer = load("fashion", CLOTHES, "cpu")
    valid = scorer.rows(read(folder / "fashion_mnist.npz", "x_test").array[:count])
    table = Table("rule", "AUROC", "AUPRC", *(f"caught at {100 * rate:g} %" for rate in RATES), box=box.MARKDOWN)
    for one in evaluated(scorer, valid, {"digits": scorer.rows(digits_of(folder)[:count])}):
        table.add_row(
            one.rule, f"{one.auroc:.4f}", f"{one.auprc:.4f}", *(f"{100 * share:.1f} %" for share in one.caught)
        )
    CONSOLE.print(f"\nA model of Fashion-MNIST: {count:,} of its test images are valid, {count:,} digits are not\n")
    CONSOLE.print(table)


def area(valid: np.ndarray, invalid: np.ndarray) -> float:
    """How often an invalid row is the stranger one."""
    return float(roc_auc_score(np.repeat([0, 1], [len(valid), len(invalid)]), np.concatenate([valid, invalid])))


# Promises


@dataclass(frozen=True)
class Assessed:
    """What is known of valid rows that no network was fitted to: log p(x), (n,), and statistics, (n, K), with weights."""

    name: str
    log_likelihood: np.ndarray
    statistics: np.ndarray
    weights: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def of(name: str, model: Model, statistics: RowStatistics, rows: np.ndarray) -> Assessed:
        """By a model and what computes its statistics."""
        execution = Execution(worker_pool(cpu_quota()))
        found = model.assess(model.input.rows(rows), statistics=statistics, execution=execution)
        assert found.statistics is not None
        return Assessed(name, found.estimates.log_likelihood, found.statistics, weights_of(model.input))


def assessed_by_bundled(folder: Path, store: str, count: int) -> Iterator[Assessed]:
    """The test digits, and those rows of adult that the bundled model was calibrated on."""
    mnist, adult = (load(name, store, "cpu") for name in ("mnist", "adult"))
    yield Assessed.of("mnist", mnist.model, mnist.row_statistics, digits_of(folder)[:count])
    rows = adult.model.input.array(read_table(folder / "mixed" / "adult.csv"))
    held_back = rows[Split.shuffled(len(rows), Recipe()).calibration]  # as it was when the model was trained
    yield Assessed.of("adult", adult.model, adult.row_statistics, held_back[:count])


def assessed_by_detectors(folder: Path, count: int) -> Iterator[Assessed]:
    """Halves of wine and of ten sets of ADBench, by small detectors of the other halves."""
    wine = read_table(folder / "mixed" / "wine_quality.csv")
    numbers = [at for at, cells in enumerate(wine.columns) if cells.dtype != object]
    sets = {"wine": np.stack([wine.columns[at] for at in numbers], axis=1)}
    for path in sorted((folder / "adbench").glob("*.npz"), key=lambda path: path.stat().st_size):
        stored = np.load(path)
        normal = stored["X"][stored["y"] == 0]
        if len(normal) >= 2 * MIN_HALF and len(sets) < 11:
            sets[path.stem] = normal
    for name, whole in sets.items():
        rows = np.random.default_rng(0).permutation(whole)[: 2 * count]
        detector = VAEDetector(ensemble=1, steps=1_000, rule="combined", random_state=0).fit(rows[::2])
        yield Assessed.of(name, detector.model_, detector.row_statistics_, rows[1::2])


def alarms(folder: Path, store: str, count: int, bundled: bool) -> None:
    """Realised rates over resplits: half of the rows validate, the others are fresh."""
    table = Table("rows", "rule", *(f"at {100 * rate:g} %" for rate in RATES), box=box.MARKDOWN)
    worst = 0.0
    others = () if bundled else assessed_by_detectors(folder, count)
    for assessed in (*assessed_by_bundled(folder, store, count), *others):
        rows = len(assessed.log_likelihood)
        for rule, rates in resplit(assessed).items():
            cells = []
            for rate, realised in zip(RATES, rates, strict=True):
                if not realised:
                    cells.append("too few rows")
                    continue
                promised = promise(rule, rate, rows // 2)
                # All resplits share the rows: the error is that of one split of them, which overlaps with no other.
                error = np.sqrt(promised * (1 - promised) * (2 / (rows // 2)))
                worst = max(worst, (np.mean(realised) - promised) / error)
                cells.append(f"{100 * np.mean(realised):.2f} of {100 * promised:.2f} (+-{100 * error:.2f})")
            table.add_row(f"{assessed.name}, {rows:,}", rule, *cells)
    CONSOLE.print(
        f"\nFalse alarms in per cent of fresh valid rows, over {RESPLITS} resplits, of what so many rows allow\n"
    )
    CONSOLE.print(table)
    CONSOLE.print(f"\nthe most above its promise: {worst:.2f} standard errors")


def promise(rule: str, rate: float, rows: int) -> float:
    """What a rate comes to with so many validation rows."""
    if rule == "band, both sides":
        return 2 * rank(rows, 50 * exact(rate)) / (rows + 1)
    judging = rows - rows // 2 if rule == "combined" else rows
    return rank(judging, 100 * exact(rate)) / (judging + 1)


def resplit(assessed: Assessed) -> dict[str, list[list[float]]]:
    """The realised rates of each rule, at each of RATES, in each resplit; none where the rows are too few for a rate."""
    rules = ("band, both sides", "band, low side", "combined")
    found: dict[str, list[list[float]]] = {rule: [[] for _ in RATES] for rule in rules}
    generator = np.random.default_rng(0)
    rows, half = len(assessed.log_likelihood), len(assessed.log_likelihood) // 2
    for _ in range(RESPLITS):
        order = generator.permutation(rows)
        known, fresh = order[:half], order[half:]
        scores = np.sort(assessed.log_likelihood[known])
        combined = Combination.fit(assessed.statistics[known], *assessed.weights).p_value(assessed.statistics[fresh])
        for at, rate in enumerate(RATES):
            p_values = {
                "band, both sides": ScoreRanks.of(scores, assessed.log_likelihood[fresh]).two_sided_p_value,
                "band, low side": ScoreRanks.of(scores, assessed.log_likelihood[fresh]).low_p_value,
                "combined": combined,
            }
            for rule, values in p_values.items():
                if promise(rule, rate, half) > 0:
                    found[rule][at].append(float((values <= rate * (1 + 1e-12)).mean()))
    return found


def discoveries(folder: Path, store: str, count: int) -> None:
    """Realised false discovery rates: a tenth of each mixture are Fashion-MNIST images."""
    scorer = load("mnist", store, "cpu")
    rows = scorer.rows(digits_of(folder)[:count])
    outliers = scorer.rows(read(folder / "fashion_mnist.npz", "x_test").array[: count // 5])
    weights = weights_of(scorer.model.input)
    statistics, execution = scorer.row_statistics, Execution(scorer.pool)
    assessments = [scorer.model.assess(part, statistics=statistics, execution=execution) for part in (rows, outliers)]
    (good, bad), (good_all, bad_all) = (
        [one.estimates.log_likelihood for one in assessments],
        [one.statistics for one in assessments],
    )
    assert good_all is not None and bad_all is not None  # noqa: PT018
    generator = np.random.default_rng(0)
    half, size = len(good) // 2, 500
    table = Table("rule", "level", "false discoveries", "standard error", "power", box=box.MARKDOWN)
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for _ in range(RESPLITS):
        order = generator.permutation(len(good))
        known, fresh, strange = order[:half], order[half:][:size], generator.permutation(len(bad))[: size // 9]
        is_valid = np.repeat([True, False], [len(fresh), len(strange)])
        combination = Combination.fit(good_all[known], *weights)
        p_values = {
            "log p(x), low side": (
                ScoreRanks.of(np.sort(good[known]), np.concatenate([good[fresh], bad[strange]])).low_p_value,
                half,
            ),
            "combined": (combination.p_value(np.concatenate([good_all[fresh], bad_all[strange]])), half - half // 2),
        }
        for rule, (values, validation_rows) in p_values.items():
            for level in (0.05, 0.1, 0.2):
                chosen = Discoveries.of(values, level, "low", validation_rows).chosen
                false = (chosen & is_valid).sum() / max(1, chosen.sum())
                found.setdefault((rule, level), []).append((false, (chosen & ~is_valid).sum() / (~is_valid).sum()))
    for (rule, level), pairs in found.items():
        false_rates, powers = np.array(pairs).T
        error = false_rates.std() / np.sqrt(RESPLITS)
        table.add_row(rule, f"{level:g}", f"{false_rates.mean():.4f}", f"{error:.4f}", f"{powers.mean():.3f}")
    CONSOLE.print(f"\nFalse discoveries among {size} digits and {size // 9} pieces of clothing, {RESPLITS} mixtures\n")
    CONSOLE.print(table)


# Drift


def drift(streams: int, length: int, shifted: int) -> None:
    """How often valid streams alarm, and how soon a doubled share below the fifth percentile is noticed."""
    generator = np.random.default_rng(0)
    limit, alarmed = log_limit(0.01), 0
    for _ in range(streams):
        alarmed += martingale_path(generator, generator.normal(size=length)).max() >= limit
    CONSOLE.print(f"\n{alarmed} of {streams} valid streams of {length:,} rows ever alarm at the 1 % level")
    for known in (1_000, 10_000):
        late = delays(generator, shifted, known)
        CONSOLE.print(
            f"{known:,} validation rows; twice the share below the fifth percentile, after 5,000 valid rows: seen within "
            f"1,000 rows in {100 * (late <= 1_000).mean():.1f} % of {shifted} streams; median {np.median(late):.0f}, "
            f"nine tenths within {np.quantile(late, 0.9):.0f} rows"
        )


def delays(generator: np.random.Generator, streams: int, known: int) -> np.ndarray:
    """After how many rows the shift is noticed in each stream, shape (streams,); infinity: never."""
    limit, found = log_limit(0.01), []
    for _ in range(streams):
        after = generator.normal(size=2_000)
        uniform = generator.random(2_000)
        low = generator.random(2_000) < 0.1  # below the fifth percentile, of which valid rows have a twentieth
        after = np.where(low, quantile(0.05 * uniform), quantile(0.05 + 0.95 * uniform))
        path = martingale_path(generator, np.concatenate([generator.normal(size=5_000), after]), known)
        over = np.flatnonzero(path >= limit)
        found.append(over[0] - 5_000 + 1 if over.size else np.inf)
    return np.array(found)


def martingale_path(generator: np.random.Generator, scores: np.ndarray, known: int = 1_000) -> np.ndarray:
    """Log capital along a stream, beside so many validation rows of the same pool."""
    ranks = Ranks(0.0, 1.0)
    ranks.add(ranks.cells(generator.normal(size=known)))
    return Martingale().bet(ranks.p_values(scores, generator.random(len(scores))))


def quantile(probability: np.ndarray) -> np.ndarray:
    """Of a standard normal."""
    return np.sqrt(2.0) * torch.erfinv(torch.from_numpy(2.0 * probability - 1.0)).numpy()


# Cost


def cost(folder: Path, store: str) -> None:
    """Medians of paired times on one core, 64 rows at a time."""
    torch.set_num_threads(1)
    for name in ("mnist", "adult"):
        scorer = load(name, store, "cpu", threads=1)
        if name == "mnist":
            rows = scorer.rows(digits_of(folder)[:384])
        else:
            whole = scorer.rows(scorer.model.input.array(read_table(folder / "mixed" / "adult.csv")))
            rows = whole[~np.isnan(whole).any(axis=1)][:384]
        scorer.score(rows[:64], COMBINED)  # what is set up once
        ratios, plain = [], []
        for batch in np.split(rows, 6):
            start = time.perf_counter()
            scorer.score(batch)
            between = time.perf_counter()
            scorer.score(batch, COMBINED)
            ratios.append((time.perf_counter() - between) / (between - start))
            plain.append(1e3 * (between - start) / 64)
        CONSOLE.print(
            f"{scorer.published.reference}: score {np.median(plain):.2f} ms a row; under the combined rule "
            f"{np.median(ratios):.3f} of that ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def main() -> None:
    """Run the parts that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", default="model_store")
    parser.add_argument("--rows", type=int, default=500, help="images of each invalid kind")
    parser.add_argument("--valid", type=int, default=4_000, help="valid rows to resplit")
    parser.add_argument("--bundled", action="store_true", help="alarms of the bundled models alone")
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--length", type=int, default=20_000)
    parser.add_argument("--shifted", type=int, default=200)
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "clothes": lambda options: clothes(options.data, 2 * options.rows),
        "images": lambda options: images(options.data, options.store, options.rows),
        "alarms": lambda options: alarms(options.data, options.store, options.valid, options.bundled),
        "discoveries": lambda options: discoveries(options.data, options.store, options.valid),
        "drift": lambda options: drift(options.streams, options.length, options.shifted),
        "cost": lambda options: cost(options.data, options.store),
    }
    parser.add_argument("--part", choices=list(parts), action="append")
    options = parser.parse_args()
    try:
        for part in options.part or parts:
            parts[part](options)
    except (CalibrationError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
