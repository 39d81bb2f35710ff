// Pieces of the page. Whatever comes from a study is text here and never markup: nodes are made one
// by one, and nothing is ever parsed as HTML.

const NOT_PRINTED = /(?! )[\p{C}\p{Z}]/gu;
const NOT_PRINTED_IN_TEXTS = /(?![\n\r\t\u200c\u200d])[\p{C}\p{Zl}\p{Zp}]/gu; // which break lines and join emoji
const SEEN = ["title", "alt", "aria-label", "placeholder"];
const ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function escaped(each) {
  const code = each.codePointAt(0);
  const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
  return ESCAPES[each] ?? `\\${letter}${code.toString(16).padStart(digits, "0")}`;
}

// Words with what is not printed (zero width, right to left from here on) as the command line writes it.
export const printed = (words) => (typeof words === "string" ? words.replace(NOT_PRINTED, escaped) : words);

export function h(tag, attrs = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, SEEN.includes(name) ? printed(value) : value);
  }
  const there = children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false);
  node.append(...there.map(printed));
  return node;
}

export function fmt(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-4) return value.toExponential(1).replace("-", "−").replace("e−", "e−");
  if (size >= 1000) return Math.round(value).toLocaleString("en").replace("-", "−");
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

// A number of the data as it is known: six digits, and no mark at thousands, which years have not.
export function given(value) {
  if (value === null || value === undefined) return "–";
  return Number(value.toPrecision(Math.abs(value) < 1e15 ? Math.max(6, Math.trunc(Math.abs(value)).toString().length) : 6))
    .toString().replaceAll("-", "−");
}

export const signed = (value) => (value > 0 ? "+" : "") + fmt(value);
export const count = (value) => (value ?? 0).toLocaleString("en");
export const tone = (value) => (value > 0 ? "helps" : value < 0 ? "harms" : "");

export async function answer(path, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  return answered(fetch(`api/${path}?${query}`));
}

