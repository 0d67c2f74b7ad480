// Attention maps of the query patch that the reader picks. The data are those of nbhelpers/interactive.py.
(() => {
  const MEAN = -1; // in place of a head: the mean over heads
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const pixels = (distance) => `${distance.toFixed(1)}\u00a0px`;
  const clamp = (value, size) => Math.min(Math.max(value, 0), size - 1);

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function select(options) {
    return element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
  }

  // Values 0..1 as colours, a pixel each.
  function paint(canvas, values, colours) {
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    values.forEach((value, i) => {
      const colour = 3 * Math.round(255 * value);
      picture.data.set([...colours.subarray(colour, colour + 3), 255], 4 * i);
    });
    context.putImageData(picture, 0, 0);
  }

  // The arrays of a model out of base64.
  function unpack(model) {
    const arrays = ["peaks", "distances", "uniform"].map((key) => [key, floats(model[key])]);
    return { ...model, maps: bytes(model.maps), ...Object.fromEntries(arrays) };
  }

  // Map and attention distance of one query, in one head or averaged over heads.
  function look(model, depth, head, query) {
    const tokens = model.grid[0] * model.grid[1];
    const heads = head === MEAN ? [...Array(model.heads).keys()] : [head];
    const map = new Float64Array(tokens);
    let distance = 0;
    for (const one of heads) {
      const place = ((depth - 1) * model.heads + one) * tokens + query;
      for (let key = 0; key < tokens; key++) map[key] += model.peaks[place] * model.maps[place * tokens + key];
      distance += model.distances[place] / heads.length;
    }
    const peak = Math.max(...map);
    return { map: map.map((value) => value / peak), distance };
  }

  // One model's panel; returns what draws it.
  function panel(model, colours, panels) {
    const [rows, columns] = model.grid;
    const canvas = element("canvas", { width: columns, height: rows, role: "img" });
    const mark = element("div", { class: "query" });
    mark.style.width = `${100 / columns}%`;
    mark.style.height = `${100 / rows}%`;
    const [distance, uniform] = [element("span"), element("span")];
    const caption = element("div", { class: "caption" }, element("strong", {}, model.label), distance, uniform);
    panels.append(element("div", {}, element("div", { class: "frame" }, canvas, mark), caption));

    return (state, grid) => {
      // The same place in the image, where the patch grids of two models differ.
      const row = Math.floor(((state.row + 0.5) / grid[0]) * rows);
      const column = Math.floor(((state.column + 0.5) / grid[1]) * columns);
      mark.style.top = `${(100 * row) / rows}%`;
      mark.style.left = `${(100 * column) / columns}%`;
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
      paint(canvas, seen.map, colours);
      canvas.setAttribute("aria-label", `attention map of ${model.label}`);
      distance.textContent = `attention distance: ${pixels(seen.distance)}`;
      uniform.textContent = `of uniform attention: ${pixels(model.uniform[query])}`;
      return `${model.label} ${pixels(seen.distance)}, uniform attention ${pixels(model.uniform[query])}`;
    };
  }

  // The image with a grid of patches over it, one of them the query.
  function picker(address, grid, pick) {
    const cells = [];
    const rows = [...Array(grid[0]).keys()].map((row) => {
      cells.push([]);
      for (let column = 0; column < grid[1]; column++) {
        const cell = element("div", { role: "gridcell", "aria-label": `row ${row}, column ${column}` });
        cell.addEventListener("click", () => pick(row, column));
        cell.addEventListener("keydown", (event) => {
          const step = STEPS[event.key];
          if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
          event.preventDefault();
          event.stopPropagation();
          pick(clamp(row + step[0], grid[0]), clamp(column + step[1], grid[1]));
        });
        cells[row].push(cell);
      }
      return element("div", { role: "row" }, ...cells[row]);
    });
    const image = element("img", { src: address, alt: "the image", class: "dark-light" });
    const overlay = element("div", { role: "grid", "aria-label": "query patch on the image" }, ...rows);
    return { cells, frame: element("div", { class: "frame" }, image, overlay) };
  }

  function start(host) {
    const content = JSON.parse(host.querySelector("script").textContent);
    const colours = bytes(content.colours);
    const models = content.models.map(unpack);
    const [grid] = models.map((model) => model.grid);
    const last = Math.max(...models.map((model) => model.depth));
    const most = Math.max(...models.map((model) => model.heads));
    const [row, column] = grid.map((size) => Math.floor(size / 2));
    const state = { row, column, depth: last, head: MEAN };

    const depth = element("input", { type: "range", min: 1, max: last, value: last });
    const shown = element("span", { class: "value" });
    const single = most > 1 ? [...Array(most).keys()].map((i) => [i, `head ${i}`]) : [];
    const head = select([[MEAN, "mean over heads"], ...single]);
    const panels = element("div", { class: "panels" });
    const place = element("span");
    const status = element("p", { role: "status" });
    const ramp = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    paint(ramp, Array.from({ length: 256 }, (_, i) => i / 255), colours);

    function draw() {
      const where = `row ${state.row}, column ${state.column}`;
      cells.forEach((line, row) =>
        line.forEach((cell, column) => {
          const chosen = row === state.row && column === state.column;
          cell.setAttribute("aria-selected", chosen);
          cell.tabIndex = chosen ? 0 : -1;
        }),
      );
      place.textContent = where;
      shown.textContent = state.depth;
      const found = draws.map((one) => one(state, grid));
      const heads = head.selectedOptions[0].textContent;
      status.textContent = `Query in ${where}; depth ${state.depth}; ${heads}. Attention distance: ${found.join("; ")}.`;
    }

    function pick(row, column) {
      Object.assign(state, { row, column });
      draw();
      cells[row][column].focus({ preventScroll: true });
    }

    const { cells, frame } = picker(content.image, grid, pick);
    const caption = element("div", { class: "caption" }, element("strong", {}, "query"), place);
    panels.append(element("div", {}, frame, caption));
    const draws = models.map((model) => panel(model, colours, panels));

    depth.addEventListener("input", () => {
      state.depth = Number(depth.value);
      draw();
    });
    head.addEventListener("change", () => {
      state.head = Number(head.value);
      draw();
    });

    host.setAttribute("role", "group");
    host.setAttribute("aria-label", "Attention maps of any query patch");
    host.dataset.lmSuppressShortcuts = "true"; // in JupyterLab arrow keys would move between cells
    const controls = [["Depth", depth, shown], ["Head", head]];
    host.replaceChildren(
      element("div", { class: "controls" }, ...controls.map((parts) => element("label", {}, ...parts))),
      panels,
      element("p", { class: "scale" }, "nothing", ramp, "maximum of the map"),
      ...(content.note ? [element("p", {}, content.note)] : []),
      status,
    );
    draw();
  }

  for (const host of document.querySelectorAll(".attention-maps")) {
    if (!host.hasAttribute("role")) start(host); // those without have not been started
  }
})();
