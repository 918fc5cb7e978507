// Ties all together: the controls, the filter, the pointer.

function draw(...parts) {
  for (const part of parts.length ? parts : [drawParallel, drawCurves, drawScatters, drawTable, drawPair]) part();
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
  html("button", { class: "chip", "data-drop": what, title: `${text}: click to drop it` }, html("span", {}, text), " ×");
function wordsOf(c, { words, low, high }) {
  const name = C[c].name;
  const text = words ? words.map(v => (v === null ? "none" : brief(v, name))).join(", ") : `${brief(low, name)} to ${brief(high, name)}`;
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
    const node = html("button", { class: off ? "entry off" : "entry", title: text }, html("i", { style: `--own:${own}` }), html("span", {}, text));
    node.onclick = () => toggle(values);
    return node;
  };
  const entries = (levels ? words : few.length <= PALETTE ? few : []).map(v => entry([v], colour(v), brief(v, name)));
  if (others?.length) entries.push(entry(others, "var(--other)", `${others.length} others`));
  if (!levels && few.length > PALETTE) entries.push(brief(low, name), html("span", { class: "ramp" }), brief(high, name));
  if (R.some(r => scales[S.colour].of(r[S.colour]) === null)) entries.push(entry([null], "var(--other)", "none"));
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
  options("metric", named(c => c.kind === "metric"), S.metric);
  options("colour", named(c => c.kind !== "fact"), S.colour);
  options("curve", curveNames.map(n => [n, n]), S.curve);
  options("x", xNames.map(n => [n, axisName(n), !logged.includes(n)]), S.x);
  options("view", [["runs", "each run"], ["deviation", "mean ± standard deviation"], ["range", "mean, smallest to largest"]], S.view);
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
on("metric", e => S.shown.add((S.metric = +e.value)), drawScatters, drawTable);
on("colour", e => (S.colour = +e.value));
on("curve", e => (S.curve = e.value), drawCurves);
on("x", e => (S.x = e.value), drawCurves);
on("view", e => (S.view = e.value), drawCurves);
on("log", e => (S.log = e.checked), drawCurves);
on("smooth", smooth, drawCurves);
on("smoothed", smooth, drawCurves);
on("columns", box => (box.checked ? S.shown.add(+box.dataset.hide) : S.shown.delete(+box.dataset.hide)), drawTable);
// A thirteenth axis takes the place of the last but one; the last is the metric.
on(
  "axes",
  box => {
    const c = +box.dataset.hide;
    if (!box.checked) S.axes = S.axes.length > 2 ? S.axes.filter(a => a !== c) : S.axes;
    else S.axes.splice(-1, S.axes.length < MOST_AXES ? 0 : 1, c), S.axes.length > MOST_AXES && S.axes.pop();
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

// A drag along an axis keeps a range, across a drawing a rectangle; a click drops it.
function drag(down, area, change) {
  down.preventDefault();
  const box = area.getBoundingClientRect(),
    shares = e => [(e.clientX - box.left) / box.width, (box.bottom - e.clientY) / box.height].map(s => Math.min(Math.max(s, 0), 1)),
    from = shares(down);
  const move = e => {
    const to = shares(e),
      far = Math.max(Math.abs(to[0] - from[0]) * box.width, Math.abs(to[1] - from[1]) * box.height) >= 4;
    change(from, to, far);
    draw(drawParallel, drawScatters);
  };
  const up = e => {
    move(e);
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", up);
    filtered();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", up);
}
document.addEventListener("pointerdown", e => {
  const axis = e.target.closest(".axis"),
    field = e.target.closest("svg")?.querySelector(".field");
  if (axis) {
    const c = at(axis.dataset.column);
    drag(e, axis, (from, to, far) => (far ? keepShares(c, from[1], to[1]) : S.keep.delete(c)));
  } else if (field) {
    const x = +field.dataset.x;
    drag(e, field, (from, to, far) => {
      for (const [c, k] of [[x, 0], [S.metric, 1]]) far ? keepShares(c, from[k], to[k]) : S.keep.delete(c);
    });
  }
});

// The run that the pointer is on; lines are thin, so what is near counts.
document.addEventListener("pointermove", e => {
  let found = null;
  for (const [dx, dy] of [[0, 0], [0, 4], [0, -4], [4, 0], [-4, 0]])
    found ||= document.elementFromPoint(e.clientX + dx, e.clientY + dy)?.closest("[data-run]:not(.out), [data-group]");
  document.querySelectorAll(".hot").forEach(el => el.classList.remove("hot"));
  $("tip").style.display = found ? "block" : "none";
  if (!found) return;
  const { run, group } = found.dataset;
  document.querySelectorAll(`[data-${run ? "run" : "group"}="${run ?? group}"]`).forEach(el => el.classList.add("hot"));
  $("tip").replaceChildren(...(run ? aboutRun(R[run]) : [D.groups.names[group]]));
  $("tip").style.left = `${Math.max(Math.min(e.clientX + 16, innerWidth - $("tip").offsetWidth - 8), 0)}px`;
  $("tip").style.top = `${Math.max(Math.min(e.clientY + 16, innerHeight - $("tip").offsetHeight - 8), 0)}px`;
});
function aboutRun(row) {
  const columns = C.flatMap((c, k) => (S.shown.has(k) && row[k] !== null ? [k] : [])).slice(0, 18);
  return columns.flatMap(k => [C[k].kind === "fact" ? "" : `${C[k].label}: `, html("b", {}, shown(row[k], C[k].name)), html("br", {})]);
}

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
