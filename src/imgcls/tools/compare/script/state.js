// What the reader chose: it lies in the address, so that a reload, a bookmark or a link brings it back.

// At first the colour is the most telling setting that has few values.
const firstColour = () => {
  const few = c => (scales[c].levels ?? scales[c].few).length;
  const telling = D.axes.map(at).filter(c => C[c].kind === "config" && few(c) > 1 && few(c) <= PALETTE);
  return telling[0] ?? at(D.target);
};
const logged = [...new Set(D.curves.flatMap(c => (c ? Object.keys(c) : [])))],
  TIMES = ["seconds", "time"], // columns that a run's metrics.csv may have
  curveNames = logged.filter(n => !["epoch", "step", ...TIMES].includes(n)),
  xNames = ["epoch", "step", TIMES.find(n => logged.includes(n)) ?? "seconds"];
// The one filter is `keep`, conditions on columns, { low, high } or { words }, and `runs`, the ticked rows.
const defaults = () => ({
  metric: at(D.target),
  colour: firstColour(),
  curve: curveNames.includes(D.curve) ? D.curve : curveNames[0],
  x: "epoch",
  smooth: 0,
  log: false,
  view: "runs",
  sort: { column: at(D.order.column), up: D.order.up },
  shown: new Set(C.flatMap((c, i) => (c.shown ? [i] : []))),
  axes: D.axes.map(at),
  keep: new Map(),
  runs: new Set(),
});
const VIEWS = ["runs", "deviation", "range"];
let S = defaults();

function keeps(condition, value) {
  if (condition.words) return condition.words.includes(value);
  return Number.isFinite(value) && value >= condition.low && value <= condition.high;
}
const inRanges = row => [...S.keep].every(([c, condition]) => keeps(condition, row[c]));
const kept = i => (!S.runs.size || S.runs.has(i)) && inRanges(R[i]);

// Keeps the runs whose places on the axis of a column are between two shares.
function keepShares(c, from, to) {
  const { levels, of, back } = scales[c],
    [a, b] = [Math.min(from, to) - 1e-9, Math.max(from, to) + 1e-9];
  const words = levels?.filter(v => of(v) >= a && of(v) <= b);
  if (!levels) S.keep.set(c, { low: back(a), high: back(b) });
  else if (words.length) S.keep.set(c, { words });
  else S.keep.delete(c);
}
// The part of an axis that a condition keeps, as shares.
function sharesOf(c) {
  const condition = S.keep.get(c),
    places = (condition.words ?? [condition.low, condition.high]).map(scales[c].of).filter(s => s !== null);
  const clamped = places.map(s => Math.min(Math.max(s, 0), 1));
  return places.length ? [Math.min(...clamped), Math.max(...clamped)] : null;
}

// Runs of two folders may have one name.
const names = R.map(r => r[at("name")]),
  runKey = i => (names.indexOf(names[i]) === names.lastIndexOf(names[i]) ? names[i] : `${names[i]} ${i}`);
const same = (a, b) => JSON.stringify([...a]) === JSON.stringify([...b]);
function written() {
  const first = defaults(),
    q = new URLSearchParams();
  for (const key of ["metric", "colour"]) if (S[key] !== first[key]) q.set(key, C[S[key]].name);
  for (const key of ["curve", "x", "smooth", "log", "view"]) if (S[key] !== first[key]) q.set(key, S[key]);
  const { column, up } = S.sort;
  if (column !== first.sort.column || up !== first.sort.up)
    q.set("sort", `${up ? "" : "-"}${C[column].name}`);
  for (const c of S.shown) if (!first.shown.has(c)) q.append("show", C[c].name);
  for (const c of first.shown) if (!S.shown.has(c)) q.append("hide", C[c].name);
  if (!same(S.axes, first.axes)) for (const c of S.axes) q.append("axis", C[c].name);
  for (const [c, { words, low, high }] of S.keep)
    q.append("keep", JSON.stringify([C[c].name, ...(words ? [words] : [low, high])]));
  for (const i of S.runs) q.append("run", runKey(i));
  return q.toString();
}
function remember() {
  const text = written();
  if (location.hash.slice(1) !== text)
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

// Reads the address. What it says of columns and values that are not here is passed over.
function recall() {
  const q = new URLSearchParams(location.hash.slice(1)),
    columns = key =>
      q
        .getAll(key)
        .map(at)
        .filter(c => c >= 0),
    given = (key, right) => (right(q.get(key)) ? q.get(key) : S[key]);
  S = defaults();
  for (const c of columns("metric")) if (C[c].kind === "metric") S.metric = c;
  for (const c of columns("colour")) if (C[c].kind !== "fact") S.colour = c;
  S.curve = given("curve", n => curveNames.includes(n));
  S.x = given("x", n => logged.includes(n) && xNames.includes(n));
  S.view = given("view", n => D.groups && VIEWS.includes(n));
  S.log = q.get("log") === "true";
  S.smooth = Math.min(Math.max(Number(q.get("smooth")) || 0, 0), 0.99);
  const sort = q.get("sort") ?? "",
    down = at(sort) < 0 && sort.startsWith("-");
  if (at(sort) >= 0 || at(sort.slice(1)) >= 0)
    S.sort = { column: at(down ? sort.slice(1) : sort), up: !down };
  if (S.sort.column < 0) S.sort = defaults().sort;
  for (const c of columns("show")) S.shown.add(c);
  for (const c of columns("hide")) S.shown.delete(c);
  S.shown.add(at("name"));
  const axes = [...new Set(columns("axis"))].filter(c => C[c].kind !== "fact");
  if (axes.length > 1) S.axes = axes.slice(0, MOST_AXES);
  for (const text of q.getAll("keep")) recallCondition(text);
  const ticked = new Set(q.getAll("run"));
  R.forEach((_, i) => ticked.has(runKey(i)) && S.runs.add(i));
}
function recallCondition(text) {
  let read;
  try {
    read = JSON.parse(text);
  } catch {
    return; // the address was cut
  }
  if (!Array.isArray(read) || at(read[0]) < 0) return;
  const [name, low, high] = read;
  if (Array.isArray(low)) S.keep.set(at(name), { words: low });
  else if (C[at(name)].number && Number.isFinite(low) && Number.isFinite(high))
    S.keep.set(at(name), { low, high });
}
