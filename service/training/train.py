"""From rows to a published model: split, choose the input's units, fit, calibrate, publish.

Never imported by the running service.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from service.data.columns import CategoryColumn, NumberColumn, Schema, Straight, Table, infer, learn
from service.data.inputs import Binary, Grey, InputSpec, Mixed, Standard, Transform
from service.density.estimator import Estimator, worker_pool
from service.errors import CalibrationError, DataError
from service.files.readers import Rows
from service.scoring.cross_fit import calibrated_by_folds
from service.scoring.model import calibrated
from service.settings import cpu_quota
from service.store.store import Published, Reference, Store
from service.training.augmentation import Augmentation, hidden_cells, random_affine
from service.training.checkpoints import Checkpoints
from service.training.distributed import Task, fit_by
from service.training.fit import NO_CHECKPOINT, Feed, FitOptions, FitReport, Progress
from service.vae.mixed import Categorical, Column, Count, Real
from service.vae.network import VAE, ActivationName, Architecture, LikelihoodName
from service.validity.band import Band

if TYPE_CHECKING:
    from service.training.parquet_source import Source  # it needs an extra

PriorName = Literal["normal", "mixture", "auto"]
MIN_TRAINING_ROWS = 10
PILOT_SHARE = 0.1
MIN_STD = 0.05  # of a standardised column, given z
MIXTURE_COMPONENTS = 10
TABLE_FIT = FitOptions(steps=10_000, importance_samples=5)  # how networks of mixed columns are fitted


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a user may choose about a model; None means: from the data.

    `hide` is the share of a table's training rows that have cells hidden, so that any may be missing later. The prior
    `auto` fits a network with each, within the same minutes, and keeps the one with the better bound on the validation
    rows. `ensemble` networks are fitted from different starts, and their densities averaged. With `folds` above 1 there are
    so many networks, each fitted without one fold of the rows, on which it is calibrated. So many `processes` share each
    batch.
    """

    likelihood: LikelihoodName | None = None
    threshold: float | None = None
    latents: int | None = None
    hidden: tuple[int, ...] | None = None
    activation: ActivationName = "silu"
    prior: PriorName = "normal"
    ensemble: int = 1
    folds: int = 1
    processes: int = 1
    fit: FitOptions = FitOptions()
    estimator: Estimator = Estimator()
    augment: float = 0.0
    hide: float = 0.5
    percentiles: tuple[float, float] = (25.0, 75.0)
    validation_share: float = 0.1
    calibration_share: float = 0.2


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint rows to train on, to stop early by, and to calibrate on.

    The pilot rows tell the estimator where to stop; without any, the validation rows do: they were not fitted to, and have
    done their work.
    """

    train: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray
    pilot: np.ndarray | None = None

    @staticmethod
    def shuffled(rows: np.ndarray, recipe: Recipe) -> Split:
        """Random disjoint parts of the rows, shape (N, ...), of the recipe's sizes."""
        validation = round(recipe.validation_share * len(rows))
        calibration = round(recipe.calibration_share * len(rows))
        order = np.random.default_rng(recipe.fit.seed).permutation(len(rows))
        parts = np.split(rows[order], [calibration, calibration + validation])
        return Split(train=parts[2], validation=parts[1], calibration=parts[0])

    @staticmethod
    def by_folds(rows: np.ndarray, recipe: Recipe) -> list[Split]:
        """For each network its fold to calibrate on, and the other rows, shape (N, ...), to fit to, in random order.

        Folds are of one size; up to K - 1 rows that are left over calibrate nothing.
        """
        generator, size = np.random.default_rng(recipe.fit.seed), len(rows) // recipe.folds
        order = generator.permutation(len(rows))
        splits = []
        for fold in range(recipe.folds):
            held = slice(fold * size, (fold + 1) * size)
            rest = generator.permutation(np.delete(order, held))
            validation = max(1, round(recipe.validation_share * len(rest)))
            splits.append(Split(rows[rest[validation:]], rows[rest[:validation]], rows[order[held]]))
        return splits

    @staticmethod
    def all_of(rows: np.ndarray, recipe: Recipe) -> list[Split]:
        """One for each network that is calibrated by itself."""
        return Split.by_folds(rows, recipe) if recipe.folds > 1 else [Split.shuffled(rows, recipe)]

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Split:
        """What a function makes of each part."""
        pilot = None if self.pilot is None else function(self.pilot)
        return Split(function(self.train), function(self.validation), function(self.calibration), pilot)


