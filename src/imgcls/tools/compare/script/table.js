// The table of runs. The column that sorts it is always in view.

function order() {
  const { column, up } = S.sort,
    first = defaults().sort,
    infinite = { inf: Infinity, "-inf": -Infinity };
  if (column === first.column && up === first.up) return R.map((_, i) => i); // as the command sorted it
  const rank = v => (v !== null && C[column].number ? (infinite[v] ?? v) : v);
  return R.map((r, i) => [rank(r[column]), i])
    .sort(
      ([a, i], [b, j]) => (a === null) - (b === null) || (a === b ? i - j : (a > b ? 1 : -1) * (up ? 1 : -1)),
    )
    .map(([, i]) => i);
}

function drawTable() {
  const columns = C.flatMap((_, c) => (S.shown.has(c) ? [c] : [])),
    { column, up } = S.sort;
  const kind = c => [C[c].number ? "" : "text", c === column ? "sorted" : ""].join(" ").trim() || null;
  const heads = columns.map(c =>
    html(
      "th",
      {
        class: kind(c),
        "aria-sort": c === column ? (up ? "ascending" : "descending") : null,
        title: C[c].name,
      },
      html("button", { "data-sort": c }, C[c].label + (c === column ? (up ? " ▲" : " ▼") : "")),
    ),
  );
  const rows = order().map(i =>
    html(
      "tr",
      { class: "run", "data-run": i },
      ...columns.map(c => html("td", { class: kind(c) }, ...cell(i, c))),
    ),
  );
  $("runs").replaceChildren(html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...rows));
  bringIntoView();
}
// A name comes with a tick box, and leads to the report of the run's test.
function cell(i, c) {
  const text = shown(R[i][c], C[c].name);
  if (C[c].name !== "name") return [text];
  const tick = html("input", { type: "checkbox", "data-tick": i, "aria-label": `choose ${text}` });
  tick.checked = S.runs.has(i);
  return [
    tick,
    D.reports[i] ? html("a", { href: D.reports[i], title: text }, text) : html("span", { title: text }, text),
  ];
}
function bringIntoView() {
  const head = $("runs").querySelector("th[aria-sort]"),
    box = $("runs").parentNode,
    name = $("runs").querySelector("th");
  if (!head || head === name) return;
  const left = head.offsetLeft - name.offsetWidth,
    right = head.offsetLeft + head.offsetWidth - box.clientWidth;
  if (box.scrollLeft > left) box.scrollLeft = left;
  else if (box.scrollLeft < right) box.scrollLeft = right;
}
