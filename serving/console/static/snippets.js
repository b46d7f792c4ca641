// The same call as code: Python, curl and grpcurl.

import { session } from "./api.js";
import { fill, h, notice } from "./dom.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const python = (value) => {
	if (typeof value === "string") return JSON.stringify(value);
	if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
	if (value instanceof File) return `Path(${JSON.stringify(value.name)})`;
	return `{${Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}: ${python(inner)}`).join(", ")}}`;
};

const ref = (choice) => (choice.version ? `${choice.task}:${choice.version}` : choice.alias ? `${choice.task}@${choice.alias}` : choice.task);

// chosen: [{task, version, alias}], row: a text or {name: text or File}, streams: one text task alone.
export function snippets(chosen, row, streams) {
	const tls = location.protocol === "https:";
	const asks = session.server.asks_tokens;
	const port = session.server.grpc_port ?? "GRPC_PORT";
	const host = `${location.hostname}:${port}`;
	const images = typeof row === "object" && Object.values(row).some((value) => value instanceof File);
	const one = chosen.length === 1;
	files.length = 0;
	return { Python: pythonCode(), curl: curlCode(), grpcurl: grpcurlCode() };

	function pythonCode() {
		const options = [JSON.stringify(host), tls ? "tls=True" : "", asks ? 'token=os.environ["SIDECAST_TOKEN"]' : ""].filter(Boolean).join(", ");
		const imports = [asks ? "import os" : "", images ? "from pathlib import Path" : ""].filter(Boolean);
		const lines = [...imports, ...(imports.length ? [""] : []), "from sidecast import Client", ""];
		lines.push(`with Client(${options}) as client:`);
		if (streams) lines.push(`    for piece in client.stream(${JSON.stringify(ref(chosen[0]))}, ${python(row)}):`, '        print(piece.text, end="", flush=True)');
		else if (one) lines.push(`    answers = client.predict(${JSON.stringify(ref(chosen[0]))}, [${python(row)}])`, "    print(answers[0])");
		else lines.push("    answers = client.predict_tasks(", `        ${python(chosen.map(ref))},`, `        [${python(row)}],`, "    )", "    for task, outcome in answers.items():", "        print(task, outcome)");
		return lines.join("\n");
	}

	function curlCode() {
		const inputs = JSON.stringify([withImages(row, (file) => ({ b64: mark(file) }))]);
		const body = one ? `{"inputs": ${inputs}${streams ? ', "stream": true' : ""}}` : `{"tasks": ${JSON.stringify(chosen.map(ref))}, "inputs": ${inputs}}`;
		const path = one ? `v1/tasks/${ref(chosen[0])}:predict` : "v1/predict";
		const data = shell(body);
		return [`curl ${streams ? "-N " : ""}${new URL(path, new URL(".", document.baseURI))} \\`, "  -H 'Content-Type: application/json' \\", ...(asks ? ['  -H "Authorization: Bearer $SIDECAST_TOKEN" \\'] : []), `  -d ${data}`].join("\n");
	}

	function grpcurlCode() {
		const message = typeof row === "string" ? { text: row } : {
			...(Object.values(row).some((value) => typeof value === "string") ? { fields: Object.fromEntries(Object.entries(row).filter(([, value]) => typeof value === "string")) } : {}),
			...(images ? { images: Object.fromEntries(Object.entries(row).filter(([, value]) => value instanceof File).map(([name, file]) => [name, mark(file)])) } : {}),
		};
		const which = ({ task, version, alias }) => ({ task, ...(version ? { version } : alias ? { alias } : {}) });
		const body = one ? { ...which(chosen[0]), ...(streams ? { row: message } : { rows: [message] }) } : { tasks: chosen.map(which), rows: [message] };
		const method = streams ? "Generate" : one ? "Predict" : "PredictTasks";
		const data = shell(JSON.stringify(body));
		return [`grpcurl ${tls ? "" : "-plaintext "}\\`, ...(asks ? ['  -H "authorization: Bearer $SIDECAST_TOKEN" \\'] : []), `  -d ${data} \\`, `  ${host} sidecast.v1.Sidecast/${method}`].join("\n");
	}
}

// An image in JSON is a mark, for which the shell puts the file's bytes.
const files = [];
const mark = ({ name }) => `\uE000${files.push(name) - 1}\uE000`;
const shell = (json) => quote(json).replace(/\uE000(\d+)\uE000/g, (_, index) => `'"$(base64 -w0 ${quote(files[index] ?? "")})"'`);

function withImages(row, make) {
	if (typeof row === "string") return row;
	return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, value instanceof File ? make(value) : value]));
}

// Tabs that show one of the texts, with a button that copies it.
export function codeTabs(texts, shown = "Python") {
	const names = Object.keys(texts);
	const code = h("pre", { tabindex: "0", id: "code-panel", role: "tabpanel", "aria-label": "Code" });
	let now = shown;
	const tabs = names.map((name) => h("button", { type: "button", role: "tab", "data-key": `code ${name}`, "aria-controls": "code-panel", onclick: () => show(name), onkeydown: (event) => {
		const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
		if (!step) return;
		const next = names[(names.indexOf(name) + step + names.length) % names.length];
		show(next);
		tabs[names.indexOf(next)].focus();
	} }, name));
	function show(name) {
		now = name;
		tabs.forEach((tab, index) => {
			tab.setAttribute("aria-selected", String(names[index] === name));
			tab.tabIndex = names[index] === name ? 0 : -1;
		});
		fill(code, texts[name]);
	}
	show(shown);
	return h("div.code",
		h("div.code-head", h("div", { role: "tablist", "aria-label": "Language", class: "tabs" }, tabs), h("button.button.small", { type: "button", onclick: async () => {
			try {
				await navigator.clipboard.writeText(texts[now]);
				notice(`Copied the ${now} call.`);
			} catch {
				getSelection().selectAllChildren(code);
				notice("Selected: copy it with your keyboard.");
			}
		} }, "Copy")), code);
}
