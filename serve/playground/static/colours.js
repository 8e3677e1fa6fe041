// One colour scale for everything: viridis, even in lightness and safe for the colour-blind.

import { svg } from "./dom.js";

const STOPS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

/** @param {number} share 0 to 1; what lies outside gets the nearest end's colour */
export function colour(share) {
  const [r, g, b] = channels(share);
  return `rgb(${r}, ${g}, ${b})`;
}

/** Black or white, whichever reads better on `colour(share)`. */
export function ink(share) {
  const [r, g, b] = channels(share);
  return 0.299 * r + 0.587 * g + 0.114 * b > 128 ? "#000" : "#fff";
}

function channels(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const index = Math.min(Math.floor(place), STOPS.length - 2);
  const part = place - index;
  return STOPS[index].map((low, k) => Math.round(low + part * (STOPS[index + 1][k] - low)));
}

let gradients = 0;

/** The scale as a bar. */
export function scaleBar() {
  const id = `scale-${(gradients += 1)}`;
  const stops = STOPS.map((stop, index) =>
    svg("stop", { offset: index / (STOPS.length - 1), "stop-color": `rgb(${stop.join(", ")})` }),
  );
  return svg(
    "svg",
    { class: "scale", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("defs", {}, svg("linearGradient", { id }, ...stops)),
    svg("rect", { width: 100, height: 10, fill: `url(#${id})` }),
  );
}
