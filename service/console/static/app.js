// The console: what is on top of every view, and which view is shown.
import { hasKey, setKey } from "console/api.js";
import { Check } from "console/check.js";
import { Component, html, render, useEffect, useState } from "console/lib.js";
import { Drift } from "console/drift.js";
import { Learnt } from "console/learnt.js";
import { Models } from "console/models.js";
import { Promised } from "console/promise.js";
import { Review } from "console/review.js";
import { link, load, useApp } from "console/state.js";

const VIEWS = {
  check: ["Check", Check],
  promise: ["Promise", Promised],
  review: ["Review", Review],
  learnt: ["What it learnt", Learnt],
  models: ["Models", Models],
  drift: ["Drift", Drift],
};

/** Says what broke in place of an empty page. */
class Boundary extends Component {
  componentDidCatch(error) {
    console.error(error);
    this.setState({ error });
  }

  render() {
    if (!this.state.error) return this.props.children;
    return html`<article class="card"><h2>This view broke</h2><p role="alert">
      ${String(this.state.error.message ?? this.state.error)}</p>
      <button type="button" onClick=${() => this.setState({ error: null })}>Show it again</button></article>`;
  }
}

function App() {
  const { phase, problem, view, model } = useApp();
  const View = VIEWS[view][1];
  useEffect(() => {
    document.title = `${VIEWS[view][0]}${model ? ` · ${model.name}` : ""} · Vouch`;
  }, [view, model]);
  return html`
    <a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault();
      document.getElementById("main").focus();
    }}>To the content</a>
    <${Header} />
    <main id="main" tabindex="-1">
      <h1 class="sr-only">${VIEWS[view][0]}${model ? `: ${model.name}` : ""}</h1>
      ${
        phase === "ready"
          ? html`<${Boundary} key=${`${view} ${model.name}`}><${View} /><//>`
          : phase === "locked"
            ? html`<${Locked} problem=${problem} />`
            : phase === "failed"
              ? html`<article class="card"><h2>That did not work</h2><p role="alert">${problem.message}</p><button
                type="button" onClick=${load}>Try again</button></article>`
              : html`<p class="soft" aria-busy="true">Loading…</p>`
      }
    </main>`;
}

function Header() {
  const { models, model, view, reference } = useApp();
  const [isOpen, setOpen] = useState(false);
  const choose = (event) => {
    location.hash = link(view, { model: event.target.value, part: null, example: null });
  };
  const own = models.map((one) => one.name);
  return html`<header>
    <a class="brand" href=${link("check")}>Vouch</a>
    ${
      model &&
      html`<label class="model"><span class="sr-only">Model</span><select value=${reference} onChange=${choose}>
      ${!own.includes(reference) && html`<option value=${reference}>${reference}</option>`}
      ${own.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label>`
    }
    <nav aria-label="Views">${Object.entries(VIEWS).map(([name, [title]]) => html`<a key=${name} href=${link(name)}
      aria-current=${name === view ? "page" : null}>${title}</a>`)}</nav>
    <div class="ends"><${Theme} />
      <button type="button" class="quiet" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
        ${hasKey() ? "Key set" : "Key"}</button></div>
    ${isOpen && html`<div class="key"><${KeyForm} onDone=${() => setOpen(false)} /></div>`}
  </header>`;
}

function KeyForm({ onDone }) {
  const [text, setText] = useState("");
  const use = (event) => {
    event.preventDefault();
    setKey(text.trim());
    setText("");
    onDone?.();
    load();
  };
  return html`<form onSubmit=${use}><label class="inline">API key <input type="password" autocomplete="off"
    spellcheck="false" value=${text} onInput=${(event) => setText(event.target.value)} /></label>
    <button type="submit">Use it</button> <span
      class="soft small">It stays in this page's memory, and is gone when you close or reload it.</span></form>`;
}

function Locked({ problem }) {
  return html`<article class="card"><h2>This service asks for a key</h2><p>
    ${hasKey() ? problem.message : "Enter an API key to go on."}</p><${KeyForm} /></article>`;
}

const THEMES = ["auto", "light", "dark"];

function Theme() {
  const [theme, setTheme] = useState("auto");
  const next = () => {
    const one = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    document.documentElement.dataset.theme = one;
    setTheme(one);
  };
  return html`<button type="button" class="quiet" onClick=${next}>Theme: ${theme}</button>`;
}

document.getElementById("app").replaceChildren();
render(html`<${App} />`, document.getElementById("app"));
load();
