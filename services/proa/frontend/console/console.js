// The console: asks the frontend once a second, fills the page, draws the panels.
//
// What the frontend says is only ever set as text. Styles are classes: the page's policy allows no
// style attributes and no scripts of others.

import { color, forgetColors, formatLimit, formatMs, formatTime, heat, hatch, isSoft } from "./charts.js";
import * as panels from "./panels.js";
import { SOURCES, Store } from "./store.js";

const POLL_MS = 1000;
const SAID_MS = 10000;
const MINUTE_S = 60;
const $ = (id) => document.getElementById(id);

const store = new Store();
const view = { store, range: 300, source: "all", cursor: null };
const charts = [
  ["latency", panels.drawLatency, panels.tellLatency],
  ["answers", panels.drawAnswers, panels.tellAnswers],
  ["workers", panels.drawWorkers, panels.tellWorkers],
  ["policies", panels.drawPolicies, panels.tellPolicies],
  ["accuracy", panels.drawAccuracy, panels.tellAccuracy],
  ["groups", panels.drawGroups, panels.tellGroups],
].map(([id, draw, tell]) => ({ canvas: $(id), draw, tell, frame: null }));

function el(tag, { text, cls, ...attributes } = {}, ...children) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  if (cls) found.className = cls;
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const count = (number) => number.toLocaleString("en");
const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function tile(id, value, note, state = "") {
  const node = $(id);
  setText(node.querySelector("b"), value);
  setText(node.querySelector("p"), note);
  if (node.dataset.state !== state) node.dataset.state = state;
}

