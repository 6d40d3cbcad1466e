// What every module of the console draws with.
import { Component, Fragment, h, render } from "preact";
import htm from "htm";

export { useEffect, useMemo, useRef, useState } from "preact/hooks";
export { Component, Fragment, render };
export const html = htm.bind(h);

/** A value that components follow: `use()` in a component, `set` to change some of its fields. */
export function createStore(initial) {
  const listeners = new Set();
  const store = {
    value: initial,
    set(changes) {
      store.value = { ...store.value, ...changes };
      listeners.forEach((listener) => listener());
    },
    follow(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
  return store;
}

/** Wait until nothing was asked for some time; the last call counts. */
export function debounced(milliseconds, work) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), milliseconds);
  };
}
