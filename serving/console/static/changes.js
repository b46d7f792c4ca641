// Dialogs that change the registry. Each says what will happen, asks once, and shows the same as a command.

import { hindrance, post, Problem, session, taskPath } from "./api.js";
import { fill, h, notice } from "./dom.js";

// A button that is disabled, and says why, where the caller may not do this.
export function changeButton(text, verb, task, open, kind = "") {
	const why = hindrance(verb, task);
	return h("button", { class: `button ${kind}`, type: "button", disabled: Boolean(why), title: why || null, onclick: open, "data-key": `${text} ${open.key ?? ""}` }, text);
}

// What the caller may not do here, in words; null where it may do everything.
export function hindrances(task) {
	const reasons = [...new Set(["publish", "admin"].map((verb) => hindrance(verb, task)).filter(Boolean))];
	if (!reasons.length) return null;
	return h("div.note", reasons.map((reason) => h("p", reason)));
}

function dialog(title, content, { action, danger, command, run, done }) {
	const message = h("input", { id: "why", type: "text", maxlength: "500", placeholder: "For the history", autocomplete: "off" });
	const fault = h("div.fault", { role: "alert" });
	const go = h("button", { class: `button ${danger ? "danger" : "primary"}`, type: "submit" }, action);
	const same = h("code.command");
	const show = () => fill(same, command());
	const box = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => box.remove() },
		h("form", { method: "dialog", oninput: show, onsubmit: async (event) => {
			event.preventDefault();
			go.disabled = true;
			fill(fault);
			try {
				const text = await run({ message: message.value, author: session.server.asks_tokens ? "" : "console" });
				box.close();
				notice(text);
				done();
			} catch (error) {
				const known = error instanceof Problem || error instanceof RangeError;
				fill(fault, known ? error.message : "The console itself failed.");
				if (!known) console.error(error);
				go.disabled = false;
			}
		} },
		h("h2", { id: "dialog-title" }, title),
		content,
		h("label", { for: "why" }, "Reason (optional)"), message,
		h("p.muted.small", "The same as"), same, fault,
		h("div.buttons", h("button.button.quiet", { type: "button", onclick: () => box.close() }, "Cancel"), go)));
	document.body.append(box);
	show();
	box.showModal();
}

const split = (route) => ({ shares: route.shares, shadows: route.shadows, ...(route.bounds ? { bounds: route.bounds } : {}) });
const onAlias = (alias) => (alias === "production" ? "" : ` --alias ${alias}`);

export function promote(task, alias, version, route, done) {
	dialog(`Promote version ${version}`,
		h("p", `All traffic of ${task}@${alias} goes to version ${version}`, route.version ? `, instead of version ${route.version}` : "", ". Its canaries and shadows end. A rollback undoes it."),
		{
			action: `Promote version ${version}`,
			command: () => `sidecast promote ${task} ${version}${onAlias(alias)}`,
			run: async (change) => {
				const answer = await post(taskPath(task, ":setRoute"), { alias, version, seen: split(route), ...change });
				return `${task}@${alias} is version ${version} (generation ${answer.generation}).`;
			},
			done,
		});
}

