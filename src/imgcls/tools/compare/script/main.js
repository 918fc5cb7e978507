// Ties all together: draws, says what the filter keeps, and hears the controls.

function draw(...parts) {
  for (const part of parts.length ? parts : [drawParallel, drawCurves, drawScatters, drawTable, drawPair])
    part();
  showFilter();
  remember();
}
// What is kept has changed.
const filtered = () => draw(drawParallel, drawCurves, drawScatters, drawPair);

function showFilter() {
  const keeps = R.map((_, i) => kept(i));
  for (const e of document.querySelectorAll("[data-run]")) e.classList.toggle("out", !keeps[e.dataset.run]);
  for (const row of $("runs").querySelectorAll("tbody tr")) {
    const inside = inRanges(R[row.dataset.run]); // a row that is not ticked stays, so that it can be
    row.classList.toggle("out", !inside);
    row.classList.toggle("unchosen", inside && !keeps[row.dataset.run]);
  }
  $("count").textContent = `${keeps.filter(Boolean).length} of ${R.length} runs`;
  $("clear").hidden = !S.keep.size && !S.runs.size;
  $("chips").replaceChildren(...[...S.keep].map(([c, condition]) => chip(wordsOf(c, condition), c)));
  if (S.runs.size) $("chips").append(chip(`${S.runs.size} ticked row${S.runs.size > 1 ? "s" : ""}`, "runs"));
  legend();
}
const chip = (text, what) =>
  html(
    "button",
    { class: "chip", "data-drop": what, title: `${text}: click to drop it` },
    html("span", {}, text),
    " ×",
  );
function wordsOf(c, { words, low, high }) {
  const name = C[c].name;
  const text = words
    ? words.map(v => (v === null ? "none" : brief(v, name))).join(", ")
    : `${brief(low, name)} to ${brief(high, name)}`;
  return `${C[c].label}: ${text}`;
}

// The values of the colour; a click keeps one, or takes it in and out beside others.
function legend() {
  const { low, high, few, levels } = scales[S.colour],
    { kept: words, others, colour } = colouring[S.colour],
    name = C[S.colour].name,
    condition = S.keep.get(S.colour);
  const entry = (values, own, text) => {
    const off = condition && !values.some(v => keeps(condition, v));
    const node = html(
      "button",
      { class: off ? "entry off" : "entry", title: text },
      html("i", { style: `--own:${own}` }),
      html("span", {}, text),
    );
    node.onclick = () => toggle(values);
    return node;
  };
  const entries = (levels ? words : few.length <= PALETTE ? few : []).map(v =>
    entry([v], colour(v), brief(v, name)),
  );
  if (others?.length) entries.push(entry(others, "var(--other)", `${others.length} others`));
  if (!levels && few.length > PALETTE)
    entries.push(brief(low, name), html("span", { class: "ramp" }), brief(high, name));
  const none = R.map(r => r[S.colour]).filter(v => scales[S.colour].of(v) === null); // missing, or infinite
  if (none.length) entries.push(entry([...new Set(none)], "var(--other)", "none"));
  $("legend").replaceChildren(...entries);
}
function toggle(values) {
  const before = S.keep.get(S.colour)?.words ?? [],
    has = before.some(v => values.includes(v)),
    words = has ? before.filter(v => !values.includes(v)) : [...before, ...values];
  words.length ? S.keep.set(S.colour, { words }) : S.keep.delete(S.colour);
  filtered();
}

