// One task: what answers its traffic, how well, its versions and how they came to be.

import { get, may, session, taskPath } from "./api.js";
import { canary, changeButton, hindrances, promote, retire, rollBack, shadow } from "./changes.js";
import { badge, bytes, card, count, empty, facts, fill, h, hue, ms, page, percent, rate, sparkline, table, tile, when } from "./dom.js";
import { live } from "./live.js";
import { drawFigures, KINDS } from "./tasks.js";

const EVERY_MS = 4000;
const COMMITS = 50;
const DISAGREEMENTS = 20;

export async function showTask(main, name, query, current) {
	const places = Object.fromEntries(["traffic", "figures", "versions", "details", "comparison", "history"].map((key) => [key, h("div.stack")]));
	let task = await get(taskPath(name));
	if (!current()) return undefined;
	let alias = query.get("alias") ?? (task.aliases.production === undefined ? Object.keys(task.aliases)[0] ?? "production" : "production");
	const known = new Map(); // version -> its details
	let open = null; // the version whose details are shown
	const before = {};

	const route = () => task.routes[alias] ?? { shares: [], shadows: [] };
	const alive = () => task.versions.filter((version) => !version.retired).map((version) => version.version);
	const changed = (key, value) => before[key] !== (before[key] = JSON.stringify(value));

	function drawTraffic() {
		const now = route();
		const main = now.version ?? 0;
		const rest = 10000 - now.shares.reduce((sum, share) => sum + share.share, 0);
		const parts = main ? [[main, rest, "main"], ...now.shares.map((share) => [share.version, share.share, "canary"])] : [];
		const serving = task.aliases[alias];
		const bounds = now.bounds;
		const picker = Object.keys(task.aliases).length > 1
			? h("select", { "aria-label": "Alias", "data-key": "alias", onchange: (event) => { alias = event.target.value; drawAll(); loadComparison(); } }, Object.keys(task.aliases).map((other) => h("option", { value: other, selected: other === alias }, `@${other}`)))
			: h("span.muted", `@${alias}`);
		fill(places.traffic, card("Traffic", { extra: picker },
			parts.length
				? h("div.split", { role: "img", "aria-label": parts.map(([version, share]) => `version ${version} gets ${share / 100} percent`).join(", ") },
					parts.map(([version, share, kind]) => h("div", { class: `part ${kind}`, style: { "flex-grow": String(Math.max(share, 400)) } }, h("strong", `v${version}`), h("span", `${share / 100}\u00a0%`))))
				: empty("No version has this alias yet.", "Promote a version below."),
			now.shadows.length ? h("p", badge("shadow", "shadow"), ` ${now.shadows.map((version) => `v${version}`).join(", ")} ${now.shadows.length > 1 ? "answer" : "answers"} the same inputs; no caller gets the answers.`) : null,
			bounds ? h("p.muted", "A canary ends by itself with ", boundTexts(bounds).join(", "), `, judged from ${bounds.min_rows || 100} rows on.`) : null,
			main && serving !== main ? h("p.note", serving ? `This server answers with version ${serving}: version ${main} is not loaded here.` : `Version ${main} is not loaded here yet.`) : null,
			hindrances(name),
			h("div.buttons.start",
				now.shares.map((share) => changeButton(`Promote v${share.version} to 100 %`, "publish", name, () => promote(name, alias, share.version, now, reload), "primary")),
				main ? changeButton(now.shares.length ? "End the canary" : "Roll back…", "publish", name, () => rollBack(name, alias, now, alive(), reload)) : null,
				h("a.button.quiet", { href: `#/playground?task=${encodeURIComponent(name)}` }, "Try it"))));
	}

	function drawVersions() {
		const now = route();
		const rows = [...task.versions].reverse().map((version) => {
			const number = version.version;
			const details = known.get(number);
			const key = (verb) => Object.assign(verb, { key: number });
			const uses = Object.entries(task.routes).filter(([, other]) => other.version === number).map(([other]) => other);
			const share = now.shares.find((other) => other.version === number);
			const live = !version.retired && now.version !== number;
			return Object.assign([
				h("button.link.strong", { "data-key": `open ${number}`, "aria-expanded": String(open === number), onclick: () => toggle(number) }, `v${number}`),
				h("span.badges",
					uses.map((other) => badge(other, "good")),
					share ? badge(`canary ${share.share / 100}\u00a0%`, "canary") : null,
					now.shadows.includes(number) ? badge("shadow", "shadow") : null,
					version.retired ? badge("retired") : version.failure ? badge("failed", "bad") : version.resident ? null : badge("not loaded", "warn"),
					version.untrained ? badge("untrained", "warn") : null,
					!uses.length && !share && !now.shadows.includes(number) && !version.retired && version.resident ? badge("ready") : null),
				score(details),
				[when(version.published_at), h("span.about", [version.author, version.message].filter(Boolean).join(" · "))],
				version.retired ? null : h("span.buttons",
					live ? changeButton("Promote", "publish", name, key(() => promote(name, alias, number, now, reload)), "small") : null,
					live && now.version ? changeButton(share ? "Share…" : "Canary", "publish", name, key(() => canary(name, alias, number, now, reload)), "small") : null,
					live && now.version && !share ? changeButton(now.shadows.includes(number) ? "End shadow" : "Shadow", "publish", name, key(() => shadow(name, alias, number, now, reload)), "small") : null,
					live && !uses.length && !share && !now.shadows.includes(number) ? changeButton("Retire", "admin", name, key(() => retire(name, number, reload)), "small quiet") : null),
			], { kind: version.retired ? "retired" : null });
		});
		fill(places.versions, card("Versions", { note: "Scores are those of training, on its validation rows." },
			table("Versions", ["Version", "State", "#Score", "Published", "Change"], rows)));
	}

	function drawDetails() {
		const details = known.get(open);
		if (!open || !details) return fill(places.details);
		const of = details.provenance;
		const about = [
			["Run", details.run_id], ["Trained", of.time && when(of.time)], ["By", of.made_by ?? of.command], ["Code", of.code_version],
			["Seed", of.seed], ["Data", of.data_sha256], ["Backbone", `${shortName(details.backbone.name)} · ${details.backbone.fingerprint.slice(0, 19)}…`],
			["Quantization", details.backbone.quantization === "none" ? null : details.backbone.quantization],
			["Size", `${bytes(details.files.reduce((sum, file) => sum + file.size, 0))} in ${details.files.length} ${details.files.length === 1 ? "file" : "files"}`],
			["Why it failed", task.versions.find((version) => version.version === open)?.failure],
		];
		const settings = { ...details.side, ...(of.recipe && typeof of.recipe === "object" ? of.recipe : {}) };
		return fill(places.details, card(`Version ${open}`, { extra: h("button.button.quiet.small", { onclick: () => toggle(open) }, "Close") },
			Object.keys(details.metrics).length
				? h("div.tiles.inside", Object.entries(details.metrics).slice(0, 12).map(([metric, value]) => tile(metric.replaceAll("_", " "), Number.isInteger(value) ? count(value) : value.toFixed(4))))
				: empty("This run recorded no scores."),
			details.calibration ? h("p.muted", `Scores are calibrated: temperature ${details.calibration.temperature.toFixed(2)}, calibration error ${details.calibration.ece_before.toFixed(3)} → ${details.calibration.ece.toFixed(3)} on ${details.calibration.rows} rows.`) : null,
			facts(about),
			h("details", h("summary", "Side network and recipe"),
				facts(Object.entries(settings).map(([title, value]) => [title.replaceAll("_", " "), value]), "small"))));
	}

	async function toggle(number) {
		open = open === number ? null : number;
		drawVersions();
		if (open) await load(number);
		drawDetails();
		if (open) places.details.scrollIntoView({ block: "nearest" });
	}

	async function load(number) {
		if (!known.has(number)) known.set(number, await get(taskPath(name, `/versions/${number}`)).catch(() => null));
	}

	async function loadScores() {
		await Promise.all(task.versions.slice(-12).filter((version) => !known.has(version.version)).map((version) => load(version.version)));
		if (current()) drawVersions();
	}

	async function loadComparison() {
		const kept = session.server.keeps_inputs && may("admin", name);
		let compared;
		try {
			compared = await get(taskPath(name, `/comparison?alias=${encodeURIComponent(alias)}&disagreements=${kept ? DISAGREEMENTS : 0}`));
		} catch {
			compared = null;
		}
		if (current() && changed("comparison", compared)) drawComparison(places.comparison, compared, name);
	}

	async function loadHistory() {
		const answer = await get(`v1/history?limit=${COMMITS}&task=${encodeURIComponent(name)}`).catch(() => null);
		if (current() && changed("history", answer)) drawHistory(places.history, answer);
	}

	async function loadTask() {
		const answer = await get(taskPath(name)).catch(() => null);
		if (!answer || !current() || !changed("task", answer)) return;
		task = answer;
		drawAll();
		loadScores();
	}

	function drawAll() {
		drawTraffic();
		drawVersions();
		drawDetails();
	}

	function reload() {
		loadTask();
		loadComparison();
		loadHistory();
	}

	const lead = [task.kind ? badge(KINDS[task.kind] ?? task.kind) : badge("not loaded", "warn"), " ", task.description ?? ""];
	fill(main, h("p.crumb", h("a", { href: "#/tasks" }, "Tasks"), " /"), ...page(name, lead),
		h("div", { class: `hue${hue(name)} stack` }, places.figures, places.traffic, places.versions, places.details, places.comparison, task.template ? spec(task) : null, places.history));
	changed("task", task);
	drawAll();
	loadScores();
	loadComparison();
	loadHistory();
	const unfollow = live.follow(() => drawLive(places.figures, name, task));
	const timer = setInterval(() => !document.hidden && reload(), EVERY_MS);
	return () => {
		clearInterval(timer);
		unfollow();
	};
}