function facts(id, pairs) {
  $(id).replaceChildren(...pairs.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
}

// --- the numbers

function fillTiles(model) {
  const { minute, slo } = model;
  const rows = store.last(MINUTE_S);
  const failed = sum(rows.map((row) => row.failed));
  const answers = minute.counts.all ?? 0;
  const asked = answers + failed;
  const limit = formatLimit(slo.latency_ms);
  if (asked) {
    const within = (answers - minute.late) / asked;
    const met = within >= slo.percentile / 100;
    // Rounded down: 99.96 % is not 100.0 %.
    tile("tile-slo", `${(Math.floor(within * 1e4) / 100).toFixed(2)} %`,
      `${met ? "met" : "missed"}: ${slo.percentile} % within ${limit}`, met ? "good" : "bad");
  } else tile("tile-slo", "–", `objective: ${slo.percentile} % within ${limit}`);
  const quantiles = minute.quantiles_ms.all;
  ["p50", "p99", "p999"].forEach((name, i) => {
    const over = quantiles && quantiles[i] > slo.latency_ms;
    tile(`tile-${name}`, quantiles ? formatMs(quantiles[i]) : "–", quantiles ? (over ? "above the objective" : "last minute") : "no answers");
  });
  const recent = store.last(10);
  const rate = recent.length ? sum(recent.map((row) => sum(Object.values(row.by)) + row.failed)) / recent.length : 0;
  tile("tile-rate", `${rate >= 100 ? rate.toFixed(0) : rate.toFixed(1)} /s`, `${count(model.queue)} queued`);
  tile("tile-failed", count(failed), failed ? `${percent(failed / asked, 2)}, last minute` : "last minute", failed ? "bad" : "");
  const sent = sum(rows.map((row) => row.sent));
  tile("tile-extra", sent ? percent(sum(rows.map((row) => row.extra)) / sent) : "–", "of the queries sent");
}

function fillSources(model) {
  const { counts, quantiles_ms: quantiles } = model.minute;
  const total = counts.all ?? 0;
  const rows = ["all", ...SOURCES, ...Object.keys(counts).filter((one) => one !== "all" && !SOURCES.includes(one))]
    .filter((one) => counts[one])
    .map((one) => el("tr", { cls: one === "all" ? "all" : "" },
      el("td", {}, ...(one === "all" ? [] : [el("i", { cls: `dot c-${SOURCES.includes(one) ? one : "worker"}` })]), one),
      el("td", { text: one === "all" ? count(total) : percent(counts[one] / total, counts[one] / total < 0.01 ? 2 : 1) }),
      ...quantiles[one].map((ms) => el("td", { text: ms >= 100 ? ms.toFixed(0) : ms.toFixed(1), cls: ms > model.slo.latency_ms ? "late" : "" }))));
  if (!rows.length) rows.push(el("tr", {}, el("td", { text: "no answers in the last minute", colspan: "5" })));
  $("sources").tBodies[0].replaceChildren(...rows);
}

function fillPolicy({ policy, total }) {
  setText($("policy"), policy.in_force.replaceAll("+", " + "));
  const why = policy.why === "as configured" ? "as configured" : `${policy.why}`;
  setText($("why"), policy.configured === policy.in_force ? why : `${policy.configured}: ${why}`);
  $("mode").hidden = policy.mode === "enforce";
  setText($("mode"), policy.mode === "observe" ? "observing only" : policy.mode);
  const extra = sum(Object.values(total.redundant));
  facts("policy-facts", [["k, r", `${policy.k}, ${policy.r}`], ["pool", policy.pool], ["patience", policy.patience],
    ["busy", percent(policy.utilisation, 0)], ["late answers", percent(policy.late_share)],
    ["extra in all", total.sent ? percent(extra / total.sent) : "–"]]);
}

function fillAccuracy({ accuracy, total }) {
  const known = accuracy.agreement !== null;
  setText($("agreement"), known ? `${percent(accuracy.agreement, 2)} agree` : "not measured yet");
  const badge = $("recon");
  badge.hidden = !known && !accuracy.off;
  setText(badge, accuracy.off ? "switched off" : "in use");
  badge.dataset.state = accuracy.off ? "bad" : "good";
  const used = total.answers.reconstructed ?? 0;
  const answers = sum(Object.values(total.answers));
  setText($("agreement-why"), accuracy.off
    ? `Reconstruction is switched off: below ${accuracy.minimum} over ${count(accuracy.samples)} sampled groups.`
    : `${count(accuracy.samples)} sampled groups (${percent(accuracy.sampled, 0)} of all); switched off below ${percent(accuracy.minimum, 0)}. Reconstructed so far: ${count(used)} of ${count(answers)}.`);
}

function fillGroups({ total }) {
  facts("group-facts", [["done", count(total.groups.done ?? 0)], ["abandoned", count(total.groups.abandoned ?? 0)],
    ["places filled", count(total.fillers)], ["parity lost", count(total.redundancy_lost)]]);
}

function fillFaults() {
  const faults = store.faults(0, Infinity).reverse();
  $("faults").replaceChildren(...faults.map((one) => el("li", { title: one.id },
    el("i", { cls: `dot c-${isSoft(one.action) ? "slow" : "kill"}` }),
    el("span", {}, el("b", { text: `${one.action} ${one.target}` }), " ", el("small", { text: one.id })),
    el("small", { cls: one.live ? "now" : "", text: one.live
      ? `now, ${Math.max(0, Math.round((one.end_ms - store.doc.now_ms) / 1000))} s left`
      : `${formatTime(one.begin)}, ${Math.max(1, Math.round(one.end - one.begin))} s` }))));
  setText($("no-faults"), faults.length ? "" : store.doc.faults_allowed
    ? "None. proa chaos announces its faults here." : "Fault injection is off here, so none are announced.");
}

function fillWorkers(model) {
  const natural = new Intl.Collator("en", { numeric: true });
  const rows = [...model.workers].filter((one) => one.state !== "gone").sort((a, b) => natural.compare(a.name, b.name));
  $("workers-now").tBodies[0].replaceChildren(...rows.map((one) => el("tr", {},
    el("td", { text: one.name }),
    el("td", { text: one.reason ? `${one.state}: ${one.reason}` : one.state, cls: one.state === "up" ? "" : "late" }),
    el("td", { text: one.domain }), el("td", { text: one.roles.join(", ") }),
    ...["inflight", "answered", "errors", "faults"].map((name) => el("td", { text: one[name] === undefined ? "–" : count(one[name]) })))));
  setText($("workers-left-out"), model.workers_left_out ? `${count(model.workers_left_out)} more workers are not drawn.` : "");
}

function fillPicker() {
  const select = $("model");
  const names = store.doc.models;
  if (names.join("\n") !== [...select.options].map((one) => one.value).join("\n")) {
    select.replaceChildren(...names.map((name) => el("option", { text: name, value: name })));
    select.disabled = names.length < 2;
  }
  if (store.model && select.value !== store.model.name) select.value = store.model.name;
}

function fillChips(model) {
  const chips = ["all", ...SOURCES.filter((one) => model.total.answers[one])];
  if (!chips.includes(view.source)) view.source = "all";
  const group = $("source");
  if (group.dataset.of !== chips.join()) {
    group.dataset.of = chips.join();
    group.replaceChildren(...chips.map((one) => el("button", { type: "button", text: one, "data-source": one })));
  }
  for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.source === view.source));
}

