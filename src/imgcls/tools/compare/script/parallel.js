// Parallel coordinates: an axis for each of at most 12 columns, a line for each run.

const MOST_AXES = 12,
  TOP = 50,
  BOTTOM = 306,
  MISSING = 330; // where lines pass that have no number there

function drawParallel() {
  const width = drawing("parallel", 340),
    gap = Math.min((width - 130) / Math.max(S.axes.length - 1, 1), 330),
    x = k => 30 + k * gap,
    y = s => (s === null ? MISSING : BOTTOM - s * (BOTTOM - TOP));
  const lines = R.map((r, i) => {
    const places = S.axes.map((c, k) => `${x(k).toFixed(1)},${y(scales[c].of(r[c])).toFixed(1)}`);
    return svg("path", {
      class: "run",
      "data-run": i,
      style: `--own:${colourOf(i)}`,
      d: `M${places.join("L")}`,
    });
  });
  const spines = [],
    titles = [],
    ticks = [],
    handles = [];
  S.axes.forEach((c, k) => {
    spines.push(svg("line", { class: "spine", x1: x(k), x2: x(k), y1: TOP, y2: BOTTOM }));
    const high = k % 2 ? 12 : 28; // on two lines, so that each has twice the room
    titles.push(label(C[c].label, { class: "title", x: x(k) - 6, y: high }, titleRoom(k, gap, width)));
    ticks.push(...ticksOf(c, x(k), y, k + 1 < S.axes.length ? gap - 22 : 92));
    const shares = S.keep.has(c) ? sharesOf(c) : null;
    if (shares) handles.push(brushed(x(k) - 9, y(shares[1]) - 2, 18, y(shares[0]) - y(shares[1]) + 4));
    handles.push(
      svg("rect", {
        class: "axis",
        "data-column": C[c].name,
        x: x(k) - 13,
        width: 26,
        y: TOP,
        height: BOTTOM - TOP,
      }),
    );
  });
  $("parallel").replaceChildren(...lines, ...spines, ...titles, ...ticks, ...handles);
  tidy($("parallel"));
}
const titleRoom = (k, gap, width) => Math.min(2 * gap - 10, width - 26 - k * gap);

// Limits come first: they stay where there is no room for all.
function ticksOf(c, x, y, room) {
  const { ticks } = scales[c],
    missing = R.some(r => scales[c].of(r[c]) === null);
  const ends = [ticks[0], ticks.at(-1), ...ticks.slice(1, -1)].filter(
    (t, i, all) => t && all.indexOf(t) === i,
  );
  const words = ends.map(([s, v]) => [brief(v, C[c].name), y(s)]);
  if (missing) words.push(["none", MISSING]);
  return words.map(([text, place]) => label(text, { class: "halo", x: x + 7, y: place - 4 }, room));
}
