// Tokens of an answer with how likely they were.

/**
 * @typedef {object} Piece
 * @property {string} text of one token, or of several that only together are a character
 * @property {string} title how likely it was, and what else could have come
 */

/** @returns {Piece[]} of a chunk of completions */
export function legacyPieces(logprobs) {
  return (logprobs?.tokens ?? []).map((text, i) => ({
    text,
    title: title(logprobs.token_logprobs[i], Object.entries(logprobs.top_logprobs?.[i] ?? {})),
  }));
}

/** @returns {Piece[]} of a chunk of a chat; `decoder` keeps characters that are not whole yet */
export function chatPieces(logprobs, decoder) {
  return (logprobs?.content ?? []).map((entry) => ({
    text: decoder.decode(new Uint8Array(entry.bytes), { stream: true }),
    title: title(
      entry.logprob,
      entry.top_logprobs.map((other) => [other.token, other.logprob]),
    ),
  }));
}

function title(logprob, likeliest) {
  if (logprob === null || logprob === undefined) return "";
  const others = likeliest.map(([token, value]) => `${JSON.stringify(token)} ${percent(value)}`);
  const list = others.length ? `; likeliest: ${others.join(", ")}` : "";
  return `${percent(logprob)} (log-probability ${logprob.toFixed(3)})${list}`;
}

function percent(logprob) {
  return `${(100 * Math.exp(logprob)).toPrecision(3)} %`;
}

/**
 * Cuts a text where its tokens and `places` are.
 *
 * @param {string} text
 * @param {Piece[]} pieces whose texts joined are the text, as far as they go; a first space may
 *   be missing in it
 * @param {number} place where it is cut in any case, in code units
 * @returns {[Piece[], Piece[]]} before and behind the place; what no token covers has no title
 */
export function cutPieces(text, pieces, place) {
  const sides = [[], []];
  let position = 0;
  const push = (part, title) => {
    const inside = Math.max(0, Math.min(part.length, place - position));
    if (inside > 0) sides[0].push({ text: part.slice(0, inside), title });
    if (inside < part.length) sides[1].push({ text: part.slice(inside), title });
    position += part.length;
  };
  for (const piece of pieces) {
    const spoken = position === 0 && !text.startsWith(piece.text) ? piece.text.trimStart() : piece.text;
    if (!text.startsWith(spoken, position)) break;
    if (spoken) push(spoken, piece.title);
  }
  if (position < text.length) push(text.slice(position), "");
  return sides;
}