function drawLive(place, name, task) {
	const tiles = h("div.tiles");
	drawFigures(tiles, live, (entry) => entry.task === name);
	const busy = task.versions.map((version) => [version.version, live.figures((entry) => entry.task === name && entry.version === version.version)]).filter(([, own]) => own.requests);
	fill(place, tiles, busy.length > 1 ? card("Live, by version", { note: "Last minute, this server" }, table("Live figures by version", ["Version", "#Req/s", "Trend", "#p50", "#p99", "#Errors", "#Cached"],
		busy.map(([version, own]) => [`v${version}`, rate(own.rate), sparkline(own.series, `Requests for version ${version}`), ms(own.p50), ms(own.p99), percent(own.errors), percent(own.cached, 0)]))) : null);
}

function drawComparison(place, compared, name) {
	const title = "Canary and shadow";
	if (!compared) return fill(place);
	if (!compared.comparisons.length && !compared.rolled_back) {
		return fill(place, card(title, {}, empty("Nothing to compare.", "Give a version a share of the traffic, or make it a shadow: then this server counts how its answers differ from the main version's.")));
	}
	const rolled = compared.rolled_back;
	const shown = compared.comparisons.length ? compared : rolled;
	return fill(place, card(title, { note: compared.comparisons.length ? `Counted here since generation ${compared.since}` : "Before the rollback" },
		rolled ? h("p.note.bad", h("strong", "Rolled back by this server: "), rolled.why) : null,
		table("Comparison of versions", ["Version", "Role", "#Rows", "#Failed", "#Agreed", "#Drift", "#Latency", "#Cost per row", "#Dropped"],
			shown.comparisons.map((one, index) => [
				`v${one.version}`, index === 0 ? "main" : one.answers ? badge("canary", "canary") : badge("shadow", "shadow"),
				count(one.rows), h("span", { class: one.failed ? "bad-text" : null }, percent(one.rows ? one.failed / one.rows : 0)),
				one.compared ? h("span.meter-cell", meter(one.agreed / one.compared), `${percent(one.agreed / one.compared)} of ${count(one.compared)}`) : "–",
				one.compared ? one.drift.toFixed(4) : "–",
				one.latency_seconds ? ms(one.latency_seconds) : "–", one.cost_seconds ? ms(one.cost_seconds) : "–", count(one.dropped)])),
		h("h3", "Inputs on which they differ"),
		disagreements(compared, shown, name)));
}

