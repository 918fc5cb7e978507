// Drawings with two axes: their frame, and a metric against a cost.

const MARGIN = { left: 64, right: 28, top: 14, bottom: 40 };

// Draws the frame; returns its nodes, and from shares to pixels.
function frame(id, height, sx, sy, nameX, nameY, below) {
  const width = drawing(id, height),
    x = s => MARGIN.left + s * (width - MARGIN.left - MARGIN.right),
    y = s => height - MARGIN.bottom - s * (height - MARGIN.top - MARGIN.bottom),
    middle = (MARGIN.left + width - MARGIN.right) / 2;
  const nodes = [
    label(below, { "text-anchor": "middle", class: "number", x: middle, y: height - 6 }, width - 90),
  ];
  for (const [s, v] of sy.ticks)
    nodes.push(
      svg("line", { class: "line", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(s), y2: y(s) }),
      label(brief(v, nameY), { "text-anchor": "end", x: MARGIN.left - 7, y: y(s) + 4 }, MARGIN.left - 8),
    );
  for (const [s, v] of sx.ticks)
    nodes.push(label(brief(v, nameX), { "text-anchor": "middle", x: x(s), y: height - MARGIN.bottom + 18 }));
  return { nodes, x, y, width };
}

// A metric against time or size, with the Pareto front of the runs that are kept: none is cheaper and better.
function drawScatter(name) {
  const c = at(name);
  if (c < 0 || !R.some(r => Number.isFinite(r[c]))) {
    $(name).replaceWith(html("p", { id: name }, "No run says how many."));
    return;
  }
  const sx = scales[c],
    sy = scales[S.metric],
    below = `${name === "seconds" ? "time" : name} (dashed: Pareto front of ${C[S.metric].label})`,
    { nodes, x, y } = frame(name, 330, sx, sy, name, C[S.metric].name, below);
  const placed = R.map((r, i) => [i, sx.of(r[c]), sy.of(r[S.metric])]).filter(
    ([, a, b]) => a !== null && b !== null,
  );
  nodes.push(
    svg("rect", { class: "field", "data-x": c, x: x(0), y: y(1), width: x(1) - x(0), height: y(0) - y(1) }),
  );
  nodes.push(svg("path", { class: "front", d: front(placed, c, x, y) }));
  const rest = MANY ? 3 : 5;
  for (const [i, a, b] of placed)
    nodes.push(
      svg("circle", {
        class: "run",
        "data-run": i,
        r: rest,
        cx: x(a),
        cy: y(b),
        style: `--own:${colourOf(i)}`,
      }),
    );
  const h = S.keep.has(c) ? sharesOf(c) : null,
    v = S.keep.has(S.metric) ? sharesOf(S.metric) : null;
  if (h || v) {
    const [left, right] = h ?? [0, 1],
      [low, high] = v ?? [0, 1];
    nodes.push(brushed(x(left), y(high), x(right) - x(left), y(low) - y(high)));
  }
  $(name).replaceChildren(...nodes);
  tidy($(name));
}
const brushed = (x, y, width, height) =>
  svg("rect", { class: "brush", x, y, width: Math.max(width, 2), height: Math.max(height, 2) });

function front(placed, c, x, y) {
  const sign = C[S.metric].better === "min" ? -1 : 1,
    status = at("status"),
    done = placed.filter(([i]) => kept(i) && R[i][status] === "finished");
  let best = -Infinity,
    d = "";
  for (const [i, a, b] of done.sort(([i, , p], [j, , q]) => R[i][c] - R[j][c] || sign * (q - p)))
    if (sign * R[i][S.metric] > best) {
      best = sign * R[i][S.metric];
      d += d ? `H${x(a)}V${y(b)}` : `M${x(a)},${y(b)}`;
    }
  return d;
}
const drawScatters = () => ["seconds", "parameters"].forEach(drawScatter);
