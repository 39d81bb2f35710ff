// The pages, and the way between them: everything that is looked at stands in the address.

import { bars, histogram, scatter } from "./draw.js";
import {
  answer, bar, choose, content, count, fmt, given, h, markBox, pictureOf, prose, signed, stat, tell, thumb, toast, tone, verdict,
} from "./parts.js";

const state = { study: null, marks: 0 };
const main = document.getElementById("main");
const AT = ["method", "damping", "version"];

// -- where we are -------------------------------------------------------------------------------

function here() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const names = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { page: names[0] ?? "test", names: names.slice(1), query: Object.fromEntries(new URLSearchParams(query)) };
}

function at() {
  const { query } = here();
  return Object.fromEntries(AT.map((name) => [name, query[name] ?? ""]));
}

function address(path, query = {}) {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...at(), ...query })) if (value) kept.set(name, value);
  return `#/${path.map(encodeURIComponent).join("/")}${kept.size ? `?${kept}` : ""}`;
}

const go = (path, query) => (location.hash = address(path, query));
const change = (query) => {
  const { page, names, query: now } = here();
  go([page, ...names], { ...now, page: "", ...query });
};

const context = {
  get study() { return state.study; },
  at,
  marked(marks) {
    state.marks = Object.keys(marks).length;
    head();
  },
};

const show = (...nodes) =>
  main.replaceChildren(...nodes.flat(Infinity).filter(Boolean),
    state.study.assumes ? h("footer", { class: "quiet" }, `These numbers assume: ${state.study.assumes}.`) : "");

// -- the head -----------------------------------------------------------------------------------

const settingWords = ({ method, damping, version }) =>
  [method, damping ? `λ ${fmt(Number(damping))}` : null, version ? `version ${version}` : null].filter(Boolean).join(" · ");

function head() {
  const { page } = here();
  const { method, damping, version } = at();
  const chosen = state.study.methods.find((each) => each.name === method) ?? state.study.methods[0];
  const tab = (name, words) =>
    h("a", { href: address([name]), class: page === name ? "on" : "", "aria-current": page === name ? "page" : null }, words);
  const badge = state.marks ? h("span", { class: "badge" }, count(state.marks)) : null;
  const pick = (name, options, value, also = {}) =>
    options.length > 1 ? h("label", {}, h("span", {}, name), choose(options, value, (to) => change({ [name]: to, ...also }), { "aria-label": name })) : null;
  document.getElementById("head").replaceChildren(
    h("a", { class: "brand", href: "#/test", title: state.study.address }, state.study.name, h("span", {}, "influence explorer")),
    h("nav", {}, tab("test", "Test rows"), tab("train", "Training rows"), tab("edits", ["Edits ", badge])),
    h("div", { class: "settings" },
      pick("method", state.study.methods.map((each) => [each.name, each.name]), chosen.name, { damping: "", version: "" }),
      pick("damping", chosen.dampings.map((each) => [each, `λ ${fmt(each)}`]), damping || chosen.dampings.at(-1)),
      pick("version", chosen.versions.map((each) => [each, each === chosen.version ? `${each} (current)` : each]).reverse(), version || chosen.version)),
  );
}

// -- tables of rows -----------------------------------------------------------------------------

const SORTS = {
  test: [["loss", "largest loss"], ["total", "total influence"], ["file", "as in the file"]],
  train: [["suspicion", "most suspicious"], ["disagreement", "neighbours disagree"], ["self_influence", "largest self-influence"], ["loss", "largest loss"], ["total", "total influence"], ["file", "as in the file"]],
};

