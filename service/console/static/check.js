// Bring rows and see what the model says of them.
import { curl, save } from "console/api.js";
import { Badge, VerdictCard } from "console/card.js";
import { cellsOf } from "console/editor.js";
import { count, oneIn, percent, plural } from "console/format.js";
import { html, useEffect, useMemo, useRef, useState } from "console/lib.js";
import { Notes, Request, Trouble } from "console/parts.js";
import { Brush } from "console/pixels.js";
import {
  addFiles,
  addInstance,
  addText,
  clear,
  examples,
  faultOf,
  isUnreadable,
  isValidAt,
  judgedScore,
  pValue,
  remove,
  replace,
  rowOf,
} from "console/rows.js";
import { app, inputOf, judgingQuery, note, useApp } from "console/state.js";

export function Check() {
  const { rows, selected, model } = useApp();
  const row = rowOf(selected);
  useEffect(() => {
    const onPaste = (event) => {
      if (event.target.closest("input, textarea, select")) return;
      const files = [...event.clipboardData.files],
        text = event.clipboardData.getData("text");
      if (files.length) addFiles(files);
      else if (text.trim()) addText(text);
    };
    addEventListener("paste", onPaste);
    return () => removeEventListener("paste", onPaste);
  }, []);
  return html`<div class="check ${rows.length > 1 ? "many" : ""}">
    <${Intake} key=${`${model.name}@${model.digest}`} />
    ${rows.length > 1 && html`<${RowTable} />`}
    ${row ? html`<${VerdictCard} key=${row.id} row=${row} />` : html`<${Welcome} />`}
  </div>`;
}

function Welcome() {
  const { model, judging, calibration } = useApp();
  const promise = judging.percentiles
    ? `rows between percentiles ${judging.percentiles.join(" and ")} of log p(x) are valid`
    : `of rows that are like these, at most ${percent(judging.false_alarm)} are refused by mistake`;
  return html`<article class="card welcome"><h2>Is this row like anything the model was built for?</h2>
    <p>${model.card.description || `The model is called ${model.name}.`}</p>
    <p class="soft">It was calibrated on ${plural(calibration.rows, "valid row")}: ${promise}. The view Promise changes that.</p>
    <p class="soft">Try an example, or bring your own. What you try here does not count for the drift monitors.</p>
      </article>`;
}

function Intake() {
  const { model, notes, params, rows } = useApp();
  const input = inputOf(model);
  const [isOver, setOver] = useState(false);
  const chooser = useRef(),
    camera = useRef();
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    const text = event.dataTransfer.getData("text");
    if (event.dataTransfer.files.length) addFiles([...event.dataTransfer.files]);
    else if (text) addText(text);
  };
  const chosen = (event) => {
    addFiles([...event.target.files]);
    event.target.value = "";
  };
  const kinds = input.kind === "image" ? "Images, a .json or an .npy file" : "A CSV or JSON file of rows";
  return html`<section class="intake" aria-label="Bring rows">
    <div class="drop ${isOver ? "over" : ""}" onDragOver=${(event) => {
      event.preventDefault();
      setOver(true);
    }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <p><strong>Drop anything here</strong>, or paste it. <span class="soft">${kinds}.</span></p>
      <div class="buttons">
        <button type="button" onClick=${() => chooser.current.click()}>Choose files</button>
        ${input.kind === "image" && html`<button type="button" class="phone"
          onClick=${() => camera.current.click()}>Take a photo</button>`}
        ${(rows.length > 0 || notes.length > 0) && html`<button type="button" class="quiet"
          onClick=${clear}>Clear</button>`}
      </div>
      <input ref=${chooser} type="file" multiple hidden aria-label="Files of rows" onChange=${chosen} />
      <input ref=${camera} type="file" accept="image/*" capture="environment" hidden aria-label="A photo"
        onChange=${chosen} />
    </div>
    <${Examples} asked=${params.example} />
    ${input.kind === "image" && input.channels === 1 && input.width <= 64 && html`<${Pad} input=${input} />`}
    <${Paste} />
    <${Notes} notes=${notes} />
  </section>`;
}

