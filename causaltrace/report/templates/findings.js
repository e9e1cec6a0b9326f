// The list of all findings: searched, in pages, and the path of the one that is chosen. A row is
// [kind, score, label, orders, place, path, prefixes]; kind, orders, place, path and prefixes are numbers of tables.

const PAGE = 100;

function makeExplorer(root, data, map) {
  const element = root.querySelector(".explorer");
  if (!element) return { search() {} };
  const input = element.querySelector("input");
  const body = element.querySelector("tbody");
  const detail = element.querySelector(".detail");
  const [back, next] = element.querySelectorAll(".pages button");
  const offsets = new Map(data.streams);
  const texts = data.shapes.map((shape) => shape.map((i) => stepText(data.steps[i])).join("\n").toLowerCase());
  let found = data.findings;
  let page = 0;
  let chosen = null;

  const kind = (row) => data.kinds[row[0]];
  const scoreName = (row) => data.prefixes[row[6]][0] + row[1];
  const labelName = (row) => data.prefixes[row[6]][1] + "x_" + row[2];

  function distance(row) {
    const [own, source] = data.prefixes[row[6]];
    if (kind(row) === "CT006" || own !== source) return "";
    const ahead = row[2] - row[1];
    if (ahead === 0) return "own";
    return `${Math.abs(ahead).toLocaleString("en")} ${ahead > 0 ? "ahead" : "before"}`;
  }

  // A number is a score or a label, a range is of scores; any other word is looked for in the texts.
  function test(word) {
    const range = /^(\d+)-(\d+)$/.exec(word);
    if (range) return (row) => row[1] >= +range[1] && row[1] <= +range[2];
    if (/^\d+$/.test(word)) return (row) => row[1] === +word || row[2] === +word;
    const some = (table) => new Set(table.flatMap((text, i) => (text.toLowerCase().includes(word) ? [i] : [])));
    const kinds = some(data.kinds), places = some(data.places), shapes = some(texts);
    const orders = some(data.orders);
    return (row) => kinds.has(row[0]) || places.has(row[4]) || orders.has(row[3])
      || (row[5] >= 0 && shapes.has(data.paths[row[5]][0]))
      || labelName(row).toLowerCase() === word || scoreName(row).toLowerCase() === word;
  }

  function search() {
    const tests = input.value.toLowerCase().split(/\s+/).filter(Boolean).map(test);
    found = tests.length ? data.findings.filter((row) => tests.every((ok) => ok(row))) : data.findings;
    page = 0;
    show();
    choose(found[0] || null);
  }

  function show() {
    const start = page * PAGE, rows = found.slice(start, start + PAGE);
    body.replaceChildren(...rows.map(tableRow));
    const total = found.length.toLocaleString("en");
    element.querySelector(".count").textContent = found.length
      ? `${(start + 1).toLocaleString("en")} to ${(start + rows.length).toLocaleString("en")} of ${total}` : "none found";
    back.disabled = page === 0;
    next.disabled = start + PAGE >= found.length;
  }

  function tableRow(row) {
    const button = make("button", "pick", scoreName(row));
    button.type = "button";
    button.setAttribute("aria-label", `Score ${scoreName(row)}: show its path`);
    const cells = [button, kind(row) === "CT006" ? "" : labelName(row), distance(row), kind(row),
      data.orders[row[3]], data.places[row[4]]];
    const line = make("tr");
    line.append(...cells.map((cell) => { const td = make("td"); td.append(cell); return td; }));
    line.addEventListener("click", () => choose(row));
    if (row === chosen) line.setAttribute("aria-current", "true");
    return line;
  }

  function choose(row) {
    chosen = row;
    const start = page * PAGE;
    [...body.children].forEach((line, i) => {
      if (found[start + i] === row) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    });
    detail.replaceChildren(...(row ? describe(row) : []));
    if (!row) return;
    const start0 = (i) => offsets.get(data.prefixes[row[6]][i]) || 0;
    map.mark(row[1] + start0(0), row[2] + start0(1));
  }

  function describe(row) {
    const head = make("p");
    const words = kind(row) === "CT006" ? `position ${scoreName(row)} has two scores from different readouts`
      : `label ${labelName(row)} → score of ${scoreName(row)}` + (distance(row) ? ` (${distance(row)})` : "");
    head.append(make("span", "kind", kind(row)), ` ${words}; fails in ${data.orders[row[3]]}`);
    if (row[5] < 0) {
      const why = row[5] === -1 ? "No path was recorded." : "This path is not on this page; the JSON report has it.";
      return [head, make("p", "note", why)];
    }
    const [shape, ...details] = data.paths[row[5]];
    const list = make("ol", "path");
    if (kind(row) !== "CT006") list.append(make("li", "end", `label ${labelName(row)}`));
    data.shapes[shape].forEach((i, n) => list.append(pathStep(data.steps[i], details[n])));
    list.append(make("li", "end", `score of ${scoreName(row)}`));
    return [head, list];
  }

  input.addEventListener("input", search);
  back.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });
  element.hidden = false;
  show();
  choose(found[0] || null);
  return {
    search(text) {
      input.value = text;
      search();
      if (found.length) element.scrollIntoView({ block: "nearest" });
    },
  };
}

function stepText([file, number, name, source, phase, ops, modules]) {
  return `${file}:${number} ${name} ${source} ${phase} ${ops} ${modules}`;
}

function pathStep([file, number, name, source, phase, ops, modules], index) {
  const item = make("li");
  item.append(make("div", "where", `${file}:${number}${name ? ` in ${name}` : ""}`));
  if (source) item.append(make("pre", "", source));
  const how = make("div", "how");
  how.append(make("span", `phase ${phase}`, phase), ` ${ops}${modules ? ` in ${modules}` : ""} `, make("span", "index", index));
  item.append(how);
  return item;
}

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}
