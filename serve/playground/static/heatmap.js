// Heatmaps: SVG cells whose values show on hover, and on focus with the arrow keys.

import { colour, ink } from "./colours.js";
import { element, short, svg } from "./dom.js";

const cellsOf = new WeakMap(); // svg -> {map, active}

/**
 * @typedef {object} Map
 * @property {string} name what is drawn, for screen readers and tooltips
 * @property {string[]} rows
 * @property {string[]} columns
 * @property {number[][]} values rows x columns
 * @property {[number, number]} range values at the two ends of the colour scale
 * @property {[number, number]} [cell] width and height of a cell; 20 x 20
 * @property {boolean} [numbers] write the values into the cells
 * @property {boolean} [focusable] one stop of the Tab key, its cells by the arrow keys
 * @property {boolean} [fluid] as wide as its place, the cells' shape kept
 * @property {boolean} [stretch] as wide and high as its place
 */

/** @param {Map} map @returns {SVGElement} */
export function heatmap(map) {
  const [width, height] = map.cell ?? [20, 20];
  const size = [width * map.columns.length, height * map.rows.length];
  const picture = svg("svg", {
    class: map.focusable ? "heatmap focusable" : "heatmap",
    viewBox: `0 0 ${size[0]} ${size[1]}`,
    width: map.stretch || map.fluid ? null : size[0],
    height: map.stretch || map.fluid ? null : size[1],
    preserveAspectRatio: map.stretch ? "none" : null,
    role: "img",
    "aria-label": `${map.name}: ${sentence(map)}`,
    tabindex: map.focusable ? 0 : null,
  });
  map.values.forEach((row, i) =>
    row.forEach((value, j) => picture.append(...cell(map, i, j, value, width, height))),
  );
  cellsOf.set(picture, { map, active: [0, 0] });
  if (map.focusable) makeFocusable(picture);
  return picture;
}

/** Values in words, row by row; very many belong into the table. */
function sentence(map) {
  const values = map.values.flat();
  if (values.length > 128) return `${map.rows.length} by ${map.columns.length} values`;
  return values.map((value) => short(value)).join(", ");
}

function cell(map, i, j, value, width, height) {
  const [low, high] = map.range;
  const share = high > low ? (value - low) / (high - low) : 0;
  const box = svg("rect", {
    x: j * width,
    y: i * height,
    width,
    height,
    fill: colour(share),
    "data-row": i,
    "data-column": j,
  });
  if (!map.numbers) return [box];
  const text = svg("text", {
    x: (j + 0.5) * width,
    y: (i + 0.5) * height,
    fill: ink(share),
    text: value.toFixed(2),
  });
  return [box, text];
}

function describe(map, i, j) {
  const place = [map.rows[i], map.columns[j]].filter(Boolean).join(", ");
  return `${map.name}, ${place}: ${short(map.values[i][j], 4)}`;
}

function makeFocusable(picture) {
  picture.addEventListener("focus", () => show(picture, ...cellsOf.get(picture).active, true));
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const [down, right] = step[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    const known = cellsOf.get(picture);
    const [i, j] = known.active;
    known.active = [
      within(i + down, known.map.rows.length),
      within(j + right, known.map.columns.length),
    ];
    show(picture, ...known.active, true);
  });
}

function within(index, count) {
  return Math.min(Math.max(index, 0), count - 1);
}

const tooltip = document.getElementById("tooltip");
const spoken = document.getElementById("spoken");
let marked = null;

function show(picture, i, j, byKeyboard = false) {
  hide();
  marked = picture.querySelector(`rect[data-row="${i}"][data-column="${j}"]`);
  marked.classList.add("active");
  const text = describe(cellsOf.get(picture).map, i, j);
  if (byKeyboard) {
    spoken.textContent = text;
    marked.scrollIntoView?.({ block: "nearest", inline: "nearest" });
  }
  tooltip.textContent = text;
  tooltip.hidden = false;
  const box = marked.getBoundingClientRect();
  const room = document.documentElement.clientWidth - tooltip.offsetWidth - 8;
  const left = Math.max(8, Math.min(box.left + box.width / 2 - tooltip.offsetWidth / 2, room));
  const above = box.top - tooltip.offsetHeight - 6;
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${above < 4 ? box.bottom + 6 : above}px`;
}

function hide() {
  marked?.classList.remove("active");
  marked = null;
  tooltip.hidden = true;
}

document.addEventListener("pointerover", (event) => {
  const box = event.target.closest?.("rect[data-row]");
  if (box) show(box.ownerSVGElement, Number(box.dataset.row), Number(box.dataset.column));
  else hide();
});
document.addEventListener("scroll", hide, { passive: true, capture: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});

/** 2L gates as two rows of L cells, with their numbers in a list to open. */
export function gateStrip(name, gates) {
  const layers = Array.from({ length: gates.length / 2 }, (_, layer) => `layer ${layer}`);
  const picture = heatmap({
    name,
    rows: ["attention", "mlp"],
    columns: layers,
    values: [gates.filter((_, k) => k % 2 === 0), gates.filter((_, k) => k % 2 === 1)],
    range: [0, 1],
    cell: [20, 14],
    focusable: true,
    stretch: true,
  });
  const labels = element(
    "span",
    { class: "strip-labels", "aria-hidden": "true" },
    element("span", { text: "attention" }),
    element("span", { text: "mlp" }),
  );
  return element("div", { class: "strip" }, labels, picture);
}