function Examples({ asked }) {
  const [found, setFound] = useState(null),
    [problem, setProblem] = useState(null);
  const show = (one, at) => {
    app.value.rows.filter((row) => row.isExample).forEach((row) => remove(row.id)); // one at a time; the reader's own rows stay
    addInstance(one.spoil ? `${one.title}: ${one.spoil}` : one.title, one.instance, { isExample: true });
    note({ example: at });
  };
  useEffect(() => {
    let isHere = true;
    examples().then(
      (answer) => {
        if (!isHere) return;
        setFound(answer.examples);
        const one = answer.examples[asked];
        if (one && !app.value.rows.length) show(one, asked);
      },
      (failure) => isHere && setProblem(failure),
    );
    return () => {
      isHere = false;
    };
  }, []);
  if (problem) return html`<${Trouble} problem=${problem} />`;
  return html`<div class="examples" role="group" aria-label="Examples" aria-busy=${!found}>
    ${(found ?? []).map(
      (one, at) => html`<button type="button" key=${at} onClick=${() => show(one, at)}>
      ${typeof one.instance === "string" && html`<img src=${one.instance} alt="" width="36" height="36" />`}
      <span>${one.spoil ? html`Spoilt: <em>${one.spoil}</em>` : one.title}</span></button>`,
    )}
    ${!found && html`<span class="soft">Making examples…</span>`}
  </div>`;
}

/** Something to draw a digit on. */
function Pad({ input }) {
  const [drawn, setDrawn] = useState(null),
    [blank, setBlank] = useState(0);
  const onStroke = (pixels, thumb) => {
    if (drawn && rowOf(drawn)) replace(drawn, { instance: pixels, thumb });
    else setDrawn(addInstance("drawn", pixels, { thumb, isDrawn: true }).id);
  };
  const again = () => {
    if (drawn) remove(drawn);
    setDrawn(null);
    setBlank(blank + 1);
  };
  return html`<details class="pad"><summary>Draw one</summary>
    <${Brush} key=${blank} pixels=${rowOf(drawn)?.instance ?? null} input=${input} colour=${255} size=${Math.max(2, input.width / 14)}
      label="A pad to draw on. Move with the arrow keys, paint with the space bar." onStroke=${onStroke} />
    <button type="button" class="quiet" onClick=${again}>Start over</button></details>`;
}

function Paste() {
  const [text, setText] = useState("");
  const score = () => {
    addText(text);
    setText("");
  };
  return html`<details><summary>Type or paste rows</summary>
    <label class="stacked">JSON, or a table with a header<textarea rows="4" value=${text}
      onInput=${(event) => setText(event.target.value)}></textarea></label>
    <button type="button" disabled=${!text.trim()} onClick=${score}>Score</button></details>`;
}

const ROW_HEIGHT = 40,
  AROUND = 8;
const COLUMNS = [
  ["name", "Row"],
  ["verdict", "Verdict"],
  ["p", "Rarity"],
  ["log_likelihood", "log p(x)"],
  ["reason", "Why"],
];

