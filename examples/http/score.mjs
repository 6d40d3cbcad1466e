// Ask a service, with nothing but Node (18 or later) or a browser's fetch:
// node examples/http/score.mjs [ADDRESS], from the folder of the checkout.

import { readFileSync } from "node:fs";

const address = process.argv[2] ?? "http://localhost:8000";

async function ask(path, options) {
  const answer = await fetch(address + path, options);
  if (answer.ok) return answer;
  const problem = await answer.json();
  throw new Error(`${problem.status}: ${problem.detail}`);
}

// A verdict on each row; rows are JSON, an array of numpy, a table, or images.
const rows = readFileSync("examples/rows.json", "utf8");
const headers = { "content-type": "application/json" };
const scored = await (await ask("/score?false_alarm=0.01", { method: "POST", headers, body: rows })).json();
for (const score of scored.scores) console.log(score.verdict, score.log_likelihood.toFixed(1), score.reason ?? "");

const form = new FormData();
for (const name of ["valid/digit-3.png", "invalid/boot.png"]) {
  form.append("file", new Blob([readFileSync(`examples/${name}`)]), name);
}
const images = await (await ask("/score?false_alarm=0.01", { method: "POST", body: form })).json();
for (const score of images.scores) console.log(score.id, score.verdict);

// What the model makes of a row, and rows that it draws.
const rebuilt = await (await ask("/reconstruct?draws=2", { method: "POST", headers, body: rows })).json();
console.log(rebuilt.reconstructions.length, "reconstructions");
const picture = await (await ask("/sample.png?num=4&seed=7")).blob();
console.log(picture.type, picture.size > 0);

// An error says what to send instead.
await ask("/score", { method: "POST", body: rows }).catch((error) => console.log(error.message));
