// Asks the server's HTTP API with the caller's token, which lives in this tab alone.

const TOKEN = "sidecast-token";
const BASE = new URL(".", document.baseURI);

export const session = {
	server: null, // the answer of /v1/server
	get token() {
		return sessionStorage.getItem(TOKEN) ?? "";
	},
	set token(value) {
		if (value) sessionStorage.setItem(TOKEN, value);
		else sessionStorage.removeItem(TOKEN);
	},
};

export class Problem extends Error {
	constructor(document, status) {
		super(document.detail ?? `the server answered ${status}`);
		this.reason = document.reason ?? "";
		this.status = status;
	}
}

async function send(path, { method = "GET", body, signal } = {}) {
	const headers = {};
	if (session.token) headers.authorization = `Bearer ${session.token}`;
	if (body) headers["content-type"] = "application/json";
	let response;
	try {
		response = await fetch(new URL(path, BASE), { method, headers, body: body && JSON.stringify(body), signal });
	} catch (error) {
		if (error.name === "AbortError") throw error;
		throw new Problem({ reason: "UNREACHABLE", detail: "The server cannot be reached. It may be stopped, or restarting." }, 0);
	}
	if (!response.ok) {
		const problem = new Problem(await response.json().catch(() => ({})), response.status);
		if (response.status === 401) document.dispatchEvent(new CustomEvent("signed-out", { detail: problem.message }));
		throw problem;
	}
	return response;
}

export async function get(path) {
	return (await send(path)).json();
}

export async function post(path, body, signal) {
	return (await send(path, { method: "POST", body, signal })).json();
}

// The events of a stream of server-sent events, as {name, data}.
export async function* events(path, body, signal) {
	const response = await send(path, { method: "POST", body, signal });
	const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
	let buffer = "";
	for (;;) {
		const { value, done } = await reader.read();
		if (done) return;
		buffer += value;
		for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
			const fields = new Map(buffer.slice(0, end).split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
			buffer = buffer.slice(end + 2);
			yield { name: fields.get("event") ?? "", data: JSON.parse(fields.get("data")) };
		}
	}
}

export const taskPath = (task, rest = "") => `v1/tasks/${encodeURIComponent(task)}${rest}`;

// --- what the caller may do

function matches(pattern, name) {
	const source = pattern.replace(/\[!?[^\]]+\]|[\s\S]/g, (part) => {
		if (part === "*") return "[^]*";
		if (part === "?") return "[^]";
		if (part.length > 1) return part.replace(/^\[!/, "[^");
		return part.replace(/[.+^${}()|[\]\\]/g, "\\$&");
	});
	return new RegExp(`^${source}$`).test(name);
}

export function may(verb, task) {
	const patterns = session.server?.caller.scopes[verb] ?? [];
	return patterns.some((pattern) => matches(pattern, task));
}

// Why the caller cannot change a task here; "" where it can.
export function hindrance(verb, task) {
	const server = session.server;
	if (!server) return "Not connected.";
	if (!server.takes_changes) return "This port takes no changes: they have a port of their own (--admin-port), for sidecast on the command line.";
	if (!may(verb, task)) return `Your token “${server.caller.name}” does not have the scope ${verb}:${task}.`;
	return "";
}
