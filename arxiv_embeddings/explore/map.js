// The map of a run in one file. Python (explore.map) fills the blocks `head`, `marks`, `texts` and `near` with data.
// Everything from a corpus becomes a text node: no markup is ever made of it.
"use strict";
const $ = (id) => document.getElementById(id);
const SPAN = 65535; // places are 16-bit numbers
const CELLS = 256; // of the grid that finds the paper under the pointer, along each side
const HIDDEN = 0, DIM = 1, SHOWN = 2; // states of a paper
const LEVELS = [ // of labels: from which zoom to which they are shown, and how
  { least: 0, most: 2.4, size: 17, weight: 700, opacity: 1 },
  { least: 1, most: 6, size: 13.5, weight: 600, opacity: 0.88 },
  { least: 2.8, most: 1e9, size: 12, weight: 500, opacity: 0.88 },
];
const still = matchMedia("(prefers-reduced-motion: reduce)");

// ---- data

async function unpack(id) {
  const packed = atob($(id).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function unpackJson(id) {
  return JSON.parse(new TextDecoder().decode(await unpack(id)));
}

const papers = { n: 0, x: null, y: null, group: null, year: null, linked: null, texts: null, words: null, near: null };
const view = { zoom: 1, x: SPAN / 2, y: SPAN / 2, width: 1, height: 1, ratio: 1 };
const chosen = { groups: new Set(), from: 0, to: 0, words: [], hits: null, paper: -1, near: [] };
// one opaque canvas: a second one above it would halve the frames a second, if they are composed in software
const pen = $("points").getContext("2d", { alpha: false });
let head, state, colors, pixels, image, cellStart, cellPapers, isDark, asked = 0, resting = 0;

function readMarks(buffer) {
  const n = (papers.n = head.n);
  papers.x = new Uint16Array(buffer, 0, n);
  papers.y = new Uint16Array(buffer, 2 * n, n);
  papers.year = new Uint16Array(buffer, 4 * n, n); // 0: none
  papers.group = new Uint8Array(buffer, 6 * n, n);
  papers.linked = new Uint8Array(buffer, 7 * n, n); // 1: arXiv has a page for its id
  state = new Uint8Array(n).fill(SHOWN);
  fillCells();
}

function fillCells() {
  cellStart = new Uint32Array(CELLS * CELLS + 1);
  cellPapers = new Uint32Array(papers.n);
  const cellOf = (i) => (papers.y[i] >> 8) * CELLS + (papers.x[i] >> 8);
  for (let i = 0; i < papers.n; i++) cellStart[cellOf(i) + 1]++;
  for (let c = 0; c < CELLS * CELLS; c++) cellStart[c + 1] += cellStart[c];
  const next = cellStart.slice();
  for (let i = 0; i < papers.n; i++) cellPapers[next[cellOf(i)]++] = i;
}

// The paper of a state other than hidden that is nearest to a place, or -1; `reach` and the place in units of the data.
function nearest(x, y, reach, except = -1) {
  let best = -1, least = reach * reach;
  const clip = (value) => Math.max(0, Math.min(CELLS - 1, value >> 8));
  for (let row = clip(y - reach); row <= clip(y + reach); row++) {
    const begin = cellStart[row * CELLS + clip(x - reach)], end = cellStart[row * CELLS + clip(x + reach) + 1];
    for (let k = begin; k < end; k++) {
      const i = cellPapers[k], far = (papers.x[i] - x) ** 2 + (papers.y[i] - y) ** 2;
      if (far <= least && state[i] !== HIDDEN && i !== except) { best = i; least = far; }
    }
  }
  return best;
}

function nearestOnMap(paper, k = 10) {
  const found = [], kept = state;
  state = state.slice();
  state[paper] = HIDDEN;
  for (let reach = SPAN / CELLS; found.length < k && reach < 4 * SPAN;) {
    const one = nearest(papers.x[paper], papers.y[paper], reach);
    if (one < 0) reach *= 2;
    else { found.push(one); state[one] = HIDDEN; }
  }
  state = kept;
  return found;
}

// ---- the picture

const unit = () => (Math.min(view.width, view.height) * 0.94 * view.zoom) / SPAN; // pixels of CSS per unit of the data
const toScreen = (x, y) => [(x - view.x) * unit() + view.width / 2, (y - view.y) * unit() + view.height / 2];
const toPlace = (left, top) => [(left - view.width / 2) / unit() + view.x, (top - view.height / 2) / unit() + view.y];

function resize() {
  const box = $("map").getBoundingClientRect();
  Object.assign(view, { width: Math.max(1, box.width), height: Math.max(1, box.height), ratio: Math.min(2, devicePixelRatio || 1) });
  $("points").width = Math.round(view.width * view.ratio);
  $("points").height = Math.round(view.height * view.ratio);
  image = pen.createImageData($("points").width, $("points").height);
  pixels = new Uint32Array(image.data.buffer);
  askFrame();
}

// The pixels of a disc: how far each is from the middle of the picture's memory, and how much of it is covered, to 256.
function makeDisc(radius, width) {
  const far = Math.ceil(radius), offsets = [], covered = [];
  for (let dy = -far; dy <= far; dy++)
    for (let dx = -far; dx <= far; dx++) {
      const part = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(dx, dy)));
      if (part > 0.05) { offsets.push(dy * width + dx); covered.push(Math.round(part * 256)); }
    }
  return { offsets: Int32Array.from(offsets), covered: Int32Array.from(covered), far };
}

