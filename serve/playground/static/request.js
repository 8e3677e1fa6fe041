// The form: what it asks for, and what is wrong with it, said before the server is asked.

const NUMBERS = {
  "max-tokens": ["Max tokens", "max_tokens"],
  temperature: ["Temperature", "temperature"],
  "top-p": ["Top-p", "top_p"],
  seed: ["Seed", "seed"],
  samples: ["Samples", "n"],
};
const MOST_STOPS = 16;

/** Stop strings: one a line, `\\n` in one is a line break. */
export function stopsOf(text) {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replaceAll("\\n", "\n"));
}

/**
 * @param {HTMLFormElement} form
 * @param {string} context most tokens of prompt and answer
 * @returns {string|null} what is wrong, with what is allowed; null if nothing is
 */
export function problemOf(form, context) {
  const at = (id) => form.querySelector(`#${id}`);
  if (at("prompt").value === "") return "The prompt is empty: write one, or take the example.";
  for (const [id, [name]] of Object.entries(NUMBERS)) {
    const input = at(id);
    if (input.validity.badInput) return `${name} is no number.`;
    const why = id === "max-tokens" ? `the context is ${context} tokens: ` : "";
    const limits = `${why}give ${input.min} to ${input.max}`;
    const { rangeOverflow, rangeUnderflow, stepMismatch } = input.validity;
    if (rangeOverflow || rangeUnderflow) return `${name} is ${input.value}; ${limits}.`;
    if (stepMismatch && input.step === "1") return `${name} is ${input.value}; give a whole number.`;
  }
  const count = stopsOf(at("stop-strings").value).length;
  if (count > MOST_STOPS) return `There are ${count} stop strings; give at most ${MOST_STOPS}.`;
  return null;
}

/** The form's fields of a request; what is left empty is left out. */
export function readFields(form) {
  const at = (id) => form.querySelector(`#${id}`);
  const fields = { prompt: at("prompt").value };
  for (const [id, [, name]] of Object.entries(NUMBERS)) {
    if (at(id).value !== "") fields[name] = at(id).valueAsNumber;
  }
  const stop = stopsOf(at("stop-strings").value);
  return stop.length ? { ...fields, stop } : fields;
}
