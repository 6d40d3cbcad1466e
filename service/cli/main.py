"""The command line: `vouch train`, `calibrate`, `score`, `filter`, `evaluate`, `sample`, `models`, `promote`, `serve`.

Bad input ends with one line on stderr and exit status 2, and leaves nothing half-written.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from service import __version__
from service.errors import DataError, InputError, VouchError

if TYPE_CHECKING:
    from service.data.columns import Schema
    from service.data.columns import Table as TableData
    from service.data.inputs import InputSpec
    from service.datasets.plan import OnBadFile, Write
    from service.density.estimator import SettingName
    from service.files.readers import Rows
    from service.scoring.evaluation import RuleOnSet
    from service.scoring.scorer import Samples, Scorer
    from service.store.store import Reference, Store
    from service.training.checkpoints import Checkpoints
    from service.training.fit import FitReport, Progress
    from service.training.train import PriorName, Recipe
    from service.vae.network import ActivationName, LikelihoodName
    from service.validity.conformal import Acceptance, Tail

# torch takes a second to import: commands import what they need, so that --help and errors are instant.

SAID_EVERY_S = 10.0  # of progress, where there is no terminal
LEAST_DRAWN = 0.004  # of the false alarms in a picture, which has a logarithmic axis
P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Vouch for data: train a VAE on valid rows, then ask of any row how likely it is and whether it is valid.",
)
err = Console(stderr=True, soft_wrap=True)

StoreOption = Annotated[
    str, typer.Option("--store", envvar="VOUCH_STORE", help="the model store: a folder, or an fsspec URL")
]
DeviceOption = Annotated[str, typer.Option("--device", envvar="VOUCH_DEVICE", help="auto, cpu or cuda")]
ModelOption = Annotated[str | None, typer.Option("--model", help="NAME, NAME@VERSION or NAME@ALIAS")]
FalseAlarmOption = Annotated[
    float | None,
    typer.Option("--false-alarm", help="instead of percentiles: the share of valid rows to refuse, such as 0.01"),
]
TailOption = Annotated[
    str | None, typer.Option("--tail", help="low: refuse only what is too unlikely; both: what is too likely, too")
]
RuleOption = Annotated[
    str, typer.Option("--rule", help="band: verdicts by log p(x); combined: by all evidence, at a rate of false alarms")
]
KeyOption = Annotated[str | None, typer.Option("--key", help="which array of an .npz file")]
ColumnsOption = Annotated[str | None, typer.Option("--columns", help="columns of a table to use: a,b,c")]
DataArgument = Annotated[Path, typer.Argument(help=".npz, .npy, .csv, .parquet, idx (.gz), or a folder of images")]


def fail_in_one_line(command: Callable[P, T]) -> Callable[P, T]:
    """Let a command end with one line and exit status 2 over what its user can mend."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (VouchError, OSError) as error:
            stop(one_line(error))
        except KeyboardInterrupt:
            stop("interrupted", 130)

    return guarded


def stop(message: str, status: int = 2) -> NoReturn:
    """Print one line and leave."""
    print(f"vouch: {message}", file=sys.stderr)
    raise typer.Exit(status)