const toPixel = (hex) => (0xff000000 | (parseInt(hex.slice(5, 7), 16) << 16) | (parseInt(hex.slice(3, 5), 16) << 8) | parseInt(hex.slice(1, 3), 16)) >>> 0;

function radiusOf() {
  const fit = 0.42 * Math.sqrt((view.width * view.height) / Math.max(papers.n, 1));
  return Math.max(0.8, Math.min(4.5, fit * 0.55)) * Math.min(2.6, view.zoom ** 0.35) * view.ratio;
}

// Discs are written into the picture's memory: in software this is many times faster than a call for each.
// While the map moves pixels are set, not mixed; a moment later it is painted again with smooth edges.
function paintPapers(wanted, disc, opacity, smooth, single) {
  const { offsets, covered, far } = disc, width = image.width, height = image.height;
  const scale = unit() * view.ratio, left = width / 2 - view.x * scale, top = height / 2 - view.y * scale;
  for (let i = 0; i < papers.n; i++) {
    if (state[i] !== wanted) continue;
    const x = (papers.x[i] * scale + left) | 0, y = (papers.y[i] * scale + top) | 0;
    if (x < far || y < far || x >= width - far || y >= height - far) continue;
    const at = y * width + x, color = single ?? colors[papers.group[i]], rb = color & 0xff00ff, g = color & 0xff00;
    for (let k = 0; k < offsets.length; k++) {
      if (!smooth) { if (covered[k] >= 128) pixels[at + offsets[k]] = color; continue; }
      const under = pixels[at + offsets[k]], part = (covered[k] * opacity) | 0, urb = under & 0xff00ff, ug = under & 0xff00;
      pixels[at + offsets[k]] = 0xff000000 | ((urb + (Math.imul(rb - urb, part) >> 8)) & 0xff00ff) | ((ug + (Math.imul(g - ug, part) >> 8)) & 0xff00);
    }
  }
}

function paint(smooth) {
  const ground = toPixel(isDark ? "#101216" : "#ffffff");
  pixels.fill(ground);
  const radius = radiusOf(), disc = makeDisc(radius, image.width);
  if (chosen.hits) paintPapers(DIM, disc, 0.9, smooth, toPixel(isDark ? "#2a2e36" : "#e3e4e8"));
  const bigger = chosen.hits ? makeDisc(Math.max(radius * 1.5, 2.6 * view.ratio), image.width) : disc;
  paintPapers(SHOWN, bigger, papers.n > 20000 ? 0.7 : 0.85, smooth);
  pen.putImageData(image, 0, 0);
  paintOver();
}

