"""From rows to a model to publish: split, choose the input's units, fit, calibrate.

Never imported by the running service.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from service.data.beside import Beside, Constant, LastDate
from service.data.cells import CellReader, RawTable, Reading
from service.data.detect import Detection
from service.data.domains import Domains
from service.data.inputs import InputSpec
from service.data.kinds import IS_CONSTANT, Schema, infer
from service.data.survey import surveyed
from service.data.table import MISSING, Table, is_unreadable
from service.density.estimate import Execution
from service.density.tiling import worker_pool
from service.errors import DataError
from service.files.readers import Rows
from service.scoring.calibration import Calibration, calibrated
from service.scoring.cross_fit import calibrated_by_folds
from service.scoring.fingerprints import Fingerprints
from service.scoring.groups import GroupPlan, Terms
from service.scoring.missing_patterns import with_usual_patterns
from service.scoring.model import Model, suited
from service.scoring.pace import PREPARING
from service.scoring.version import Draft
from service.system.cpus import cpu_quota
from service.training.aside import with_rows_aside
from service.training.checkpoints import Checkpoints
from service.training.course import Course, TrainingProgress
from service.training.fit import FitOptions, FitReport
from service.training.inputs import mixed_input, network_rows, plain_input
from service.training.networks import fitted, pilot_of, sized
from service.training.recipe import (
    TO_PUBLISH,
    Recipe,
    Split,
    calibration_needed,
    check_sizes,
    fitted_rows,
    least_calibration,
)
from service.training.repeats import Repeats, RepeatsName, numbered
from service.training.selftest import with_selftest
from service.vae.network import VAE, Architecture

if TYPE_CHECKING:
    from service.training.parquet_source import ParquetFeed, Source  # it needs an extra

NEW_READING = Reading(missing=tuple(sorted(MISSING)))
LEARNING = "learning what the columns are"
DATES = "dates", "times, as "  # how reasons begin for which columns of dates are left out


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks and checkpoints of a training run.

    Attributes:
        on_progress: called at every change of stage, and a few times a second, with the progress of the whole run.
        on_schema: called once with the kinds of columns and the rows that they come from, before the fit.
        checkpoints: where fits are saved, so that an interrupted run can be resumed; None: nowhere.
    """

    on_progress: Callable[[TrainingProgress], None] | None = None
    on_schema: Callable[[Schema, Table], None] = lambda schema, rows: None
    checkpoints: Checkpoints | None = None


