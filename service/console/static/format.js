// Numbers as people read them.
const WHOLE = new Intl.NumberFormat("en");

export const count = (value) => WHOLE.format(value);
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A share in per cent, with as many digits as tell it from 0 and 1. */
export function percent(share) {
  const edge = Math.min(share, 1 - share);
  const digits = edge >= 0.1 ? 0 : edge >= 0.01 ? 1 : edge >= 0.001 ? 2 : 3;
  return `${Number((100 * share).toFixed(digits))} %`;
}

/** The share of valid rows that will be accepted, in words. */
export const accepted = ({ expected, bound }) => `${percent(expected)}${bound ? " or more" : ""}`;

/** A p-value as a share of valid rows. */
export function oneIn(p) {
  if (p > 0.5) return `${Math.round(100 * p)} in 100`;
  return `1 in ${count(Math.round(1 / p))}`;
}

/** The same as a sentence's beginning. */
export const asStrange = (p) => `${oneIn(p)} valid rows ${p > 0.5 ? "are" : "is"} as strange`;

export function nats(value) {
  return Math.abs(value) >= 1000 ? count(Math.round(value)) : value.toFixed(1);
}

/** A number without needless digits. */
export function number(value) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 10000 ? String(value) : count(value);
  return String(Number(value.toPrecision(5)));
}

/** A cell as text; null is a missing one. */
export const cell = (value) => (value === null || value === undefined ? "missing" : number(value));

/** `nearest_row` as words. */
export const words = (name) => name.replaceAll("_", " ");
