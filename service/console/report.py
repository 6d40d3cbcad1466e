"""Reports: self-contained HTML pages with the console's style and charts, which are drawn when the page is opened."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Literal

from jinja2 import Environment
from markupsafe import Markup

from service.console.assets import assets

# By which name each module asks for the others.
MODULES = {
    "preact": "vendor/preact.mjs",
    "preact/hooks": "vendor/hooks.mjs",
    "htm": "vendor/htm.mjs",
    "console/lib.js": "lib.js",
    "console/format.js": "format.js",
    "console/charts.js": "charts.js",
    "console/report.js": "report.js",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' data:; img-src data:"
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # of JSON in HTML, so that no text in it ends the script
ChartKind = Literal["Columns", "Curve", "RateChart"]


class Charts:
    """The charts of a report: templates call it where one stands."""

    def __init__(self) -> None:
        self.wanted: list[dict[str, Any]] = []

    def __call__(self, kind: ChartKind, **props: Any) -> Markup:
        """The place of a chart of the console's (`charts.js`), with its properties."""
        place = f"chart-{len(self.wanted)}"
        self.wanted.append({"at": place, "kind": kind, "props": props})
        return Markup('<div id="{}"></div>').format(place)


def page(title: str, template: str, **values: Any) -> str:
    """A report from a template of its body, which has the function `chart` beside the values.

    Everything but the charts is there without scripts, too.
    """
    charts = Charts()
    body = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return FRAME.render(
        title=title,
        policy=POLICY,
        style=Markup(assets()["style.css"].content.decode()),  # noqa: S704 - ours
        imports=Markup(as_json({"imports": {name: data_address(path) for name, path in MODULES.items()}})),  # noqa: S704
        body=Markup(body.render(chart=charts, **values)),  # noqa: S704 - escaped as it was rendered
        data=Markup(as_json(charts.wanted)),  # noqa: S704 - escaped by `as_json`
    )


def data_address(path: str) -> str:
    """A module as an address that holds it."""
    return f"data:text/javascript;base64,{base64.b64encode(assets()[path].content).decode()}"


def as_json(value: Mapping[str, Any] | list[dict[str, Any]]) -> str:
    """JSON that may stand in a script."""
    return "".join(ESCAPES.get(one, one) for one in json.dumps(value, allow_nan=False))


FRAME = Environment(autoescape=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>{{ title }}</title>
<style>{{ style }}</style>
<script type="importmap">{{ imports }}</script>
</head>
<body>
<main class="report">
{{ body }}
</main>
<script type="application/json" id="charts">{{ data }}</script>
<script type="module">import "console/report.js";</script>
</body>
</html>
"""
)
