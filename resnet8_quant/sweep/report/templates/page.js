"use strict";

// The page reads without this script; with it the plots are drawn and the table of runs sorts and filters.
const root = document.documentElement;
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
const { specs, themes } = JSON.parse(document.getElementById("data").textContent);
const NARROW = 600;  // pixels; on narrower screens a finger on a plot scrolls the page

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
}

// ---- plots

function withoutZoom(layer) {
  return Object.assign({}, layer, { params: (layer.params || []).filter((param) => param.name !== "zoom") });
}

async function draw(place) {
  const spec = Object.assign({ width: "container", autosize: "fit-x" }, specs[place.dataset.plot]);
  if (typeof vegaEmbed === "undefined" || place.closest("[hidden]")) return;
  if (root.clientWidth < NARROW) spec.layer = spec.layer.map(withoutZoom);
  // ast: expressions are interpreted, because the content policy forbids to compile them.
  const options = { actions: false, renderer: "svg", ast: true, config: themes[isDark() ? "dark" : "light"],
                    tooltip: { theme: isDark() ? "dark" : "light" } };
  await vegaEmbed(place, spec, options);
}

function drawAll() {
  return Promise.all(Array.from(document.querySelectorAll(".plot"), draw));
}

document.querySelectorAll("select[data-picks]").forEach((select) => {
  select.addEventListener("change", () => {
    for (const option of select.options) {
      document.getElementById("f-" + option.value).hidden = option.value !== select.value;
    }
    draw(document.querySelector("#f-" + CSS.escape(select.value) + " .plot"));
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

// ---- the table of runs

function runTable(DataTable) {
  // What scrolls is then the table alone, not the search box and the menus around it.
  document.getElementById("run-table").parentElement.classList.remove("scroll");
  const heads = Array.from(document.querySelectorAll("#run-table th"));
  const places = (holds) => heads.flatMap((head, place) => (holds(head) ? [place] : []));
  const table = new DataTable("#run-table", {
    order: [],
    pageLength: 50,
    lengthMenu: [50, 200, 1000, -1],
    autoWidth: false,
    columnDefs: [
      { targets: places((head) => head.classList.contains("n")), type: "num" },
      { targets: places((head) => "hidden" in head.dataset), visible: false },
    ],
    language: { searchBuilder: { button: { 0: "Conditions", _: "Conditions (%d)" }, data: "Column", title: "" } },
    layout: {
      topStart: { buttons: [
        "searchBuilder",
        { extend: "colvis", text: "Columns" },
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
