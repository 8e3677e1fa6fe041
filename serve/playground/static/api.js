// Calls to the server: key, error envelope, server-sent events.

const STORED_KEY = "mhc-gates-key";

let key = "";
try {
  key = sessionStorage.getItem(STORED_KEY) ?? "";
} catch {
  // Storage is switched off: the key lives in this variable only.
}

/** An error of the API, or of the way to it. */
export class ApiError extends Error {
  /**
   * @param {string} message readable as it is
   * @param {number} status HTTP status of the refusal; 0 where it came later, or no answer at all
   * @param {string|null} code of the envelope
   */
  constructor(message, status, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function apiKey() {
  return key;
}

/** @param {string} value kept for this tab; never in the address */
export function setApiKey(value) {
  key = value;
  try {
    sessionStorage.setItem(STORED_KEY, value);
  } catch {
    // As above.
  }
}

/** @returns {Promise<any>} the JSON of a GET */
export async function get(path, signal) {
  return (await call(path, { signal })).json();
}

/** @returns {Promise<any>} the JSON of a POST */
export async function post(path, body, signal) {
  return (await call(path, { ...posted(body), signal })).json();
}

/** The parsed events of a streamed POST, until `[DONE]`. */
export async function* stream(path, body, signal) {
  const response = await call(path, { ...posted(body), signal });
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, 0, event.error.code);
    yield event;
  }
  throw new ApiError("the connection ended before the answer did", 0);
}

function posted(body) {
  return {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
}

async function call(path, options) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server cannot be reached", 0);
  }
  if (!response.ok) throw await asError(response);
  return response;
}

async function asError(response) {
  const text = await response.text();
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(message, response.status, code);
  } catch {
    // Not our envelope: a proxy's page, for example.
    return new ApiError(response.statusText || "no readable answer", response.status);
  }
}

/** The data of each event; comments and other fields are skipped. */
async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // already broken where the request was stopped
  }
}
