// Curves and bars, as SVG with the page's colours. Each says in words what it shows.
import { Fragment, html, useEffect, useRef, useState } from "console/lib.js";
import { count, nats, oneIn, percent, words } from "console/format.js";

const USUAL_WIDTH = 640;

/** A chart as wide as its place, so that its text is not scaled: `draw(width)` gives its SVG. */
export function Chart({ draw }) {
  const box = useRef(),
    [width, setWidth] = useState(USUAL_WIDTH);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(240, Math.round(entry.contentRect.width))));
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  return html`<div ref=${box}>${draw(width)}</div>`;
}

/** A smooth density from evenly spaced quantiles: [x, height] pairs. */
export function density(values, from, to, points = 160) {
  const mean = values.reduce((sum, one) => sum + one, 0) / values.length;
  const spread = Math.sqrt(values.reduce((sum, one) => sum + (one - mean) ** 2, 0) / values.length);
  const middle = (values[Math.floor(0.75 * values.length)] - values[Math.floor(0.25 * values.length)]) / 1.34;
  const width = 0.9 * (Math.min(spread, middle) || spread || 1) * values.length ** -0.2; // Silverman's rule
  return Array.from({ length: points }, (_, at) => {
    const x = from + ((to - from) * at) / (points - 1);
    return [x, values.reduce((sum, one) => sum + Math.exp(-0.5 * ((x - one) / width) ** 2), 0)];
  });
}

/** Where the valid rows lie in log p(x), what is accepted, and one row among them with its error. */
export const Curve = (props) => html`<${Chart} draw=${(W) => drawCurve(W, props)} />`;

function drawCurve(W, { curve, band, score }) {
  const values = curve.log_likelihood,
    last = values.at(-1);
  const inner = values.slice(2);
  const span = last - inner[0] || 1;
  let from = inner[0] - 0.06 * span,
    to = last + 0.08 * span;
  const at = score?.log_likelihood,
    error = score ? 2 * score.std_error : 0;
  if (score) {
    from = Math.max(Math.min(from, at - error - 0.1 * span), from - 1.2 * span);
    to = Math.min(Math.max(to, at + error + 0.1 * span), to + 1.2 * span);
  }
  const H = 170,
    base = 138;
  const x = (value) => ((Math.min(to, Math.max(from, value)) - from) / (to - from)) * W;
  const points = density(values, from, to);
  const most = Math.max(...points.map(([, height]) => height));
  const outline = points.map(
    ([value, height]) => `${x(value).toFixed(1)},${(base - (height / most) * 112).toFixed(1)}`,
  );
  const isOut = score && (at < from || at > to);
  const side = score && (at < from + 0.25 * (to - from) ? "start" : at > from + 0.75 * (to - from) ? "end" : "middle");
  const said = `log p(x) of valid rows, from ${nats(inner[0])} to ${nats(last)} nats${score ? `; this row is at ${nats(at)}, give or take ${error.toFixed(1)}` : ""}`;
  const ends = band ? band.map((end, which) => end ?? (which ? to : from)) : null;
  return html`<svg class="chart" viewBox="0 0 ${W} ${H}" role="img" aria-label=${said}>
    ${ends && html`<rect class="accepted" x=${x(ends[0])} width=${Math.max(0, x(ends[1]) - x(ends[0]))} y="14"
      height=${base - 14} />`}
    <polygon class="density" points="0,${base} ${outline.join(" ")} ${W},${base}" />
    <line class="axis" x1="0" x2=${W} y1=${base} y2=${base} />
    ${ends && band.map((end) => end !== null && html`<line
      class="limit" x1=${x(end)} x2=${x(end)} y1="14" y2=${base} />`)}
    ${
      score &&
      html`<g class=${score.verdict}>
      <line class="error" x1=${x(at - error)} x2=${x(at + error)} y1="30" y2="30" />
      ${
        isOut
          ? html`<path class="tick"
            d=${at < from ? "M14 22 L2 30 L14 38" : `M${W - 14} 22 L${W - 2} 30 L${W - 14} 38`} />`
          : html`<line class="tick" x1=${x(at)} x2=${x(at)} y1="22" y2=${base} />`
      }
      <text x=${x(at)} y="13" text-anchor=${side}>this row: ${nats(at)} ± ${error.toFixed(1)}</text>
    </g>`
    }
    <text x="0" y=${H - 14}>${nats(from)}</text>
    <text x=${W} y=${H - 14} text-anchor="end">${nats(to)} nats</text>
    ${W > 420 && html`<text x=${W / 2} y=${H - 14} text-anchor="middle">log p(x): less likely to the left</text>`}
  </svg>`;
}

