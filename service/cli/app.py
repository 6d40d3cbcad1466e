"""The typer application, on which each command module registers its commands.

Bad input ends with one line on stderr and exit status 2, and leaves nothing half-written. Importing torch takes a
second, so commands import what they need: --help and errors are instant.
"""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Vouch for data: train a VAE on valid rows, then check how likely any row is and whether it is valid.",
)