export async function tell(path, params, body) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) if (value) query.set(name, value);
  return answered(
    fetch(`api/${path}?${query}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    }),
  );
}

async function answered(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Error("The explorer does not answer. Was it stopped? Start it again and reload.");
  }
  const text = await response.text();
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error(`The explorer answered ${response.status}: ${text.slice(0, 300)}`);
  }
  if (found.error) throw new Error(found.error);
  return found;
}

export function toast(words, kind = "") {
  const box = document.getElementById("toast");
  box.className = `shown ${kind}`;
  box.textContent = printed(words);
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (box.className = ""), kind === "bad" ? 9000 : 3500);
}

export function pictureOf(row, input, at, size) {
  const query = new URLSearchParams({ split: row.split, id: row.id, input: input.name, dataset: row.dataset });
  for (const [name, value] of Object.entries(at)) if (value) query.set(name, value);
  const [w, t] = input.width >= input.height ? [1, input.height / input.width] : [input.width / input.height, 1];
  return h("img", {
    src: `api/picture?${query}`,
    alt: `${row.split} row ${row.id}`,
    class: Math.max(input.width, input.height) <= 64 ? "pixels" : "",
    loading: "lazy",
    style: { width: `${Math.round(size * w)}px`, height: `${Math.round(size * t)}px` },
  });
}

export function thumb(row, at, size = 44) {
  const input = (row.inputs ?? []).find((each) => each.kind === "picture");
  return input ? h("span", { class: "thumb" }, pictureOf(row, input, at, size)) : null;
}

// The content of a row as a whole: pictures, prose, columns, tokens.
export function content(row, at, size = 176) {
  const parts = (row.inputs ?? []).map((input) => {
    if (input.kind === "picture") return h("div", { class: "frame" }, pictureOf(row, input, at, size));
    if (input.kind === "table") return columns(input.columns);
    if (input.kind === "tokens")
      return h("p", { class: "tokens" }, input.tokens.slice(0, 200).map((each) => h("span", {}, String(each))));
    return h("p", { class: "quiet" }, `an array of ${input.shape.join(" × ")} numbers`);
  });
  return h("div", { class: "content" }, prose(row), parts, row.said ? h("p", { class: "quiet" }, row.said) : null);
}

export function prose(row) {
  return (row.kept ?? [])
    .filter((each) => each.text)
    .map((each) => h("p", { class: "prose" }, h("span", { class: "key" }, each.name),
      document.createTextNode(each.text.replace(NOT_PRINTED_IN_TEXTS, escaped))));
}

function columns(all) {
  const shown = all.slice(0, 12);
  const line = ([name, value]) => h("tr", {}, h("th", {}, name), h("td", {}, given(value)));
  const table = h("table", { class: "columns" }, shown.map(line));
  if (all.length <= shown.length) return table;
  const more = h("button", { class: "link", onclick: () => { more.remove(); table.append(...all.slice(12).map(line)); } },
    `all ${all.length} columns`);
  return [table, more];
}

export function verdict(row) {
  if (row.predicted === null) return null;
  const kind = row.wrong === null ? "" : row.wrong ? "wrong" : "right";
  return h("span", { class: `verdict ${kind}`, title: "the model's prediction" },
    row.wrong === null ? "" : row.wrong ? "✗ " : "✓ ", row.predicted);
}

// A bar of a share of the largest; coloured where the sign says something.
export function bar(value, largest, signed = true) {
  const share = largest ? Math.min(1, Math.abs(value ?? 0) / largest) : 0;
  return h("span", { class: `bar ${signed ? tone(value) : ""}` }, h("i", { style: { width: `${(100 * share).toFixed(1)}%` } }));
}

export function stat(name, value, title) {
  return h("div", { class: "stat", title }, h("dt", {}, name), h("dd", {}, value ?? "–"));
}

export function choose(options, value, onchange, attrs = {}) {
  const node = h("select", { ...attrs, onchange: () => onchange(node.value) },
    options.map(([name, words]) => h("option", { value: String(name) }, words)));
  node.value = String(value ?? "");
  return node;
}

const WORDS = { drop: "drop", relabel: "relabel", keep: "keep" };

// Decide about a training row: the mark is sent at once and shown where it was set.
export function markBox(row, context, { full = false, short = false } = {}) {
  const box = h("div", { class: full ? "mark full" : "mark" });
  const set = async (action, extra = {}) => {
    try {
      const note = box.querySelector("input.note")?.value ?? row.mark?.note ?? "";
      const found = await tell("mark", context.at(), { id: row.id, action, note, ...extra });
      row.mark = found.marks[row.id] ?? null;
      context.marked(found.marks);
      draw();
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const draw = () => {
    const now = row.mark?.action;
    const labels = context.study.labels.train;
    const proposed = row.mark?.label ?? (row.wrong ? row.predicted : null);
    const button = (action) =>
      h("button", {
        class: now === action ? `on ${action}` : "",
        "aria-pressed": now === action ? "true" : "false",
        title: { drop: "leave the row out", keep: "looked at, and right as it is" }[action] ?? `relabel${proposed ? ` as ${proposed}` : ""}`,
        onclick: (event) => {
          event.stopPropagation();
          if (now === action) return set(null);
          if (action !== "relabel") return set(action);
          if (proposed) return set("relabel", { label: proposed });
          box.classList.add("asking");
          picker.focus();
        },
      }, action === "relabel" && proposed ? `${short ? "" : "relabel "}→ ${proposed}` : WORDS[action]);
    const picker = labels.length
      ? choose([["", "new label …"], ...labels.map((each) => [each, each])], proposed ?? "",
          (label) => label && set("relabel", { label }), { "aria-label": "new label" })
      : h("input", { type: "number", step: "any", placeholder: "new value", "aria-label": "new value",
          value: proposed ?? "", onchange: (event) => event.target.value && set("relabel", { label: event.target.value }) });
    picker.classList.add("picker");
    picker.addEventListener("click", (event) => event.stopPropagation());
    const note = full
      ? h("input", { class: "note", type: "text", maxlength: "2000", placeholder: "a note: why?", "aria-label": "note",
          value: row.mark?.note ?? "",
          onchange: () => now && set(now, now === "relabel" ? { label: row.mark.label } : {}) })
      : null;
    box.classList.remove("asking");
    box.replaceChildren(h("div", { class: "group" }, ["drop", "relabel", "keep"].map(button)), picker, ...(note ? [note] : []));
    box.classList.toggle("relabelling", now === "relabel");
  };
  draw();
  return box;
}
