// What the console knows: the models, how rows are judged, the rows themselves; and where in it the reader is.
import { getJSON, Problem } from "console/api.js";
import { createStore, useEffect, useState } from "console/lib.js";

export const VIEWS = ["check", "promise", "review", "learnt", "models", "drift"];
const RATE = 0.01; // of false alarms, where the version's own rule names none

export const app = createStore({
  phase: "loading", // loading | locked | failed | ready
  problem: null,
  models: [],
  hasJournal: false,
  model: null, // the answer of GET /models/NAME, for the version that is looked at
  calibration: null,
  judging: null, // {rule, false_alarm, tail, percentiles}
  hasChosenRule: false, // by the reader, in the view Promise
  rows: [],
  changed: 0, // counts changes inside of rows
  selected: null, // id of a row
  invalid: [], // ids of rows that are known to be invalid
  notes: [],
  ...route(),
});

/** Follow the state in a component. */
export function useApp() {
  const [, redraw] = useState(0);
  useEffect(() => app.follow(() => redraw((times) => times + 1)), []);
  return app.value;
}

/** The view and the parameters in the address. */
export function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const view = VIEWS.includes(path) ? path : "check";
  return { view, params: Object.fromEntries(new URLSearchParams(query)) };
}

const SHARED = ["model", "rule", "false_alarm", "tail", "percentiles"]; // parameters that stay from view to view

/** The address of a view. */
export function link(view, changes = {}) {
  const { params, view: here } = app.value;
  const kept =
    view === here
      ? params
      : Object.fromEntries(SHARED.filter((name) => name in params).map((name) => [name, params[name]]));
  const query = new URLSearchParams(
    Object.entries({ ...kept, ...changes }).filter(
      ([, value]) => value !== null && value !== undefined && value !== "",
    ),
  );
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

/** Change parameters of the address without a step in the browser's history. */
export function note(changes) {
  history.replaceState(null, "", link(app.value.view, changes));
  app.set(route());
}

/** The query by which rows are judged. */
export function judgingQuery({ judging, model, calibration } = app.value) {
  const named = { model: `${model.name}@${calibration.model.version}` };
  if (calibration.judging.fixed) return named;
  const { rule, false_alarm: rate, tail, percentiles } = judging;
  if (percentiles) return { ...named, percentiles: percentiles.join(",") };
  return rule === "combined"
    ? { ...named, rule, false_alarm: rate }
    : { ...named, rule: "band", false_alarm: rate, tail };
}

/** The promises of the rule that judges, by rate. */
export function promisesOf({ calibration, judging } = app.value) {
  return calibration.promises[judging.rule === "combined" ? "combined" : (judging.tail ?? "low")];
}

/** How rows are judged: as the address says, else as the version does; its plain band gives way to a rate. */
function judgingOf(calibration, params) {
  const own = calibration.judging;
  if (own.fixed) return own;
  const hasCombined = Boolean(calibration.promises.combined?.length);
  const rule = hasCombined && params.rule !== "band" ? "combined" : "band";
  const tail = params.tail === "both" ? "both" : "low";
  const promises = calibration.promises[rule === "combined" ? "combined" : tail];
  const wanted = Number(params.false_alarm) || own.false_alarm || RATE;
  return { rule, tail: rule === "band" ? tail : null, false_alarm: nearestRate(promises, wanted) };
}

export function nearestRate(promises, wanted) {
  const away = (one) => Math.abs(Math.log(one.false_alarm / wanted));
  return promises.reduce((best, one) => (away(one) < away(best) ? one : best)).false_alarm;
}

export function setJudging(changes) {
  const judging = { ...app.value.judging, ...changes };
  if (judging.rule === "band") judging.tail ??= "low";
  judging.false_alarm = nearestRate(promisesOf({ ...app.value, judging }), judging.false_alarm);
  app.set({ judging, hasChosenRule: true });
  note({ rule: judging.rule, false_alarm: judging.false_alarm, tail: judging.rule === "band" ? judging.tail : null });
}

/** Load what there is, and the model that the address names. */
export async function load() {
  try {
    const [{ models }, { journal }] = await Promise.all([getJSON("models"), getJSON("version")]);
    if (!models.length)
      throw new Problem({ status: 404, detail: "the store has no model yet: `vouch train` publishes one" });
    const asked = app.value.params.model ?? models.find((one) => one.default)?.name ?? models[0].name;
    app.set({ models, hasJournal: journal });
    await choose(asked);
  } catch (error) {
    const isLocked = error.status === 401 || (error.status === 403 && !app.value.models.length);
    app.set({ phase: isLocked ? "locked" : "failed", problem: error });
  }
}

let choices = 0;

/** Look at a model: NAME, NAME@VERSION or NAME@ALIAS. */
export async function choose(reference) {
  const mine = ++choices;
  const [name] = reference.split("@");
  try {
    const calibration = await getJSON("calibration", { model: reference });
    const model = await getJSON(`models/${encodeURIComponent(name)}`, { version: calibration.model.version });
    if (mine !== choices) return;
    app.set({
      phase: "ready",
      problem: null,
      calibration,
      model,
      reference,
      judging: judgingOf(calibration, app.value.params),
    });
  } catch (problem) {
    if (mine !== choices) return; // another one was chosen meanwhile
    app.set({ phase: problem.status === 401 ? "locked" : "failed", problem });
  }
}

addEventListener("hashchange", () => {
  const before = app.value.params.model;
  app.set(route());
  const { params, models, calibration, judging, hasChosenRule } = app.value;
  if (!models.length) return;
  if ((params.model ?? null) !== (before ?? null)) {
    choose(params.model ?? models.find((one) => one.default)?.name ?? models[0].name);
  } else if (calibration) {
    // An address without a rule keeps the one that was chosen.
    const isSilent = !("rule" in params || "false_alarm" in params);
    if (isSilent && hasChosenRule) return;
    const told = judgingOf(calibration, params);
    if (JSON.stringify(told) !== JSON.stringify(judging)) app.set({ judging: told });
  }
});

const inputs = new WeakMap();

/** What a model reads, from its card; the same object each time. */
export function inputOf(model) {
  if (!inputs.has(model)) inputs.set(model, described(model));
  return inputs.get(model);
}

function described(model) {
  const { input } = model.card;
  if (input.kind === "image") {
    const [height, width, channels = 1] = input.shape;
    return { kind: "image", height, width, channels, features: height * width * channels };
  }
  const learnt = input.transform.kind === "mixed" ? input.transform.columns : null;
  const names = input.columns ?? Array.from({ length: input.shape[0] }, (_, at) => at);
  const domains = model.card.domains?.columns;
  return {
    kind: "table",
    isNamed: Boolean(input.columns),
    readsMissing: Boolean(learnt),
    columns: names.map((name, at) => columnOf(name, learnt?.[at], domains?.[at])),
  };
}

function columnOf(name, learnt, domain) {
  if (learnt?.values) return { name, kind: learnt.kind, values: learnt.values };
  return {
    name,
    kind: learnt?.kind ?? "number",
    low: learnt?.low ?? domain?.low ?? null,
    high: learnt?.high ?? domain?.high ?? null,
    step: learnt?.step ?? null,
  };
}