function paintOver() {
  pen.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
  const ink = isDark ? "#f4f5f7" : "#111216", halo = isDark ? "#101216" : "#ffffff";
  if (chosen.paper >= 0) paintChosen(ink);
  paintLabels(ink, halo);
  if (document.activeElement === $("points") && $("points").matches(":focus-visible")) paintCross(ink);
}

function paintChosen(ink) {
  const [x, y] = toScreen(papers.x[chosen.paper], papers.y[chosen.paper]);
  pen.strokeStyle = ink;
  for (const one of chosen.near) {
    const [left, top] = toScreen(papers.x[one], papers.y[one]);
    pen.globalAlpha = 0.45;
    pen.beginPath(); pen.moveTo(x, y); pen.lineTo(left, top); pen.stroke();
    pen.globalAlpha = 1;
    pen.beginPath(); pen.arc(left, top, 5, 0, 7); pen.stroke();
  }
  pen.lineWidth = 2.5;
  pen.beginPath(); pen.arc(x, y, 9, 0, 7); pen.stroke();
  pen.lineWidth = 1;
}

function paintCross(ink) {
  const x = view.width / 2, y = view.height / 2;
  pen.strokeStyle = ink;
  pen.beginPath(); pen.moveTo(x - 8, y); pen.lineTo(x + 8, y); pen.moveTo(x, y - 8); pen.lineTo(x, y + 8); pen.stroke();
}

// Labels of coarse regions first; one that would touch another is left out until there is room for it.
function paintLabels(ink, halo) {
  const taken = [];
  pen.textAlign = "center"; pen.textBaseline = "middle"; pen.lineJoin = "round";
  for (const label of head.labels) {
    const level = LEVELS[label.level];
    if (view.zoom < level.least || view.zoom > level.most || taken.length > 60) continue;
    const [x, y] = toScreen(label.x, label.y);
    if (x < 0 || y < 0 || x > view.width || y > view.height) continue;
    pen.font = `${level.weight} ${level.size}px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif`;
    const width = (label.width ??= pen.measureText(label.text).width) / 2 + 7, height = level.size / 2 + 5;
    const middle = Math.max(width, Math.min(view.width - width, x));
    const box = [middle - width, y - height, middle + width, y + height];
    if (taken.some((one) => box[0] < one[2] && box[2] > one[0] && box[1] < one[3] && box[3] > one[1])) continue;
    taken.push(box);
    pen.globalAlpha = chosen.hits ? 0.5 : level.opacity;
    pen.strokeStyle = halo; pen.lineWidth = 4; pen.strokeText(label.text, middle, y);
    pen.fillStyle = ink; pen.fillText(label.text, middle, y);
  }
  pen.globalAlpha = 1; pen.lineWidth = 1;
}

function askFrame(moving = false) {
  clearTimeout(resting);
  if (moving) resting = setTimeout(askFrame, 140);
  asked ||= requestAnimationFrame(() => { asked = 0; paint(!askFrame.moving); });
  askFrame.moving = moving;
}

function setTheme(dark) {
  isDark = dark;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  colors = Uint32Array.from(head.groups, (group) => toPixel(dark ? group.dark : group.light));
  document.querySelectorAll(".swatch").forEach((swatch, k) => { swatch.style.background = dark ? head.groups[k].dark : head.groups[k].light; });
  drawHistogram();
  askFrame();
}

// ---- moving

function moveTo(x, y, zoom) {
  const begin = { ...view }, since = performance.now(), target = { x, y, zoom: Math.max(0.5, Math.min(400, zoom)) };
  if (still.matches) { Object.assign(view, target); return askFrame(); }
  const step = (now) => {
    const part = Math.min(1, (now - since) / 350), eased = part * (2 - part);
    view.zoom = begin.zoom * (target.zoom / begin.zoom) ** eased;
    view.x = begin.x + (x - begin.x) * eased;
    view.y = begin.y + (y - begin.y) * eased;
    askFrame(part < 1);
    if (part < 1 && moveTo.last === step) requestAnimationFrame(step);
  };
  moveTo.last = step;
  requestAnimationFrame(step);
}

