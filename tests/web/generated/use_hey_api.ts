// What a program does with the client that @hey-api/openapi-ts generates.
// node use_hey_api.js ADDRESS IMAGE ROW

import { readFileSync } from "node:fs";
import { client } from "./hey/client.gen.js";
import { reconstruct, sample, sampleFile, score, scoreFiles } from "./hey/index.js";

const [, , baseUrl, image, row] = process.argv;
const instance: number[] = JSON.parse(row);
client.setConfig({ baseUrl });

function check(condition: boolean, what: unknown): asserts condition {
  if (!condition) throw new Error(JSON.stringify(what));
}

const scored = await score({ body: { instances: [instance] }, query: { false_alarm: 0.1 } });
check(scored.data !== undefined, scored.error);
const logLikelihood: number = scored.data.scores[0].log_likelihood;

const file = new File([readFileSync(image)], "digit.png", { type: "image/png" });
const sent = await scoreFiles({ body: { file: [file] }, query: { false_alarm: 0.1 } });
check(sent.data !== undefined, sent.error);
check(sent.data.scores[0].log_likelihood === logLikelihood, sent.data);
check(sent.data.scores[0].id === "digit.png", sent.data);

const rebuilt = await reconstruct({ body: { instances: [instance] }, query: { draws: 2 } });
check(rebuilt.data?.reconstructions[0].draws.length === 2, rebuilt.error);

const drawn = await sample({ query: { num: 3, seed: 7 } });
check(drawn.data !== undefined && drawn.data.seed === 7 && drawn.data.samples.length === 3, drawn.error);

const picture = await sampleFile({ path: { extension: "png" }, query: { num: 3, seed: 7 } });
check(picture.data instanceof Blob && picture.data.type === "image/png", picture.error);

const refused = await score({ body: { instances: [[1]] } });
check(refused.error !== undefined, refused.data);
const detail: string = refused.error.detail;
check(refused.error.status === 422 && detail.includes("expected"), refused.error);
console.log("done");
