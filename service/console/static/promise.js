// How many valid rows may be refused, and what that refuses of the reader's own.
import { curl } from "console/api.js";
import { Curve, RateChart } from "console/charts.js";
import { accepted, count, nats, percent, plural } from "console/format.js";
import { html, useEffect, useMemo, useRef, useState } from "console/lib.js";
import { Choice, Copy, Notes, Request } from "console/parts.js";
import { addFiles, explainRefused, isValidAt, judgedScore } from "console/rows.js";
import { app, inputOf, judgingQuery, link, promisesOf, setJudging, useApp } from "console/state.js";

const RULES = [
  ["combined", "all statistics together"],
  ["low", "log p(x), too unlikely"],
  ["both", "log p(x), too unlikely or too likely"],
];

export function Promised() {
  const { calibration, judging, rows, invalid, changed, notes } = useApp();
  const [costs, setCosts] = useState({ miss: 100, alarm: 1, share: 0.01 });
  const chooser = useRef();
  if (judging.fixed)
    return html`<article class="card"><h2>The promise</h2>
      <p>This deployment judges every row by one rule; no request may ask for another (VOUCH_POLICY).</p></article>`;
  const promises = promisesOf();
  const at = promises.findIndex((one) => one.false_alarm === judging.false_alarm);
  const promise = promises[at];
  const known = new Set(invalid);
  const judged = rows.filter((row) => judgedScore(row, judging));
  const own = judged.filter((row) => !known.has(row.id)),
    bad = judged.filter((row) => known.has(row.id));
  const refused = own.filter((row) => !isValidAt(row.score, judging));
  const chosen = judging.rule === "combined" ? "combined" : judging.tail;
  const choose = (value) =>
    setJudging(value === "combined" ? { rule: "combined", tail: null } : { rule: "band", tail: value });
  useEffect(explainRefused, [judging.false_alarm]);
  const series = useMemo(
    () => shares(promises, own, bad, judging),
    [promises, rows, invalid, changed, judging.rule, judging.tail],
  );
  const cheapest = bad.length ? cheapestOf(promises, series.caught, costs) : null;
  const { interval, confidence, proven, bound } = promise.accepts,
    toCome = rows.filter((row) => !row.problem).length - judged.length;
  const within = interval && (bound ? `at least ${percent(interval[0])}` : `${percent(interval[0])} to ${percent(interval[1])}`);
  const sure = within
    ? ` With ${Math.round(100 * confidence)} % confidence it is ${within}.`
    : proven
      ? ` At least ${percent(proven)} is proved.`
      : "";
  return html`<div class="promise">
    <section class="card" aria-label="The promise">
      <h2>How many valid rows may be refused?</h2>
      <${Choice} name="rule" legend="Judge by" value=${chosen} onChange=${choose}
        options=${RULES.filter(([one]) => calibration.promises[one]?.length)} />
      <label class="slider"><span>False alarms: <strong>${percent(judging.false_alarm)}</strong></span>
        <input type="range" min="0" max=${promises.length - 1} value=${at}
          aria-valuetext=${percent(judging.false_alarm)}
          onInput=${(event) => setJudging({ false_alarm: promises[Number(event.target.value)].false_alarm })} />
      </label>
      <p class="big">Of valid rows, <strong>${accepted(promise.accepts)}</strong> will be accepted.</p>
      <p class="soft">
        ${sure} That is counted on ${count(promise.accepts.rows)} valid rows. ${threshold(promise, judging)}</p>
      ${promise.log_likelihood && html`<${Curve} curve=${calibration.curve} band=${promise.log_likelihood} />`}
      <h3>Take it with you</h3>
      <${Lines} judging=${judging} />
    </section>
    <section class="card" aria-label="Your rows">
      <h2>Your rows at this rate</h2>
      ${
        own.length
          ? html`<p class="big" aria-live="polite"><strong>${count(refused.length)}
            </strong> of ${plural(own.length, "row")} would be refused${toCome > 0 ? `; ${count(toCome)} to come` : ""}.</p>`
          : toCome > 0
            ? html`<p aria-busy="true">Judging ${plural(toCome, "row")}…</p>`
            : html`<p>Bring rows in <a
              href=${link("check")}>Check</a>, and see here which of them each rate refuses.</p>`
      }
      ${refused.length > 0 && html`<ol class="refused">${refused.slice(0, 8).map((row) => html`<li key=${row.id}><a
        href=${link("check")} onClick=${() => app.set({ selected: row.id })}>${row.name}</a><span class="soft">
        ${row.score.reason ? `: ${row.score.reason}` : ""}</span></li>`)}</ol>`}
      ${refused.length > 8 && html`<p class="soft">and ${count(refused.length - 8)} more</p>`}
      <${RateChart} label="Shares that are refused, by rate of false alarms" rate=${judging.false_alarm}
        series=${drawn(series)}
        mark=${cheapest && { rate: cheapest.rate, share: cheapest.caught, text: `cheapest: ${percent(cheapest.rate)}` }} />
      <p class="legend"><span class="alarms">valid rows, promised</span>${own.length > 0 && html`<span
        class="own">your rows</span>`}${bad.length > 0 && html`<span class="caught">rows known to be invalid</span>`}
        </p>
      <h3>What is caught</h3>
      <p>${bad.length ? html`<strong>${count(bad.filter((row) => !isValidAt(row.score, judging)).length)}
        </strong> of ${plural(bad.length, "row")} that you know to be invalid are caught.` : "Add rows that you know to be invalid, and see what each rate catches of them."}
${" "}<button type="button" onClick=${() => chooser.current.click()}>Add invalid rows</button></p>
      <${Notes} notes=${notes} />
      <input ref=${chooser} type="file" multiple hidden aria-label="Files of invalid rows" onChange=${(event) => {
        addFiles([...event.target.files], { isInvalid: true });
        event.target.value = "";
      }} />
      ${bad.length > 0 && html`<${Costs} costs=${costs} onChange=${setCosts} cheapest=${cheapest} />`}
    </section>
    <${Request} line=${curl("calibration", { query: { model: judgingQuery().model } })} />
  </div>`;
}

