// The statistics of a row, and what a loss makes of them. Needs numbers.js.
"use strict";

const dot = (weights, numbers) => o.sum(o.mul(weights, numbers));

function logSumExp(numbers) {
  if (numbers.length === 0) return number(-Infinity);
  const shift = Math.max(...numbers.map((x) => x.v));
  return o.add(shift, o.log(o.sum(numbers.map((x) => o.exp(o.sub(x, shift))))));
}

// Exact: the log-odds of a class against all others lose no digit, however sure the row.
function statistics(z, target) {
  const odds = z.map((x, j) => o.sub(x, logSumExp(z.filter((_, k) => k !== j))));
  return fields(z, target, odds, odds.map(o.log_sigmoid), logSumExp(z));
}

// By hand: exp, sum, divide, then log, each rounded to float32.
function statisticsByHand(z, target) {
  const power = z.map(o.exp), total = o.sum(power);
  const p = power.map((x) => o.truediv(x, total));
  const odds = p.map((x) => o.log(o.truediv(x, o.sub(1, x))));
  return fields(z, target, odds, p.map(o.log), o.log(total));
}

function fields(z, target, odds, logProbs, total) {
  const p = logProbs.map(o.exp), soft = Array.isArray(target), y = target;
  const others = (numbers) => numbers.filter((_, j) => j !== y);
  const largest = z.reduce((best, x, j) => (x.v > z[best].v ? j : best), 0);
  const restTop = z.reduce((k, x, j) => (j !== y && (k < 0 || x.v > z[k].v) ? j : k), -1);
  const logProb = soft ? dot(target, logProbs) : logProbs[y];
  return {
    prob: p,
    log_odds: soft ? o.sub(logProb, o.log(o.neg(o.expm1(logProb)))) : odds[y],
    log_prob: logProb,
    target: soft ? dot(target, z) : z[y],
    lse: soft ? total : o.sub(z[y], logProb),
    mass: soft ? target.reduce((a, b) => a + b, 0) : 1,
    entropy: o.neg(o.sum(p.map((x, j) => o.mul(x, logProbs[j])))),
    mean: o.truediv(o.sum(z), z.length),
    mean_mass: 1,
    support: z.length,
    classes: z.length,
    label: soft ? -1 : y,
    top: largest,
    top_logit: number(z[largest].v),
    rest_top: restTop,
    rest_top_logit: restTop < 0 ? number(-Infinity) : z[restTop],
    rest_squares: o.sum(others(p).map(o.square)),
    rest_cubes: o.sum(others(p).map((x) => o.mul(x, o.square(x)))),
  };
}

// What a loss makes of a row, a number; NaN where the loss does not take such a target.
// `target` is a class, or a number in [0, 1] for each class. `options` are the hyperparameters.
function ofRow(loss, options, z, target, make) {
  if (loss.elements) {
    const labels = Array.isArray(target) ? target : z.map((_, j) => Number(j === target));
    return o.truediv(o.sum(z.map((x, j) => loss.index({ input: x, target: labels[j] }, options))), z.length);
  }
  const body = Array.isArray(target) ? loss.soft : loss.index;
  return body ? lift(body(make(z, target), options)) : number(NaN);
}

// The logits with the factors and shifts that a loss asks for.
function scaled(loss, options, logits) {
  for (const factor of ["logit_scale", "class_scale"]) {
    if (loss[factor]) logits = o.mul(logits, loss[factor]({}, options));
  }
  return loss.class_bias ? o.add(logits, loss.class_bias({}, options)) : logits;
}

function value(loss, options, logits, target, temperature = 1, make = statistics) {
  const z = logits.map((x) => number(round(x / temperature)));
  return ofRow(loss, options, scaled(loss, options, z), target, make).v;
}

const valueByHand = (loss, options, logits, target, temperature = 1) =>
  inFloat32(() => value(loss, options, logits, target, temperature, statisticsByHand));

function evaluate(loss, options, logits, target, temperature = 1) {
  const unit = 1 / temperature;
  const z = logits.map((x, j) => number(x * unit, logits.map((_, k) => (j === k ? unit : 0))));
  const result = ofRow(loss, options, scaled(loss, options, z), target, statistics);
  return { value: result.v, gradient: result.g ?? logits.map(() => result.v * 0) };
}
