// The routes of openapi.json, to be read: the page loads nothing from elsewhere.

import { get } from "./api.js";
import { element } from "./dom.js";

const at = (id) => document.getElementById(id);
const MOST_DEPTH = 3;

let schemas = {};

async function load() {
  try {
    const document = await get("openapi.json");
    schemas = document.components?.schemas ?? {};
    at("operations").replaceChildren(...operations(document.paths));
    at("notice").hidden = true;
  } catch (error) {
    at("notice").textContent = error.message;
    at("notice").hidden = false;
  }
}

function operations(paths) {
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => section(path, method, operation)),
  );
}

function section(path, method, operation) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const answer = operation.responses?.["200"]?.content?.["application/json"]?.schema;
  const parameters = operation.parameters ?? [];
  return element(
    "section",
    { class: "card operation" },
    element("h2", { text: `${method.toUpperCase()} ${path}` }),
    element("p", { text: operation.description ?? operation.summary ?? "" }),
    ...(parameters.length ? [element("h3", { text: "In the path" }), named(parameters)] : []),
    ...(body ? [element("h3", { text: "Request" }), fields(body)] : []),
    ...(answer ? [element("h3", { text: "Answer" }), fields(answer)] : []),
    element("p", { class: "hint", text: `Status: ${Object.keys(operation.responses).join(", ")}` }),
  );
}

function named(parameters) {
  return table(parameters.map((each) => [each.name, words(each.schema), "", ""]));
}

/** A table of an object's fields; anything else in words. */
function fields(schema) {
  const found = resolved(schema);
  if (!found.properties) return element("p", { text: words(schema) });
  const required = found.required ?? [];
  return table(
    Object.entries(found.properties).map(([name, field]) => [
      name,
      words(field),
      required.includes(name) ? "required" : shown(field.default),
      field.description ?? "",
    ]),
  );
}

function table(rows) {
  const line = (tag, cells) =>
    element("tr", {}, ...cells.map((text) => element(tag, { text })));
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      element("thead", {}, line("th", ["field", "allowed", "default", ""])),
      element("tbody", {}, ...rows.map((row) => line("td", row))),
    ),
  );
}

function resolved(schema) {
  const name = schema?.$ref?.split("/").pop();
  return name ? (schemas[name] ?? {}) : (schema ?? {});
}

function shown(value) {
  return value === undefined || value === null ? "" : JSON.stringify(value);
}

/** What a schema allows, in words. */
function words(schema, depth = 0) {
  if (schema?.$ref && depth > 0) return schema.$ref.split("/").pop();
  const found = resolved(schema);
  if (depth > MOST_DEPTH) return "…";
  const options = found.anyOf ?? found.oneOf;
  if (options) {
    const kinds = options.filter((each) => each.type !== "null");
    return kinds.map((each) => words(each, depth + 1)).join(" or ");
  }
  if (found.enum) return found.enum.map(shown).join(", ");
  if (found.const !== undefined) return shown(found.const);
  const kind = schema?.$ref ? schema.$ref.split("/").pop() : (found.type ?? "any");
  if (found.type === "array") return `list of ${words(found.items ?? {}, depth + 1)}`;
  return [kind, bounds(found)].filter(Boolean).join(" ");
}

function bounds(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  if (low === undefined && high === undefined) return "";
  if (high === undefined) return `from ${low}`;
  return low === undefined ? `up to ${high}` : `${low} to ${high}`;
}

load();