def input_of(rows: Rows, recipe: Recipe) -> tuple[InputSpec, LikelihoodName]:
    """What the rows mean, and the likelihood that fits them unless the recipe names one.

    Three-dimensional arrays are grey images, 0..255. Two values only make a Bernoulli model; other images are grey
    levels, other tables continuous columns.
    """
    array = rows.array
    is_image = array.ndim == 3
    low, high = float(array.min()), float(array.max())
    if is_image and (low < 0 or high > 255):
        raise DataError(f"pixels range from {low:g} to {high:g}, expected 0 to 255")
    two_valued = low < high and bool(((array == low) | (array == high)).all())
    likelihood = recipe.likelihood or (
        "bernoulli" if two_valued else "discretized_logistic" if is_image else "gaussian"
    )
    transform: Transform
    if likelihood == "bernoulli":
        ends = (0.0, 255.0) if is_image else (low, high)
        if not is_image and not two_valued and recipe.threshold is None:
            raise DataError("the columns have more than two values: a bernoulli model needs --threshold")
        transform = Binary(threshold=midpoint(ends, recipe.threshold), low=ends[0], high=ends[1])
    elif recipe.threshold is not None:
        raise DataError("--threshold goes with the bernoulli likelihood")
    elif likelihood == "discretized_logistic":
        if low < 0 or high > 255:
            raise DataError(f"values range from {low:g} to {high:g}, 8-bit grey levels from 0 to 255")
        transform = Grey()
    else:
        transform = standard(array.reshape(len(array), -1), rows.columns)
    shape = tuple(int(length) for length in array.shape[1:])
    kind = "image" if is_image else "table"
    return InputSpec(kind=kind, shape=shape, columns=rows.columns, transform=transform), likelihood


def midpoint(ends: tuple[float, float], threshold: float | None) -> float:
    """The threshold given, or halfway between black and white."""
    return (ends[0] + ends[1]) / 2.0 if threshold is None else threshold


def standard(rows: np.ndarray, columns: tuple[str, ...] | None) -> Standard:
    """Means and standard deviations of the columns, shape (N, D), as float32 will see them."""
    values = rows.astype(np.float32).astype(np.float64)
    scale = values.std(axis=0)
    constant = np.flatnonzero(scale <= 1e-7 * np.maximum(1e-30, np.abs(values).max(axis=0)))
    if constant.size:
        name = constant[0] if columns is None else repr(columns[constant[0]])
        raise DataError(f"column {name} is constant: it says nothing of a row; leave it out with --columns")
    return Standard(center=tuple(values.mean(axis=0).tolist()), scale=tuple(scale.tolist()))


def network_columns(column: NumberColumn | CategoryColumn) -> list[Column]:
    """What the network sees of a table's column, with its likelihood."""
    if isinstance(column, CategoryColumn):
        return [Categorical(len(column.values), column.unseen)]
    # Which atom it is, or none: there is no other value.
    gate: list[Column] = [Categorical(len(column.atoms) + 1, 0.0)] if column.atoms else []
    if column.kind == "count":
        return [*gate, Count(column.scale.offset, column.center, column.spread, MIN_STD)]  # type: ignore[union-attr]
    # Below half a step of the column a density times the step would be more than a mass can be.
    step = column.resolution / column.spread if isinstance(column.scale, Straight) else 0.0
    return [*gate, Real(max(MIN_STD, 0.5 * step))]


