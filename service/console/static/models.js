// What is served: the model's card for people, its versions, and which of them answers.
import { curl, getJSON, postJSON } from "console/api.js";
import { count, number, percent, plural } from "console/format.js";
import { html, useState } from "console/lib.js";
import { Request, Trouble } from "console/parts.js";
import { app, choose, inputOf, link, note, useApp } from "console/state.js";

const RULES = {
  combined: "all statistics",
  "band, low side": "log p(x), unlikely",
  "band, both sides": "log p(x), both sides",
};
const SERVED = "production"; // the alias that names what the bare name means

export function Models() {
  const { models, model, params } = useApp();
  return html`<div class="models">
    <section class="card" aria-label="Models"><h2>Models</h2>
      <ul class="model-list">${models.map((one) => html`<li key=${one.name}><a
        href=${link("models", { model: one.name })} aria-current=${one.name === model.name}>${one.name}</a>${" "}<span
        class="soft">version ${one.serving}${one.default ? ", the default" : ""}${one.ready ? "" : ", not in memory"}
        </span></li>`)}</ul>
    </section>
    <${Versions} key=${model.name} model=${model} />
    <${Card} model=${model} />
    <${Request}
      line=${curl(`models/${encodeURIComponent(model.name)}`, { query: { version: params.model?.split("@")[1] } })} />
  </div>`;
}

function Versions({ model }) {
  const [asked, setAsked] = useState(null),
    [problem, setProblem] = useState(null),
    [before, setBefore] = useState(null);
  const shown = app.value.calibration.model.version;
  const serve = async (version) => {
    try {
      const was = model.serving;
      await postJSON(`models/${encodeURIComponent(model.name)}/aliases`, {
        alias: SERVED,
        version,
        ...(model.aliases[SERVED] ? { expected: model.aliases[SERVED] } : {}),
      });
      setBefore(was);
      setProblem(null);
      const { models } = await getJSON("models");
      app.set({ models });
      note({ model: model.name });
      await choose(model.name);
    } catch (failure) {
      setProblem(failure);
    }
    setAsked(null);
  };
  return html`<section class="card" aria-label="Versions"><h2>Versions of ${model.name}</h2>
    <${Trouble} problem=${problem} />
    ${before && before !== model.serving && html`<p role="status">Version ${model.serving} answers now. <button
      type="button" onClick=${() => serve(before)}>Go back to version ${before}</button></p>`}
    <table class="plain-table"><thead><tr><th scope="col">Version</th><th scope="col">Aliases</th><th
      scope="col">State</th><th scope="col"><span class="sr-only">Serve it</span></th></tr></thead><tbody>
    ${model.versions.map(
      (one) => html`<tr key=${one.version}>
      <th scope="row"><a href=${link("models", { model: `${model.name}@${one.version}` })}
        aria-current=${one.version === shown}>${one.version}</a></th>
      <td>${one.aliases.join(", ")}</td>
      <td>${one.error ?? (one.version === model.serving ? `answers to "${model.name}"` : one.loaded ? "in memory" : "in the store")}</td>
      <td>${
        one.version !== model.serving &&
        (asked === one.version
          ? html`<span>Every caller gets version ${one.version}. <button type="button"
            onClick=${() => serve(one.version)}>Serve it</button> <button type="button" class="quiet"
            onClick=${() => setAsked(null)}>Cancel</button></span>`
          : html`<button type="button" onClick=${() => setAsked(one.version)}>Promote</button>`)
      }</td></tr>`,
    )}
    </tbody></table></section>`;
}

function Card({ model }) {
  const { card } = model,
    { training, calibration, architecture } = card,
    input = inputOf(model);
  const reads =
    input.kind === "image"
      ? `images of ${input.height} × ${input.width}${input.channels === 3 ? " in colour" : ""}`
      : plural(input.columns.length, "column");
  const facts = [
    ["reads", reads],
    ["trained on", training?.data?.rows ? plural(training.data.rows, "row") : "rows that its card does not count"],
    ["calibrated on", `${plural(calibration.rows, "valid row")}`],
    ["latents", count(architecture.latents)],
    [
      "network",
      `${architecture.network === "conv" ? "convolutional" : "fully connected"}, ${architecture.hidden.join(" · ")}${card.members > 1 ? `, ${card.members} together` : ""}`,
    ],
    [
      "where a request asks for no rule, judges by",
      calibration.rule === "combined"
        ? "all statistics together"
        : `log p(x), percentiles ${calibration.percentiles.join(" to ")}`,
    ],
    ["published", new Date(card.created).toLocaleString()],
  ];
  return html`<section class="card" aria-label="Card"><h2>${card.name}, version ${card.version}</h2>
    <p>${card.description}</p>
    <dl class="facts">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
      </dl>
    ${input.kind === "table" && html`<details><summary>Columns</summary><table class="plain-table"><tbody>
      ${input.columns.map((one) => html`<tr key=${one.name}><th scope="row">${one.name}</th><td>
      ${one.values ? one.values.slice(0, 12).join(", ") + (one.values.length > 12 ? ", …" : "") : one.low === null || one.low === undefined ? "a number" : `${number(one.low)} to ${number(one.high)}`}</td></tr>`)}</tbody></table></details>`}
    ${card.selftest && html`<${Selftest} selftest=${card.selftest} />`}
    <details><summary>The whole card</summary><pre tabindex="0">${JSON.stringify(card, null, 2)}</pre></details>
  </section>`;
}

/** What the version's rules catch of valid rows that were spoilt on purpose. */
function Selftest({ selftest }) {
  const last = selftest.rules.length - 1,
    rules = selftest.rules.map((rule, at) => [rule, at]).reverse(); // the combined one first
  const ways = [...selftest.caught].sort((one, other) => other.shares[last] - one.shares[last]);
  return html`<h3>What it would catch, and what it cannot</h3>
    <p class="soft">
      ${plural(selftest.rows, "valid row")} that it had never seen were spoilt in ${plural(ways.length, "way")}, and judged at ${percent(selftest.false_alarm)} false alarms.</p>
    <div class="scroll-x" tabindex="0" role="region" aria-label="Self-test"><table class="plain-table selftest">
      <thead><tr><th scope="col">Valid rows, spoilt so</th>${rules.map(([rule]) => html`<th scope="col"
      class="number">${RULES[rule] ?? rule}</th>`)}</tr></thead><tbody>
    ${ways.map((one) => html`<tr key=${one.spoil}><th scope="row">${one.spoil}</th>${rules.map(([, at]) => html`<td
      class="number">${percent(one.shares[at])}</td>`)}</tr>`)}
    <tr class="unspoilt"><th scope="row">nothing: false alarms</th>${rules.map(([, at]) => html`<td class="number">
      ${percent(selftest.alarms[at])}</td>`)}</tr>
    </tbody></table></div>`;
}
