// What a task answers, drawn by its kind.

import { empty, h, hue, ms, percent, svg } from "./dom.js";

const BARS = 8;
const NUMBERS = 96;

// The card of one task's answer. `text` is the value of the task's only text field, where it has one.
export function drawAnswer(task, prediction, text) {
  const answer = prediction.answers[0];
  const parts = body(task, prediction, answer, text);
  return [parts, answer.truncated ? h("p", { class: "note" }, `Only the first ${task.max_source_tokens} tokens of the text were read.`) : null];
}

function body(task, prediction, answer, text) {
  if (answer.spans) return spans(answer.spans, text ?? "", prediction.labels ?? []);
  if (answer.embedding) return embedding(answer.embedding);
  if (answer.text !== undefined) return h("p", { class: "made" }, answer.text || h("span", { class: "muted" }, "an empty text"));
  if (answer.value !== undefined) return gauge(answer.value, task);
  if (answer.scores) return bars(prediction.labels ?? [], answer);
  if (answer.score !== undefined) return h("div", {}, h("p", { class: "verdict" }, percent(answer.score)), bar("score", answer.score, true));
  return empty("This kind of answer is not drawn here.", JSON.stringify(answer));
}

function bars(labels, answer) {
  const several = Array.isArray(answer.labels);
  const chosen = new Set(several ? answer.labels : [answer.label]);
  const order = answer.scores.map((score, index) => [labels[index] ?? String(index), score]);
  if (order.length > BARS) order.sort((one, other) => other[1] - one[1]);
  return h("div", {},
    h("p", { class: "verdict" }, several ? (answer.labels.length ? answer.labels.join(", ") : h("span", { class: "muted" }, "none of the labels")) : answer.label),
    h("div", { class: "bars" }, order.slice(0, BARS).map(([label, score]) => bar(label, score, chosen.has(label)))),
    order.length > BARS ? h("p", { class: "muted small" }, `and ${order.length - BARS} labels below these`) : null);
}

function bar(label, score, best) {
  return h("div", { class: `bar ${best ? "best" : ""}` }, h("span", { class: "bar-label", title: label }, label),
    h("span", { class: "track", "aria-hidden": "true" }, h("span", { style: { width: `${Math.max(0, Math.min(1, score)) * 100}%` } })), h("span", { class: "bar-value" }, percent(score)));
}

function gauge(value, task) {
  const { low, high } = task;
  const bounded = low !== undefined && high !== undefined;
  return h("div", {}, h("p", { class: "verdict" }, value.toFixed(3)),
    bounded ? h("div", { class: "gauge", "aria-hidden": "true" }, h("span", { class: "needle", style: { left: `${((value - low) / (high - low)) * 100}%` } })) : null,
    bounded ? h("p", { class: "ends muted small" }, h("span", {}, String(low)), h("span", {}, String(high))) : null);
}

function embedding(values) {
  const shown = values.slice(0, NUMBERS);
  const top = Math.max(...shown.map(Math.abs), 1e-9);
  const width = 4;
  return h("div", {}, h("p", { class: "verdict" }, `${values.length} numbers`),
    svg("svg", { class: "vector", viewBox: `0 -20 ${shown.length * width} 40`, preserveAspectRatio: "none", role: "img", "aria-label": `The first ${shown.length} numbers of the vector` },
      shown.map((value, index) => svg("rect", { x: index * width, width: width - 1, y: Math.min(0, (-value / top) * 19), height: Math.max(0.4, (Math.abs(value) / top) * 19), class: value < 0 ? "minus" : "plus" }))),
    h("p", { class: "mono small muted" }, `[${values.slice(0, 4).map((value) => value.toFixed(4)).join(", ")}, …]`));
}

