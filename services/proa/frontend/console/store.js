// What the frontend told, kept by second: it outlives a frontend that goes away and comes back.

const KEPT_S = 600;
const ANSWER_S_MAX = 4;
// As `history.STATES` has them.
export const STATES = ["up", "slow", "suspected", "starting", "draining", "quarantined"];
// The order in which series are stacked and listed.
export const SOURCES = ["worker", "retry", "replica", "hedge", "backup", "reconstructed"];

export class Store {
  constructor() {
    this.wanted = "";
    this.doc = null;
    this.rows = [];
    this.seen = 0; // when something new was last told, ms since 1970, our clock
    this.offset = 0; // the frontend's clock minus ours, ms
    this.restarts = []; // seconds, the frontend's clock
    this.lost = "";
  }

  get model() { return this.doc?.model ?? null; }

  // Seconds since 1970 at the right edge: it stands still when nothing is told any more.
  get end() { return this.rows.length ? this.rows[this.rows.length - 1].t + 1 : Math.floor(Date.now() / 1000); }

  pick(name) {
    this.wanted = name;
    this.rows = [];
  }

  // Ask once; whether there is something new. Never throws.
  async poll() {
    const since = this.rows.length ? this.rows[this.rows.length - 1].t : 0;
    const wanted = this.wanted;
    const query = new URLSearchParams({ model: wanted, since: String(since) });
    try {
      const answer = await fetch(`console.json?${query}`, {
        cache: "no-store", signal: AbortSignal.timeout(1000 * ANSWER_S_MAX),
      });
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      const doc = await answer.json();
      if (wanted === this.wanted) this.take(doc);
    } catch (error) {
      this.lost = error instanceof SyntaxError ? "The answer is not whole." : "The frontend does not answer.";
      return false;
    }
    const quiet = Date.now() - this.seen > 1000 * ANSWER_S_MAX;
    this.lost = quiet ? "The frontend answers, but its event loop stands still." : "";
    return !quiet;
  }

  take(doc) {
    const before = this.doc;
    if (before && before.started_ms !== doc.started_ms) {
      this.restarts.push(Math.floor(doc.started_ms / 1000));
      this.restarts = this.restarts.slice(-32);
    }
    if (!before || before.now_ms !== doc.now_ms) {
      this.seen = Date.now();
      this.offset = doc.now_ms - this.seen;
    }
    this.doc = doc;
    const names = new Map((doc.model?.workers ?? []).map((one) => [one.id, one.name]));
    if (this.rows.length && doc.now_ms / 1000 < this.end - 5) this.rows = []; // its clock was set back
    for (const row of doc.seconds) {
      row.cells = new Map();
      for (const [id, ms, state, answered] of row.workers) {
        const name = names.get(id);
        if (name !== undefined) row.cells.set(name, { ms, state: STATES[state], answered });
      }
      delete row.workers;
      this.rows.push(row);
    }
    const oldest = this.end - KEPT_S;
    while (this.rows.length && this.rows[0].t < oldest) this.rows.shift();
  }

  // The rows of the last `seconds` seconds.
  last(seconds) { return this.rows.filter((row) => row.t >= this.end - seconds); }

  // The row of second `t`, if there is one.
  at(t) { return this.rows.find((row) => row.t === t); }

  // Every worker that a row or the pool knows of, in order of their names.
  workers(seconds) {
    const found = new Map();
    for (const row of this.last(seconds)) for (const name of row.cells.keys()) found.set(name, null);
    for (const one of this.model?.workers ?? []) {
      if (one.state !== "gone" || found.has(one.name)) found.set(one.name, one);
    }
    const natural = new Intl.Collator("en", { numeric: true });
    return [...found].sort((a, b) => natural.compare(a[0], b[0])).map(([name, now]) => ({ name, now }));
  }

  // The faults between two seconds; `live`: whether it acts now.
  faults(from, to) {
    const now = this.doc?.now_ms ?? 0;
    return (this.doc?.faults ?? [])
      .map((one) => ({ ...one, begin: one.begin_ms / 1000, live: one.end_ms > now,
        end: Math.min(one.end_ms, Math.max(now, one.begin_ms)) / 1000 }))
      .filter((one) => one.end >= from && one.begin <= to);
  }
}
