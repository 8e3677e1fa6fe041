// Elements from plain descriptions. Text is only ever set as text, never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {object} attributes strings and numbers as attributes, functions as listeners, `text`,
 *   true for an empty attribute; null, undefined and false are left out
 * @param {...(Node|string)} children
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A description list's content: pairs of term and text; null texts are left out. */
export function facts(pairs) {
  return pairs
    .filter(([, text]) => text !== null)
    .map(([term, text]) =>
      element("div", {}, element("dt", { text: term }), element("dd", { text })),
    );
}

/** Text with H_res and its like set as in the formulas. */
export function formula(text) {
  return text.split(/(H_\w+)/).map((part) => {
    if (!part.startsWith("H_")) return part;
    return element(
      "span",
      {},
      element("i", { text: "H" }),
      element("sub", { text: part.slice(2) }),
    );
  });
}

/** A number as people read it: at most `digits` decimals, no trailing zeros. */
export function short(value, digits = 3) {
  return String(Number(value.toFixed(digits)));
}

/** Gates in words: one number where all are the same, else their ends and mean. */
export function spread(gates) {
  if (gates.every((gate) => gate === gates[0])) return `${short(gates[0])} everywhere`;
  const ends = `${short(Math.min(...gates))} to ${short(Math.max(...gates))}`;
  return `${ends}, mean ${short(mean(gates))}`;
}

/** The last call of a burst, `delay` milliseconds after it. */
export function debounced(call, delay) {
  let timer;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), delay);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

export function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
