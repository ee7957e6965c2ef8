// Canvas drawings that share one time axis, one cursor and the fault windows.

const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const SOFT = ["slow", "cpu-hog", "delay"]; // faults that make slow; the others take away

export const isSoft = (action) => SOFT.includes(action);

export function formatMs(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms >= 10000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return ms >= 100 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(1)} ms`;
}

// A round number of milliseconds without ".0".
export const formatLimit = (ms) => formatMs(ms).replace(/\.0 /, " ");

export const formatTime = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");

const cache = new Map();
export function color(name) {
  if (!cache.has(name)) cache.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return cache.get(name);
}
export const forgetColors = () => cache.clear();

// One canvas made ready: ctx, width, height, plot edges, x(t).
export class Frame {
  constructor(canvas, { from, to, left, right = 8, top = 8, bottom = 20 }) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const ctx = canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = FONT;
    ctx.lineJoin = "round";
    Object.assign(this, { canvas, ctx, width, height, from, to, left, top });
    this.right = width - right;
    this.bottom = height - bottom;
    this.second = (this.right - this.left) / (to - from);
  }

  x(t) { return this.left + (t - this.from) * this.second; }

  // The second under a position in the canvas.
  at(x) { return Math.min(this.to - 1, Math.max(this.from, Math.floor(this.from + (x - this.left) / this.second))); }

  text(text, x, y, { name = "muted", align = "left", base = "middle", bold = false } = {}) {
    const { ctx } = this;
    ctx.fillStyle = color(name);
    ctx.textAlign = align;
    ctx.textBaseline = base;
    ctx.font = bold ? `600 ${FONT}` : FONT;
    ctx.fillText(text, x, y);
  }

  // `text` cut so that it fits into `width`.
  fit(text, width) {
    this.ctx.font = FONT;
    if (this.ctx.measureText(text).width <= width) return text;
    let length = text.length;
    // The end of a pod's name tells it from its siblings.
    while (length > 1 && this.ctx.measureText(`…${text.slice(-length)}`).width > width) length -= 1;
    return `…${text.slice(-length)}`;
  }

  timeAxis(labels = true) {
    const { ctx } = this;
    const span = this.to - this.from;
    const room = Math.max(2, Math.floor((this.right - this.left) / 86));
    const step = [10, 15, 30, 60, 120, 300].find((one) => span / one <= room) ?? 600;
    ctx.strokeStyle = color("grid");
    ctx.lineWidth = 1;
    for (let t = Math.ceil(this.from / step) * step; t <= this.to; t += step) {
      const x = Math.round(this.x(t)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(x, this.top);
      ctx.lineTo(x, this.bottom);
      ctx.stroke();
      if (!labels) continue;
      const text = formatTime(t);
      const half = ctx.measureText(text).width / 2;
      if (x - half >= 0 && x + half <= this.width) this.text(text, x, this.bottom + 12, { align: "center" });
    }
  }

  // Fault windows behind everything; with `lane`, named in a strip above the plot.
  bands(faults, { lane = 0, named = true, alpha = 0.34 } = {}) {
    const { ctx } = this;
    const used = [];
    for (const fault of faults) {
      const x0 = Math.max(this.left, this.x(fault.begin));
      const x1 = Math.min(this.right, Math.max(this.x(fault.end), x0 + 2));
      if (x1 < this.left || x0 > this.right) continue;
      const kind = isSoft(fault.action) ? "slow" : "kill";
      ctx.globalAlpha = alpha;
      ctx.fillStyle = color(`band-${kind}`);
      ctx.fillRect(x0, this.top, x1 - x0, this.bottom - this.top);
      ctx.globalAlpha = alpha && 0.55;
      ctx.fillStyle = color(`edge-${kind}`);
      ctx.fillRect(x0, this.top, 1, this.bottom - this.top);
      if (!fault.live) ctx.fillRect(x1 - 1, this.top, 1, this.bottom - this.top);
      ctx.globalAlpha = 1;
      if (!lane) continue;
      ctx.fillStyle = color(`edge-${kind}`);
      ctx.fillRect(x0, this.top - 4, x1 - x0, 4);
      if (!named) continue;
      const text = `${fault.action} ${fault.target}`;
      const wide = ctx.measureText(text).width;
      const x = Math.max(2, Math.min(x0, this.right - wide));
      if (used.every(([a, b]) => x > b + 8 || x + wide < a - 8)) {
        this.text(text, x, this.top - 13, { name: "ink" });
        used.push([x, x + wide]);
      }
    }
  }

  // Where the frontend was started anew, and where seconds are missing.
  restarts(seconds) {
    const { ctx } = this;
    ctx.strokeStyle = color("faint");
    ctx.setLineDash([2, 3]);
    for (const t of seconds) {
      if (t < this.from || t > this.to) continue;
      ctx.beginPath();
      ctx.moveTo(this.x(t), this.top);
      ctx.lineTo(this.x(t), this.bottom);
      ctx.stroke();
    }
    ctx.setLineDash([]);
  }

  cursor(t) {
    if (t === null || t < this.from || t >= this.to) return;
    const { ctx } = this;
    ctx.fillStyle = color("ink");
    ctx.globalAlpha = 0.55;
    ctx.fillRect(this.x(t) + this.second / 2 - 0.5, this.top, 1, this.bottom - this.top);
    ctx.globalAlpha = 1;
  }

  // A line through [t, value] pairs, broken where seconds are missing.
  line(points, y, name, { width = 2 } = {}) {
    const { ctx } = this;
    ctx.strokeStyle = color(name);
    ctx.lineWidth = width;
    ctx.beginPath();
    let last = null;
    for (const [t, value] of points) {
      if (value === null || value === undefined) continue;
      const x = this.x(t + 0.5);
      if (last !== null && t - last <= 3) ctx.lineTo(x, y(value));
      else {
        ctx.moveTo(x, y(value));
        ctx.lineTo(x + 1, y(value));
      }
      last = t;
    }
    ctx.stroke();
  }

  guide(y, text) {
    const { ctx } = this;
    ctx.strokeStyle = color("grid");
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(this.left, Math.round(y) + 0.5);
    ctx.lineTo(this.right, Math.round(y) + 0.5);
    ctx.stroke();
    this.text(text, this.left - 8, y, { align: "right" });
  }

  // A dashed line at a limit.
  level(y) {
    const { ctx } = this;
    ctx.strokeStyle = color("slo");
    ctx.setLineDash([6, 4]);
    ctx.lineWidth = 1.3;
    ctx.beginPath();
    ctx.moveTo(this.left, y);
    ctx.lineTo(this.right, y);
    ctx.stroke();
    ctx.setLineDash([]);
  }

  clip(draw) {
    const { ctx } = this;
    ctx.save();
    ctx.beginPath();
    ctx.rect(this.left, this.top - 1, this.right - this.left, this.bottom - this.top + 2);
    ctx.clip();
    draw();
    ctx.restore();
  }
}

// Stacked bars, one for each second; `parts`: [[name of the colour, row => count], ...].
export function stack(frame, rows, parts, top) {
  const { ctx } = frame;
  const gap = frame.second >= 4 ? 1 : 0;
  for (const row of rows) {
    let y = frame.bottom;
    for (const [name, count] of parts) {
      const height = ((frame.bottom - frame.top) * count(row)) / top;
      if (height <= 0) continue;
      ctx.fillStyle = color(name);
      // The rare kinds are the news: at least a visible line of them.
      const shown = Math.max(height, 2);
      ctx.fillRect(frame.x(row.t), y - shown, Math.max(1, frame.second - gap), shown);
      y -= shown;
    }
  }
}

// A round number at or above `value`: 1, 1.2, 1.6, 2, 3, ...
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10].find((one) => one * power >= value) * power;
}

const HEAT = [[1, "heat-1"], [2, "heat-2"], [4, "heat-4"], [8, "heat-8"]];

// How hot an attempt of `ms` is beside a median, as a colour.
export function heat(ms, median) {
  if (ms === null || ms === undefined) return color("heat-0");
  const ratio = median > 0 ? ms / median : 1;
  if (ratio <= 1) return color("heat-1");
  for (let i = 1; i < HEAT.length; i += 1) {
    const [low, from] = HEAT[i - 1];
    const [high, to] = HEAT[i];
    if (ratio <= high) return mix(color(from), color(to), Math.log2(ratio / low) / Math.log2(high / low));
  }
  return color("heat-8");
}

function mix(a, b, share) {
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  const value = (i) => Math.round(part(a, i) + share * (part(b, i) - part(a, i)));
  return `rgb(${value(0)} ${value(1)} ${value(2)})`;
}

// A cell of the group view for a worker that is not simply up.
export function hatch(ctx, state, x, y, width, height) {
  if (state === "up" || state === "slow") return;
  ctx.fillStyle = color("off");
  ctx.fillRect(x, y, width, height);
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, width, height);
  ctx.clip();
  ctx.strokeStyle = color(state === "suspected" || state === "quarantined" ? "hatch" : "faint");
  ctx.lineWidth = state === "gone" ? 1 : 1.6;
  ctx.globalAlpha = state === "gone" ? 0.5 : 0.85;
  ctx.beginPath();
  if (state === "draining") {
    for (let i = 3; i < height; i += 5) { ctx.moveTo(x, y + i); ctx.lineTo(x + width, y + i); }
  } else if (state === "starting") {
    ctx.setLineDash([1.5, 4]);
    for (let i = 3; i < height; i += 5) { ctx.moveTo(x, y + i); ctx.lineTo(x + width, y + i); }
  } else if (state === "suspected" || state === "quarantined") {
    // Lines go on from cell to cell: they are laid through the page, not through the cell.
    const first = Math.floor((x - height) / 6) * 6;
    for (let i = first; i < x + width; i += 6) { ctx.moveTo(i, y + height); ctx.lineTo(i + height, y); }
  } else {
    ctx.moveTo(x, y + height / 2);
    ctx.lineTo(x + width, y + height / 2);
  }
  ctx.stroke();
  ctx.restore();
}
