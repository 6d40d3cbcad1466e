"""`vouch selftest`: what a model's rules catch of valid rows once they are spoilt."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.app import app
from service.cli.console import err, fail_in_one_line, progress_bar
from service.cli.inputs import check_unseen, existing, rows_for, scorer_of
from service.cli.options import (
    DeviceOption,
    KeyOption,
    StoreOption,
    TextFileOptions,
    TrainedRowsOption,
    takes_options,
)
from service.cli.report import selftest_lines
from service.errors import DataError

if TYPE_CHECKING:
    from service.scoring.spoils import Spoil

SPOILS = "SPOILS"


@dataclass(frozen=True)
class SpoilOptions:
    """Options that choose how rows are spoilt, and how many."""

    false_alarm: Annotated[
        float | None, typer.Option(help="rate of false alarms; default: 0.01, or the lowest that the version allows")
    ] = None
    limit: Annotated[int | None, typer.Option(min=10, help="spoil only the first N rows in each way")] = None
    spoil: Annotated[
        Path | None,
        typer.Option(help=f"Python file whose {SPOILS} are further ways of spoiling rows: docs/verdicts.md"),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="seed of what is random in the spoils")] = 0


@app.command()
@fail_in_one_line
@takes_options
def selftest(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS")],
    text: TextFileOptions,
    spoiling: SpoilOptions,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="valid rows that the model has not seen; default: none are tested"),
    ] = None,
    store: StoreOption = "model_store",
    key: KeyOption = None,
    trained_rows: TrainedRowsOption = "refuse",
    device: DeviceOption = "auto",
) -> None:
    """Spoil valid rows in many ways, and say how many of each the rules catch; without DATA, what training found."""
    from service.scoring.selftesting import selftested
    from service.scoring.spoils import spoils_of
    from service.training.course import TrainingProgress

    scorer = scorer_of(store, model, device)
    if data is None:
        if scorer.published.card.selftest is None:
            raise DataError(
                f"{scorer.published.reference} was published without a self-test: give a file of valid rows"
            )
        found = scorer.published.card.selftest
    else:
        own = [] if spoiling.spoil is None else spoils_in(spoiling.spoil)
        rows = rows_for(scorer.reader, data, key, text.text_options()).of_model(data, scorer.model.input)
        check_unseen(existing(store), scorer.published.reference, rows[:, : scorer.model.input.features], trained_rows)
        spoils = [*spoils_of(scorer.model.input), *own]
        with progress_bar() as on_progress:
            found = selftested(
                scorer,
                rows,
                spoiling.false_alarm,
                spoils,
                spoiling.limit,
                spoiling.seed,
                lambda done, number: on_progress(TrainingProgress("spoiling", f"{done} ways", done / number, None)),
            )
    for line in selftest_lines(found, is_whole=True):
        print(line)


def spoils_in(path: Path) -> list[Spoil]:
    """The ways of spoiling rows that a Python file defines.

    Raises:
        DataError: the file cannot be run, or has no list of that name.
    """
    from service.scoring.spoils import Spoil

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("vouch_spoils", path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error
    found = getattr(module, SPOILS, None)
    if not isinstance(found, list | tuple) or not all(isinstance(one, Spoil) for one in found):
        raise DataError(f"{path}: expected {SPOILS}, a list of service.scoring.spoils.Spoil")
    err.print(f"{path}: {len(found)} more ways", highlight=False)
    return list(found)
