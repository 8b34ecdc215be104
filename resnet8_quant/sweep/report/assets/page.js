"use strict";

// The page reads without this script; with it the plots are drawn and the table of runs sorts and filters.
(function () {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = JSON.parse(document.getElementById("figures").textContent);

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  }

  function colour(name) {
    return getComputedStyle(root).getPropertyValue(name).trim();
  }

  // ---- plots

  function themed(layout) {
    const ink = colour("--ink"), soft = colour("--soft"), grid = colour("--grid"), paper = colour("--paper");
    const copy = JSON.parse(JSON.stringify(layout));
    copy.paper_bgcolor = copy.plot_bgcolor = paper;
    copy.font = { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 12, color: soft };
    copy.hoverlabel = { bgcolor: colour("--panel"), bordercolor: colour("--line"), align: "left", font: { color: ink } };
    for (const axis of [copy.xaxis, copy.yaxis]) {
      Object.assign(axis, { gridcolor: grid, linecolor: grid, zeroline: false });
    }
    for (const shape of copy.shapes || []) shape.line.color = soft;
    if (root.clientWidth < 600) {
      Object.assign(copy.margin, { l: 44, r: 8 });
      copy.dragmode = false;  // a finger on a plot scrolls the page
    }
    return copy;
  }

  const DARK_DIVERGING = [[0, "#F2A06B"], [0.25, "#8A4E2C"], [0.5, "#23282F"], [0.75, "#2C618A"], [1, "#7CC0F2"]];
  const SMALLEST_LETTER = 6;  // pixels; narrower ones are not written, a tap shows the cell's label

  // On a dark page the middle of the colours is dark; on a narrow one the scale of colours is left out.
  function adapted(trace) {
    const changes = {};
    if (trace.meta === "diverging" && isDark()) changes.colorscale = DARK_DIVERGING;
    if (trace.type === "heatmap" && root.clientWidth < 600) changes.showscale = false;
    return Object.assign({}, trace, changes);
  }

  function draw(place) {
    const figure = figures[place.dataset.figure];
    if (!figure || typeof Plotly === "undefined" || place.closest("[hidden]")) return;
    const config = { responsive: true, displayModeBar: false };
    Plotly.react(place, figure.data.map(adapted), themed(figure.layout), config).then(function () {
      const trace = figure.data[0];
      if (!trace.texttemplate) return;
      const longest = Math.max.apply(null, trace.text.flat().map(function (text) { return text.length; }));
      const room = place._fullLayout.xaxis._length / trace.x.length;
      if (room < SMALLEST_LETTER * longest) Plotly.restyle(place, { texttemplate: "" });
    });
  }

  function drawAll() {
    document.querySelectorAll(".plot").forEach(draw);
  }

  document.querySelectorAll("select[data-picks]").forEach(function (select) {
    select.addEventListener("change", function () {
      for (const option of select.options) {
        document.getElementById("f-" + option.value).hidden = option.value !== select.value;
      }
      draw(document.querySelector("#f-" + CSS.escape(select.value) + " .plot"));
    });
  });

  // ---- light and dark

  const button = document.getElementById("theme");

  function relabel() {
    button.textContent = isDark() ? "Light" : "Dark";
  }

  button.hidden = false;
  button.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    relabel();
    drawAll();
  });
  dark.addEventListener("change", function () { relabel(); drawAll(); });
  let before;
  window.addEventListener("beforeprint", function () {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    drawAll();
  });
  window.addEventListener("afterprint", function () {
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    drawAll();
  });

  // ---- the command

  const copy = document.getElementById("copy");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", function () {
      navigator.clipboard.writeText(document.getElementById("command").textContent).then(
        function () { copy.textContent = "Copied"; },
        function () { copy.textContent = "Not allowed"; }
      );
    });
  }

  // ---- the table of runs

  const table = document.getElementById("run-table");
  if (table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const keys = heads.map(function (head) { return head.dataset.key; });

    // Number if the cell has one, else its text, else null for an empty cell.
    const value = function (row, column) {
      const cell = row.cells[column];
      if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
      return cell.textContent === "" ? null : cell.textContent;
    };

    const compare = function (a, b) {
      if (typeof a === "number" && typeof b === "number") return a - b;
      return String(a).localeCompare(String(b), undefined, { numeric: true });
    };

    const sort = function (column) {
      const down = heads[column].getAttribute("aria-sort") === "ascending";
      heads.forEach(function (head) { head.removeAttribute("aria-sort"); });
      heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map(function (row, index) { return [value(row, column), index, row]; });
      keyed.sort(function (a, b) {
        if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null) || a[1] - b[1];
        return (down ? compare(b[0], a[0]) : compare(a[0], b[0])) || a[1] - b[1];
      });
      body.append.apply(body, keyed.map(function (entry) { return entry[2]; }));
    };

    heads.forEach(function (head, column) {
      head.tabIndex = 0;
      head.title = "in a filter: " + head.dataset.key;
      head.addEventListener("click", function () { sort(column); });
      head.addEventListener("keydown", function (event) {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(column); }
      });
    });

    // A word is looked for everywhere, COLUMN>1 in one column; all must hold, as with "and" in --where. An empty cell
    // is neither equal to anything nor different from it, but for COLUMN='' (empty) and COLUMN!='' (not empty).
    const names = keys.map(function (key) { return key.toLowerCase(); });
    const titles = heads.map(function (head) { return head.textContent.split(",")[0].toLowerCase(); });
    const tests = {
      "<": function (d) { return d < 0; }, ">": function (d) { return d > 0; },
      "<=": function (d) { return d <= 0; }, ">=": function (d) { return d >= 0; },
    };

    // What COLUMN holds in a row, as text and as a number: named by its key as in the CSV, by its heading as shown.
    const reader = function (name) {
      const byKey = names.indexOf(name), column = byKey < 0 ? titles.indexOf(name) : byKey;
      return column < 0 ? null : function (row) {
        const text = row.cells[column].textContent.toLowerCase(), stored = value(row, column);
        const number = byKey < 0 ? Number(text.replace(/[,*]/g, "")) : stored;
        return [text, typeof stored === "number" ? number : NaN, row.cells[column].dataset.alias];
      };
    };

    const unknown = function (name) {
      const near = keys.filter(function (key, at) { return names[at].includes(name); });
      return "no column called " + name + "; e.g. " + (near.length ? near : keys).slice(0, 8).join(", ");
    };

    // The test of one term; a text instead says why there is none.
    const test = function (term) {
      if (term === "or" || term === "not") return term + " is only for --where of the summary";
      const parts = /^([^<>=!]+)(!=|<=|>=|==?|<|>)(.*)$/.exec(term);
      if (!parts) return function (row) { return row.textContent.toLowerCase().includes(term); };
      const read = reader(parts[1]), operator = parts[2], wanted = parts[3];
      const number = wanted === "" ? NaN : Number(wanted);
      if (!read) return unknown(parts[1]);
      if (operator in tests) {
        if (Number.isNaN(number)) return parts[1] + operator + " needs a number";
        return function (row) { return tests[operator](read(row)[1] - number); };
      }
      return function (row) {
        const found = read(row), same = found[0] === wanted || found[1] === number || found[2] === wanted;
        return operator === "!=" ? found[0] !== "" && !same : same;
      };
    };

    // Blanks around an operator and quotes are as in --where, and so is "and".
    const terms = function (text) {
      const closed = text.toLowerCase().replace(/\s*(!=|<=|>=|==?|<|>)\s*/g, "$1");
      const words = closed.match(/("[^"]*"?|'[^']*'?|[^\s"'])+/g) || [];
      return words.filter(function (word) { return word !== "and"; }).map(function (word) {
        return word.replace(/["']/g, "");
      });
    };

    const input = document.getElementById("filter");
    const count = document.getElementById("count"), hint = document.getElementById("hint");
    const filter = function () {
      const all = terms(input.value).map(test);
      const known = all.filter(function (fits) { return typeof fits === "function"; });
      let shown = 0;
      for (const row of rows) {
        row.hidden = !known.every(function (fits) { return fits(row); });
        shown += !row.hidden;
      }
      count.textContent = shown + " of " + rows.length + " runs";
      hint.textContent = all.filter(function (fits) { return typeof fits === "string"; }).join("; ");
    };
    input.addEventListener("input", filter);
    const more = document.getElementById("more");
    more.addEventListener("change", function () { table.classList.toggle("all", more.checked); });
    table.classList.toggle("all", more.checked);  // a reloaded page keeps its boxes
    filter();
  }

  relabel();
  drawAll();
})();