NO_HOOKS = Hooks()


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted and calibrated model to publish, and how it was made.

    Attributes:
        report: how the fit of its first network went.
        left_out: the columns that the model does not read, and why.
        notes: what was left undone for lack of time.
    """

    draft: Draft
    report: FitReport
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def with_repeats(self, repeats: Repeats) -> Trained:
        """A copy that says what was found of rows that repeat, or belong together."""
        if repeats.kind == "none":
            return self
        data = self.draft.calibration_data | {"repeats": repeats.kind}
        return replace(self, draft=replace(self.draft, calibration_data=data), notes=(repeats.note, *self.notes))

    def of_table(self, reading: Reading, kinds: Schema, names: Sequence[str]) -> Trained:
        """A copy that says how the cells of the training file were read, and which of its columns were left out."""
        ignored = [(one.name, one.why or "ignored") for one in kinds.columns if one.kind == "ignored"]
        known = {one.name for one in kinds.columns}
        absent = [(name, "not in the schema") for name in names if name not in known]
        draft = replace(self.draft, reading=reading, kinds=kinds.columns)
        return replace(self, draft=draft, left_out=(*ignored, *absent))


def train(data: Rows, recipe: Recipe, hooks: Hooks = NO_HOOKS, repeats: RepeatsName = "auto") -> Trained:
    """Split the rows, fit and calibrate.

    Raises:
        DataError, TrainingError, CalibrationError.
    """
    course = Course(hooks.on_progress, recipe.fit.minutes)
    found = Repeats.of(data.array, repeats, is_image=data.are_images)
    parts = Split.all_of(len(data.array), recipe, found.groups)
    splits = [split.map(lambda chosen: data.array[chosen]) for split in parts]
    trained = train_on_splits(splits, data.columns, recipe, data.digest(), hooks, course).with_repeats(found)
    return replace(trained, draft=replace(trained.draft, images=data.images), notes=(*data.notes, *trained.notes))


def train_table(
    table: Table,
    recipe: Recipe,
    schema: Schema | None = None,
    hooks: Hooks = NO_HOOKS,
    reading: Reading = NEW_READING,
    repeats: RepeatsName = "auto",
    group: np.ndarray | None = None,
) -> Trained:
    """Train on a table of mixed columns, which may have missing cells; by default the schema is inferred.

    Args:
        reading: how the table's cells were read, for the card.
        repeats: whether rows that repeat another are copies of it; by default that is found out.
        group: a cell for each row, shape (N,): rows with the same one belong together.

    Raises:
        DataError, TrainingError, CalibrationError.
    """
    course = Course(hooks.on_progress, recipe.fit.minutes)
    course.enter(LEARNING)
    table.check_range()
    check_sizes(Split.all_of(len(table), recipe), recipe)
    kinds = schema or infer(table)
    found = Repeats.by_column(group) if group is not None else Repeats.of(table_rows(table, kinds), repeats)
    parts = Split.all_of(len(table), recipe, found.groups)
    check_sizes(parts, recipe)
    fitted_table = table.select(fitted_rows(parts))
    spec, architecture, reading = mixed_input(table, fitted_table, recipe, kinds, hooks.on_schema, reading)
    rows = spec.array(table)
    domains = Domains.learnt(spec, rows[fitted_rows(parts)], columns_beside(kinds, fitted_table))
    assert domains is not None
    whole = np.concatenate([rows, spec.reader(reading, domains.beside).table_beside(table)], axis=1)
    splits = [replace(split.map(lambda chosen: rows[chosen]), calibration=whole[split.calibration]) for split in parts]
    if unreadable := int(is_unreadable(rows).any(axis=1).sum()):
        course.notes.append(f"{unreadable:,} of {len(rows):,} rows have a cell that cannot be read, and are invalid")
    trained = fit_and_calibrate(splits, spec, architecture, recipe, table.digest(), hooks, course, domains=domains)
    return trained.of_table(reading, kinds, table.names).with_repeats(found)


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
    course = Course(hooks.on_progress, recipe.fit.minutes)
    course.enter(LEARNING)
    found = source.gathered(is_plain=recipe.likelihood is not None)
    survey = surveyed(found.sample, detection, keep, schema)
    if recipe.likelihood is None:
        spec, architecture, reading = mixed_input(
            survey.table, survey.table, recipe, survey.schema, hooks.on_schema, survey.reading
        )
    else:
        rows = Rows(survey.table.numbers(), survey.table.names)
        spec, architecture = plain_input(rows, recipe)
        reading = survey.reading
    reader = replace(spec.reader(reading), is_strict=detection is None or detection.bad_cells == "stop")
    sample, validation = (read_rows(spec, reader, raw) for raw in (found.sample, found.validation))
    domains = Domains.learnt(spec, sample, columns_beside(survey.schema, survey.table))
    calibrating = replace(reader, beside=() if domains is None else domains.beside)
    split = Split(sample, validation, read_rows(spec, calibrating, found.calibration))
    # Rows come in the files' order, and which of those held back are used for what depends on their place.
    split = split.map(np.random.default_rng(recipe.fit.seed).permutation)
    check_sizes([split], recipe)
    feed = ParquetFeed(source, spec, reader, recipe.fit.batch_size, found.train_rows, network_rows(spec, split.train))
    trained = fit_and_calibrate([split], spec, architecture, recipe, source.digest, hooks, course, feed, domains)
    return trained if recipe.likelihood is not None else trained.of_table(reading, survey.schema, source.names)


def train_on_splits(
    splits: Sequence[Split],
    columns: tuple[str, ...] | None,
    recipe: Recipe,
    data_digest: str,
    hooks: Hooks = NO_HOOKS,
    course: Course | None = None,
) -> Trained:
    """Fit and calibrate on rows that are already split."""
    course = course or Course(hooks.on_progress, recipe.fit.minutes)
    course.enter(LEARNING)
    check_sizes(splits, recipe)
    spec, architecture = plain_input(Rows(fitted_rows(splits), columns), recipe)
    return fit_and_calibrate(splits, spec, architecture, recipe, data_digest, hooks, course)


def fit_and_calibrate(
    splits: Sequence[Split],
    spec: InputSpec,
    architecture: Architecture,
    recipe: Recipe,
    data_digest: str,
    hooks: Hooks,
    course: Course,
    feed: ParquetFeed | None = None,
    domains: Domains | None = None,
) -> Trained:
    """Fit networks to rows of a known input spec, or to a feed of more such rows, and calibrate them."""
    recipe = replace(recipe, estimator=suited(recipe.estimator, spec, architecture))
    terms, least = Terms(recipe.percentiles), least_calibration(recipe)
    if recipe.by is not None:
        terms, least = planned(spec, recipe, splits[0], least)
    checkpoints, (splits, aside) = hooks.checkpoints, with_rows_aside(splits, least)
    if checkpoints is not None:
        key = hashlib.sha256(f"{data_digest}\n{recipe}\n{architecture}\n{spec.fingerprint_text()}".encode())
        key.update(np.ascontiguousarray(splits[0].train).data)  # which rows these are, does not follow from the recipe
        checkpoints = checkpoints.start(key.hexdigest())
        course.until -= sum(checkpoints.seconds().values())
    some = network_rows(spec, splits[0].train[: recipe.fit.batch_size])
    architecture = sized(architecture, recipe, some, course, checkpoints)
    vaes, report, bounds = fitted(spec, splits, architecture, recipe, course, checkpoints, feed)
    terms = aside.terms(terms, spec)
    model, calibration = calibrated_on(splits, vaes, spec, recipe, course, terms, domains, least)
    calibration = with_usual_patterns(model, calibration, Execution(worker_pool(cpu_quota())), course.until)
    by_folds = {"folds": recipe.folds} if recipe.folds > 1 else {}
    training = training_record(splits[0], recipe.fit, report, data_digest, feed)
    draft = Draft(
        model,
        calibration,
        training=training | {"validation_bounds": bounds} | by_folds,
        calibration_data={"digest": data_digest, "rows": len(calibration.scores), "held_back": True} | by_folds,
        domains=domains,
        fingerprints=fingerprints_of(spec, splits[0], feed),
    ).judging(recipe.rule, recipe.false_alarm)
    if len(splits) == 1:
        draft = with_selftest(draft, aside.testing, course)
    course.end()
    return Trained(draft, report, notes=tuple(course.notes))


def calibrated_on(
    splits: Sequence[Split],
    vaes: Sequence[VAE],
    spec: InputSpec,
    recipe: Recipe,
    course: Course,
    terms: Terms,
    domains: Domains | None = None,
    least: int = 0,
) -> tuple[Model, Calibration]:
    """Calibrate fitted networks on the rows held back from them, within the time that is left, but on at least `least`."""
    reader = spec.reader(beside=() if domains is None else domains.beside)
    pilots, calibrating = (
        [spec.rows(pilot_of(one)) for one in splits],
        [spec.read(one.calibration, reader) for one in splits],
    )
    execution = Execution(worker_pool(cpu_quota()))
    course.enter(PREPARING)
    pace = course.pace(vaes[0], max(least, least_calibration(recipe)))
    if recipe.folds > 1:
        model, calibration = calibrated_by_folds(
            vaes,
            spec,
            recipe.estimator,
            pilots,
            [one[:, : spec.features] for one in calibrating],
            terms.percentiles,
            execution,
            pace,
        )
    else:
        known = spec.rows(splits[0].train)
        model, calibration = calibrated(
            vaes, spec, recipe.estimator, pilots[0], calibrating[0], terms, execution, known, pace, domains
        )
    used, held_back = len(calibration.scores), sum(map(len, calibrating))
    if used < held_back:
        course.notes.append(f"{used:,} of {held_back:,} rows calibrate: --minutes leaves no time to score more")
    return model, calibration


def planned(spec: InputSpec, recipe: Recipe, split: Split, least: int) -> tuple[Terms, int]:
    """The terms with the recipe's groups, and the fewest calibration rows to use, so that each group has enough.

    Raises:
        DataError: the recipe's column has no groups, or too small ones.
    """
    assert recipe.by is not None
    needed, rows = calibration_needed(replace(recipe, least=TO_PUBLISH)), spec.rows(split.train)
    rows, whole = rows[~np.isnan(rows).any(axis=1)], whole_share(split.calibration[:, : spec.features])
    plan = GroupPlan.of(spec, recipe.by, rows, int(whole * len(split.calibration)), needed)
    return Terms(recipe.percentiles, plan), max(least, rows_for_groups(spec, plan, rows, split.calibration, needed))


def rows_for_groups(
    spec: InputSpec, plan: GroupPlan, training: np.ndarray, calibration: np.ndarray, needed: int
) -> int:
    """How many calibration rows are enough for each group, if as many of them lack a cell as do here.

    Args:
        training: whole rows that the network was fitted to, shape (m, D).
        calibration: shape (n, D + C).
    """
    whole = whole_share(calibration[:, : spec.features])
    return min(len(calibration), math.ceil(plan.least_rows(spec, training, needed) / max(whole, 1e-6)))


def whole_share(rows: np.ndarray) -> float:
    """The share of rows, (n, D), that lack no cell: others are in no group."""
    return float((~np.isnan(rows.astype(np.float64)).any(axis=1)).mean()) if len(rows) else 0.0


def read_rows(spec: InputSpec, reader: CellReader, raw: RawTable) -> np.ndarray:
    """Rows of files, checked: shape (n, D + C)."""
    if not len(raw):
        return np.zeros((0, spec.features + len(reader.beside)))
    return spec.read(reader.table(raw), reader)


def fingerprints_of(spec: InputSpec, split: Split, feed: ParquetFeed | None) -> Fingerprints:
    """Fingerprints of the rows that the first network was fitted to, or that ended its fit."""
    fitted_to = [spec.rows(split.train)] if feed is None else feed.training_rows()
    calibration = split.calibration[:, : spec.features] if spec.reads_missing else split.calibration
    return Fingerprints.of([spec.rows(split.validation), *fitted_to], spec.rows(calibration))


def columns_beside(kinds: Schema, table: Table) -> list[Beside]:
    """The columns of a table that are left out because they are constant, or dates."""
    found: list[Beside | None] = []
    for one in kinds.columns:
        if one.kind != "ignored" or one.name not in table.names:
            continue
        if one.why == IS_CONSTANT:
            found.append(Constant.of(one.name, table.column(one.name)))
        elif one.why.startswith(DATES):
            found.append(LastDate.of(one.name, table.column(one.name)))
    return [one for one in found if one is not None]


def table_rows(table: Table, kinds: Schema) -> np.ndarray:
    """The columns of a table that a model would read, as numbers in which equal cells are equal: shape (N, D)."""
    columns = [table.column(one.name) for one in kinds.columns if one.kind != "ignored"]
    numbers = [numbered(one.astype(str))[0] if one.dtype == object else one for one in columns]
    return np.stack(numbers or [np.arange(len(table))], axis=1)


def training_record(
    split: Split, options: FitOptions, report: FitReport, data_digest: str, feed: ParquetFeed | None = None
) -> dict[str, Any]:
    """What the card records about the training."""
    rows = len(split.train) if feed is None else feed.rows
    return {
        "data": {"digest": data_digest, "rows": rows, "validation_rows": len(split.validation)},
        "options": dataclasses.asdict(options),
        "report": dataclasses.asdict(report),
    }
