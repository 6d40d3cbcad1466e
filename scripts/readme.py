"""Rewrite the answers, tables and figures of README and docs/ from what really runs.

python scripts/readme.py                       # answers of a service on the bundled models, and the settings
python scripts/readme.py --figure evaluate=FILE --figure bench=FILE   # and what these commands printed
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.console import fail_in_one_line
from service.errors import DataError
from service.settings import Settings

SERVE = [sys.executable, "-m", "service.cli", "serve"]
README = Path("README.md")
DOCS, SECURITY = Path("docs"), Path("SECURITY.md")
ANSWERED = (README, DOCS / "http.md")  # the pages whose curl lines have their answers below them
COMMAND = re.compile(r"```sh\n((?:sed [^\n]* \| )?curl .*?)\n```\n(?:\n```json\n.*?\n```\n)?", re.DOTALL)
WIDTH = 116
HARD_SPACE = "\x00"  # at which no line is broken


@fail_in_one_line
def main(figure: Annotated[list[str] | None, typer.Option(help="NAME=FILE: put a command's output in")] = None) -> None:
    """Rewrite the answers in README.md and docs/http.md, the settings, and the figures that are given."""
    with bundled_service() as address:
        for page in ANSWERED:
            page.write_text(COMMAND.sub(lambda match: answered(match[1], address), page.read_text()))
    put("settings", settings_table())
    for pair in figure or []:
        name, _, file = pair.partition("=")
        put(name, f"```text\n{Path(file).read_text().rstrip()}\n```")


def answered(command: str, address: str) -> str:
    """A command with its abridged answer below it."""
    content = run(command, address)
    return f"```sh\n{command}\n```\n\n```json\n{pretty(abridged(json.loads(content)))}\n```\n"


def run(command: str, address: str) -> str:
    """What a curl line prints, asked of the service at the address."""
    line = command.replace("localhost:8000", address)
    return subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True).stdout


def abridged(value: Any, depth: int = 0) -> Any:
    """The beginning of long lists and of digests, objects down to the second level or so, numbers to six digits."""
    if isinstance(value, dict):
        # Which cell is to blame, what belonged there, and what speaks against a row, is what is asked for.
        shallow = ("columns", "expected", "evidence", "accepts", "violations")
        return (
            "..." if depth > 1 else {key: abridged(item, depth + (key not in shallow)) for key, item in value.items()}
        )
    if isinstance(value, list):
        shown = value[: 2 if len(value) < 3 or not isinstance(value[0], dict) else 1]
        return [abridged(item, depth) for item in shown] + ["..."] * (len(value) > len(shown))
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:15] + "..."
    return value


def pretty(value: Any, indent: int = 0) -> str:
    """JSON, each value in one line where it fits, and objects of plain values as few lines as hold them."""
    flat = json.dumps(value)
    if len(flat) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return flat
    pad = " " * (indent + 2)
    if isinstance(value, dict) and not any(isinstance(item, dict | list) for item in value.values()):
        text = ", ".join(
            f"{json.dumps(key)}: {json.dumps(item)}".replace(" ", HARD_SPACE) for key, item in value.items()
        )
        lines = textwrap.wrap(text, WIDTH - indent - 2, break_long_words=False, break_on_hyphens=False)
        return "{" + f"\n{' ' * (indent + 1)}".join(lines).replace(HARD_SPACE, " ") + "}"
    if isinstance(value, dict):
        lines = [f"{pad}{json.dumps(key)}: {pretty(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + pretty(item, indent + 2) for item in value) + "\n" + " " * indent + "]"


def put(name: str, content: str) -> None:
    """Replace what stands between the marks of a name, on whichever page has them."""
    pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
    pages = [page for page in (README, SECURITY, *sorted(DOCS.glob("*.md"))) if pattern.search(page.read_text())]
    if not pages:
        raise DataError(f"no page has the marks <!-- {name} --> and <!-- /{name} -->")
    for page in pages:
        page.write_text(pattern.sub(lambda _: f"<!-- {name} -->\n{content}\n<!-- /{name} -->", page.read_text()))


def settings_table() -> str:
    """Every setting with its default."""
    lines = ["| variable | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        lines.append(f"| `VOUCH_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


@contextmanager
def bundled_service(**settings: str) -> Iterator[str]:
    """A service on a copy of the bundled store, perhaps with more settings; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree("model_store", Path(folder) / "store")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = os.environ | {
            "VOUCH_STORE": f"{folder}/store",
            "VOUCH_PORT": str(port),
            "VOUCH_LOG_LEVEL": "ERROR",
            "VOUCH_DRAIN_S": "0",
            **{f"VOUCH_{name.upper()}": value for name, value in settings.items()},
        }
        process = subprocess.Popen(SERVE, env=environment)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/readyz")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(url: str) -> None:
    """Wait for a 200, at most a minute."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise DataError(f"{url}: the service did not become ready within a minute")


if __name__ == "__main__":
    typer.run(main)
