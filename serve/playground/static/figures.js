// The answer of POST /v1/routing as what the page draws; no elements in here.

import { mean } from "./dom.js";

/**
 * @typedef {object} Sublayer means over the tokens
 * @property {string} name "layer0.attention"
 * @property {number} gate
 * @property {number[]} pre H_pre
 * @property {number[]} post H_post
 * @property {number[][]} res H_res; [i][j] is what stream i sends to stream j
 * @property {number[][]} mixed H_res after the gate: (1 - g) I + g H_res
 * @property {number} distance of `mixed` from the identity
 * @property {number} similarity of the streams before the sublayer
 * @property {number} gain of the product of all mixings so far
 * @property {number} rowError
 * @property {number} columnError
 * @property {object|null} tokens the same four figures and `res`, a list of one entry per token
 */

/** @returns {{streams: number, tokens: string[], source: string, sublayers: Sublayer[]}} */
export function readRouting(answer) {
  return {
    streams: answer.n_streams,
    tokens: answer.tokens.map(visible),
    source: answer.gates_source,
    sublayers: answer.sublayers.map((given, index) => ({
      ...readSublayer(given, answer.per_token),
      gain: answer.composite_gain[index],
    })),
  };
}

function readSublayer(given, perToken) {
  const average = perToken ? meanOf : (value) => value;
  const res = average(given.h_res);
  return {
    name: given.name,
    gate: given.gate,
    pre: average(given.h_pre),
    post: average(given.h_post),
    res,
    mixed: gated(res, given.gate),
    distance: average(given.identity_distance),
    similarity: average(given.stream_similarity),
    rowError: given.row_error,
    columnError: given.column_error,
    tokens: perToken
      ? {
          pre: given.h_pre,
          post: given.h_post,
          res: given.h_res,
          mixed: given.h_res.map((matrix) => gated(matrix, given.gate)),
          distance: given.identity_distance,
          similarity: given.stream_similarity,
        }
      : null,
  };
}

/** Mean over the first axis of nested lists. */
function meanOf(values) {
  if (!Array.isArray(values[0])) return mean(values);
  return values[0].map((_, index) => meanOf(values.map((value) => value[index])));
}

function gated(res, gate) {
  return res.map((row, i) => row.map((value, j) => (i === j ? 1 - gate : 0) + gate * value));
}

/** A token's text with its white space to be seen. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

/** What may be shown over the tokens: label, rows of values and the ends of the colour scale. */
export function tokenFigures(streams) {
  const each = Array.from({ length: streams }, (_, index) => index);
  const pairs = each.flatMap((i) => each.map((j) => `${i}→${j}`));
  const vector = (name) => (tokens) => each.map((i) => tokens[name].map((value) => value[i]));
  const matrix = (name) => (tokens) =>
    each.flatMap((i) => each.map((j) => tokens[name].map((value) => value[i][j])));
  return {
    mixed: { label: "H_res after the gate", rows: pairs, values: matrix("mixed"), range: [0, 1] },
    res: { label: "H_res before the gate", rows: pairs, values: matrix("res"), range: [0, 1] },
    pre: { label: "H_pre", rows: each.map(String), values: vector("pre"), range: [0, 1] },
    post: { label: "H_post", rows: each.map(String), values: vector("post"), range: [0, 2] },
    distance: {
      label: "identity distance",
      rows: ["‖·‖"],
      values: (tokens) => [tokens.distance],
      range: [0, Math.sqrt(2 * streams)],
    },
    similarity: {
      label: "stream similarity",
      rows: ["cos"],
      values: (tokens) => [tokens.similarity],
      range: [-1, 1],
    },
  };
}