async function rowsPage(split) {
  const { query } = here();
  const sort = query.sort ?? SORTS[split][0][0];
  const asked = { split, sort, ...query };
  const [found, cloud] = await Promise.all([
    ask("rows", asked),
    split === "train" && state.study.has.self_influence && state.study.has.losses ? ask("scatter", at()) : null,
  ]);
  const labels = state.study.labels[split];
  const search = h("input", { type: "search", placeholder: "search ids and columns", "aria-label": "search", value: query.search ?? "" });
  let wait;
  search.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(() => { state.typing = true; change({ search: search.value }); }, 250);
  });
  const filters = h("div", { class: "filters" },
    search,
    labels.length ? choose([["", "every label"], ...labels.map((each) => [each, `label ${each}`])], query.label ?? "",
      (label) => change({ label }), { "aria-label": "label" }) : null,
    found.wrong === null ? null : h("label", { class: "check" },
      h("input", { type: "checkbox", checked: query.wrong === "1", onchange: (event) => change({ wrong: event.target.checked ? "1" : "" }) }),
      `predicted wrongly (${count(found.wrong)})`),
    h("span", { class: "space" }),
    h("label", { class: "sort" }, h("span", {}, "sorted by"), choose(SORTS[split], sort, (to) => change({ sort: to, up: "" }), { "aria-label": "sort" })),
    sort === "file" ? null : h("button", { class: "quiet", title: "the other way round", onclick: () => change({ up: query.up === "1" ? "" : "1" }) },
      query.up === "1" ? "↑ smallest first" : "↓ largest first"));
  show(
    h("section", { class: "intro" },
      h("h1", {}, split === "test" ? "Test rows" : "Training rows"),
      h("p", { class: "quiet" }, split === "test"
        ? "What did the model say, and how wrong was it? Open a row to see which training rows are behind it."
        : "Whose label do its nearest rows contradict, and on whom does the model lean for its own sake alone? Such a row is mislabelled, or unlike all others: look at the first ones, and mark them.")),
    state.study.has.losses ? null : h("p", { class: "note" },
      "Losses and predictions of these rows are not stored: the study was materialised before they were kept, or its summaries are behind. Refresh it."),
    cloud ? cloudOf(cloud) : null,
    filters,
    tableOf(found, split),
    pages(found),
  );
  if (state.typing) {
    state.typing = false;
    search.focus();
    search.setSelectionRange(search.value.length, search.value.length);
  }
}

function cloudOf(cloud) {
  const points = cloud.ids.map((id, k) => ({
    id, x: cloud.loss[k], y: cloud.self_influence[k], kind: cloud.wrong?.[k] ? "wrong" : "",
    title: `${id}${cloud.labels[k] === null ? "" : `, label ${cloud.labels[k]}`}: loss ${fmt(cloud.loss[k])}, self-influence ${fmt(cloud.self_influence[k])}`,
  }));
  return h("section", { class: "card cloud" },
    scatter(points, { width: 1180, height: 250, xName: "loss of the training row", yName: "self-influence", log: true, onpick: (point) => go(["train", point.id]) }),
    h("p", { class: "quiet legend" },
      cloud.wrong ? [h("i", { class: "dot wrong" }), "the model predicts another label ", h("i", { class: "dot" }), "as labelled"] : "each dot is a training row",
      cloud.shown < cloud.all ? ` · the ${count(cloud.largest)} with the largest self-influence, and ${count(cloud.shown - cloud.largest)} of the other ${count(cloud.all - cloud.largest)}` : ""));
}

const MEASURES = new Set(["neighbours", "self-influence", "loss", "measurement", "total influence", "on all tests"]);

