// What a task answers, drawn by its kind.

import { empty, h, hue, ms, percent, svg } from "./dom.js";

const BARS = 8;
const NUMBERS = 96;

// The card of one task's answer. `text` is the value of the task's only text field, where it has one; `thresholds` are those
// of a multilabel version by label, where they are known.
export function drawAnswer(task, prediction, text, thresholds = {}) {
	const answer = prediction.answers[0];
	const parts = body(task, prediction, answer, text, thresholds);
	return [parts, answer.truncated ? h("p.note", `Only the first ${task.max_source_tokens} tokens of the text were read.`) : null];
}

function body(task, prediction, answer, text, thresholds) {
	if (answer.spans) return spans(answer.spans, text ?? "", prediction.labels ?? []);
	if (answer.embedding) return embedding(answer.embedding);
	if (answer.text !== undefined) return h("p.made", answer.text || h("span.muted", "an empty text"));
	if (answer.value !== undefined) return gauge(answer.value, task);
	if (answer.scores) return bars(prediction.labels ?? [], answer, thresholds);
	if (answer.relevance !== undefined) return h("div", h("p.verdict", percent(answer.relevance)), bar("relevance", answer.relevance, true));
	return empty("This kind of answer is not drawn here.", JSON.stringify(answer));
}

function bars(labels, answer, thresholds) {
	const several = Array.isArray(answer.labels);
	const chosen = new Set(several ? answer.labels : [answer.label]);
	const order = answer.scores.map((score, index) => [labels[index] ?? String(index), score]);
	if (order.length > BARS) order.sort((one, other) => chosen.has(other[0]) - chosen.has(one[0]) || other[1] - one[1]);
	return h("div",
		h("p.verdict", several ? (answer.labels.length ? answer.labels.join(", ") : h("span.muted", "none of the labels")) : answer.label),
		h("div.bars", order.slice(0, BARS).map(([label, score]) => bar(label, score, chosen.has(label), thresholds[label]))),
		several && Object.keys(thresholds).length ? h("p.muted.small", "A line marks the score from which a label is part of the answer.") : null,
		order.length > BARS ? h("p.muted.small", `and ${order.length - BARS} more labels`) : null);
}

function bar(label, score, best, threshold) {
	const share = (part) => `${Math.max(0, Math.min(1, part)) * 100}%`;
	const limit = threshold === undefined ? null : h("span.threshold", { style: { left: share(threshold) } });
	return h("div", { class: `bar ${best ? "best" : ""}` }, h("span.bar-label", { title: label }, label),
		h("span.score", { "aria-hidden": "true", title: limit && `threshold ${percent(threshold)}` }, h("span.track", h("span", { style: { width: share(score) } })), limit),
		h("span.bar-value", percent(score), limit ? h("span.unseen", `, threshold ${percent(threshold)}`) : null));
}

function gauge(value, task) {
	const { low, high } = task;
	const bounded = low !== undefined && high !== undefined;
	return h("div", h("p.verdict", value.toFixed(3)),
		bounded ? h("div.gauge", { "aria-hidden": "true" }, h("span.needle", { style: { left: `${((value - low) / (high - low)) * 100}%` } })) : null,
		bounded ? h("p.ends.muted.small", h("span", String(low)), h("span", String(high))) : null);
}

function embedding(values) {
	const shown = values.slice(0, NUMBERS);
	const top = Math.max(...shown.map(Math.abs), 1e-9);
	const width = 4;
	return h("div", h("p.verdict", `${values.length} numbers`),
		svg("svg", { class: "vector", viewBox: `0 -20 ${shown.length * width} 40`, preserveAspectRatio: "none", role: "img", "aria-label": `The first ${shown.length} numbers of the vector` },
			shown.map((value, index) => svg("rect", { x: index * width, width: width - 1, y: Math.min(0, (-value / top) * 19), height: Math.max(0.4, (Math.abs(value) / top) * 19), class: value < 0 ? "minus" : "plus" }))),
		h("p.mono.small.muted", `[${values.slice(0, 4).map((value) => value.toFixed(4)).join(", ")}, …]`));
}

