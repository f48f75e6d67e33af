// The curve, the messages and the situations. Needs the numbers, the statistics and the state.
"use strict";

const SITUATIONS = [
  ["A sure and right row: float32 finds no loss", "#z=20,-4,-6,-5,-8&y=0&a=cross_entropy&b=focal_loss"],
  ["A sure and wrong row", "#z=-6,7,-2,-1,0&y=0&a=cross_entropy&b=generalized_cross_entropy"],
  ["Large logits: exp overflows", "#z=95,90,20,-10,0&y=1&a=cross_entropy&b=none"],
  ["Softmax first", "#z=0.9,0.05,0.02,0.02,0.01&y=0&a=cross_entropy&b=none"],
  ["Focal loss against cross-entropy", "#z=3,0,-1,0.5,-2&y=0&a=cross_entropy&b=focal_loss:gamma=5"],
  ["A wrong label pulls", "#z=-3,4,0,-1,-2&y=0&a=cross_entropy&b=mae_loss"],
  ["Soft target", "#z=2,1,0,-1,-2&q=0.5,0.3,0.2,0,0&a=cross_entropy&b=bootstrap_loss:beta=0.8"],
  ["Several labels at once", "#z=3,2,-2,-3,0&q=1,1,0,0,0&a=binary_cross_entropy_with_logits&b=asymmetric_loss"],
  ["Rare classes: the priors join the logits", "#z=2,1.5,1,0,-1&y=3&n=1000,300,100,30,10&a=cross_entropy&b=logit_adjusted_loss"],
  ["A margin between cosines", "#z=0.6,0.5,0.1,-0.2,-0.4&y=0&a=cosface_loss:scale=16&b=arcface_loss:scale=16"],
  ["A hot softmax", "#z=4,2,0,-2,-4&y=1&t=4&a=cross_entropy&b=none"],
];

// ---- the curve -----------------------------------------------------------------------------

const FRAME = { left: 46, right: 552, top: 12, bottom: 336 };

function drawCurve(state, results) {
  const k = state.selected, { low, high } = logitRange();
  const xs = Array.from({ length: 121 }, (_, i) => low + (high - low) * i / 120);
  const curves = results.map(({ side, chosen, value: now }) => ({
    side, now, values: xs.map((x) => value(lossOf(chosen), settings(state, chosen),
      state.z.map((z, j) => (j === k ? x : z)), targetOf(state), state.t)),
  }));
  const [bottom, top] = heights(curves);
  const across = (x) => FRAME.left + (x - low) / (high - low) * (FRAME.right - FRAME.left);
  const up = (v) => FRAME.bottom - (v - bottom) / (top - bottom) * (FRAME.bottom - FRAME.top);
  const parts = [...axes(low, high, bottom, top, across, up)];
  const x = across(clamp(state.z[k], low, high));
  parts.push(make("line", { class: "now", x1: x, x2: x, y1: FRAME.top, y2: FRAME.bottom }));
  const { left, right, top: above, bottom: below } = FRAME;
  parts.push(make("clipPath", { id: "frame" },
    make("rect", { x: left, y: above - 2, width: right - left, height: below - above + 4 })));
  const lines = make("g", { "clip-path": "url(#frame)" });
  parts.push(lines);
  for (const { side, values } of curves) {
    let pen = "M", path = "";
    values.forEach((v, i) => {
      const y = up(v);
      if (!(y > -2000 && y < 3000)) { pen = "M"; return; }
      path += `${pen}${across(xs[i]).toFixed(1)} ${y.toFixed(1)}`;
      pen = "L";
    });
    lines.append(make("path", { class: side, d: path }));
  }
  for (const { side, now } of curves) {
    const y = up(now);
    if (!(y >= FRAME.top - 6 && y <= FRAME.bottom + 6)) continue;
    parts.push(side === "a" ? make("circle", { class: side, cx: x, cy: y, r: 7 })
      : make("rect", { class: `point ${side}`, x: x - 6, y: y - 6, width: 12, height: 12, rx: 2 }));
  }
  byId("curve").replaceChildren(...parts);
  byId("curve-title").textContent = `The loss as the ${unit()} of class ${k} moves`;
}

// The lowest and highest loss to show: all points of now, and what is not far above the others.
function heights(curves) {
  const all = curves.flatMap(({ values }) => values).filter(Number.isFinite).sort((a, b) => a - b);
  const now = curves.map((curve) => curve.now).filter(Number.isFinite);
  if (all.length === 0) return [0, 1];
  const usual = all[Math.floor(0.93 * (all.length - 1))];
  const bottom = Math.min(0, all[0]), top = Math.max(usual, ...now, bottom + 1e-3);
  const room = 0.06 * (top - bottom);
  return [bottom - (bottom < 0 ? room : 0), top + room];
}

