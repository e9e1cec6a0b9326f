// A window on a drawing that is `width` by `height`: moved and zoomed with pointer, wheel, fingers, keys and buttons.
// `room()` is where it is drawn in the element; `most` pixels a unit are shown at first, however small the drawing.
// `window()` is what it shows: {x, y, scale} with scale in pixels a unit. `draw` is called after each change.

function makeView(element, buttons, room, most, draw) {
  let size = { width: 1, height: 1 };
  let shown = null;
  let asked = false;
  const fingers = new Map();

  function fitScale() {
    const r = room();
    return Math.min(r.width / size.width, r.height / size.height, most);
  }

  function fit() {
    shown = null;
    change();
  }

  function current() {
    if (shown) return shown;
    const r = room(), scale = fitScale();
    return { scale, x: -(r.width / scale - size.width) / 2, y: -(r.height / scale - size.height) / 2 };
  }

  function change() {
    element.classList.toggle("moved", shown !== null);
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  }

  // At least a part of the drawing stays in sight.
  function show(view) {
    const r = room();
    const wide = r.width / view.scale, high = r.height / view.scale;
    view.x = Math.min(Math.max(view.x, -wide * 0.8), size.width - wide * 0.2);
    view.y = Math.min(Math.max(view.y, -high * 0.8), size.height - high * 0.2);
    shown = view;
    change();
  }

  function zoom(factor, at) {
    const r = room(), now = current();
    const px = at ? at.x : r.width / 2, py = at ? at.y : r.height / 2;
    const least = fitScale();
    const scale = Math.min(Math.max(now.scale * factor, least), Math.max(40, least * 8));
    if (scale <= least) return fit();
    show({ scale, x: now.x + px / now.scale - px / scale, y: now.y + py / now.scale - py / scale });
  }

  function move(dx, dy) {
    const now = current();
    show({ scale: now.scale, x: now.x - dx / now.scale, y: now.y - dy / now.scale });
  }

  function place(event) {
    const box = element.getBoundingClientRect(), r = room();
    return { x: event.clientX - box.left - r.left, y: event.clientY - box.top - r.top };
  }

  // Where all of the drawing would be too small: the upper part of a box, or what is around the box's topmost x.
  function readable(scale, { left, right, top, x }) {
    const wide = room().width / scale;
    const middle = right - left < wide ? (left + right) / 2 : x;
    if (fitScale() < scale) show({ scale, x: middle - wide / 2, y: top - 12 });
  }

  element.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, place(event));
  });
  element.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    const other = [...fingers].find(([id]) => id !== event.pointerId);
    if (Math.hypot(now.x - before.x, now.y - before.y) < 2) return;
    element.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, now);
    if (other) {
      const span = (p) => Math.hypot(p.x - other[1].x, p.y - other[1].y) || 1;
      zoom(span(now) / span(before), other[1]);
    } else if (event.pointerType === "mouse" || shown) {
      move(now.x - before.x, now.y - before.y);
    }
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    element.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  element.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== element) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), place(event));
  }, { passive: false });

  const keys = {
    ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0),
    ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": fit,
  };
  element.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  const actions = { in: () => zoom(1.6), out: () => zoom(1 / 1.6), fit };
  buttons.hidden = false;
  for (const button of buttons.querySelectorAll("button")) {
    button.addEventListener("click", actions[button.dataset.zoom]);
  }
  new ResizeObserver(change).observe(element);
  return {
    window: current,
    place,
    readable,
    redraw: change,
    setSize(width, height) { size = { width, height }; fit(); },
  };
}