function tableOf(found, split) {
  const own = split === "train";
  const labelled = found.rows.some((row) => row.label !== null);
  const predicted = found.rows.some((row) => row.predicted !== null);
  const kept = found.rows[0]?.kept.slice(0, 2).map((each) => each.name) ?? [];
  const pictured = state.pictured?.[split];
  const columns = [
    pictured ? "" : null, "id", ...kept, labelled ? "label" : null, predicted ? "prediction" : null,
    own && found.largest.disagreement !== null ? "neighbours" : null,
    own && found.largest.self_influence !== null ? "self-influence" : null,
    found.largest.loss !== null ? state.study.measurement && !own ? "measurement" : "loss" : null,
    found.largest.total !== null ? (own ? "on all tests" : "total influence") : null, own ? "mark" : null,
  ].filter((each) => each !== null);
  const measure = (row, name) => h("td", { class: "measure" }, h("span", {}, fmt(row[name])), bar(row[name], found.largest[name], name === "total"));
  const open = (row) => go([split, row.id]);
  const line = (row) => h("tr", { class: "opens", tabindex: "0", onclick: () => open(row), onkeydown: (event) => event.key === "Enter" && event.target.tagName === "TR" && open(row) },
    pictured ? h("td", { class: "pic" }, h("span", { class: "thumb" }, pictureOf({ ...row, split }, pictured, at(), 36))) : null,
    h("td", { class: "id" }, h("a", { href: address([split, row.id]) }, row.id)),
    kept.map((name) => h("td", { class: "kept" }, row.kept.find((each) => each.name === name)?.text ?? "")),
    labelled ? h("td", state.study.classes ? {} : { class: "amount", title: row.label }, row.label) : null,
    predicted ? h("td", {}, verdict(row)) : null,
    own && found.largest.disagreement !== null ? measure(row, "disagreement") : null,
    own && found.largest.self_influence !== null ? measure(row, "self_influence") : null,
    found.largest.loss !== null ? measure(row, "loss") : null,
    found.largest.total !== null ? measure(row, "total") : null,
    own ? h("td", { class: "marks" }, markBox({ ...row, split }, context)) : null);
  if (!found.rows.length) return h("p", { class: "empty" }, "No row is so. Take a filter away.");
  return h("div", { class: "wide" }, h("table", { class: "rows" }, h("thead", {}, h("tr", {}, columns.map((each) => h("th", { class: MEASURES.has(each) ? "measure" : "" }, each)))), h("tbody", {}, found.rows.map(line))));
}

function pages(found) {
  const first = found.page * found.size;
  const step = (by, words) => h("button", { disabled: found.page + by < 0 || found.page + by >= found.pages,
    onclick: () => { const { page, names, query } = here(); go([page, ...names], { ...query, page: String(found.page + by) }); } }, words);
  return h("div", { class: "pages" }, step(-1, "← before"),
    h("span", {}, found.found ? `${count(first + 1)}–${count(Math.min(first + found.size, found.found))} of ${count(found.found)}` : "none",
      found.found < found.all ? ` (of ${count(found.all)})` : ""),
    step(1, "next →"));
}

// -- one row ------------------------------------------------------------------------------------

async function rowPage(split, id) {
  const found = await ask("row", { split, id, ...at() });
  const { row } = found;
  const head_ = h("div", { class: "rowhead" },
    h("p", { class: "crumb" }, h("a", { href: address([split]) }, split === "test" ? "Test rows" : "Training rows"), " / "),
    h("h1", {}, row.id),
    h("dl", { class: "stats" },
      row.label === null ? null : stat("label", row.label),
      row.predicted === null ? null : stat("prediction", verdict(row)),
      row.loss === null ? null : stat(state.study.measurement && split === "test" ? "measurement" : "loss", fmt(row.loss)),
      row.disagreement === null ? null : stat("neighbours disagree", fmt(row.disagreement), "of classes the share of the ten nearest rows with another label, near ones counting more"),
      row.self_influence === null ? null : stat("self-influence", fmt(row.self_influence)),
      row.rank === null ? null : stat("suspect no.", count(row.rank), "by its neighbours and by the model together"),
      row.total === null ? null : stat(split === "test" ? "total influence" : "on all test losses", fmt(row.total),
        "sum of its influences")));
  const aside = h("aside", {},
    h("div", { class: "card" }, content(row, at(), 216)),
    split === "train" ? h("div", { class: "card" }, h("h3", {}, "Decide"), markBox(row, context, { full: true })) : null,
    h("div", { class: "card" }, h("h3", {}, `Its ${count(found.histogram.all)} influences`),
      histogram(found.histogram, { width: 248 }),
      h("p", { class: "quiet" }, `${count(found.histogram.positive)} help, ${count(found.histogram.negative)} harm; counts on a root scale`,
        found.histogram.beyond ? `; ${count(found.histogram.beyond)} beyond ±${fmt(found.histogram.edges.at(-1))} in the outermost bars` : "")));
  const list = (entries, kind, title, words) => h("section", { class: `list ${kind}` },
    h("h2", {}, title), h("p", { class: "quiet" }, words),
    entries.length ? entries.map((each) => entry(each, row, found, split)) : h("p", { class: "empty" }, "none"));
  show(head_, h("div", { class: "one" }, aside,
    h("div", { class: "lists" },
      list(found.helps, "helps", split === "test" ? "Helped most" : "Whom it helps", split === "test" ? "Without them the loss would be larger." : "Test rows whose loss would be larger without it."),
      list(found.harms, "harms", split === "test" ? "Harmed most" : "Whom it harms", split === "test" ? "Without them the loss would be smaller." : "Test rows whose loss would be smaller without it.")),
    compare(split, id, found)));
}