// --- keys: painted, so that they are what the charts show

function swatch(paint) {
  const canvas = el("canvas", { width: 28, height: 24, "aria-hidden": "true" });
  const ctx = canvas.getContext("2d");
  ctx.scale(2, 2);
  paint(ctx);
  return canvas;
}

const filled = (name) => swatch((ctx) => { ctx.fillStyle = color(name); ctx.fillRect(0, 0, 14, 12); });
const lined = (name) => swatch((ctx) => { ctx.fillStyle = color(name); ctx.fillRect(0, 5, 14, 3); });

function fillKeys() {
  const item = (mark, text) => el("li", {}, mark, text);
  $("key-latency").replaceChildren(...[["p999", "p99.9"], ["p99", "p99"], ["p50", "p50"]].map(([name, text]) => item(lined(name), text)));
  const used = SOURCES.filter((one) => store.rows.some((row) => row.by[one]));
  const sources = (used.length ? used : ["worker"]).map((one) => item(filled(one), one));
  $("key-answers").replaceChildren(...sources, item(filled("failed"), "failed"));
  const policies = [...new Set(store.last(view.range).map((row) => row.policy))];
  $("key-policies").replaceChildren(...policies.map((one) => item(filled(panels.hueOf(one)), one.replaceAll("+", " + "))));
  $("key-groups").replaceChildren(item(filled("done"), "done"), item(filled("abandoned"), "abandoned"));
  const hot = [1, 2, 4, 8].map((times) => item(swatch((ctx) => { ctx.fillStyle = heat(times, 1); ctx.fillRect(0, 0, 14, 12); }), times === 1 ? "usual" : `${times}×`));
  const states = [["suspected", "suspected or quarantined: no work"], ["starting", "starting"], ["draining", "draining"], ["gone", "gone"]]
    .map(([state, text]) => item(swatch((ctx) => hatch(ctx, state, 0, 0, 14, 12)), text));
  $("key-workers").replaceChildren(...hot, ...states);
}

// --- everything

function drawAll() {
  for (const chart of charts) if (chart.canvas.clientWidth) chart.frame = chart.draw(chart.canvas, view);
}

function fill() {
  const { model, doc } = store;
  fillPicker();
  fillFaults();
  setText($("about"), `proa ${doc.version}; this frontend runs since ${new Date(doc.started_ms).toLocaleString("en-GB")}`
    + (doc.models_left_out ? `; ${doc.models_left_out} more models are not shown` : ""));
  if (!model) return;
  fillTiles(model);
  fillSources(model);
  fillPolicy(model);
  fillAccuracy(model);
  fillGroups(model);
  fillWorkers(model);
  fillChips(model);
  fillKeys();
  document.title = `${model.name}, proa console`;
}

function showLife() {
  const live = $("live");
  const lost = store.lost !== "";
  const at = store.seen ? formatTime((store.seen + store.offset) / 1000) : "";
  live.dataset.state = lost ? "lost" : !store.model ? "wait" : store.doc.ready ? "live" : "unready";
  document.body.classList.toggle("lost", lost);
  const since = at ? `No data since ${at}` : "No data yet";
  setText(live.querySelector("span"), lost ? since : store.model ? `${store.doc.ready ? "live" : "not ready"}, ${at}`
    : store.doc?.models.length ? "Waiting for the first second" : "No model is served yet");
  $("banner").hidden = !lost;
  if (lost) setText($("banner"), `${since}. ${store.lost} This page asks again every second.`);
}

