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
    """The HTTP reference, from the OpenAPI document: groups of endpoints, the fields of all schemas, headers and errors."""
    document = create_app(Settings(host="127.0.0.1")).openapi()
    lines = [
        "# HTTP API",
        "",
        "From the OpenAPI document, `GET /openapi.json`. [Ask over HTTP](../http.md) has requests with answers. All paths",
        "also exist under `/v1`; every answer has the [headers](#headers) `X-Request-Id` and `Server-Timing`. An error is",
        "a [Problem](#problem), whose status says [what was wrong](#errors).",
        "",
    ]
    for tag in document["tags"]:
        lines += [f"## {tag['name'].capitalize()}", "", tag["description"], ""]
        for path, methods in document["paths"].items():
            for method, call in methods.items():
                if tag["name"] in call["tags"]:
                    lines += endpoint_lines(f"{method.upper()} {path}", call)
    components = document["components"]
    lines += ["## Fields", ""]
    for name, schema in components["schemas"].items():
        lines += schema_lines(name, schema)
    lines += ["## Headers", "", "| header | what |", "|---|---|"]
    lines += [f"| `{name}` | {header['description']} |" for name, header in components["headers"].items()]
    lines += ["", "## Errors", "", "| status | when | for example |", "|---|---|---|"]
    for answer in components["responses"].values():
        example = answer["content"]["application/problem+json"]["example"]
        lines.append(f"| {example['status']} | {answer['description']} | {example['detail']} |")
    return [*lines, ""]


def endpoint_lines(title: str, call: dict[str, Any]) -> list[str]:
    """An endpoint: what it does, its parameters, its body and its answers."""
    lines = [f"### {title}", "", call.get("description", ""), "", *parameter_lines(call.get("parameters", []))]
    bodies = call.get("requestBody", {}).get("content", {})
    if bodies:
        shown = [
            f"`{kind}`" + (f" ({type_of(one['schema'])})" if "$ref" in one["schema"] else "")
            for kind, one in bodies.items()
        ]
        lines += [f"Body: {', '.join(shown)}.", ""]
    success = call["responses"]["200"].get("content", {})
    forms = [type_of(one["schema"]) if kind == "application/json" else f"`{kind}`" for kind, one in success.items()]
    errors = ", ".join(status for status in call["responses"] if status != "200")
    return [*lines, f"Answers with {', '.join(forms)}. Errors: {errors}.", ""]


def parameter_lines(parameters: list[dict[str, Any]]) -> list[str]:
    """A table of a call's parameters."""
    if not parameters:
        return []
    rows = [
        f"| `{one['name']}` | {one['in']} | {type_of(one['schema'])} | {one.get('description', '')} |"
        for one in parameters
    ]
    return ["| parameter | in | type | what |", "|---|---|---|---|", *rows, ""]


def schema_lines(name: str, schema: dict[str, Any]) -> list[str]:
    """The fields of a schema."""
    lines = [f"### {name}", "", schema.get("description", ""), ""]
    if "properties" not in schema:
        return [*lines, f"{type_of(schema)}.", ""]
    rows = [
        f"| `{field}` | {type_of(one)} | {one.get('description', '')} |" for field, one in schema["properties"].items()
    ]
    return [*lines, "| field | type | what |", "|---|---|---|", *rows, ""]


def type_of(schema: dict[str, Any]) -> str:
    """The type of a field, in words, with links to other schemas."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"pair of {type_of(schema['prefixItems'][0])}"
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"object of {type_of(values)}" if isinstance(values, dict) else "object"
    return str(schema.get("format") or schema.get("type", "anything"))


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
