// What the model has learnt: samples, the manifold of two latents, one input many times, and the way between two.
import { curl, download, getJSON, postJSON } from "console/api.js";
import { cell, number } from "console/format.js";
import { debounced, html, useEffect, useMemo, useRef, useState } from "console/lib.js";
import { Request, Trouble } from "console/parts.js";
import { flat, imageData, Picture } from "console/pixels.js";
import { asRow, encoded, examples, redrawn } from "console/rows.js";
import { inputOf, judgingQuery, link, note, useApp } from "console/state.js";

const PARTS = [
  ["samples", "Samples"],
  ["manifold", "Manifold"],
  ["again", "Drawn again"],
  ["morph", "Morph"],
];

export function Learnt() {
  const { params, model } = useApp();
  const part = PARTS.some(([one]) => one === params.part) ? params.part : "samples";
  const View = { samples: Samples, manifold: Manifold, again: Again, morph: Morph }[part];
  return html`<div class="learnt">
    <nav class="parts" aria-label="What it has learnt">${PARTS.map(([one, text]) => html`<a key=${one}
      href=${link("learnt", { part: one })} aria-current=${one === part ? "page" : null}>${text}</a>`)}</nav>
    <${View} key=${`${part} ${model.digest}`} />
  </div>`;
}

/** Rows beside each other: pictures, or a table. */
export function Gallery({ rows, input, label, heads }) {
  if (input.kind === "image")
    return html`<div class="gallery" role="group" aria-label=${label}>${rows.map((pixels, at) => html`<${Picture}
      key=${at} pixels=${pixels} input=${input} label=${`${label} ${at + 1}`} />`)}</div>`;
  return html`<div class="scroll-x" tabindex="0" role="region" aria-label=${label}><table class="plain-table"><thead>
    <tr>${heads && html`<th scope="col"><span class="sr-only">What it is</span>
    </th>`}${input.columns.map((one) => html`<th scope="col" key=${one.name}>${one.name}</th>`)}</tr></thead>
    <tbody>${rows.map((row, at) => html`<tr key=${at}>${heads && html`<th scope="row">${heads[at]}
      </th>`}${row.map((value, column) => html`<td key=${column}>${cell(value)}</td>`)}</tr>`)}</tbody></table></div>`;
}

/** The answer to a request that follows its parameters; the last one that was asked for counts. */
function useAnswer(ask, dependencies) {
  const [answer, setAnswer] = useState(null),
    [problem, setProblem] = useState(null);
  useEffect(() => {
    let isLast = true;
    ask()?.then(
      (found) => {
        if (isLast) {
          setAnswer(found);
          setProblem(null);
        }
      },
      (failure) => isLast && setProblem(failure),
    );
    return () => {
      isLast = false;
    };
  }, dependencies);
  return [answer, problem];
}

const anySeed = () => Math.floor(Math.random() * 1e6);

function Samples() {
  const { params, model } = useApp();
  const input = inputOf(model);
  const [first] = useState(anySeed),
    [failure, setFailure] = useState(null);
  const seed = /^\d{1,15}$/.test(params.seed ?? "") ? params.seed : String(first),
    num = Math.min(100, Math.max(1, Math.round(Number(params.num)) || 24)),
    of = params.of ?? (input.kind === "image" ? "mean" : "observation");
  const query = { model: judgingQuery().model, num, seed, of };
  const [answer, problem] = useAnswer(() => getJSON("sample", query), [seed, num, of]);
  const ending = input.kind === "image" ? "png" : "csv";
  return html`<section class="card" aria-label="Samples"><h2>Rows that it generates</h2>
    <p class="soft">Latents are drawn from the prior, and a row from each. The same seed gives the same rows.</p>
    <div class="tools">
      <label class="inline">Seed <input type="number" min="0" value=${seed}
        onInput=${(event) => event.target.value && note({ seed: event.target.value })} /></label>
      <label class="inline">Number <input type="number" min="1" max="100" value=${num}
        onInput=${(event) => event.target.value && note({ num: event.target.value })} /></label>
      <label class="inline">Show <select value=${of} onChange=${(event) => note({ of: event.target.value })}><option
        value="mean">the expectation</option><option value="observation">an observation</option></select></label>
      <button type="button" onClick=${() => note({ seed: anySeed() })}>Others</button>
      <button type="button"
        onClick=${() => download(`sample.${ending}`, query, `samples-${model.name}-${seed}.${ending}`, "*/*").then(() => setFailure(null), setFailure)}>Download</button>
    </div>
    <${Trouble} problem=${problem ?? failure} />
    ${answer && html`<${Gallery} rows=${answer.samples} input=${input} label="Sample" />`}
    <${Request} line=${curl("sample", { query })} />
  </section>`;
}