function* axes(low, high, bottom, top, across, up) {
  for (const v of ticks(bottom, top, 5)) {
    yield make("line", { class: v === 0 ? "axis" : "grid", x1: FRAME.left, x2: FRAME.right, y1: up(v), y2: up(v) });
    yield make("text", { x: FRAME.left - 8, y: up(v) + 4, "text-anchor": "end" }, short(v));
  }
  for (const v of ticks(low, high, 6)) {
    yield make("text", { x: across(v), y: FRAME.bottom + 18, "text-anchor": "middle" }, short(v));
  }
  yield make("text", { x: (FRAME.left + FRAME.right) / 2, y: FRAME.bottom + 38, "text-anchor": "middle" }, unit());
}

const short = (v) => (Math.abs(v) >= 1e4 ? v.toExponential(0).replace("+", "") : String(v)).replace("-", "−");

function ticks(low, high, about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= raw);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 },
    (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// ---- messages: the findings of xent.diagnose, and what only a page can see -----------------------

const isDistribution = (numbers) =>
  numbers.every((x) => x >= 0) && Math.abs(numbers.reduce((a, b) => a + b, 0) - 1) < 0.01;

function findings(state, results) {
  const found = [], z = state.z.map((x) => x / state.t), classes = z.length;
  const rows = results.filter(({ chosen }) => !lossOf(chosen).elements);
  if (rows.length && isDistribution(z)) {
    const floor = shown(Math.log1p((classes - 1) / Math.E));
    found.push({ name: "softmax-as-logits",
      problem: "The logits are non-negative and sum to 1: these look like probabilities. Softmax would be "
        + `applied twice, and cross-entropy could never fall below ${floor}.`,
      fix: "Pass the logits, the scores before softmax; or input.log() if they cannot be had." });
  }
  const total = (state.q ?? [1]).reduce((a, b) => a + b, 0);
  if (rows.length && Math.abs(total - 1) > 1e-9) {
    found.push({ name: "soft-target-sum",
      problem: `The target sums to ${shown(total, 2)}, not to 1; the row counts with its sum.`,
      fix: "Divide by the sum. If each class is a question of its own (multi-label), use binary cross-entropy instead." });
  }
  for (const { chosen } of results) {
    const loss = lossOf(chosen), name = chosen.name;
    if (state.q && !loss.elements && !loss.soft) {
      found.push({ name: "refused", problem: `${name} takes one class per row, no distribution.`,
        fix: "Choose “one class”, or a loss that takes soft targets." });
    } else if (loss.logit_scale && state.z.some((x) => Math.abs(x) > 1)) {
      found.push({ name: "not-cosines", problem: `${name} takes cosines, from −1 to 1.`,
        fix: "Normalise features and class vectors; the loss scales their products itself." });
    }
  }
  const wrong = results.filter(({ lost }) => lost);
  if (wrong.length) {
    const told = wrong.map(({ chosen, value: now, byHand }) =>
      `${shown(byHand)} for ${chosen.name} in place of ${shown(now)}`);
    found.push({ name: "float32", problem: `Probabilities, then their logarithm, in float32 give ${told.join(", ")}.`,
      fix: "xent computes from log-odds, where no digit is lost." });
  }
  return found;
}

// What the first loss becomes if the row is passed in a wrong way.
function mistakes(state) {
  const loss = lossOf(state.a), options = settings(state, state.a), target = targetOf(state);
  const of = (z, y = target, t = state.t) => value(loss, options, z, y, t);
  const right = of(state.z), classes = state.z.length, made = [];
  if (!loss.elements && !loss.logit_scale) {
    const p = statistics(state.z.map((x) => number(x / state.t)), 0).prob.map((x) => x.v);
    made.push({ title: "Softmax first", right, wrong: shown(of(p, target, 1)),
      text: `The probabilities are passed as if they were logits. Even a prediction that is certain and right `
        + `costs ${shown(best(loss, options, classes, state))}.` });
  }
  if (state.q === null && !loss.elements) {
    const last = state.y === classes - 1;
    made.push({ title: "Labels from 1", right, wrong: last ? "an error" : shown(of(state.z, state.y + 1)),
      text: last ? `The label is ${classes}, but with ${classes} classes the labels go from 0 to ${classes - 1}: `
        + "pass target - 1."
        : `The label of class ${state.y} is stored as ${state.y + 1}, and the model learns the next class.` });
  }
  const times = loss.elements ? classes : 1 / classes;
  made.push({ title: loss.elements ? "Sum for mean" : "Mean over N × K", right, wrong: shown(right * times),
    text: loss.elements ? `A sum over the ${classes} labels is ${classes} times their mean, and so is the gradient.`
      : `A mean over rows and classes divides by ${classes} once more: loss and gradient are ${classes} times too small.` });
  return made;
}

// The loss of probabilities 0 and 1 that are passed for logits.
function best(loss, options, classes, state) {
  const hot = Array.from({ length: classes }, (_, j) => Number(j === state.y));
  return value(loss, options, hot, state.q ? hot : state.y);
}
