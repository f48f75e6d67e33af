// The page: sliders in, numbers and pictures out. Needs the other scripts.
"use strict";

const byId = (id) => document.getElementById(id);
let state = readState(location.hash);

// An element with properties and children; `class` and names with "-" are attributes.
function make(tag, properties = {}, ...children) {
  const svg = ["path", "line", "circle", "rect", "text", "g", "clipPath"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, x] of Object.entries(properties)) {
    if (svg || name === "class" || name.includes("-") || name === "role") element.setAttribute(name, x);
    else element[name] = x;
  }
  element.append(...children);
  return element;
}

// A number for people: four digits after the point, or a power of ten.
function shown(x, digits = 4) {
  if (Number.isNaN(x)) return "NaN";
  if (Math.abs(x) === Infinity) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  const text = size === 0 ? "0" : size >= 1e-3 && size < 1e5 ? x.toFixed(digits) : x.toExponential(2);
  return text.replace("-", "−").replace(/e\+?(.*)$/, (_, power) => ` · 10${superscript(power)}`);
}
// The same in a narrow place.
const brief = (x) => (Math.abs(x) >= 1e-3 || x === 0 ? shown(x, state.z.length > 6 ? 2 : 3)
  : x.toExponential(0).replaceAll("-", "−"));
const superscript = (power) => [...power].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("");
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const snap = (x, step) => Number((Math.round(x / step) * step).toFixed(6));
const pairs = () => ["a", "b"].filter((side) => state[side]).map((side) => [side, state[side]]);
const lossOf = (chosen) => LOSSES[chosen.name];
const ofCosines = () => pairs().some(([, chosen]) => lossOf(chosen).logit_scale);
const unit = () => (ofCosines() ? "cosine" : "logit");

// ---- sliders ---------------------------------------------------------------------------------

// A vertical slider for mouse, touch and keys. `range` tells { low, high, step }.
function slider(kind, label, range, get, set) {
  const zero = make("div", { class: "zero" }), fill = make("div", { class: "fill" });
  const knob = make("div", { class: "knob" });
  const element = make("div", {
    class: `slider ${kind}`, role: "slider", tabIndex: 0, "aria-orientation": "vertical",
    "aria-label": label,
  }, zero, fill, knob);
  const put = (x) => { const { low, high, step } = range(); set(snap(clamp(x, low, high), step)); };
  const fromPointer = (event) => {
    const { top, height } = element.getBoundingClientRect(), { low, high } = range();
    put(high - clamp((event.clientY - top) / height, 0, 1) * (high - low));
  };
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    element.focus({ preventScroll: true });
    fromPointer(event);
    event.preventDefault();
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) fromPointer(event);
  });
  element.addEventListener("keydown", (event) => {
    const { low, high, step } = range(), x = get();
    const to = {
      ArrowUp: x + step, ArrowRight: x + step, ArrowDown: x - step, ArrowLeft: x - step,
      PageUp: x + 10 * step, PageDown: x - 10 * step, Home: low, End: high, 0: 0,
    }[event.key];
    if (to === undefined) return;
    put(to);
    event.preventDefault();
  });
  element.update = () => {
    const { low, high } = range(), x = get();
    const place = (v) => 100 * (high - clamp(v, low, high)) / (high - low);
    zero.style.top = `${place(0)}%`;
    fill.style.top = `${Math.min(place(x), place(0))}%`;
    fill.style.height = `${Math.abs(place(x) - place(0))}%`;
    knob.style.top = `clamp(0.35rem, ${place(x)}%, calc(100% - 0.35rem))`;
    element.setAttribute("aria-valuemin", low);
    element.setAttribute("aria-valuemax", high);
    element.setAttribute("aria-valuenow", x);
  };
  return element;
}

let reach = 10; // how far the bars go; it grows with larger logits of an address, or typed ones
function stretch() {
  reach = Math.max(10, 10 * Math.ceil(Math.max(...state.z.map(Math.abs)) / 10));
}
const logitRange = () => (ofCosines() ? { low: -1, high: 1, step: 0.01 }
  : { low: -reach, high: reach, step: 0.1 });