/** Standard normal quantile (Acklam's rational approximation, relative error below 1.2e-9). */
export function quantile(u) {
  const a = [
    -39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239,
  ];
  const b = [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572];
  const c = [
    -0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968,
    2.938163982698783,
  ];
  const d = [0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416];
  const poly = (coefficients, x) => coefficients.reduce((sum, one) => sum * x + one, 0);
  if (u < 0.02425) {
    const q = Math.sqrt(-2 * Math.log(u));
    return poly(c, q) / (poly(d, q) * q + 1);
  }
  if (u > 1 - 0.02425) return -quantile(1 - u);
  const q = u - 0.5,
    r = q * q;
  return (poly(a, r) * q) / (poly(b, r) * r + 1);
}

/** The two latents that say most of a row, as `axes`: those whose posterior is narrowest. Others may say nothing. */
async function activeLatents(latents) {
  if (latents === 2) return "0,1";
  const {
    examples: [one],
  } = await examples();
  const {
    encodings: [{ std }],
  } = await postJSON("encode", { instances: [one.instance] }, { model: judgingQuery().model });
  return std
    .map((width, at) => [width, at])
    .sort(([width], [other]) => width - other)
    .slice(0, 2)
    .map(([, at]) => at)
    .join(",");
}

function Manifold() {
  const { params, model } = useApp();
  const input = inputOf(model),
    latents = model.card.architecture.latents;
  const [active] = useAnswer(() => activeLatents(latents), [model]);
  const axes = (params.axes ?? active ?? "0,1").split(",").map(Number),
    size = Math.min(30, Number(params.size) || 12);
  const query = { model: judgingQuery().model, size, axes: axes.join(",") };
  const isKnown = latents > 1 && (params.axes || active);
  const [grid, problem] = useAnswer(
    () => (isKnown ? getJSON("manifold", query) : null),
    [query.axes, size, Boolean(isKnown)],
  );
  const [at, setAt] = useState({ u: 0.5, v: 0.5 }),
    [shown, setShown] = useState(null),
    [failure, setFailure] = useState(null);
  const decode = useMemo(
    () =>
      debounced(15, async (u, v) => {
        const z = new Array(latents).fill(0);
        z[axes[0]] = quantile(u);
        z[axes[1]] = quantile(v);
        try {
          const { means } = await postJSON("decode", { latents: [z] }, { model: judgingQuery().model });
          setShown({ z: [z[axes[0]], z[axes[1]]], mean: means[0] });
        } catch (failure) {
          setFailure(failure);
        }
      }),
    [query.axes],
  );
  const go = (u, v) => {
    const inside = (value) => Math.min(0.999, Math.max(0.001, value));
    setAt({ u: inside(u), v: inside(v) });
    decode(inside(u), inside(v));
  };
  const canvas = useRef();
  useEffect(() => {
    if (isKnown) decode(at.u, at.v);
  }, [query.axes, Boolean(isKnown)]);
  useEffect(() => {
    if (grid && canvas.current) paintGrid(canvas.current, grid.means, size, input);
  }, [grid]);
  if (latents < 2)
    return html`<article class="card"><p>The model has one latent: there is no plane to walk on.</p></article>`;
  const point = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    go((event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
  };
  const press = (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    go(at.u + step[0] / 40, at.v + step[1] / 40);
  };
  const pick = (which) => (event) => {
    const next = [...axes];
    next[which] = Number(event.target.value);
    note({ axes: next.join(",") });
  };
  const choices = Array.from(
    { length: latents },
    (_, one) => html`<option value=${one} key=${one}>latent ${one}</option>`,
  );
  return html`<section class="card" aria-label="Manifold"><h2>The plane of two latents</h2>
    <p class="soft">Move over it, or use the arrow keys: the place under the pointer is decoded. All other latents are 0; places are quantiles of the prior.</p>
    <div class="tools"><label class="inline">Down <select value=${axes[0]} onChange=${pick(0)}>${choices}</select>
      </label>
      <label class="inline">Across <select value=${axes[1]} onChange=${pick(1)}>${choices}</select></label></div>
    <${Trouble} problem=${problem ?? failure} />
    <div class="walk">
      <div><div class="plane" tabindex="0" role="application" aria-label="The plane. Arrow keys walk on it."
        onPointerMove=${point} onPointerDown=${point} onKeyDown=${press}>
        <canvas ref=${canvas} aria-hidden="true"></canvas>
        <i class="cross" style=${{ left: `${100 * at.v}%`, top: `${100 * at.u}%` }}></i>
      </div>${input.kind === "table" && grid && html`<p class="soft small">${legend(grid.means, input)}</p>`}</div>
      ${
        shown &&
        html`<figure class="here" aria-live="polite">
        ${
          input.kind === "image"
            ? html`<${Picture} pixels=${shown.mean} input=${input} label="What is decoded here" className="large" />`
            : html`<dl class="row-cells">${input.columns.map((one, column) => html`<div key=${one.name}><dt>
              ${one.name}</dt><dd>${cell(shown.mean[column])}</dd></div>`)}</dl>`
        }
        <figcaption>z${axes[0]} = ${shown.z[0].toFixed(2)}, z${axes[1]} = ${shown.z[1].toFixed(2)}</figcaption>
          </figure>`
      }
    </div>
    <${Request} line=${curl("manifold", { query })} />
  </section>`;
}

/** What the colours of a table's plane say. */
function legend(means, input) {
  const column = Math.max(
      0,
      input.columns.findIndex((one) => !one.values),
    ),
    values = means.map((row) => Number(row[column]));
  return `Colour: ${input.columns[column].name}, from ${number(Math.min(...values))} (blue) to ${number(Math.max(...values))} (red).`;
}

/** All means of a grid on one canvas: images, or for tables how the first column of numbers changes. */
function paintGrid(canvas, means, size, input) {
  const context = canvas.getContext("2d");
  const [height, width] = input.kind === "image" ? [input.height, input.width] : [8, 8];
  canvas.width = size * width;
  canvas.height = size * height;
  const column =
    input.kind === "table"
      ? Math.max(
          0,
          input.columns.findIndex((one) => !one.values),
        )
      : 0;
  const values = input.kind === "table" ? means.map((row) => Number(row[column])) : [];
  const low = Math.min(...values),
    high = Math.max(...values);
  means.forEach((mean, at) => {
    const left = (at % size) * width,
      top = Math.floor(at / size) * height;
    if (input.kind === "image") context.putImageData(imageData(flat(mean), height, width, input.channels), left, top);
    else {
      context.fillStyle = `hsl(${200 - (160 * (values[at] - low)) / (high - low || 1)} 60% 50%)`;
      context.fillRect(left, top, width, height);
    }
  });
}

/** Rows to choose from: the reader's own, and the examples. */
function useChoices() {
  const { rows } = useApp();
  const [found] = useAnswer(examples, []);
  const made = useMemo(
    () =>
      (found?.examples ?? []).map((one) =>
        asRow(one.spoil ? `Example, spoilt: ${one.spoil}` : `Example: ${one.title.toLowerCase()}`, one.instance),
      ),
    [found],
  );
  return [...rows.filter((row) => row.score).slice(0, 50), ...made];
}

function Chooser({ label, choices, value, onChange }) {
  return html`<label class="inline">${label} <select value=${value}
    onChange=${(event) => onChange(Number(event.target.value))}>${choices.map((row, at) => html`<option key=${row.id}
    value=${at}>${row.name}</option>`)}</select></label>`;
}

function Again() {
  const { model } = useApp();
  const input = inputOf(model),
    choices = useChoices();
  const [which, setWhich] = useState(0);
  const row = choices[Math.min(which, choices.length - 1)];
  const [answer, problem] = useAnswer(() => (row ? redrawn(row, 11) : null), [row?.id]);
  return html`<section class="card" aria-label="Drawn again"><h2>The same row, drawn again and again</h2>
    <p class="soft">Given a row, its latents are not certain: p(z | x) is drawn many times, and a row from each draw. What the draws share is what the model is sure of.</p>
    <div class="tools"><${Chooser} label="Row" choices=${choices} value=${which} onChange=${setWhich} /></div>
    <${Trouble} problem=${problem} />
    ${
      answer &&
      html`<p class="soft small">First the expectation, then eleven draws.</p>
      <${Gallery} rows=${[answer.mean, ...answer.draws]} input=${input} label="Row"
        heads=${["expectation", ...answer.draws.map((_, at) => `draw ${at + 1}`)]} />`
    }
    ${row && html`<${Request}
      line=${curl("reconstruct", row.file ? { query: { model: judgingQuery().model, draws: 11 }, file: row.name } : { query: { model: judgingQuery().model, draws: 11 }, json: { instances: [row.instance] } })} />`}
  </section>`;
}

const STEPS = 9;

function Morph() {
  const { model } = useApp();
  const input = inputOf(model),
    choices = useChoices();
  const [ends, setEnds] = useState([0, 1]),
    [share, setShare] = useState(0.5);
  const rows = ends.map((at) => choices[Math.min(at, choices.length - 1)]);
  const [latents, problem] = useAnswer(
    () => (rows.every(Boolean) ? Promise.all(rows.map(encoded)) : null),
    rows.map((row) => row?.id),
  );
  const steps = latents && Array.from({ length: STEPS }, (_, at) => between(latents, at / (STEPS - 1)));
  const body = latents && { latents: [between(latents, share), ...steps] };
  const [answer, failure] = useAnswer(
    () => (body ? postJSON("decode", body, { model: judgingQuery().model }) : null),
    [latents, share],
  );
  const choose = (side) => (at) => setEnds(side ? [ends[0], at] : [at, ends[1]]);
  return html`<section class="card" aria-label="Morph"><h2>From one row to another</h2>
    <p class="soft">Both are encoded, and what lies on the line between their latents is decoded.</p>
    <div class="tools"><${Chooser} label="From" choices=${choices} value=${ends[0]} onChange=${choose(0)} />
      <${Chooser} label="to" choices=${choices} value=${ends[1]} onChange=${choose(1)} /></div>
    <label class="slider"><span>On the way: <strong>${Math.round(100 * share)} %</strong></span><input type="range"
      min="0" max="1" step="0.02" value=${share} onInput=${(event) => setShare(Number(event.target.value))} /></label>
    <${Trouble} problem=${problem ?? failure} />
    ${
      answer &&
      html`<${Gallery} rows=${answer.means.slice(0, 1)} input=${input} label="On the way" />
      <h3>The whole way</h3><${Gallery} rows=${answer.means.slice(1)} input=${input} label="Step" />`
    }
    ${body && html`<${Request}
      line=${curl("decode", { query: { model: judgingQuery().model }, json: { latents: [body.latents[0].map((one) => Number(one.toFixed(4)))] } })} />`}
  </section>`;
}

const between = ([one, other], share) => one.map((value, at) => value + share * (other[at] - value));