function entry(each, row, found, split) {
  const [test, train] = split === "test" ? [row.id, each.id] : [each.id, row.id];
  const largest = Math.max(...[...found.helps, ...found.harms].map((one) => Math.abs(one.influence)));
  const odd = state.study.classes && each.label !== null && row.label !== null && each.label !== row.label;
  const chips = each.differences.filter((one) => one.differs).slice(0, 4);
  const same = each.differences.length && !chips.length;
  return h("article", { class: "entry" },
    h("div", { class: "line", tabindex: "0", role: "link", title: "look at the pair", onclick: () => go(["pair", test, train]),
        onkeydown: (event) => event.key === "Enter" && go(["pair", test, train]) },
      thumb(each, at()),
      h("div", { class: "who" },
        h("a", { href: address([each.split, each.id]), onclick: (event) => event.stopPropagation() }, each.id),
        h("span", { class: "facts" },
          each.label === null ? null : h("span", { class: odd ? "label odd" : "label" }, `label ${each.label}`), each.wrong === null && each.predicted !== null ? "predicted " : null, verdict(each))),
      each.split === "train" ? markBox(each, context, { short: true }) : null,
      h("div", { class: "value" }, h("b", { class: tone(each.influence) }, signed(each.influence)), bar(each.influence, largest))),
    prose(each),
    chips.length ? h("p", { class: "chips" }, chips.map((one) => h("span", { title: `${fmt(Math.abs(one.apart))} standard deviations ${one.apart > 0 ? "above" : "below"}` },
      h("i", {}, one.name), ` ${given(one.value)} `, h("em", {}, `vs ${given(one.test)}`)))) : null,
    same ? h("p", { class: "quiet" }, "no column differs by a standard deviation") : null);
}

