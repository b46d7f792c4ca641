// All tasks, and how much is asked of them.

import { get } from "./api.js";
import { badge, empty, fill, h, hue, ms, page, percent, rate, sparkline, tile } from "./dom.js";
import { live } from "./live.js";

const EVERY_MS = 5000;
export const KINDS = { token_classification: "entities", multilabel: "several labels" };

export async function showTasks(main, _, query, current) {
	let tasks = (await get("v1/tasks")).tasks;
	if (!current()) return undefined;
	const figures = h("div.tiles");
	const list = h("div");
	const search = h("input", { type: "search", id: "search", "data-key": "search", placeholder: "Find a task", "aria-label": "Find a task", value: query.get("find") ?? "", oninput: () => draw() });
	let cells = [];

	function draw() {
		const wanted = search.value.trim().toLowerCase();
		const found = tasks.filter((task) => !wanted || `${task.task} ${task.kind ?? ""} ${task.description ?? ""}`.toLowerCase().includes(wanted));
		cells = [];
		if (!tasks.length) {
			fill(list, empty("No task is published yet.", "Publish a trained run: ", h("code", "sidecast publish RUN --registry R"), ". It shows up here within a second. With a token, you see the tasks that it may read."));
			return;
		}
		if (!found.length) {
			fill(list, empty(`No task matches “${search.value}”.`));
			return;
		}
		fill(list, h("table.list",
			h("thead", h("tr",
				h("th", { scope: "col" }, "Task"), h("th", { scope: "col", class: "wide" }, "Kind"), h("th", { scope: "col" }, "Serving"),
				h("th", { scope: "col", class: "number" }, "Req/s"), h("th", { scope: "col", class: "trend wide" }, "Last minute"),
				h("th", { scope: "col", class: "number wide" }, "p50"), h("th", { scope: "col", class: "number" }, "p99"),
				h("th", { scope: "col", class: "number wide" }, "Errors"), h("th", { scope: "col", class: "number wide" }, "Cached"))),
			h("tbody", found.map(row))));
		update();
	}

	function row(task) {
		const cell = {};
		for (const name of ["rate", "p50", "p99", "errors", "cached"]) cell[name] = h("td", { class: `number ${["p50", "errors", "cached"].includes(name) ? "wide" : ""}` }, "–");
		cell.trend = h("td.trend.wide");
		cells.push([task.task, cell]);
		return h("tr", { class: `hue${hue(task.task)}` },
			h("th", { scope: "row" },
				h("a.name", { href: `#/tasks/${encodeURIComponent(task.task)}`, "data-key": `task ${task.task}` }, h("span.swatch"), h("span", task.task)),
				task.description ? h("span.about", task.description) : null),
			h("td.wide", task.kind ? badge(KINDS[task.kind] ?? task.kind) : badge("not loaded", "warn")),
			h("td", serving(task)),
			cell.rate, cell.trend, cell.p50, cell.p99, cell.errors, cell.cached);
	}

	function update() {
		drawFigures(figures, live, () => true);
		for (const [name, cell] of cells) {
			const own = live.figures((entry) => entry.task === name);
			cell.rate.textContent = live.ready ? rate(own.rate) : "–";
			cell.p50.textContent = ms(own.p50);
			cell.p99.textContent = ms(own.p99);
			cell.errors.textContent = percent(own.errors);
			cell.errors.classList.toggle("bad-text", own.errors > 0);
			cell.cached.textContent = percent(own.cached, 0);
			cell.trend.replaceChildren(...(own.requests ? [sparkline(own.series, `Requests for ${name} in the last minute`)] : []));
		}
	}

	fill(main, ...page("Tasks", `${tasks.length} ${tasks.length === 1 ? "task" : "tasks"} on one backbone`),
		figures, h("section.card.flush", { "aria-label": "Tasks" }, h("div.card-head", search), list));
	draw();
	const unfollow = live.follow(update);
	let before = JSON.stringify(tasks);
	const timer = setInterval(async () => {
		if (document.hidden) return;
		const answer = await get("v1/tasks").catch(() => null);
		const now = answer && JSON.stringify(answer.tasks);
		if (now && now !== before && current()) {
			before = now;
			tasks = answer.tasks;
			draw();
		}
	}, EVERY_MS);
	return () => {
		clearInterval(timer);
		unfollow();
	};
}

// What answers for each alias: the version, and the canaries' shares.
function serving(task) {
	const aliases = Object.entries(task.aliases);
	if (!aliases.length) return h("span.muted", "no alias");
	return h("ul.plain", aliases.slice(0, 3).map(([alias, version]) => {
		const route = task.routes[alias] ?? { shares: [], shadows: [] };
		const failed = route.version && version !== route.version;
		return h("li",
			alias === "production" ? null : h("span.muted", `${alias} `),
			version ? h("strong", `v${version}`) : badge("loading", "warn"),
			failed && version ? badge(`v${route.version} not loaded`, "warn") : null,
			route.shares.map((share) => badge(`v${share.version} ${share.share / 100}\u00a0%`, "canary")),
			route.shadows.length ? badge(`${route.shadows.map((shadow) => `v${shadow}`).join(", ")} shadow`, "shadow") : null);
	}), aliases.length > 3 ? h("li.muted", `and ${aliases.length - 3} more`) : null);
}

export function drawFigures(place, source, wanted) {
	const own = source.figures(wanted);
	place.replaceChildren(
		tile("Requests/s", source.ready ? rate(own.rate) : "–", own.requests ? sparkline(own.series, "Requests in the last minute") : source.ready ? "none in the last minute" : "measuring…"),
		tile("Latency, p50", ms(own.p50)),
		tile("Latency, p99", ms(own.p99)),
		tile("Errors", percent(own.errors)),
		tile("Rows from the cache", percent(own.cached, 0)));
}
