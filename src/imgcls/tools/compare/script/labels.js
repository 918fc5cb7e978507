// Words in the drawings: cut to the room they have, and left out where they would lie on others. Both are
// measured on the boxes as they are drawn.

// Makes a text; `room` is how wide it may be in pixels. A cut one says the whole under the pointer.
function label(text, attributes, room = Infinity) {
  const node = svg("text", attributes, String(text));
  node.room = room;
  return node;
}

// Cuts and leaves out the labels of a drawing. Earlier ones stay, so the more important come first.
function tidy(drawing) {
  const texts = [...drawing.querySelectorAll("text")];
  for (const node of texts) if (node.room < Infinity) cut(node);
  const boxes = texts.map(node => node.getBBox()),
    width = drawing.clientWidth,
    kept = [];
  texts.forEach((node, i) => {
    const b = boxes[i],
      inside = b.x >= -1 && b.x + b.width <= width + 1;
    if (inside && kept.every(k => apart(k, b))) kept.push(b);
    else node.remove();
  });
}
const apart = (a, b) =>
  a.x + a.width + 3 <= b.x || b.x + b.width + 3 <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;

// In the middle: names of runs and settings often begin alike, and differ at their end.
function cut(node) {
  const whole = node.textContent,
    letters = [...whole],
    length = node.getComputedTextLength();
  if (length <= node.room) return;
  let left = Math.max(1, Math.floor((letters.length * node.room) / length));
  do {
    const end = Math.ceil(left / 2);
    node.textContent = `${letters.slice(0, left - end).join("")}…${letters.slice(-end).join("")}`;
  } while (node.getComputedTextLength() > node.room && --left > 0);
  node.append(svg("title", {}, whole));
}

// Starts a drawing of a height, as wide as the page has room for it; returns its width.
function drawing(id, height) {
  const width = Math.max($(id).clientWidth, 300);
  $(id).setAttribute("height", height);
  $(id).setAttribute("viewBox", `0 0 ${width} ${height}`);
  $(id).classList.toggle("many", MANY);
  return width;
}