// Positions count code points, not JavaScript's units.
function spans(found, text, labels) {
	if (!found.length) return h("div", h("p.tagged", text), h("p.muted", "No entity found."));
	const characters = Array.from(text);
	const parts = [];
	let at = 0;
	for (const span of found) {
		parts.push(characters.slice(at, span.start).join(""));
		parts.push(h("mark", { class: `hue${labels.includes(span.label) ? labels.indexOf(span.label) % 8 : hue(span.label)}`, title: `${span.label}, ${percent(span.score)}` }, characters.slice(span.start, span.end).join(""), h("span.tag", span.label)));
		at = span.end;
	}
	parts.push(characters.slice(at).join(""));
	return h("div", h("p.tagged", parts),
		h("ul.plain.small", found.map((span) => h("li", h("strong", span.text), h("span.muted", ` ${span.label}, ${percent(span.score)}`)))));
}

// Whether two answers of one task say the same; null where that cannot be told.
export function sameAnswer(one, other) {
	const [a, b] = [one, other].map((prediction) => said(prediction?.answers?.[0] ?? {}));
	return a === undefined || b === undefined ? null : a === b;
}

function said({ spans, labels, label, text }) {
	if (spans) return JSON.stringify(spans.map((span) => [span.start, span.end, span.label]));
	return Array.isArray(labels) ? JSON.stringify([...labels].sort()) : label ?? text;
}

// Where the time of a request went: one backbone pass as one bar, side networks as slivers.
export function drawTimings(timings, { sides = [], title, trip, pieces, pictures } = {}) {
	const parts = [
		{ key: "prepare", name: pictures ? "Tokens and pictures" : "Tokenize", seconds: timings.prepare_s },
		{ key: "queue", name: "Queue", seconds: timings.queue_s, help: "for the device" },
		{ key: "backbone", name: "Backbone", seconds: timings.backbone_s, help: timings.inputs && timings.cached_inputs === timings.inputs ? "its activations were in the cache" : "one pass, for every task" },
		...(sides.length ? [{ key: "side", name: sides.length > 1 ? `${sides.length} side networks` : "Side network", seconds: timings.side_s, help: sides.length > 1 ? "together" : "" }] : []),
		...(timings.decode_steps ? [{ key: "decode", name: "Decoding", seconds: timings.decode_s, help: `${timings.decode_steps} steps` }] : []),
	];
	const known = parts.reduce((sum, part) => sum + part.seconds, 0);
	parts.push({ key: "rest", name: "Rest", seconds: Math.max(0, timings.total_s - known), help: timings.decode_steps ? "between steps" : "passing on" });
	const total = parts.reduce((sum, part) => sum + part.seconds, 0) || 1;
	const label = parts.map((part) => `${part.name} ${ms(part.seconds)}`).join(", ");
	return h("div.timing",
		h("p.timing-head", h("span", title), h("span.muted", `${ms(timings.total_s)} in the server${trip ? `, ${ms(trip)} for this page` : ""}${pieces ? `, first piece after ${ms(pieces)}` : ""}`)),
		h("div.lane", { role: "img", "aria-label": label }, parts.filter((part) => part.seconds > 0).map((part) => h("span", { class: `seg ${part.key}`, style: { "flex-grow": String(part.seconds / total) }, title: `${part.name}: ${ms(part.seconds)}` },
			part.key === "side" ? sides.map((name) => h("span.sliver", { class: `hue${hue(name)}` })) : part.key === "backbone" && part.seconds > total / 5 ? h("span.seg-name", part.name) : null))),
		h("ul.legend", parts.map((part) => h("li", h("span", { class: `key ${part.key}` }), h("strong", part.name), ` ${ms(part.seconds)}`, part.help ? h("span.muted", ` ${part.help}`) : null))));
}
