// The gate controls of one column: learned, policy, behaviours by name, or numbers by slider.

import { Between, description } from "./behaviours.js";
import { element, mean, short, spread } from "./dom.js";
import { gateStrip } from "./heatmap.js";

const MODES = {
  learned: "Learned",
  policy: "Policy",
  behaviour: null, // one for each, by its name
  between: "Between",
  global: "Global",
  layer: "Per layer",
  sublayer: "Per sublayer",
};
const NUMBERS = ["global", "layer", "sublayer"]; // modes with sliders of their own
const KINDS = ["attention", "mlp"];

/**
 * @typedef {object} GateModel the answer to GET /v1/gates
 * @property {number} n_layers
 * @property {number} n_gates 2L; 0 for a plain model
 * @property {number[]|null} learned
 * @property {boolean} policy
 * @property {import("./behaviours.js").Behaviour[]} behaviours
 */

export class GateControls {
  /**
   * @param {HTMLElement} root an element with .modes and .controls
   * @param {string} label of the column
   * @param {GateModel} model has gates
   * @param {{mode: string, names: string[], values: number[]|null}} state
   * @param {() => void} changed called after every change by the user
   */
  constructor(root, label, model, state, changed) {
    this.model = model;
    this.label = label;
    this.changed = changed;
    this.root = root;
    this.body = element("div");
    this.bar = this.tools();
    root.querySelector(".controls").append(this.body, this.bar);
    const { behaviours } = model;
    this.name = behaviours[0]?.name; // of the behaviour, in the mode of that name
    this.between = behaviours.length > 1 ? new Between(label, behaviours, changed) : null;
    this.values = [...model.learned]; // 2L numbers
    this.mode = this.restore(state) ? state.mode : "learned";
    root.querySelector(".modes").append(...this.modeButtons());
    this.draw();
  }

  /** Takes over what an address keeps; false if this model does not offer it. */
  restore({ mode, names, values }) {
    if (mode === "policy") return this.model.policy;
    if (mode === "between") return this.between?.restore({ names, values }) ?? false;
    if (mode === "behaviour") {
      if (this.behaviour(names?.[0]) === undefined) return false;
      [this.name] = names;
    }
    if (NUMBERS.includes(mode)) this.values = this.expanded(values) ?? this.values;
    return true;
  }

  behaviour(name) {
    return this.model.behaviours.find((behaviour) => behaviour.name === name);
  }

  /** What the API's `gates` field gets. */
  get request() {
    const { values } = this.state;
    if (this.mode === "behaviour") return this.name;
    if (this.mode === "between") return this.between.gates;
    if (values === null) return this.mode;
    return this.mode === "global" ? values[0] : values;
  }

  /** The mode, its names and, for numbers, as many of them as the mode has. */
  get state() {
    const { mode } = this;
    if (mode === "behaviour") return { mode, names: [this.name], values: null };
    if (mode === "between") return { mode, ...this.between.state };
    const values = { global: [this.values[0]], layer: this.perLayer(), sublayer: this.values };
    return { mode, names: [], values: values[mode] ?? null };
  }

  /** Takes over another column's mode, names and numbers. */
  copy(other) {
    this.values = [...other.values];
    if (other.between) this.between.restore(other.between.state);
    this.choose(other.mode, other.name);
  }

  expanded(values) {
    const { n_layers: layers, n_gates: gates } = this.model;
    if (values?.length === 1) return Array(gates).fill(values[0]);
    if (values?.length === layers) return values.flatMap((value) => [value, value]);
    return values?.length === gates ? [...values] : null;
  }

  perLayer() {
    return this.values.filter((_, k) => k % 2 === 0);
  }

  /** What this model offers, in the order of MODES. */
  modeButtons() {
    const { policy, behaviours } = this.model;
    const offered = {
      policy: policy ? [null] : [],
      behaviour: behaviours.map(({ name }) => name),
      between: this.between ? [null] : [],
    };
    return Object.keys(MODES).flatMap((mode) =>
      (offered[mode] ?? [null]).map((name) => this.modeButton(mode, name)),
    );
  }

  modeButton(mode, name) {
    const value = this.valueOf(mode, name);
    const input = element("input", {
      type: "radio",
      name: `mode-${this.label}`,
      value,
      checked: value === this.valueOf(this.mode, this.name),
      change: () => this.choose(mode, name),
    });
    return element("label", {}, input, element("span", { text: name ?? MODES[mode] }));
  }

