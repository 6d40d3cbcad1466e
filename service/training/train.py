"""From rows to a model to publish: split, choose the input's units, fit, calibrate.

Never imported by the running service.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from service.data.cells import Reading
from service.data.detect import Detection
from service.data.inputs import InputSpec, Mixed
from service.data.kinds import Schema
from service.data.survey import surveyed
from service.data.table import MISSING, Table
from service.density.estimate import Execution
from service.density.estimator import Estimator
from service.density.tiling import worker_pool
from service.errors import DataError
from service.files.readers import Rows
from service.scoring.calibration import calibrated
from service.scoring.cross_fit import calibrated_by_folds
from service.scoring.version import Draft, Published
from service.system.cpus import cpu_quota
from service.training.augmentation import Augmentation, hidden_cells, random_affine
from service.training.checkpoints import Checkpoints
from service.training.distributed import FitTask, fit_by
from service.training.feeds import Feed
from service.training.fit import NO_CHECKPOINT, FitOptions, FitReport, Progress
from service.training.inputs import architecture_of, input_of, mixed_input, network_rows
from service.training.recipe import MOST_CALIBRATION, MOST_VALIDATION, Recipe, Split, check_sizes, fitted_rows
from service.vae.network import VAE, Architecture

if TYPE_CHECKING:
    from service.training.parquet_source import Source  # it needs an extra

NEW_READING = Reading(missing=tuple(sorted(MISSING)))
PILOT_SHARE = 0.1
MIXTURE_COMPONENTS = 10


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks and checkpoints of a training run.

    Attributes:
        on_epoch: called after every epoch with the fit's progress.
        on_schema: called once with the kinds of columns and the rows that they come from, before the fit.
        checkpoints: where fits are saved, so that an interrupted run can be resumed; None: nowhere.
    """

    on_epoch: Callable[[Progress], None] = lambda progress: None
    on_schema: Callable[[Schema, Table], None] = lambda schema, rows: None
    checkpoints: Checkpoints | None = None


