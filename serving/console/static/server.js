// This server: what runs, what it holds in memory, where the device's time goes, and which other servers follow the registry.

import { get, session } from "./api.js";
import { badge, bytes, card, count, empty, facts, fill, h, ms, page, percent, table, tile, when } from "./dom.js";
import { live } from "./live.js";
import { drawFigures } from "./tasks.js";
import { meter, shortName } from "./task.js";

const EVERY_MS = 5000;
const STAGES = {
	queue: "Queue", tokenize: "Tokenize", decode_image: "Decode images", vision: "Vision encoder", backbone: "Backbone", side: "Side networks", decode: "Decode texts",
};
const ON_DEVICE = ["vision", "backbone", "side", "decode"];

export async function showServer(main, _, query, current) {
	const server = session.server;
	const figures = h("div.tiles"), lead = h("span");
	const memory = h("div.stack");
	const stages = h("div.stack");
	const followers = h("div.stack");

	async function loadFollowers() {
		let answer, fault;
		try {
			answer = await get("v1/servers");
		} catch (error) {
			fault = error;
		}
		if (!current()) return;
		if (fault) {
			fill(followers, card("Servers", {}, h("p.fault", fault.message)));
			return;
		}
		const behind = answer.servers.filter((one) => one.generation < answer.generation).length;
		fill(followers, card("Servers of this registry", { note: behind ? `${behind} of ${answer.servers.length} ${behind > 1 ? "are" : "is"} behind generation ${answer.generation}` : `${answer.servers.length > 1 ? `All ${answer.servers.length} serve` : "It serves"} generation ${answer.generation}` },
			table("Servers", ["Address", "Serves", "Seen"], answer.servers.map((one, index) => [
				[one.address, index === 0 ? [" ", badge("this one", "good")] : null, h("span.about.mono", one.id)],
				[`generation ${one.generation} `, one.generation < answer.generation ? badge("behind", "warn") : null],
				index === 0 ? "now" : when(one.seen)])),
			h("p.muted.small", "On Ray Serve each replica is a server of its own: an address then ends in the replica's name. Figures of this page are those of one of them.")));
	}

	function update() {
		drawFigures(figures, live, () => true);
		fill(lead, ...(live.last?.server?.started_at ? ["Started ", when(live.last.server.started_at * 1000)] : [location.host]));
		const own = live.last?.server;
		if (live.last && !own) {
			const why = card("Memory and caches", {}, empty("Your token does not show these.", "They tell about all tasks, so a token needs the scope read for every task."));
			fill(memory, why);
			fill(stages);
			return;
		}
		if (!own) return;
		const hits = live.serverDelta("cache_hits"), misses = live.serverDelta("cache_misses");
		const all = own.cache_hits + own.cache_misses;
		const imageAll = own.image_cache_hits + own.image_cache_misses;
		fill(memory, card("Memory and caches", { note: "This process" },
			h("div.tiles.inside",
				tile("Process", own.process_bytes === undefined ? "–" : bytes(own.process_bytes)),
				tile("Side networks", `${count(own.resident_side_networks)}`, bytes(own.resident_bytes)),
				tile("Waiting rows", count(own.queue_rows)),
				tile("Texts being made", count(own.running_rows)),
				tile("Calls in flight", count(own.in_flight_calls))),
			cache("Activation cache", own.cache_bytes, server.cache_limit_bytes, own.cache_entries, "inputs", all ? own.cache_hits / all : null, hits + misses > 0 ? hits / (hits + misses) : null),
			server.vision ? cache("Image cache", own.image_cache_bytes, server.image_cache_limit_bytes, own.image_cache_entries, "images", imageAll ? own.image_cache_hits / imageAll : null, null) : null));
		const deltas = live.stageDeltas();
		if (!deltas) return;
		const device = deltas.filter((stage) => ON_DEVICE.includes(stage.stage) && stage.seconds > 0);
		const busy = device.reduce((sum, stage) => sum + stage.share, 0);
		fill(stages, card("Where the time goes", { note: "Last minute" },
			h("p", h("strong", percent(Math.min(1, busy))), h("span.muted", " of the device's time is used")),
			h("div.lane", { role: "img", "aria-label": device.map((stage) => `${STAGES[stage.stage]} ${percent(stage.share)}`).join(", ") || "The device is idle" },
				device.map((stage) => h("span", { class: `seg ${stage.stage}`, style: { "flex-grow": String(stage.share) } })), h("span.seg.idle", { style: { "flex-grow": String(Math.max(0, 1 - busy)) } })),
			table("Stages", ["Stage", "#Count", "#Mean", "#Share of a second"], deltas.filter((stage) => stage.count).map((stage) =>
				[[h("span.key", { class: stage.stage }), STAGES[stage.stage]], count(stage.count), ms(stage.seconds / stage.count), percent(stage.share)])),
			deltas.some((stage) => stage.count) ? null : h("p.muted", "No request in the last minute.")));
	}

	const about = facts([
		["Version", `Sidecast ${server.version}`], ["Backbone", shortName(server.backbone)], ["Precision", [server.dtype, server.quantize].filter((what) => what !== "auto" && what !== "none").join(", ")],
		["Device", server.device], ["Vision encoder", server.vision && shortName(server.vision)], ["Python", server.python], ["torch", server.torch === "0" ? "" : server.torch],
		["gRPC port", server.grpc_port], ["Callers", server.asks_tokens ? "need a token" : "everybody who reaches it"], ["Changes", server.takes_changes ? "on this port" : "on a port of their own (--admin-port)"],
		["Inputs of comparisons", server.keeps_inputs ? "kept, in memory" : "not kept"],
	]);
	fill(main, ...page("Server", lead),
		figures, h("div.pair", h("div.stack", card("This server", {}, about), server.asks_tokens ? you(server) : null, followers), h("div.stack", memory, stages)));
	const unfollow = live.follow(update);
	loadFollowers();
	const timer = setInterval(() => !document.hidden && loadFollowers(), EVERY_MS);
	return () => {
		clearInterval(timer);
		unfollow();
	};
}

function you(server) {
	const { name, tenant, scopes } = server.caller;
	return card("You", {}, facts([["Token", name], ["Tenant", tenant], ...["read", "predict", "publish", "admin"].map((verb) => [`May ${verb}`,
		scopes[verb].length ? scopes[verb].map((pattern) => badge(pattern === "*" ? "every task" : pattern, "good")) : h("span.muted", "nothing")])]));
}

function cache(title, used, limit, entries, what, hits, recent) {
	if (!limit) return h("p.muted", `${title}: off.`);
	return h("div.cache", h("p", h("strong", title), h("span.muted", ` ${bytes(used)} of ${bytes(limit)}, ${count(entries)} ${what}`)), meter(used / limit),
		h("p.muted.small", hits === null ? "Nothing was looked up yet." : `${percent(hits)} found since the start${recent === null ? "" : `, ${percent(recent)} in the last minute`}`));
}