  /** Of a radio button: names of behaviours may be those of modes. */
  valueOf(mode, name) {
    return mode === "behaviour" ? `${mode}:${name}` : mode;
  }

  choose(mode, name) {
    this.mode = mode;
    this.name = name ?? this.name;
    const value = this.valueOf(mode, this.name);
    this.root.querySelector(`.modes input[value="${value}"]`).checked = true;
    this.set(this.values);
  }

  /** Numbers, made to fit the mode: a coarser one takes the means. */
  set(values) {
    if (this.mode === "global") this.values = values.map(() => rounded(mean(values)));
    else if (this.mode === "layer") {
      this.values = values.map((_, k) => rounded(mean([values[k & ~1], values[k | 1]])));
    } else this.values = [...values];
    this.draw();
    this.changed();
  }

  draw() {
    const parts = {
      learned: () => [gateStrip("learned gate", this.model.learned), this.learnedText()],
      policy: () => [hint("The exported gate policy chooses the gates for this prompt.")],
      behaviour: () => description(this.behaviour(this.name)),
      between: () => this.between.draw(),
      global: () => [this.slider("All gates", mean(this.model.learned), this.every())],
      layer: () => [this.list()],
      sublayer: () => [this.grid()],
    };
    this.body.replaceChildren(...parts[this.mode]());
    this.bar.hidden = !NUMBERS.includes(this.mode);
  }

  learnedText() {
    return hint(`The gates that training ended with: ${spread(this.model.learned)}.`);
  }

  list() {
    const rows = this.perLayer().map((_, layer) =>
      this.slider(`Layer ${layer}`, mean(this.model.learned.slice(2 * layer, 2 * layer + 2)), [
        2 * layer,
        2 * layer + 1,
      ]),
    );
    return element("div", { class: "sliders" }, ...rows);
  }

  grid() {
    const head = ["layer", ...KINDS].map((text) => element("span", { class: "column-head", text }));
    const rows = this.perLayer().flatMap((_, layer) => [
      element("span", { class: "row-head", text: String(layer) }),
      ...KINDS.map((kind, part) =>
        this.slider(`Layer ${layer} ${kind}`, this.model.learned[2 * layer + part], [
          2 * layer + part,
        ]),
      ),
    ]);
    return element("div", { class: "sliders grid" }, ...head, ...rows);
  }

  every() {
    return this.values.map((_, k) => k);
  }

  /** A range and a number field for the gates at `indices`; the tick is the learned value. */
  slider(name, learned, indices) {
    const value = this.values[indices[0]];
    const limits = { min: 0, max: 1, step: 0.01 };
    const title = `learned: ${short(learned)}`;
    const range = element("input", { type: "range", ...limits, value, title, "aria-label": name });
    const number = element("input", {
      type: "number",
      ...limits,
      step: "any",
      value,
      "aria-label": `${name}, as a number`,
    });
    const apply = (given) => {
      for (const k of indices) this.values[k] = given;
      this.changed();
    };
    range.addEventListener("input", () => {
      number.value = range.value;
      apply(range.valueAsNumber);
    });
    // A number out of [0, 1] goes to the server like any other: its answer says what is allowed.
    number.addEventListener("input", () => {
      if (!Number.isFinite(number.valueAsNumber)) return;
      range.value = number.value;
      apply(number.valueAsNumber);
    });
    number.addEventListener("change", () => {
      if (number.value === "") number.value = this.values[indices[0]];
    });
    const tick = element("span", { class: "tick", "aria-hidden": "true" });
    tick.style.setProperty("--learned", learned);
    const track = element("span", { class: "track" }, range, tick);
    const label = element("span", { class: "name", "aria-hidden": "true", text: name });
    return element("div", { class: "slider" }, label, track, number);
  }

  tools() {
    const set = (text, label, values) =>
      element("button", {
        type: "button",
        class: "small",
        text,
        "aria-label": label,
        click: () => this.set(values),
      });
    const all = (value) => this.model.learned.map(() => value);
    return element(
      "div",
      { class: "tools" },
      set("Reset to learned", `Reset gates ${this.label} to learned`, this.model.learned),
      set("All 0", `All gates ${this.label} 0`, all(0)),
      set("All 1", `All gates ${this.label} 1`, all(1)),
      element("span", { class: "hint tick-note", text: "learned value" }),
    );
  }
}

function hint(text) {
  return element("p", { class: "hint", text });
}

function rounded(value) {
  return Number(value.toFixed(4));
}
