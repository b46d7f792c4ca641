// Makes elements. Texts become text nodes only: nothing that a server sends is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

// h("a.class.other", {href: "#", onclick: f}, "text", child, [children]); the object may be left out.
export function h(what, ...children) {
	const [tag, ...classes] = what.split(".");
	const element = document.createElement(tag);
	if (classes.length) element.className = classes.join(" ");
	if (children[0]?.constructor === Object) apply(element, children.shift());
	element.append(...kept(children));
	return element;
}

export function svg(tag, properties = {}, ...children) {
	const element = document.createElementNS(SVG, tag);
	apply(element, properties);
	element.append(...kept(children));
	return element;
}

function kept(children) {
	return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== "");
}

function apply(element, properties) {
	for (const [name, value] of Object.entries(properties)) {
		if (value === null || value === undefined || value === false) continue;
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else if (name === "style") for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
		else if (name === "class") element.setAttribute("class", `${element.getAttribute("class") ?? ""} ${value}`.trim());
		else if (name === "value" || name === "checked") element[name] = value;
		else element.setAttribute(name, value === true ? "" : String(value));
	}
}

// Replaces what a place shows. The focus stays on the element of the same data-key.
export function fill(place, ...children) {
	const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
	place.replaceChildren(...kept(children));
	if (key) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

export function notice(text, kind = "good") {
	const note = h("div", { class: `notice ${kind}` }, text);
	document.getElementById("notices").append(note);
	setTimeout(() => note.remove(), kind === "bad" ? 9000 : 5000);
}

export function page(title, lead, ...children) {
	document.title = `${title} · Sidecast`;
	return [h("div.head", h("div", h("h1", { tabindex: "-1" }, title), lead ? h("p.lead", lead) : null)), ...children];
}

export function card(title, { extra, note, kind = "" } = {}, ...children) {
	return h("section", { class: `card ${kind}`, "aria-label": title },
		h("div.card-head", h("h2", title), note ? h("p.muted", note) : null, extra ? h("div.extra", extra) : null),
		...children);
}

export function empty(title, ...text) {
	return h("div.empty", h("strong", title), h("p", ...text));
}

export function badge(text, kind = "") {
	return h("span", { class: `badge ${kind}` }, text);
}

// A table that scrolls sideways where the window is narrow. A column whose title begins with # has numbers. A row is a list
// of cells, the first of which heads it, and may have a `kind`.
export function table(label, titles, rows) {
	const kinds = titles.map((title) => (title[0] === "#" ? "number" : title === "Change" ? "actions" : title === "Trend" ? "trend" : null));
	return h("div.scroll", { tabindex: "0", role: "region", "aria-label": `Table: ${label}` },
		h("table",
			h("thead", h("tr", titles.map((title, index) => h("th", { scope: "col", class: kinds[index] }, title.replace("#", ""))))),
			h("tbody", rows.map((row) => h("tr", { class: row.kind }, row.map((cell, index) => (index ? h("td", { class: kinds[index] }, cell) : h("th", { scope: "row" }, cell))))))));
}

// A list of [title, value]; those without a value are left out.
export function facts(list, kind = "") {
	const there = list.filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false);
	return h("dl.facts", { class: kind }, there.map(([title, value]) => [h("dt", title), h("dd", value instanceof Node || Array.isArray(value) ? value : typeof value === "object" ? JSON.stringify(value) : String(value))]));
}

export function tile(title, value, more) {
	return h("div.tile", h("span.muted", title), h("strong", value), typeof more === "string" ? h("span.muted.small", more) : more);
}

export function sparkline(values, label) {
	const width = 96, height = 24;
	const top = Math.max(...values, 0);
	const points = values.map((value, index) => [
		values.length > 1 ? (index * width) / (values.length - 1) : width,
		top ? height - 2 - (value / top) * (height - 4) : height - 2,
	]);
	const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
	return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" },
		points.length > 1 ? svg("polygon", { class: "under", points: `0,${height} ${line} ${width},${height}` }) : null,
		points.length > 1 ? svg("polyline", { points: line }) : null);
}

// --- numbers as people read them

export function count(value) {
	if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
	if (value >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
	return String(Math.round(value));
}

export function rate(value) {
	if (!value) return "0";
	if (value < 10) return value.toFixed(1);
	return count(value);
}

export function ms(seconds) {
	if (seconds === null || seconds === undefined) return "–";
	const value = seconds * 1000;
	if (value >= 10000) return `${seconds.toFixed(1)} s`;
	return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

export function percent(part, digits = 1) {
	if (part === null || part === undefined) return "–";
	const value = part * 100;
	return `${Number.isInteger(value) ? value : value.toFixed(value > 0 && value < 0.1 ? 2 : digits)}\u00a0%`;
}

export function bytes(value) {
	const units = ["B", "KiB", "MiB", "GiB", "TiB"];
	let unit = 0;
	while (value >= 1024 && unit < units.length - 1) {
		value /= 1024;
		unit += 1;
	}
	return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function ago(time, now = Date.now()) {
	const seconds = Math.max(0, (now - new Date(time).getTime()) / 1000);
	for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
		if (seconds >= size) return `${Math.floor(seconds / size)} ${name} ago`;
	}
	return seconds < 5 ? "just now" : `${Math.floor(seconds)} s ago`;
}

export function when(time) {
	if (!time) return "–";
	return h("time", { datetime: new Date(time).toISOString(), title: new Date(time).toLocaleString() }, ago(time));
}

const HUES = 8;
const hues = new Map();

// The colour of a name, the same on every page: neighbours in the first list that is shown differ.
export function hue(name) {
	if (!hues.has(name)) hues.set(name, hues.size % HUES);
	return hues.get(name);
}
