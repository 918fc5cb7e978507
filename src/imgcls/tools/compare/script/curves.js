// Learning curves of the runs that are kept: each by itself, or the mean of each config with a band.

// A debiased exponential moving average, as Adam's: the mean of what came so far, with weights that halve the
// faster the smaller `weight` is.
function smoothed(values, weight) {
  let sum = 0,
    share = 0;
  return values.map(v => {
    if (v === null) return null;
    sum = weight * sum + (1 - weight) * v;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}
const pointsOf = (c, values) => c[S.x].map((x, k) => [x, values[k], c.epoch[k]]);

// A line through points, lifted where there is no number; a single point is a dot.
function path(points, x, y) {
  let d = "",
    pen = "M";
  for (const [a, b] of points)
    if (a === null || b === null) pen = "M";
    else {
      d += `${pen}${x(a)},${y(b)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
    }
  return d;
}

const dot = points => (points.filter(([, v]) => v !== null).length === 1 ? " dot" : "");

// Of the runs of a config at each epoch: [place, mean, low, high]. The place is a mean, too: runs come to an
// epoch at different times.
function bandOf(members, series) {
  const epochs = new Map();
  for (const i of members)
    for (const [x, v, epoch] of series.get(i))
      if (x !== null && v !== null) epochs.set(epoch, [...(epochs.get(epoch) ?? []), [x, v]]);
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  return [...epochs]
    .sort(([a], [b]) => a - b)
    .map(([, points]) => {
      const [x, values] = [mean(points.map(p => p[0])), points.map(p => p[1])],
        middle = mean(values);
      if (S.view === "range") return [x, middle, Math.min(...values), Math.max(...values)];
      const squares = values.reduce((a, b) => a + (b - middle) ** 2, 0),
        deviation = Math.sqrt(squares / Math.max(values.length - 1, 1));
      return [x, middle, middle - deviation, middle + deviation];
    });
}

function drawCurves() {
  const shownRuns = R.flatMap((_, i) => (kept(i) ? [i] : [])),
    have = shownRuns.filter(
      i => D.curves[i] && Object.hasOwn(D.curves[i], S.curve) && Object.hasOwn(D.curves[i], S.x),
    );
  if (!have.length) {
    drawing("curves", 0);
    $("curves").replaceChildren();
    $("about").textContent = shownRuns.length ? "None of these runs has such a curve." : "No run is kept.";
    return;
  }
  const raw = new Map(have.map(i => [i, pointsOf(D.curves[i], D.curves[i][S.curve])])),
    lines = new Map(have.map(i => [i, pointsOf(D.curves[i], smoothed(D.curves[i][S.curve], S.smooth))]));
  const bands = S.view === "runs" ? null : bandsOf(have, lines),
    drawn = bands ? bands.flatMap(b => b.points) : [...raw.values()].flat(),
    xs = drawn.map(p => p[0]),
    ys = bands ? drawn.flatMap(p => [p[2], p[3]]) : drawn.map(p => p[1]);
  const sx = scaleOf(xs, true),
    sy = scaleOf(ys, true, S.log, true);
  const { nodes, x, y } = frame("curves", 360, sx, sy, S.x, S.curve, axisName(S.x)),
    px = v => x(sx.of(v)).toFixed(1),
    py = v => y(Math.min(Math.max(sy.of(v), 0), 1)).toFixed(1);
  nodes.push(...(bands ? drawnBands(bands, px, py) : drawnRuns(have, raw, lines, px, py)));
  $("curves").replaceChildren(...nodes);
  tidy($("curves"));
  $("about").textContent = aboutCurves(shownRuns.length, have.length, bands, sy);
}
function drawnRuns(have, raw, lines, px, py) {
  const pale = S.smooth ? have : [],
    line = (i, kind, points, more) =>
      svg("path", {
        class: kind + dot(points),
        ...more,
        style: `--own:${colourOf(i)}`,
        d: path(points, px, py),
      });
  return [
    ...pale.map(i => line(i, "raw", raw.get(i), {})),
    ...have.map(i => line(i, "run", lines.get(i), { "data-run": i })),
  ];
}

function bandsOf(have, lines) {
  const members = new Map();
  for (const i of have) {
    const g = D.groups.of[i];
    if (g !== null) members.set(g, [...(members.get(g) ?? []), i]);
  }
  return [...members].map(([group, runs]) => ({ group, runs, points: bandOf(runs, lines) }));
}
// A config has the colour of its runs where they share one, else one of its own.
function drawnBands(bands, px, py) {
  return bands.flatMap(({ group, runs, points }) => {
    const colours = new Set(runs.map(colourOf)),
      own = colours.size === 1 ? [...colours][0] : `var(--c${group % PALETTE})`,
      edge = [
        ...points.map(([x, , , high]) => [x, high]),
        ...points.toReversed().map(([x, , low]) => [x, low]),
      ],
      style = `--own:${own}`;
    return [
      svg("path", { class: "band", style, d: path(edge, px, py) }),
      svg("path", { class: `mean${dot(points)}`, "data-group": group, style, d: path(points, px, py) }),
    ];
  });
}
function aboutCurves(runs, have, bands, sy) {
  const parts = [];
  if (have < runs) parts.push(`Without such a curve: ${runs - have} of ${runs} runs.`);
  if (S.smooth) parts.push("Smoothed by a debiased exponential moving average; pale: as it was logged.");
  if (S.smooth && bands) parts.splice(-1, 1, "Each run is smoothed before the mean.");
  if (bands) {
    const what = S.view === "range" ? "smallest to largest" : "mean ± sample standard deviation";
    parts.push(`Line: mean of a config's runs at each epoch; band: ${what}.`);
  }
  if (S.log && !(sy.low > 0)) parts.push("Not logarithmic: there are values of 0 or less.");
  return parts.join(" ");
}
