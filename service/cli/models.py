"""`vouch models` and `promote`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.cli.app import app
from service.cli.console import err, fail_in_one_line, interval
from service.cli.inputs import existing
from service.cli.options import StoreOption
from service.errors import VouchError


@app.command()
@fail_in_one_line
def models(
    store: StoreOption = "model_store",
    as_json: Annotated[bool, typer.Option("--json", help="print the model cards as JSON")] = False,
) -> None:
    """List the models in the store, and check the hash of every file."""
    from service.scoring.version import Reference

    found = existing(store)
    table = Table("model", "input", "likelihood", "latents", "estimator", "band (nats)", "calibrated on", "notes")
    cards = []
    default = found.aliases().default
    for name in found.names():
        aliases = found.aliases().aliases.get(name, {})
        for version in found.versions(name):
            notes = [alias for alias, target in aliases.items() if target == version]
            notes += ["default"] if name == default and found.resolve(name).version == version else []
            try:
                card = found.load(Reference(name, version)).card
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
                interval(card.calibration.band),
                f"{card.calibration.rows:,} rows",
                ", ".join(notes),
            )
    if as_json:
        print(json.dumps(cards, indent=2))
    else:
        # Without a terminal (a file, a pager) the table may be wider than 80 columns.
        Console(width=None if sys.stdout.isatty() else 240).print(table)


@app.command()
@fail_in_one_line
def promote(
    model: Annotated[str, typer.Argument(help="NAME@VERSION")],
    alias: Annotated[str, typer.Option(help="alias to move; NAME alone means NAME@production")] = "production",
    expected: Annotated[str | None, typer.Option(help="move the alias only if it names this version now")] = None,
    store: StoreOption = "model_store",
) -> None:
    """Point an alias at a version, after checking that it loads and reproduces its published scores.

    To roll back, name the old version.
    """
    from service.store.loading import load_scorer

    models = existing(store)
    reference = models.resolve(model)
    load_scorer(models, str(reference), "cpu", threads=1).warm_up()
    models.set_alias(reference.name, alias, reference.version, expected)
    err.print(f"{reference.name}@{alias} is {reference}; services follow within VOUCH_STORE_POLL_S, or on SIGHUP")
