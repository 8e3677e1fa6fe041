// Where the two answers part.

import { element } from "./dom.js";
import { cutPieces } from "./pieces.js";

/** @returns {number} characters (code points) that both texts begin with */
export function commonLength(first, second) {
  const [a, b] = [[...first], [...second]];
  let length = 0;
  while (length < Math.min(a.length, b.length) && a[length] === b[length]) length += 1;
  return length;
}

/**
 * Shows both answers, marked from where they part, and says where that is.
 *
 * @param {import("./column.js").Column} a
 * @param {import("./column.js").Column} b
 * @param {HTMLElement} verdict
 */
export function compare(a, b, verdict) {
  const common = commonLength(a.text, b.text);
  const running = a.running || b.running;
  const shorter = Math.min([...a.text].length, [...b.text].length);
  const cut = [a, b].filter((column) => column.answered && column.outcome !== "ended");
  const partial = running || cut.length > 0;
  // Of answers that are not whole, only what both have can differ.
  const parted = a.answered && b.answered && (partial ? common < shorter : a.text !== b.text);
  for (const column of [a, b]) showText(column, parted ? common : Infinity);
  const told = a.answered && b.answered && !running;
  verdict.textContent = told ? sentence(parted, common, cut) : "";
}

function showText({ output, text, pieces = [] }, common) {
  const place = [...text].slice(0, common).join("").length;
  const [same, rest] = cutPieces(text, pieces, place).map((side) => side.map(shown));
  output.replaceChildren(...same);
  if (rest.length) output.append(element("mark", {}, ...rest));
}

/** A token; text that is none stays text. */
function shown({ text, title }) {
  return title ? element("span", { text, title }) : text;
}

function sentence(parted, common, cut) {
  if (cut.length > 0) {
    const what = cut.map((column) => `${column.label} ${column.outcome}`).join(" and ");
    if (common === 0 && !parted) return `${what}: there is nothing to compare.`;
    if (!parted) return `${what}: as far as both go, the answers are the same.`;
  } else if (!parted) return "Both answers are the same.";
  if (common === 0) return "The answers differ from the first character on.";
  const characters = common === 1 ? "1 character" : `${common} characters`;
  return `The answers are the same for ${characters}, then they part (marked).`;
}
