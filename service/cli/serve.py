"""`vouch serve` and `vouch version`."""

from __future__ import annotations

from typing import Annotated

import typer

from service._version import __version__
from service.cli.app import app
from service.cli.console import fail_in_one_line


@app.command()
@fail_in_one_line
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on; default: VOUCH_HOST or 127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port to listen on; default: VOUCH_PORT or 8000")
    ] = None,
    store: Annotated[str | None, typer.Option(help="the model store; default: VOUCH_STORE or model_store")] = None,
) -> None:
    """Serve the store's models over HTTP. Settings are VOUCH_* variables, listed in docs/settings.md."""
    from service.settings import read_settings
    from service.web.server import run

    chosen = {"host": host, "port": port, "store": store}
    settings = read_settings().model_copy(update={key: value for key, value in chosen.items() if value is not None})
    run(settings)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