def one_line(error: Exception) -> str:
    """An error's text; the first fault with it where the text does not name the place."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError) and error.faults and "row" not in text:
        fault = error.faults[0]
        text = f"{text}: row {fault.row}, column {fault.column}: {fault.message}, expected {fault.expected}"
    return text


@app.command()
@fail_in_one_line
def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=".npz, .npy, .csv, .parquet, idx (.gz), or a folder of images; with --stream any place of Parquet files",
        ),
    ],
    name: Annotated[str, typer.Option(help="the model's name in the store")],
    store: StoreOption = "model_store",
    key: KeyOption = None,
    columns: ColumnsOption = None,
    schema: Annotated[
        Path | None, typer.Option(help="kinds of a table's columns, as `vouch schema` writes them; default: inferred")
    ] = None,
    likelihood: Annotated[
        str | None, typer.Option(help="bernoulli, gaussian or discretized_logistic; default: from the data")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="above it a value counts as white, for bernoulli")] = None,
    latents: Annotated[
        int | None, typer.Option(min=1, max=1000, help="number of latents; default: from the data")
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(help="widths of the hidden layers, such as 400,400; '' for none")
    ] = None,
    activation: Annotated[str, typer.Option(help="silu, gated or tanh")] = "silu",
    prior: Annotated[
        str | None,
        typer.Option(
            help="normal, mixture (of normals) or auto: that of the better validation bound; "
            "default: auto for tables, else normal"
        ),
    ] = None,
    ensemble: Annotated[
        int, typer.Option(min=1, max=100, help="networks, whose densities are averaged: steadier, and as much slower")
    ] = 1,
    epochs: Annotated[int | None, typer.Option(min=1, help="most passes over the rows; default: from the data")] = None,
    minutes: Annotated[float | None, typer.Option(help="most time to spend")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="epochs without a better bound that end the fit")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    beta: Annotated[float, typer.Option(help="weight of the ELBO's KL term")] = 1.0,
    importance_samples: Annotated[
        int | None, typer.Option(min=1, help="above 1: fit the IWAE bound; default: 5 for tables, else 1")
    ] = None,
    augment: Annotated[
        float, typer.Option(min=0.0, help="strength of random distortions of images; 1 is a good one")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    validation_share: Annotated[float, typer.Option(min=0.01, max=0.5, help="of the rows, to stop early by")] = 0.1,
    calibration_share: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.8, help="of the rows, to calibrate on; default: 0.2, or all by --folds"),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=100,
            help="for few rows: so many networks, each fitted without a fold of the rows and calibrated on it; all serve "
            "together, as much slower",
        ),
    ] = None,
    percentiles: Annotated[str | None, typer.Option(help="ends of the band of valid rows; default: 25,75")] = None,
    false_alarm: FalseAlarmOption = None,
    tail: TailOption = None,
    estimator: Annotated[str, typer.Option(help="fast, standard or thorough: how log p(x) is estimated")] = "standard",
    description: Annotated[str, typer.Option(help="a line for the card")] = "",
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Parquet, a file, folder or glob, that does not fit into memory: read again in every epoch"
        ),
    ] = False,
    data_parallel: Annotated[
        int,
        typer.Option(min=1, max=1024, help="processes that share each batch, on CPUs, or GPUs where there are as many"),
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the training of this name that was ended, from its last epoch")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="folder that keeps the training while it lasts; default: beside the model")
    ] = None,
) -> None:
    """Train a model on valid rows, calibrate it on some that are held back, and publish it."""
    from service.density.estimator import Estimator
    from service.files.readers import read
    from service.files.tables import is_table, read_table
    from service.store.store import Store, checked_name
    from service.training.checkpoints import Checkpoints
    from service.training.fit import FitOptions
    from service.training.train import TABLE_FIT, Recipe, train_table
    from service.training.train import train as train_model

    checked_name(name)
    data = Path(source)
    if folds is not None and (ensemble > 1 or calibration_share is not None):
        raise DataError(
            "--folds: its networks are an ensemble, calibrated on all rows; leave out --ensemble and --calibration-share"
        )
    if stream and (folds is not None or key is not None or augment):
        raise DataError("--stream: is of tables; leave out --folds, --key and --augment")
    is_mixed = (stream or is_table(data)) and likelihood is None and threshold is None
    if schema is not None and not is_mixed:
        raise DataError("--schema goes with a table of named columns, without --likelihood")
    usual = TABLE_FIT if is_mixed else FitOptions()
    recipe = Recipe(
        likelihood=likelihood_name(likelihood),
        threshold=threshold,
        latents=latents,
        hidden=None if hidden is None else widths(hidden),
        activation=activation_name(activation),
        ensemble=ensemble,
        prior=prior_name(prior or ("auto" if is_mixed else "normal")),
        fit=FitOptions(
            epochs=epochs,
            steps=usual.steps,
            minutes=minutes,
            patience=patience,
            batch_size=batch_size,
            learning_rate=learning_rate,
            beta=beta,
            importance_samples=importance_samples or (usual.importance_samples if beta == 1.0 else 1),
            seed=seed,
        ),
        estimator=Estimator.of(setting_name(estimator)),
        augment=augment,
        percentiles=band_option(percentiles, false_alarm, tail) or Recipe().percentiles,
        validation_share=validation_share,
        calibration_share=calibration_share or Recipe().calibration_share,
        folds=folds or 1,
        processes=data_parallel,
    )
    kept = Checkpoints.beside(store, name, resume, checkpoint)
    if stream:
        reference, report = train_on_stream(
            store, name, source, recipe, split_names(columns), schema, description, kept
        )
    elif is_mixed:
        if key is not None:
            raise DataError(f"{data}: --key picks an array of an .npz file, this is none")
        if augment:
            raise DataError("--augment distorts images; the data are a table")
        table = read_table(data, split_names(columns))
        kinds = None if schema is None else schema_in(schema, table.names)

        def on_schema(kinds: Schema, rows: TableData) -> None:
            err.print(f"{data}: {len(rows):,} rows", schema_table(kinds, rows), sep="\n")

        with epoch_bar() as on_epoch, naming(data):
            reference, report = train_table(
                Store(store), name, table, recipe, kinds, on_epoch, description, on_schema, kept
            )
    else:
        rows = read(data, key, split_names(columns))
        err.print(f"{data}: {len(rows.array):,} rows of {' x '.join(map(str, rows.array.shape[1:]))}")
        with epoch_bar() as on_epoch, naming(data):
            reference, report = train_model(Store(store), name, rows, recipe, on_epoch, description, kept)
    print_report(reference, report)
    if recipe.folds > 1:
        band = Store(store).load(reference).calibration.band()
        err.print(
            f"{band.folds} networks serve together, and a score costs as much as {band.folds}: each is calibrated on rows "
            f"that it has not seen, {band.rows:,} in all; accepts {accepted(band.accepted)}"
        )


def train_on_stream(
    store: str,
    name: str,
    data: str,
    recipe: Recipe,
    columns: list[str] | None,
    schema: Path | None,
    description: str,
    kept: Checkpoints,
) -> tuple[Reference, FitReport]:
    """`vouch train --stream`."""
    try:
        from service.training.parquet_source import Source
    except ImportError:
        raise DataError("--stream needs the extra: pip install 'vouch[datasets]'") from None
    from service.store.store import Store
    from service.training.train import train_stream

    source = Source.of(data, columns, recipe.fit.seed, recipe.validation_share, recipe.calibration_share)
    err.print(f"{data}: {source.rows:,} rows in {sum(map(len, source.groups)):,} pieces")

    def on_schema(kinds: Schema, rows: TableData) -> None:
        err.print(f"columns, by a sample of {len(rows):,} rows", schema_table(kinds, rows), sep="\n")

    kinds = None if schema is None else schema_in(schema, source.names)
    with epoch_bar() as on_epoch, naming(Path(data)):
        return train_stream(Store(store), name, source, recipe, kinds, on_epoch, description, on_schema, kept)


@app.command()
@fail_in_one_line
def schema(
    data: DataArgument,
    columns: ColumnsOption = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="JSON file to write, for --schema of vouch train")
    ] = None,
) -> None:
    """Say of each column of a table what kind it is taken for."""
    from service.data.columns import infer
    from service.files.tables import is_table, read_table

    if not is_table(data):
        raise DataError(f"{data}: has no named columns, expected .csv or .parquet")
    table = read_table(data, split_names(columns))
    kinds = infer(table)
    Console(width=None if sys.stdout.isatty() else 120).print(schema_table(kinds, table))
    if output is not None:
        write_atomically(output, (kinds.model_dump_json(indent=2) + "\n").encode())


@app.command()
@fail_in_one_line
def calibrate(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS")],
    data: DataArgument,
    store: StoreOption = "model_store",
    key: KeyOption = None,
    percentiles: Annotated[str | None, typer.Option(help="ends of the band; default: as they are")] = None,
    false_alarm: FalseAlarmOption = None,
    tail: TailOption = None,
    estimator: Annotated[str | None, typer.Option(help="fast, standard or thorough; default: as it is")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Calibrate a model on other valid rows, that it was not trained on: publishes a new version, touches no old one."""
    from service.density.estimator import Estimator
    from service.scoring.scorer import torch_device
    from service.training.train import recalibrate

    models = existing(store)
    published = models.load(models.resolve(model))
    published.model.vae.to(torch_device(device))
    chosen = None if estimator is None else Estimator.of(setting_name(estimator))
    rows = rows_for(published.card.input, data, key)
    reference = recalibrate(models, published, rows, chosen, band_option(percentiles, false_alarm, tail))
    band = models.load(reference).calibration.band()
    err.print(
        f"published {reference}: band {interval(band.ends)} nats, percentiles {band.percentiles[0]:g} to "
        f"{band.percentiles[1]:g} of {band.rows:,} rows, accepts {accepted(band.accepted)}"
    )


