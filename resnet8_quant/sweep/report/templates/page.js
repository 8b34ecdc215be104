"use strict";

// The page reads without this script; with it the plots are drawn and the table of runs sorts and filters.
const root = document.documentElement;
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
const { plots, themes, choice, pair } = JSON.parse(document.getElementById("data").textContent);
const NARROW = 600;  // pixels; on narrower screens a finger on a plot scrolls the page

const views = new Map();  // figure -> what Vega drew there, where it has a ring around the recommended model
let chosen = -1;  // place of the recommended model in choice.models, which are in the order of their quality

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
}

// ---- plots

function withoutZoom(layer) {
  return Object.assign({}, layer, { params: (layer.params || []).filter((param) => param.name !== "zoom") });
}

async function draw(figure) {
  if (typeof vegaEmbed === "undefined") return;
  const spec = Object.assign({ width: "container", autosize: "fit-x" }, plots[figure.dataset.plot].spec);
  if (root.clientWidth < NARROW) spec.layer = spec.layer.map(withoutZoom);
  spec.params = (spec.params || []).map((param) => (param.name === "recommended" ? { ...param, value: chosen } : param));
  // ast: expressions are interpreted, because the content policy forbids to compile them.
  const options = { actions: false, renderer: "svg", ast: true, config: themes[isDark() ? "dark" : "light"],
                    tooltip: { theme: isDark() ? "dark" : "light" } };
  const place = figure.querySelector(".plot");
  const drawn = await vegaEmbed(place, spec, options);
  place.setAttribute("aria-label", plots[figure.dataset.plot].title);  // Vega put its own in its place
  if (spec.params.some((param) => param.name === "recommended")) views.set(figure, drawn.view);
  else views.delete(figure);
}

function drawAll() {
  return Promise.all(Array.from(document.querySelectorAll("figure[data-plot]"), draw));
}

document.querySelectorAll("figure[data-plot] select").forEach((select) => {
  select.value = select.querySelector("[selected]").value;  // a browser may remember another one
  select.addEventListener("change", () => {
    const figure = select.closest("figure");
    figure.dataset.plot = select.value;
    figure.querySelector("figcaption").textContent = plots[select.value].note;
    draw(figure);
  });
});

// ---- light and dark

const button = document.getElementById("theme");

function applyTheme() {
  button.textContent = isDark() ? "Light" : "Dark";
  root.classList.toggle("dark", isDark());  // DataTables' own
  return drawAll();
}

button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  applyTheme();
});
systemDark.addEventListener("change", applyTheme);
let themeBeforePrint;
window.addEventListener("beforeprint", () => {
  themeBeforePrint = root.dataset.theme;
  root.dataset.theme = "light";
  applyTheme();
});
window.addEventListener("afterprint", () => {
  if (themeBeforePrint) root.dataset.theme = themeBeforePrint; else delete root.dataset.theme;
  applyTheme();
});

// ---- the command

const copy = document.getElementById("copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", () => {
    navigator.clipboard.writeText(document.getElementById("command").textContent).then(
      () => { copy.textContent = "Copied"; },
      () => { copy.textContent = "Not allowed"; }
    );
  });
}

// ---- the recommendation within limits: recommend() of recommendation.py and choice_texts() of answer.py once more

function holm(values) {
  const order = values.map((_, index) => index).sort((a, b) => values[a] - values[b]);
  const corrected = [];
  let largest = 0;
  order.forEach((index, place) => {
    largest = Math.max(largest, Math.min(1, (values.length - place) * values[index]));
    corrected[index] = largest;
  });
  return corrected;
}

function fits(model, limits, but) {
  return Object.entries(limits).every(
    ([name, most]) => name === but || (model.needs[name] !== null && model.needs[name] <= most)
  );
}