function threshold(promise, judging) {
  if (judging.rule === "combined")
    return `A row is refused if at most ${percent(promise.false_alarm)} of valid rows are as strange by all statistics together.`;
  const [low, high] = promise.log_likelihood;
  if (low === null) return "So many valid rows have a cell that cannot be read that this rate refuses no others.";
  return high === null
    ? `A row is refused if its log p(x) is below ${nats(low)} nats.`
    : `A row is refused if its log p(x) is below ${nats(low)} or above ${nats(high)} nats.`;
}

/** Shares that are refused at each rate: of valid rows, of the reader's, and of those known to be invalid. */
function shares(promises, own, bad, judging) {
  const rates = promises.map((one) => one.false_alarm);
  const of = (rows) =>
    rows.length &&
    rates.map((rate) => [
      rate,
      rows.filter((row) => !isValidAt(row.score, { ...judging, false_alarm: rate })).length / rows.length,
    ]);
  return { alarms: promises.map((one) => [one.false_alarm, 1 - one.accepts.expected]), own: of(own), caught: of(bad) };
}

const drawn = (series) =>
  Object.entries(series)
    .filter(([, points]) => points)
    .map(([className, points]) => ({ className, points }));

/** The rate with the least expected cost per row, of which a share is invalid. */
export function cheapestOf(promises, caught, { miss, alarm, share }) {
  const all = promises.map((one, at) => ({
    rate: one.false_alarm,
    caught: caught[at][1],
    cost: share * miss * (1 - caught[at][1]) + (1 - share) * alarm * (1 - one.accepts.expected),
  }));
  return all.reduce((best, one) => (one.cost < best.cost ? one : best));
}

function Costs({ costs, onChange, cheapest }) {
  const field = (name, text, step) =>
    html`<label class="inline">${text} <input type="number" min="0" step=${step} value=${costs[name]}
      onInput=${(event) => onChange({ ...costs, [name]: Math.max(0, Number(event.target.value) || 0) })} /></label>`;
  return html`<div class="costs">
    ${field("miss", "A miss costs", "any")} ${field("alarm", "a false alarm costs", "any")} ${field("share", "share of rows that are invalid", "0.001")}
    <p>Cheapest: <strong>${percent(cheapest.rate)}
      </strong> false alarms, which catches ${percent(cheapest.caught)}, at a cost of ${cheapest.cost.toPrecision(3)} a row.${" "}<button type="button" onClick=${() => setJudging({ false_alarm: cheapest.rate })}>Take it</button></p></div>`;
}

/** The rule as a request, as a command, and in Python. */
function Lines({ judging }) {
  const { rule, tail, false_alarm: rate } = judging,
    { model: named, ...how } = judgingQuery();
  const { kind } = inputOf(app.value.model);
  const request =
    kind === "table"
      ? curl("score", { query: { model: named, ...how }, file: "rows.csv", type: "text/csv" })
      : curl("score/files", { query: { model: named, ...how }, file: "image.png" });
  const flags =
    rule === "combined" ? `--rule combined --false-alarm ${rate}` : `--rule band --false-alarm ${rate} --tail ${tail}`;
  const options =
    rule === "combined" ? `rule="combined", false_alarm=${rate}` : `rule="band", false_alarm=${rate}, tail="${tail}"`;
  const python = `from service import load\nfrom service.scoring.options import ScoreOptions\n\nscorer = load("${named}", store="model_store")\nscores = scorer.score(rows, ScoreOptions(${options}))  # rows: a data frame, an array, or a list of dicts`;
  return html`<dl class="lines"><dt>Request</dt><dd><${Copy} text=${request} label="Copy request" /></dd>
    <dt>Command line</dt><dd><${Copy}
      text=${`vouch score ${kind === "table" ? "rows.csv" : "images/"} --model ${named} ${flags}`}
      label="Copy command" /></dd>
    <dt>Python</dt><dd><${Copy} text=${python} label="Copy Python" /></dd></dl>`;
}
