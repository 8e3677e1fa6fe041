// Behaviours by name: what one means, and gates between two of them.

import { element, short, spread } from "./dom.js";
import { gateStrip } from "./heatmap.js";

/**
 * @typedef {object} Behaviour as GET /v1/gates lists it
 * @property {string} name
 * @property {[number, number][]} ranges one, or one a layer or sublayer
 * @property {number[]} gates the 2L that stand for it
 * @property {string|null} style of its answers
 * @property {number|null} share of the training rows
 */

/** @param {Behaviour} behaviour @returns {HTMLElement[]} its gates and where they come from */
export function description(behaviour) {
  const { name, ranges, gates, share } = behaviour;
  const [low, high] = ranges[0].map((end) => short(end));
  const each = ranges.length === gates.length ? "sublayer" : "layer";
  const under =
    ranges.length === 1 ? `gates from ${low} to ${high}` : `a range of gates for each ${each}`;
  const part = share === null ? "" : ` (${short(100 * share, 1)} % of all rows)`;
  const text = `Trained under ${under}${part}; these stand for it: ${spread(gates)}.`;
  return [gateStrip(`gate of ${name}`, gates), element("p", { class: "hint", text })];
}

/** A slider from one behaviour to another; gates change linearly between theirs. */
export class Between {
  /**
   * @param {string} label of the column
   * @param {Behaviour[]} behaviours two or more
   * @param {() => void} changed called after every change by the user
   */
  constructor(label, behaviours, changed) {
    this.label = label;
    this.behaviours = behaviours;
    this.changed = changed;
    this.names = [behaviours[0].name, behaviours[1].name];
    this.share = 0.5; // of the second
  }

  /** The names of both ends, and how far it is from the first to the second. */
  get state() {
    return { names: [...this.names], values: [this.share] };
  }

  /** Takes over a state, if it is one of these behaviours. */
  restore({ names, values }) {
    const known = names?.length === 2 && names.every((name) => this.of(name));
    if (!known) return false;
    this.names = [...names];
    this.share = Math.min(Math.max(values?.[0] ?? 0.5, 0), 1);
    return true;
  }

  /** 2L gates. */
  get gates() {
    const [first, second] = this.names.map((name) => this.of(name).gates);
    return first.map((gate, k) =>
      Number(((1 - this.share) * gate + this.share * second[k]).toFixed(4)),
    );
  }

  of(name) {
    return this.behaviours.find((behaviour) => behaviour.name === name);
  }

  /** @returns {HTMLElement[]} the slider, its ends and the gates that it gives */
  draw() {
    let strip = element("div");
    const text = element("p", { class: "hint" });
    const range = element("input", { type: "range", min: 0, max: 1, step: 0.01 });
    const show = () => {
      const [first, second] = this.names;
      const part = `${short(100 * this.share, 0)} %`;
      range.setAttribute("aria-label", `Gates ${this.label} from ${first} to ${second}`);
      range.setAttribute("aria-valuetext", `${part} of the way`);
      text.textContent = `${part} of the way from ${first} to ${second}: ${spread(this.gates)}.`;
      const shown = strip;
      strip = gateStrip(`gate between ${first} and ${second}`, this.gates);
      shown.replaceWith(strip);
    };
    const apply = () => {
      show();
      this.changed();
    };
    range.value = this.share;
    range.addEventListener("input", () => {
      this.share = range.valueAsNumber;
      apply();
    });
    show();
    const track = element("span", { class: "track" }, range);
    const ends = [0, 1].map((place) => this.end(place, apply));
    return [element("div", { class: "between" }, ends[0], track, ends[1]), strip, text];
  }

  /** Where there are only two, their names; else a choice. */
  end(place, apply) {
    if (this.behaviours.length === 2) {
      return element("span", { class: "end", text: this.names[place] });
    }
    const select = element(
      "select",
      { class: "end", "aria-label": `${place ? "To" : "From"}, gates ${this.label}` },
      ...this.behaviours.map(({ name }) => element("option", { value: name, text: name })),
    );
    select.value = this.names[place];
    select.addEventListener("change", () => {
      this.names[place] = select.value;
      apply();
    });
    return select;
  }
}