NO_HOOKS = Hooks()


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted and calibrated model to publish, and how the fit of its first network went."""

    draft: Draft
    report: FitReport

    def read_as(self, reading: Reading) -> Trained:
        """A copy whose card says how the cells of the training file were read."""
        return replace(self, draft=replace(self.draft, reading=reading))


def train(data: Rows, recipe: Recipe, hooks: Hooks = NO_HOOKS) -> Trained:
    """Split the rows, fit and calibrate.

    Raises:
        DataError, TrainingError, CalibrationError.
    """
    return train_on_splits(Split.all_of(data.array, recipe), data.columns, recipe, data.digest(), hooks)


def train_table(
    table: Table,
    recipe: Recipe,
    schema: Schema | None = None,
    hooks: Hooks = NO_HOOKS,
    reading: Reading = NEW_READING,
) -> Trained:
    """Train on a table of mixed columns, which may have missing cells; by default the schema is inferred.

    `reading` is how the table's cells were read, for the card.

    Raises:
        DataError, TrainingError, CalibrationError.
    """
    table.check_range()
    parts = Split.all_of(np.arange(len(table)), recipe)
    check_sizes(parts, recipe)
    spec, architecture, reading = mixed_input(
        table, table.select(fitted_rows(parts)), recipe, schema, hooks.on_schema, reading
    )
    rows = spec.array(table)
    splits = [split.map(lambda chosen: rows[chosen]) for split in parts]
    trained = fit_and_calibrate(splits, spec, architecture, recipe, table.digest(), hooks)
    return trained.read_as(reading)


def train_stream(
    source: Source,
    recipe: Recipe,
    schema: Schema | None = None,
    hooks: Hooks = NO_HOOKS,
    detection: Detection | None = None,
    keep: Collection[str] = (),
) -> Trained:
    """Train on files whose rows do not fit into memory; columns are learnt from a sample of them.

    The data are a table of mixed columns or, if the recipe names a likelihood, of plain numbers.

    Raises:
        DataError, TrainingError, CalibrationError.
    """
    from service.training.parquet_source import ParquetFeed

    if len(source.pieces) < recipe.processes:
        raise DataError(
            f"too few rows for so many processes: {len(source.pieces)} pieces, {recipe.processes} processes"
        )
    found = source.gathered(is_plain=recipe.likelihood is not None)
    survey = surveyed(found.sample, detection, keep, schema)
    if recipe.likelihood is None:
        spec, architecture, reading = mixed_input(
            survey.table, survey.table, recipe, survey.schema, hooks.on_schema, survey.reading
        )
    else:
        spec, likelihood = input_of(Rows(survey.table.numbers(), survey.table.names), recipe)
        architecture, reading = architecture_of(spec.features, likelihood, recipe), survey.reading
    parts, reader = (found.sample, found.validation, found.calibration), spec.reader(reading)
    split = Split(*(reader.table(raw) if len(raw) else np.zeros((0, spec.features)) for raw in parts))
    check_sizes([split], recipe)
    feed = ParquetFeed(source, spec, reader, recipe.fit.batch_size, found.train_rows, network_rows(spec, split.train))
    trained = fit_and_calibrate([split], spec, architecture, recipe, source.digest, hooks, feed)
    return trained.read_as(reading)


def train_on_splits(
    splits: Sequence[Split],
    columns: tuple[str, ...] | None,
    recipe: Recipe,
    data_digest: str,
    hooks: Hooks = NO_HOOKS,
) -> Trained:
    """Fit and calibrate on rows that are already split."""
    check_sizes(splits, recipe)
    spec, likelihood = input_of(Rows(fitted_rows(splits), columns), recipe)
    architecture = architecture_of(spec.features, likelihood, recipe)
    return fit_and_calibrate(splits, spec, architecture, recipe, data_digest, hooks)


def fit_and_calibrate(
    splits: Sequence[Split],
    spec: InputSpec,
    architecture: Architecture,
    recipe: Recipe,
    data_digest: str,
    hooks: Hooks,
    feed: Feed | None = None,
) -> Trained:
    """Fit networks to rows of a known input spec, or to a feed of more such rows, and calibrate them."""
    checkpoints = hooks.checkpoints
    if checkpoints is not None:
        key = hashlib.sha256(f"{data_digest}\n{recipe}\n{architecture}\n{spec.fingerprint_text()}".encode()).hexdigest()
        checkpoints = checkpoints.start(key)
    vaes, report, bounds = fitted(spec, splits, architecture, recipe, hooks.on_epoch, checkpoints, feed)
    by_folds = {"folds": recipe.folds} if recipe.folds > 1 else {}
    pilots = [spec.rows(one.validation if one.pilot is None else one.pilot) for one in splits]
    calibrating = [spec.rows(one.calibration) for one in splits]
    percentiles, execution = recipe.percentiles, Execution(worker_pool(cpu_quota()))
    if by_folds:
        model, calibration = calibrated_by_folds(
            vaes, spec, recipe.estimator, pilots, calibrating, percentiles, execution
        )
    else:
        known = spec.rows(splits[0].train)
        model, calibration = calibrated(
            vaes, spec, recipe.estimator, pilots[0], calibrating[0], percentiles, execution, known
        )
    training = training_record(splits[0], recipe.fit, report, data_digest, feed)
    draft = Draft(
        model,
        calibration,
        training=training | {"validation_bounds": bounds} | by_folds,
        calibration_data={"digest": data_digest, "rows": len(calibration.scores), "held_back": True} | by_folds,
    )
    return Trained(draft, report)


def fitted(
    spec: InputSpec,
    splits: Sequence[Split],
    architecture: Architecture,
    recipe: Recipe,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Checkpoints | None = None,
    feed: Feed | None = None,
) -> tuple[list[VAE], FitReport, dict[str, float]]:
    """Networks with the better prior, the first one's fit report, and its validation bound with each prior tried.

    Each network is fitted to its own split, or all to the only one, or to a feed of rows that do not fit into memory.
    """
    members = splits if len(splits) > 1 else [*splits] * recipe.ensemble
    augment = augmentation_of(spec, splits[0].train, recipe)
    hide = hidden_cells(spec.transform.widths, recipe.hide) if isinstance(spec.transform, Mixed) else None
    priors = ("normal", "mixture") if recipe.prior == "auto" else (recipe.prior,)
    fits = len(priors) + len(members) - 1
    minutes = None if recipe.fit.minutes is None else recipe.fit.minutes / fits
    done = count()

    def fitted_with(prior: str, member: int) -> tuple[VAE, FitReport]:
        rows, judged = network_rows(spec, members[member].train), network_rows(spec, members[member].validation)
        seed = recipe.fit.seed + member
        torch.manual_seed(seed)  # the layers' initial weights have no generator of their own
        vae = VAE(replace(architecture, prior_components=MIXTURE_COMPONENTS if prior == "mixture" else 0))
        told = partial(tell_part, on_epoch, next(done), fits)
        kept = NO_CHECKPOINT if checkpoints is None else checkpoints.of(f"{prior}-{member}")
        options = replace(recipe.fit, minutes=minutes, seed=seed)
        report = fit_by(recipe.processes, FitTask(vae, feed or rows, judged, options, augment, hide, kept), told)
        return vae.eval().requires_grad_(False), report

    tried: dict[str, tuple[VAE, FitReport]] = {}
    for prior in priors:
        tried[prior] = fitted_with(prior, 0)
        if tried[prior][1].stopped == "interrupted":
            break
    bounds = {prior: report.validation.bound for prior, (_, report) in tried.items()}
    best = max(bounds, key=lambda prior: bounds[prior])
    vae, report = tried[best]
    others = [fitted_with(best, member)[0] for member in range(1, len(members))]
    return [vae, *others], report, bounds


def tell_part(on_epoch: Callable[[Progress], None], part: int, parts: int, progress: Progress) -> None:
    """Report an epoch of one of several consecutive fits as progress of them all."""
    left_s = progress.seconds_left + (parts - part - 1) * (progress.seconds_left / max(1e-9, 1.0 - progress.fraction))
    on_epoch(replace(progress, fraction=(part + progress.fraction) / parts, seconds_left=left_s))


def augmentation_of(spec: InputSpec, rows: np.ndarray, recipe: Recipe) -> Augmentation | None:
    """Random image distortions, if the recipe asks for them."""
    if not recipe.augment:
        return None
    if spec.kind != "image":
        raise DataError("--augment distorts images; the data are a table")
    height, width = spec.shape
    if spec.transform.kind != "binary":
        return random_affine(height, width, "keep", recipe.augment)
    # Images that were black and white to begin with may have noisy edges; grey ones get theirs from the threshold.
    came_binary = bool(((rows == rows.min()) | (rows == rows.max())).all())
    return random_affine(height, width, "draw" if came_binary else "threshold", recipe.augment)


def training_record(
    split: Split, options: FitOptions, report: FitReport, data_digest: str, feed: Feed | None = None
) -> dict[str, Any]:
    """What the card records about the training."""
    rows = len(split.train) if feed is None else feed.rows
    return {
        "data": {"digest": data_digest, "rows": rows, "validation_rows": len(split.validation)},
        "options": dataclasses.asdict(options),
        "report": dataclasses.asdict(report),
    }


def recalibrate(
    published: Published,
    data: Rows,
    estimator: Estimator | None = None,
    percentiles: tuple[float, float] | None = None,
) -> Draft:
    """The same network, calibrated on other rows, or for another estimator or band.

    A random tenth of the rows are the pilot rows, and the rest calibrate, both up to the most that count
    (`service.training.recipe`).
    """
    order = np.random.default_rng(0).permutation(len(data.array))
    pilot, rest = np.split(order, [min(MOST_VALIDATION, round(PILOT_SHARE * len(order)))])
    rows = data.array[rest[:MOST_CALIBRATION]]
    return recalibrate_on(published, data.array[pilot], rows, data.digest(), estimator, percentiles)


def recalibrate_on(
    published: Published,
    pilot: np.ndarray,
    rows: np.ndarray,
    data_digest: str,
    estimator: Estimator | None = None,
    percentiles: tuple[float, float] | None = None,
    known: np.ndarray | None = None,
) -> Draft:
    """Recalibrate on pilot rows and calibration rows that are already split.

    `known` are rows that the network was fitted to, among which neighbours are searched; default: those of the old
    calibration.
    """
    old, statistics = published.model, published.calibration.statistics
    if known is None and statistics is not None:
        known = statistics.known.rows
    model, calibration = calibrated(
        [one.vae for one in old.members],
        old.input,
        estimator or old.estimator,
        old.input.rows(pilot),
        old.input.rows(rows),
        percentiles or published.calibration.percentiles,
        Execution(worker_pool(cpu_quota())),
        None if known is None else old.input.rows(known),
    )
    return Draft(
        model,
        calibration,
        training=published.card.training,
        calibration_data={"digest": data_digest, "rows": len(rows), "from": str(published.reference)},
        description=published.card.description,
        reading=published.card.reading,
    )