// Positions count code points, not JavaScript's units.
function spans(found, text, labels) {
  if (!found.length) return h("div", {}, h("p", { class: "tagged" }, text), h("p", { class: "muted" }, "No entity found."));
  const characters = Array.from(text);
  const parts = [];
  let at = 0;
  for (const span of found) {
    parts.push(characters.slice(at, span.start).join(""));
    parts.push(h("mark", { class: `hue${labels.includes(span.label) ? labels.indexOf(span.label) % 8 : hue(span.label)}`, title: `${span.label}, ${percent(span.score)}` }, characters.slice(span.start, span.end).join(""), h("span", { class: "tag" }, span.label)));
    at = span.end;
  }
  parts.push(characters.slice(at).join(""));
  return h("div", {}, h("p", { class: "tagged" }, parts),
    h("ul", { class: "plain small" }, found.map((span) => h("li", {}, h("strong", {}, span.text), h("span", { class: "muted" }, ` ${span.label}, ${percent(span.score)}`)))));
}

// Whether two answers of one task say the same; null where that cannot be told.
export function sameAnswer(one, other) {
  const [a, b] = [one?.answers?.[0], other?.answers?.[0]];
  if (!a || !b) return null;
  if (a.spans) return JSON.stringify(a.spans.map(({ start, end, label }) => [start, end, label])) === JSON.stringify(b.spans.map(({ start, end, label }) => [start, end, label]));
  if (Array.isArray(a.labels)) return JSON.stringify([...a.labels].sort()) === JSON.stringify([...b.labels].sort());
  if (a.label !== undefined) return a.label === b.label;
  if (a.text !== undefined) return a.text === b.text;
  return null;
}

// Where the time of a request went: one backbone pass as one bar, side networks as slivers.
export function drawTimings(timings, { sides = [], title, trip, pieces } = {}) {
  const parts = [
    { key: "prepare", name: "Tokenize", seconds: timings.prepare_s, help: "texts to tokens, images to features" },
    { key: "queue", name: "Queue", seconds: timings.queue_s, help: "waiting for the device" },
    { key: "backbone", name: "Backbone", seconds: timings.backbone_s, help: timings.inputs && timings.cached_inputs === timings.inputs ? "known: its activations were in the cache" : "one pass, for every task" },
    ...(sides.length ? [{ key: "side", name: sides.length > 1 ? `${sides.length} side networks` : "Side network", seconds: timings.side_s, help: sides.length > 1 ? "together" : "" }] : []),
    ...(timings.decode_steps ? [{ key: "decode", name: "Decoding", seconds: timings.decode_s, help: `${timings.decode_steps} steps` }] : []),
  ];
  const known = parts.reduce((sum, part) => sum + part.seconds, 0);
  parts.push({ key: "rest", name: "Rest", seconds: Math.max(0, timings.total_s - known), help: "passing on, writing the answer" });
  const total = parts.reduce((sum, part) => sum + part.seconds, 0) || 1;
  const label = parts.map((part) => `${part.name} ${ms(part.seconds)}`).join(", ");
  return h("div", { class: "timing" },
    h("p", { class: "timing-head" }, h("span", {}, title), h("span", { class: "muted" }, `${ms(timings.total_s)} in the server${trip ? `, ${ms(trip)} for this page` : ""}${pieces ? `, first piece after ${ms(pieces)}` : ""}`)),
    h("div", { class: "lane", role: "img", "aria-label": label }, parts.filter((part) => part.seconds > 0).map((part) => h("span", { class: `seg ${part.key}`, style: { "flex-grow": String(part.seconds / total) }, title: `${part.name}: ${ms(part.seconds)}` },
      part.key === "side" ? sides.map((name) => h("span", { class: `sliver hue${hue(name)}` })) : null))),
    h("ul", { class: "legend" }, parts.map((part) => h("li", {}, h("span", { class: `key ${part.key}` }), h("strong", {}, part.name), ` ${ms(part.seconds)}`, part.help ? h("span", { class: "muted" }, ` ${part.help}`) : null))));
}
