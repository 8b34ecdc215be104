
// ---- two runs side by side: settings(), figures(), flips() and layers() of pair.py once more, for the rows ticked

const pairRows = pair ? Array.from(document.querySelectorAll("#run-table tbody tr")) : [];
const picked = [];  // places in pair.runs: A, then B
const unpacked = new Map();
const fill = (sentence, values) => sentence.replace(/{(\w+)}/g, (_, name) => values[name]);
const signed = (number, text) => (number < 0 || Object.is(number, -0) ? text : "+" + text);

function threeDigits(number) {  // Python's format .3g
  const [digits, exponent] = number.toExponential(2).split("e").map(Number);
  if (number === 0 || (exponent >= -4 && exponent < 3)) return String(Number(number.toPrecision(3)));
  return digits + "e" + (exponent < 0 ? "-" : "+") + String(Math.abs(exponent)).padStart(2, "0");
}

// mcnemar_p() of statistics.py: twice the lower tail of Binomial(n, 1/2), its largest term by logarithms.
function mcnemar(lost, gained) {
  const n = lost + gained, least = Math.min(lost, gained);
  let log = -n * Math.LN2;
  for (let i = 0; i < least; i++) log += Math.log((n - i) / (i + 1));
  let term = 1, sum = 1;
  for (let i = least; i > 0; i--) {
    term *= i / (n - i + 1);
    sum += term;
  }
  return Math.min(1, 2 * Math.exp(log) * sum);
}

async function unpack(packed) {
  if (!unpacked.has(packed)) {
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer()), count = planes.length / 2;
    unpacked.set(packed, Uint16Array.from({ length: count }, (_, at) => planes[at] | (planes[count + at] << 8)));
  }
  return unpacked.get(packed);
}

function differingSettings(a, b) {
  const values = [new Map(a.settings), new Map(b.settings)];
  const keys = [...new Set(values.flatMap((own) => [...own.keys()]))]
    .filter((key) => values[0].get(key) !== values[1].get(key));
  const groups = new Set(keys.filter((key) => !key.startsWith("config."))
    .map((key) => key.replace(/^\++/, "").split(".")[0]));
  return keys.filter((key) => !(key.startsWith("config.") && groups.has(key.split(".")[1])))
    .map((key) => [key, ...values.map((own) => own.get(key) ?? "default")]);
}

function difference(kind, a, b, sameCpu) {
  if (a === null || b === null) return "";
  if (kind === "time") return a && b && sameCpu ? (a / b).toFixed(2) + "x as fast" : "";
  if (kind === "bytes") return signed(b - a, written(b - a)) + " B";
  return a === b ? "0.00" : signed(b - a, (100 * (b - a)).toFixed(2));
}

function pairFigures(a, b) {
  return pair.figures.flatMap(([name, kind], at) => {
    const [first, second] = [a.figures[at], b.figures[at]];
    if (!first[0] && !second[0]) return [];
    return [[name, first[0], second[0], difference(kind, first[1], second[1], a.cpu === b.cpu)]];
  });
}

async function pairFlips(a, b) {
  const { labels, no_labels, reference, classes } = pair.images[a.images];
  const without = (reason) => [fill(pair.sentences.no_test, { reason: reason + "." }), []];
  if (labels === null) return without(no_labels);
  const reasons = [["A", a], ["B", b]].flatMap(([name, run]) => (
    run.predictions === null ? [fill(pair.sentences.no_file, { name })]
      : run.predictions < 0 ? [fill(pair.sentences.not_held, { name })] : []));
  if (reasons.length) return without(reasons.join("; "));
  if (typeof DecompressionStream === "undefined") return without("this browser has no DecompressionStream");
  const [truth, base, ...differs] = await Promise.all(
    [labels, reference, pair.predictions[a.predictions], pair.predictions[b.predictions]].map(unpack));
  let changed = 0, lost = 0, gained = 0;
  const byClass = new Map();
  truth.forEach((label, image) => {
    const [ofA, ofB] = differs.map((difference) => base[image] ^ difference[image]);
    changed += ofA !== ofB;
    if ((ofA === label) === (ofB === label)) return;
    const counts = byClass.get(label) ?? byClass.set(label, [0, 0]).get(label);
    if (ofA === label) { lost += 1; counts[0] += 1; } else { gained += 1; counts[1] += 1; }
  });
  const p = mcnemar(lost, gained);
  const sentence = fill(pair.sentences.test, {
    images: written(truth.length), changed: written(changed), lost: written(lost), gained: written(gained),
    p: threeDigits(p), verdict: pair.sentences[p < pair.level ? "real" : "noise"],
  });
  const rows = [...byClass].sort(([a], [b]) => a - b)
    .sort(([, a], [, b]) => (a[1] - a[0]) - (b[1] - b[0]))
    .map(([label, [lost, gained]]) => [classes[label] ?? String(label), written(lost), written(gained),
                                       signed(gained - lost, written(gained - lost))]);
  return [sentence, rows];
}

