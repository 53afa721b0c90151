
"use strict";
// Everything that comes from a record reaches the page as text (`textContent`), never as markup.
const {nodes, edges, root} = JSON.parse(document.getElementById("data").textContent);
const svg = document.getElementById("drawing"), scene = document.getElementById("scene");
const panel = document.getElementById("panel"), search = document.getElementById("search");
const boxes = [...svg.querySelectorAll(".box")], arrows = [...svg.querySelectorAll(".edge")];
const size = {w: Number(svg.dataset.w), h: Number(svg.dataset.h)};
const places = boxes.map(box => ({
  x: Number(box.dataset.x), y: Number(box.dataset.y), w: Number(svg.dataset.boxW), h: Number(svg.dataset.boxH),
}));

// --- where the drawing is: screen = k * drawing + (x, y) ------------------------------------------------------------
const view = {x: 0, y: 0, k: 1};
const SMALLEST = 0.03, LARGEST = 4, READABLE = 0.6;

function show() {
  scene.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.k})`);
}

function zoom(factor, x = svg.clientWidth / 2, y = svg.clientHeight / 2) {
  const k = Math.min(LARGEST, Math.max(SMALLEST, view.k * factor));
  view.x = x - (x - view.x) * k / view.k;
  view.y = y - (y - view.y) * k / view.k;
  view.k = k;
  show();
}

function fit() {
  view.k = Math.min(svg.clientWidth / size.w, svg.clientHeight / size.h, 1.15);
  view.x = (svg.clientWidth - size.w * view.k) / 2;
  view.y = (svg.clientHeight - size.h * view.k) / 2;
  show();
}

function center(n) {
  const {x, y, w, h} = places[n];
  view.k = Math.max(view.k, READABLE);
  view.x = along(svg.clientWidth, size.w, x + w / 2);
  view.y = along(svg.clientHeight, size.h, y + h / 2);
  show();
}

function along(room, drawn, middle) { // no more empty room at an end of the drawing than there has to be
  const most = Math.max(0, (room - drawn * view.k) / 2), least = Math.min(room - drawn * view.k, most);
  return Math.min(most, Math.max(least, room / 2 - middle * view.k));
}

function isVisible(n) {
  const {x, y, w, h} = places[n];
  const left = view.x + x * view.k, top = view.y + y * view.k;
  return left >= 0 && top >= 0 && left + w * view.k <= svg.clientWidth && top + h * view.k <= svg.clientHeight;
}

// --- pointers: one moves, two pinch ---------------------------------------------------------------------------------
const down = new Map();
let travelled = 0;
const CLICK_PX = 5;

function middle(points) {
  const [a, b = a] = points;
  return {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, far: Math.hypot(a.x - b.x, a.y - b.y)};
}

function at(event) {
  const frame = svg.getBoundingClientRect();
  return {x: event.clientX - frame.left, y: event.clientY - frame.top};
}

svg.addEventListener("pointerdown", event => {
  if (event.button !== 0) return;
  if (down.size === 0) travelled = 0;
  down.set(event.pointerId, at(event));
});
svg.addEventListener("pointermove", event => {
  if (!down.has(event.pointerId)) return;
  const before = middle([...down.values()]);
  down.set(event.pointerId, at(event));
  const after = middle([...down.values()]);
  travelled += Math.hypot(after.x - before.x, after.y - before.y) + Math.abs(after.far - before.far);
  if (travelled < CLICK_PX) return;
  if (!svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
  svg.classList.add("dragging");
  view.x += after.x - before.x;
  view.y += after.y - before.y;
  if (down.size > 1 && before.far > 0) zoom(after.far / before.far, after.x, after.y);
  else show();
});
for (const kind of ["pointerup", "pointercancel", "pointerleave"]) {
  svg.addEventListener(kind, event => {
    if (kind === "pointerleave" && svg.hasPointerCapture(event.pointerId)) return;
    down.delete(event.pointerId);
    if (down.size === 0) svg.classList.remove("dragging");
  });
}
svg.addEventListener("wheel", event => {
  event.preventDefault();
  const {x, y} = at(event);
  zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 60) / 300), x, y);
}, {passive: false});
svg.addEventListener("click", event => {
  if (travelled >= CLICK_PX) return;
  const box = event.target.closest(".box");
  if (box) choose(boxes.indexOf(box));
  else mark(null);
});
document.getElementById("in").addEventListener("click", () => zoom(1.3));
document.getElementById("out").addEventListener("click", () => zoom(1 / 1.3));
document.getElementById("fit").addEventListener("click", fit);

// --- keys: the drawing is walked along its edges --------------------------------------------------------------------
svg.addEventListener("focusin", event => {
  const n = boxes.indexOf(event.target.closest(".box"));
  if (n >= 0 && !isVisible(n) && event.target.matches(":focus-visible")) center(n);
});
svg.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const n = boxes.indexOf(event.target.closest(".box"));
  const act = { // n: -1 where no box has the focus
    "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), "0": fit,
    "Enter": () => choose(n), " ": () => choose(n),
    "ArrowLeft": () => walk(n, parents(n)), "ArrowRight": () => walk(n, children(n)),
    "ArrowUp": () => walk(n, column(n, -1)), "ArrowDown": () => walk(n, column(n, 1)),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

function parents(n) { return edges.filter(edge => edge.b === n).map(edge => edge.a); }
function children(n) { return edges.filter(edge => edge.a === n).map(edge => edge.b); }

function column(n, way) {
  const here = places[n];
  const others = places.map((_, i) => i).filter(i => places[i].x === here.x && (places[i].y - here.y) * way > 0);
  return others.sort((i, j) => Math.abs(places[i].y - here.y) - Math.abs(places[j].y - here.y)).slice(0, 1);
}

function walk(n, ends) {
  if (n < 0 || ends.length === 0) return;
  const near = end => Math.abs(places[end].y - places[n].y) + Math.abs(places[end].x - places[n].x) / 10;
  const next = ends.reduce((best, end) => near(end) < near(best) ? end : best);
  boxes[next].focus();
  choose(next);
}

// --- what is chosen -------------------------------------------------------------------------------------------------
function reach(n, from, to) {
  const ends = new Map();
  for (const edge of edges) {
    if (!ends.has(edge[from])) ends.set(edge[from], []);
    ends.get(edge[from]).push(edge[to]);
  }
  const found = new Set([n]), ahead = [n];
  while (ahead.length) {
    for (const end of ends.get(ahead.pop()) || []) {
      if (!found.has(end)) { found.add(end); ahead.push(end); }
    }
  }
  return found;
}

function mark(n) {
  svg.classList.toggle("chosen", n !== null);
  const up = n === null ? new Set() : reach(n, "b", "a"), below = n === null ? new Set() : reach(n, "a", "b");
  boxes.forEach((box, i) => {
    box.classList.toggle("on", i === n);
    box.classList.toggle("near", up.has(i) || below.has(i));
    if (i === n) box.setAttribute("aria-current", "true"); else box.removeAttribute("aria-current");
  });
  arrows.forEach((arrow, i) => {
    const {a, b} = edges[i];
    arrow.classList.toggle("on", a === n || b === n);
    arrow.classList.toggle("near", (up.has(a) && up.has(b)) || (below.has(a) && below.has(b)));
  });
}

function choose(n) {
  if (n < 0) return;
  mark(n);
  panel.replaceChildren(...record(n));
  panel.scrollTop = 0;
  try {
    history.replaceState(null, "", "#" + encodeURIComponent(named(n)));
  } catch { /* a page without an address of its own */ }
}

function jump(n) {
  choose(n);
  if (!isVisible(n)) center(n);
}

function named(n) { return `${nodes[n].stage}@${nodes[n].key.slice(0, 12)}`; }

// --- the record of a node -------------------------------------------------------------------------------------------
function el(tag, style, ...inner) {
  const made = document.createElement(tag);
  if (style) made.className = style;
  made.append(...inner);
  return made;
}

function record(n) {
  const node = nodes[n], found = node.record || {};
  const chips = [
    n === root && ["this page's artifact", ""], node.missing && ["missing: no record of it", "bad"],
    node.store && ["in another store", ""], node.source && ["text", ""], node.function && [node.function, ""],
  ].filter(Boolean);
  const into = edges.filter(edge => edge.b === n), from = edges.filter(edge => edge.a === n);
  return [
    el("section", "",
      el("h2", "", node.stage),
      el("p", "id", named(n)),
      el("div", "", ...chips.map(([text, style]) => el("span", `chip ${style}`, text))),
      table(facts(node, found))),
    ...section("Made from", into.length && links(into, "a")),
    ...section("Used by", from.length && links(from, "b")),
    ...section("Outputs", (found.outputs || []).length && outputs(found.outputs)),
    ...section("Metrics", metrics(node, found)),
    ...section("Configuration", table(flat((found.payload || {}).config ?? node.source ?? {}), "mono", "wide")),
    ...folded("Packages", table(Object.entries(node.packages || {}), "mono")),
    ...folded("Provenance", table(flat(withoutPackages(found.provenance)), "mono", "wide")),
    ...folded("record.json", node.record && el("pre", "", JSON.stringify(node.record, null, 1))),
  ];
}

function facts(node, found) {
  const made_by = found.provenance || {};
  const commit = node.git_commit && node.git_commit + (node.dirty ? " with changes that no commit has" : "");
  const workers = Array.isArray(made_by.ran_on) ? made_by.ran_on.length : 0;
  const where = (node.hosts || []).join(", ") + (workers > 1 ? ` (${workers} workers)` : "");
  const command = Array.isArray(made_by.argv) ? made_by.argv.join(" ") : "";
  return [
    ["key", node.key, "mono"], ["digest", node.digest, "mono"], ["store", node.store, "mono"],
    ["made", node.started !== null && date(node.started)], ["took", node.seconds !== null && duration(node.seconds)],
    ["where", where], ["run", node.run], ["pipeline", node.pipeline],
    ["attempt", found.attempt > 1 && String(found.attempt)],
    ["tokens", node.tokens && Number(node.tokens).toLocaleString("en")],
    ["FLOPs", node.flops && Number(node.flops).toExponential(2)],
    ["commit", commit, "mono"], ["licence", made_by.licence], ["command", command, "mono"],
    ["version", (found.payload || {}).version && `${node.function} ${found.payload.version}`],
  ].filter(([, value]) => value);
}

function table(rows, style = "", kind = "") {
  if (rows.length === 0) return null;
  return el("table", kind, el("tbody", "", ...rows.map(([name, value, own]) => (
    el("tr", "", el("th", "", ...broken(name)), el("td", own || style, String(value)))
  ))));
}

function broken(name) { // a long dotted name may go on in another line after a dot or an underscore
  return name.split(/(?<=[._])/).flatMap(part => [part, document.createElement("wbr")]);
}

function links(found, end) {
  return el("ul", "links", ...found.map(edge => {
    const n = edge[end], other = nodes[n];
    const go = el("button", "", named(n));
    go.type = "button";
    go.addEventListener("click", () => jump(n));
    const parent = nodes[edge.a].stage, plain = edge.role === parent || edge.role === parent.split(".")[0];
    const notes = [
      !plain && [`as ${edge.role}`, ""], other.missing && ["missing", "bad"],
      edge.replaced && ["made again since, with other bytes", "bad"], other.store && ["in another store", ""],
    ].filter(Boolean);
    return el("li", "", go, ...notes.map(([text, style]) => el("span", `note ${style}`, text)));
  }));
}

function outputs(files) {
  return el("table", "", el("tbody", "", ...files.map(file => (
    el("tr", "", el("td", "", el("span", "mono", file.path), el("span", "hash", `sha256 ${file.sha256}`)),
      el("td", "number", bytes(file.size)))
  ))));
}

function metrics(node, found) {
  return table(flat(found.metrics || node.metrics || {}), "mono", "wide");
}

function withoutPackages(provenance) {
  return Object.fromEntries(Object.entries(provenance || {}).filter(([name]) => name !== "packages"));
}

const LONG = 15; // rows; what has more may go on in the next column

function section(title, inner) {
  const rows = inner ? inner.querySelectorAll("tr, li").length : 0;
  return inner ? [el("section", rows > LONG ? "long" : "", el("h3", "", title), inner)] : [];
}

function folded(title, inner) {
  return inner ? [el("section", "long", el("details", "", el("summary", "", title), inner))] : [];
}

function flat(value, name = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
    return Object.entries(value).flatMap(([inner, item]) => flat(item, name ? `${name}.${inner}` : inner));
  }
  return name ? [[name, words(value)]] : [];
}

function words(value) {
  if (typeof value === "string") return value;
  if (typeof value === "number") return number(value);
  const isList = Array.isArray(value) && value.length > 0 && value.every(item => typeof item !== "object");
  return isList ? value.map(words).join(", ") : JSON.stringify(value);
}

function number(value) {
  return Number.isInteger(value) ? (value < 1e15 ? value.toLocaleString("en") : value.toExponential(3)) : String(value);
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return `${unit && n < 99.95 ? n.toFixed(1) : Math.round(n)} ${units[unit]}`;
}

function duration(s) {
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  const whole = Math.round(s), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

function date(s) {
  const found = new Date(s * 1000);
  return Number.isNaN(found.getTime()) ? "" : found.toISOString().replace("T", " ").slice(0, 19) + " UTC";
}

// --- search ---------------------------------------------------------------------------------------------------------
const haystacks = nodes.map(node => [
  node.stage, node.key, node.digest, node.git_commit, node.run, node.pipeline, node.store, ...(node.hosts || []),
].filter(Boolean).join("\n").toLowerCase());
let hits = [], turn = -1;

search.addEventListener("input", () => {
  const wanted = search.value.trim().toLowerCase();
  hits = wanted ? haystacks.flatMap((text, n) => text.includes(wanted) ? [n] : []) : [];
  turn = -1;
  boxes.forEach((box, n) => box.classList.toggle("hit", hits.includes(n)));
  document.getElementById("hits").value = wanted ? `${hits.length} found` : "";
});
search.addEventListener("keydown", event => {
  if (event.key !== "Enter" || hits.length === 0) return;
  turn = (turn + (event.shiftKey ? hits.length - 1 : 1)) % hits.length;
  document.getElementById("hits").value = `${turn + 1} of ${hits.length}`;
  choose(hits[turn]);
  center(hits[turn]);
});

// --- start ----------------------------------------------------------------------------------------------------------
svg.removeAttribute("viewBox");
// As high as the drawing needs at the width that there is, within reason.
const needed = size.h * Math.min(1, Math.max(READABLE, svg.clientWidth / size.w)) + 8;
svg.style.height = `${Math.round(Math.min(Math.max(needed, 210), innerHeight * 0.6))}px`;
fit();
const asked = nodes.findIndex((_, n) => "#" + encodeURIComponent(named(n)) === location.hash);
panel.replaceChildren(...record(asked >= 0 ? asked : root));
if (asked >= 0) mark(asked);
if (view.k < READABLE || asked >= 0) center(asked >= 0 ? asked : root);
