// A row to change: the cells of a table, or the pixels of an image, with what is to blame marked.
import { html, useEffect, useMemo, useState } from "console/lib.js";
import { cell, number } from "console/format.js";
import { Brush, flat, MapPicture, Picture } from "console/pixels.js";
import { replace } from "console/rows.js";

export function Editor(props) {
  return props.input.kind === "image" ? html`<${ImageEditor} ...${props} />` : html`<${Form} ...${props} />`;
}

// Tables

/** What was expected in a cell. */
function expectation({ expected }) {
  return expected.interval
    ? `${number(expected.interval[0])} to ${number(expected.interval[1])} was expected`
    : `${expected.most_likely} was expected (${Math.round(100 * expected.probability)} %)`;
}

const ODD = 0.05; // share of valid rows with a cell as unlikely, from which a cell is told of

function Form({ row, input, more }) {
  const [cells, setCells] = useState(row.instance);
  useEffect(() => setCells(row.instance), [row.id, row.instance]);
  const score = more?.scores?.[0];
  const blamed = Object.fromEntries(
    (score?.columns ?? []).filter((one) => one.p_value <= ODD).map((one) => [one.name, one]),
  );
  const wrong = Object.fromEntries(
    (score?.violations ?? []).filter((one) => one.column).map((one) => [one.column, one.message]),
  );
  const get = (at, name) => (Array.isArray(cells) ? cells[at] : cells?.[name]);
  const change = (at, column, text) => {
    const value = valueOf(text, column);
    const next = Array.isArray(cells) ? cells.with(at, value) : { ...cells, [column.name]: value };
    setCells(next);
    later(row.id, next);
  };
  const isOdd = (name) => (blamed[name] && score.verdict === "invalid") || wrong[name];
  const sorted = useMemo(() => {
    const order = (name) => (wrong[name] ? -1 : blamed[name] ? blamed[name].p_value : 2);
    return input.columns
      .map((column, at) => ({ column, at }))
      .sort((one, other) => order(one.column.name) - order(other.column.name));
  }, [row.id, Boolean(score), input.columns.length]);
  return html`<section aria-label="The row's cells"><h3>The row: change a cell, and it is judged again</h3>
    <div class="cells">
      ${sorted.map(
        ({ column, at }) => html`<label key=${column.name} class="cell ${isOdd(column.name) ? "odd" : ""}">
        <span class="name">${column.name}</span>
        <${Cell} column=${column} value=${get(at, column.name)} readsMissing=${input.readsMissing}
          onChange=${(text) => change(at, column, text)} />
        ${
          wrong[column.name]
            ? html`<span class="hint">${wrong[column.name]}</span>`
            : blamed[column.name] && html`<span class="hint">${expectation(blamed[column.name])}</span>`
        }
      </label>`,
      )}
    </div></section>`;
}

function Cell({ column, value, readsMissing, onChange }) {
  const shown = value === null || value === undefined ? "" : String(value);
  if (column.values && column.values.length <= 60) {
    const known = column.values.map(String);
    return html`<select value=${shown} onChange=${(event) => onChange(event.target.value)}>
      ${(readsMissing || shown === "") && html`<option value="">missing</option>`}
      ${shown !== "" && !known.includes(shown) && html`<option value=${shown}>${shown} (never seen)</option>`}
      ${known.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}
    </select>`;
  }
  const range =
    column.low === null || column.low === undefined
      ? ""
      : `${number(column.low)} to ${number(column.high)} in training`;
  return html`<input type="text" inputmode=${column.values ? "text" : "decimal"} value=${shown} title=${range}
    placeholder=${readsMissing ? "missing" : ""} onInput=${(event) => onChange(event.target.value)} />`;
}

function valueOf(text, column) {
  if (text.trim() === "") return null;
  const isText = column.values && typeof column.values[0] === "string";
  return !isText && text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

const waiting = new Map();

/** Judge a changed row once its reader pauses. */
function later(id, instance) {
  clearTimeout(waiting.get(id));
  waiting.set(
    id,
    setTimeout(() => {
      waiting.delete(id);
      replace(id, { instance });
    }, 250),
  );
}

/** A row's cells in a line, for the table and for search. */
export function cellsOf(instance) {
  if (typeof instance === "string" || instance === null) return "";
  if (Array.isArray(instance)) return Array.isArray(instance[0]) ? "" : instance.map(cell).join(" · ");
  return Object.values(instance).map(cell).join(" · ");
}

// Images

const COLOURS = { erase: "what was expected", black: "black", white: "white" };

function ImageEditor({ row, input, more }) {
  const [colour, setColour] = useState(null);
  const [size, setSize] = useState(3);
  // What was read last stays, until the changed picture is read.
  const [read, setRead] = useState(null);
  useEffect(() => {
    if (more?.pixels && more.of === (row.file ?? row.instance)) setRead(more);
  }, [more]);
  useEffect(() => setRead(null), [row.id]);
  if (!read) return html`<p class="soft" aria-busy="true">Reading the picture…</p>`;
  const expected = flat(read.reconstruction);
  const isDark = flat(read.pixels).reduce((sum, one) => sum + one, 0) < 127 * flat(read.pixels).length;
  const chosen = colour ?? (read.scores[0].verdict === "invalid" ? "erase" : isDark ? "white" : "black"); // what shows
  const paintWith = { erase: (at) => expected[at], black: 0, white: 255 }[chosen];
  const onStroke = (pixels, thumb) => replace(row.id, { instance: pixels, thumb });
  return html`<section aria-label="The picture"><h3>What the model saw, what it expected, and where they differ</h3>
    <div class="trio">
      <figure><${Brush} pixels=${read.pixels} input=${input} colour=${paintWith} size=${size} onStroke=${onStroke}
        label="The picture as the model reads it. Draw on it, or move with the arrow keys and paint with the space bar." /><figcaption>as it is read: draw on it</figcaption></figure>
      <figure><${Picture} pixels=${read.reconstruction} input=${input}
        label="What the model expected: its reconstruction" /><figcaption>as it was expected</figcaption></figure>
      ${read.scores[0].map && html`<figure><${MapPicture} pixels=${read.pixels} map=${read.scores[0].map.strangeness}
        input=${input} label="Where the picture is strange: red" /><figcaption>where it is strange</figcaption>
        </figure>`}
    </div>
    <div class="tools">
      <label>Brush paints <select value=${chosen} onChange=${(event) => setColour(event.target.value)}>
        ${Object.entries(COLOURS).map(([one, text]) => html`<option value=${one}>${text}</option>`)}</select></label>
      <label>Width <input type="range" min="1" max=${Math.max(4, Math.round(input.width / 5))} value=${size}
        onInput=${(event) => setSize(Number(event.target.value))} /></label>
    </div></section>`;
}