// ---- the row ---------------------------------------------------------------------------------

let columns = [];

function buildColumns() {
  byId("columns").style.setProperty("--count", state.z.length);
  byId("columns").style.setProperty("--parts", isCounted(state) ? 5 : 4);
  columns = state.z.map((_, j) => buildColumn(j));
  byId("columns").replaceChildren(titles(), ...columns.map((column) => column.element));
}

// What the rows of the columns are, beside them.
const titles = () => make("div", { class: "titles", "aria-hidden": true },
  ...[unit(), "target", ...(isCounted(state) ? ["rows"] : []), "probability", "gradient"].map((text) =>
    make("div", { class: `title ${text}` }, make("span", { textContent: text }))));

// The number of rows of a class, which losses against imbalance ask for.
function countEntry(j) {
  const entry = make("input", { type: "number", step: "any", min: 0, value: state.n[j],
    "aria-label": `rows of class ${j}` });
  entry.addEventListener("change", () => {
    const x = Number(entry.value);
    if (Number.isFinite(x) && x > 0) state.n[j] = x;
    entry.value = state.n[j];
    update();
  });
  return make("div", { class: "part rows" }, entry);
}

function buildColumn(j) {
  const select = () => { state.selected = j; };
  const logit = slider("logit", `${unit()} of class ${j}`, logitRange, () => state.z[j],
    (x) => { state.z[j] = x; select(); update(); });
  logit.addEventListener("focus", () => { select(); update(); });
  const entry = make("input", { type: "number", step: "any", "aria-label": `${unit()} of class ${j}, typed` });
  entry.addEventListener("change", () => {
    const x = Number(entry.value);
    if (entry.value.trim() !== "" && Number.isFinite(x)) { state.z[j] = x; select(); stretch(); }
    update();
  });
  const radio = make("input", { type: "radio", name: "target", "aria-label": `class ${j} is the target` });
  radio.addEventListener("change", () => { state.y = j; select(); update(); });
  const pick = make("label", { class: "pick" }, radio, `${j}`);
  const weight = slider("label", `target of class ${j}`, () => ({ low: 0, high: 1, step: 0.05 }),
    () => state.q?.[j] ?? 0, (x) => { state.q[j] = x; update(); });
  const weightText = make("small");
  const target = make("div", { class: "part" }, pick, weight, weightText);
  const level = make("i"), percent = make("small");
  const prob = make("div", { class: "part" }, make("div", { class: "prob" }, level), percent);
  const arrows = { a: make("i", { class: "a" }), b: make("i", { class: "b" }) };
  const slopes = { a: make("small", { class: "a" }), b: make("small", { class: "b" }) };
  const grad = make("div", { class: "grad" }, make("div", { class: "zero" }), arrows.a, arrows.b);
  const element = make("div", { class: "column" }, make("div", { class: "part" }, logit, entry), target,
    ...(isCounted(state) ? [countEntry(j)] : []), prob, make("div", { class: "part" }, grad, slopes.a, slopes.b));
  return { element, logit, entry, radio, pick, weight, weightText, level, percent, grad, arrows, slopes };
}

function drawRow(results) {
  const probs = statistics(state.z.map((x) => number(x / state.t)), 0).prob.map((p) => p.v);
  const size = Math.max(...results.flatMap((r) => r.gradient.map(Math.abs)).filter(Number.isFinite), 1e-300);
  columns.forEach((column, j) => {
    column.element.classList.toggle("target", state.q === null && j === state.y);
    column.element.classList.toggle("selected", j === state.selected);
    column.logit.update();
    if (document.activeElement !== column.entry) column.entry.value = state.z[j];
    column.radio.checked = j === state.y;
    column.pick.hidden = state.q !== null;
    column.weight.hidden = column.weightText.hidden = state.q === null;
    column.weight.update();
    column.weightText.textContent = state.q ? state.q[j] : "";
    column.level.style.height = `${100 * probs[j]}%`;
    column.percent.textContent = probs[j] >= 0.0005 ? `${(100 * probs[j]).toFixed(state.z.length > 6 ? 0 : 1)}%`
      : brief(probs[j]);
    column.grad.classList.toggle("single", state.b === null);
    for (const side of ["a", "b"]) {
      const result = results.find((r) => r.side === side), slope = result?.gradient[j] ?? NaN;
      const height = Number.isFinite(slope) ? 48 * Math.abs(slope) / size : 0;
      column.arrows[side].style.height = `${height}%`;
      column.arrows[side].style.top = `${slope > 0 ? 50 - height : 50}%`;
      column.slopes[side].textContent = result ? brief(slope) : "";
    }
  });
}

