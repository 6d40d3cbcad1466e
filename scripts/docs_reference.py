"""The pages of the reference, made from the code while the site is built: HTTP, command line, Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer

from service.cli.app import app
from service.cli.main import COMMANDS
from service.settings import Settings
from service.web.app import create_app

RESULTS = Path("benchmarks/RESULTS.md")
PYTHON = {
    "A scorer in memory": [
        "service.load",
        "service.scoring.scorer.Scorer",
        "service.scoring.generator.Generator",
        "service.scoring.options.ScoreOptions",
        "service.scoring.scores.Scores",
        "service.scoring.scores.ExplainedScores",
    ],
    "Whole data sets": ["service.datasets.scored.score_table"],
    "A client of the service": ["service.client.Client", "service.client.AsyncClient", "service.client.Verdicts"],
    "An outlier detector for scikit-learn": ["service.detector.VAEDetector"],
    "Errors": ["service.errors"],
}


def write(name: str, lines: list[str]) -> None:
    """A page."""
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as page:
        page.write("\n".join(lines) + "\n")


def http_lines() -> list[str]:
    """Each path with its parameters and answers, from the OpenAPI document."""
    document = create_app(Settings(host="127.0.0.1")).openapi()
    lines = [
        "# HTTP API",
        "",
        "Every parameter and status, from the OpenAPI document. [Ask over HTTP](../http.md) has requests with answers.",
        "All paths also exist under `/v1`.",
        "",
    ]
    for path, methods in sorted(document["paths"].items()):
        for method, call in methods.items():
            lines += [f"## {method.upper()} {path}", "", call.get("description") or call.get("summary", ""), ""]
            lines += parameter_lines(call.get("parameters", []))
            bodies = ", ".join(f"`{kind}`" for kind in call.get("requestBody", {}).get("content", {}))
            if bodies:
                lines += [f"Body: {bodies}.", ""]
            for status, answer in call["responses"].items():
                kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
                lines.append(f"- **{status}** {answer.get('description', '')}" + (f": {kinds}" if kinds else ""))
            lines.append("")
    return lines


def parameter_lines(parameters: list[dict[str, Any]]) -> list[str]:
    """A table of a call's parameters."""
    if not parameters:
        return []
    rows = [
        f"| `{one['name']}` | {one['in']} | {one.get('description', '')} |".replace("\n", " ") for one in parameters
    ]
    return ["| parameter | in | what |", "|---|---|---|", *rows, ""]


def cli_lines() -> list[str]:
    """Each command with its arguments and options."""
    lines = ["# Command line", ""]
    assert COMMANDS  # which have added themselves to the application
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="vouch")
    for name in command.list_commands(context):
        one = command.get_command(context, name)
        inner = typer.Context(one, info_name=name, parent=context)
        lines += [
            f"## vouch {name}",
            "",
            re.sub(r"\s+", " ", one.help or ""),
            "",
            "| option | default | what |",
            "|---|---|---|",
        ]
        for parameter in one.get_params(inner):
            names = (
                ", ".join(f"`{text}`" for text in parameter.opts)
                if parameter.param_type_name == "option"
                else f"`{parameter.name}`"
            )
            default = (
                "" if parameter.default in (None, False) or callable(parameter.default) else f"`{parameter.default}`"
            )
            text = getattr(parameter, "help", "") or ""
            lines.append(f"| {names} | {default} | {text} |".replace("\n", " "))
        lines.append("")
    return lines


def python_lines() -> list[str]:
    """The names that mkdocstrings documents."""
    lines = ["# Python", ""]
    for title, names in PYTHON.items():
        lines += [f"## {title}", "", *(line for name in names for line in (f"::: {name}", ""))]
    return lines


def add_results() -> None:
    """The output of the benchmarks as a page, and the links to it."""
    with mkdocs_gen_files.open("results.md", "w") as page:
        page.write(RESULTS.read_text())
    for path in Path("docs").glob("*.md"):
        text = path.read_text()
        if f"../{RESULTS}" in text:
            with mkdocs_gen_files.open(path.name, "w") as page:
                page.write(text.replace(f"../{RESULTS}", "results.md"))


add_results()
write("http", http_lines())
write("cli", cli_lines())
write("python", python_lines())
