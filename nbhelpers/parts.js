// What the interactive pages share. nbhelpers/interactive.py puts it in front of a page's script and wraps both in
// one function, so that no name of theirs is global.
const MEAN = -1; // in place of a head: the mean over heads
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const clamp = (value, size) => Math.min(Math.max(value, 0), size - 1);
const range = (length) => Array.from({ length }, (_, i) => i);
const pixels = (distance) => `${distance.toFixed(1)}\u00a0px`;
const place = ({ row, column }) => `row ${row}, column ${column}`;

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const element = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
const options = (pairs) => pairs.map(([value, text]) => element("option", { value }, text));
const headOptions = (heads) => options([[MEAN, "mean over heads"], ...range(heads).map((i) => [i, `head ${i}`])]);
const controls = (...labels) =>
  element("div", { class: "controls" }, ...labels.map((parts) => element("label", {}, ...parts)));

// A canvas of one pixel a patch; colour(i) gives red, green and blue of patch i.
function paint(canvas, colour) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < canvas.width * canvas.height; i++) picture.data.set([...colour(i), 255], 4 * i);
  context.putImageData(picture, 0, 0);
}

// The colours of attention maps out of base64: ramp(0..1) gives red, green and blue, `scale` shows them all.
function colourScale(text) {
  const colours = bytes(text);
  const ramp = (value) => colours.subarray(3 * Math.round(255 * value), 3 * Math.round(255 * value) + 3);
  const scale = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  paint(scale, (i) => ramp(i / 255));
  return { ramp, scale };
}

// A picture with a grid of patches over it; pick(row, column) is called for a click or an arrow key, choose(state)
// outlines the query.
function picker(picture, rows, columns, name, pick) {
  const cells = range(rows).map((row) =>
    range(columns).map((column) => {
      const cell = element("div", { role: "gridcell", "aria-label": place({ row, column }) });
      cell.addEventListener("click", () => pick(row, column));
      cell.addEventListener("keydown", (event) => {
        const step = STEPS[event.key];
        if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        event.stopPropagation();
        pick(clamp(row + step[0], rows), clamp(column + step[1], columns));
      });
      return cell;
    }),
  );
  const choose = (state) =>
    cells.forEach((line, row) =>
      line.forEach((cell, column) => {
        const chosen = row === state.row && column === state.column;
        cell.setAttribute("aria-selected", chosen);
        cell.tabIndex = chosen ? 0 : -1;
      }),
    );
  const lines = cells.map((line) => element("div", { role: "row" }, ...line));
  const overlay = element("div", { role: "grid", "aria-label": name }, ...lines);
  return { cells, choose, frame: element("div", { class: "frame" }, picture, overlay) };
}

// A canvas of one pixel a patch; mark(row, column) outlines the query on it.
function markedCanvas(rows, columns, attributes = {}) {
  const canvas = element("canvas", { width: columns, height: rows, role: "img", ...attributes });
  const query = element("div", { class: "query" });
  query.style.width = `${100 / columns}%`;
  query.style.height = `${100 / rows}%`;
  const mark = (row, column) => {
    query.style.top = `${(100 * row) / rows}%`;
    query.style.left = `${(100 * column) / columns}%`;
  };
  return { canvas, mark, frame: element("div", { class: "frame" }, canvas, query) };
}

// Keeps depth and head of the state at what the reader chooses.
function follow(state, draw, depth, head) {
  depth.addEventListener("input", () => {
    state.depth = Number(depth.value);
    draw();
  });
  head.addEventListener("change", () => {
    state.head = Number(head.value);
    draw();
  });
}

// Starts the page in each element of its class that has not been started, with the data that the element holds.
function startAll(name, label, start) {
  for (const host of document.querySelectorAll(`.${name}:not([role])`)) {
    host.setAttribute("role", "group");
    host.setAttribute("aria-label", label);
    host.dataset.lmSuppressShortcuts = "true"; // in JupyterLab arrow keys would move between cells
    start(host, JSON.parse(host.querySelector("script[type='application/json']").textContent));
  }
}