// ---- losses ----------------------------------------------------------------------------------

function buildLosses() {
  for (const side of ["a", "b"]) {
    const names = Object.keys(LOSSES).sort();
    const select = make("select", { "aria-label": `loss ${side.toUpperCase()}` },
      ...(side === "b" ? [make("option", { value: "none", textContent: "no second loss" })] : []),
      ...names.map((name) => make("option", { value: name, textContent: name })));
    select.value = state[side]?.name ?? "none";
    select.addEventListener("change", () => { state[side] = readLoss(select.value); rebuild(); select.focus(); });
    const card = byId(`loss-${side}`), chosen = state[side];
    card.replaceChildren(
      make("label", { class: "which" }, make("span", { class: "dot" }), side.toUpperCase(), select));
    if (!chosen) continue;
    card.append(make("p", { textContent: lossOf(chosen).summary }),
      ...movable(chosen.name).map(([key, option]) => buildOption(chosen, key, option)));
  }
  document.querySelector(".losses").querySelectorAll("select")
    .forEach((select, k) => { select.value = state["ab"[k]]?.name ?? select.value; });
}

function buildOption(chosen, key, option) {
  const row = make("label", { class: "option" }, make("code", { textContent: key }));
  const set = (text) => {
    const x = read(option, text);
    if (x !== undefined) { chosen.options[key] = x; update(); }
    return chosen.options[key];
  };
  if (option.choices) {
    const select = make("select", { "aria-label": key }, ...option.choices.map((choice) =>
      make("option", { value: String(choice), textContent: String(choice) })));
    select.value = String(chosen.options[key]);
    select.addEventListener("change", () => set(select.value));
    row.append(select);
    return row;
  }
  const start = option.value, low = option.low ?? Math.min(0, 2 * start);
  const high = option.high ?? Math.max(3 * Math.abs(start), low + 1);
  const step = high - low > 20 ? 1 : high - low > 1.6 ? 0.05 : 0.01;
  const range = make("input", { type: "range", min: low, max: high, step, value: chosen.options[key],
    "aria-label": key });
  const entry = make("input", { type: "number", step: "any", value: chosen.options[key],
    "aria-label": `${key}, typed` });
  range.addEventListener("input", () => { entry.value = set(range.value); });
  entry.addEventListener("change", () => { range.value = entry.value = set(entry.value); });
  row.append(range, entry);
  return row;
}

// ---- numbers and messages ----------------------------------------------------------------------

function drawTiles(results) {
  for (const side of ["a", "b"]) {
    const tile = byId(`tile-${side}`), result = results.find((r) => r.side === side);
    tile.hidden = !result;
    if (!result) continue;
    const { lost, byHand } = result;
    tile.replaceChildren(
      make("div", { class: "name", textContent: result.chosen.name }),
      make("div", { class: "value", textContent: shown(result.value), title: String(result.value) }),
      make("div", { class: `by-hand${lost ? " lost" : ""}`,
        textContent: `float32 by hand: ${shown(byHand)}` }));
  }
}