// Charts as words, for those who do not see them; not every second, nobody could follow.
let saidAt = 0;
function describe() {
  const { model } = store;
  if (!model || Date.now() - saidAt < SAID_MS) return;
  saidAt = Date.now();
  const quantiles = model.minute.quantiles_ms.all;
  const said = quantiles ? `p50 ${formatMs(quantiles[0])}, p99 ${formatMs(quantiles[1])}, p99.9 ${formatMs(quantiles[2])}` : "no answers";
  $("latency").setAttribute("aria-label", `Latency of ${model.name} over time. Last minute: ${said}.`);
  $("answers").setAttribute("aria-label", `Answers a second by source. Last minute: ${Object.entries(model.minute.counts).map(([name, n]) => `${name} ${n}`).join(", ")}.`);
  const down = model.workers.filter((one) => one.state !== "up" && one.state !== "gone").map((one) => `${one.name} ${one.state}`);
  $("workers").setAttribute("aria-label", `Workers over time. Now: ${down.length ? down.join(", ") : "all up"}.`);
  $("policies").setAttribute("aria-label", `Policy over time. Now: ${model.policy.in_force}.`);
  $("accuracy").setAttribute("aria-label", `Agreement over time. Now: ${$("agreement").textContent}.`);
  $("groups").setAttribute("aria-label", "Coding groups a second, by how they ended.");
}

async function turn() {
  await store.poll();
  showLife();
  if (store.doc) {
    if (store.lost === "") fill();
    drawAll();
    describe();
  }
}

async function run() {
  for (;;) {
    const started = performance.now();
    await turn();
    const rest = Math.max(100, POLL_MS - (performance.now() - started));
    await new Promise((resolve) => { setTimeout(resolve, rest); });
  }
}

// --- the cursor: one second, on all charts

function point(chart, t, place) {
  view.cursor = t;
  drawAll();
  const row = store.at(t);
  const lines = row ? chart.tell(view, row, chart.frame, place.inside) : ["no data"];
  const tip = $("tip");
  tip.replaceChildren(el("b", { text: formatTime(t) }), lines.join("\n"));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(place.x + 14, window.innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(place.y + 14, window.innerHeight - height - 8))}px`;
  return lines;
}

function unpoint() {
  view.cursor = null;
  $("tip").hidden = true;
  drawAll();
}

for (const chart of charts) {
  chart.canvas.addEventListener("pointermove", (event) => {
    if (!chart.frame) return;
    point(chart, chart.frame.at(event.offsetX), { x: event.clientX, y: event.clientY, inside: event.offsetY });
  });
  chart.canvas.addEventListener("pointerleave", unpoint);
  chart.canvas.addEventListener("blur", unpoint);
  chart.canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
    if (event.key === "Escape") unpoint();
    if (!step || !chart.frame) return;
    event.preventDefault();
    const t = Math.min(chart.frame.to - 1, Math.max(chart.frame.from, (view.cursor ?? chart.frame.to) + step));
    const box = chart.canvas.getBoundingClientRect();
    const lines = point(chart, t, { x: box.left + chart.frame.x(t), y: box.top + 20, inside: -1 });
    setText($("said"), `${formatTime(t)}: ${lines.join(", ")}`);
  });
}

$("range").addEventListener("click", (event) => {
  if (!event.target.dataset.seconds) return;
  view.range = Number(event.target.dataset.seconds);
  for (const button of event.currentTarget.children) button.setAttribute("aria-pressed", String(button === event.target));
  drawAll();
});
$("source").addEventListener("click", (event) => {
  if (!event.target.dataset.source) return;
  view.source = event.target.dataset.source;
  fillChips(store.model);
  drawAll();
});
$("model").addEventListener("change", (event) => {
  store.pick(event.target.value);
  history.replaceState(null, "", `#${encodeURIComponent(event.target.value)}`);
  turn();
});
window.addEventListener("resize", drawAll);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  forgetColors();
  fillKeys();
  drawAll();
});

function start() {
  try {
    store.pick(decodeURIComponent(location.hash.slice(1)));
  } catch {
    store.pick(""); // a hash that is no name
  }
  run();
}
start();
