// What the address keeps after the #: prompt, sampling and the gates of both columns.

export const EXAMPLE =
  "Question: Tom has 7 apples. He buys 5 more apples. How many apples does Tom have now?\nAnswer:";

export const DEFAULTS = {
  prompt: EXAMPLE,
  maxTokens: "48",
  temperature: "0",
  topP: "1",
  seed: "0",
  samples: "1",
  stop: "",
  kind: "text",
  a: { mode: "learned", values: null },
  b: { mode: "global", values: [0] },
};

const FIELDS = {
  prompt: "p",
  maxTokens: "m",
  temperature: "t",
  topP: "tp",
  seed: "s",
  samples: "n",
  stop: "st",
  kind: "k",
};
const MODES = ["learned", "policy", "behaviour", "between", "global", "layer", "sublayer"];
const NAMED = ["behaviour", "between"]; // their names stand before their numbers

/** The state of an address; what is missing or makes no sense is as in DEFAULTS. */
export function readState(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const [field, name] of Object.entries(FIELDS)) {
    if (given.has(name)) state[field] = given.get(name);
  }
  if (!["text", "chat"].includes(state.kind)) state.kind = DEFAULTS.kind;
  for (const column of ["a", "b"]) {
    state[column] = readGates(given.get(column)) ?? DEFAULTS[column];
  }
  return state;
}

function readGates(text) {
  const [mode, rest] = (text ?? "").split(":");
  if (!MODES.includes(mode)) return null;
  const parts = rest ? rest.split(",") : [];
  const names = NAMED.includes(mode) ? parts.filter((part) => /^[A-Za-z]/.test(part)) : [];
  const values = parts.slice(names.length).map(Number);
  if (!values.every(Number.isFinite)) return null;
  return { mode, names, values: values.length ? values : null };
}

/** The fragment of a state; `gates` as `GateControls.state` gives them. */
export function writeState(state) {
  const fields = new URLSearchParams();
  for (const [field, name] of Object.entries(FIELDS)) fields.set(name, state[field]);
  for (const column of ["a", "b"]) {
    const { mode, names, values } = state[column];
    const parts = [...(names ?? []), ...(values ?? [])];
    fields.set(column, parts.length ? `${mode}:${parts.join(",")}` : mode);
  }
  return `#${fields}`;
}