def table_architecture(transform: Mixed, recipe: Recipe) -> Architecture:
    """The network for a table of mixed columns: wide for its size, since that is what densities of tables gain most by."""
    columns = tuple(one for column in transform.columns for one in network_columns(column))
    sized = replace(
        recipe,
        hidden=recipe.hidden if recipe.hidden is not None else (min(400, max(256, 4 * len(columns))),) * 2,
        latents=recipe.latents or max(2, min(16, len(columns) // 2)),
    )
    return replace(architecture_of(len(columns), "columns", sized), columns=columns)


def architecture_of(features: int, likelihood: LikelihoodName, recipe: Recipe) -> Architecture:
    """The network's sizes: those of the recipe, or some that suit the number of columns."""
    hidden = recipe.hidden if recipe.hidden is not None else (min(400, max(64, 4 * features)),) * 2
    latents = recipe.latents or max(2, min(40, features // 2))
    return Architecture(features, latents, hidden, recipe.activation, likelihood)


def train(
    store: Store,
    name: str,
    data: Rows,
    recipe: Recipe,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    description: str = "",
    checkpoints: Checkpoints | None = None,
) -> tuple[Reference, FitReport]:
    """Split the rows, fit, calibrate and publish.

    Args:
        checkpoints: where the fits are kept while they last; None: nowhere.

    Raises:
        DataError, TrainingError, CalibrationError: before anything is written.
    """
    splits = Split.all_of(data.array, recipe)
    return train_on_splits(store, name, splits, data.columns, recipe, on_epoch, description, data.digest(), checkpoints)


def train_table(
    store: Store,
    name: str,
    table: Table,
    recipe: Recipe,
    schema: Schema | None = None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    description: str = "",
    on_schema: Callable[[Schema, Table], None] = lambda schema, rows: None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Reference, FitReport]:
    """The same for a table of mixed columns, whose cells may be missing; its schema is inferred where none is given.

    `on_schema` is told what each column is taken for, once that can be learnt from, with the rows that say so.

    Raises:
        DataError, TrainingError, CalibrationError: before anything is written.
    """
    table.check_range()
    parts = Split.all_of(np.arange(len(table)), recipe)
    check_sizes(parts, recipe)
    spec, architecture = mixed_input(table, table.select(fitted_rows(parts)), recipe, schema, on_schema)
    rows = spec.array(table)
    splits = [split.map(lambda chosen: rows[chosen]) for split in parts]
    return fit_and_publish(
        store, name, splits, spec, architecture, recipe, on_epoch, description, table.digest(), checkpoints
    )


def train_stream(
    store: Store,
    name: str,
    source: Source,
    recipe: Recipe,
    schema: Schema | None = None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    description: str = "",
    on_schema: Callable[[Schema, Table], None] = lambda schema, rows: None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Reference, FitReport]:
    """The same for files whose rows do not fit into memory; columns are learnt from a sample of them.

    A table of mixed columns or, where the recipe names a likelihood, of plain ones.

    Raises:
        DataError, TrainingError, CalibrationError: before anything is written.
    """
    from service.training.parquet_source import ParquetFeed

    if len(source.pieces) < recipe.processes:
        raise DataError(f"{len(source.pieces)} pieces of rows cannot be shared by {recipe.processes} processes")
    found = source.gathered(is_plain=recipe.likelihood is not None)
    if recipe.likelihood is None:
        spec, architecture = mixed_input(found.sample, found.sample, recipe, schema, on_schema)
    else:
        spec, likelihood = input_of(Rows(found.sample.numbers(), found.sample.names), recipe)
        architecture = architecture_of(spec.features, likelihood, recipe)
    parts = (found.sample, found.validation, found.calibration)
    split = Split(*(spec.array(table) if len(table) else np.zeros((0, spec.features)) for table in parts))
    check_sizes([split], recipe)
    feed = ParquetFeed(source, spec, recipe.fit.batch_size, found.train_rows, network_rows(spec, split.train))
    return fit_and_publish(
        store, name, [split], spec, architecture, recipe, on_epoch, description, source.digest, checkpoints, feed
    )


def mixed_input(
    table: Table,
    fitted: Table,
    recipe: Recipe,
    schema: Schema | None,
    on_schema: Callable[[Schema, Table], None],
) -> tuple[InputSpec, Architecture]:
    """What mixed columns mean, of kinds given or inferred from the table and learnt from its `fitted` rows; the network."""
    kinds = schema or infer(table)
    transform = Mixed(columns=learn(kinds, fitted))
    on_schema(kinds, table)
    names = tuple(column.name for column in transform.columns)
    spec = InputSpec(kind="table", shape=(len(names),), columns=names, transform=transform)
    return spec, table_architecture(transform, recipe)


def train_on_splits(
    store: Store,
    name: str,
    splits: Sequence[Split],
    columns: tuple[str, ...] | None,
    recipe: Recipe,
    on_epoch: Callable[[Progress], None],
    description: str,
    data_digest: str,
    checkpoints: Checkpoints | None = None,
) -> tuple[Reference, FitReport]:
    """Fit, calibrate and publish on rows that are split already."""
    check_sizes(splits, recipe)
    spec, likelihood = input_of(Rows(fitted_rows(splits), columns), recipe)
    architecture = architecture_of(spec.features, likelihood, recipe)
    return fit_and_publish(
        store, name, splits, spec, architecture, recipe, on_epoch, description, data_digest, checkpoints
    )


def fitted_rows(splits: Sequence[Split]) -> np.ndarray:
    """The rows that the units of the input are learnt from: by folds all, for there is one input for all networks."""
    first, *others = splits
    return np.concatenate([first.train, first.validation, first.calibration]) if others else first.train


def check_sizes(splits: Sequence[Split], recipe: Recipe) -> None:
    """Refuse too few rows before any time is spent."""
    split = splits[0]
    if len(split.train) < MIN_TRAINING_ROWS or not len(split.validation) or not len(split.calibration):
        raise DataError(
            f"{len(split.train)} rows are left to train on, {len(split.validation)} to stop early by and "
            f"{len(split.calibration)} to calibrate on, expected at least {MIN_TRAINING_ROWS}, 1 and 1"
        )
    check_calibration_size(sum(len(one.calibration) for one in splits), recipe)


def fit_and_publish(
    store: Store,
    name: str,
    splits: Sequence[Split],
    spec: InputSpec,
    architecture: Architecture,
    recipe: Recipe,
    on_epoch: Callable[[Progress], None],
    description: str,
    data_digest: str,
    checkpoints: Checkpoints | None = None,
    feed: Feed | None = None,
) -> tuple[Reference, FitReport]:
    """Fit networks to rows of known units, or to a feed of more such rows, calibrate and publish them."""
    if checkpoints is not None:
        key = hashlib.sha256(f"{data_digest}\n{recipe}\n{architecture}\n{spec.model_dump_json()}".encode()).hexdigest()
        checkpoints = checkpoints.begun(key)
    vaes, report, bounds = fitted(spec, splits, architecture, recipe, on_epoch, checkpoints, feed)
    split, by_folds = splits[0], {"folds": recipe.folds} if recipe.folds > 1 else {}
    pilots = [spec.rows(one.validation if one.pilot is None else one.pilot) for one in splits]
    calibrating = [spec.rows(one.calibration) for one in splits]
    percentiles, pool = recipe.percentiles, worker_pool(cpu_quota())
    if by_folds:
        model, calibration = calibrated_by_folds(vaes, spec, recipe.estimator, pilots, calibrating, percentiles, pool)
    else:
        model, calibration = calibrated(
            vaes, spec, recipe.estimator, pilots[0], calibrating[0], percentiles, pool, spec.rows(split.train)
        )
    reference = store.publish(
        name,
        model,
        calibration,
        training=training_record(split, recipe.fit, report, data_digest, feed)
        | {"validation_bounds": bounds}
        | by_folds,
        calibration_data={"digest": data_digest, "rows": len(calibration.scores), "held_back": True} | by_folds,
        description=description,
    )
    if checkpoints is not None:
        checkpoints.clear()
    return reference, report


def fitted(
    spec: InputSpec,
    splits: Sequence[Split],
    architecture: Architecture,
    recipe: Recipe,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Checkpoints | None = None,
    feed: Feed | None = None,
) -> tuple[list[VAE], FitReport, dict[str, float]]:
    """Networks with the better prior, how the first one's fit went, and its validation bound with each prior tried.

    Each is fitted to a split of its own, or all to the only one, or to a feed of rows beyond memory.
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
        report = fit_by(recipe.processes, Task(vae, feed or rows, judged, options, augment, hide, kept), told)
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
    """Tell of an epoch of one of several fits that follow each other."""
    left_s = progress.seconds_left + (parts - part - 1) * (progress.seconds_left / max(1e-9, 1.0 - progress.fraction))
    on_epoch(replace(progress, fraction=(part + progress.fraction) / parts, seconds_left=left_s))


def augmentation_of(spec: InputSpec, rows: np.ndarray, recipe: Recipe) -> Augmentation | None:
    """Random distortions, where the recipe asks for them."""
    if not recipe.augment:
        return None
    if spec.kind != "image":
        raise DataError("--augment distorts images; the data are a table")
    height, width = spec.shape
    if spec.transform.kind != "binary":
        return random_affine(height, width, "keep", recipe.augment)
    # Images that came in black and white may have noisy edges; grey ones get theirs from the threshold.
    came_binary = bool(((rows == rows.min()) | (rows == rows.max())).all())
    return random_affine(height, width, "draw" if came_binary else "threshold", recipe.augment)


def check_calibration_size(rows: int, recipe: Recipe) -> None:
    """Refuse too few calibration rows before the time of a fit is spent."""
    try:
        Band.fit(np.zeros(rows), recipe.percentiles)
    except CalibrationError as error:
        way = "" if recipe.folds > 1 else " (held back by --calibration-share; with few rows, see --folds)"
        raise CalibrationError(f"{error}{way}") from error


def network_rows(spec: InputSpec, rows: np.ndarray) -> torch.Tensor:
    """Rows in their own units to a tensor in the network's, shape (N, D)."""
    return torch.from_numpy(spec.encode(spec.rows(rows)))


def training_record(
    split: Split, options: FitOptions, report: FitReport, data_digest: str, feed: Feed | None = None
) -> dict[str, Any]:
    """What the card says of the training."""
    rows = len(split.train) if feed is None else feed.rows
    return {
        "data": {"digest": data_digest, "rows": rows, "validation_rows": len(split.validation)},
        "options": dataclasses.asdict(options),
        "report": dataclasses.asdict(report),
    }


def recalibrate(
    store: Store,
    published: Published,
    data: Rows,
    estimator: Estimator | None = None,
    percentiles: tuple[float, float] | None = None,
) -> Reference:
    """Publish a new version: the same network, calibrated on other rows, or for another estimator or band.

    A random tenth of the rows are the pilot rows; the rest calibrate.
    """
    order = np.random.default_rng(0).permutation(len(data.array))
    pilot, rest = np.split(data.array[order], [round(PILOT_SHARE * len(order))])
    return recalibrate_on(store, published, pilot, rest, data.digest(), estimator, percentiles)


def recalibrate_on(
    store: Store,
    published: Published,
    pilot: np.ndarray,
    rows: np.ndarray,
    data_digest: str,
    estimator: Estimator | None = None,
    percentiles: tuple[float, float] | None = None,
    known: np.ndarray | None = None,
) -> Reference:
    """The same on pilot rows and rows to calibrate on that are apart already.

    `known` are rows that the network was fitted to, to look for neighbours among; by default those that are known.
    """
    old, evidence = published.model, published.calibration.evidence
    if known is None and evidence is not None:
        known = evidence.known.rows
    model, calibration = calibrated(
        [one.vae for one in old.members],
        old.input,
        estimator or old.estimator,
        old.input.rows(pilot),
        old.input.rows(rows),
        percentiles or published.calibration.percentiles,
        worker_pool(cpu_quota()),
        None if known is None else old.input.rows(known),
    )
    return store.publish(
        published.reference.name,
        model,
        calibration,
        training=published.card.training,
        calibration_data={"digest": data_digest, "rows": len(rows), "from": str(published.reference)},
        description=published.card.description,
    )