function disagreements(compared, shown, name) {
	if (!compared.keeps_inputs) return h("p.muted", "This server does not keep them: inputs are what callers wrote. To see them here, start it with ", h("code", "keep_inputs = true"), ".");
	if (!may("admin", name)) return h("p.muted", `They are callers' texts: to see them, a token needs the scope admin:${name}.`);
	if (!shown.disagreements.length) return h("p.muted", "None so far.");
	return table("Inputs on which versions differ", ["Input", "Main version", "Other", "Version", "#Drift", "When"],
		shown.disagreements.map((one) => [h("span.prompt", one.prompt), one.expected, one.found, `v${one.version}`, one.drift.toFixed(3), when(one.time)]));
}

function drawHistory(place, answer) {
	if (!answer) return fill(place, card("History", {}, empty("The history could not be read.")));
	return fill(place, card("History", { note: `The newest ${COMMITS} changes` },
		h("ol.history", [...answer.commits].reverse().map((commit) => h("li",
			h("span.what", commit.actions.map((action) => h("span", sentence(action)))),
			commit.change?.message ? h("span.message", commit.change.message) : null,
			h("span.muted.small", when(commit.time), ` · ${commit.change?.author || "unknown"} · generation ${commit.generation}`))))));
}

function sentence(action) {
	const alias = `@${action.alias}`;
	switch (action.verb) {
		case "publish": return `Published version ${action.version}`;
		case "set_alias": return `${alias} is version ${action.version}`;
		case "rollback": return `${alias} rolled back to version ${action.version}`;
		case "retire": return `Retired version ${action.version}`;
		case "delete_task": return "Deleted the task";
		case "set_route": {
			const now = action.route ?? { shares: [], shadows: [] };
			const parts = [...now.shares.map((share) => `version ${share.version} gets ${share.share / 100}\u00a0%`), ...now.shadows.map((version) => `version ${version} is a shadow`)];
			return `${alias}: ${parts.join(", ") || "the main version answers all"}`;
		}
		default: return action.verb;
	}
}

