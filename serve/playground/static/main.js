// Puts the page together: what is asked, two columns, routing, the address.

import { ApiError, apiKey, get, post, setApiKey } from "./api.js";
import { Column } from "./column.js";
import { debounced, facts } from "./dom.js";
import { problemOf, readFields } from "./request.js";
import { readRouting } from "./figures.js";
import { compare } from "./parting.js";
import { RoutingView } from "./routing.js";
import { EXAMPLE, readState, writeState } from "./state.js";

const FIELDS = {
  prompt: "prompt",
  maxTokens: "max-tokens",
  temperature: "temperature",
  topP: "top-p",
  seed: "seed",
  samples: "samples",
  stop: "stop-strings",
  kind: "kind",
};
const RETRY_MS = 1000;
const at = (id) => document.getElementById(id);

let columns = [];
let routing = null; // RoutingView, made when it is first asked for
let routingAbort = null;
let loaded = false;

function start() {
  columns = ["A", "B"].map(
    (label, index) =>
      new Column(label, {
        run: () => generate([columns[index]]),
        changed: gatesChanged,
        grew: redraw,
      }),
  );
  at("columns").append(...columns.map((column) => column.root));
  const state = readState(location.hash);
  for (const [field, id] of Object.entries(FIELDS)) at(id).value = state[field];
  at("api-key").value = apiKey();
  listen();
  showKind();
  loadModel(state);
}

function listen() {
  at("request").addEventListener("submit", (event) => {
    event.preventDefault();
    generate(columns);
  });
  at("request").addEventListener("input", remember);
  at("prompt").addEventListener("input", followed);
  at("kind").addEventListener("change", () => {
    showKind();
    columns.forEach((column) => column.forget());
  });
  at("new-chat").addEventListener("click", () => columns.forEach((column) => column.forget()));
  at("example").addEventListener("click", () => {
    at("prompt").value = EXAMPLE;
    remember();
    followed();
  });
  at("stop").addEventListener("click", stopAll);
  at("api-key").addEventListener("change", () => {
    setApiKey(at("api-key").value.trim());
    if (!loaded) loadModel(readState(location.hash));
  });
  at("show-routing").addEventListener("click", showRouting);
  for (const id of ["routing-text", "per-token", "follow"]) {
    at(id).addEventListener("change", () => routing && at("follow").checked && showRouting());
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      generate(columns);
    } else if (event.key === "Escape") stopAll();
  });
}

/** What a chat needs is shown for one. */
function showKind() {
  const chat = at("kind").value === "chat";
  at("prompt-label").textContent = chat ? "Message" : "Prompt";
  at("new-chat").hidden = !chat;
}

async function loadModel(state, since = performance.now()) {
  try {
    const [{ data }, gates] = await Promise.all([get("v1/models"), get("v1/gates")]);
    at("notice").hidden = true;
    loaded = true;
    describe(data[0], gates);
    columns.forEach((column, index) => column.setModel(gates, index ? state.b : state.a));
    if (gates.n_gates) {
      columns[0].addCopy(columns[1]);
      columns[1].addCopy(columns[0]);
    }
    if (gates.n_streams > 1) at("routing").hidden = false;
  } catch (error) {
    if (error instanceof ApiError && [0, 502, 503, 504].includes(error.status)) {
      const seconds = Math.round((performance.now() - since) / 1000);
      at("notice").textContent = `Waiting for the server, ${seconds} s: ${error.message}`;
      at("notice").hidden = false;
      setTimeout(() => loadModel(state, since), RETRY_MS);
      return;
    }
    const advice = error.status === 401 ? "Enter the server's API key above. " : "";
    at("notice").textContent = advice + readable(error);
    at("notice").hidden = false;
    if (error.status === 401) at("api-key").focus();
    if (!(error instanceof ApiError)) throw error; // our own fault
  }
}

function describe(card, gates) {
  at("model").replaceChildren(
    ...facts([
      ["model", card.id],
      ["checkpoint", card.checkpoint.slice(0, 12)],
      ["layers", String(gates.n_layers)],
      ["streams", gates.n_streams > 1 ? String(gates.n_streams) : null],
      ["context", `${card.max_model_len} tokens`],
    ]),
  );
  document.title = `${card.id} – mHC playground`;
  at("max-tokens").max = card.max_model_len;
}

async function generate(chosen) {
  if (!loaded) return;
  const problem = problemOf(at("request"), at("max-tokens").max);
  if (problem !== null) {
    chosen.forEach((column) => column.refuse(new ApiError(problem, 0)));
    return;
  }
  const fields = readFields(at("request"));
  await Promise.all(chosen.map((column) => column.generate(fields, at("kind").value)));
  if (routing && at("follow").checked && !columns.some((column) => column.running)) showRouting();
}

function stopAll() {
  for (const column of columns) column.stop();
}

let drawing = false;

/** Texts and buttons, at most once a frame. */
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    compare(...columns, at("parting"));
    at("stop").disabled = !columns.some((column) => column.running);
  });
}

const remember = debounced(() => {
  if (!loaded) return;
  const state = {};
  for (const [field, id] of Object.entries(FIELDS)) state[field] = at(id).value;
  const gates = columns.map((column) => column.gates?.state ?? { mode: "learned", values: null });
  [state.a, state.b] = gates;
  history.replaceState(null, "", writeState(state));
}, 300);

const followed = debounced(() => {
  if (!routing) return;
  if (at("follow").checked) showRouting();
  else at("routing-status").textContent = "Prompt or gates have changed since.";
}, 300);

function gatesChanged() {
  remember();
  followed();
}

/** Asks for the routing of both columns; a newer call ends an older one. */
async function showRouting() {
  followed.cancel();
  routingAbort?.abort();
  const abort = new AbortController();
  routingAbort = abort;
  routing ??= new RoutingView();
  at("routing-status").textContent = "Reading …";
  const answers = await Promise.all(columns.map((column) => routingOf(column, abort.signal)));
  if (routingAbort !== abort) return;
  answers.forEach((figures, index) => routing.show(columns[index].label, figures));
  const read = answers.find((figures) => !(figures instanceof Error));
  at("routing-status").textContent = read ? `Means over ${read.tokens.length} tokens.` : "";
}

async function routingOf(column, signal) {
  const whole = at("routing-text").value === "answer";
  const prompt = at("prompt").value + (whole ? column.text : "");
  try {
    const body = column.body({ prompt, per_token: at("per-token").checked });
    return readRouting(await post("v1/routing", body, signal));
  } catch (error) {
    if (!(error instanceof ApiError || error.name === "AbortError")) throw error;
    return new Error(readable(error));
  }
}

function readable(error) {
  if (!(error instanceof ApiError)) return error.message;
  return error.status ? `${error.message} (${error.status})` : error.message;
}

start();
