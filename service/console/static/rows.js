// Rows that the reader brought: where they come from, and their scores as they arrive.
import { ask, getJSON, postFiles, postJSON, Problem, scoreLines } from "console/api.js";
import { app, inputOf, judgingQuery } from "console/state.js";
import { plural } from "console/format.js";
import { debounced } from "console/lib.js";

const FILES_TOGETHER = 8,
  BYTES_TOGETHER = 16 * 2 ** 20;
const IMAGE_SUFFIX = /\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)$/i;
const MOST_EXPLAINED = 500;
const TRIAL = { trial: 1 }; // what is tried out here is no traffic that drift monitors should count
let nextId = 1;
let stamps = 0; // each time that a row is sent to be scored; of several answers, that to the last counts
const running = new Set(); // what ends the scoring that goes on

const redraw = () => app.set({ changed: app.value.changed + 1 });
const say = (text, isProblem = false) => app.set({ notes: [...app.value.notes, { text, isProblem }].slice(-5) });
export const forgetNotes = () => app.set({ notes: [] });

function newRow(name, fields) {
  return {
    id: nextId++,
    name: String(name),
    instance: null,
    file: null,
    thumb: null,
    score: null,
    problem: null,
    ...fields,
  };
}

export const rowOf = (id) => app.value.rows.find((row) => row.id === id) ?? null;

export function clear() {
  stop();
  for (const row of app.value.rows) if (row.thumb?.startsWith("blob:")) URL.revokeObjectURL(row.thumb);
  app.set({ rows: [], selected: null, invalid: [], notes: [] });
}

function stop() {
  running.forEach((one) => one.abort());
  running.clear();
}

// Another model reads other rows, and another rule has other p-values.
let { calibration: shown, judging: before } = app.value;
app.follow(() => {
  const { calibration, judging, rows } = app.value;
  const [was, knew] = [before, shown];
  [before, shown] = [judging, calibration];
  if (knew && calibration !== knew) exchange(knew.model, calibration.model);
  else if (was && judging.rule !== was.rule && rows.length) rescore();
});

const left = new Map(); // rows of versions that are not looked at now

/** Put the rows of a version aside, and take those of another. */
function exchange(from, to) {
  stop();
  const { rows, selected, invalid, notes } = app.value;
  left.set(from.digest, { rows, selected, invalid, notes });
  app.set(left.get(to.digest) ?? { rows: [], selected: null, invalid: [], notes: [] });
  const open = app.value.rows.filter((row) => !row.problem && !judgedScore(row, app.value.judging));
  if (open.length) score(open);
}

/** Add rows and score them; the first is looked at. `isInvalid`: people know them to be so. */
export async function add(rows, { isInvalid = false } = {}) {
  const { rows: before, invalid, selected } = app.value;
  app.set({
    rows: [...before, ...rows],
    invalid: isInvalid ? [...invalid, ...rows.map((row) => row.id)] : invalid,
    selected: isInvalid && selected ? selected : (rows[0]?.id ?? selected),
  });
  await score(rows);
}

/** Take a row away. */
export function remove(id) {
  const rows = app.value.rows.filter((row) => row.id !== id);
  app.set({ rows, selected: app.value.selected === id ? (rows[0]?.id ?? null) : app.value.selected });
}

/** One row, looked at at once. */
export function addInstance(name, instance, fields = {}) {
  const row = newRow(name, { instance, ...fields });
  if (typeof instance === "string" && instance.startsWith("data:image")) row.thumb ??= instance;
  add([row]);
  return row;
}

/** Another version of a row: edited, or drawn over. Its last score is shown until the new one is there. */
export function replace(id, changes) {
  const row = rowOf(id);
  if (!row) return undefined; // it was cleared meanwhile
  if (!row.isDrawn) row.original ??= { instance: row.instance, file: row.file, thumb: row.thumb };
  Object.assign(row, { isStale: true, problem: null, file: null }, changes);
  if (isAsBrought(row)) row.original = null;
  redraw();
  return score([row]);
}

const isAsBrought = ({ instance, original }) =>
  original && !original.file && JSON.stringify(instance) === JSON.stringify(original.instance);

/** A row as it was brought. */
export function restore(id) {
  const row = rowOf(id);
  Object.assign(row, { isStale: true, problem: null }, row.original, { original: null });
  redraw();
  return score([row]);
}

/** Score all rows again, by another rule. */
function rescore() {
  stop();
  app.value.rows.forEach((row) => Object.assign(row, { score: null, problem: null }));
  return score(app.value.rows);
}

