// One text or picture for any set of tasks at once: their answers, where the time went, and the same call as code.

import { events, get, may, post, Problem, taskPath } from "./api.js";
import { drawAnswer, drawTimings, sameAnswer } from "./answers.js";
import { badge, card, empty, fill, h, hue, ms, page } from "./dom.js";
import { codeTabs, snippets } from "./snippets.js";
import { KINDS } from "./tasks.js";

const FIRST_TASKS = 3;
const limits = new Map(); // thresholds of multilabel versions, which never change
const kept = { chosen: null, values: {}, files: {} }; // stays while other pages are shown

export async function showPlayground(main, _, query, current) {
	const tasks = (await get("v1/tasks")).tasks.filter((task) => task.kind);
	if (!current()) return undefined;
	if (!tasks.length) {
		fill(main, ...page("Playground", ""), empty("There is no task to ask.", "Publish one, or use a token that may read some."));
		return undefined;
	}
	const byName = new Map(tasks.map((task) => [task.task, task]));
	const wanted = query.getAll("task").filter((name) => byName.has(name));
	if (wanted.length) kept.chosen = wanted.map((task) => ({ task, which: "" }));
	kept.chosen = kept.chosen?.filter((choice) => byName.has(choice.task)) ?? firstTasks(tasks);
	const inputs = h("div.stack.tight");
	const picker = h("div.picker");
	const results = h("div.results", { "aria-live": "polite", "aria-busy": "false" });
	const timing = h("div");
	const code = h("div");
	const search = h("input", { type: "search", placeholder: "Find a task", "aria-label": "Find a task to ask", oninput: () => drawPicker() });
	const run = h("button.button.primary", { type: "submit" }, "Run");
	let language = "Python";
	let running = null;

	// --- what is asked

	const fields = () => [...new Set(kept.chosen.flatMap((choice) => byName.get(choice.task).fields))];
	const images = () => [...new Set(kept.chosen.flatMap((choice) => byName.get(choice.task).images ?? []))];
	const isPlain = () => !images().length && kept.chosen.every((choice) => byName.get(choice.task).fields.length === 1);

	function drawInputs() {
		const names = isPlain() ? [""] : fields();
		fill(inputs,
			images().length ? h("div.pictures", images().map(drawPicture)) : null,
			names.map((name) => [
				h("label", { for: `field-${name}` }, name || "Text", name && kept.chosen.length > 1 ? h("span.muted.small", ` for ${users("fields", name)}`) : null),
				h("textarea", { id: `field-${name}`, "data-key": `field ${name}`, rows: names.length > 1 ? 2 : 4, spellcheck: "false", placeholder: "Write or paste a text", value: kept.values[name] ?? "", oninput: (event) => { kept.values[name] = event.target.value; drawCode(); }, onkeydown: (event) => {
					if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
				} }),
			]));
	}

	// A picture is chosen, dropped or pasted.
	function drawPicture(name) {
		const file = kept.files[name];
		const shown = h("img.preview", { alt: "", onerror: () => shown.replaceWith(h("span.fault", "The browser cannot show this file.")) });
		if (file) shown.src = URL.createObjectURL(file);
		return h("label.picture", {
			ondragover: (event) => event.preventDefault(),
			ondrop: (event) => {
				event.preventDefault();
				takePicture(name, event.dataTransfer.files);
			},
		},
		h("span", name, kept.chosen.length > 1 ? h("span.muted.small", ` for ${users("images", name)}`) : null),
		file ? [shown, h("span.muted.small", file.name)] : h("span.muted.small", "Choose, drop or paste a JPEG, PNG or WebP file."),
		h("input.unseen", { id: `image-${name}`, "data-key": `image ${name}`, type: "file", accept: "image/jpeg,image/png,image/webp", onchange: (event) => takePicture(name, event.target.files) }));
	}

	function takePicture(name, files) {
		if (!files.length) return;
		kept.files[name] = files[0];
		drawInputs();
		drawCode();
	}

	function paste(event) {
		const place = images().find((name) => !kept.files[name]) ?? images().at(-1);
		const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
		if (!place || !files.length) return;
		event.preventDefault();
		takePicture(place, files);
	}

	const users = (member, name) => kept.chosen.filter((choice) => (byName.get(choice.task)[member] ?? []).includes(name)).map((choice) => choice.task).filter((task, index, all) => all.indexOf(task) === index).join(", ");

	function drawPicker() {
		const looked = search.value.trim().toLowerCase();
		const shown = tasks.filter((task) => kept.chosen.some((choice) => choice.task === task.task) || !looked || `${task.task} ${task.kind}`.toLowerCase().includes(looked));
		fill(picker, shown.map((task) => {
			const own = kept.chosen.filter((choice) => choice.task === task.task);
			const why = may("predict", task.task) ? "" : `needs predict:${task.task}`;
			return h("div", { class: `pick hue${hue(task.task)} ${own.length ? "on" : ""}` },
				h("label", h("input", { type: "checkbox", "data-key": `pick ${task.task}`, checked: own.length > 0, disabled: Boolean(why), onchange: (event) => {
					kept.chosen = event.target.checked ? [...kept.chosen, { task: task.task, which: "" }] : kept.chosen.filter((choice) => choice.task !== task.task);
					redraw();
				} }), h("span.swatch"), h("span.pick-name", task.task), h("span.muted.small", why || KINDS[task.kind] || task.kind)),
				own.length ? h("div.which", own.map((choice, index) => h("span.which-row",
					h("select", { "aria-label": `Version of ${task.task}${index ? `, ${index + 1}` : ""}`, "data-key": `which ${task.task} ${index}`, onchange: (event) => { choice.which = event.target.value; drawCode(); } }, choices(task).map(([value, text]) => h("option", { value, selected: value === choice.which }, text))),
					own.length > 1 ? h("button.link", { type: "button", "aria-label": `Remove this version of ${task.task}`, onclick: () => { kept.chosen = kept.chosen.filter((other) => other !== choice); redraw(); } }, "Remove") : null)),
				choices(task).length > 2 || own.length > 1 ? h("button.link.small", { type: "button", "data-key": `compare ${task.task}`, onclick: () => {
					const taken = new Set(kept.chosen.filter((choice) => choice.task === task.task).map((choice) => choice.which));
					const free = choices(task).map(([value]) => value).filter((value) => !taken.has(value) && value !== `:${task.aliases.production}`);
					kept.chosen.splice(kept.chosen.lastIndexOf(own.at(-1)) + 1, 0, { task: task.task, which: free.at(-1) ?? "" });
					redraw();
				} }, "+ Compare with another version") : null) : null);
		}));
	}

	function choices(task) {
		const aliases = Object.entries(task.aliases).map(([alias, version]) => [alias === "production" ? "" : `@${alias}`, `${alias}${version ? ` (v${version})` : ""}`]);
		if (task.aliases.production === undefined) aliases.unshift(["", "production (none)"]);
		return [...aliases, ...task.versions.filter((version) => !version.retired && version.resident).map((version) => [`:${version.version}`, `version ${version.version}`])];
	}

	const refOf = ({ task, which }) => ({ task, ...(which.startsWith(":") ? { version: Number(which.slice(1)) } : which ? { alias: which.slice(1) } : {}) });

	function redraw() {
		drawPicker();
		drawInputs();
		drawCode();
	}

	// The row as it is sent, or as code shows it.
	async function row(image) {
		if (isPlain()) return kept.values[""] ?? "";
		const values = Object.fromEntries(fields().map((name) => [name, kept.values[name] ?? ""]));
		for (const name of images()) if (kept.files[name]) values[name] = await image(kept.files[name]);
		return values;
	}

	async function drawCode() {
		run.disabled = !kept.chosen.length;
		if (!kept.chosen.length) {
			fill(code, empty("Choose a task."));
			return;
		}
		const example = await row((file) => file);
		const streams = kept.chosen.length === 1 && byName.get(kept.chosen[0].task).kind === "text";
		const shown = code.querySelector("[aria-selected=true]")?.textContent ?? language;
		language = shown;
		fill(code, codeTabs(snippets(kept.chosen.map(refOf), example, streams), shown));
	}

	// --- the answers

	async function ask(event) {
		event?.preventDefault();
		if (!kept.chosen.length) return;
		running?.abort();
		const stop = new AbortController();
		running = stop;
		const chosen = [...kept.chosen];
		const bodies = chosen.map((choice) => h("div.answer-body", h("p.muted", "Asking…")));
		const heads = chosen.map(() => h("span.badges"));
		const cards = chosen.map((choice, index) => h("article", { class: `card answer hue${hue(choice.task)}`, "aria-label": choice.task }, h("div.answer-head", h("h3", h("span.swatch"), choice.task), heads[index]), bodies[index]));
		fill(results, cards);
		fill(timing);
		results.setAttribute("aria-busy", "true");
		const fail = (index, message, reason) => fill(bodies[index], h("p.fault", message), reason ? h("p.muted.small", reason) : null);
		const lanes = [];
		try {
			const sent = await row(base64);
			const answers = new Array(chosen.length);
			const texts = chosen.map((choice, index) => index).filter((index) => byName.get(chosen[index].task).kind === "text");
			const others = chosen.map((choice, index) => index).filter((index) => !texts.includes(index));
			if (others.length) await together(others); // texts then find its pass in the cache
			await Promise.all(texts.map(stream));
			mark(answers);

			function draw(index, thresholds) {
				const task = byName.get(chosen[index].task);
				fill(bodies[index], drawAnswer(task, answers[index], typeof sent === "string" ? sent : sent[task.fields[0]], thresholds));
			}

			async function together(indices) {
				const began = performance.now();
				let answer;
				try {
					answer = await post("v1/predict", { tasks: indices.map((index) => refOf(chosen[index])), inputs: [sent], timings: true }, stop.signal);
				} catch (error) {
					if (error.name !== "AbortError") indices.forEach((index) => fail(index, told(error), error.reason));
					return;
				}
				answer.results.forEach((result, place) => {
					const index = indices[place];
					if (result.error) {
						fail(index, result.error.detail, result.error.reason);
						return;
					}
					answers[index] = result.prediction;
					fill(heads[index], badge(`v${result.prediction.version}`));
					draw(index);
				});
				if (indices.some((index) => answers[index])) lanes[0] = drawTimings(answer.timings, { sides: indices.filter((index) => answers[index]).map((index) => chosen[index].task), title: indices.length > 1 ? `${indices.length} tasks in one request` : chosen[indices[0]].task, trip: (performance.now() - began) / 1000, pictures: indices.some((index) => byName.get(chosen[index].task).images?.length) });
				fill(timing, lanes.filter(Boolean));
				const several = indices.filter((index) => byName.get(chosen[index].task).kind === "multilabel" && answers[index]);
				await Promise.all(several.map(async (index) => draw(index, await thresholdsOf(answers[index]))));
			}

			async function stream(index) {
				const began = performance.now();
				let first = null;
				const made = h("p.made.writing");
				fill(bodies[index], made);
				try {
					const { task, ...which } = refOf(chosen[index]);
					for await (const { name, data } of events(taskPath(task, ":predict"), { ...which, inputs: [sent], stream: true, timings: true }, stop.signal)) {
						if (name === "piece") {
							first ??= (performance.now() - began) / 1000;
							made.append(data.text);
						} else if (name === "error") {
							made.classList.remove("writing");
							bodies[index].append(h("p.fault", data.detail));
						} else {
							made.classList.remove("writing");
							answers[index] = { answers: [{ text: data.text }] };
							fill(heads[index], badge(`v${data.version}`));
							bodies[index].append(h("p.muted.small", `${data.token_count} tokens${data.finish_reason === "length" ? ", cut at the longest allowed" : ""}${first === null ? "" : ` · first piece after ${ms(first)}`}`));
							if (data.timings) lanes[1 + index] = drawTimings(data.timings, { title: `${task}, as a stream`, trip: (performance.now() - began) / 1000, pictures: byName.get(task).images?.length });
							fill(timing, lanes.filter(Boolean));
						}
					}
				} catch (error) {
					made.classList.remove("writing");
					if (error.name !== "AbortError") fail(index, told(error), error.reason);
				}
			}

			function mark(found) {
				chosen.forEach((choice, index) => {
					const before = chosen.findIndex((other) => other.task === choice.task);
					if (before === index || !found[index]) return;
					const same = sameAnswer(found[before], found[index]);
					if (same !== null) heads[index].append(badge(same ? "same answer" : "differs", same ? "" : "warn"));
				});
			}
		} finally {
			if (running === stop) results.setAttribute("aria-busy", "false");
		}
	}

	fill(main, ...page("Playground", "One input, any number of tasks: the backbone reads it once."),
		h("div.columns",
			h("form.stack.ask", { onsubmit: ask, onpaste: paste },
				card("Input", {}, inputs, h("div.buttons.start", run, h("span.muted.small", h("kbd", "Ctrl"), " ", h("kbd", "Enter")))),
				card("Tasks", { extra: tasks.length > 8 ? search : null }, picker)),
			h("div.stack", results, card("Where the time went", {}, timing), card("The same call", {}, code))));
	fill(results, empty("No answer yet.", "Write a text, choose tasks, and run them."));
	fill(timing, h("p.muted", "Shown after a run: measured by the server, for this request."));
	redraw();
	if (query.get("text") !== null) {
		for (const name of isPlain() ? [""] : fields()) kept.values[name] = query.get("text");
		redraw();
	}
	return () => running?.abort();
}

function firstTasks(tasks) {
	const able = tasks.filter((task) => may("predict", task.task) && !task.images && task.aliases.production);
	const plain = able.filter((task) => task.fields.length === 1);
	return (plain.length ? plain : able).slice(0, FIRST_TASKS).map((task) => ({ task: task.task, which: "" }));
}

// The thresholds of a multilabel version by label; none where they cannot be read.
async function thresholdsOf({ task, version }) {
	const key = `${task}:${version}`;
	if (!limits.has(key)) {
		if (!may("read", task)) return {};
		try {
			limits.set(key, (await get(taskPath(task, `/versions/${version}`))).thresholds ?? {});
		} catch (error) {
			if (!(error instanceof Problem)) throw error;
			return {};
		}
	}
	return limits.get(key);
}

function told(error) {
	if (error instanceof Problem) return error.message;
	console.error(error);
	return "The console itself failed.";
}

async function base64(file) {
	const data = new Uint8Array(await file.arrayBuffer());
	let text = "";
	for (let at = 0; at < data.length; at += 0x8000) text += String.fromCharCode(...data.subarray(at, at + 0x8000));
	return { b64: btoa(text) };
}
