// The panels with a time axis. Each draws a store into its canvas and can tell of one second.

import { Frame, color, formatLimit, formatMs, hatch, heat, isSoft, roundUp, stack } from "./charts.js";
import { SOURCES } from "./store.js";

const QUANTILES = [["p99.9", "p999", 2, 2.2], ["p99", "p99", 1, 2], ["p50", "p50", 0, 2]];
const ROW_PX = 24;

const gutter = (canvas) => (canvas.clientWidth < 560 ? 74 : 128);

function frameOf(canvas, view, more = {}) {
  const { store, range } = view;
  return new Frame(canvas, { from: store.end - range, to: store.end, left: gutter(canvas), ...more });
}

const finish = (frame, view) => {
  frame.restarts(view.store.restarts);
  frame.cursor(view.cursor);
  return frame;
};

export function drawLatency(canvas, view) {
  const frame = frameOf(canvas, view, { top: 26 });
  const { store, source } = view;
  const rows = store.last(view.range);
  const slo = store.model?.slo.latency_ms ?? 50;
  const shown = rows.flatMap((row) => row.q[source] ?? []);
  const low = Math.min(slo / 4, ...shown) * 0.8;
  const high = Math.max(slo * 1.6, ...shown) * 1.15;
  const scale = (frame.bottom - frame.top) / Math.log(high / low);
  const y = (ms) => frame.bottom - scale * Math.log(Math.max(ms, low) / low);
  frame.bands(store.faults(frame.from, frame.to), { lane: 1 });
  frame.timeAxis();
  for (let power = -1; power < 6; power += 1) {
    for (const one of [1, 2, 5]) {
      const ms = one * 10 ** power;
      if (ms > low && ms < high && Math.abs(y(ms) - y(slo)) > 13) frame.guide(y(ms), ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`);
    }
  }
  frame.clip(() => {
    for (const [, name, index, width] of [...QUANTILES].reverse()) {
      frame.line(rows.map((row) => [row.t, row.q[source]?.[index]]), y, name, { width });
    }
    frame.level(y(slo));
  });
  const limit = formatLimit(slo);
  frame.text(frame.left > 100 ? `objective ${limit}` : limit, frame.left - 8, y(slo), { name: "slo", align: "right", bold: true });
  return finish(frame, view);
}

export function tellLatency(view, row) {
  const found = row.q[view.source];
  if (!found) return ["no answers"];
  return QUANTILES.map(([label, , index]) => `${label.padEnd(6)} ${formatMs(found[index])}`);
}

const answered = (row) => Object.values(row.by).reduce((sum, count) => sum + count, 0);

export function drawAnswers(canvas, view) {
  const frame = frameOf(canvas, view);
  const rows = view.store.last(view.range);
  const top = roundUp(Math.max(4, ...rows.map((row) => answered(row) + row.failed)) * 1.02);
  frame.bands(view.store.faults(frame.from, frame.to));
  frame.timeAxis();
  for (const share of [0, 0.5, 1]) {
    frame.guide(frame.bottom - share * (frame.bottom - frame.top), `${(top * share).toLocaleString("en")}`);
  }
  // The rare ones on top, where a line of them stands out.
  const parts = [...SOURCES.map((one) => [one, (row) => row.by[one] ?? 0]), ["failed", (row) => row.failed]];
  stack(frame, rows, parts, top);
  return finish(frame, view);
}

export function tellAnswers(_view, row) {
  const found = SOURCES.filter((one) => row.by[one]).map((one) => `${one.padEnd(14)} ${row.by[one]}`);
  if (row.failed) found.push(`${"failed".padEnd(14)} ${row.failed}`);
  return [...found, `${"redundant work".padEnd(14)} ${row.extra}`];
}

// The model's median of a second, for the heat: what the workers themselves show, without outliers.
function medianOf(row) {
  const found = [...row.cells.values()].filter((one) => one.ms !== null).map((one) => one.ms).sort((a, b) => a - b);
  return found.length ? found[Math.floor((found.length - 1) / 2)] : 0;
}

export function drawWorkers(canvas, view) {
  const workers = view.store.workers(view.range);
  const height = `${Math.max(1, workers.length) * ROW_PX + 26}px`;
  if (canvas.style.height !== height) canvas.style.height = height;
  const frame = frameOf(canvas, view, { top: 4 });
  const { ctx } = frame;
  const rows = view.store.last(view.range);
  frame.workers = workers;
  frame.row = ROW_PX;
  frame.timeAxis();
  const faults = view.store.faults(frame.from, frame.to);
  const wide = Math.max(1, frame.second - (frame.second >= 4 ? 1 : 0)) + (frame.second < 4 ? 0.5 : 0);
  const medians = rows.map(medianOf);
  // A median over some seconds, so that one lonely slow answer is not its own measure.
  const typical = medians.map((_, i) => {
    const near = medians.slice(Math.max(0, i - 20), i + 1).filter((one) => one > 0).sort((a, b) => a - b);
    return near.length ? near[Math.floor((near.length - 1) / 2)] : 0;
  });
  workers.forEach(({ name, now }, i) => {
    const y = frame.top + i * ROW_PX + 2;
    let known = false;
    frame.clip(() => rows.forEach((row, k) => {
      const cell = row.cells.get(name);
      const x = frame.x(row.t);
      if (cell) {
        known = true;
        ctx.fillStyle = heat(cell.ms, typical[k]);
        ctx.fillRect(x, y, wide, ROW_PX - 4);
        hatch(ctx, cell.state, x, y, wide, ROW_PX - 4);
      } else if (known) hatch(ctx, "gone", x, y, wide, ROW_PX - 4);
    }));
    outline(frame, faults.filter((one) => one.target === name || one.target === "all workers"), y);
    label(frame, name, now, y + ROW_PX / 2 - 2);
  });
  return finish(frame, view);
}

// Where a fault was aimed at this worker.
function outline(frame, faults, y) {
  const { ctx } = frame;
  for (const fault of faults) {
    const x0 = Math.max(frame.left, frame.x(fault.begin));
    const x1 = Math.min(frame.right, Math.max(frame.x(fault.end), x0 + 3));
    ctx.strokeStyle = color(isSoft(fault.action) ? "edge-slow" : "edge-kill");
    ctx.lineWidth = 2;
    ctx.strokeRect(x0, y - 1, x1 - x0, ROW_PX - 2);
  }
}

const LAMPS = { up: "good", slow: "edge-slow", suspected: "bad", gone: "faint", starting: "faint", draining: "warn", quarantined: "bad" };

function label(frame, name, now, y) {
  const { ctx } = frame;
  const state = now?.state ?? "gone";
  ctx.fillStyle = color(LAMPS[state] ?? "faint");
  ctx.beginPath();
  if (state === "up") ctx.arc(7, y, 4, 0, 2 * Math.PI);
  else ctx.rect(3, y - 4, 8, 8);
  ctx.fill();
  frame.text(frame.fit(name, frame.left - 26), 17, y, { name: state === "up" ? "ink" : LAMPS[state] ?? "faint" });
}

export function tellWorkers(_view, row, frame, y) {
  const one = frame?.workers?.[Math.floor((y - frame.top) / frame.row)];
  if (!one) return [...row.cells].slice(0, 12).map(([name, cell]) => `${name}  ${cell.state === "up" ? formatMs(cell.ms) : cell.state}`);
  const cell = row.cells.get(one.name);
  if (!cell) return [one.name, "gone"];
  const reason = one.now?.reason && cell.state === one.now.state ? [one.now.reason.slice(0, 90)] : [];
  return [one.name, cell.state, `slowest ${formatMs(cell.ms)}`, `${cell.answered} answers`, ...reason];
}

// The colour of a policy in force: of the costliest thing that it does.
export function hueOf(policy) {
  const plan = policy.split("+");
  const hues = [["parity", "hero"], ["hedge", "hedge"], ["replicate", "replica"], ["retry", "retry"]];
  return hues.find(([name]) => plan.includes(name))?.[1] ?? "worker";
}

export function drawPolicies(canvas, view) {
  const frame = frameOf(canvas, view, { left: 2, right: 2, top: 7 });
  const { ctx } = frame;
  frame.timeAxis();
  for (const row of view.store.last(view.range)) {
    ctx.fillStyle = color(hueOf(row.policy));
    ctx.fillRect(frame.x(row.t), frame.top + 3, frame.second + 0.6, frame.bottom - frame.top - 5);
  }
  frame.bands(view.store.faults(frame.from, frame.to), { lane: 1, named: false, alpha: 0 });
  return finish(frame, view);
}

export const tellPolicies = (_view, row) => [row.policy, `${Math.round(100 * row.busy)} % of the workers busy`];

export function drawAccuracy(canvas, view) {
  const frame = frameOf(canvas, view, { left: 38, right: 4 });
  const rows = view.store.last(view.range);
  const minimum = view.store.model?.accuracy.minimum ?? 0.9;
  const low = Math.min(minimum - 0.05, ...rows.map((row) => row.agreement ?? 1)) - 0.02;
  const y = (share) => frame.bottom - ((frame.bottom - frame.top) * (share - low)) / (1.01 - low);
  frame.bands(view.store.faults(frame.from, frame.to));
  frame.timeAxis();
  frame.guide(y(1), "1.0");
  frame.level(y(minimum));
  frame.text(minimum.toFixed(2), frame.left - 7, y(minimum), { name: "slo", align: "right" });
  frame.clip(() => frame.line(rows.map((row) => [row.t, row.agreement]), y, "hero", { width: 2 }));
  return finish(frame, view);
}

export const tellAccuracy = (_view, row) => [row.agreement === null ? "not measured yet" : `${(100 * row.agreement).toFixed(1)} % agree`];

export function drawGroups(canvas, view) {
  const frame = frameOf(canvas, view);
  const rows = view.store.last(view.range);
  const top = roundUp(Math.max(4, ...rows.map((row) => row.done + row.abandoned)));
  frame.bands(view.store.faults(frame.from, frame.to));
  frame.timeAxis();
  frame.guide(frame.bottom, "0");
  frame.guide(frame.top, top.toLocaleString("en"));
  stack(frame, rows, [["abandoned", (row) => row.abandoned], ["done", (row) => row.done]], top);
  return finish(frame, view);
}

export const tellGroups = (_view, row) => [`done       ${row.done}`, `abandoned  ${row.abandoned}`];
