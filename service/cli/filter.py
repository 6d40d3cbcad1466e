"""`vouch filter`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.app import app
from service.cli.console import err, fail_in_one_line, row_bar
from service.cli.inputs import rows_for, scorer_of
from service.cli.options import (
    DeviceName,
    DeviceOption,
    JudgeOptions,
    KeyOption,
    ModelOption,
    StoreOption,
    TextFileOptions,
    part_of,
    takes_options,
)
from service.errors import DataError

if TYPE_CHECKING:
    from service.datasets.report import Report
    from service.datasets.run import Run
    from service.scoring.options import ScoreOptions
    from service.scoring.scorer import Scorer


@dataclass(frozen=True)
class WorkOptions:
    """How a run is divided into shards, and what works on them."""

    write: Annotated[
        Literal["split", "verdicts"],
        typer.Option(help="split: folders valid/ and invalid/; verdicts: one folder rows/ with a verdict for each row"),
    ] = "split"
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="rows to read, score and write at a time; default: chosen from the row width"),
    ] = None
    on_bad_file: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="stop at a file that cannot be read, or skip it and list it in the report"),
    ] = "stop"
    workers: Annotated[
        int | None, typer.Option(min=1, help="worker processes; default: one per CPU, or one on a GPU")
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/N, i from 0 to N - 1: do only every N-th shard, for a scheduler that starts N such commands"
        ),
    ] = None
    images: Annotated[
        Literal["link", "copy"], typer.Option(help="of a folder of images: whether files are linked or copied")
    ] = "link"
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="pass over images that cannot be read, and list them")
    ] = False
    finish: Annotated[bool, typer.Option("--finish", help="only merge the results of commands run with --shard")] = (
        False
    )
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="local: processes on this machine; ray: workers of a Ray cluster")
    ] = "local"
    address: Annotated[
        str | None, typer.Option(help="address of the Ray cluster; default: start one on this machine")
    ] = None

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many parts of the shards to do; (0, 1) without --shard."""
        if self.finish and self.shard is not None:
            raise DataError("--finish and --shard: use one of them, not both")
        return (0, 1) if self.shard is None else part_of(self.shard)


@app.command("filter")
@fail_in_one_line
@takes_options
def filter_rows(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="a file, folder or glob of .parquet, .csv, .tsv, .jsonl (and .gz of them), .npy or .npz, an fsspec URL, "
            "or a folder of images",
        ),
    ],
    output: Annotated[str, typer.Option("--out", help="results folder: a new one, or that of a run to resume")],
    judge: JudgeOptions,
    work: WorkOptions,
    text: TextFileOptions,
    model: ModelOption = None,
    store: StoreOption = "model_store",
    key: KeyOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Split a data set into valid and invalid rows, with scores and a report. Run again to resume.

    A folder of images is divided into valid/ and invalid/, with scores.csv and a sheet of the strangest.
    """
    try:
        from service.datasets.image_folder import are_images
        from service.datasets.plan import RunOptions
        from service.datasets.run import Run
    except ImportError:
        raise DataError("filter needs the extra: pip install '.[datasets]'") from None
    if judge.fdr is not None and (judge.percentiles, judge.false_alarm, judge.tail) != (None, None, None):
        raise DataError("--fdr sets the threshold itself; leave out --percentiles, --false-alarm and --tail")
    options, part = judge.score_options(), work.part
    scorer = scorer_of(store, model, device)
    if scorer.model.input.kind == "image" and are_images(Path(source)):
        divide_images(scorer, Path(source), Path(output), options, work)
        return
    run_options = RunOptions.of(scorer, options, key, work.write, work.shard_rows, text.text_options())
    run = Run.start(source, output, run_options, scorer, work.on_bad_file)
    report = worked(run, work, part, store, device)
    if report is None:
        err.print(
            f"{output}: part {work.shard} of {len(run.shards):,} shards is done; once all parts are, run the same command "
            "with --finish instead of --shard"
        )
        return
    print_report(report, output)


def divide_images(scorer: Scorer, root: Path, out: Path, options: ScoreOptions, work: WorkOptions) -> None:
    """Divide a folder of images, and say what became of it."""
    from service.cli.score import scored
    from service.datasets.image_folder import divide

    scorer.check(options)
    source = rows_for(scorer.judging_reader(options.strict), root, None, skip_bad=work.skip_bad)
    rows = source.of_model(root, scorer.model.input)
    names = source.rows.names or ()
    found = divide(scorer, root, out, rows, names, scored(scorer, rows, options), options, work.images)
    share = 100 * found.invalid / max(1, len(rows))
    err.print(
        f"{len(rows):,} images, {found.invalid:,} invalid ({share:.1f} %); {scorer.published.reference}; see {out}"
    )
    for warning in found.warnings:
        err.print(f"warning: {warning}", markup=False, highlight=False)


def worked(run: Run, work: WorkOptions, part: tuple[int, int], store: str, device: DeviceName) -> Report | None:
    """Do the run's remaining shards and finish it; with --shard, leave finishing to --finish (None)."""
    from service.datasets.run import engine_of

    undone = [] if work.finish else run.undone(part)
    at_work = engine_of(work.engine, run, store, device, work.workers, work.address)
    if undone:
        with row_bar("scored", sum(one.row_range.rows for one in undone)) as on_batch:
            at_work.score(undone, on_batch)
    if work.shard is not None:
        return None
    with row_bar("split", run.plan.rows if run.plan.options.fdr is not None else None) as on_batch:
        return run.finish(at_work, on_batch)


def print_report(report: Report, output: str) -> None:
    """Print how many rows are invalid, by which rule, and what was not done."""
    share = 100 * report.invalid / max(1, report.rows)
    err.print(
        f"{report.rows:,} rows, {report.invalid:,} invalid ({share:.1f} %); {report.model}, {report.rule}; "
        f"see {output}/report.html"
    )
    if report.fdr is not None and report.fdr.warning is not None:
        err.print(f"warning: {report.fdr.warning}")
    for one in report.not_done[:10]:
        rows = f", rows {one.rows}" if one.rows else ""
        err.print(f"not done: {one.file}{rows}: {one.reason}")
    if len(report.not_done) > 10:
        err.print(f"not done: {len(report.not_done) - 10} more, listed in {output}/report.json")
