// What the page shows, as a value, as the part of an address after "#", and as Python.
// LOSSES has an entry for each loss, START the words of the losses to begin with.
"use strict";

const MOST_CLASSES = 8;

// The options that a card has a slider for; the numbers of rows stand below the bars.
const movable = (name) => Object.entries(LOSSES[name].options).filter(([, option]) => !option.counts);
const defaultsOf = (name) => Object.fromEntries(movable(name).map(([key, { value }]) => [key, value]));

// Numbers of rows to begin with: each class has half as many as the class before.
const countAt = (j) => Math.max(1, Math.round(100 / 2 ** j));
const countsIn = ({ options }) => Object.keys(options).filter((key) => options[key].counts);
const isCounted = (state) => [state.a, state.b].some((loss) => loss && countsIn(LOSSES[loss.name]).length > 0);

// All hyperparameters of a loss that was chosen.
const settings = (state, { name, options }) =>
  ({ ...options, ...Object.fromEntries(countsIn(LOSSES[name]).map((key) => [key, state.n])) });

// A choice, true or a word, or a number, from text; undefined for what the option does not take.
function read(option, text) {
  if (option.choices) return option.choices.find((choice) => String(choice) === text);
  const x = Number(text), { low, high, open } = option;
  const fits = text.trim() !== "" && Number.isFinite(x) && x >= (low ?? -Infinity)
    && x <= (high ?? Infinity) && !(open && x === low);
  return fits ? x : undefined;
}

// focal_loss:gamma=2 as { name, options }; null for no loss, undefined for an unknown one.
function readLoss(word) {
  const [name, settings = ""] = word.split(":");
  if (name === "none") return null;
  if (!Object.hasOwn(LOSSES, name)) return undefined;
  const options = defaultsOf(name);
  for (const part of settings.split(",")) {
    const [key, text = ""] = part.split("=");
    const option = Object.hasOwn(options, key) ? LOSSES[name].options[key] : null;
    const x = option ? read(option, text) : undefined;
    if (x !== undefined) options[key] = x;
  }
  return { name, options };
}

function writeLoss(loss) {
  if (loss === null) return "none";
  const set = Object.entries(loss.options).filter(([k, x]) => x !== LOSSES[loss.name].options[k].value);
  return loss.name + (set.length ? ":" + set.map(([key, x]) => `${key}=${x}`).join(",") : "");
}

const numbersIn = (text) => (text ?? "").split(",").filter((x) => x.trim() !== "").map(Number);

function readState(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  let z = numbersIn(given.get("z")).slice(0, MOST_CLASSES);
  if (z.length < 2 || !z.every(Number.isFinite)) z = [2, 0.5, -1, 1, -3];
  const y = Number(given.get("y") ?? 0), q = numbersIn(given.get("q"));
  const isSoft = q.length === z.length && q.every((x) => x >= 0 && x <= 1);
  const n = numbersIn(given.get("n")), t = Number(given.get("t") ?? 1);
  const state = {
    z,
    y: Number.isInteger(y) && y >= 0 && y < z.length ? y : 0,
    q: isSoft ? q : null,
    n: z.map((_, j) => (Number.isFinite(n[j]) && n[j] > 0 ? n[j] : countAt(j))),
    t: t >= 0.1 && t <= 10 ? t : 1,
    a: readLoss(given.get("a") ?? START[0]) || readLoss(START[0]),
    b: readLoss(given.get("b") ?? START[1]),
  };
  if (state.b === undefined) state.b = null;
  state.selected = state.y;
  return state;
}

function writeState(state) {
  const parts = [`z=${state.z.join(",")}`, state.q ? `q=${state.q.join(",")}` : `y=${state.y}`];
  if (state.t !== 1) parts.push(`t=${state.t}`);
  if (isCounted(state)) parts.push(`n=${state.n.join(",")}`);
  return `#${parts.join("&")}&a=${writeLoss(state.a)}&b=${writeLoss(state.b)}`;
}

const targetOf = (state) => state.q ?? state.y;

// ---- Python --------------------------------------------------------------------------------

const asPython = (x) => typeof x === "boolean" ? (x ? "True" : "False")
  : typeof x === "string" ? JSON.stringify(x)
  : Array.isArray(x) ? `[${x.map(asPython).join(", ")}]`
  : x === null ? "None" : String(x);
const floats = (numbers) => numbers.map((x) => (Number.isInteger(x) ? `${x}.0` : x)).join(", ");

function python(state) {
  const chosen = [state.a, ...(state.b ? [state.b] : [])];
  const imports = new Set(chosen.map((loss) => LOSSES[loss.name].from).filter(Boolean));
  const elements = (loss) => LOSSES[loss.name].elements;
  const lines = ["import torch", "import xent", ...[...imports].sort(), ""];
  lines.push(`logits = torch.tensor([[${floats(state.z)}]], dtype=torch.float64)`);
  if (state.t !== 1) lines.push(`logits = logits / ${state.t}  # temperature`);
  const dense = state.q ?? state.z.map((_, j) => Number(j === state.y));
  const label = state.q ? `torch.tensor([[${floats(dense)}]], dtype=torch.float64)`
    : `torch.tensor([${state.y}])`;
  if (state.q || !chosen.every(elements)) lines.push(`target = ${label}`);
  if (!state.q && chosen.some(elements)) {
    lines.push(`labels = torch.tensor([[${floats(dense)}]], dtype=torch.float64)  # one per logit`);
  }
  lines.push("");
  for (const loss of chosen) {
    const { call, fixed, options } = LOSSES[loss.name];
    const set = Object.entries(settings(state, loss)).filter(([key, x]) => x !== options[key].default);
    const given = [...Object.entries(fixed), ...set];
    const kind = elements(loss) && !state.q ? "labels" : "target";
    const words = ["logits", kind, ...given.map(([key, x]) => `${key}=${asPython(x)}`)];
    lines.push(`print(${call}(${words.join(", ")}).item())`);
  }
  return lines.join("\n") + "\n";
}
