// One of the two columns: its gates, its streamed answer, what was measured.

import { ApiError, stream } from "./api.js";
import { element, facts, short, spread } from "./dom.js";
import { GateControls } from "./gates.js";
import { gateStrip } from "./heatmap.js";
import { chatPieces, legacyPieces } from "./pieces.js";

const TOP_LOGPROBS = 4;

export class Column {
  /**
   * @param {string} label "A" or "B"
   * @param {{run: () => void, changed: () => void, grew: () => void}} calls run: its button was
   *   pressed; changed: its gates were; grew: its text was, or its state
   */
  constructor(label, calls) {
    this.label = label;
    this.calls = calls;
    this.text = "";
    this.pieces = []; // tokens of the text, see pieces.js
    this.others = []; // texts of further samples
    this.turns = []; // of a conversation, the answers that were given included
    this.answered = false; // something came since the last start
    this.outcome = null; // how the last run came to its end: "ended", "stopped" or "failed"
    this.gates = null; // GateControls; null for a plain model
    this.abort = null;
    this.root = document
      .getElementById("column-template")
      .content.firstElementChild.cloneNode(true);
    this.root.id = `column-${label.toLowerCase()}`;
    this.root.classList.add(label.toLowerCase());
    this.output = this.find(".output");
    this.find(".badge").textContent = label;
    this.find(".gates").setAttribute("aria-label", `Gates ${label}`);
    this.output.setAttribute("aria-label", `Answer ${label}`);
    this.prepareButtons();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  get running() {
    return this.abort !== null;
  }

  prepareButtons() {
    this.find(".run").textContent = `Generate ${this.label}`;
    this.find(".halt").textContent = `Stop ${this.label}`;
    this.find(".run").addEventListener("click", this.calls.run);
    this.find(".halt").addEventListener("click", () => this.stop());
  }

  /** Builds the gate controls, or says that there are none. */
  setModel(model, state) {
    const plain = model.n_gates === 0;
    this.find(".plain-note").hidden = !plain;
    this.find(".modes").hidden = plain;
    this.find(".modes").replaceChildren(this.find(".modes legend"));
    this.find(".controls").replaceChildren();
    this.gates = plain
      ? null
      : new GateControls(this.root, this.label, model, state, this.calls.changed);
  }

  /** Adds a button that takes over the other column's gates. */
  addCopy(other) {
    this.find("h3").append(
      element("button", {
        type: "button",
        class: "small",
        text: `Copy from ${other.label}`,
        click: () => this.gates.copy(other.gates),
      }),
    );
  }

  /** `fields` with this column's gates: the body of a request. */
  body(fields) {
    return this.gates === null ? fields : { ...fields, gates: this.gates.request };
  }

  stop() {
    this.abort?.abort();
  }

  /** Shows a mistake in what was to be asked, without asking. */
  refuse(error) {
    this.stop();
    this.begin();
    this.fail(error);
  }

  /** Ends the conversation. */
  forget() {
    this.stop();
    this.turns = [];
    this.showTurns();
  }

  /**
   * Streams one completion into the column; errors are shown in it.
   *
   * @param {object} fields of completions; a chat takes the prompt as its next message
   * @param {"text"|"chat"} kind
   */
  async generate(fields, kind = "text") {
    this.stop();
    const abort = new AbortController();
    this.abort = abort;
    this.begin();
    this.showTurns();
    // With the chosen tokens' log-probabilities a chunk says how many tokens it brings.
    const options = { stream: true, stream_options: { include_usage: true } };
    let [path, asked] = ["v1/completions", { ...fields, ...options, logprobs: TOP_LOGPROBS }];
    const said = { role: "user", content: fields.prompt };
    if (kind === "chat") {
      const { prompt, ...others } = fields;
      path = "v1/chat/completions";
      asked = { ...others, ...options, logprobs: true, top_logprobs: TOP_LOGPROBS };
      asked.messages = [...this.turns, said];
    }
    try {
      for await (const chunk of stream(path, this.body(asked), abort.signal)) {
        if (this.abort !== abort) return;
        this.take(chunk);
      }
      if (this.abort === abort && kind === "chat") {
        this.turns.push(said, { role: "assistant", content: this.text });
      }
      if (this.abort === abort) this.end("ended", this.reason === "length" ? "at max tokens" : null);
    } catch (error) {
      if (this.abort !== abort) return; // another run has taken over
      if (error.name === "AbortError") this.end("stopped");
      else this.fail(error);
      if (!(error instanceof ApiError || error.name === "AbortError")) throw error; // our own fault
    }
  }

  begin() {
    Object.assign(this, { pieces: [], others: [], decoder: new TextDecoder() });
    Object.assign(this, { text: "", answered: false, tokens: 0, reason: null, usage: null });
    this.outcome = null;
    Object.assign(this, { started: performance.now(), first: null, last: null });
    this.find(".answer .error").hidden = true;
    this.find(".used").hidden = true;
    this.showOthers();
    this.find(".facts").replaceChildren();
    this.busy(true);
    this.say("waiting");
    this.calls.grew();
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (choice === undefined) return;
    this.answered = true;
    const text = choice.text ?? choice.delta?.content ?? "";
    const gained = (choice.logprobs?.tokens ?? choice.logprobs?.content ?? []).length;
    if (choice.index === 0) {
      if (choice.gates) this.showUsed(choice, chunk);
      this.text += text;
      this.pieces.push(
        ...(choice.delta
          ? chatPieces(choice.logprobs, this.decoder)
          : legacyPieces(choice.logprobs)),
      );
      this.reason = choice.finish_reason ?? this.reason;
    } else {
      this.others[choice.index - 1] = (this.others[choice.index - 1] ?? "") + text;
      this.showOthers();
    }
    if (gained || text) {
      this.last = performance.now();
      this.first ??= this.last;
    }
    this.tokens += gained;
    this.say("streaming");
    this.measured();
    this.calls.grew();
  }

  /** @param {string} outcome see there; @param {string|null} words shown in place of it */
  end(outcome, words = null) {
    this.abort = null;
    this.answered = true;
    this.outcome = outcome;
    this.busy(false);
    this.say(words ?? outcome);
    this.measured();
    this.calls.grew();
  }

  /** Shows an error in place of the answer, or below what there is of it. */
  fail(error) {
    const box = this.find(".answer .error");
    const kind = [error.status || null, error.code].filter(Boolean).join(" ");
    box.textContent = kind ? `${error.message} (${kind})` : error.message;
    box.hidden = false;
    this.end("failed");
  }

  busy(running) {
    this.find(".halt").disabled = !running;
    this.output.setAttribute("aria-busy", String(running));
  }

  say(state) {
    const line = this.find(".state");
    if (line.textContent !== state) line.textContent = state;
    this.root.dataset.state = state;
  }

  measured() {
    if (this.first === null) return;
    const tokens = this.usage?.completion_tokens ?? this.tokens;
    const seconds = (this.last - this.first) / 1000;
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    const prompt = this.usage
      ? `${this.usage.prompt_tokens}${cached ? `, ${cached} cached` : ""}`
      : null;
    this.find(".facts").replaceChildren(
      ...facts([
        ["tokens", String(tokens)],
        ["tokens/s", seconds > 0 && tokens > 1 ? short((tokens - 1) / seconds, 1) : "–"],
        ["first token", `${short(this.first - this.started, 0)} ms`],
        ["prompt tokens", prompt],
      ]),
    );
  }

  /** What was said before, in a conversation. */
  showTurns() {
    const list = this.find(".history");
    const names = { user: "You", assistant: this.label };
    list.replaceChildren(
      ...this.turns.map(({ role, content }) =>
        element("li", { text: `${names[role]}: ${content}` }),
      ),
    );
    list.hidden = this.turns.length === 0;
  }

  /** Samples after the first. */
  showOthers() {
    const list = this.find(".others");
    list.replaceChildren(...[...this.others].map((text) => element("li", { text: text ?? "" })));
    list.hidden = this.others.length === 0;
  }

  /** The gates of a stream's first choice, and where its chunk says that they come from. */
  showUsed(choice, chunk) {
    const used = this.find(".used");
    const show = (of, gates, source, behaviour) => {
      const from = behaviour === null ? source : `${source} ${behaviour}`;
      used.append(
        element("h4", { text: `Gates used${of} (${from}): ${spread(gates)}` }),
        gateStrip(`gate used${of} in ${this.label}`, gates),
      );
    };
    used.replaceChildren();
    const which = choice.answer_gates ? " for the prompt" : "";
    show(which, choice.gates, chunk.gates_source, chunk.behaviour);
    if (choice.answer_gates) {
      const { answer_gates_source: source, answer_behaviour: behaviour } = chunk;
      show(" for the answer", choice.answer_gates, source, behaviour);
    }
    used.hidden = false;
  }
}
