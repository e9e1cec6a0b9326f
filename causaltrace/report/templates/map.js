// The map of labels and scores on a canvas. A band is [score, count, first, stop, left, right, kind]: labels first to
// stop - 1 reached the first of `count` scores, and with every further score the two ends move by left and right.

const KINDS = ["plain", "bad", "caution"];
const ORDER = [0, 2, 1]; // findings on top
const ROOM = { left: 66, right: 24, top: 12, bottom: 42 };

function makeMap(root, data, choose) {
  const element = root.querySelector(".map");
  if (!element) return { mark() {}, redraw() {} };
  const canvas = element.querySelector("canvas");
  const readout = root.querySelector(".readout");
  const { bands, unit, size } = data.map;
  const byKind = ORDER.map((kind) => bands.filter((band) => band[6] === kind));
  let marked = null;

  function room() {
    return {
      left: ROOM.left, top: ROOM.top,
      width: Math.max(canvas.clientWidth - ROOM.left - ROOM.right, 50),
      height: Math.max(canvas.clientHeight - ROOM.top - ROOM.bottom, 50),
    };
  }

  function colours() {
    const of = (selector, what) => {
      const found = root.querySelector(selector);
      return found ? getComputedStyle(found)[what] : "transparent";
    };
    const ink = element.querySelector(".ink");
    ink.hidden = false; // resolved only while it is in the page's flow
    const out = { text: getComputedStyle(ink).color, grid: getComputedStyle(ink).backgroundColor };
    ink.hidden = true;
    KINDS.forEach((name) => { out[name] = of(`.swatch.${name}`, "backgroundColor"); });
    return out;
  }

  function draw() {
    const sharp = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * sharp);
    canvas.height = Math.round(canvas.clientHeight * sharp);
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const r = room(), view = viewer.window(), colour = colours();
    const x = (label) => r.left + (label - view.x) * view.scale;
    const y = (score) => r.top + (score - view.y) * view.scale;
    axes(pen, r, view, x, y, colour);
    pen.save();
    pen.beginPath();
    pen.rect(r.left, r.top, r.width, r.height);
    pen.clip();
    pen.strokeStyle = colour.text;
    pen.beginPath();
    pen.moveTo(x(0), y(0));
    pen.lineTo(x(size), y(size));
    pen.stroke();
    byKind.forEach((some, i) => {
      pen.fillStyle = colour[KINDS[ORDER[i]]];
      some.forEach((band) => drawBand(pen, band, view, r, x, y));
    });
    if (marked) cross(pen, marked, view, r, x, y, colour.text);
    pen.restore();
  }

  // Rows one by one while they can be told apart; whole runs of rows when many share a pixel.
  function drawBand(pen, [score, count, first, stop, left, right, kind], view, r, x, y) {
    const row = unit * view.scale;
    const least = kind === 1 ? 4 : 2;
    const from = Math.max(0, Math.floor((view.y / unit - score)));
    const to = Math.min(count, Math.ceil((view.y + r.height / view.scale) / unit - score));
    const step = left || right ? Math.max(1, Math.floor(1 / row)) : count;
    for (let i = from - (from % step); i < to; i += step) {
      const rows = Math.min(step, count - i);
      const start = first + left * i, end = stop + right * (i + rows - 1);
      const x0 = Math.round(x(start * unit)), x1 = Math.round(x(end * unit));
      const y0 = Math.round(y((score + i) * unit)), y1 = Math.round(y((score + i + rows) * unit));
      pen.fillRect(x0, y0, Math.max(x1 - x0, least), Math.max(y1 - y0, least));
    }
  }

  function axes(pen, r, view, x, y, colour) {
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = colour.text;
    pen.strokeStyle = colour.grid;
    pen.lineWidth = 1;
    const step = niceStep(90 / view.scale);
    const named = (position) => nameOf(position, "", (n) => n.toLocaleString("en"));
    pen.textAlign = "center";
    for (let v = Math.max(0, Math.ceil(view.x / step) * step); v <= size && x(v) <= r.left + r.width; v += step) {
      line(pen, x(v), r.top, x(v), r.top + r.height);
      pen.fillText(named(v), x(v), r.top + r.height + 16);
    }
    pen.textAlign = "right";
    for (let v = Math.max(0, Math.ceil(view.y / step) * step); v <= size && y(v) <= r.top + r.height; v += step) {
      line(pen, r.left, y(v), r.left + r.width, y(v));
      pen.fillText(named(v), r.left - 6, y(v) + 4);
    }
    pen.textAlign = "center";
    pen.fillText("label", r.left + r.width / 2, r.top + r.height + 34);
    pen.save();
    pen.translate(12, r.top + r.height / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText("score", 0, 0);
    pen.restore();
  }

  function cross(pen, { score, label }, view, r, x, y, colour) {
    pen.strokeStyle = colour;
    pen.setLineDash([3, 3]);
    const half = view.scale / 2;
    line(pen, r.left, y(score) + half, r.left + r.width, y(score) + half);
    line(pen, x(label) + half, r.top, x(label) + half, r.top + r.height);
    pen.setLineDash([]);
  }

  // The position's name in its own stream: x_65, or b:x_65 where streams have names.
  function nameOf(position, mark = "", written = String) {
    const [prefix, start] = data.streams.findLast((stream) => stream[1] <= position) || ["", 0];
    return prefix + mark + written(position - start);
  }

  function at(event) {
    const p = viewer.place(event), view = viewer.window();
    const score = Math.floor(view.y + p.y / view.scale);
    return score >= 0 && score < size ? score : null;
  }

  function read(score) {
    const row = Math.floor(score / unit);
    const here = bands.filter((b) => b[0] <= row && row < b[0] + b[1]);
    if (!here.length) return `score ${nameOf(score)}: no label, or not scored`;
    const latest = Math.max(...here.map((b) => b[3] + b[5] * (row - b[0]))) * unit - 1;
    const ahead = latest - score;
    const where = ahead > 0 ? `${ahead.toLocaleString("en")} ahead` : ahead === 0 ? "its own" : `${-ahead} before`;
    const bad = here.some((b) => b[6] === 1) ? ", a violation" : ahead >= 0 ? ", no finding" : "";
    return `score ${nameOf(score)}: latest label ${nameOf(latest, "x_")} (${unit > 1 ? "about " : ""}${where}${bad})`;
  }

  const viewer = makeView(element, root.querySelector("[aria-labelledby$='-map'] .zoom"), room, Infinity, draw);
  let down = null;
  element.addEventListener("pointerdown", (event) => { down = [event.clientX, event.clientY]; });
  element.addEventListener("pointermove", (event) => {
    const score = at(event);
    if (score !== null) readout.textContent = read(score);
  });
  element.addEventListener("click", (event) => {
    const still = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 4;
    const score = at(event);
    if (still && score !== null) choose(score);
  });
  viewer.setSize(size, size);
  return {
    mark(score, label) { marked = { score, label }; viewer.redraw(); },
    redraw: viewer.redraw,
  };
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  return [1, 2, 5, 10].map((m) => m * power).find((step) => step >= rough);
}
