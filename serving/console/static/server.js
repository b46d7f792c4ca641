// This server: what runs, what it holds in memory, where the device's time goes, and which other servers follow the registry.

import { get, session } from "./api.js";
import { badge, bytes, card, count, empty, fill, h, ms, page, percent, table, when } from "./dom.js";
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
  const figures = h("div", { class: "tiles" });
  const memory = h("div", { class: "stack" });
  const stages = h("div", { class: "stack" });
  const followers = h("div", { class: "stack" });

  async function loadFollowers() {
    let answer, fault;
    try {
      answer = await get("v1/servers");
    } catch (error) {
      fault = error;
    }
    if (!current()) return;
    if (fault) {
      fill(followers, card("Servers", {}, h("p", { class: "fault" }, fault.message)));
      return;
    }
    const behind = answer.servers.filter((one) => one.generation < answer.generation).length;
    fill(followers, card("Servers of this registry", { note: behind ? `${behind} of ${answer.servers.length} ${behind > 1 ? "are" : "is"} behind generation ${answer.generation}` : `All ${answer.servers.length > 1 ? answer.servers.length : ""} serve generation ${answer.generation}` },
      table("Servers", [{ title: "Address" }, { title: "Serves" }, { title: "Seen" }, { title: "Id" }],
        answer.servers.map((one, index) => h("tr", {},
          h("th", { scope: "row" }, one.address, index === 0 ? [" ", badge("this one", "good")] : null),
          h("td", {}, `generation ${one.generation} `, one.generation < answer.generation ? badge("behind", "warn") : null),
          h("td", {}, index === 0 ? "now" : when(one.seen)), h("td", { class: "mono small" }, one.id)))),
      h("p", { class: "muted small" }, "On Ray Serve each replica is a server of its own: an address then ends in the replica's name. Figures of this page are those of one of them.")));
  }

  function update() {
    drawFigures(figures, live, () => true);
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
      h("div", { class: "tiles inside" },
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
      h("p", {}, h("strong", {}, percent(Math.min(1, busy))), h("span", { class: "muted" }, " of the device's time is used")),
      h("div", { class: "lane", role: "img", "aria-label": device.map((stage) => `${STAGES[stage.stage]} ${percent(stage.share)}`).join(", ") || "The device is idle" },
        device.map((stage) => h("span", { class: `seg ${stage.stage}`, style: { "flex-grow": String(stage.share) } })), h("span", { class: "seg idle", style: { "flex-grow": String(Math.max(0, 1 - busy)) } })),
      table("Stages", [{ title: "Stage" }, { title: "Times", kind: "number" }, { title: "Mean", kind: "number" }, { title: "Share of a second", kind: "number" }],
        deltas.filter((stage) => stage.count).map((stage) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: `key ${stage.stage}` }), STAGES[stage.stage]), h("td", { class: "number" }, count(stage.count)), h("td", { class: "number" }, ms(stage.seconds / stage.count)), h("td", { class: "number" }, percent(stage.share))))),
      deltas.some((stage) => stage.count) ? null : h("p", { class: "muted" }, "No request in the last minute.")));
  }

  const started = () => live.last?.server?.started_at;
  const facts = [
    ["Version", `Sidecast ${server.version}`], ["Backbone", shortName(server.backbone)], ["Precision", [server.dtype, server.quantize === "none" ? "" : server.quantize].filter(Boolean).join(", ")],
    ["Device", server.device], ["Vision encoder", server.vision && shortName(server.vision)], ["Python", server.python], ["torch", server.torch === "0" ? "" : server.torch],
    ["gRPC port", server.grpc_port], ["Callers", server.asks_tokens ? "need a token" : "everybody who reaches it"], ["Changes", server.takes_changes ? "on this port" : "on a port of their own (--admin-port)"],
    ["Inputs of comparisons", server.keeps_inputs ? "kept, in memory" : "not kept"],
  ];
  fill(main, ...page("Server", started() ? ["Running since ", when(new Date(started() * 1000).toISOString())] : location.host),
    figures, h("div", { class: "pair" }, card("This server", {}, h("dl", { class: "facts" }, facts.filter(([, value]) => value).map(([title, value]) => [h("dt", {}, title), h("dd", {}, String(value))]))),
      server.asks_tokens ? you(server) : null, memory, stages), followers);
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
  return card("You", {}, h("dl", { class: "facts" }, h("dt", {}, "Token"), h("dd", {}, name), tenant ? [h("dt", {}, "Tenant"), h("dd", {}, tenant)] : null,
    ["read", "predict", "publish", "admin"].map((verb) => [h("dt", {}, `May ${verb}`), h("dd", {}, scopes[verb].length ? scopes[verb].map((pattern) => badge(pattern === "*" ? "every task" : pattern, "good")) : h("span", { class: "muted" }, "nothing"))])));
}

function tile(title, value, more) {
  return h("div", { class: "tile" }, h("span", { class: "muted" }, title), h("strong", {}, value), more ? h("span", { class: "muted small" }, more) : null);
}

function cache(title, used, limit, entries, what, hits, recent) {
  if (!limit) return h("p", { class: "muted" }, `${title}: off.`);
  return h("div", { class: "cache" }, h("p", {}, h("strong", {}, title), h("span", { class: "muted" }, ` ${bytes(used)} of ${bytes(limit)}, ${count(entries)} ${what}`)), meter(used / limit),
    h("p", { class: "muted small" }, hits === null ? "Nothing was looked up yet." : `${percent(hits)} found since the start${recent === null ? "" : `, ${percent(recent)} in the last minute`}`));
}
