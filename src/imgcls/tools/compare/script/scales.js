// From values to places on an axis and back, and to colours.

// Of an axis: `of(value)` is its share from 0 to 1, or null; `back(share)` the value there; `ticks` are pairs
// of share and value; `levels` are the words, where it has words; `few` the different numbers.
// `regular` ticks are steps also where there are few numbers.
function scaleOf(values, isNumber, log, regular) {
  return isNumber ? ofNumbers(values, log, regular) : ofWords(values.filter(v => v !== null));
}
function ofWords(values) {
  const levels = [...new Set(values)].sort((a, b) => (a > b ? 1 : -1)),
    places = new Map(levels.map((v, i) => [v, levels.length < 2 ? 0.5 : i / (levels.length - 1)]));
  const of = v => places.get(v) ?? null;
  return { of, levels, ticks: levels.map(v => [of(v), v]) };
}
function ofNumbers(values, log, regular) {
  values = values.filter(Number.isFinite); // infinity is a word here
  const low = values.reduce((a, b) => Math.min(a, b), Infinity),
    high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  log = low > 0 && (log === "guess" ? high / low > 30 : log);
  const f = log ? Math.log10 : v => v,
    span = values.length ? f(high) - f(low) : 0;
  const of = v => (!Number.isFinite(v) ? null : span ? (f(v) - f(low)) / span : 0.5),
    back = s => (log ? 10 ** (f(low) + s * span) : low + s * span),
    few = [...new Set(values)].sort((a, b) => a - b);
  let ticks = few;
  if (span && (regular || few.length > 6)) ticks = log ? powers(low, high) : steps(low, high);
  return { of, back, low, high, few, ticks: ticks.map(v => [of(v), v]) };
}
function powers(low, high) {
  const all = [];
  for (let e = Math.floor(Math.log10(low)); 10 ** e <= high; e++) all.push(10 ** e);
  const within = all.filter(v => v >= low);
  if (within.length > 1) return within;
  const more = all.flatMap(v => [v, 2 * v, 5 * v]).filter(v => v >= low && v <= high);
  return more.length > 2 ? more : steps(low, high);
}
function steps(low, high) {
  const span = high - low,
    tens = 10 ** Math.floor(Math.log10(span / 3)),
    step = tens * [5, 2, 1].find(m => tens * m <= span / 3);
  return Array.from({ length: 20 }, (_, i) => (Math.ceil(low / step - 1e-9) + i) * step)
    .filter(v => v <= high + step * 1e-9)
    .map(v => Number(v.toPrecision(8)));
}

const scales = C.map((c, i) =>
  scaleOf(
    R.map(r => r[i]),
    c.number,
    c.log ?? (c.name.includes("/") ? false : "guess"),
  ),
);

// Words have the palette's colours, the most frequent ones where there are more words than colours; numbers
// lie on a ramp. They are the style sheet's variables, so that light and dark change without the script.
const PALETTE = 10;
const colouring = C.map((_, c) => {
  const { levels, of } = scales[c];
  if (!levels) return { colour: v => ramp(of(v)) };
  const count = new Map();
  for (const r of R) count.set(r[c], (count.get(r[c]) ?? 0) + 1);
  const often = levels.toSorted((a, b) => count.get(b) - count.get(a)),
    kept = levels.length > PALETTE ? levels.filter(v => often.indexOf(v) < PALETTE - 1) : levels;
  const places = new Map(kept.map((v, i) => [v, `var(--c${i})`]));
  return { colour: v => places.get(v) ?? "var(--other)", kept, others: levels.filter(v => !places.has(v)) };
});
function ramp(share) {
  if (share === null) return "var(--other)";
  const [from, to, part] = share < 0.5 ? ["low", "middle", share] : ["middle", "high", share - 0.5];
  return `color-mix(in oklab, var(--${to}) ${(200 * part).toFixed(0)}%, var(--${from}))`;
}
const colourOf = i => colouring[S.colour].colour(R[i][S.colour]);
