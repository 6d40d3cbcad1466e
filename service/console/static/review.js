// What people say of verdicts: rows that they are asked about, and what their answers say of the promise.
import { curl, getJSON, postJSON } from "console/api.js";
import { Badge } from "console/card.js";
import { asStrange, cell, count, percent, plural, words } from "console/format.js";
import { html, useEffect, useRef, useState } from "console/lib.js";
import { Choice, Request, Trouble } from "console/parts.js";
import { Picture } from "console/pixels.js";
import { addInstance, clear } from "console/rows.js";
import { inputOf, link, note, useApp } from "console/state.js";

const QUEUES = [
  ["refused", "refused lately"],
  ["uncertain", "uncertain lately"],
  ["asked", "asked about"],
];
const MOST = 200;
const LABELS = [
  ["valid", "v", "Valid"],
  ["invalid", "i", "Invalid"],
  ["unsure", "u", "Unsure"],
];

export function Review() {
  const { model, hasJournal, params } = useApp();
  const which = QUEUES.some(([one]) => one === params.which) ? params.which : "refused";
  const [listed, setListed] = useState(null),
    [realised, setRealised] = useState(null),
    [problem, setProblem] = useState(null);
  const [at, setAt] = useState(0),
    [given, setGiven] = useState({}),
    [comment, setComment] = useState("");
  const [last, setLast] = useState(null),
    [hasKeys, setKeys] = useState(true),
    isBusy = useRef(false);
  const query = { model: model.name, which, limit: MOST };
  useEffect(() => {
    let isHere = true;
    setAt(0);
    setListed(null);
    setProblem(null);
    if (hasJournal) {
      getJSON("feedback", { ...query, rate: 1 }).then(
        (answer) => {
          if (!isHere) return;
          setListed(answer.reviews);
          setRealised(answer.realised);
        },
        (failure) => isHere && setProblem(failure),
      );
    }
    return () => {
      isHere = false;
    };
  }, [model.name, which]);
  const open = (listed ?? []).filter((one) => !one.own);
  const one = open[Math.min(at, open.length - 1)];
  const say = async (label) => {
    if (!one || isBusy.current) return;
    isBusy.current = true;
    try {
      await postJSON("feedback", { record: one.record, label, ...(comment.trim() ? { note: comment.trim() } : {}) });
      setGiven({ ...given, [one.record]: label });
      setComment("");
      setLast(one.record);
      getJSON("feedback", { model: model.name, limit: 1, rate: 1 }).then(
        (answer) => setRealised(answer.realised),
        () => {},
      );
      setListed((before) =>
        before.map((other) =>
          other.record === one.record
            ? { ...other, own: label, label: other.label && other.label !== label ? "unsure" : label }
            : other,
        ),
      );
      setProblem(null);
    } catch (failure) {
      setProblem(failure);
    }
    isBusy.current = false;
  };
  // The last row comes back to be answered again; the last answer of each person counts.
  const undo = () => {
    setListed((before) => before.map((other) => (other.record === last ? { ...other, own: null } : other)));
    setAt(
      Math.max(
        0,
        listed.filter((other) => !other.own || other.record === last).findIndex((other) => other.record === last),
      ),
    );
    setLast(null);
  };
  useEffect(() => {
    const press = (event) => {
      if (
        !hasKeys ||
        event.repeat ||
        event.target.closest("input:not([type=radio], [type=checkbox]), textarea, select") ||
        event.ctrlKey ||
        event.metaKey ||
        event.altKey
      )
        return;
      const label = LABELS.find(([, letter]) => letter === event.key);
      if (label) say(label[0]);
      else if (event.key === "j") setAt(Math.min(open.length - 1, at + 1));
      else if (event.key === "k") setAt(Math.max(0, at - 1));
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
  if (!hasJournal)
    return html`<article class="card"><h2>Review</h2>
      <p>This service keeps no journal of verdicts, so there is nothing to review. VOUCH_JOURNAL turns it on.</p>
      </article>`;
  if (problem && !listed) return html`<article class="card"><h2>Review</h2><${Trouble} problem=${problem} /></article>`;
  if (!listed) return html`<article class="card" aria-busy="true"><p class="soft">Loading…</p></article>`;
  return html`<div class="review">
    <section class="card" aria-label="The row to review">
      <${Choice} name="which" legend="Rows" value=${which} options=${QUEUES}
        onChange=${(value) => note({ which: value })} />
      <h2>${open.length ? `${plural(open.length, "row")} to look at` : "Nothing to review"}</h2>
      <${Trouble} problem=${problem} />
      ${
        one
          ? html`<${Asked} one=${one} key=${one.record} />
        <label class="stacked">Note<input type="text" maxlength="2000" value=${comment}
          onInput=${(event) => setComment(event.target.value)} /></label>
        <div class="buttons" role="group" aria-label="What is it in truth?">
          ${LABELS.map(([label, letter, text]) => html`<button type="button" key=${label} onClick=${() => say(label)}>
          ${text} <kbd>${letter}</kbd></button>`)}
          <button type="button" class="quiet"
            onClick=${() => setAt(Math.min(open.length - 1, at + 1))}>Skip <kbd>j</kbd></button></div>`
          : html`<p class="soft">
            ${which === "asked" ? "Nobody is asked about a row now: vouch feedback ask draws some at random." : `No row of this model was ${which} lately, or you have answered about each.`}</p>`
      }
      <p class="soft"><span aria-live="polite">
        ${Object.keys(given).length ? `${plural(Object.keys(given).length, "answer")} given now.` : ""}</span>
        ${last && html`${" "}<button type="button" class="quiet"
          onClick=${undo}>Change the last one (${given[last]})</button>`}</p>
      <label class="soft small"><input type="checkbox" checked=${hasKeys}
        onChange=${() => setKeys(!hasKeys)} /> keys v, i and u answer; j and k move</label>
    </section>
    <${Realised} reviews=${listed} realised=${realised} />
    <${Request} line=${curl("feedback", { query })} />
  </div>`;
}

/** A row that people are asked about. */
function Asked({ one }) {
  const { model } = useApp();
  const input = inputOf(model);
  const look = () => {
    const { row } = one;
    clear();
    addInstance(
      one.record,
      input.kind === "table" && input.isNamed && Array.isArray(row)
        ? Object.fromEntries(input.columns.map(({ name }, at) => [name, row[at]]))
        : row,
    );
  };
  return html`<div>
    <p class="badge-line"><${Badge} verdict=${one.verdict} /><span class="soft">
      ${one.model}, ${new Date(one.time).toLocaleString()}; ${one.drawn ? "drawn at random" : "not drawn at random"}
      </span></p>
    <p>${asStrange(one.p_value)}${one.reason ? `; what is odd: ${words(one.reason)}` : ""}.</p>
    ${
      one.row === null || one.row === undefined
        ? html`<p class="soft">The row itself is not kept: VOUCH_JOURNAL_ROWS says which are.</p>`
        : input.kind === "image"
          ? html`<${Picture} pixels=${one.row} input=${input} label="The image" />`
          : html`<dl class="row-cells">
            ${(Array.isArray(one.row) ? one.row.map((value, at) => [input.columns[at]?.name ?? at, value]) : Object.entries(one.row)).map(([name, value]) => html`<div><dt>${name}</dt><dd>${cell(value)}</dd></div>`)}</dl>`
    }
    ${one.row !== null && one.row !== undefined && html`<p><a href=${link("check")} onClick=${look}>Look closer</a>
      </p>`}
  </div>`;
}

/** What the answers say of the promise: only of rows that were drawn at random, whatever their verdicts. */
function Realised({ reviews, realised: { valid, refused, interval, confidence } }) {
  const answered = reviews.filter((one) => one.own);
  return html`<section class="card" aria-label="What the answers say"><h2>What the answers say</h2>
    <dl class="facts"><div><dt>answered here</dt><dd>${count(answered.length)}</dd></div>
      ${LABELS.map(([label]) => html`<div key=${label}><dt>${label}</dt><dd>
        ${count(answered.filter((one) => one.own === label).length)}</dd></div>`)}</dl>
    ${
      valid
        ? html`<p>Of ${plural(valid, "valid row")} that were drawn at random, ${count(refused)} ${refused === 1 ? "was" : "were"} refused: <strong>${percent(refused / valid)}</strong>, or by ${percent(confidence)} confidence ${percent(interval[0])} to ${percent(interval[1])}.</p>`
        : html`<p
          class="soft">Once people have answered about rows that were drawn at random, the realised rate of false alarms stands here. Rows that they saw because they were refused cannot tell it: they are no fair sample. <code>vouch feedback ask</code> draws some.</p>`
    }
  </section>`;
}
