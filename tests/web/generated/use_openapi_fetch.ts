// What a program does with openapi-fetch and the types that openapi-typescript generates.
// node use_openapi_fetch.js ADDRESS IMAGE ROW

import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { paths } from "./vouch.js";

const [, , baseUrl, image, row] = process.argv;
const instance: number[] = JSON.parse(row);
const client = createClient<paths>({ baseUrl });

function check(condition: boolean, what: unknown): asserts condition {
  if (!condition) throw new Error(JSON.stringify(what));
}

const scored = await client.POST("/score", {
  body: { instances: [instance] },
  params: { query: { false_alarm: 0.1 } },
});
check(scored.data !== undefined, scored.error);
const logLikelihood: number = scored.data.scores[0].log_likelihood;
const verdict: "valid" | "invalid" = scored.data.scores[0].verdict;
check(verdict === "valid" || verdict === "invalid", verdict);

const file = new File([readFileSync(image)], "digit.png", { type: "image/png" });
const sent = await client.POST("/score/files", {
  body: { file: [] },
  params: { query: { false_alarm: 0.1 } },
  bodySerializer: () => {
    const form = new FormData();
    form.append("file", file);
    return form;
  },
});
check(sent.data !== undefined, sent.error);
check(sent.data.scores[0].log_likelihood === logLikelihood, sent.data);
check(sent.data.scores[0].id === "digit.png", sent.data);

const rebuilt = await client.POST("/reconstruct", {
  body: { instances: [instance] },
  params: { query: { draws: 2 } },
});
check(rebuilt.data?.reconstructions[0].draws.length === 2, rebuilt.error);

const drawn = await client.GET("/sample", { params: { query: { num: 3, seed: 7 } } });
check(drawn.data !== undefined && drawn.data.seed === 7 && drawn.data.samples.length === 3, drawn.error);

const refused = await client.POST("/score", { body: { instances: [[1]] } });
check(refused.error !== undefined, refused.data);
const detail: string = refused.error.detail;
check(refused.error.status === 422 && detail.includes("expected"), refused.error);
console.log("done");