function pairLayers(...runs) {
  const both = runs.map((run) => pair.layers[run.layers]);
  const said = (sentence, holds) => ["A", "B"].filter((_, at) => holds(both[at]))
    .map((name) => fill(pair.sentences[sentence], { name }));
  if (both.includes(null)) return [said("no_layers", (own) => own === null), []];
  const [a, b] = both.map(([, bits]) => new Map(bits));
  if (a.size === b.size && [...a].every(([name, bits]) => b.get(name) === bits)) return [[], []];
  const absent = both[0][0] && both[0][0] === both[1][0] ? "float" : "-";
  const rows = [...new Set([...a.keys(), ...b.keys()])].map((name) => [name, a.get(name) ?? absent, b.get(name) ?? absent]);
  return [said("old_layers", ([model]) => !model), rows];
}

// The tables by name, each a list of rows, and the sentences: of the runs at two places of pair.runs.
async function compared(first, second) {
  const [a, b] = [pair.runs[first], pair.runs[second]];
  if (a.images !== b.images) {
    const values = [a, b].map((run) => pair.images[run.images].values);
    const at = values[0].findIndex((value, place) => value !== values[1][place]);
    return { tables: {}, sentences: [fill(pair.sentences.other_images, {
      a: "A", b: "B", name: pair.same_images[at], value_a: values[0][at], value_b: values[1][at] }) + "."] };
  }
  const [sentence, moved] = await pairFlips(a, b);
  const [unnamed, layers] = pairLayers(a, b);
  return {
    tables: { setting: differingSettings(a, b), figure: pairFigures(a, b), class: moved, layer: layers },
    sentences: [sentence, ...unnamed],
  };
}

function pairTable(name, rows) {
  const scroll = document.createElement("div"), shown = document.createElement("table");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  shown.dataset.pair = name;
  const numbers = name === "class" ? 1 : name === "figure" ? 3 : Infinity;  // columns from here on are numbers
  const line = (part, tag, texts) => {
    const row = part.insertRow();
    texts.forEach((text, at) => {
      const cell = document.createElement(tag);
      if (tag === "th") cell.scope = "col";
      if (at >= numbers) cell.className = "n";
      cell.textContent = text;
      row.append(cell);
    });
  };
  line(shown.createTHead(), "th", pair.headings[name]);
  const body = shown.createTBody();
  rows.forEach((row) => line(body, "td", row));
  scroll.append(shown);
  return scroll;
}

async function showPair() {
  pairRows.forEach((row, place) => {
    const box = row.querySelector(".pick input");
    if (!box) return;
    box.checked = picked.includes(place);
    box.nextSibling.textContent = box.checked ? "AB"[picked.indexOf(place)] : "";
    row.classList.toggle("picked", box.checked);
  });
  const names = picked.map((place, at) => "AB"[at] + ": " + pair.runs[place].name);
  const both = picked.length === 2;
  const line = document.getElementById("picked");
  line.textContent = names.join(", ") + (both ? ". " : names.length ? ". Tick another run. "
    : "Tick two runs, under “Compare”, to see them side by side. ");
  if (both) {
    const link = document.createElement("a");
    link.href = "#pair";
    link.textContent = "Side by side";
    line.append(link);
  }
  document.getElementById("pair-buttons").hidden = !picked.length;
  document.getElementById("swap").hidden = !both;
  document.getElementById("pair-names").textContent = names.join("\n") || "No run is ticked.";
  const place = document.getElementById("pair-tables");
  place.replaceChildren();
  if (!both) return;
  const shown = picked.join();
  const { tables, sentences } = await compared(...picked);
  if (picked.join() !== shown) return;  // others were ticked meanwhile
  const texts = sentences.map((sentence) => Object.assign(document.createElement("p"), { textContent: sentence }));
  place.replaceChildren(...texts, ...Object.entries(tables).filter(([, rows]) => rows.length)
    .map(([name, rows]) => pairTable(name, rows)));
}

function tick(place, on) {
  if (!on) picked.splice(picked.indexOf(place), 1);
  else picked[Math.min(picked.length, 1)] = place;  // A stays, so that others can be held against it
  return showPair();
}

if (pairRows.length) {
  const head = document.createElement("th");
  head.scope = "col";
  head.className = "pick";
  head.textContent = "Compare";
  document.querySelector("#run-table thead tr").prepend(head);
  pairRows.forEach((row, place) => {
    const cell = row.insertCell(0), run = pair.runs[place];
    cell.className = "pick";
    if (!run) return;  // it failed
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", "Compare " + run.name);
    box.autocomplete = "off";
    box.addEventListener("change", () => tick(place, box.checked));
    label.append(box, document.createElement("b"));
    cell.append(label);
  });
  document.getElementById("picked").hidden = false;
  document.getElementById("pair-view").hidden = false;
  document.getElementById("swap").addEventListener("click", () => { picked.reverse(); showPair(); });
  document.getElementById("unpick").addEventListener("click", () => {
    picked.length = 0;
    document.getElementById("pair").focus();  // the button goes
    showPair();
  });
  showPair();
}