// Controls show the state, and set it.
function options(id, pairs, chosen) {
  if (!$(id)) return;
  const made = pairs.map(([value, text, off]) => html("option", { value, disabled: off ? "" : null }, text));
  $(id).replaceChildren(...made);
  $(id).value = chosen;
}
const named = test => C.flatMap((c, i) => (test(c, i) ? [[i, c.label]] : []));
const axisName = n => (TIMES.includes(n) ? (logged.includes(n) ? "time" : "time (not logged)") : n);
function ticks(id, chosen, test) {
  const boxes = named(test).map(([c, text]) => {
    const box = html("input", { type: "checkbox", "data-hide": c });
    box.checked = chosen.has(c);
    return html("label", { title: C[c].name }, box, ` ${text}`);
  });
  $(id).replaceChildren(...boxes);
}
function showControls() {
  options(
    "metric",
    named(c => c.kind === "metric"),
    S.metric,
  );
  options(
    "colour",
    named(c => c.kind !== "fact"),
    S.colour,
  );
  options(
    "curve",
    curveNames.map(n => [n, n]),
    S.curve,
  );
  options(
    "x",
    xNames.map(n => [n, axisName(n), !logged.includes(n)]),
    S.x,
  );
  options(
    "view",
    [
      ["runs", "each run"],
      ["deviation", "mean ± standard deviation"],
      ["range", "mean, smallest to largest"],
    ],
    S.view,
  );
  $("smooth").value = $("smoothed").value = S.smooth;
  $("log").checked = S.log;
  ticks("columns", S.shown, c => c.name !== "name");
  ticks("axes", new Set(S.axes), c => c.kind !== "fact");
}
function on(id, change, ...parts) {
  if ($(id))
    $(id)[$(id).type === "range" ? "oninput" : "onchange"] = e => {
      change(e.target);
      showControls();
      draw(...parts);
    };
}
const smooth = e => (S.smooth = Math.min(Math.max(Number(e.value) || 0, 0), 0.99));
// The axis of the metric goes with it.
on("metric", e => {
  const c = +e.value;
  S.axes = [...new Set(S.axes.map(a => (a === S.metric ? c : a)))];
  S.shown.add((S.metric = c));
});
on("colour", e => (S.colour = +e.value));
on("curve", e => (S.curve = e.value), drawCurves);
on("x", e => (S.x = e.value), drawCurves);
on("view", e => (S.view = e.value), drawCurves);
on("log", e => (S.log = e.checked), drawCurves);
on("smooth", smooth, drawCurves);
on("smoothed", smooth, drawCurves);
on(
  "columns",
  box => (box.checked ? S.shown.add(+box.dataset.hide) : S.shown.delete(+box.dataset.hide)),
  drawTable,
);
// A thirteenth axis takes the place of the last but one; the last is the metric.
on(
  "axes",
  box => {
    const c = +box.dataset.hide;
    if (!box.checked) S.axes = S.axes.length > 2 ? S.axes.filter(a => a !== c) : S.axes;
    else (S.axes.splice(-1, S.axes.length < MOST_AXES ? 0 : 1, c), S.axes.length > MOST_AXES && S.axes.pop());
  },
  drawParallel,
);
$("clear").onclick = () => {
  S.keep.clear();
  S.runs.clear();
  draw();
};
$("chips").onclick = e => {
  const what = e.target.closest("[data-drop]")?.dataset.drop;
  if (what === undefined) return;
  what === "runs" ? S.runs.clear() : S.keep.delete(+what);
  draw();
};
$("runs").onclick = e => {
  const tick = e.target.closest("[data-tick]"),
    head = e.target.closest("[data-sort]");
  if (tick) {
    tick.checked ? S.runs.add(+tick.dataset.tick) : S.runs.delete(+tick.dataset.tick);
    filtered();
  } else if (head) {
    const column = +head.dataset.sort;
    S.sort = { column, up: S.sort.column === column ? !S.sort.up : C[column].better !== "max" };
    draw(drawTable);
  }
};
if ($("groups"))
  $("groups").onclick = e => {
    const row = e.target.closest("tbody tr");
    if (!row) return;
    const place = [...row.parentNode.children].indexOf(row),
      runs = R.flatMap((_, i) => (D.groups.of[i] === place ? [i] : []));
    S.runs = same(S.runs, runs) ? new Set() : new Set(runs);
    draw();
  };

function start() {
  recall();
  showControls();
  draw();
}
addEventListener("hashchange", start);
let width = innerWidth;
addEventListener("resize", () => {
  if (width !== innerWidth) draw();
  width = innerWidth;
});
start();
