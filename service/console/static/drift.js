// Whether the rows that are served still look like the validation rows: a bet against it, and what it has won.
import { curl, getJSON, postJSON } from "console/api.js";
import { Chart, Columns } from "console/charts.js";
import { count, percent, plural } from "console/format.js";
import { html, useEffect, useState } from "console/lib.js";
import { Request, Trouble } from "console/parts.js";
import { useApp } from "console/state.js";

const EVERY_MS = 5000;

export function Drift() {
  const { model } = useApp();
  const [monitor, setMonitor] = useState(null),
    [problem, setProblem] = useState(null);
  useEffect(() => {
    setMonitor(null);
    let isHere = true;
    const ask = () =>
      getJSON("drift", { model: model.name }).then(
        (answer) => isHere && setMonitor(answer.drift[0]),
        (failure) => isHere && setProblem(failure),
      );
    ask();
    const timer = setInterval(ask, EVERY_MS);
    return () => {
      isHere = false;
      clearInterval(timer);
    };
  }, [model.name]);
  if (!monitor)
    return html`<article class="card"><h2>Drift</h2>${problem ? html`<${Trouble} problem=${problem} />` : html`<p
      class="soft">Loading…</p>`}</article>`;
  const restart = () =>
    postJSON(`models/${encodeURIComponent(model.name)}/drift`, { restart: true }).then((answer) => {
      setMonitor(answer.drift[0]);
      setProblem(null);
    }, setProblem);
  return html`<div class="drift">
    <${Monitor} monitor=${monitor} title=${`${monitor.model.name}, version ${monitor.model.version}`} />
    ${monitor.drifts && html`<section class="card"><p>Once you know why, start again: <button type="button"
      onClick=${restart}>Acknowledge the alarm</button> <span class="soft">needs the scope admin</span></p></section>`}
    <${Trouble} problem=${problem} />
    ${monitor.keys.map((one) => html`<${Monitor} key=${one.key} monitor=${one}
      title=${`Rows of the key ${one.key}`} />`)}
    <${Request} line=${curl("drift", { query: { model: model.name } })} />
  </div>`;
}

function Monitor({ monitor, title }) {
  const {
    log_capital: capital,
    peak_log_capital: peak,
    limit,
    drifts,
    direction,
    alarm_row: alarm,
    watched_rows: watched,
    level,
  } = monitor;
  const verdict = drifts
    ? `The rows no longer look like the validation rows: ${direction === "low" ? "too many are unlikely" : "too many are likely"}. The alarm was raised at row ${count(alarm)}.`
    : watched
      ? "No sign of drift: the rows look like the validation rows."
      : "No rows have been judged yet.";
  return html`<section class="card" aria-label=${title}>
    <h2>${title}</h2>
    <p class="big ${drifts ? "invalid-text" : ""}" aria-live="polite">${verdict}</p>
    <h3>The bet</h3>
    <${Capital} capital=${capital} peak=${peak} limit=${limit} />
    <p class="soft">A gambler bets on each row that rows have changed. While they have not, he loses; the chance that his log capital ever reaches ${limit.toFixed(1)} is at most ${percent(level)}. It stands at ${capital.toFixed(1)}, and was at most ${peak.toFixed(1)}, after ${plural(watched, "row")}.</p>
    <h3>P-values of the rows, in tenths</h3>
    <${Columns} counts=${monitor.p_value_deciles} labels=${["0", "", "", "", "", "", "", "", "", "1"]}
      label=${`Rows by p-value, in ten equal parts: ${monitor.p_value_deciles.map(count).join(", ")}. Flat if nothing has changed.`} />
    <p class="soft">Flat, along the line, if nothing has changed; high on the left if strange rows come too often.</p>
  </section>`;
}

const Capital = (props) => html`<${Chart} draw=${(W) => drawCapital(W, props)} />`;

function drawCapital(W, { capital, peak, limit }) {
  const low = Math.min(-2, capital),
    high = Math.max(limit * 1.25, peak * 1.05),
    x = (value) => ((value - low) / (high - low)) * W;
  return html`<svg class="chart" viewBox="0 0 ${W} 64" role="img"
    aria-label=${`log capital ${capital.toFixed(1)} of a limit of ${limit.toFixed(1)}`}>
    <rect class="track" x="0" y="14" width=${W} height="18" rx="9" />
    <rect class=${capital > limit ? "over" : "won"} x=${x(Math.min(0, capital))} y="14"
      width=${Math.max(2, Math.abs(x(capital) - x(0)))} height="18" />
    <line class="grid" x1=${x(0)} x2=${x(0)} y1="8" y2="38" /><text x=${x(0)} y="56" text-anchor="middle">0</text>
    <line class="limit" x1=${x(limit)} x2=${x(limit)} y1="4" y2="42" /><text x=${x(limit)} y="56"
      text-anchor="middle">alarm at ${limit.toFixed(1)}</text>
  </svg>`;
}
