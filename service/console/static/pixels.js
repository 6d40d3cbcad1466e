// Images on canvases: rows of pixels, 0 to 255, as the service sends them.
import { html, useEffect, useRef } from "console/lib.js";

export const flat = (pixels) => pixels.flat(2);

/** Paint pixels, nested or flat, into a canvas of their own size. */
export function paint(canvas, pixels, { height, width, channels }) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.putImageData(imageData(flat(pixels), height, width, channels), 0, 0);
}

export function imageData(values, height, width, channels) {
  const data = new Uint8ClampedArray(4 * height * width);
  for (let at = 0; at < height * width; at++) {
    for (let channel = 0; channel < 3; channel++)
      data[4 * at + channel] = values[channels === 3 ? 3 * at + channel : at];
    data[4 * at + 3] = 255;
  }
  return new ImageData(data, width, height);
}

/** A picture of pixels; its text says what it shows. */
export function Picture({ pixels, input, label, className = "" }) {
  const canvas = useRef();
  useEffect(() => paint(canvas.current, pixels, input), [pixels, input]);
  return html`<canvas ref=${canvas} role="img" aria-label=${label} class="picture ${className}"></canvas>`;
}

/** A map of strangeness over a faint picture: the redder, the stranger. */
export function MapPicture({ pixels, map, input, label }) {
  const canvas = useRef();
  useEffect(() => {
    const { height, width, channels } = input;
    const image = imageData(flat(pixels), height, width, channels);
    map.flat().forEach((value, at) => {
      const share = Math.min(1, Math.max(0, (value ?? 0) - 1) / 5); // a spread is usual, six are not
      const grey = (0.45 * (image.data[4 * at] + image.data[4 * at + 1] + image.data[4 * at + 2])) / 3;
      image.data[4 * at] = grey * (1 - share) + 235 * share;
      image.data[4 * at + 1] = grey * (1 - share) + 60 * share;
      image.data[4 * at + 2] = grey * (1 - share) + 40 * share;
    });
    canvas.current.width = width;
    canvas.current.height = height;
    canvas.current.getContext("2d").putImageData(image, 0, 0);
  }, [pixels, map, input]);
  return html`<canvas ref=${canvas} role="img" aria-label=${label} class="picture"></canvas>`;
}

/** Pixels that can be drawn on, with a pointer, or with arrow keys and the space bar. */
export function Brush({ pixels, input, colour, size, label, onStroke }) {
  const canvas = useRef(),
    state = useRef({});
  const { height, width, channels } = input;
  const isThere = Boolean(pixels);
  useEffect(() => {
    if (state.current.last) return; // what is being drawn is newer than what was read
    state.current.values = pixels ? flat(pixels).slice() : new Array(height * width * channels).fill(0);
    paint(canvas.current, state.current.values, input);
  }, [pixels, input]);

  function dab(x, y) {
    const { values } = state.current;
    const reach = size / 2,
      soft = 0.7;
    for (let row = Math.max(0, Math.floor(y - reach - 1)); row <= Math.min(height - 1, Math.ceil(y + reach)); row++) {
      for (
        let column = Math.max(0, Math.floor(x - reach - 1));
        column <= Math.min(width - 1, Math.ceil(x + reach));
        column++
      ) {
        const far = Math.hypot(column + 0.5 - x, row + 0.5 - y);
        const share = Math.min(1, Math.max(0, (reach + soft - far) / (2 * soft)));
        for (let channel = 0; channel < channels; channel++) {
          const at = channels * (row * width + column) + channel;
          const wanted = typeof colour === "function" ? colour(at) : colour;
          const painted = values[at] + (wanted - values[at]) * share;
          values[at] = Math.round(colour === 255 ? Math.max(values[at], painted) : painted);
        }
      }
    }
    paint(canvas.current, values, input);
  }

  function place(event) {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  function line(from, to) {
    const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * 2) + 1;
    for (let step = 0; step <= steps; step++)
      dab(from[0] + ((to[0] - from[0]) * step) / steps, from[1] + ((to[1] - from[1]) * step) / steps);
  }

  const done = () => onStroke(nested(state.current.values, input), canvas.current.toDataURL());
  const begin = (event) => {
    event.preventDefault();
    canvas.current.setPointerCapture(event.pointerId);
    canvas.current.focus();
    state.current.last = place(event);
    dab(...state.current.last);
  };
  const move = (event) => {
    if (!state.current.last) return;
    const next = place(event);
    line(state.current.last, next);
    state.current.last = next;
  };
  const end = () => {
    if (!state.current.last) return;
    state.current.last = null;
    done();
  };
  const press = (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step && event.key !== " ") return;
    event.preventDefault();
    const [x, y] = state.current.at ?? [width / 2, height / 2];
    state.current.at = step
      ? [Math.min(width, Math.max(0, x + step[0])), Math.min(height, Math.max(0, y + step[1]))]
      : [x, y];
    if (event.key === " " || event.shiftKey) {
      dab(...state.current.at);
      done();
    } else {
      paint(canvas.current, state.current.values, input);
      const context = canvas.current.getContext("2d");
      context.strokeStyle = "#e8743b";
      context.strokeRect(state.current.at[0] - 1, state.current.at[1] - 1, 2, 2);
    }
  };
  return html`<canvas ref=${canvas} tabindex="0" role="application" aria-label=${label} class="picture brush"
    data-ready=${isThere} onPointerDown=${begin} onPointerMove=${move} onPointerUp=${end} onPointerCancel=${end}
      onKeyDown=${press}></canvas>`;
}

export function nested(values, { height, width, channels }) {
  return Array.from({ length: height }, (_, row) =>
    Array.from({ length: width }, (_, column) => {
      const at = channels * (row * width + column);
      return channels === 1 ? values[at] : values.slice(at, at + channels);
    }),
  );
}
