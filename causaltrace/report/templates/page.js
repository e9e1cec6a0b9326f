// Brings the page to life: themes, the switch between watches, and in each watch its map, list and graph.

function mountGraph(root) {
  const element = root.querySelector(".graph");
  if (!element) return () => {};
  const svg = element.querySelector("svg");
  const width = +svg.dataset.width, height = +svg.dataset.height;
  const room = () => ({ left: 0, top: 0, width: element.clientWidth || 1, height: element.clientHeight || 1 });
  const view = makeView(element, root.querySelector("[aria-labelledby$='-graph'] .zoom"), room, 1, () => {
    const { x, y, scale } = view.window(), r = room();
    svg.setAttribute("viewBox", `${x} ${y} ${r.width / scale} ${r.height / scale}`);
  });
  element.style.height = `${Math.max(height, 160)}px`;
  view.setSize(width, height);
  const bad = svg.querySelectorAll(".node.bad");
  view.readable(0.7, extent([...(bad.length ? bad : svg.querySelectorAll(".node"))]));
  return view.redraw;
}

// The box around nodes, and the x of the middle of the topmost.
function extent(nodes) {
  const places = nodes.map((node) => node.getAttribute("transform").match(/[\d.]+/g).map(Number));
  const box = nodes[0].getBBox(), xs = places.map((place) => place[0]);
  const top = places.reduce((a, b) => (b[1] < a[1] ? b : a));
  return { left: Math.min(...xs), right: Math.max(...xs) + box.width, top: top[1], x: top[0] + box.width / 2 };
}

function mountWatch(root) {
  const data = JSON.parse(root.querySelector(".data").textContent);
  let explorer = null;
  const map = makeMap(root, data, (score) => explorer.search(String(score)));
  explorer = makeExplorer(root, data, map);
  const graph = mountGraph(root);
  return () => { map.redraw(); graph(); };
}

function mountTheme(redraw) {
  const button = document.querySelector(".theme");
  const page = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (page.dataset.theme ? page.dataset.theme === "dark" : system.matches);
  const show = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; redraw(); };
  button.addEventListener("click", () => { page.dataset.theme = dark() ? "light" : "dark"; show(); });
  system.addEventListener("change", show);
  button.hidden = false;
  show();
}

// One watch is shown at a time: the one whose id, or a section of it, is in the address.
function mountSwitch(redraw) {
  const watches = [...document.querySelectorAll(".watch")];
  const links = [...document.querySelectorAll(".switch a")];
  if (watches.length < 2) return;
  const show = () => {
    const target = document.getElementById(location.hash.slice(1));
    const shown = (target && target.closest(".watch")) || watches[0];
    watches.forEach((watch) => { watch.hidden = watch !== shown; });
    links.forEach((link) => {
      if (link.hash === `#${shown.id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    redraw();
  };
  addEventListener("hashchange", show);
  show();
}

// All watches are in sight while they are mounted: their drawings need a size.
const redraws = [...document.querySelectorAll(".watch")].map(mountWatch);
const redraw = () => redraws.forEach((some) => some());
mountSwitch(redraw);
mountTheme(redraw);
document.documentElement.dataset.ready = "true";