@app.command()
@fail_in_one_line
def score(
    data: DataArgument,
    model: ModelOption = None,
    store: StoreOption = "model_store",
    key: KeyOption = None,
    percentiles: Annotated[str | None, typer.Option(help="another band, such as 1,99")] = None,
    false_alarm: FalseAlarmOption = None,
    tail: TailOption = None,
    rule: RuleOption = "band",
    fdr: Annotated[
        float | None,
        typer.Option(
            help="mark discoveries: the expected share of valid rows among them is at most this, such as 0.05"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first rows")] = None,
    explain: Annotated[int, typer.Option(min=0, help="the columns most to blame, so many for each row")] = 0,
    output: Annotated[
        Path | None, typer.Option("--out", help="file to write, .csv or .jsonl; default: CSV to stdout")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score the rows of a file: verdict, log p(x), its error, percentile and p-value of each."""
    from service.scoring.tables import scores_csv, scores_json_lines

    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise DataError(f"{output}: expected a name that ends in .csv or .jsonl")
    scorer = scorer_of(store, model, device)
    if fdr is not None:
        scorer.calibration.check_has_no_folds()
    rows = checked_rows(data, rows_for(scorer.model.input, data, key), scorer)
    combined, band, rate = rule_options(rule, percentiles, false_alarm, tail)
    scores = scorer.score(rows[:limit], band, explain=explain, combined=combined, false_alarm=rate)
    discoveries = None if fdr is None else scores.discoveries(fdr, tail_name(tail) or "low")
    is_json = output is not None and output.suffix == ".jsonl"
    if is_json:
        text = scores_json_lines(scores, scorer.model.input, discoveries)
    else:
        text = scores_csv(scores, scorer.model.input, None, discoveries)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text.encode())
    invalid = int((~scores.valid).sum())
    judged_by = f"band {interval(scores.band.ends)} nats, accepts {accepted(scores.band.accepted)}"
    if scores.rule is not None:
        judged_by = f"{100 * scores.rule.false_alarm:.4g} % false alarms, accepts {accepted(scores.rule.accepted)}"
    err.print(
        f"{len(scores):,} rows, {invalid:,} invalid ({100 * invalid / len(scores):.1f} %); {scorer.published.reference}, "
        + judged_by
    )
    if discoveries is not None:
        found = int(discoveries.chosen.sum())
        err.print(
            f"{found:,} discoveries by {discoveries.procedure}: at most {100 * discoveries.level:g} % of them are valid "
            "rows, in expectation"
        )
        if warning := discoveries.warning():
            err.print(f"warning: {warning}")


@app.command("filter")
@fail_in_one_line
def filter_rows(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="a file, folder or glob of .parquet, .csv, .jsonl, .npy or .npz, or an fsspec URL"
        ),
    ],
    output: Annotated[str, typer.Option("--out", help="folder for the results: a new one, or that of a run to go on")],
    model: ModelOption = None,
    store: StoreOption = "model_store",
    key: KeyOption = None,
    percentiles: Annotated[str | None, typer.Option(help="another band, such as 1,99")] = None,
    false_alarm: FalseAlarmOption = None,
    tail: TailOption = None,
    rule: RuleOption = "band",
    fdr: Annotated[
        float | None,
        typer.Option(
            help="the invalid part's share of valid rows is at most this, such as 0.05, in expectation and over the whole "
            "data set"
        ),
    ] = None,
    explain: Annotated[int, typer.Option(min=0, help="the columns most to blame, so many for each row")] = 0,
    write: Annotated[
        str, typer.Option(help="split: valid/ and invalid/; verdicts: rows/, all of them with their verdicts")
    ] = "split",
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="rows that are read, scored and written at a time; default: by their width"),
    ] = None,
    on_bad_file: Annotated[
        str, typer.Option(help="stop at what cannot be read, or skip it: the report then lists it")
    ] = "stop",
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one for each CPU, on a GPU one")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="i/N, from 0/N: only every N-th shard, for a scheduler that starts N such commands"),
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="only merge what commands with --shard have done")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: the workers of a cluster")] = "local",
    address: Annotated[str | None, typer.Option(help="of the Ray cluster; default: one on this machine")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Tell a whole data set's valid rows from its invalid ones, with scores and a report; begun again, go on with it."""
    try:
        from service.datasets.plan import Options, usual_shard_rows
        from service.datasets.run import Run, engine_of
    except ImportError:
        raise DataError("filter needs the extra: pip install 'vouch[datasets]'") from None
    combined, band, rate = rule_options(rule, percentiles, false_alarm, tail)
    if fdr is not None and (percentiles is not None or false_alarm is not None or tail is not None):
        raise DataError("--fdr: chooses the limit itself; leave out --percentiles, --false-alarm and --tail")
    if finish and shard is not None:
        raise DataError("--finish and --shard: expected one of them")
    part = (0, 1) if shard is None else part_of(shard)
    scorer = scorer_of(store, model, device)
    options = Options(
        model=str(scorer.published.reference),
        model_digest=scorer.published.digest,
        percentiles=band,
        combined=combined,
        false_alarm=rate,
        explain=explain,
        fdr=fdr,
        key=key,
        write=write_name(write),
        shard_rows=shard_rows or usual_shard_rows(scorer.model.input.features),
    )
    run = Run.begun(source, output, options, scorer, on_bad_file_name(on_bad_file))
    undone = [] if finish else run.undone(part)
    at_work = engine_of(engine, run, store, device, workers, address)
    if undone:
        with row_bar("scored", sum(one.cut.rows for one in undone)) as on_batch:
            at_work.score(undone, on_batch)
    if shard is not None:
        err.print(
            f"{output}: shards {shard} are done ({len(run.shards):,} in all); once the others are, run the same command "
            "with --finish instead of --shard"
        )
        return
    with row_bar("split", run.plan.rows if fdr is not None else None) as on_batch:
        report = run.finish(at_work, on_batch)
    share = 100 * report.invalid / max(1, report.rows)
    err.print(
        f"{report.rows:,} rows, {report.invalid:,} invalid ({share:.1f} %); {report.model}, {report.rule}; "
        f"see {output}/report.html"
    )
    if report.fdr is not None and report.fdr.warning is not None:
        err.print(f"warning: {report.fdr.warning}")
    for one in report.not_done[:10]:
        err.print(f"not done: {one.file}, rows {one.rows}: {one.reason}")
    if len(report.not_done) > 10:
        err.print(f"not done: {len(report.not_done) - 10} more, listed in {output}/report.json")


@app.command()
@fail_in_one_line
def evaluate(
    valid: Annotated[Path, typer.Option(help="valid rows that the model has not seen")],
    invalid: Annotated[list[str], typer.Option(help="NAME=FILE of invalid rows; as often as you have sets")],
    model: ModelOption = None,
    store: StoreOption = "model_store",
    limit: Annotated[int | None, typer.Option(min=1, help="only the first rows of each file")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG to draw: caught over false alarms, a panel for each set")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """For every rule: false alarms, the share of each invalid set that is caught, AUROC and AUPRC; and which to choose."""
    from service.scoring.evaluation import RATES, evaluated, recommendation

    scorer = scorer_of(store, model, device)
    sets = dict(named_file(text) for text in invalid)
    if len(sets) < len(invalid):
        raise DataError("--invalid: names a set twice")
    if picture is not None and picture.suffix != ".png":
        raise DataError(f"{picture}: expected a name that ends in .png")

    def read_rows(path: Path) -> np.ndarray:
        return checked_rows(path, rows_for(scorer.model.input, path, None), scorer)[:limit]

    results = evaluated(scorer, read_rows(valid), {name: read_rows(path) for name, path in sets.items()})
    heads = [f"{100 * rate:g} %" for rate in RATES]
    table = Table("invalid set", "rule", "AUROC", "AUPRC", *(f"caught at {head}" for head in heads), "false alarms")
    for one in results:
        shares = [f"{100 * share:.1f}" for share in one.caught]
        alarms = ", ".join(f"{100 * share:.1f}" for share in one.alarms)
        table.add_row(one.name, one.rule, f"{one.auroc:.4f}", f"{one.auprc:.4f}", *shares, alarms)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(recommendation(results))
    if picture is not None:
        write_atomically(picture, drawn_rules(results))


@app.command()
@fail_in_one_line
def sample(
    model: ModelOption = None,
    store: StoreOption = "model_store",
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="how many")] = 16,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    of: Annotated[str, typer.Option(help="observation: x given z; mean: E[x given z]")] = "observation",
    output: Annotated[Path | None, typer.Option("--out", help=".npy, .csv or .png; default: CSV to stdout")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw rows from the model, in the units of the training data."""
    if of not in ("observation", "mean"):
        raise DataError("--of: expected observation or mean")
    suffix = ".csv" if output is None else output.suffix
    if suffix not in (".npy", ".csv", ".png"):
        raise DataError(f"{output}: expected a name that ends in .npy, .csv or .png")
    scorer = scorer_of(store, model, device)
    spec = scorer.model.input
    if suffix == ".png" and spec.kind != "image":
        raise DataError(f"{output}: the model's rows are no images")
    content = sample_file(suffix, scorer.sample(num, seed, of), spec)
    if output is None:
        sys.stdout.write(content.decode())
    else:
        write_atomically(output, content)


@app.command()
@fail_in_one_line
def models(
    store: StoreOption = "model_store",
    as_json: Annotated[bool, typer.Option("--json", help="the cards, as JSON")] = False,
) -> None:
    """List the models of the store; every file's hash is checked."""
    from service.store.store import Reference

    shelf = existing(store)
    table = Table("model", "input", "likelihood", "latents", "estimator", "band (nats)", "calibrated on", "notes")
    cards = []
    default = shelf.aliases().default
    for name in shelf.names():
        aliases = shelf.aliases().aliases.get(name, {})
        for version in shelf.versions(name):
            notes = [alias for alias, target in aliases.items() if target == version]
            notes += ["default"] if name == default and shelf.resolve(name).version == version else []
            try:
                card = shelf.load(Reference(name, version)).card
            except VouchError as error:
                table.add_row(f"{name}@{version}", *[""] * 6, f"DAMAGED: {error}")
                continue
            cards.append(json.loads(card.model_dump_json()))
            table.add_row(
                f"{name}@{version}",
                " x ".join(map(str, card.input.shape)),
                card.architecture.likelihood,
                str(card.architecture.latents),
                card.estimator.setting,
                interval(end for end in card.calibration.band if end is not None),
                f"{card.calibration.rows:,} rows",
                ", ".join(notes),
            )
    if as_json:
        print(json.dumps(cards, indent=2))
    else:
        # Piped into a file or a pager, a table is as wide as it needs to be.
        Console(width=None if sys.stdout.isatty() else 240).print(table)


@app.command()
@fail_in_one_line
def promote(
    model: Annotated[str, typer.Argument(help="NAME@VERSION")],
    alias: Annotated[str, typer.Option(help="the name for it; NAME alone means its alias production")] = "production",
    expected: Annotated[str | None, typer.Option(help="the version that the alias must name now")] = None,
    store: StoreOption = "model_store",
) -> None:
    """Let an alias name a version, once that loads and scores as when it was published. To go back, name the old one."""
    from service.scoring.scorer import load_scorer

    models = existing(store)
    reference = models.resolve(model)
    load_scorer(models, str(reference), "cpu", threads=1).warm_up()
    models.set_alias(reference.name, alias, reference.version, expected)
    err.print(f"{reference.name}@{alias} is {reference}; services follow within VOUCH_STORE_POLL_S, or on SIGHUP")


@app.command()
@fail_in_one_line
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on; default: VOUCH_HOST or 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="default: VOUCH_PORT or 8000")] = None,
    store: Annotated[str | None, typer.Option(help="default: VOUCH_STORE or model_store")] = None,
) -> None:
    """Serve the store's models over HTTP. Settings are VOUCH_* variables, listed in the README."""
    from service.settings import read_settings
    from service.web.server import run

    chosen = {"host": host, "port": port, "store": store}
    settings = read_settings().model_copy(update={key: value for key, value in chosen.items() if value is not None})
    run(settings)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


# What the commands share


def scorer_of(store: str, model: str | None, device: str) -> Scorer:
    """The named model of the store."""
    from service.scoring.scorer import load_scorer

    if device not in ("auto", "cpu", "cuda"):
        raise DataError("--device: expected auto, cpu or cuda")
    return load_scorer(existing(store), model, device)


def existing(root: str) -> Store:
    """The store at a URL, or in a folder that is there."""
    from service.settings import read_settings
    from service.store.storage import is_url
    from service.store.store import Store

    if is_url(root):
        return Store(root, read_settings().cache())
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder")
    return Store(root)


def rows_for(spec: InputSpec, path: Path, key: str | None) -> Rows:
    """A file's rows, the columns of a table in the model's order; an error names the file."""
    from service.files.readers import Rows, read
    from service.files.tables import is_table, read_table

    if key is not None or not is_table(path):
        return read(path, key)
    table = read_table(path)
    with naming(path):
        return Rows(spec.array(table), spec.columns)


def checked_rows(path: Path, rows: Rows, scorer: Scorer) -> np.ndarray:
    """The file's rows as the model reads them; an error names the file."""
    with naming(path):
        return scorer.rows(rows.array)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what is wrong with a file's rows name the file."""
    try:
        yield
    except (DataError, InputError) as error:
        raise DataError(f"{path}: {one_line(error)}") from error


def schema_in(path: Path, known: Sequence[str]) -> Schema:
    """The kinds of a table's columns that a file says, of those that there are."""
    from pydantic import ValidationError

    from service.data.columns import Schema

    try:
        given = Schema.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: is no schema as `vouch schema` writes it") from error
    names = [column.name for column in given.columns]
    absent = [name for name in names if name not in known]
    if absent or len(set(names)) < len(names):
        raise DataError(
            f"{path}: " + (f"column {absent[0]!r} is not in the data" if absent else "names a column twice")
        )
    return given


def schema_table(kinds: Schema, data: TableData) -> Table:
    """The kinds of columns, for people."""
    from service.data.columns import is_missing

    shown = Table("column", "kind", "missing", "why")
    for column in kinds.columns:
        cells = data.column(column.name).tolist()
        missing = sum(map(is_missing, cells))
        shown.add_row(column.name, column.kind, f"{100 * missing / len(cells):.1f} %" if missing else "", column.why)
    return shown


def named_file(text: str) -> tuple[str, Path]:
    """NAME=FILE."""
    name, separator, path = text.partition("=")
    if not (separator and name.strip() and path.strip()):
        raise DataError("--invalid: expected NAME=FILE")
    return name.strip(), Path(path.strip())


def drawn_rules(results: list[RuleOnSet]) -> bytes:
    """What each rule catches over its false alarms, as a PNG."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise DataError("--picture needs the extra: pip install 'vouch[plots]'") from None
    names = list(dict.fromkeys(one.name for one in results))
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.2), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for one in (one for one in results if one.name == name):
            alarms = np.maximum(one.alarms, LEAST_DRAWN)
            axis.plot(alarms, one.caught, "o-", label=one.rule, markersize=4)
        axis.set(title=name, xlabel="false alarms among valid rows, %", xscale="log")
        axis.set(xlim=(0.9 * LEAST_DRAWN, 0.8), ylim=(-0.03, 1.03))
        axis.set_xticks([0.01, 0.05, 0.1, 0.5], ["1", "5", "10", "50"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share of invalid rows caught")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def split_names(columns: str | None) -> list[str] | None:
    """a,b,c as a list."""
    return None if columns is None else [name.strip() for name in columns.split(",")]


def widths(text: str) -> tuple[int, ...]:
    """400,400 as numbers."""
    try:
        numbers = tuple(int(width) for width in text.split(",") if width.strip())
    except ValueError:
        numbers = (0,)
    if any(not 1 <= width <= 100_000 for width in numbers):
        raise DataError("--hidden: expected widths such as 400,400, each from 1 to 100000")
    return numbers


def percentile_pair(text: str) -> tuple[float, float]:
    """25,75 as numbers; their order is the band's business."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 100.0
    if high >= 100:
        raise DataError("--percentiles: expected two numbers below 100 such as 25,75")
    return low, high


def band_option(percentiles: str | None, false_alarm: float | None, tail: str | None) -> tuple[float, float] | None:
    """The percentiles that are meant, if any are."""
    from service.validity.band import percentiles_of

    if false_alarm is not None:
        if percentiles is not None:
            raise DataError("--percentiles and --false-alarm: expected one of them")
        return percentiles_of(false_alarm, tail_name(tail) or "both")
    return None if percentiles is None else percentile_pair(percentiles)


def tail_name(text: str | None) -> Tail | None:
    """One of the tails."""
    match text:
        case None | "low" | "both":
            return text
    raise DataError("--tail: expected low or both")


def rule_options(
    rule: str, percentiles: str | None, false_alarm: float | None, tail: str | None
) -> tuple[bool, tuple[float, float] | None, float | None]:
    """Whether the rule is the combined one, another band for that of the band, and a rate for the combined one."""
    if rule not in ("band", "combined"):
        raise DataError("--rule: expected band or combined")
    if rule == "band":
        return False, band_option(percentiles, false_alarm, tail), None
    if percentiles is not None or tail is not None:
        raise DataError("--rule combined: goes by --false-alarm; --percentiles and --tail are the band's")
    return True, None, false_alarm


def write_name(text: str) -> Write:
    """One of the ways to write rows."""
    match text:
        case "split" | "verdicts":
            return text
    raise DataError("--write: expected split or verdicts")


def on_bad_file_name(text: str) -> OnBadFile:
    """What to do with a bad file."""
    match text:
        case "stop" | "skip":
            return text
    raise DataError("--on-bad-file: expected stop or skip")


def interval(ends: Iterable[float]) -> str:
    """A band by its two ends, or its low one."""
    shown = [f"{end:.2f}" for end in ends]
    return " to ".join(shown) if len(shown) > 1 else f"from {shown[0]}"


def accepted(share: Acceptance) -> str:
    """What share of valid rows a rule accepts."""
    if share.interval is None:
        return f"about {100 * share.expected:.4g} % of valid rows (proved: {100 * share.proven:.4g} at least)"
    low, high = share.interval
    return f"{100 * share.expected:.4g} % of valid rows ({100 * low:.4g} to {100 * high:.4g})"


def likelihood_name(text: str | None) -> LikelihoodName | None:
    """One of the likelihoods."""
    match text:
        case None | "bernoulli" | "gaussian" | "discretized_logistic":
            return text
    raise DataError("--likelihood: expected bernoulli, gaussian or discretized_logistic")


def activation_name(text: str) -> ActivationName:
    """One of the activations."""
    match text:
        case "gated" | "silu" | "tanh":
            return text
    raise DataError("--activation: expected gated, silu or tanh")


def prior_name(text: str) -> PriorName:
    """One of the priors."""
    match text:
        case "normal" | "mixture" | "auto":
            return text
    raise DataError("--prior: expected normal, mixture or auto")


def setting_name(text: str) -> SettingName:
    """One of the estimator's settings."""
    match text:
        case "fast" | "standard" | "thorough":
            return text
    raise DataError("--estimator: expected fast, standard or thorough")


def part_of(text: str) -> tuple[int, int]:
    """i/N as numbers."""
    try:
        at, parts = (int(number) for number in text.split("/"))
    except ValueError:
        at, parts = 0, 0
    if not 0 <= at < parts:
        raise DataError("--shard: expected i/N with i from 0 to N - 1, such as 0/8")
    return at, parts


@contextlib.contextmanager
def row_bar(verb: str, rows: int | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rows a second, the share invalid and the time left; plain lines where there is no terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.fields[text]}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    started = said = time.monotonic()
    done = invalid = 0
    with Bar(*columns, console=err, disable=not err.is_terminal or rows is None) as bar:
        task = bar.add_task("", total=rows, text="")

        def on_batch(more: int, more_invalid: int) -> None:
            nonlocal done, invalid, said
            done, invalid = done + more, invalid + more_invalid
            speed = done / max(1e-9, time.monotonic() - started)
            shares = f", {100 * invalid / done:.1f} % invalid" if verb == "scored" and done else ""
            text = f"{verb} {done:,} of {rows:,} rows, {speed:,.0f} a second{shares}"
            bar.update(task, completed=done, text=text)
            if not err.is_terminal and time.monotonic() - said > SAID_EVERY_S:
                said = time.monotonic()
                print(f"{text}, {(rows or 0) - done:,} left", file=sys.stderr, flush=True)

        yield on_batch


@contextlib.contextmanager
def epoch_bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the bound and the time left; plain lines where there is no terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bar(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=1.0, epoch=0, text="")

        def on_epoch(progress: Progress) -> None:
            validation = progress.validation
            text = (
                f"bound {validation.bound:.2f} (best {progress.best:.2f}), reconstruction "
                f"{validation.reconstruction:.2f}, KL {validation.kl:.2f}, {progress.seconds_left:.0f} s left"
            )
            bar.update(task, completed=progress.fraction, epoch=progress.epoch, text=text)
            if not err.is_terminal and progress.epoch % 10 == 1:
                print(f"epoch {progress.epoch}: {text}", file=sys.stderr, flush=True)

        yield on_epoch


def print_report(reference: Reference, report: FitReport) -> None:
    """How the fit went, and a warning where the posterior collapsed."""
    kept = report.validation
    err.print(
        f"published {reference}: validation bound {kept.bound:.2f} nats (reconstruction {kept.reconstruction:.2f}, KL "
        f"{kept.kl:.2f}), {kept.active_latents} active latents, best of {report.epochs} epochs: {report.best_epoch}, "
        f"{report.seconds:.0f} s, ended by {report.stopped}"
    )
    if kept.active_latents == 0:
        err.print(
            "warning: the posterior collapsed: no latent carries anything of the row. The model scores columns as if "
            "they were independent; try a lower --beta, more --epochs or fewer --latents."
        )


def sample_file(suffix: str, samples: Samples, spec: InputSpec) -> bytes:
    """Samples as npy, csv or a picture."""
    from service.files.images import grid, png
    from service.scoring.tables import rows_csv

    rows = samples.samples
    if suffix == ".png":
        return png(grid(rows.reshape(len(rows), *spec.shape)))
    if suffix == ".npy":
        binary = io.BytesIO()
        np.save(binary, rows.reshape(len(rows), *spec.shape), allow_pickle=False)
        return binary.getvalue()
    return rows_csv(rows, spec).encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder")
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def main() -> None:
    """Run the command line; wrong options are one line, too."""
    command = typer.main.get_command(app)
    try:
        status = command(standalone_mode=False)
    except typer.Exit as leave:
        status = leave.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own: a wrong option or argument
            raise
        print(f"vouch: {error.format_message()}", file=sys.stderr)
        status = 2
    sys.exit(status if isinstance(status, int) else 0)