function RowTable() {
  const { rows, selected, judging, changed, model, invalid } = useApp();
  const [order, setOrder] = useState({ by: null, isDown: false });
  const [text, setText] = useState(""),
    [only, setOnly] = useState("all");
  const [top, setTop] = useState(0);
  const box = useRef();
  const isImage = rows.some((row) => row.thumb),
    hasSources = new Set(rows.map((row) => row.source)).size > 1;
  const shown = useMemo(
    () => listed(rows, { order, text, only, judging }),
    [rows, order, text, only, judging, changed],
  );
  const height = 460,
    first = Math.max(0, Math.floor(top / ROW_HEIGHT) - AROUND);
  const some = shown.slice(first, first + Math.ceil(height / ROW_HEIGHT) + 2 * AROUND);
  const done = rows.filter((row) => judgedScore(row, judging)),
    refused = done.filter((row) => !isValidAt(row.score, judging)).length;
  const failed = rows.filter((row) => row.problem).length;
  const sort = (by) => setOrder({ by, isDown: order.by === by ? !order.isDown : by === "log_likelihood" });
  const pick = (id) => {
    app.set({ selected: id });
    // Where the card is below the list, it comes into view.
    if (!matchMedia("(min-width: 900px)").matches)
      requestAnimationFrame(() => document.querySelector("article.card")?.scrollIntoView({ block: "start" }));
  };
  const press = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -shown.length, End: shown.length }[
      event.key
    ];
    if (!step || !shown.length) return;
    event.preventDefault();
    const at = Math.min(shown.length - 1, Math.max(0, shown.findIndex((row) => row.id === selected) + step));
    pick(shown[at].id);
    const place = at * ROW_HEIGHT;
    if (place < box.current.scrollTop) box.current.scrollTop = place;
    if (place > box.current.scrollTop + height - 2 * ROW_HEIGHT)
      box.current.scrollTop = place - height + 2 * ROW_HEIGHT;
    // The focus goes along, once the row is there.
    const chosen = box.current;
    setTimeout(() => chosen.querySelector("[aria-current=true]")?.focus({ preventScroll: true }), 60);
  };
  const query = { ...judgingQuery(), trial: 1 };
  return html`<section class="table" aria-label="Rows">
    <div class="bar-line">
      <p aria-live="polite" class="tally"><strong>${count(refused)}
        </strong> of ${count(done.length)} refused${done.length < rows.length - failed ? `, ${count(rows.length - failed - done.length)} to come` : ""}${failed ? `, ${count(failed)} not readable` : ""}</p>
      <label class="inline">Find <input type="search" value=${text}
        onInput=${(event) => setText(event.target.value)} /></label>
      <label class="inline">Show <select value=${only} onChange=${(event) => setOnly(event.target.value)}>
        <option value="all">all</option><option value="invalid">invalid</option><option value="valid">valid</option>
          <option value="uncertain">uncertain</option></select></label>
    </div>
    <div class="scroll" ref=${box} tabindex="0" onScroll=${(event) => setTop(event.target.scrollTop)}
      onKeyDown=${press} aria-label="Rows: arrow keys move">
      <table aria-rowcount=${shown.length + 1}><thead><tr>
        ${isImage && html`<th scope="col" class="c-picture"><span class="sr-only">Picture</span></th>`}
        ${COLUMNS.map(([by, title]) => html`<th key=${by} class="c-${by}" scope="col"
          aria-sort=${order.by === by ? (order.isDown ? "descending" : "ascending") : "none"}><button type="button"
          onClick=${() => sort(by)}>${title}<span aria-hidden="true">
          ${order.by === by ? (order.isDown ? " ↓" : " ↑") : ""}</span></button></th>`)}
      </tr></thead><tbody>
        ${first > 0 && html`<tr aria-hidden="true" style=${{ height: `${first * ROW_HEIGHT}px` }}><td></td></tr>`}
        ${some.map((row, at) => html`<${TableRow} key=${row.id} row=${row} isChosen=${row.id === selected}
          isImage=${isImage} isKnown=${invalid.includes(row.id)} hasSources=${hasSources} number=${first + at + 2}
          judging=${judging} onPick=${pick} />`)}
        ${first + some.length < shown.length && html`<tr aria-hidden="true"
          style=${{ height: `${(shown.length - first - some.length) * ROW_HEIGHT}px` }}><td></td></tr>`}
      </tbody></table>
    </div>
    ${!shown.length && html`<p class="soft">No row matches.</p>`}
    <button type="button" class="quiet" onClick=${() => saveVerdicts(rows, judging)}>Download the verdicts</button>
    <${Request}
      line=${inputOf(model).kind === "image" ? curl("score/files", { query, file: "IMAGE.png" }) : curl("score.csv", { query, file: "ROWS.csv", type: "text/csv" })} />
  </section>`;
}

