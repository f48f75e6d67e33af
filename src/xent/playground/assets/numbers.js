// Forward-mode numbers: a value `v` and its derivatives `g` by all logits; null for a constant.
"use strict";

const number = (v, g = null) => ({ v, g });
const lift = (x) => (x !== null && typeof x === "object" ? x : number(Number(x)));
const truth = (x) => lift(x).v !== 0;

let round = (x) => x; // what happens to the value of each operation
function inFloat32(compute) {
  round = Math.fround;
  try { return compute(); } finally { round = (x) => x; }
}

// The number `v` whose derivative by each operand is given: [operand, derivative], ...
function chain(v, ...parts) {
  let g = null;
  for (const [x, slope] of parts) {
    if (x.g === null || slope === 0) continue;
    g ??= new Array(x.g.length).fill(0);
    x.g.forEach((d, i) => { if (d !== 0) g[i] += slope * d; });
  }
  return number(round(v), g);
}

const unary = (f, slope) => (a) => { a = lift(a); return chain(f(a.v), [a, slope(a.v)]); };
const binary = (f, slopes) => (a, b) => {
  a = lift(a); b = lift(b);
  const [da, db] = slopes(a.v, b.v);
  return chain(f(a.v, b.v), [a, da], [b, db]);
};
const compare = (f) => (a, b) => f(lift(a).v, lift(b).v);
const flat = () => 0;

const sigmoid = (x) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)));
// Float32 by hand takes the logarithm of the rounded probability.
const logSigmoid = (x) => round(0.1) === 0.1
  ? Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)))
  : Math.log(round(1 / round(1 + round(Math.exp(-x)))));
const logAddExp = (a, b) => (a === b ? a + Math.LN2
  : Math.max(a, b) + Math.log1p(Math.exp(-Math.abs(a - b))));

// An operation on numbers, made for vectors too: number by number, where one of its operands is one.
function each(f) {
  const at = (x, j) => (Array.isArray(x) ? x[j] : x);
  const [second, third] = [f.length > 1, f.length > 2];
  return (a, b, c) => {
    const vector = Array.isArray(a) ? a : second && Array.isArray(b) ? b : third && Array.isArray(c) ? c : null;
    return vector ? vector.map((_, j) => f(at(a, j), at(b, j), at(c, j))) : f(a, b, c);
  };
}

// The operations of loss bodies, by the names that PyTorch gives them.
const onNumbers = {
  abs: unary(Math.abs, Math.sign),
  acos: unary(Math.acos, (x) => -1 / Math.sqrt(1 - x * x)),
  add: binary((a, b) => a + b, () => [1, 1]),
  addcmul: (a, b, c) => onNumbers.add(a, onNumbers.mul(b, c)),
  and_: (a, b) => truth(a) && truth(b),
  clamp: (a, low, high) => {
    a = lift(a);
    const v = Math.min(Math.max(a.v, lift(low ?? -Infinity).v), lift(high ?? Infinity).v);
    return chain(v, [a, v === a.v ? 1 : 0]);
  },
  cos: unary(Math.cos, (x) => -Math.sin(x)),
  detach: (a) => number(lift(a).v),
  eq: compare((a, b) => a === b),
  exp: unary(Math.exp, Math.exp),
  expm1: unary(Math.expm1, Math.exp),
  floor: unary(Math.floor, flat),
  ge: compare((a, b) => a >= b),
  gt: compare((a, b) => a > b),
  isinf: (a) => Math.abs(lift(a).v) === Infinity,
  le: compare((a, b) => a <= b),
  log: unary(Math.log, (x) => 1 / x),
  log1p: unary(Math.log1p, (x) => 1 / (1 + x)),
  log_sigmoid: unary(logSigmoid, (x) => sigmoid(-x)),
  logaddexp: binary(logAddExp, (a, b) => [sigmoid(a - b), sigmoid(b - a)]),
  lt: compare((a, b) => a < b),
  maximum: binary(Math.max, (a, b) => (a === b ? [0.5, 0.5] : a > b ? [1, 0] : [0, 1])),
  mod: binary((a, b) => ((a % b) + b) % b, () => [1, 0]),
  mul: binary((a, b) => a * b, (a, b) => [b, a]),
  ne: compare((a, b) => a !== b),
  neg: unary((x) => -x, () => -1),
  ones_like: () => number(1),
  pow: binary((a, b) => a ** b, (a, b) => [b === 0 ? 0 : b * a ** (b - 1), a ** b * Math.log(a)]),
  relu: unary((x) => Math.max(x, 0), (x) => (x > 0 ? 1 : 0)),
  sigmoid: unary(sigmoid, (x) => sigmoid(x) * sigmoid(-x)),
  sin: unary(Math.sin, Math.cos),
  special_xlogy: binary(
    (a, b) => (a === 0 ? 0 : a * Math.log(b)),
    (a, b) => (a === 0 ? [0, 0] : [Math.log(b), a / b]),
  ),
  sqrt: unary(Math.sqrt, (x) => 0.5 / Math.sqrt(x)),
  square: unary((x) => x * x, (x) => 2 * x),
  sub: binary((a, b) => a - b, () => [1, -1]),
  tanh: unary(Math.tanh, (x) => 1 - Math.tanh(x) ** 2),
  to: (a) => lift(a),
  truediv: binary((a, b) => a / b, (a, b) => [1 / b, -a / b / b]),
  truth,
  where: (c, a, b) => lift(truth(c) ? a : b),
  zeros_like: () => number(0),
};
const smallest = (a, b) => (lift(b).v < lift(a).v ? b : a);
const largest = (a, b) => (lift(b).v > lift(a).v ? b : a);
const onVectors = {
  amin: (a) => a.reduce(smallest),
  getitem: (a, j) => a[j],
  max: (a) => a.reduce(largest),
  sum: (a) => a.reduce((x, y) => onNumbers.add(x, y), number(0)),
};
const o = { ...onVectors };
for (const [name, f] of Object.entries(onNumbers)) o[name] = each(f);
