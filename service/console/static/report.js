// Draws the charts of a report where they belong.
import * as charts from "console/charts.js";
import { html, render } from "console/lib.js";

for (const { at, kind, props } of JSON.parse(document.getElementById("charts").textContent)) {
  render(html`<${charts[kind]} ...${props} />`, document.getElementById(at));
}