/** A p-value on a logarithmic scale, with what is refused at a rate. */
export const RateScale = (props) => html`<${Chart} draw=${(W) => drawRateScale(W, props)} />`;

function drawRateScale(W, { p, rate, verdict }) {
  const H = 76,
    base = 44,
    finest = Math.min(1e-4, p, rate / 3);
  const x = (value) => (Math.log10(value) / Math.log10(finest)) * W;
  const ticks = (W < 420 ? [1, 0.01, 0.0001] : [1, 0.1, 0.01, 0.001, 0.0001]).filter((one) => one >= finest);
  const at = x(p),
    side = at < 0.2 * W ? "start" : at > 0.8 * W ? "end" : "middle";
  return html`<svg class="chart" viewBox="0 0 ${W} ${H}" role="img"
    aria-label=${`${oneIn(p)} valid rows is as strange; rows are refused from ${oneIn(rate)}`}>
    <rect class="accepted" x="0" width=${x(rate)} y="20" height=${base - 20} />
    <rect class="refused-part" x=${x(rate)} width=${W - x(rate)} y="20" height=${base - 20} />
    <text x=${x(rate) - 6} y="36" text-anchor="end">valid</text><text x=${x(rate) + 6} y="36">invalid</text>
    <line class="limit" x1=${x(rate)} x2=${x(rate)} y1="16" y2=${base + 4} />
    <g class=${verdict}><line
      class="tick" x1=${Math.min(W - 2, Math.max(2, at))} x2=${Math.min(W - 2, Math.max(2, at))} y1="16" y2=${base + 4} />
      <text x=${at} y="12" text-anchor=${side}>this row: ${oneIn(p)}</text></g>
    ${ticks.map((one) => html`<text x=${x(one)} y=${H - 12}
      text-anchor=${one === 1 ? "start" : x(one) > 0.95 * W ? "end" : "middle"}>
      ${one === 1 ? "every valid row" : oneIn(one)}</text>`)}
  </svg>`;
}

const strength = (p) => Math.min(1, -Math.log10(Math.max(p, 1e-6)) / 4.5);

/** P-values as bars: the longer, the fewer valid rows are as strange. */
export function EvidenceBars({ evidence, statistics, limit }) {
  const rows = statistics
    .filter(({ name }) => name in evidence)
    .sort((one, other) => evidence[one.name] - evidence[other.name]);
  return html`<${Fragment}><table class="bars"><caption
    class="sr-only">How strange the row is by each statistic</caption><tbody>
    ${rows.map(
      ({ name, meaning }) => html`<tr key=${name}>
      <th scope="row" >${words(name)}</th>
      <td><div class="bar ${evidence[name] <= limit ? "strong" : ""}"><i
        style=${{ width: `${100 * strength(evidence[name])}%` }}></i></div></td>
      <td class="number">${oneIn(evidence[name])}</td></tr>`,
    )}
  </tbody></table>
  <details><summary>What the statistics mean</summary><dl class="meanings">${rows.map(({ name, meaning }) => html`<div
    key=${name}><dt>${words(name)}</dt><dd>one in so many valid rows ${meaning}</dd></div>`)}</dl></details><//>`;
}