function zoomAt(left, top, factor) {
  moveTo.last = null;
  const [x, y] = toPlace(left, top);
  view.zoom = Math.max(0.5, Math.min(400, view.zoom * factor));
  const [nowX, nowY] = toPlace(left, top);
  view.x += x - nowX;
  view.y += y - nowY;
  askFrame(true);
}

const showWhole = () => moveTo(SPAN / 2, SPAN / 2, 1);

function shift(dx, dy) {
  moveTo.last = null;
  view.x -= dx / unit();
  view.y -= dy / unit();
  askFrame(true);
}

function listenToPointers() {
  const canvas = $("points"), held = new Map();
  let path = 0;
  canvas.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
    path = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) return hover(event.offsetX, event.offsetY);
    const others = [...held.values()].filter((one) => one.pointerId !== event.pointerId);
    if (others.length) {
      const spread = (one) => Math.hypot(one.offsetX - others[0].offsetX, one.offsetY - others[0].offsetY);
      zoomAt(others[0].offsetX, others[0].offsetY, spread(event) / Math.max(1, spread(before)));
    } else shift(event.offsetX - before.offsetX, event.offsetY - before.offsetY);
    path += Math.hypot(event.offsetX - before.offsetX, event.offsetY - before.offsetY);
    held.set(event.pointerId, event);
    canvas.classList.add("held");
    $("tip").hidden = true;
  });
  const release = (event) => {
    if (held.delete(event.pointerId) && event.type === "pointerup" && path < 4) openAt(event.offsetX, event.offsetY);
    canvas.classList.remove("held");
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(event.offsetX, event.offsetY, Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) * 0.0035));
  }, { passive: false });
}

function listenToKeys() {
  const ways = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return closeOrClear();
    if (event.target.matches("input[type=search]")) return;
    if (event.key === "/") { event.preventDefault(); return $("search").focus(); }
    if (event.key === "+" || event.key === "=") zoomAt(view.width / 2, view.height / 2, 1.5);
    if (event.key === "-") zoomAt(view.width / 2, view.height / 2, 1 / 1.5);
    if (event.key === "0") showWhole();
    if (event.target !== $("points")) return;
    if (ways[event.key]) { event.preventDefault(); shift(...ways[event.key]); }
    if (event.key === "Enter") openAt(view.width / 2, view.height / 2, 60);
  });
  for (const list of [$("results"), $("paper")])
    list.addEventListener("keydown", (event) => {
      const way = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const next = way && event.target.closest("li")?.[way]?.querySelector("button");
      if (next) { event.preventDefault(); next.focus(); }
    });
}

// ---- text of papers

function addText(parent, tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return parent.appendChild(element);
}

const titleOf = (i) => papers.texts.title?.[i] || papers.texts.paper_id[i];
function factsOf(i) {
  const { categories } = papers.texts, colored = head.by ? `${head.by}: ${head.groups[papers.group[i]].name}` : "";
  return [categories?.[i] || colored, papers.year[i] || ""].filter(Boolean).join(" · ");
}

