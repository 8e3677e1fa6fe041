// Small line charts over depth, both columns in one.

import { element, short, svg } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 130;
const EDGE = { left: 38, right: 8, top: 8, bottom: 20 };

/**
 * @param {string} title
 * @param {{label: string, values: number[]}[]} series label A or B; one value a sublayer
 * @param {[number, number]} least what the y axis shows at least; it grows with the values
 * @param {number} selected index of the marked sublayer
 * @param {string[]} names of the sublayers
 * @param {(index: number) => void} choose called when a sublayer is clicked
 */
export function lineChart(title, series, least, selected, names, choose) {
  const count = names.length;
  const domain = domainOf(series, least);
  const inner = WIDTH - EDGE.left - EDGE.right;
  const x = (index) => EDGE.left + (inner * (index + 0.5)) / count;
  const share = (value) => (value - domain[0]) / (domain[1] - domain[0]);
  const y = (value) => HEIGHT - EDGE.bottom - share(value) * (HEIGHT - EDGE.top - EDGE.bottom);
  const picture = svg("svg", {
    class: "chart",
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "img",
    "aria-label": `${title} over the sublayers; the values are in the tables below`,
  });
  picture.append(...axes(domain, x, y, count));
  picture.append(
    svg("line", {
      class: "cursor",
      x1: x(selected),
      x2: x(selected),
      y1: EDGE.top,
      y2: HEIGHT - EDGE.bottom,
    }),
  );
  for (const { label, values } of series) {
    const points = values.map((value, index) => `${x(index)},${y(value)}`);
    const kind = label.toLowerCase();
    picture.append(svg("polyline", { class: `line ${kind}`, points: points.join(" ") }));
    picture.append(
      svg("circle", { class: `dot ${kind}`, cx: x(selected), cy: y(values[selected]), r: 3.5 }),
    );
  }
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * WIDTH - EDGE.left;
    choose(Math.min(Math.max(Math.floor((place / inner) * count), 0), count - 1));
  });
  return element("figure", {}, caption(title, series, selected), picture);
}

/** Ends at which people would label an axis. */
function domainOf(series, least) {
  const values = series.flatMap((each) => each.values);
  const low = Math.min(least[0], ...values);
  return [low < 0 ? -roundedUp(-low) : low, roundedUp(Math.max(least[1], ...values))];
}

function roundedUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * unit > value * 0.9999) * unit;
}

function caption(title, series, selected) {
  const values = series.map(({ label, values }) =>
    element(
      "span",
      { class: `value ${label.toLowerCase()}` },
      element("b", { text: label }),
      ` ${short(values[selected])}`,
    ),
  );
  return element("figcaption", {}, element("span", { text: title }), ...values);
}

function axes(domain, x, y, count) {
  const parts = [];
  for (const value of [domain[0], (domain[0] + domain[1]) / 2, domain[1]]) {
    parts.push(
      svg("line", {
        class: "grid",
        x1: EDGE.left,
        x2: WIDTH - EDGE.right,
        y1: y(value),
        y2: y(value),
      }),
      svg("text", { class: "tick-y", x: EDGE.left - 5, y: y(value), text: short(value, 2) }),
    );
  }
  const step = Math.max(1, Math.ceil(count / 2 / 12)); // a label for every layer, or every step-th
  for (let layer = 0; layer < count / 2; layer += step) {
    parts.push(
      svg("text", { class: "tick-x", x: x(2 * layer), y: HEIGHT - 6, text: String(layer) }),
    );
  }
  return parts;
}
