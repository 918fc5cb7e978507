// The pointer: drags that keep a range or a rectangle, and the run that it is on.

// A drag along an axis keeps a range, across a drawing a rectangle; a click drops it.
function drag(down, area, change) {
  down.preventDefault();
  const box = area.getBoundingClientRect(),
    shares = e =>
      [(e.clientX - box.left) / box.width, (box.bottom - e.clientY) / box.height].map(s =>
        Math.min(Math.max(s, 0), 1),
      ),
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
      for (const [c, k] of [
        [x, 0],
        [S.metric, 1],
      ])
        far ? keepShares(c, from[k], to[k]) : S.keep.delete(c);
    });
  }
});

// The run that the pointer is on; lines are thin, so what is near counts.
document.addEventListener("pointermove", e => {
  let found = null;
  for (const [dx, dy] of [
    [0, 0],
    [0, 4],
    [0, -4],
    [4, 0],
    [-4, 0],
  ])
    found ||= document
      .elementFromPoint(e.clientX + dx, e.clientY + dy)
      ?.closest("[data-run]:not(.out), [data-group]");
  document.querySelectorAll(".hot").forEach(el => el.classList.remove("hot"));
  $("tip").style.display = found ? "block" : "none";
  if (!found) return;
  const { run, group } = found.dataset;
  document
    .querySelectorAll(`[data-${run ? "run" : "group"}="${run ?? group}"]`)
    .forEach(el => el.classList.add("hot"));
  $("tip").replaceChildren(...(run ? aboutRun(R[run]) : [D.groups.names[group]]));
  $("tip").style.left = `${Math.max(Math.min(e.clientX + 16, innerWidth - $("tip").offsetWidth - 8), 0)}px`;
  $("tip").style.top = `${Math.max(Math.min(e.clientY + 16, innerHeight - $("tip").offsetHeight - 8), 0)}px`;
});
function aboutRun(row) {
  const columns = C.flatMap((c, k) => (S.shown.has(k) && row[k] !== null ? [k] : [])).slice(0, 18);
  return columns.flatMap(k => [
    C[k].kind === "fact" ? "" : `${C[k].label}: `,
    html("b", {}, shown(row[k], C[k].name)),
    html("br", {}),
  ]);
}