function hover(left, top) {
  const tip = $("tip"), one = nearest(...toPlace(left, top), 9 / unit());
  tip.hidden = one < 0 || !papers.texts;
  $("points").style.cursor = one < 0 ? "" : "pointer";
  if (tip.hidden) return;
  if (hover.last !== one) {
    tip.replaceChildren();
    addText(tip, "b", titleOf(one));
    for (const text of [papers.texts.authors?.[one], factsOf(one)]) if (text) addText(tip, "span", text);
    hover.last = one;
  }
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(left + 14, view.width - width - 6))}px`;
  tip.style.top = `${top + 16 + height > view.height ? top - height - 10 : top + 16}px`;
}

function openAt(left, top, reach = 9) {
  const one = nearest(...toPlace(left, top), reach / unit());
  if (one >= 0) openPaper(one, false);
}

function addPaper(list, i) {
  const button = addText(addText(list, "li", ""), "button", titleOf(i));
  button.type = "button";
  addText(button, "small", [factsOf(i), papers.texts.paper_id[i]].filter(Boolean).join(" · "));
  button.addEventListener("click", () => openPaper(i, true));
}

// Open the panel of a paper; `fly`: move the map to it.
function openPaper(i, fly) {
  if (!papers.texts || i < 0) return;
  chosen.paper = i;
  chosen.near = papers.near ? [...papers.near.subarray(i * head.k, (i + 1) * head.k)] : nearestOnMap(i);
  const panel = $("paper"), id = papers.texts.paper_id[i];
  panel.replaceChildren();
  addText(panel, "h2", titleOf(i));
  const close = addText(panel, "button", "×");
  Object.assign(close, { id: "close", type: "button", ariaLabel: "Close" });
  close.addEventListener("click", closePaper);
  for (const text of [papers.texts.authors?.[i], factsOf(i)]) if (text) addText(panel, "p", text, "quiet");
  addLink(panel, i);
  if (chosen.near.length) {
    addText(panel, "h3", papers.near ? "Nearest papers, by the vectors" : "Nearest papers on the map");
    const list = addText(panel, "ol", "");
    for (const one of chosen.near) addPaper(list, one);
  }
  panel.hidden = false;
  panel.scrollTop = 0;
  panel.focus({ preventScroll: true });
  setAddress(`#${encodeURIComponent(id)}`);
  if (fly) flyTo(i);
  else uncover(i);
}

// Move the map sideways if the panel lies on the paper that it is about.
function uncover(i) {
  const [x, y] = toScreen(papers.x[i], papers.y[i]), panel = $("paper");
  const excess = x + 40 - panel.offsetLeft, covered = y > panel.offsetTop - 20 && y < panel.offsetTop + panel.offsetHeight + 20;
  if (excess > 0 && covered && view.width > 700) moveTo(view.x + excess / unit(), view.y, view.zoom);
  else askFrame();
}

// Move the map so that a paper and most of its neighbors are beside the panel.
function flyTo(i) {
  const reaches = chosen.near.map((one) => Math.max(Math.abs(papers.x[one] - papers.x[i]), Math.abs(papers.y[one] - papers.y[i])));
  const reach = reaches.sort((one, other) => one - other)[Math.floor(reaches.length * 0.7)] || 0;
  const zoom = Math.max(1.5, Math.min(head.near_zoom, SPAN / 2.6 / Math.max(reach, 1)));
  const covered = view.width > 700 ? $("paper").offsetWidth / 2 : 0;
  moveTo(papers.x[i] + covered / (unit() / view.zoom * zoom), papers.y[i], zoom);
}

function addLink(panel, i) {
  const line = addText(panel, "p", "", "quiet"), id = papers.texts.paper_id[i];
  if (!papers.linked[i]) return addText(line, "span", id);
  const link = addText(line, "a", `arXiv:${id}`);
  Object.assign(link, { href: `https://arxiv.org/abs/${id}`, rel: "noopener noreferrer", target: "_blank" });
}

function setAddress(hash) {
  try { history.replaceState(null, "", hash || location.pathname); } catch { /* a frame without an address of its own */ }
}

function closePaper() {
  chosen.paper = -1;
  chosen.near = [];
  $("paper").hidden = true;
  setAddress("");
  $("points").focus({ preventScroll: true });
  askFrame();
}

function closeOrClear() {
  if (!$("paper").hidden) return closePaper();
  if ($("search").value) { $("search").value = ""; search(); }
}

function openAddress() {
  let id;
  try { id = decodeURIComponent(location.hash.slice(1)); } catch { return; }
  const one = id ? papers.texts.paper_id.indexOf(id) : -1;
  if (one >= 0) openPaper(one, true);
  else if (id && !$(id)) $("found").textContent = `The map has no paper ${id}.`;
}