function recommend(limits) {
  const fitting = choice.models.filter((model) => fits(model, limits));
  if (!fitting.length) return null;
  const best = fitting[0];
  const others = best.flips ? fitting.slice(1).filter((model) => model.known) : [];
  const flips = others.map((model) => best.flips[choice.models.indexOf(model)]);
  const corrected = holm(flips.map(([, , p]) => p));
  const tests = new Map(others.map((model, index) => [model, [...flips[index], corrected[index]]]));
  let basis = "interval", compared = fitting, qualified;
  if ("lost" in limits) {
    [basis, qualified] = ["loss", fitting];
  } else if (best.flips) {
    [basis, compared] = ["test", [best, ...others]];
    qualified = compared.filter((model) => model === best || tests.get(model)[3] >= choice.level);
  } else {
    qualified = fitting.filter((model) => model === best || (best.bar !== null && model.accuracy >= best.bar));
  }
  let portable = qualified.filter((model) => model.portable);
  if (qualified.some((model) => model.quantized) && !portable.some((model) => model.quantized)) portable = [];
  const from = portable.length ? portable : qualified;
  const within = (models, name, ratio) => {
    const value = (model) => model[name] ?? Infinity;
    const most = ratio * Math.min(...models.map(value));
    return models.filter((model) => value(model) <= most);
  };
  const small = within(from, "bytes", choice.same_bytes);
  const fast = within(small, "latency", choice.same_latency);
  return { model: fast[0], best, basis, fitting, compared, qualified, portable, tests,
           timed: fast.length < small.length ? small : [] };
}

function shortfalls(limits) {
  const least = {};
  let othersHold = false;
  for (const [name, most] of Object.entries(limits)) {
    const meeting = choice.models.filter((model) => fits(model, limits, name));
    const needs = (meeting.length ? meeting : choice.models).map((model) => model.needs[name])
      .filter((need) => need !== null);
    const lowest = Math.min(...needs);
    if (lowest > most) {
      least[name] = needs.length ? lowest : null;
      othersHold = othersHold || meeting.length > 0;
    }
  }
  return { least, othersHold };
}

const written = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 6 });
const pText = (p) => (p >= 0.001 ? (Math.round(1000 * p) / 1000).toFixed(3) : "below 0.001");
const yes = (holds) => (holds ? "yes" : "");
const distinct = (models, name) => [...new Set(models.flatMap((model) => model[name]))];
const total = (models, name) => models.reduce((sum, model) => sum + model[name], 0);

function say(limits) {
  const within = Object.keys(choice.units).filter((name) => name in limits)
    .map((name) => written(limits[name]) + " " + choice.units[name]).join(", ");
  const shared = { limits: within, models: written(choice.models.length) };
  const pick = recommend(limits);
  chosen = pick ? choice.models.indexOf(pick.model) : -1;
  if (!pick) {
    const { least, othersHold } = shortfalls(limits);
    const any = Object.keys(least).length > 0;
    const texts = { ...shared, nothing: "yes", no_two: yes(!any), one_of: yes(any && othersHold),
                    all_of: yes(any && !othersHold) };
    for (const [name, need] of Object.entries(least)) {
      if (need === null) texts["unknown_" + name] = "yes";
      else Object.assign(texts, { ["least_" + name]: written(need), ["excess_" + name]: written(need - limits[name]) });
    }
    return texts;
  }
  const { model, best, timed } = pick;
  const test = pick.tests.get(model);
  const busy = total(timed, "busy");
  const leftOut = pick.qualified.length - pick.portable.length;
  return {
    ...shared,
    ...model.texts,
    fits: "yes",
    fitting: written(pick.fitting.length),
    compared: written(pick.compared.length),
    qualified: written(pick.qualified.length),
    rule: choice.rules[pick.basis],
    unpaired: yes(pick.basis === "interval"),
    is_best: yes(model === best),
    best: model === best ? "" : best.texts.name,
    tested: yes(test),
    to_wrong: test ? written(test[0]) : "",
    to_right: test ? written(test[1]) : "",
    p: test ? pText(test[2]) : "",
    holm: test ? pText(test[3]) : "",
    none_portable: yes(!pick.portable.length),
    not_portable: pick.portable.length && leftOut ? written(leftOut) : "",
    timed: timed.length ? written(timed.length) : "",
    measured: distinct(timed, "measured").join("; "),
    busy: busy ? written(busy) : "",
    timed_runs: written(total(timed, "runs")),
    parallel: distinct(timed, "launchers").filter((name) => name && name !== "basic").sort().join(", "),
    marked: model.texts.marked || best.texts.marked,
  };
}

