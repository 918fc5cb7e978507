// The data, the nodes that show it, and numbers as a person reads them.

const $ = id => document.getElementById(id),
  D = JSON.parse($("data").textContent),
  C = D.columns, // what is known of each column
  R = D.rows, // of each run its values, in the order of the columns
  MANY = R.length > 100;
const at = name => C.findIndex(c => c.name === name);

// What is shown is made of nodes and never of markup: anyone may have written the files that names come from.
const maker =
  space =>
  (tag, attributes, ...children) => {
    const node = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes))
      if (value !== null && value !== false) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
const html = maker(document.body.namespaceURI),
  svg = maker($("parallel").namespaceURI);

// As `figure` of comparison.py writes it.
function shown(value, name) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (name.startsWith("seconds")) return duration(value);
  if (name === "parameters" || name === "images_per_second") return Math.round(value).toLocaleString("en");
  return name.includes("/") && Math.abs(value) < 1000 && !name.endsWith("/epoch")
    ? value.toFixed(4)
    : digits(value);
}
function duration(seconds) {
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const parts = [seconds / 3600, (seconds / 60) % 60, seconds % 60];
  return parts.map((n, i) => String(Math.floor(n)).padStart(i ? 2 : 1, "0")).join(":");
}
function digits(value) {
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value);
  const n = Number(value.toPrecision(4));
  return n && (Math.abs(n) < 1e-4 || Math.abs(n) >= 1e4) ? n.toExponential() : String(n);
}
// Of a tick or a limit: as few digits as it has.
function brief(value, name) {
  if (typeof value !== "number") return shown(value, name);
  if (name === "parameters" && value >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
  if (name === "parameters" && value >= 1e4) return `${Number((value / 1e3).toPrecision(3))} k`;
  return name.startsWith("seconds") ? duration(value).replace(".0 s", " s") : digits(value);
}