// ---- search and filters

// Words in small letters without accents, each after a space; a point within a number, as in an id, is kept.
function plain(text) {
  const bare = text.toLowerCase().normalize("NFKD").replace(/\p{M}+/gu, "");
  return bare.replace(/(?<!\d)\.|\.(?!\d)|[^\p{L}\p{N}.]+/gu, " ");
}

// Texts are prepared a few thousand at a time, so that the map can be moved meanwhile.
async function prepareWords() {
  const words = new Array(papers.n), { title, authors, paper_id } = papers.texts;
  for (let i = 0; i < papers.n; i++) {
    words[i] = ` ${plain(`${title?.[i] ?? ""} ${authors?.[i] ?? ""} ${paper_id[i]}`)}`;
    if (i % 4000 === 3999) await new Promise((go) => setTimeout(go));
  }
  papers.words = words;
  search();
}

function search() {
  const words = plain($("search").value).split(" ").filter(Boolean).map((word) => ` ${word}`);
  chosen.hits = null;
  if (words.length && papers.words) {
    chosen.hits = new Uint8Array(papers.n);
    for (let i = 0; i < papers.n; i++) {
      const text = papers.words[i];
      if (words.every((word) => text.includes(word))) chosen.hits[i] = 1;
    }
  }
  applyFilters();
  if (words.length && !papers.words) $("found").textContent = "Preparing the search …";
}

function passes(i) {
  const year = papers.year[i], whole = chosen.from <= head.years[0] && chosen.to >= head.years[1];
  return !chosen.groups.has(papers.group[i]) && (whole || (year >= chosen.from && year <= chosen.to));
}

function applyFilters() {
  const hits = [], counts = { shown: 0, hits: 0 };
  for (let i = 0; i < papers.n; i++) {
    const shown = passes(i), hit = shown && (!chosen.hits || chosen.hits[i]);
    state[i] = !shown ? HIDDEN : hit ? SHOWN : DIM;
    counts.shown += shown;
    if (hit && chosen.hits) hits.push(i);
  }
  listHits(hits, counts.shown);
  askFrame();
}

// Papers with the words as they were typed come first, then the newest.
function listHits(hits, nShown) {
  const phrase = ` ${plain($("search").value).trim()}`, count = (n) => n.toLocaleString("en");
  const ranked = hits.map((i) => [papers.year[i] + (papers.words[i].includes(phrase) ? 1e5 : 0), i]);
  const listed = ranked.sort((one, other) => other[0] - one[0] || one[1] - other[1]).slice(0, 100);
  $("results").replaceChildren();
  for (const [, i] of listed) addPaper($("results"), i);
  const among = nShown < papers.n ? `${count(nShown)} of ${count(papers.n)} papers shown.` : "";
  const more = hits.length > listed.length ? `, the first ${listed.length} are listed` : "";
  const matching = chosen.hits ? `${count(hits.length)} ${hits.length === 1 ? "paper matches" : "papers match"}${more}. ` : "";
  $("found").textContent = matching + among;
}

function makeLegend() {
  const box = $("legend");
  box.hidden = head.groups.length < 2;
  box.querySelector("legend").textContent = head.by.replaceAll("_", " ");
  head.groups.forEach((group, k) => {
    const label = addText(box.querySelector("div"), "label", ""), input = addText(label, "input", "");
    Object.assign(input, { type: "checkbox", checked: true });
    input.addEventListener("change", () => {
      if (input.checked) chosen.groups.delete(k);
      else chosen.groups.add(k);
      applyFilters();
    });
    addText(label, "span", "", "swatch");
    addText(label, "span", group.name);
    addText(label, "small", group.n.toLocaleString("en"));
    label.title = group.members.join(", ");
  });
  $("all").addEventListener("click", () => {
    chosen.groups.clear();
    box.querySelectorAll("input").forEach((input) => { input.checked = true; });
    applyFilters();
  });
}

