"""The command line: `vouch` and its commands."""

from __future__ import annotations

import sys

import typer

from service.cli import calibrate, evaluate, feedback, journal, keys, models, score, selftest, serve, train
from service.cli import filter as _filter
from service.cli.app import app

# Importing a module registers its commands.
COMMANDS = (train, calibrate, score, evaluate, selftest, _filter, models, feedback, journal, keys, serve)


def main() -> None:
    """Run the command line; wrong options also end with one line and exit status 2."""
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