function drawFindings(results) {
  const found = findings(state, results).map(({ name, problem, fix }) =>
    make("div", { class: "finding" }, make("b", { textContent: name }), ` ${problem}`,
      make("span", { class: "fix", textContent: fix })));
  byId("findings").replaceChildren(...found);
  byId("mistakes").replaceChildren(...mistakes(state).map(({ title, right, wrong, text }) =>
    make("div", { class: "card" }, make("h3", { textContent: title }),
      make("div", { class: "change" }, make("s", { textContent: shown(right) }), ` → ${wrong}`),
      make("p", { textContent: text }))));
}

// ---- the whole ---------------------------------------------------------------------------------

let later = 0;

function update() {
  const results = pairs().map(([side, chosen]) => {
    const call = [lossOf(chosen), settings(state, chosen), state.z, targetOf(state), state.t];
    const result = evaluate(...call), byHand = valueByHand(...call);
    const lost = !(Math.abs(byHand - result.value) <= 1e-3 * Math.abs(result.value) + 1e-300);
    return { side, chosen, ...result, byHand, lost: lost && !Number.isNaN(result.value) };
  });
  drawRow(results);
  drawTiles(results);
  drawCurve(state, results);
  drawFindings(results);
  byId("classes").textContent = state.z.length;
  byId("fewer").disabled = state.z.length <= 2;
  byId("more").disabled = state.z.length >= MOST_CLASSES;
  byId("temperature").value = Math.log10(state.t);
  byId("temperature-value").textContent = state.t;
  byId("python").textContent = python(state);
  document.querySelector(`#kind input[value=${state.q ? "soft" : "class"}]`).checked = true;
  clearTimeout(later); // browsers refuse addresses that change at every move of a mouse
  later = setTimeout(() => history.replaceState(null, "", writeState(state)), 150);
}

function rebuild() {
  const far = Math.max(...state.z.map(Math.abs));
  stretch();
  if (ofCosines() && far > 1) state.z = state.z.map((x) => snap(x / far * 0.9, 0.01));
  buildLosses();
  buildColumns();
  update();
}

function connect() {
  const kinds = document.querySelectorAll("#kind input");
  kinds.forEach((input) => input.addEventListener("change", () => {
    state.q = input.value === "soft" ? state.z.map((_, j) => Number(j === state.y)) : null;
    update();
  }));
  byId("temperature").addEventListener("input", (event) => {
    state.t = Number((10 ** Number(event.target.value)).toPrecision(2));
    update();
  });
  const resize = (by) => {
    const changed = (numbers, next) => (by > 0 ? [...numbers, next] : numbers.slice(0, -1));
    state.n = changed(state.n, countAt(state.z.length));
    state.z = changed(state.z, 0);
    if (state.q) state.q = changed(state.q, 0);
    state.y = Math.min(state.y, state.z.length - 1);
    state.selected = Math.min(state.selected, state.z.length - 1);
    buildColumns();
    update();
  };
  byId("fewer").addEventListener("click", () => resize(-1));
  byId("more").addEventListener("click", () => resize(1));
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement, now = getComputedStyle(root).colorScheme;
    const dark = now === "dark" || (now !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.style.colorScheme = dark ? "light" : "dark";
  });
  const copies = (id, text) => {
    const button = byId(id), label = button.textContent;
    button.addEventListener("click", async () => {
      await copy(text());
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1500);
    });
  };
  copies("copy-python", () => python(state));
  copies("copy-link", () => location.href.split("#")[0] + writeState(state));
  addEventListener("hashchange", ({ newURL }) => { // the address may have been replaced since
    state = readState(new URL(newURL).hash);
    rebuild();
  });
}

// The clipboard of the browser, or, in a page that is opened from a folder, the old way.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

byId("situations").replaceChildren(...SITUATIONS.map(([title, hash]) =>
  make("a", { href: hash, textContent: title })));
byId("left-out-title").textContent =
  `${Object.keys(LOSSES).length} losses are here; ${Object.keys(LEFT_OUT).length} are not, because …`;
byId("left-out").replaceChildren(...Object.entries(LEFT_OUT).map(([name, reason]) =>
  make("li", {}, make("code", { textContent: name }), `: ${reason}`)));
connect();
rebuild();