const limitForm = document.getElementById("limits");
const fields = Array.from(document.querySelectorAll("[data-limit]"));
// DataTables takes the rows of other pages out of the document: they are kept here.
const statusCells = Array.from(document.querySelectorAll("#run-table tr[data-place]"),
                               (row) => ({ row, cell: row.cells[1] }));
let table = null;

function chooseAgain() {
  const limits = {};
  for (const field of fields) if (field.value !== "") limits[field.dataset.limit] = field.valueAsNumber;
  const first = recommend(choice.limits);
  const texts = say(limits);
  document.querySelectorAll("[data-say]").forEach((place) => { place.textContent = texts[place.dataset.say] ?? ""; });
  document.querySelectorAll("[data-where]").forEach((part) => { part.hidden = !texts[part.dataset.where]; });
  document.getElementById("first-choice").hidden = (first ? choice.models.indexOf(first.model) : -1) === chosen;
  for (const { row, cell } of statusCells) {
    const isChosen = Number(row.dataset.place) === chosen;
    if (!isChosen && !cell.dataset.chosen) continue;
    const tag = document.createElement("span");
    tag.className = isChosen && "stands" in row.dataset ? "tag recommended" : "";
    tag.textContent = !isChosen ? "ok" : "stands" in row.dataset ? "recommended" : "same model as recommended";
    cell.replaceChildren(tag);
    cell.dataset.chosen = isChosen ? "yes" : "";
  }
  if (table) table.rows().invalidate("dom").draw(false);
  for (const view of views.values()) view.signal("recommended", chosen).run();
}

if (limitForm) {
  limitForm.hidden = false;
  limitForm.addEventListener("submit", (event) => event.preventDefault());
  limitForm.addEventListener("input", chooseAgain);
  limitForm.addEventListener("reset", (event) => {
    event.preventDefault();  // it would bring back what the page was written with
    for (const field of fields) field.value = "";
    chooseAgain();
  });
  chooseAgain();
}

// ---- the table of runs

function runTable(DataTable) {
  // What scrolls is then the table alone, not the search box and the menus around it.
  document.getElementById("run-table").parentElement.classList.remove("scroll");
  const heads = Array.from(document.querySelectorAll("#run-table th"));
  const places = (holds) => heads.flatMap((head, place) => (holds(head) ? [place] : []));
  table = new DataTable("#run-table", {
    order: [],
    pageLength: 50,
    lengthMenu: [50, 200, 1000, -1],
    autoWidth: false,
    columnDefs: [
      { targets: places((head) => head.classList.contains("n")), type: "num" },
      { targets: places((head) => "hidden" in head.dataset), visible: false },
      { targets: places((head) => head.classList.contains("pick")), orderable: false, searchable: false },
    ],
    searchBuilder: { columns: places((head) => !head.classList.contains("pick")) },
    language: { searchBuilder: { button: { 0: "Conditions", _: "Conditions (%d)" }, data: "Column", title: "" } },
    layout: {
      topStart: { buttons: [
        "searchBuilder",
        { extend: "colvis", text: "Columns", columns: ":not(.pick)" },
        { extend: "colvisGroup", text: "All columns", show: ":hidden" },
      ] },
      topEnd: { search: { placeholder: "e.g. int8 percentile" } },
      bottomStart: ["pageLength", "info"],
      bottomEnd: "paging",
    },
  });
  window.addEventListener("beforeprint", () => table.page.len(-1).draw());
}

applyTheme();
