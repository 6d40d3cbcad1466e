// One row's verdict: what it is, why, where it lies among valid rows, and what is to blame.
import { curl, Problem } from "console/api.js";
import { Curve, EvidenceBars, RateScale } from "console/charts.js";
import { asStrange, nats, percent } from "console/format.js";
import { Request } from "console/parts.js";
import { html, useEffect, useState } from "console/lib.js";
import { Editor } from "console/editor.js";
import { explained, faultOf, isUnreadable, pValue, restore } from "console/rows.js";
import { inputOf, judgingQuery, useApp } from "console/state.js";

/** The verdict in a word, with a sign for those who do not see the colour. */
export function Badge({ verdict }) {
  const sign = verdict === "valid" ? "✓" : "✕";
  return html`<span class="badge ${verdict}"><span aria-hidden="true">${sign}</span> ${verdict}</span>`;
}

/** What a valid row's card says in place of a reason. */
function agreement(score, judging) {
  const p = pValue(score, judging);
  if (judging.percentiles)
    return `Its log p(x) is inside the band: ${Math.round(score.percentile)} % of valid rows are less likely.`;
  if (p >= 0.2) return "Nothing about it is odd: many valid rows are stranger.";
  return `It is somewhat unusual, but ${asStrange(p)}, and that is not rare enough to refuse it.`;
}

function confidence(score) {
  const sure = score.certain
    ? "The verdict is certain: the estimate's error is too small to change it."
    : "The verdict is close: within the estimate's error it could go the other way.";
  const trust = score.reliable
    ? "The estimate of log p(x) is reliable."
    : "The estimate of log p(x) is rough: the true value may be lower.";
  return `${sure} ${trust}`;
}

function rateWords(judging) {
  if (judging.percentiles) return `the band from ${judging.percentiles[0]} to ${judging.percentiles[1]} %`;
  return `${percent(judging.false_alarm)} false alarms`;
}

/** Sentence case for what the service says in lower case. */
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

export function VerdictCard({ row }) {
  const { judging, calibration, model, changed } = useApp();
  const [more, setMore] = useState(null);
  const input = inputOf(model);
  useEffect(() => {
    setMore(null);
    if (!row.score || row.problem) return undefined;
    const abort = new AbortController();
    explained(row, abort.signal).then(setMore, (problem) => {
      if (problem.name !== "AbortError") setMore({ problem });
    });
    return () => abort.abort();
  }, [row.id, row.score, row.instance, judging]);
  if (row.problem) {
    return html`<article class="card" aria-live="polite"><h2>${row.name}</h2>
      <p class="badge-line"><span class="badge problem">not scored</span></p>
      <p>${sentence(faultOf(row.problem))}</p>
      ${row.problem.document.errors?.length > 1 && html`<ul class="soft small">
        ${row.problem.document.errors.map((one) => html`<li>
        ${one.column}: ${one.message}${one.expected ? `; expected ${one.expected}` : ""}</li>`)}</ul>`}
      ${input.kind === "table" && row.instance && html`<${Editor} row=${row} input=${input} more=${null} />`}
    </article>`;
  }
  const score = more?.scores?.[0] ?? (judging.rule === "combined" && !row.score?.evidence ? null : row.score);
  if (!score)
    return html`<article class="card" aria-busy="true"><h2>${row.name}</h2><p class="soft">Scoring…</p></article>`;
  const band = more?.band && judging.rule !== "combined" ? (score.band ?? more.band.log_likelihood) : null;
  return html`<article class="card" data-changed=${changed} aria-busy=${Boolean(row.isStale)}>
    <h2>${row.name}${row.source && html` <span class="soft">of ${row.source}</span>`}</h2>
    <div aria-live="polite">
      <p class="badge-line"><${Badge} verdict=${score.verdict} /><span class="soft">at ${rateWords(judging)}</span></p>
      <p class="reason">${score.reason ? sentence(score.reason) : agreement(score, judging)}</p>
    </div>
    ${row.original && html`<p class="soft small">This is not the row as you brought it. <button type="button"
      class="quiet" onClick=${() => {
        restore(row.id);
        document.getElementById("main").focus(); // the button is gone
      }}>Undo the changes</button></p>`}
    ${!isUnreadable(score) && html`<p class="soft small">${confidence(score)}</p>`}
    ${more?.problem && html`<p class="problem-text">
      ${more.problem instanceof Problem ? more.problem.message : "The details could not be loaded."}</p>`}
    <${Editor} row=${row} input=${input} more=${more?.problem ? null : more} />
    ${!isUnreadable(score) && html`<${Numbers} score=${score} band=${band} />`}
    ${score.record && html`<p class="soft small">Record <code>${score.record}</code></p>`}
    <${Request} line=${requestOf(row, model)} />
  </article>`;
}

/** How likely and how strange a row is, in numbers. */
function Numbers({ score, band }) {
  const { judging, calibration } = useApp();
  const less =
    score.percentile > 0
      ? `${score.percentile.toFixed(1)} % of valid rows are less likely`
      : "no valid row is less likely";
  return html`<div>
    ${
      judging.rule === "combined" &&
      score.evidence &&
      html`<h3>How strange it is, all in all</h3>
      <${RateScale} p=${score.evidence.combined} rate=${judging.false_alarm} verdict=${score.verdict} />`
    }
    <h3>Where it lies among valid rows</h3>
    <${Curve} curve=${calibration.curve} band=${band} score=${score} />
    <p class="soft small">log p(x) is ${nats(score.log_likelihood)} ± ${(2 * score.std_error).toFixed(1)} nats (two standard errors); ${less}.</p>
    ${
      score.evidence &&
      html`<h3>How strange it is, by each statistic</h3>
      <${EvidenceBars} evidence=${score.evidence} statistics=${calibration.statistics} limit=${judging.false_alarm} />`
    }
  </div>`;
}

/** The request that gives this card. */
function requestOf(row, model) {
  const query = { ...judgingQuery(), trial: 1, explain: inputOf(model).kind === "image" ? "map" : 3 };
  if (row.file) return curl("score/files", { query, file: row.name });
  return curl("score", { query, json: { instances: [row.instance] } });
}
