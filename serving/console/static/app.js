// The frame: which page is shown, who the caller is, and whether the server answers.

import { get, Problem, session } from "./api.js";
import { badge, fill, h, hue, page } from "./dom.js";
import { live } from "./live.js";
import { showPlayground } from "./playground.js";
import { showServer } from "./server.js";
import { showTask } from "./task.js";
import { showTasks } from "./tasks.js";

const main = document.getElementById("main");
const status = document.getElementById("status");
let leave = () => {}; // ends what the shown page keeps going
let shown = 0;

async function route() {
	const turn = ++shown;
	leave();
	leave = () => {};
	const [path, query = ""] = location.hash.slice(1).split("?");
	const [, name = "tasks", ...rest] = path.split("/");
	for (const link of document.querySelectorAll("nav a")) {
		if (link.dataset.page === name) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	}
	if (!session.server && !(await connect())) return;
	const pages = { playground: showPlayground, server: showServer, tasks: rest.length ? showTask : showTasks };
	const show = pages[name] ?? showTasks;
	try {
		const end = await show(main, decodeURIComponent(rest.join("/")), new URLSearchParams(query), () => turn === shown);
		if (turn === shown) leave = end ?? leave;
		else end?.();
	} catch (error) {
		if (turn === shown) fail(error);
	}
	if (turn === shown && document.activeElement === document.body && moved) main.querySelector("h1")?.focus();
	moved = true;
}
let moved = false;

async function connect() {
	try {
		session.server = await get("v1/server");
		(await get("v1/tasks")).tasks.forEach((task) => hue(task.task));
	} catch (error) {
		if (error.status === 401) signIn(session.token ? error.message : "");
		else fail(error);
		showStatus(error);
		return false;
	}
	showStatus();
	live.start();
	return true;
}

function fail(error) {
	const known = error instanceof Problem;
	if (!known) console.error(error);
	fill(main, ...page(error.status === 404 ? "Not here" : error.status === 403 ? "Not allowed" : "Something is wrong", ""),
		h("div.empty.bad", { role: "alert" },
			h("strong", known ? error.message : "The console itself failed. Load the page again."),
			error.reason ? h("p.muted", error.reason) : null,
			h("p", h("button.button", { onclick: route }, "Try again"), " ", h("a.button.quiet", { href: "#/tasks" }, "All tasks"))));
}

function signIn(fault) {
	live.stop();
	session.server = null;
	const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", placeholder: "sc_…", "aria-describedby": "token-help" });
	const form = h("form.gate.card", { onsubmit: (event) => {
		event.preventDefault();
		session.token = field.value.trim();
		route();
	} },
		h("h1", "Who are you?"),
		h("p", { id: "token-help" }, "This server asks its callers for a token. It stays in this tab, until you close it."),
		h("label", { for: "token" }, "Token"), field,
		fault ? h("p.fault", { role: "alert" }, fault) : null,
		h("button.button.primary", { type: "submit" }, "Continue"),
		h("p.muted.small", h("code", "sidecast token create NAME --scope read"), " makes one."));
	document.title = "Sidecast";
	fill(main, form);
	field.focus();
}

function showStatus(error = live.error) {
	const server = session.server;
	if (!server) {
		fill(status, h("span.dot.off"), h("span", error?.status === 401 ? "Needs a token" : "Not connected"));
		return;
	}
	const served = live.last?.server?.generation_served;
	fill(status,
		h("span", { class: `dot ${error ? "off" : "on"}` }),
		h("span.status-text", error ? "No answer" : "Connected", served === undefined ? null : h("span.muted", `generation ${served}`)),
		server.asks_tokens ? h("span.who", badge(server.caller.name), h("button.link", { "data-key": "sign-out", onclick: () => {
			session.token = "";
			signIn("");
			showStatus({ status: 401 });
		} }, "Sign out")) : null);
}

document.addEventListener("signed-out", (event) => {
	if (session.server) {
		leave();
		leave = () => {};
		shown += 1;
		signIn(event.detail);
		showStatus({ status: 401 });
	}
});
live.follow(() => showStatus());
addEventListener("hashchange", () => {
	document.activeElement?.blur?.();
	route();
});
route();