export function canary(task, alias, version, route, done) {
	const old = route.shares.find((share) => share.version === version);
	const share = h("input", { id: "share", type: "number", min: "0.01", max: "100", step: "any", value: old ? old.share / 100 : 5, required: true });
	const bound = (id, text, value) => {
		const field = h("input", { id, type: "number", min: "0", step: "any", value });
		return [h("label", { for: id }, text), field];
	};
	const bounds = route.bounds ?? {};
	const fields = [
		bound("bound-errors", "More failed rows, at most (percentage points)", bounds.error_rate === undefined ? 1 : bounds.error_rate * 100),
		bound("bound-latency", "Latency, at most (times)", bounds.latency ?? 2),
		bound("bound-disagreement", "Different answers, at most (%)", bounds.disagreement === undefined ? "" : bounds.disagreement * 100),
	];
	const read = (index, scale) => (fields[index][1].value === "" ? undefined : Number(fields[index][1].value) / scale);
	const wantedBounds = () => {
		const wanted = { error_rate: read(0, 100), latency: read(1, 1), disagreement: read(2, 100) };
		const set = Object.fromEntries(Object.entries(wanted).filter(([, value]) => value !== undefined));
		return Object.keys(set).length ? { ...set, min_rows: bounds.min_rows ?? 0 } : undefined;
	};
	dialog(`Canary of version ${version}`,
		h("div",
			h("p", `Version ${version} answers a part of the traffic of ${task}@${alias}. A server that sees it break a bound ends it by itself.`),
			h("label", { for: "share" }, "Share of the traffic (%)"), share,
			h("details", h("summary", "Bounds"), h("p.muted.small", "Compared with the main version. An empty field is no bound."), fields)),
		{
			action: "Start the canary",
			command: () => {
				const wanted = wantedBounds() ?? {};
				const options = [["--max-error-rate", wanted.error_rate, 100, "%"], ["--max-latency", wanted.latency, 1, ""], ["--max-disagreement", wanted.disagreement, 100, "%"]]
					.filter(([, value]) => value !== undefined).map(([name, value, scale, unit]) => `${name} ${Number((value * scale).toFixed(4))}${unit}`);
				return `sidecast promote ${task} ${version} --canary ${share.value || "?"}% ${options.join(" ") || "--no-bounds"}${onAlias(alias)}`;
			},
			run: async (change) => {
				const hundredths = Math.round(Number(share.value) * 100);
				const wanted = wantedBounds();
				const next = { shares: [{ version, share: hundredths }], shadows: route.shadows.filter((shadow) => shadow !== version), ...(wanted ? { bounds: wanted } : {}) };
				const answer = await post(taskPath(task, ":setRoute"), { alias, route: next, seen: split(route), ...change });
				return `Version ${version} gets ${hundredths / 100} % of ${task}@${alias} (generation ${answer.generation}).`;
			},
			done,
		});
}

export function shadow(task, alias, version, route, done) {
	const is = route.shadows.includes(version);
	dialog(is ? `End the shadow of version ${version}` : `Shadow version ${version}`,
		h("p", is ? `Version ${version} no longer answers beside ${task}@${alias}.` : `Version ${version} answers the inputs of ${task}@${alias} too, when the device has time. No caller gets its answers; they are compared with the main version's.`),
		{
			action: is ? "End the shadow" : "Start the shadow",
			command: () => `sidecast promote ${task} ${is ? "--no-shadow" : "--shadow"} ${version}${onAlias(alias)}`,
			run: async (change) => {
				const shadows = is ? route.shadows.filter((other) => other !== version) : [...route.shadows, version];
				const answer = await post(taskPath(task, ":setRoute"), { alias, route: { ...split(route), shadows }, seen: split(route), ...change });
				return `${is ? "Ended" : "Started"} the shadow of version ${version} (generation ${answer.generation}).`;
			},
			done,
		});
}

export function rollBack(task, alias, route, live, done) {
	const ending = route.shares.length > 0;
	const others = live.filter((version) => version !== route.version);
	const to = h("select", { id: "to" }, h("option", { value: "" }, "the version before"), others.map((version) => h("option", { value: version }, `version ${version}`)));
	dialog(ending ? "End the canary" : `Roll back ${alias}`,
		ending ? h("p", `Version ${route.version} answers all of ${task}@${alias} again. Canaries and shadows end.`)
			: h("div", h("p", `${task}@${alias} leaves version ${route.version}.`), h("label", { for: "to" }, "Go back to"), to),
		{
			action: ending ? "End the canary" : "Roll back",
			danger: true,
			command: () => `sidecast rollback ${task}${!ending && to.value ? ` --to ${to.value}` : ""}${onAlias(alias)}`,
			run: async (change) => {
				const answer = await post(taskPath(task, ":rollback"), { alias, ...(!ending && to.value ? { to: Number(to.value) } : {}), ...change });
				return answer.canary_ended ? `The canary of ${task}@${alias} is ended (generation ${answer.generation}).` : `${task}@${alias} is version ${answer.version_to} again (generation ${answer.generation}).`;
			},
			done,
		});
}

export function retire(task, version, done) {
	const name = h("input", { id: "confirm", type: "text", autocomplete: "off", spellcheck: "false" });
	dialog(`Retire version ${version}`,
		h("div",
			h("p", `Version ${version} of ${task} goes out of service for good, on every server. This cannot be undone.`),
			h("label", { for: "confirm" }, `Type ${task} to confirm`), name),
		{
			action: `Retire version ${version}`,
			danger: true,
			command: () => `sidecast retire ${task} ${version}`,
			run: async (change) => {
				if (name.value !== task) throw new RangeError(`Type ${task} to confirm.`);
				const answer = await post(taskPath(task, ":retire"), { version, ...change });
				return `Version ${version} of ${task} is retired (generation ${answer.generation}).`;
			},
			done,
		});
}