async function score(rows) {
  const abort = new AbortController(),
    stamp = ++stamps;
  running.add(abort);
  rows.forEach((row) => {
    row.stamp = stamp;
  });
  redraw();
  const query = { ...judgingQuery(), ...TRIAL };
  try {
    const files = rows.filter((row) => row.file),
      plain = rows.filter((row) => !row.file);
    if (plain.length === 1) await scoreOne(plain[0], query, abort.signal);
    else if (plain.length) await scoreMany(plain, query, abort.signal);
    const warned = new Map(); // each warning, and the names of the images that it is about
    for (const batch of batches(files)) await scoreFiles(batch, query, abort.signal, warned);
    for (const [text, names] of warned) say(`${names.length > 1 ? plural(names.length, "image") : names[0]}: ${text}`);
  } catch (problem) {
    if (problem.name === "AbortError") return;
    if (!(problem instanceof Problem)) throw problem;
    rows
      .filter((row) => row.stamp === stamp && (!row.score || row.isStale))
      .forEach((row) => settle(row, stamp, null, problem));
  } finally {
    running.delete(abort);
    redraw();
  }
}

/** Take an answer about a row, unless the row was sent again meanwhile. */
function settle(row, stamp, score, problem = null) {
  if (row.stamp === stamp) Object.assign(row, { score: score ?? row.score, problem, isStale: false });
}

async function scoreOne(row, query, signal) {
  const { stamp } = row;
  const answer = await postJSON("score", { instances: [row.instance] }, query, signal);
  settle(row, stamp, answer.scores[0]);
}

/** Fetch the reasons of rows that another rate refuses. */
export const explainRefused = debounced(400, () => {
  const { rows, judging } = app.value;
  const refused = rows.filter(
    (row) => judgedScore(row, judging) && !row.score.reason && !isValidAt(row.score, judging),
  );
  if (refused.length) score(refused.slice(0, MOST_EXPLAINED));
});

async function scoreMany(rows, query, signal) {
  const [{ stamp }] = rows;
  await scoreLines(
    rows.map((row) => row.instance),
    query,
    (start, found) => {
      found.forEach((answer, at) => {
        if (rows[start + at])
          settle(rows[start + at], stamp, answer.verdict ? answer : null, answer.verdict ? null : new Problem(answer));
      });
      redraw();
    },
    signal,
  );
}

async function scoreFiles(rows, query, signal, warned) {
  const [{ stamp }] = rows;
  try {
    const { scores, warnings } = await postFiles(
      "score/files",
      rows.map((row) => row.file),
      query,
      signal,
    );
    scores.forEach((answer, at) => settle(rows[at], stamp, answer));
    for (const warning of warnings ?? []) {
      const [, at, text] = /^image (\d+): (.*)$/s.exec(warning) ?? [null, 0, warning];
      warned.set(text, [...(warned.get(text) ?? []), rows[at]?.name ?? "images"]);
    }
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (rows.length === 1) settle(rows[0], stamp, null, problem);
    else for (const row of rows) await scoreFiles([row], query, signal, warned); // which of them is it?
  }
  redraw();
}

function* batches(rows) {
  let batch = [],
    bytes = 0;
  for (const row of rows) {
    if (batch.length && (batch.length === FILES_TOGETHER || bytes + row.file.size > BYTES_TOGETHER)) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(row);
    bytes += row.file.size;
  }
  if (batch.length) yield batch;
}

/** Read what was dropped, chosen or pasted; if another model is chosen meanwhile, it is not for that one. */
export async function addFiles(files, options) {
  const rows = [],
    { calibration } = app.value;
  forgetNotes();
  for (const file of files) {
    try {
      rows.push(...(await rowsOf(file)));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      say(`${file.name}: ${problem.message}`, true);
    }
  }
  if (!rows.length || calibration !== app.value.calibration) return;
  say(`${plural(rows.length, "row")} from ${files.length === 1 ? files[0].name : plural(files.length, "file")}`);
  await add(rows, options);
}

async function rowsOf(file) {
  const { kind } = inputOf(app.value.model);
  if (file.type.startsWith("image/") || IMAGE_SUFFIX.test(file.name)) {
    if (kind !== "image")
      throw new Problem({ detail: "this is an image, and the model reads tables: choose another model above" });
    return [newRow(file.name, { file, thumb: URL.createObjectURL(file) })];
  }
  if (/\.(jsonl|ndjson)$/i.test(file.name)) {
    return fromInstances(
      (await file.text())
        .split("\n")
        .filter((line) => line.trim())
        .map((line) => parsed(line)),
      file.name,
    );
  }
  if (/\.json$/i.test(file.name)) return fromInstances(instancesOf(parsed(await file.text())), file.name);
  if (/\.npy$/i.test(file.name)) return fromService(file, file.name, "application/x-npy");
  if (kind === "image")
    throw new Problem({ detail: "the model reads images: bring image files, a .json or an .npy file" });
  return fromService(file, file.name, "text/csv");
}

/** Rows as the service reads a file of them, so that both read it alike. */
async function fromService(body, name, type) {
  const response = await ask("rows", { query: { model: judgingQuery().model }, body, type });
  const { instances, warnings } = await response.json();
  (warnings ?? []).forEach((text) => say(`${name}: ${text}`));
  return fromInstances(instances, name);
}

function fromInstances(instances, name) {
  return instances.map((instance, at) => newRow(instance?.id ?? `row ${at + 1}`, { instance, source: name }));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem({ detail: 'this is not JSON: expected a row, a list of rows, or {"instances": [...]}' });
  }
}

