// Charts as SVG, drawn from numbers.

import { count, fmt, printed } from "./parts.js";

const SPACE = "http://www.w3.org/2000/svg";

function s(tag, attrs = {}, ...children) {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attrs)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, name === "aria-label" ? printed(value) : value);
  }
  node.append(...children.map(printed));
  return node;
}

function frame(width, height, words) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words, class: "chart" });
}

// How the influences are spread; counts on a root scale, since most pairs hardly matter.
// Where some lie beyond the axis, the outermost bars have them as well.
export function histogram(told, { width = 300, height = 120 } = {}) {
  const { counts, edges } = told;
  const svg = frame(width, height, `histogram of ${count(told.all)} influences`);
  const base = height - 20;
  const most = Math.sqrt(Math.max(1, ...counts));
  const limit = edges.at(-1);
  const x = (value) => ((value + limit) / (2 * limit)) * width;
  const range = (k) => told.beyond && k === 0 ? `up to ${fmt(edges[1])}`
    : told.beyond && k === counts.length - 1 ? `from ${fmt(edges[k])}` : `from ${fmt(edges[k])} to ${fmt(edges[k + 1])}`;
  counts.forEach((number, k) => {
    if (!number) return;
    const tall = Math.max(1.5, (Math.sqrt(number) / most) * (base - 6));
    const middle = (edges[k] + edges[k + 1]) / 2;
    const kind = Math.abs(middle) < limit * 1e-6 ? "none" : middle > 0 ? "helps" : "harms";
    svg.append(s("rect", { x: x(edges[k]) + 0.5, y: base - tall, width: Math.max(1, x(edges[k + 1]) - x(edges[k]) - 1),
      height: tall, class: kind }, s("title", {}, `${count(number)} rows ${range(k)}`)));
  });
  svg.append(s("line", { x1: 0, x2: width, y1: base, y2: base, class: "axis" }));
  for (const [at, anchor, value] of [[0, "start", -limit], [width / 2, "middle", 0], [width, "end", limit]]) {
    svg.append(s("text", { x: at, y: height - 5, "text-anchor": anchor }, fmt(value)));
  }
  return svg;
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    const step = Math.max(1, Math.ceil((Math.log10(high) - Math.log10(low)) / 6));
    for (let k = Math.ceil(Math.log10(low)); k <= Math.floor(Math.log10(high)); k += step) found.push(10 ** k);
    return found;
  }
  const raw = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k += 1) found.push(k * step);
  return found;
}

function power(value) {
  const exponent = Math.round(Math.log10(value));
  if (exponent >= -2 && exponent <= 3) return String(Number(value.toPrecision(1)));
  const digits = String(Math.abs(exponent)).split("").map((each) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[each]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

// Points with axes: {x, y, kind, id, title}. `equal` draws the diagonal on which both agree.
export function scatter(points, { width = 760, height = 300, xName, yName, log = false, equal = false, onpick = null } = {}) {
  const svg = frame(width, height, `${yName} against ${xName}`);
  const [left, right, top, bottom] = [64, 14, 10, 40];
  const positive = (axis) => points.map((each) => each[axis]).filter((value) => !log || value > 0);
  const ends = (axis) => {
    const values = positive(axis);
    if (!values.length) return log ? [0.1, 1] : [-1, 1];
    let [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    if (log) {
      low = Math.max(low, high * 1e-9);
      return [low / 1.4, high * 1.4];
    }
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - room, high + room];
  };
  let [xs, ys] = [ends("x"), ends("y")];
  if (equal) xs = ys = [Math.min(xs[0], ys[0]), Math.max(xs[1], ys[1])];
  const f = log ? Math.log10 : (value) => value;
  const place = (value, [low, high], from, to) => from + ((f(Math.max(value, log ? low : -Infinity)) - f(low)) / (f(high) - f(low))) * (to - from);
  const px = (value) => place(value, xs, left, width - right);
  const py = (value) => place(value, ys, height - bottom, top);
  for (const value of ticks(...ys, log)) {
    svg.append(s("line", { x1: left, x2: width - right, y1: py(value), y2: py(value), class: "grid" }),
      s("text", { x: left - 8, y: py(value) + 4, "text-anchor": "end" }, log ? power(value) : fmt(value)));
  }
  for (const value of ticks(...xs, log)) {
    svg.append(s("line", { x1: px(value), x2: px(value), y1: top, y2: height - bottom, class: "grid" }),
      s("text", { x: px(value), y: height - bottom + 16, "text-anchor": "middle" }, log ? power(value) : fmt(value)));
  }
  if (equal) svg.append(s("line", { x1: px(xs[0]), y1: py(xs[0]), x2: px(xs[1]), y2: py(xs[1]), class: "equal" }));
  const order = [...points].sort((a, b) => (a.kind ? 1 : 0) - (b.kind ? 1 : 0));
  for (const point of order) {
    if (point.x === null || point.y === null) continue;
    const dot = s("circle", { cx: px(point.x).toFixed(1), cy: py(point.y).toFixed(1), r: point.kind ? 3.5 : 2.5, class: `dot ${point.kind ?? ""}` },
      s("title", {}, point.title ?? point.id));
    if (onpick) dot.addEventListener("click", () => onpick(point));
    svg.append(dot);
  }
  svg.append(s("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", class: "name" }, xName),
    s("text", { x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle", class: "name",
      transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, yName));
  if (onpick) svg.classList.add("picks");
  return svg;
}

// Named numbers around zero.
export function bars(names, values, { width = 560 } = {}) {
  const line = 22;
  const left = Math.min(230, 20 + 7.5 * Math.max(...names.map((name) => Math.min(name.length, 30))));
  const height = names.length * line + 8;
  const svg = frame(width, height, "what more of each column does");
  const most = Math.max(...values.map(Math.abs), 1e-300);
  const middle = left + (width - left) / 2;
  const half = (width - left) / 2 - 56;
  names.forEach((name, k) => {
    const [value, y] = [values[k] ?? 0, k * line + 4];
    const long = (Math.abs(value) / most) * half;
    const shown = name.length > 30 ? `${name.slice(0, 29)}…` : name;
    svg.append(
      s("text", { x: left - 10, y: y + 14, "text-anchor": "end", class: "label" }, shown, s("title", {}, name)),
      s("rect", { x: value >= 0 ? middle : middle - long, y: y + 3, width: Math.max(long, 1), height: line - 8, class: value >= 0 ? "helps" : "harms" }),
      s("text", { x: value >= 0 ? middle + long + 6 : middle - long - 6, y: y + 14, "text-anchor": value >= 0 ? "start" : "end" },
        fmt(values[k])),
    );
  });
  svg.append(s("line", { x1: middle, x2: middle, y1: 0, y2: height, class: "axis" }));
  return svg;
}
