// Requests to the service. The key stays in this module's memory: it is in no URL, no storage and no cookie.
const ROOT = new URL("../", import.meta.url);
let key = null;

export const setKey = (value) => {
  key = value || null;
};
export const hasKey = () => key !== null;

/** An answer that is a problem (RFC 9457), with its document. */
export class Problem extends Error {
  constructor(document) {
    super(document.detail || document.title || "the service did not say what is wrong");
    this.status = document.status;
    this.document = document;
  }
}

/** Where a path with a query is. Parameters without a value are left out. */
export function address(path, query = {}) {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

/** Ask, and get the answer of a success.
 *  @throws {Problem}
 */
export async function ask(path, { query, body, type, accept = "application/json", signal } = {}) {
  const headers = { Accept: accept };
  if (key) headers["X-API-Key"] = key;
  if (type) headers["Content-Type"] = type;
  let response;
  try {
    response = await fetch(address(path, query), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body,
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ status: 0, detail: "the service did not answer: is it running?" });
  }
  if (!response.ok) {
    const document = await response.json().catch(() => ({ status: response.status, detail: response.statusText }));
    throw new Problem(document);
  }
  return response;
}

export const getJSON = async (path, query, signal) => (await ask(path, { query, signal })).json();

export async function postJSON(path, document, query, signal) {
  const response = await ask(path, { query, body: JSON.stringify(document), type: "application/json", signal });
  return response.json();
}

export async function postFiles(path, files, query, signal) {
  const body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  return (await ask(path, { query, body, signal })).json();
}

/** Score instances line by line; `onScores(start, scores or problem documents)` is called as they come.
 *  @throws {Problem} also if fewer came than were sent.
 */
export async function scoreLines(instances, query, onScores, signal) {
  const body = instances.map((one) => JSON.stringify(one)).join("\n");
  const response = await ask("score.ndjson", {
    query,
    body,
    type: "application/x-ndjson",
    accept: "application/x-ndjson",
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "",
    done = 0;
  for (;;) {
    const { value, done: isOver } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { value: "", done: true };
    });
    const lines = (rest + (value ?? "")).split("\n");
    rest = isOver ? "" : lines.pop();
    const found = lines.filter(Boolean).map((line) => JSON.parse(line));
    if (found.length) onScores(done, found);
    done += found.length;
    if (isOver && done < instances.length)
      throw new Problem({ status: 0, detail: "the answer broke off: send the rows again" });
    if (isOver) return;
  }
}

/** Save an answer as a file; a link could not carry the key. */
export async function download(path, query, name, accept) {
  const blob = await (await ask(path, { query, accept })).blob();
  save(blob, name);
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The `curl` that asks the same. The key is not in it, but the variable that may hold it. */
export function curl(path, { query, json, file, type } = {}) {
  const parts = ["curl -s", quoted(String(address(path, query)))];
  if (key) parts.push('-H "X-API-Key: $VOUCH_KEY"');
  if (json !== undefined) parts.push("-H 'content-type: application/json'", "-d", quoted(JSON.stringify(json)));
  if (file !== undefined) {
    parts.push(type ? `-H 'content-type: ${type}' --data-binary @${quoted(file)}` : `-F file=@${quoted(file)}`);
  }
  return parts.join(" ");
}