/** Shares over rates of false alarms, on a logarithmic axis. Series: {className, points: [[rate, share]]}. */
export const RateChart = (props) => html`<${Chart} draw=${(W) => drawRateChart(W, props)} />`;

function drawRateChart(W, { series, rate, mark, label }) {
  const H = 240,
    left = 44,
    base = 200;
  const rates = series.flatMap((one) => one.points.map(([at]) => at));
  const from = Math.log10(Math.min(...rates)),
    to = Math.log10(Math.max(...rates));
  const x = (value) => left + ((Math.log10(value) - from) / (to - from || 1)) * (W - left - 8);
  const y = (share) => base - share * 176;
  const ticks = [0.0001, 0.001, 0.01, 0.1].filter(
    (one) => Math.log10(one) >= from - 1e-9 && Math.log10(one) <= to + 1e-9,
  );
  return html`<svg class="chart" viewBox="0 0 ${W} ${H}" role="img" aria-label=${label}>
    ${[0, 0.25, 0.5, 0.75, 1].map((share) => html`<g><line
      class="grid" x1=${left} x2=${W} y1=${y(share)} y2=${y(share)} /><text x="0" y=${y(share) + 4}>
      ${100 * share} %</text></g>`)}
    ${ticks.map((one) => html`<text x=${x(one)} y=${base + 18} text-anchor="middle">${percent(one)}</text>`)}
    <text x=${W} y=${base + 36} text-anchor="end">rate of false alarms</text>
    ${rate && html`<line class="limit" x1=${x(rate)} x2=${x(rate)} y1="16" y2=${base} />`}
    ${series.map((one) => html`<polyline class="series ${one.className}"
      points=${one.points.map(([at, share]) => `${x(at).toFixed(1)},${y(share).toFixed(1)}`).join(" ")} />`)}
    ${mark && html`<g><circle class="mark" cx=${x(mark.rate)} cy=${y(mark.share)} r="6" /><text x=${x(mark.rate)}
      y=${y(mark.share) - 12} text-anchor=${mark.rate > 0.05 ? "end" : "start"}>${mark.text}</text></g>`}
  </svg>`;
}

/** Counts as columns, beside what was expected of each. */
export const Columns = (props) => html`<${Chart} draw=${(W) => drawColumns(W, props)} />`;

function drawColumns(W, { counts, behind, labels = [], ends, label }) {
  const total = counts.reduce((sum, one) => sum + one, 0),
    expected = total / counts.length;
  const most = Math.max(1, ...counts, ...(behind ?? [expected])),
    H = 170,
    base = 138,
    width = W / counts.length,
    gap = Math.min(4, width / 6);
  return html`<svg class="chart" viewBox="0 0 ${W} ${H}" role="img" aria-label=${label}>
    ${behind && behind.map((one, at) => html`<rect class="density" x=${at * width} width=${width}
      y=${base - (one / most) * 120} height=${(one / most) * 120} />`)}
    ${counts.map((one, at) => html`<rect class="column" x=${at * width + gap} width=${width - 2 * gap}
      y=${base - (one / most) * 120} height=${(one / most) * 120}><title>${count(one)}</title></rect>`)}
    <line class="axis" x1="0" x2=${W} y1=${base} y2=${base} />
    ${total > 0 && !behind && html`<line
      class="limit" x1="0" x2=${W} y1=${base - (expected / most) * 120} y2=${base - (expected / most) * 120} />`}
    ${labels.map((text, at) => html`<text x=${((at + 0.5) * W) / labels.length} y=${H - 14} text-anchor="middle">
      ${text}</text>`)}
    ${ends && html`<g><text x="0" y=${H - 14}>${ends[0]}</text><text x=${W} y=${H - 14} text-anchor="end">${ends[1]}
      </text></g>`}
  </svg>`;
}
