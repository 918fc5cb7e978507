// Two runs against each other: their numbers, their confusion matrices, and where they disagree.

const pairOf = () => (R.length === 2 ? [0, 1] : S.runs.size === 2 ? [...S.runs].sort((a, b) => a - b) : null);

function drawPair() {
  const pair = pairOf();
  $("two").hidden = !pair;
  if (!pair) return;
  const names = pair.map(i => R[i][at("name")]);
  $("pair").replaceChildren(numbers(pair, names), ...matrices(pair, names), ...disagreement(names));
  for (const drawn of $("pair").querySelectorAll("svg")) tidy(drawn);
}

function numbers(pair, names) {
  // If there are but two, the page has their config in a table of its own.
  const here = c => c.name !== "name" && (R.length > 2 || c.kind !== "config");
  const differs = C.flatMap((c, k) => (here(c) && R[pair[0]][k] !== R[pair[1]][k] ? [k] : []));
  const rows = differs.map(k => {
    const [a, b] = pair.map(i => R[i][k]),
      gap = Number.isFinite(a) && Number.isFinite(b) ? b - a : null,
      text = gap === null ? "" : `${gap > 0 ? "+" : "−"}${shown(Math.abs(gap), C[k].name)}`;
    const cells = [shown(a, C[k].name), shown(b, C[k].name), text];
    return html("tr", {}, html("td", { class: "text" }, C[k].name), ...cells.map(t => html("td", {}, t)));
  });
  const heads = ["", ...names, "difference"].map((t, k) =>
    html("th", { class: k ? null : "text", title: t }, t),
  );
  return html(
    "div",
    { class: "scroll" },
    html("table", {}, html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...rows)),
  );
}

function matrices(pair, names) {
  const title = html("h3", {}, "Confusion matrices"),
    why = whyNoMatrices(pair, names);
  if (why) return [title, html("p", {}, why)];
  const [one, other] = pair.map(i => D.confusions.of[i]),
    classes = D.confusions.classes[one[0]],
    gap = other[1].map((n, k) => n - one[1][k]);
  const drawn = [
    [matrix(one[1], classes, false), names[0]],
    [matrix(other[1], classes, false), names[1]],
    [
      matrix(gap, classes, true),
      `${names[1]} less ${names[0]}: blue where that is better, orange where it is worse`,
    ],
  ];
  const figures = drawn.map(([picture, text]) => html("figure", {}, html("figcaption", {}, text), picture));
  const about =
    "Rows are the true classes, columns what they were taken for; a stronger cell is more of its row.";
  return [title, html("p", {}, about), html("div", { class: "matrices" }, ...figures)];
}
function whyNoMatrices(pair, names) {
  if (D.confusions.why)
    return `Not here: ${D.confusions.why}; imgcls compare of the two runs alone has theirs.`;
  const found = pair.map(i => D.confusions.of[i]),
    lacking = found.findIndex(m => !m);
  if (lacking >= 0) return `${names[lacking]} has no test/confusion_matrix.csv that can be read.`;
  const [[a, m], [b, n]] = found,
    size = D.confusions.classes[a].length;
  const rows = counts =>
    Array.from({ length: size }, (_, r) => counts.slice(r * size, (r + 1) * size).reduce((p, q) => p + q, 0));
  return a === b && same(rows(m), rows(n))
    ? ""
    : "The tests are of other images or classes, so their matrices do not compare.";
}

// A cell is as strong as its share of the row (of a difference: of the largest); up to 12 classes it has its
// number, and up to 40 the rows have their names.
function matrix(counts, classes, signed) {
  const n = classes.length,
    room = n <= 40 ? 78 : 6,
    side = 260 / n,
    picture = svg("svg", { viewBox: `0 0 ${262 + room} 266`, role: "img" });
  const sums = Array.from({ length: n }, (_, r) =>
      counts.slice(r * n, (r + 1) * n).reduce((a, b) => a + Math.abs(b), 0),
    ),
    most = Math.max(...counts.map(Math.abs), 1);
  counts.forEach((count, k) => {
    const [r, c] = [Math.floor(k / n), k % n];
    if (!count) return;
    const share = signed ? Math.abs(count) / most : count / sums[r],
      good = (r === c) === count > 0,
      own = signed ? `var(--${good ? "better" : "worse"})` : r === c ? "var(--c0)" : "var(--c1)";
    const strength = 0.12 + 0.78 * share,
      cellText = `${classes[r]} taken for ${classes[c]}: ${signed && count > 0 ? "+" : ""}${count}`;
    picture.append(
      svg(
        "rect",
        {
          class: "cell",
          style: `--own:${own}`,
          "fill-opacity": strength.toFixed(3),
          x: room + c * side,
          y: 4 + r * side,
          width: Math.max(side - 0.6, 0.4),
          height: Math.max(side - 0.6, 0.4),
        },
        svg("title", {}, cellText),
      ),
    );
    if (n <= 12)
      picture.append(
        label(
          `${signed && count > 0 ? "+" : ""}${count}`,
          {
            class: strength > 0.6 ? "on" : "number",
            "text-anchor": "middle",
            x: room + (c + 0.5) * side,
            y: 8 + (r + 0.5) * side,
            "pointer-events": "none",
          },
          side,
        ),
      );
  });
  picture.append(svg("rect", { x: room, y: 4, width: 260, height: 260, fill: "none", class: "spine" }));
  if (n <= 40)
    classes.forEach((name, r) =>
      picture.append(label(name, { "text-anchor": "end", x: room - 5, y: 8 + (r + 0.5) * side }, room - 8)),
    );
  return picture;
}

// Of many runs the page has no predictions: they would be larger than all the rest.
function disagreement(names) {
  const title = html("h3", {}, "Where they disagree");
  if (!D.two)
    return [
      title,
      html(
        "p",
        {},
        "imgcls compare of the two runs alone shows the images that one gets right and the other wrong.",
      ),
    ];
  if (D.two.why) return [title, html("p", {}, `Not said: ${D.two.why}.`)];
  const [both, one, other, none] = D.two.counts.map(n => n.toLocaleString("en")),
    p = D.two.p < 1e-4 ? "below 0.0001" : D.two.p.toFixed(4);
  const about =
    `Both are right on ${both} images, ${names[0]} alone on ${one}, ${names[1]} alone on ${other}, ` +
    `neither on ${none}. p of McNemar's exact test: ${p}.`;
  const nodes = [title, html("p", {}, about)];
  if (D.two.no_pictures) nodes.push(html("p", {}, `No pictures: ${D.two.no_pictures}.`));
  D.two.alone.forEach((cards, k) => {
    if (!cards.length) return;
    const total = D.two.counts[1 + k];
    const first = cards.length < total ? `, the ${cards.length} first of which the other is surest` : "";
    nodes.push(html("h3", {}, `${names[k]} alone is right (${total.toLocaleString("en")}${first})`));
    nodes.push(html("div", { class: "cards" }, ...cards.map(one => card(one, names, k))));
  });
  return nodes;
}
function card(one, names, right) {
  const said = [one.first, one.second],
    picture = one.picture
      ? [html("img", { src: one.picture, alt: one.name, title: one.name })]
      : [one.name, html("br", {})];
  const text = ["label ", html("b", {}, one.target), html("br", {}), `other: ${said[1 - right]}`];
  return html(
    "figure",
    { title: `${one.name}: ${names[0]} says ${said[0]}, ${names[1]} says ${said[1]}` },
    ...picture,
    html("figcaption", {}, ...text),
  );
}
