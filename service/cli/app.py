"""The command line's application, to which each command adds itself.

Bad input ends with one line on stderr and exit status 2, and leaves nothing half-written. torch takes a second to import:
commands import what they need, so that --help and errors are instant.
"""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Vouch for data: train a VAE on valid rows, then ask of any row how likely it is and whether it is valid.",
)