/** The rows of a JSON document: one row, a list of them, or the body of POST /score. */
function instancesOf(document) {
  const rows = document?.instances ?? document;
  if (!Array.isArray(rows)) return [rows];
  if (!rows.length) throw new Problem({ detail: "there are no rows in it" });
  if (document?.instances) return rows;
  const input = inputOf(app.value.model);
  if (rows.every((one) => one === null || typeof one !== "object")) {
    const areFiles = input.kind === "image" && rows.every((one) => typeof one === "string");
    return areFiles ? rows : [rows];
  }
  return isPicture(rows, input) ? [rows] : rows;
}

/** Whether lists are the lines of pixels of one image. */
function isPicture(lines, { kind, height, width, channels }) {
  const isPixel = (one) =>
    channels === 1 ? typeof one === "number" : Array.isArray(one) && one.length === channels && !Array.isArray(one[0]);
  return (
    kind === "image" &&
    lines.length === height &&
    lines.every((line) => Array.isArray(line) && line.length === width && line.every(isPixel))
  );
}

/** Pasted text: JSON, or a table with a header. */
export async function addText(text, options) {
  const { calibration } = app.value;
  try {
    const rows = /^\s*[[{]/.test(text)
      ? fromInstances(instancesOf(parsed(text)), "pasted")
      : await fromService(new Blob([text]), "pasted", "text/csv");
    if (calibration === app.value.calibration) await add(rows, options);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    say(problem.message, true);
  }
}

/** The body of a request about one row, for `ask`: its file, or its instance. */
function bodyOf(row) {
  if (!row.file) return { body: JSON.stringify({ instances: [row.instance] }), type: "application/json" };
  const body = new FormData();
  body.append("file", row.file, row.name);
  return { body };
}

/** What else the service says of a row: the whole score with the cells to blame, or its pixels; `of` is what was sent. */
export async function explained(row, signal) {
  const of = row.file ?? row.instance;
  const { kind } = inputOf(app.value.model);
  const ending = row.file ? "/files" : "";
  const request = (path, query) =>
    ask(path, { ...bodyOf(row), query: { ...judgingQuery(), ...TRIAL, ...query }, signal }).then((one) => one.json());
  if (kind === "table") return { ...(await request(`score${ending}`, { explain: 3 })), of };
  const generating = (path, query) =>
    ask(path, { ...bodyOf(row), query: { model: judgingQuery().model, ...query }, signal }).then((one) => one.json());
  const [score, reconstruction, pixels] = await Promise.all([
    request(`score${ending}`, { explain: "map" }),
    generating(`reconstruct${ending}`),
    generating("rows").then((answer) => answer.instances[0]),
  ]);
  return { ...score, reconstruction: reconstruction.reconstructions[0].mean, pixels, of };
}

/** Posterior draws of a row: E[x | z] of it, and observations. */
export async function redrawn(row, draws) {
  const path = row.file ? "reconstruct/files" : "reconstruct";
  const answer = await ask(path, { ...bodyOf(row), query: { model: judgingQuery().model, draws } });
  return (await answer.json()).reconstructions[0];
}

/** The mean of q(z | x) of a row. */
export async function encoded(row) {
  const answer = await ask(row.file ? "encode/files" : "encode", {
    ...bodyOf(row),
    query: { model: judgingQuery().model },
  });
  return (await answer.json()).encodings[0].mean;
}

export const examples = () => getJSON("examples", { model: judgingQuery().model });
export const asRow = (name, instance) =>
  newRow(name, { instance, thumb: typeof instance === "string" ? instance : null });

/** What is wrong with a row, without its place in the request. */
export const faultOf = (problem) => problem.message.replace(/^(row|image) \d+(, |: )/, "");

const NEVER_JUDGED = new Set(["unreadable", "no_value"]);

/** A row's score, if it is up to date and by the rule that judges. */
export const judgedScore = (row, { rule }) =>
  row.score && !row.isStale && (rule !== "combined" || row.score.evidence) ? row.score : null;

/** Whether a row cannot be judged: a cell cannot be read, or it has no value. It is always invalid. */
export const isUnreadable = (score) => Boolean(score.violations?.some((one) => NEVER_JUDGED.has(one.kind)));

/** Whether a row is valid at another rate of the rule that scored it, from its p-values alone. */
export function isValidAt(score, { rule, tail, false_alarm: rate, percentiles }) {
  if (percentiles) return score.verdict === "valid";
  if (isUnreadable(score)) return false;
  const room = 1 + 1e-12; // for rounding, as the service allows
  if (rule === "combined") return score.evidence.combined > rate * room;
  if (tail === "both") return score.p_value > rate * room;
  return score.percentile >= 50 || score.p_value / 2 > rate * room;
}

/** The p-value that judges. */
export function pValue(score, { rule, tail }) {
  if (rule === "combined" && score.evidence) return score.evidence.combined;
  if (tail === "low") return score.percentile >= 50 ? 1 - score.p_value / 2 : score.p_value / 2;
  return score.p_value;
}
