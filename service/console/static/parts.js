// Small parts that several views share.
import { html, useState } from "console/lib.js";
import { Problem } from "console/api.js";

/** Text to copy, with its button. */
export function Copy({ text, label = "Copy" }) {
  const [said, setSaid] = useState(null);
  const copy = async () => {
    // Pages that came over plain http from another machine have no clipboard.
    const isDone = await (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(
      () => true,
      () => false,
    );
    setSaid(isDone ? "Copied" : "Select it and copy");
    setTimeout(() => setSaid(null), 2500);
  };
  const shown = text.length > 600 && navigator.clipboard ? `${text.slice(0, 600)}…` : text;
  return html`<div class="copy"><pre tabindex="0"><code>${shown}</code></pre><button type="button" onClick=${copy}>
    ${said ?? label}</button></div>`;
}

/** The request behind a view. */
export const Request = ({ line }) =>
  html`<details class="request"><summary>The same by <code>curl</code></summary><${Copy} text=${line} /></details>`;

export function Trouble({ problem }) {
  if (!problem) return null;
  return html`<p class="problem-text" role="alert">${problem instanceof Problem ? problem.message : String(problem)}
    </p>`;
}

/** What was said of what was brought; what went wrong stands out. */
export function Notes({ notes }) {
  if (!notes.length) return null;
  return html`<ul class="notes" aria-live="polite">${notes.map(({ text, isProblem }) => html`<li
    class=${isProblem ? "problem-text" : ""}>${text}</li>`)}</ul>`;
}

/** Several choices of which one holds. */
export function Choice({ name, legend, options, value, onChange }) {
  return html`<fieldset class="choice"><legend>${legend}</legend>
    ${options.map(([one, text]) => html`<label key=${one}><input type="radio" name=${name} value=${one}
      checked=${one === value} onChange=${() => onChange(one)} /> <span>${text}</span></label>`)}
  </fieldset>`;
}