function makeYears() {
  const [first, last] = head.years, without = papers.year.reduce((n, year) => n + !year, 0);
  $("years").hidden = first >= last;
  for (const [id, value] of [["from", first], ["to", last]]) {
    Object.assign($(id), { min: first, max: last, value });
    $(id).addEventListener("input", (event) => {
      if (+$("from").value > +$("to").value) event.target.value = $(id === "from" ? "to" : "from").value;
      setYears();
      applyFilters();
    });
  }
  if (without) $("yearless").textContent = `${without.toLocaleString("en")} without a year: hidden once the range is narrowed.`;
  setYears();
}

function setYears() {
  Object.assign(chosen, { from: +$("from").value, to: +$("to").value });
  $("since").textContent = chosen.from;
  $("until").textContent = chosen.to;
  drawHistogram();
}

function drawHistogram() {
  if ($("years").hidden || !head.years[0]) return;
  const [first, last] = head.years, counts = new Array(last - first + 1).fill(0), canvas = $("histogram");
  for (const year of papers.year) if (year) counts[year - first]++;
  canvas.width = canvas.clientWidth * view.ratio;
  canvas.height = 40 * view.ratio;
  const bars = canvas.getContext("2d"), style = getComputedStyle(document.documentElement), most = Math.max(...counts);
  const step = canvas.width / counts.length;
  counts.forEach((count, k) => {
    const within = first + k >= chosen.from && first + k <= chosen.to;
    bars.fillStyle = style.getPropertyValue(within ? "--accent" : "--bar");
    const height = count && Math.max(1, (count / most) * canvas.height);
    bars.fillRect(k * step, canvas.height - height, Math.max(1, step - 1), height);
  });
}

function makeAbout() {
  for (const [name, value] of head.about) {
    addText($("about").querySelector("dl"), "dt", name);
    addText($("about").querySelector("dl"), "dd", value);
  }
  const count = `${papers.n.toLocaleString("en")} ${papers.n === 1 ? "paper" : "papers"}`;
  $("points").ariaLabel = `Map of ${count}. Arrow keys move it, plus and minus zoom, Enter opens the paper in the middle.`;
}

// ---- start

async function start() {
  head = await unpackJson("head");
  readMarks(await unpack("marks"));
  makeLegend();
  makeYears();
  makeAbout();
  resize();
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  requestAnimationFrame(() => performance.mark("map painted"));
  new ResizeObserver(resize).observe($("map"));
  listenToPointers();
  listenToKeys();
  $("theme").addEventListener("click", () => setTheme(!isDark));
  $("nearer").addEventListener("click", () => zoomAt(view.width / 2, view.height / 2, 1.5));
  $("farther").addEventListener("click", () => zoomAt(view.width / 2, view.height / 2, 1 / 1.5));
  $("whole").addEventListener("click", showWhole);
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") { event.preventDefault(); $("results").querySelector("button")?.focus(); }
    if (event.key === "Enter") $("results").querySelector("button")?.click();
  });
  for (const event of ["focus", "blur"]) $("points").addEventListener(event, () => askFrame());
  if (document.readyState === "loading") await new Promise((go) => document.addEventListener("DOMContentLoaded", go));
  papers.texts = await unpackJson("texts");
  if (head.k) readNear(await unpack("near"));
  openAddress();
  addEventListener("hashchange", openAddress);
  await prepareWords();
  document.documentElement.dataset.ready = "yes";
}

// Neighbors lie close in the order of the file: differences of row numbers, folded to be positive, byte by byte.
function readNear(buffer) {
  const size = papers.n * head.k, bytes = new Uint8Array(buffer);
  papers.near = new Uint32Array(size);
  for (let i = 0; i < size; i++) {
    const folded = bytes[i] | (bytes[size + i] << 8) | (bytes[2 * size + i] << 16);
    papers.near[i] = ((i / head.k) | 0) + ((folded >> 1) ^ -(folded & 1));
  }
}

start();
