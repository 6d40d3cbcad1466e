"""`vouch score` and `sample`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from service.cli.app import app
from service.cli.console import accepted, err, fail_in_one_line, interval, naming, row_bar, write
from service.cli.inputs import rows_for_all, scorer_of
from service.cli.options import (
    FILES,
    DeviceOption,
    JudgeOptions,
    KeyOption,
    ModelOption,
    StoreOption,
    TextFileOptions,
    split_names,
    takes_options,
)
from service.errors import DataError

if TYPE_CHECKING:
    from service.data.inputs import InputSpec
    from service.scoring.options import ScoreOptions
    from service.scoring.scorer import Scorer
    from service.scoring.scores import Samples, Scores
    from service.scoring.tables import Origin
    from service.validity.conformal import Discoveries

ROWS_A_STEP = 1_024


@dataclass(frozen=True)
class ListingOptions:
    """Options that choose what is listed, and where."""

    limit: Annotated[int | None, typer.Option(min=1, help="score only the first N rows")] = None
    keep: Annotated[str | None, typer.Option(help="columns of the file to carry through, such as id,name")] = None
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="pass over images that cannot be read, and list them")
    ] = False
    full: Annotated[bool, typer.Option("--full", help="also the estimate's diagnostics: ess, khat, num_samples")] = (
        False
    )
    output: Annotated[
        Path | None, typer.Option("--out", help="file to write, .csv or .jsonl; default: CSV to stdout")
    ] = None


@app.command()
@fail_in_one_line
@takes_options
def score(
    paths: Annotated[list[Path], typer.Argument(metavar="DATA...", help=f"{FILES}; or several images")],
    judge: JudgeOptions,
    text: TextFileOptions,
    listing: ListingOptions,
    model: ModelOption = None,
    store: StoreOption = "model_store",
    key: KeyOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score the rows of a file: verdict, log p(x) and its standard error, percentile and p-value of each."""
    from service.scoring.tables import Origin, file_scores_csv, file_scores_json_lines

    data, output = paths[0], listing.output
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise DataError(f"{output}: expected a name that ends in .csv or .jsonl")
    options = judge.score_options()
    scorer = scorer_of(store, model, device)
    scorer.check(options)
    with choosing(scorer, model, data):
        reader = scorer.judging_reader(options.strict)
        source = rows_for_all(reader, paths, key, text.text_options(), listing.skip_bad)
        rows = source.of_model(data, scorer.model.input)[: listing.limit]
    with naming(data):
        origin = Origin.of(source.raw, len(rows), split_names(listing.keep) or (), listing.full, source.rows.names)
    scores = scored(scorer, rows, options)
    discoveries = None if options.fdr is None else scores.discoveries(options.fdr, options.tail or "low")
    is_json = output is not None and output.suffix == ".jsonl"
    with naming(data):
        listed = file_scores_json_lines if is_json else file_scores_csv
        content = listed(scores, origin, discoveries)
    if output is None:
        sys.stdout.write(content)
    else:
        write(output, content.encode())
    print_scores(str(scorer.published.reference), scores, origin, discoveries)


@contextlib.contextmanager
def choosing(scorer: Scorer, model: str | None, path: Path) -> Iterator[None]:
    """Say so if a table cannot be read because the default model, which nobody chose, reads images."""
    from service.files.tables import is_table

    try:
        yield
    except DataError as error:
        spec = scorer.model.input
        if model is not None or spec.kind != "image" or not is_table(path):
            raise
        size = " x ".join(map(str, spec.shape))
        raise DataError(
            f"{error}; the default model {scorer.published.reference} reads images of {size}: choose a model of tables by "
            "--model"
        ) from None


def scored(scorer: Scorer, rows: np.ndarray, options: ScoreOptions) -> Scores:
    """The scores of all rows, with progress on the way."""
    from service.scoring.scores import concatenated

    parts = []
    with row_bar("scored", len(rows)) as on_batch:
        for start in range(0, max(1, len(rows)), ROWS_A_STEP):
            parts.append(scorer.score_read(rows[start : start + ROWS_A_STEP], options))
            on_batch(len(parts[-1]), int((~parts[-1].valid).sum()))
    return concatenated(parts)


def print_scores(reference: str, scores: Scores, origin: Origin, discoveries: Discoveries | None) -> None:
    """Print how many rows are invalid, by which rule, and what could not be read."""
    from service.scoring.tables import violation_texts

    invalid = int((~scores.valid).sum())
    judged_by = f"band {interval(scores.band.ends_or_none)} nats, accepts {accepted(scores.accepted)}"
    if scores.rule is not None:
        judged_by = f"{100 * scores.rule.false_alarm:.4g} % false alarms, accepts {accepted(scores.accepted)}"
    err.print(
        f"{len(scores):,} rows, {invalid:,} invalid ({100 * invalid / len(scores):.1f} %); {reference}, {judged_by}"
    )
    if scores.unreadable.any():
        at = int(scores.unreadable.argmax())
        err.print(
            f"invalid because a cell cannot be read, or there is no value: {int(scores.unreadable.sum()):,} rows, the "
            f"first is {origin.key} {origin.keys[at]}, {violation_texts(scores)[at]}",
            markup=False,
            highlight=False,
        )
    for note in scores.warnings():
        err.print(f"warning: {note}", markup=False, highlight=False)
    if discoveries is not None:
        found = int(discoveries.chosen.sum())
        err.print(
            f"{found:,} discoveries by {discoveries.procedure}: at most {100 * discoveries.level:g} % of them are valid "
            "rows, in expectation"
        )
        if warning := discoveries.warning():
            err.print(f"warning: {warning}")


@app.command()
@fail_in_one_line
def sample(
    model: ModelOption = None,
    store: StoreOption = "model_store",
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="number of rows to draw")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="seed for reproducible draws")] = 0,
    of: Annotated[
        Literal["observation", "mean"], typer.Option(help="observation: x given z; mean: E[x given z]")
    ] = "observation",
    output: Annotated[
        Path | None, typer.Option("--out", help="file to write, .npy, .csv or .png; default: CSV to stdout")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw rows from the model, in the units of the training data."""
    suffix = ".csv" if output is None else output.suffix
    if suffix not in (".npy", ".csv", ".png"):
        raise DataError(f"{output}: expected a name that ends in .npy, .csv or .png")
    scorer = scorer_of(store, model, device)
    spec = scorer.model.input
    if suffix == ".png" and spec.kind != "image":
        raise DataError(f"{output}: a .png needs a model of images")
    content = sample_file(suffix, scorer.sample(num, seed, of), spec)
    if output is None:
        sys.stdout.write(content.decode())
    else:
        write(output, content)


def sample_file(suffix: str, samples: Samples, spec: InputSpec) -> bytes:
    """Samples as a .npy, .csv or .png file."""
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
