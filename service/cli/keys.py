"""`vouch keys add`, `list` and `revoke`: the file of API keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.cli.app import app
from service.cli.console import err, fail_in_one_line, stop

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The file of API keys: VOUCH_API_KEYS_FILE.")
app.add_typer(keys, name="keys")
FileOption = Annotated[Path, typer.Option("--file", envvar="VOUCH_API_KEYS_FILE", help="the file of keys")]


@keys.command()
@fail_in_one_line
def add(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="what logs, quotas and drift monitors call the key")],
    file: FileOption,
    scopes: Annotated[str, typer.Option("--scopes", help="score, admin, or both: score,admin")] = "score",
    models: Annotated[str, typer.Option(help="the models that it may use, such as adult,mnist; default: all")] = "",
    rows_per_s: Annotated[float | None, typer.Option(help="most rows a second")] = None,
    concurrent_rows: Annotated[int | None, typer.Option(help="most rows that wait or are scored at a time")] = None,
    expires: Annotated[str | None, typer.Option(help="the last day on which it is valid, in UTC: YYYY-MM-DD")] = None,
) -> None:
    """Make a key of 256 random bits, print it, and add its digest to the file. It is shown this once.

    A running service takes it after SIGHUP.
    """
    import hashlib
    import secrets

    from service.web.access import parse_line, read_keys

    key = secrets.token_hex(32)
    options = {
        "id": key_id,
        "models": models,
        "rows_per_s": rows_per_s,
        "concurrent_rows": concurrent_rows,
        "expires": expires,
    }
    words = [f"{name}={value}" for name, value in options.items() if value not in ("", None)]
    try:
        entry = parse_line(" ".join([hashlib.sha256(key.encode()).hexdigest(), scopes.replace(" ", ""), *words]))
    except ValueError as error:
        stop(str(error))
    known = read_keys(file, may_be_empty=True) if file.exists() else []
    if any(other.id == key_id for other in known):
        stop(f"{file}: there is a key of that id already")
    text = file.read_text() if file.exists() else ""
    write(file, text + ("" if text.endswith("\n") or not text else "\n") + entry.line() + "\n")
    err.print(f"{key_id}: added to {file}; send SIGHUP to a running service. The key, which is not stored:")
    print(key)


@keys.command(name="list")
@fail_in_one_line
def list_keys(file: FileOption) -> None:
    """List the keys in the file, without their digests."""
    from service.web.access import read_keys

    table = Table("id", "scopes", "models", "rows a second", "rows at a time", "last day")
    for key in read_keys(file, may_be_empty=True):
        quota = key.quota
        cells: tuple[Any, ...] = (quota.rows_per_s, quota.concurrent_rows, key.expires)
        last = ["" if cell is None else f"{cell}" for cell in cells]
        last[-1] += " (expired)" if key.is_expired() else ""
        table.add_row(key.id, ", ".join(sorted(key.scopes)), ", ".join(key.models) or "all", *last)
    Console().print(table)


@keys.command()
@fail_in_one_line
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], file: FileOption) -> None:
    """Remove a key from the file. A running service refuses it after SIGHUP."""
    from service.web.access import is_key, parse_line, read_keys

    if all(key.id != key_id for key in read_keys(file, may_be_empty=True)):
        stop(f"{file}: there is no key of that id")
    lines = file.read_text().splitlines(keepends=True)
    write(file, "".join(line for line in lines if not is_key(line) or parse_line(line).id != key_id))
    err.print(f"{key_id}: removed from {file}; send SIGHUP to a running service")


def write(file: Path, text: str) -> None:
    """Write the file whole, for its owner alone; also where a link leads to it."""
    from service.system.files import write_whole

    write_whole(Path(os.path.realpath(file)), text.encode(), mode=0o600)
