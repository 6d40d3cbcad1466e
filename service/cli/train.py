"""`vouch train` and `schema`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.app import app
from service.cli.console import (
    err,
    fail_in_one_line,
    naming,
    print_schema,
    progress_bar,
    schema_table,
    write,
)
from service.cli.inputs import group_cells, schema_in, table_from
from service.cli.options import (
    ColumnsOption,
    ImageOptions,
    KeyOption,
    RepeatOptions,
    RuleOptions,
    StoreOption,
    TableOptions,
    split_names,
    takes_options,
    widths,
)
from service.cli.report import USUAL_STORE, print_report
from service.errors import DataError

if TYPE_CHECKING:
    from service.data.kinds import Schema
    from service.data.table import Table
    from service.training.checkpoints import Checkpoints
    from service.training.fit import FitOptions
    from service.training.recipe import Recipe
    from service.training.train import Hooks, Trained


@dataclass(frozen=True)
class DataOptions(RepeatOptions, TableOptions, ImageOptions):
    """Options that choose the training data, and say how it is read."""

    key: KeyOption = None
    columns: ColumnsOption = None
    schema: Annotated[
        Path | None, typer.Option(help="JSON file of column kinds, as `vouch schema` writes it; default: inferred")
    ] = None
    stream: Annotated[
        bool, typer.Option("--stream", help="read Parquet again in every epoch, for data larger than memory")
    ] = False


@dataclass(frozen=True)
class NetworkOptions:
    """Options of the network."""

    network: Annotated[
        Literal["mlp", "conv"] | None,
        typer.Option(
            help="fully connected or convolutional; default: conv for images larger than 28 x 28 or in colour"
        ),
    ] = None
    likelihood: Annotated[
        Literal["bernoulli", "gaussian", "discretized_logistic", "pixel_logistic"] | None,
        typer.Option(help="distribution of x given z; default: chosen from the data"),
    ] = None
    threshold: Annotated[float | None, typer.Option(help="values above it count as white (bernoulli only)")] = None
    latents: Annotated[
        int | None, typer.Option(min=1, max=1000, help="number of latents; default: chosen from the data")
    ] = None
    hidden: Annotated[
        str | None,
        typer.Option(
            help="widths of the hidden layers, such as 400,400; '' for none; of convolutions, the channels of each level"
        ),
    ] = None
    activation: Annotated[Literal["silu", "gated", "tanh"], typer.Option(help="activation of the hidden layers")] = (
        "silu"
    )
    prior: Annotated[
        Literal["normal", "mixture", "auto"] | None,
        typer.Option(
            help="normal, mixture (of normals), or auto, which picks the one with the better validation bound; "
            "default: auto for tables, else normal"
        ),
    ] = None
    ensemble: Annotated[
        int, typer.Option(min=1, max=100, help="number of networks to average: steadier scores, proportionally slower")
    ] = 1


@dataclass(frozen=True)
class FittingOptions:
    """Options of the fit."""

    epochs: Annotated[
        int | None, typer.Option(min=1, help="maximum number of passes over the rows; default: chosen from the data")
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option(help="time for everything but reading the file: the fits and the calibration share it"),
    ] = None
    patience: Annotated[
        int | None, typer.Option(min=1, help="stop after this many epochs without a better validation bound")
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="rows per optimizer step; default: 256 for tables, else 128")
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="peak learning rate of Adam; default: 0.004 for tables, else 0.001")
    ] = None
    beta: Annotated[float, typer.Option(help="weight of the ELBO's KL term")] = 1.0
    importance_samples: Annotated[
        int | None, typer.Option(min=1, help="above 1: fit the IWAE bound; default: 5 for tables, else 1")
    ] = None
    augment: Annotated[float, typer.Option(min=0.0, help="strength of random image distortions; 1 is a good start")] = (
        0.0
    )
    seed: Annotated[int, typer.Option(min=0, help="seed of the split and the fit")] = 0
    data_parallel: Annotated[
        int, typer.Option(min=1, max=1024, help="processes that split each batch; on GPUs if there is one per process")
    ] = 1
    resume: Annotated[bool, typer.Option("--resume", help="resume an interrupted training run of this name")] = False
    checkpoint: Annotated[
        Path | None, typer.Option(help="folder for checkpoints during training; default: .training in the store")
    ] = None

    def fit_options(self, usual: FitOptions) -> FitOptions:
        """These options as FitOptions; `usual` fills in what the user did not choose."""
        return replace(
            usual,
            epochs=self.epochs,
            minutes=self.minutes,
            patience=self.patience,
            batch_size=self.batch_size or usual.batch_size,
            learning_rate=usual.learning_rate if self.learning_rate is None else self.learning_rate,
            beta=self.beta,
            importance_samples=self.importance_samples or (usual.importance_samples if self.beta == 1.0 else 1),
            seed=self.seed,
        )


@dataclass(frozen=True)
class HoldOutOptions:
    """Options for the rows held back, and for how log p(x) is estimated."""

    validation_share: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="share of rows held back for early stopping")
    ] = 0.1
    calibration_share: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=0.8, help="share of rows held back for calibration; default: 0.2, or all rows with --folds"
        ),
    ] = None
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=100,
            help="cross-fitting, for few rows: fit N networks, each calibrated on the fold it has not seen; all N "
            "serve together, so scoring takes N times as long",
        ),
    ] = None
    estimator: Annotated[Literal["fast", "standard", "thorough"], typer.Option(help="how log p(x) is estimated")] = (
        "standard"
    )


@app.command()
@fail_in_one_line
@takes_options
def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=".npz, .npy, .csv, .parquet, idx (.gz), or a folder of images (PNG, JPEG, WebP, GIF, BMP, "
            "TIFF, AVIF); with --stream, a file, folder, glob or "
            "URL of Parquet",
        ),
    ],
    name: Annotated[str, typer.Option(help="the model's name in the store")],
    data: DataOptions,
    network: NetworkOptions,
    fitting: FittingOptions,
    hold_out: HoldOutOptions,
    rule: RuleOptions,
    store: StoreOption = USUAL_STORE,
    description: Annotated[str, typer.Option(help="one line for the model card")] = "",
    by: Annotated[
        str | None,
        typer.Option(
            help="column of categories: each of its groups is compared with its own rows, and has the promised rate"
        ),
    ] = None,
) -> None:
    """Train a model on valid rows, calibrate it on rows held back from training, and publish it."""
    from service.store.store import Store, checked_name
    from service.training.checkpoints import Checkpoints

    started = time.monotonic()
    checked_name(name)
    is_mixed = check_options(source, data, network, fitting, hold_out)
    if by is not None and not is_mixed:
        raise DataError("--by needs a table with named columns, and no --likelihood or --threshold")
    recipe = replace(recipe_of(network, fitting, hold_out, rule, is_mixed), by=by)
    kept = Checkpoints.beside(store, name, fitting.resume, fitting.checkpoint)
    trained = trained_on(source, data, recipe, is_mixed, kept, fitting)
    reference = Store(store).publish(name, replace(trained.draft, description=description))
    kept.clear()
    print_report(reference, trained, time.monotonic() - started, store)


def check_options(
    source: str, data: DataOptions, network: NetworkOptions, fitting: FittingOptions, hold_out: HoldOutOptions
) -> bool:
    """Whether the rows are a table of mixed columns.

    Raises:
        DataError: options contradict each other, or do not suit the data.
    """
    from service.files.tables import is_table

    path = Path(source)
    if hold_out.folds is not None and (network.ensemble > 1 or hold_out.calibration_share is not None):
        raise DataError("--folds cannot be combined with --ensemble or --calibration-share")
    if data.group is not None and (data.repeats != "auto" or not is_table(path)):
        raise DataError("--group needs a table with named columns, and no --repeats")
    if data.stream and (data.group is not None or data.repeats == "copies"):
        raise DataError("--stream splits rows as they come: leave out --group and --repeats copies")
    if data.stream and (hold_out.folds is not None or data.key is not None or fitting.augment):
        raise DataError("--stream reads tables only; leave out --folds, --key and --augment")
    is_mixed = (data.stream or is_table(path)) and network.likelihood is None and network.threshold is None
    if data.schema is not None and not is_mixed:
        raise DataError("--schema needs a table with named columns, and no --likelihood or --threshold")
    if is_mixed and network.network == "conv":
        raise DataError("--network conv is for images; the data are a table")
    if is_mixed and data.key is not None:
        raise DataError(f"{path}: --key works only with .npz files")
    if is_mixed and fitting.augment:
        raise DataError("--augment distorts images; the data are a table")
    return is_mixed


def recipe_of(
    network: NetworkOptions, fitting: FittingOptions, hold_out: HoldOutOptions, rule: RuleOptions, is_mixed: bool
) -> Recipe:
    """The options as a recipe, with defaults that depend on the kind of data."""
    from service.density.estimator import Estimator
    from service.training.fit import FitOptions
    from service.training.recipe import TABLE_FIT, TO_PUBLISH, TO_PUBLISH_BY_FOLDS, Recipe

    usual, judging = Recipe(), rule.options().or_default("band", None)
    return Recipe(
        likelihood=network.likelihood,
        network=network.network,
        threshold=network.threshold,
        latents=network.latents,
        hidden=None if network.hidden is None else widths(network.hidden),
        activation=network.activation,
        ensemble=network.ensemble,
        prior=network.prior or ("auto" if is_mixed else "normal"),
        fit=fitting.fit_options(TABLE_FIT if is_mixed else FitOptions()),
        estimator=Estimator.of(hold_out.estimator),
        augment=fitting.augment,
        percentiles=judging.band_percentiles or usual.percentiles,
        rule=judging.default_rule[0],
        false_alarm=judging.default_rule[1],
        validation_share=hold_out.validation_share,
        calibration_share=hold_out.calibration_share or usual.calibration_share,
        folds=hold_out.folds or 1,
        processes=fitting.data_parallel,
        least=TO_PUBLISH if hold_out.folds is None else TO_PUBLISH_BY_FOLDS,
    )


def trained_on(
    source: str, data: DataOptions, recipe: Recipe, is_mixed: bool, kept: Checkpoints, fitting: FittingOptions
) -> Trained:
    """Train on the rows of a file or, with --stream, on more rows than fit into memory."""
    from service.files.readers import read
    from service.training.inputs import network_of
    from service.training.recipe import IMAGE_FIT
    from service.training.train import Hooks, train_table
    from service.training.train import train as train_rows

    path = Path(source)

    def on_schema(kinds: Schema, rows: Table) -> None:
        what = (
            f"columns, inferred from a sample of {len(rows):,} rows" if data.stream else f"{path}: {len(rows):,} rows"
        )
        err.print(what, schema_table(kinds, rows), sep="\n")

    if data.stream:
        return trained_on_stream(source, data, recipe, Hooks(on_schema=on_schema, checkpoints=kept))
    if is_mixed:
        raw, survey = table_from(path, data, data.columns, data.schema)
        group = None
        if data.group is not None:
            survey, group = survey.without(data.group), group_cells(path, data.group, raw)
        with progress_bar() as on_progress, naming(path, raw):
            hooks = Hooks(on_progress, on_schema, kept)
            return train_table(survey.table, recipe, survey.schema, hooks, survey.reading, data.repeats, group)
    rows = read(path, data.key, split_names(data.columns), data.text_options(), data.image_options())
    err.print(f"{path}: {len(rows.array):,} rows of {' x '.join(map(str, rows.array.shape[1:]))}")
    if network_of(rows, recipe) == "conv":
        recipe = replace(recipe, fit=fitting.fit_options(IMAGE_FIT))
    with progress_bar() as on_progress, naming(path):
        return train_rows(rows, recipe, Hooks(on_progress, checkpoints=kept), data.repeats)


def trained_on_stream(source: str, data: DataOptions, recipe: Recipe, hooks: Hooks) -> Trained:
    try:
        from service.training.parquet_source import Source
    except ImportError:
        raise DataError("--stream needs the extra: pip install '.[datasets]'") from None
    from service.training.train import train_stream

    found = Source.of(
        source, split_names(data.columns), recipe.fit.seed, recipe.validation_share, recipe.calibration_share
    )
    err.print(f"{source}: {found.rows:,} rows in {sum(map(len, found.groups)):,} pieces")
    kinds = None if data.schema is None else schema_in(data.schema, found.names)
    with progress_bar() as on_progress, naming(Path(source)):
        chosen = replace(hooks, on_progress=on_progress)
        return train_stream(found, recipe, kinds, chosen, data.detection(), data.kept())


@app.command()
@fail_in_one_line
@takes_options
def schema(
    source: Annotated[
        Path, typer.Argument(metavar="DATA", help=".csv, .tsv, .txt, .jsonl (or .gz of them) or .parquet")
    ],
    data: TableOptions,
    columns: ColumnsOption = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="JSON file to write, for --schema of vouch train")
    ] = None,
) -> None:
    """Show what each column of a table is taken for, with examples and reasons."""
    from service.files.tables import TABLES, check_supported, is_table

    check_supported(source)
    if source.exists() and not is_table(source):
        raise DataError(f"{source}: has no named columns, expected {TABLES}")
    raw, survey = table_from(source, data, columns, None, must_fit=False)
    print_schema(source, raw, survey)
    if output is not None:
        write(output, (survey.schema.model_dump_json(indent=2) + "\n").encode())
