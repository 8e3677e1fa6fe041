// The routing section: charts over depth, heatmaps per sublayer, values over tokens, a table.

import { lineChart } from "./charts.js";
import { scaleBar } from "./colours.js";
import { element, formula, short } from "./dom.js";
import { tokenFigures } from "./figures.js";
import { heatmap } from "./heatmap.js";

const LARGEST_WRITTEN = 6; // streams up to which a cell has room for its number

export class RoutingView {
  constructor() {
    this.figures = {}; // label -> figures, or an Error
    this.selected = 0;
    this.tokenFigure = "mixed";
    this.panels = {};
    const select = document.getElementById("token-figure");
    for (const [value, { label }] of Object.entries(tokenFigures(1))) {
      select.append(element("option", { value, text: label }));
    }
    select.addEventListener("change", () => {
      this.tokenFigure = select.value;
      this.drawSelected();
    });
    const sublayer = document.getElementById("sublayer");
    sublayer.addEventListener("change", () => this.select(Number(sublayer.value)));
    for (const label of ["A", "B"]) this.addPanel(label);
    document
      .getElementById("legend")
      .append(
        element("span", { text: "0" }),
        scaleBar(),
        element("span", {}, ...formula("1 (gates, H_pre, H_res) or 2 (H_post)")),
      );
  }

  addPanel(label) {
    const parts = {
      error: element("p", { class: "error", role: "alert", hidden: true }),
      detail: element("div", { class: "detail" }),
      tokens: element("div", { class: "tokens" }),
      cards: element("fieldset", { class: "cards" }),
      table: element("details", { class: "values" }),
    };
    const head = element("h3", {}, element("span", { class: "badge", text: label }), " Routing");
    const panel = element(
      "article",
      { class: `panel ${label.toLowerCase()}`, "aria-label": `Routing ${label}` },
      head,
      ...Object.values(parts),
    );
    this.panels[label] = { ...parts, panel };
    document.getElementById("routing-columns").append(panel);
  }

  /** @param {string} label @param {object|Error} figures what `readRouting` gives, or why not */
  show(label, figures) {
    this.figures[label] = figures;
    const { error, detail, tokens, cards, table } = this.panels[label];
    const failed = figures instanceof Error;
    error.hidden = !failed;
    error.textContent = failed ? figures.message : "";
    for (const part of [detail, tokens, cards, table]) part.hidden = failed;
    document.getElementById("routing-view").hidden = false;
    if (!failed) {
      this.drawNames(figures.sublayers);
      this.drawCards(label, figures);
      this.drawTable(label, figures);
    }
    this.drawSelected();
  }

  get shown() {
    return Object.entries(this.figures).filter(([, figures]) => !(figures instanceof Error));
  }

  drawNames(sublayers) {
    const select = document.getElementById("sublayer");
    if (select.options.length) return;
    const option = ({ name }, value) => element("option", { value, text: readable(name) });
    select.append(...sublayers.map(option));
  }

  select(index) {
    this.selected = index;
    document.getElementById("sublayer").value = index;
    for (const [label] of this.shown) {
      this.panels[label].cards.querySelector(`input[value="${index}"]`).checked = true;
    }
    this.drawSelected();
  }

  /** All that depends on the selected sublayer. */
  drawSelected() {
    this.drawCharts();
    document.getElementById("token-tools").hidden = !this.shown.some(
      ([, figures]) => figures.sublayers[0].tokens,
    );
    for (const [label, figures] of this.shown) {
      const sublayer = figures.sublayers[this.selected];
      this.panels[label].detail.replaceChildren(...this.detail(figures.streams, sublayer));
      this.drawTokens(label, figures, sublayer);
    }
  }

  drawCharts() {
    const charts = document.getElementById("charts");
    charts.hidden = this.shown.length === 0;
    if (charts.hidden) return;
    const names = this.shown[0][1].sublayers.map(({ name }) => name);
    const draw = (title, field, low, high) => {
      const series = this.shown.map(([label, figures]) => ({
        label,
        values: figures.sublayers.map((sublayer) => sublayer[field]),
      }));
      return lineChart(title, series, [low, high], this.selected, names, (k) => this.select(k));
    };
    charts.replaceChildren(
      draw("Identity distance", "distance", 0, 0.5),
      draw("Stream similarity", "similarity", 0, 1),
      draw("Composite gain", "gain", 0, 2),
    );
  }

  /** The four maps of one sublayer, large. */
  detail(streams, sublayer) {
    const each = names(streams);
    const numbers = streams <= LARGEST_WRITTEN;
    const size = Math.max(16, Math.min(34, 136 / streams));
    const draw = (name, values, range, rows, columns) =>
      element(
        "figure",
        {},
        heatmap({
          name,
          values,
          range,
          rows,
          columns,
          numbers,
          cell: [size, values.length === 1 ? 22 : size],
          focusable: true,
        }),
        element("figcaption", {}, ...formula(name)),
      );
    const from = each.map((i) => `from stream ${i}`);
    const to = each.map((i) => `to ${i}`);
    return [
      element("h4", { text: `${readable(sublayer.name)}, gate ${short(sublayer.gate)}` }),
      element(
        "div",
        { class: "maps" },
        draw("H_res", sublayer.res, [0, 1], from, to),
        draw("H_res after the gate", sublayer.mixed, [0, 1], from, to),
        element(
          "div",
          { class: "rows" },
          draw(
            "H_pre",
            [sublayer.pre],
            [0, 1],
            [""],
            each.map((i) => `stream ${i}`),
          ),
          draw(
            "H_post",
            [sublayer.post],
            [0, 2],
            [""],
            each.map((i) => `stream ${i}`),
          ),
        ),
      ),
      element("p", { class: "hint", text: "Row i, column j: what stream i sends to stream j." }),
    ];
  }

