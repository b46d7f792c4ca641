// Makes elements. Texts become text nodes only: nothing that a server sends is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

// h("a", {class: "x", href: "#", onclick: f}, "text", child, [children])
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  apply(element, properties);
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
  return [h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, title), lead ? h("p", { class: "lead" }, lead) : null)), ...children];
}

export function card(title, { extra, note, kind = "" } = {}, ...children) {
  return h("section", { class: `card ${kind}`, "aria-label": title },
    h("div", { class: "card-head" }, h("h2", {}, title), note ? h("p", { class: "muted" }, note) : null, extra ? h("div", { class: "extra" }, extra) : null),
    ...children);
}

export function empty(title, ...text) {
  return h("div", { class: "empty" }, h("strong", {}, title), h("p", {}, ...text));
}

export function badge(text, kind = "") {
  return h("span", { class: `badge ${kind}` }, text);
}

// A table that scrolls sideways where the window is narrow. Columns: {title, kind}.
export function table(label, columns, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {},
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.kind ?? "" }, column.title)))),
      h("tbody", {}, rows)));
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
  return `${Number.isInteger(value) ? value : value.toFixed(value > 0 && value < 0.1 ? 2 : digits)} %`;
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
  return h("time", { datetime: time, title: new Date(time).toLocaleString() }, ago(time));
}

const HUES = 8;

// The colour of a task: the same on every page.
export function hue(name) {
  let sum = 7;
  for (const character of name) sum = (sum * 31 + character.codePointAt(0)) % 9973;
  return sum % HUES;
}
