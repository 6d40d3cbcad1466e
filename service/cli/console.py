"""What the command line prints: errors in one line, progress, tables and reports."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.errors import DataError, InputError, RowError, VouchError, first_fault

if TYPE_CHECKING:
    from service.data.cells import RawTable
    from service.data.kinds import Schema
    from service.data.survey import Survey
    from service.data.table import Table as TableData
    from service.scoring.evaluation import RuleOnSet
    from service.training.course import TrainingProgress
    from service.validity.conformal import Acceptance

REPORT_EVERY_S = 10.0  # seconds between progress lines without a terminal
LEAST_DRAWN = 0.004  # smallest false-alarm rate in a plot, whose axis is logarithmic
P = ParamSpec("P")
T = TypeVar("T")
err = Console(stderr=True, soft_wrap=True)


def fail_in_one_line(command: Callable[P, T]) -> Callable[P, T]:
    """Make a command report errors that its user can fix in one line, with exit status 2."""

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
    """Print one line to stderr and exit."""
    print(f"vouch: {message}", file=sys.stderr)
    raise typer.Exit(status)


def one_line(error: Exception) -> str:
    """An error's text in one line, with the first fault if the text does not name a row."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError) and error.faults and "row" not in text:
        fault = error.faults[0]
        text = f"{text}: row {fault.row}, column {fault.column}: {fault.message}, expected {fault.expected}"
    return text


@contextlib.contextmanager
def naming(path: Path, raw: RawTable | None = None) -> Iterator[None]:
    """Add the file's name to errors about its rows, and the line if its lines are known."""
    try:
        yield
    except (InputError, DataError) as error:
        problem = first_fault(error) if isinstance(error, InputError) else error
        if isinstance(problem, RowError) and raw is not None:
            raise DataError(f"{path}: {problem.in_place(raw.place(problem.row))}") from error
        raise DataError(f"{path}: {one_line(problem)}") from error


@contextlib.contextmanager
def row_bar(verb: str, rows: int | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rows per second, share invalid and time left; plain lines without a terminal."""
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
            if not err.is_terminal and time.monotonic() - said > REPORT_EVERY_S:
                said = time.monotonic()
                print(f"{text}, {(rows or 0) - done:,} left", file=sys.stderr, flush=True)

        yield on_batch


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[TrainingProgress], None]]:
    """A progress bar of a whole training run; without a terminal a line at each change of stage and every few seconds."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),  # what is left to say needs the room
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
    )
    said, stage = 0.0, ""
    with Bar(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0, text="")

        def on_progress(progress: TrainingProgress) -> None:
            nonlocal said, stage
            left = "" if not progress.seconds_left else f"about {duration(progress.seconds_left)} left"
            text = ", ".join(part for part in (left, progress.detail) if part)
            bar.update(task, completed=progress.fraction, description=progress.stage, text=text)
            if not err.is_terminal and (progress.stage != stage or time.monotonic() - said > REPORT_EVERY_S):
                said, stage = time.monotonic(), progress.stage
                share = "" if progress.seconds_left is None else f"{100 * progress.fraction:.0f} %"
                shown = ", ".join(part for part in (share, text) if part)
                print(f"{stage}: {shown}" if shown else stage, file=sys.stderr, flush=True)

        yield on_progress


def duration(seconds: float) -> str:
    """A length of time as text: seconds, minutes or hours."""
    whole = max(1, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def interval(ends: tuple[float | None, float | None]) -> str:
    """A band as text: both ends, or the only one."""
    low, high = ends
    if high is None:
        return "everything" if low is None else f"from {low:.2f}"
    return f"up to {high:.2f}" if low is None else f"{low:.2f} to {high:.2f}"


def accepted(share: Acceptance) -> str:
    """The share of valid rows that a rule accepts, as text."""
    if share.interval is None:
        return f"about {100 * share.expected:.4g} % of valid rows (proved: at least {100 * share.proven:.4g} %)"
    low, high = share.interval
    least = "at least " if share.is_bound else ""
    return f"{least}{100 * share.expected:.4g} % of valid rows ({100 * low:.4g} to {100 * high:.4g})"


def schema_table(kinds: Schema, data: TableData) -> Table:
    """A table of the columns' kinds, with examples and reasons, to print."""
    from service.data.kinds import examples_of

    shown = Table("column", "kind", "examples", "missing", "why")
    for column in kinds.columns:
        is_there = column.name in data.names
        cells = data.column(column.name) if is_there else np.zeros(0)
        missing = list(cells).count(None) if cells.dtype == object else int(np.isnan(cells).sum())
        row = (
            column.name or "(no name)",
            column.kind,
            ", ".join(cut(text) for text in examples_of(cells)),
            f"{100 * missing / len(cells):.2g} %" if missing else "",
            "; ".join(part for part in (column.why, *column.notes) if part),
        )
        shown.add_row(*map(escape, row))
    return shown


def print_schema(path: Path, raw: RawTable, survey: Survey) -> None:
    """Print a file's columns to stdout."""
    kinds = [column.kind for column in survey.schema.columns]
    used = len(kinds) - kinds.count("ignored")
    shown = Console(width=None if sys.stdout.isatty() else 160)
    shown.print(f"{path}: {len(raw):,} rows, {used} of {len(kinds)} columns are used", markup=False, highlight=False)
    shown.print(schema_table(survey.schema, survey.table))


def cut(text: str, most: int = 20) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def drawn_rules(results: list[RuleOnSet]) -> bytes:
    """A PNG plot of the share that each rule catches against its false alarms."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise DataError("--picture needs the extra: pip install '.[plots]'") from None
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


def write(path: Path, content: bytes) -> None:
    """Write a file that the user named; its folder must exist."""
    from service.system.files import write_whole

    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder")
    write_whole(path, content)