  drawTokens(label, figures, sublayer) {
    const place = this.panels[label].tokens;
    place.hidden = sublayer.tokens === null;
    if (place.hidden) return;
    const figure = tokenFigures(figures.streams)[this.tokenFigure];
    const map = heatmap({
      name: `${figure.label} over tokens`,
      rows: figure.rows,
      columns: figures.tokens.map((text, index) => `token ${index} “${text}”`),
      values: figure.values(sublayer.tokens),
      range: figure.range,
      cell: [16, 14],
      focusable: true,
    });
    const [low, high] = figure.range.map((end) => short(end, 2));
    const rows = figure.rows.map((text) => element("span", { text }));
    const tokens = figures.tokens.map((text) => element("span", { text }));
    place.replaceChildren(
      element("h4", {}, ...formula(`${figure.label} over tokens (colours: ${low} to ${high})`)),
      element(
        "div",
        { class: "token-map" },
        element("div", { class: "token-rows", "aria-hidden": "true" }, ...rows),
        element(
          "div",
          { class: "scroll" },
          map,
          element("div", { class: "token-names", "aria-hidden": "true" }, ...tokens),
        ),
      ),
    );
  }

  /** Every sublayer small; they are radio buttons, so that arrow keys choose one. */
  drawCards(label, figures) {
    const each = names(figures.streams);
    const size = 40 / figures.streams;
    const draw = (name, values, range, rows) =>
      heatmap({
        name,
        values,
        range,
        rows,
        columns: each.map((j) => `to ${j}`),
        cell: [size, size],
        fluid: true,
      });
    const cards = figures.sublayers.map((sublayer, index) => {
      const name = readable(sublayer.name);
      const row = (title, values, range) =>
        heatmap({
          name: `${name} ${title}`,
          values: [values],
          range,
          rows: [""],
          columns: each.map((i) => `stream ${i}`),
          cell: [size, 7],
          fluid: true,
        });
      const from = each.map((i) => `from ${i}`);
      return element(
        "label",
        { class: "sublayer" },
        element("input", {
          type: "radio",
          name: `sublayer-${label}`,
          value: index,
          checked: index === this.selected,
          "aria-label": `${name}, gate ${short(sublayer.gate)}`,
          change: () => this.select(index),
        }),
        element(
          "span",
          { class: "title", "aria-hidden": "true" },
          brief(sublayer.name),
          element("b", { text: sublayer.gate.toFixed(2) }),
        ),
        element(
          "span",
          { class: "minis", "aria-hidden": "true" },
          draw(`${name} H_res`, sublayer.res, [0, 1], from),
          draw(`${name} H_res after the gate`, sublayer.mixed, [0, 1], from),
          row("H_pre", sublayer.pre, [0, 1]),
          row("H_post", sublayer.post, [0, 2]),
        ),
      );
    });
    const { cards: place } = this.panels[label];
    const focused = place.contains(document.activeElement);
    place.replaceChildren(
      element(
        "legend",
        {},
        ...formula("All sublayers, each with its gate: H_res before and after it; H_pre, H_post"),
      ),
      ...cards,
    );
    if (focused) place.querySelector("input:checked").focus();
  }

  drawTable(label, figures) {
    const titles = [
      "sublayer",
      "gate",
      "H_pre",
      "H_post",
      "H_res",
      "H_res after the gate",
      "identity distance",
      "stream similarity",
      "composite gain",
      "row error",
      "column error",
    ];
    const matrix = (rows) => rows.map((row) => list(row)).join("; ");
    const rows = figures.sublayers.map((each) => [
      each.name,
      short(each.gate, 4),
      list(each.pre),
      list(each.post),
      matrix(each.res),
      matrix(each.mixed),
      short(each.distance, 4),
      short(each.similarity, 4),
      short(each.gain, 4),
      each.rowError.toExponential(1),
      each.columnError.toExponential(1),
    ]);
    const cell = (text, index) =>
      element(index ? "td" : "th", { text, scope: index ? null : "row" });
    this.panels[label].table.replaceChildren(
      element("summary", { text: `Values of ${label} as a table` }),
      element(
        "div",
        { class: "scroll", tabindex: 0, role: "group", "aria-label": `Table of ${label}` },
        element(
          "table",
          {},
          element("caption", {
            text: "Means over the tokens; rows of H_res are separated by semicolons.",
          }),
          element(
            "thead",
            {},
            element("tr", {}, ...titles.map((text) => element("th", { text, scope: "col" }))),
          ),
          element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))),
        ),
      ),
    );
  }
}

function names(count) {
  return Array.from({ length: count }, (_, index) => String(index));
}

function list(values) {
  return values.map((value) => short(value, 4)).join(", ");
}

/** "layer0.attention" as "layer 0 attention". */
function readable(name) {
  return name.replace(/^layer(\d+)\./, "layer $1 ");
}

/** "layer0.attention" as "0 attn". */
function brief(name) {
  return name
    .replace(/^layer/, "")
    .replace(".", " ")
    .replace("attention", "attn");
}