// The same row by other numbers, side by side.
function compare(split, id, found) {
  const options = [];
  for (const method of state.study.methods) {
    for (const version of [...method.versions].reverse()) {
      for (const damping of method.dampings.length ? method.dampings : [""]) {
        const one = { method: method.name, damping: String(damping), version: version === method.version ? "" : String(version) };
        const isThis = method.name === found.at.method && version === found.at.version && (damping === "" || damping === found.at.damping);
        if (!isThis) options.push([new URLSearchParams(one).toString(), settingWords(one)]);
      }
    }
  }
  if (!options.length) return null;
  const result = h("div", { class: "side" });
  let asking;
  const pick = async (value) => {
    asking = value;
    if (!value) return result.replaceChildren();
    const one = Object.fromEntries(new URLSearchParams(value));
    const asked = { split, id, ...at(), with_method: one.method, with_damping: one.damping, with_version: one.version };
    try {
      const other = await answer("compare", asked);
      if (asking === value) result.replaceChildren(...beside(found, other, settingWords(other.other.at)));
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const { query } = here();
  if (query.beside && options.some(([value]) => value === query.beside)) pick(query.beside);
  return h("section", { class: "card compare" },
    h("h3", {}, "Side by side with"),
    choose([["", "another method, damping or version …"], ...options], query.beside ?? "", (value) => {
      const { page, names, query: now } = here();
      history.replaceState(null, "", address([page, ...names], { ...now, beside: value }));
      pick(value);
    }, { "aria-label": "side by side with" }),
    result);
}

function beside(found, answer, words) {
  const column = (title, helps, harms, shared) => h("div", { class: "ranks" }, h("h4", {}, title),
    ["helps", "harms"].map((kind) => h("ol", { class: kind }, (kind === "helps" ? helps : harms).map((each) =>
      h("li", { class: shared.has(each.id) ? "shared" : "" }, thumb(each, at(), 28), h("a", { href: address([each.split, each.id]) }, each.id),
        h("b", { class: tone(each.influence) }, signed(each.influence)))))));
  const ids = (one) => new Set([...one.helps, ...one.harms].map((each) => each.id));
  const [mine, theirs] = [ids(found), ids(answer.other)];
  const shared = new Set([...mine].filter((each) => theirs.has(each)));
  const agree = h("div", { class: "agree" },
    h("dl", { class: "stats" }, stat("Spearman", fmt(answer.spearman)), stat("Pearson", fmt(answer.pearson)),
      stat("shared of the strongest", `${shared.size} of ${mine.size}`)),
    scatter(answer.points.map(([x, y]) => ({ x, y })), { width: 300, height: 240, xName: settingWords(found.at), yName: words }));
  return [column(settingWords(found.at), found.helps, found.harms, shared), column(words, answer.other.helps, answer.other.harms, shared), agree];
}

// -- one pair -----------------------------------------------------------------------------------

async function pairPage(test, train) {
  const found = await ask("pair", { test, train, ...at() });
  const card = (row, title, path) => h("div", { class: "card side" },
    h("h3", {}, title), h("p", {}, h("a", { href: address([path, row.id]) }, row.id)),
    content(row, at(), 216),
    h("dl", { class: "stats" }, row.label === null ? null : stat("label", row.label), row.predicted === null ? null : stat("prediction", verdict(row)),
      row.loss === null ? null : stat("loss", fmt(row.loss))),
    path === "train" ? markBox(row, context, { full: true }) : null);
  const words = tone(found.influence);
  show(
    h("div", { class: "rowhead" },
      h("p", { class: "crumb" }, h("a", { href: address(["test", test]) }, test), " / "),
      h("h1", {}, train, h("b", { class: `entry-value ${words}` }, signed(found.influence))),
      h("p", { class: "lead" }, h("b", { class: words }, { helps: "It helps. ", harms: "It harms. " }[words] ?? "It neither helps nor harms. "),
        found.no_change ?? [
          `Fitted again without ${train}, the loss of ${test} would change by about `,
          h("b", {}, signed(found.change)), ` (the influence, divided by n = ${count(found.n)}).`])),
    h("div", { class: "pair" }, card(found.test, "The test row", "test"), card(found.train, "The training row", "train"), mapCard(found)),
    differencesCard(found));
}

function mapCard(found) {
  const card = h("div", { class: "card map" }, h("h3", {}, "What in the training row does it"));
  const note = h("p", { class: "quiet" }, h("b", { class: "helps" }, "Blue: "), "more of it would lower the test loss. ",
    h("b", { class: "harms" }, "Red: "), "more of it would raise it.");
  if (found.source === "none") {
    card.append(h("p", {}, "The derivative for this pair is not stored."), found.project
      ? h("button", { class: "primary", onclick: async (event) => {
          event.target.disabled = true;
          event.target.textContent = "computing …";
          try {
            await tell("compute", at(), { test: found.test.id, train: found.train.id });
            await render();
          } catch (error) {
            toast(error.message, "bad");
            event.target.disabled = false;
            event.target.textContent = "Compute it";
          }
        } }, "Compute it") : null,
      h("p", { class: "quiet" }, found.project
        ? `This imports and runs the study's code from ${found.project}.`
        : "To compute it, the study's project has to be named: influence-dag explore STORE --project FOLDER."));
    return card;
  }
  for (const map of found.maps) {
    if (found.maps.length > 1) card.append(h("h4", {}, map.name));
    if (map.kind === "picture") card.append(...overlayOf(found, map));
    else if (map.kind === "bars") card.append(bars(map.columns, map.values));
    else if (map.kind === "tokens") card.append(tokenMap(map));
    else card.append(h("p", { class: "quiet" }, `an array of ${map.shape.join(" × ")} numbers, of at most ${fmt(map.largest)}`));
  }
  const shares = found.maps.every((each) => each.kind === "tokens");
  card.append(shares ? h("p", { class: "quiet" }, "Shares of the influence, which add up to it: ", h("b", { class: "helps" }, "blue"), " ones help, ",
    h("b", { class: "harms" }, "red"), " ones harm.") : note, h("p", { class: "quiet" }, `largest entry ${fmt(map_largest(found))}; ${found.source === "stored" ? "from the stored array" : "computed on demand"}`));
  return card;
}

// Each token on a ground as strong as its share.
function tokenMap(map) {
  const colour = (value) => `rgba(${value >= 0 ? "33, 102, 172" : "178, 24, 43"}, ${((0.75 * Math.abs(value ?? 0)) / (map.largest || 1)).toFixed(2)})`;
  return h("p", { class: "tokens" }, map.tokens.map((each, k) => h("span", { style: { background: colour(map.values[k]) }, title: fmt(map.values[k]) }, String(each))));
}

const map_largest = (found) => Math.max(...found.maps.map((each) => each.largest));

function overlayOf(found, map) {
  const input = found.train.inputs.find((each) => each.kind === "picture" && each.name === map.name);
  const query = new URLSearchParams({ test: found.test.id, train: found.train.id, input: map.name, made: found.source });
  for (const [name, value] of Object.entries(at())) if (value) query.set(name, value);
  const under = input ? pictureOf(found.train, input, at(), 300) : null;
  const over = h("img", { class: "over pixels", src: `api/map?${query}`, alt: "feature map" });
  const slider = h("input", { type: "range", min: "0", max: "100", value: "85", "aria-label": "strength of the overlay",
    oninput: () => { over.style.opacity = slider.value / 100; if (under) under.style.opacity = 1 - 0.7 * (slider.value / 100); } });
  over.style.opacity = 0.85;
  if (under) under.style.opacity = 1 - 0.7 * 0.85;
  return [h("div", { class: "frame overlay" }, under, over), h("label", { class: "slider" }, "row", slider, "map")];
}

function differencesCard(found) {
  if (!found.differences.length) return null;
  const order = found.differences;
  const line = (each) => h("tr", { class: each.differs ? "differs" : "" }, h("th", {}, each.name), h("td", {}, given(each.test)), h("td", {}, given(each.value)),
    h("td", {}, each.apart === null ? "–" : each.apart === 0 ? "0" : `${each.apart > 0 ? "▲" : "▼"} ${fmt(Math.abs(each.apart))}`));
  return h("section", { class: "card" }, h("h3", {}, "Column by column"),
    h("p", { class: "quiet" }, "Those that differ most come first; marked ones differ by a standard deviation of the column or more."),
    h("table", { class: "differences" }, h("thead", {}, h("tr", {}, ["column", found.test.id, found.train.id, "apart (std)"].map((each) => h("th", {}, each)))),
      h("tbody", {}, order.map(line))));
}

// -- marks, and what came of them ----------------------------------------------------------------

async function editsPage() {
  const found = await ask("edits", at());
  const marked = h("section", { class: "card" },
    h("h2", {}, `Marks`, h("span", { class: "badge" }, count(found.marks.length))),
    found.marks.length ? h("div", { class: "scroll" }, h("table", { class: "rows" },
      h("thead", {}, h("tr", {}, ["", "id", "label", "prediction", "decision"].map((each) => h("th", {}, each)))),
      h("tbody", {}, found.marks.map(({ id, mark, row }) => h("tr", {},
        h("td", { class: "pic" }, row ? thumb(row, at(), 36) : null),
        h("td", { class: "id" }, h("a", { href: address(["train", id]) }, id), mark.note ? h("p", { class: "quiet" }, mark.note) : null),
        h("td", {}, row?.label ?? "–"), h("td", {}, row ? verdict(row) : "no longer in the data"),
        h("td", { class: "marks" }, markBox(row ?? { id, mark, label: null, predicted: null, wrong: null }, context)))))))
      : h("p", { class: "empty" }, "Nothing is marked. Mark training rows where you see them: drop, relabel or keep."));
  show(
    h("section", { class: "intro" }, h("h1", {}, "Edits"),
      h("p", { class: "quiet" }, "Mark rows, see what the influences say that the edit would do, export it, put it in the place of the training data, refresh, and see what it did.")),
    h("div", { class: "edits" }, marked, outlookCard(found)),
    found.edits.map(outcomeCard));
}

function outlookCard(found) {
  const { outlook } = found;
  if (!outlook) return h("section", { class: "card" }, h("h2", {}, "Predicted"), h("p", { class: "empty" }, "What the marked edit would do to the test losses stands here."));
  const unknown = outlook.no_change ? 0 : Object.keys(outlook.unknown).length;
  const parts = outlook.no_change ? [] : [[outlook.drops, "dropped"], [outlook.relabels, "relabelled"]].filter(([number]) => number).map(([number, word]) => `${count(number)} ${word}`);
  const run = async (event, path, words) => {
    event.target.disabled = true;
    try {
      const answer = await tell(path, at(), {});
      toast(words(answer));
      await render();
    } catch (error) {
      toast(error.message, "bad");
      event.target.disabled = false;
    }
  };
  return h("section", { class: "card" }, h("h2", {}, "Predicted"),
    parts.length ? h("p", { class: "lead" }, `With ${parts.join(" and ")}, the mean test loss would change by about `,
      h("b", { class: outlook.mean < 0 ? "helps" : "harms" }, signed(outlook.mean)),
      outlook.mean_loss === null ? "." : ` (it is ${fmt(outlook.mean_loss)}).`) : null,
    parts.length ? h("p", { class: "quiet" }, `${count(outlook.better)} test rows better, ${count(outlook.worse)} worse; to first order, sum of influences over n = ${count(outlook.n)}.`) : null,
    outlook.no_change ? h("p", { class: "note" }, outlook.no_change) : null,
    outlook.done ? h("p", { class: "note" }, `${count(outlook.done)} of the marks are in these data already.`) : null,
    unknown ? h("p", { class: "note" }, `${count(unknown)} relabelled ${unknown > 1 ? "rows are" : "row is"} not counted yet: gradients under new labels are not stored. `,
      found.project ? h("button", { onclick: (event) => run(event, "relabels", ({ computed }) => `${computed} computed`) }, "Compute them") : "Name the project (--project) to compute them.",
      found.project ? h("span", { class: "quiet" }, ` This runs the study's code from ${found.project}.`) : null) : null,
    parts.length && outlook.strongest.length ? h("table", { class: "small" },
      h("thead", {}, h("tr", {}, ["test row", "predicted change of its loss"].map((each) => h("th", {}, each)))),
      h("tbody", {}, outlook.strongest.slice(0, 6).map((each) => h("tr", {}, h("td", {}, h("a", { href: address(["test", each.id]) }, each.id)),
        h("td", {}, h("b", { class: tone(-each.change) }, signed(each.change))))))) : null,
    h("p", { class: "actions" },
      h("button", { class: "primary", disabled: !outlook.drops && !outlook.relabels && !Object.keys(outlook.unknown).length, onclick: (event) => run(event, "export", (answer) => `Edit ${answer.number} is in ${answer.folder}`) }, "Export this edit"),
      h("button", { onclick: clearMarks(found.marks.length) }, "Clear marks")),
    found.folder ? h("p", { class: "quiet" }, `Kept in ${found.folder}`) : h("p", { class: "quiet" }, "The store is in no folder, so these marks are kept in memory."));
}

// Marks are work of hours: the first click asks, the second one clears.
function clearMarks(marks) {
  let asked = false;
  return async (event) => {
    if (!asked) {
      asked = true;
      event.target.textContent = marks === 1 ? "Clear the mark for good?" : `Clear all ${count(marks)} marks for good?`;
      return;
    }
    try {
      const answer = await tell("clear", at(), {});
      context.marked(answer.marks);
      await render();
    } catch (error) {
      toast(error.message, "bad");
    }
  };
}

function outcomeCard(edit) {
  const parts = [[edit.counted.drop, "dropped"], [edit.counted.relabel, "relabelled"]].filter(([number]) => number).map(([number, word]) => `${count(number)} ${word}`);
  const top = [h("h2", {}, `Edit ${edit.number}`, h("span", { class: "quiet" }, ` ${parts.join(", ") || "nothing that could be predicted"} · by ${settingWords(edit)} · ${edit.made.replace("T", " ").slice(0, 16)} UTC`)),
    edit.said.map((words) => h("p", { class: "note" }, words))];
  const files = h("p", { class: "quiet" }, `${["marks.csv", ...edit.copies].join(", ")} in ${edit.folder}`);
  if (edit.state !== "done") {
    return h("section", { class: "card outcome" }, top, h("p", { class: "waiting" }, edit.state === "waiting" ? "Not to be seen yet: " : "", edit.why), files);
  }
  const points = edit.points.ids.map((id, k) => ({ id, x: edit.points.predicted[k], y: edit.points.actual[k], title: `${id}: predicted ${signed(edit.points.predicted[k])}, actual ${signed(edit.points.actual[k])}` }));
  const row = (name, before, now, extra) => h("tr", {}, h("th", {}, name), h("td", {}, before), h("td", {}, now), h("td", {}, extra ?? ""));
  return h("section", { class: "card outcome" }, top,
    edit.otherwise ? h("p", { class: "note" }, `The data changed otherwise too: ${count(edit.otherwise)} rows that were not marked. What follows is of all of it.`) : null,
    edit.followed < edit.acted ? h("p", { class: "note" }, `${count(edit.followed)} of ${count(edit.acted)} marks are in the data.`) : null,
    h("div", { class: "both" },
      h("div", {},
        h("table", { class: "result" },
          h("thead", {}, h("tr", {}, ["", "predicted", "actual", ""].map((each) => h("th", {}, each)))),
          h("tbody", {}, row("change of the mean test loss", signed(edit.predicted_mean), signed(edit.actual_mean)))),
        h("table", { class: "result" },
          h("thead", {}, h("tr", {}, ["", "before", "now", ""].map((each) => h("th", {}, each)))),
          h("tbody", {}, row("mean test loss", fmt(edit.loss_before), fmt(edit.loss_now)),
            edit.wrong_now === null ? null : row("predicted wrongly", count(edit.wrong_before), count(edit.wrong_now), `of ${count(edit.test_rows)}`))),
        h("dl", { class: "stats" }, stat("Spearman", fmt(edit.spearman)), stat("Pearson", fmt(edit.pearson)),
          stat("actual per predicted", fmt(edit.slope), "what predictions have to be multiplied by to fit best")),
        files),
      scatter(points, { width: 520, height: 380, xName: "predicted change of a test row's loss", yName: "actual change after the refit", equal: true, onpick: (point) => go(["test", point.id]) })));
}

// -- the way between them -----------------------------------------------------------------------

let turn = 0;

// What is asked for a page; who has gone on to another one since is shown nothing of it.
async function ask(path, params) {
  const mine = turn;
  const found = await answer(path, params);
  if (mine !== turn) throw new Error("superseded");
  return found;
}

async function render() {
  const mine = ++turn;
  const { page, names } = here();
  head();
  main.classList.add("busy");
  try {
    await lookAgain();
    if (page === "pair") await pairPage(...names);
    else if (page === "edits") await editsPage();
    else if (names.length) await rowPage(page === "train" ? "train" : "test", names[0]);
    else await rowsPage(page === "train" ? "train" : "test");
  } catch (error) {
    if (mine === turn) show(h("section", { class: "card" }, h("h2", {}, "This cannot be shown"), h("p", {}, error.message), h("p", {}, h("a", { href: "#/test" }, "Back to the test rows"))));
  }
  if (mine === turn) main.classList.remove("busy");
  document.body.dataset.turn = String(turn);
}

// A refresh may have made new versions while the page was open.
async function lookAgain() {
  if (performance.now() - state.asked < 3000) return;
  const found = await ask("study");
  state.asked = performance.now();
  const news = JSON.stringify(found) !== JSON.stringify(state.study);
  [state.study, state.marks] = [found, found.marks];
  state.pictured = found.pictured;
  if (news) head();
}

async function begin() {
  try {
    state.study = await ask("study");
    state.asked = performance.now();
    state.marks = state.study.marks;
    document.title = `${state.study.name} · influence explorer`;
    state.pictured = state.study.pictured;
    window.addEventListener("hashchange", () => { window.scrollTo(0, 0); render(); });
    await render();
  } catch (error) {
    show(h("section", { class: "card" }, h("h2", {}, "The study cannot be opened"), h("p", {}, error.message)));
  }
}

begin();