function TableRow({ row, isChosen, isKnown, hasSources, isImage, number, judging, onPick }) {
  const score = judgedScore(row, judging);
  const verdict = score && (isValidAt(score, judging) ? "valid" : "invalid");
  const isJudged = score && !isUnreadable(score);
  const why = row.problem ? faultOf(row.problem) : verdict === "invalid" ? (score.reason ?? "") : "";
  return html`<tr aria-rowindex=${number} class=${isChosen ? "chosen" : ""} onClick=${() => onPick(row.id)}>
    ${isImage && html`<td class="c-picture">${row.thumb && html`<img src=${row.thumb} alt="" width="30" height="30"
      loading="lazy" />`}</td>`}
    <th scope="row"><button type="button" class="plain" aria-current=${isChosen} onClick=${() => onPick(row.id)}>
      ${row.name}</button>${hasSources && row.source && html` <span class="soft">${row.source}
      </span>`}${isKnown && html` <span class="soft">(known invalid)</span>`}</th>
    <td class="c-verdict">${row.problem ? html`<span class="badge problem">unread</span>` : verdict ? html`<${Badge}
      verdict=${verdict} />` : html`<span class="soft">…</span>`}</td>
    <td class="number c-p">${isJudged && oneIn(pValue(score, judging))}</td>
    <td class="number c-log_likelihood">${isJudged && score.log_likelihood.toFixed(1)}</td>
    <td class="c-reason" title=${why}><div>${why}</div></td></tr>`;
}

/** The verdicts as a CSV file, with the rule by which they were made. */
function saveVerdicts(rows, judging) {
  const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const query = judgingQuery();
  const rule = new URLSearchParams(query).toString();
  const lines = rows.map((row) => {
    const score = judgedScore(row, judging);
    const about = [row.name, row.source, row.original ? "yes" : "no"];
    if (!score) return [...about, row.problem ? "unread" : "pending", "", "", "", row.problem && faultOf(row.problem), rule];
    const numbers = isUnreadable(score)
      ? ["", "", ""]
      : [pValue(score, judging), score.log_likelihood, score.std_error];
    return [...about, isValidAt(score, judging) ? "valid" : "invalid", ...numbers, score.reason, rule];
  });
  const head = ["row", "file", "edited", "verdict", "p_value", "log_likelihood", "std_error", "reason", "rule"];
  const text = [head, ...lines].map((line) => line.map(quoted).join(",")).join("\r\n");
  save(new Blob([text], { type: "text/csv" }), `verdicts-${query.model}.csv`);
}

/** The rows to show, in order. */
function listed(rows, { order, text, only, judging }) {
  const wanted = text.trim().toLowerCase();
  const kept = rows.filter((row) => {
    if (only !== "all") {
      if (!judgedScore(row, judging)) return false;
      if (only === "uncertain" ? row.score.certain : isValidAt(row.score, judging) !== (only === "valid")) return false;
    }
    return !wanted || `${row.name} ${row.score?.reason ?? ""} ${cellsOf(row.instance)}`.toLowerCase().includes(wanted);
  });
  if (!order.by) return kept;
  const value = {
    name: (row) => row.name,
    verdict: (row) => (judgedScore(row, judging) ? Number(isValidAt(row.score, judging)) : 2),
    p: (row) => (judgedScore(row, judging) ? pValue(row.score, judging) : 2),
    log_likelihood: (row) => row.score?.log_likelihood ?? -Infinity,
    reason: (row) => row.score?.reason ?? "",
  }[order.by];
  const compare =
    order.by === "name"
      ? new Intl.Collator("en", { numeric: true }).compare
      : (one, other) => (one < other ? -1 : one > other ? 1 : 0);
  const sorted = kept
    .map((row) => [value(row), row])
    .sort(([one], [other]) => compare(one, other))
    .map(([, row]) => row);
  return order.isDown ? sorted.reverse() : sorted;
}
