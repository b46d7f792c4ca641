// Polls the server's counters and makes rates of them. Two answers of /v1/statistics differ by what happened between them.

import { get } from "./api.js";

const EVERY_MS = 2000;
const KEPT = 31; // answers, one minute
const RECENT = 5; // answers of which a present rate is made

export class Live {
	constructor() {
		this.answers = [];
		this.listeners = new Set();
		this.error = null;
		this.timer = null;
	}

	start() {
		this.stop();
		const next = async () => {
			if (!document.hidden) await this.poll();
			this.timer = setTimeout(next, EVERY_MS);
		};
		next();
	}

	stop() {
		clearTimeout(this.timer);
		this.timer = null;
	}

	async poll() {
		try {
			const answer = await get("v1/statistics");
			answer.byKey = new Map(answer.versions.map((entry) => [`${entry.task}\n${entry.version}`, entry]));
			const last = this.answers.at(-1);
			if (last && restarted(last, answer)) this.answers = [];
			this.answers.push(answer);
			if (this.answers.length > KEPT) this.answers.shift();
			this.error = null;
		} catch (error) {
			this.error = error;
		}
		for (const listener of this.listeners) listener(this);
	}

	follow(listener) {
		this.listeners.add(listener);
		if (this.answers.length) listener(this);
		return () => this.listeners.delete(listener);
	}

	get ready() {
		return this.answers.length > 1;
	}

	get last() {
		return this.answers.at(-1);
	}

	// Figures of the versions that `wanted` takes, over the last minute; the rate over the last ten seconds.
	figures(wanted) {
		const none = { rate: 0, p50: null, p99: null, errors: null, cached: null, requests: 0, series: [] };
		if (!this.ready) return none;
		const first = this.answers[0], last = this.last;
		const recent = this.answers.at(-Math.min(RECENT + 1, this.answers.length));
		const minute = difference(first, last, wanted);
		const now = difference(recent, last, wanted);
		const series = this.answers.slice(1).map((answer, index) => {
			const before = this.answers[index];
			return difference(before, answer, wanted).requests / Math.max(answer.at - before.at, 0.001);
		});
		return {
			rate: now.requests / Math.max(last.at - recent.at, 0.001),
			p50: quantile(minute.buckets, last.bounds, 0.5),
			p99: quantile(minute.buckets, last.bounds, 0.99),
			errors: minute.requests ? minute.errors / minute.requests : null,
			cached: minute.rows ? Math.min(1, minute.cached / minute.rows) : null,
			requests: minute.requests,
			series,
		};
	}

	// What a counter of the process grew by; null where the caller may not read it.
	serverDelta(name) {
		if (!this.ready || !this.last.server || !this.answers[0].server) return null;
		return this.last.server[name] - this.answers[0].server[name];
	}

	stageDeltas() {
		if (!this.ready || !this.last.stages || !this.answers[0].stages) return null;
		const seconds = this.last.at - this.answers[0].at;
		return Object.entries(this.last.stages).map(([stage, counts]) => ({
			stage,
			seconds: counts.seconds - this.answers[0].stages[stage].seconds,
			count: counts.count - this.answers[0].stages[stage].count,
			share: (counts.seconds - this.answers[0].stages[stage].seconds) / Math.max(seconds, 0.001),
		}));
	}
}

function restarted(before, after) {
	if (before.server && after.server && before.server.started_at !== after.server.started_at) return true;
	return after.at < before.at;
}

function difference(before, after, wanted) {
	const sum = { requests: 0, errors: 0, rows: 0, cached: 0, buckets: [] };
	for (const [key, entry] of after.byKey) {
		if (!wanted(entry)) continue;
		const old = before.byKey.get(key);
		for (const [code, value] of Object.entries(entry.requests)) {
			const more = Math.max(0, value - (old?.requests[code] ?? 0));
			sum.requests += more;
			if (code !== "OK" && code !== "CANCELLED") sum.errors += more;
		}
		sum.rows += Math.max(0, entry.rows - (old?.rows ?? 0));
		sum.cached += Math.max(0, entry.cached_rows - (old?.cached_rows ?? 0));
		entry.buckets.forEach((value, index) => {
			sum.buckets[index] = (sum.buckets[index] ?? 0) + Math.max(0, value - (old?.buckets[index] ?? 0));
		});
	}
	return sum;
}

// A quantile from counts between bounds; inside a bucket, requests are taken as evenly spread.
export function quantile(buckets, bounds, part) {
	const total = buckets.reduce((sum, value) => sum + value, 0);
	if (!total) return null;
	let left = part * total;
	for (let index = 0; index < buckets.length; index += 1) {
		if (left <= buckets[index] && buckets[index]) {
			const low = index ? bounds[index - 1] : 0;
			const high = index < bounds.length ? bounds[index] : low;
			return low + ((high - low) * left) / buckets[index];
		}
		left -= buckets[index];
	}
	return bounds.at(-1);
}

export const live = new Live();
