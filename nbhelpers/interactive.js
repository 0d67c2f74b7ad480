// Attention maps of the query patch that the reader picks. The data are those of nbhelpers/interactive.py.
const floats = (text) => new Float32Array(bytes(text).buffer);

// The arrays of a model out of base64.
function unpack(model) {
  const arrays = ["peaks", "distances", "uniform"].map((key) => [key, floats(model[key])]);
  return { ...model, maps: bytes(model.maps), ...Object.fromEntries(arrays) };
}

// Map and attention distance of one query, in one head or averaged over heads.
function look(model, depth, head, query) {
  const tokens = model.grid[0] * model.grid[1];
  const heads = head === MEAN ? range(model.heads) : [head];
  const map = new Float64Array(tokens);
  let distance = 0;
  for (const one of heads) {
    const at = ((depth - 1) * model.heads + one) * tokens + query;
    for (let key = 0; key < tokens; key++) map[key] += model.peaks[at] * model.maps[at * tokens + key];
    distance += model.distances[at] / heads.length;
  }
  const peak = Math.max(...map);
  return { map: map.map((value) => value / peak), distance };
}

// One model's panel; returns what draws it.
function panel(model, ramp, panels) {
  const [rows, columns] = model.grid;
  const { canvas, mark, frame } = markedCanvas(rows, columns);
  const [distance, uniform] = [element("span"), element("span")];
  const caption = element("div", { class: "caption" }, element("strong", {}, model.label), distance, uniform);
  panels.append(element("div", {}, frame, caption));

  return (state, grid) => {
    // The same place in the image, where the patch grids of two models differ.
    const row = Math.floor(((state.row + 0.5) / grid[0]) * rows);
    const column = Math.floor(((state.column + 0.5) / grid[1]) * columns);
    mark(row, column);
    const lacks =
      state.depth > model.depth ? `no depth ${state.depth}` : state.head >= model.heads ? `no head ${state.head}` : "";
    if (lacks) {
      canvas.getContext("2d").clearRect(0, 0, columns, rows);
      [distance.textContent, uniform.textContent] = [lacks, ""];
      canvas.setAttribute("aria-label", `${model.label}: ${lacks}`);
      return `${model.label} has ${lacks}`;
    }
    const query = row * columns + column;
    const seen = look(model, state.depth, state.head, query);
    paint(canvas, (i) => ramp(seen.map[i]));
    canvas.setAttribute("aria-label", `attention map of ${model.label}`);
    distance.textContent = `attention distance: ${pixels(seen.distance)}`;
    uniform.textContent = `of uniform attention: ${pixels(model.uniform[query])}`;
    return `${model.label} ${pixels(seen.distance)}, uniform attention ${pixels(model.uniform[query])}`;
  };
}

function start(host, content) {
  const { ramp, scale } = colourScale(content.colours);
  const models = content.models.map(unpack);
  const [grid] = models.map((model) => model.grid);
  const last = Math.max(...models.map((model) => model.depth));
  const most = Math.max(...models.map((model) => model.heads));
  const [row, column] = grid.map((size) => Math.floor(size / 2));
  const state = { row, column, depth: last, head: MEAN };

  const depth = element("input", { type: "range", min: 1, max: last, value: last });
  const shown = element("span", { class: "value" });
  const head = element("select", {}, ...headOptions(most > 1 ? most : 0));
  const panels = element("div", { class: "panels" });
  const where = element("span");
  const summary = element("p", { class: "summary", role: "status" });

  function draw() {
    choose(state);
    where.textContent = place(state);
    shown.textContent = state.depth;
    const found = draws.map((one) => one(state, grid));
    const heads = head.selectedOptions[0].textContent;
    summary.textContent = `Query in ${place(state)}; depth ${state.depth}; ${heads}. Attention distance: ${found.join("; ")}.`;
  }

  function pick(row, column) {
    Object.assign(state, { row, column });
    draw();
    cells[row][column].focus({ preventScroll: true });
  }

  const image = element("img", { src: content.image, alt: "the image", class: "dark-light" });
  const { cells, choose, frame } = picker(image, ...grid, "query patch on the image", pick);
  const caption = element("div", { class: "caption" }, element("strong", {}, "query"), where);
  panels.append(element("div", {}, frame, caption));
  const draws = models.map((model) => panel(model, ramp, panels));

  follow(state, draw, depth, head);

  host.replaceChildren(
    controls(["Depth", depth, shown], ["Head", head]),
    panels,
    element("p", { class: "scale" }, "nothing", scale, "maximum of the map"),
    ...(content.note ? [element("p", {}, content.note)] : []),
    summary,
  );
  draw();
}

startAll("attention-maps", "Attention maps of any query patch", start);