function spec(task) {
	return card("Task", {}, facts([["Template", h("code", task.template)], ["Labels", task.labels?.map((label) => badge(label))], ["Images", task.images?.join(", ")],
		["Range", task.low !== undefined || task.high !== undefined ? `${task.low ?? "−∞"} to ${task.high ?? "∞"}` : null], ["Dimensions", task.dimensions],
		["Longest input", `${task.max_source_tokens} tokens`], ["Longest answer", task.max_new_tokens && `${task.max_new_tokens} tokens`], ["Rows per request", task.max_rows]]));
}

// The score by which versions are compared: that of the task's metric.
function score(details) {
	const scores = Object.entries(details?.metrics ?? {});
	const [name, value] = scores.find(([metric]) => metric === details.metric) ?? scores.find(([metric]) => details.metric.includes(metric)) ?? scores.find(([metric]) => metric !== "loss") ?? [];
	if (name === undefined) return "–";
	return [h("strong", value.toFixed(3)), h("span.about", name.replaceAll("_", " "))];
}

function boundTexts(bounds) {
	return [
		bounds.error_rate !== undefined ? `more than ${percent(bounds.error_rate)} more errors` : null,
		bounds.latency !== undefined ? `more than ${bounds.latency} times the latency` : null,
		bounds.disagreement !== undefined ? `more than ${percent(bounds.disagreement)} different answers` : null,
	].filter(Boolean);
}

export function meter(part) {
	return h("span.meter", { "aria-hidden": "true" }, h("span", { style: { width: `${Math.max(0, Math.min(1, part)) * 100}%` } }));
}

export function shortName(path) {
	return path.split("/").filter(Boolean).slice(-2).join("/");
}
