// The reader's own picture: choose one, let a Worker run the encoders, look at what it answers. The data are
// those of nbhelpers/own_picture; the Worker is made of core.js. Nothing leaves the browser.
const LARGEST = 2048; // px; a canvas of a whole photograph from a camera is too much for some phones
const SVG = "http://www.w3.org/2000/svg";
const CHARTS = [
  ["nmi", "normalised mutual information", (value) => value.toFixed(3)],
  ["attention_distance", "attention distance (px)", (value) => value.toFixed(1)],
];

// Where weights arrive when their script is run, and, for the curious at the browser's console, the results.
const shared = (window.ownPicture ??= { results: {}, arrived: {}, receive: (c) => (shared.arrived[c.name] = c) });

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const megabytes = (models) => `${(models.reduce((sum, { bytes }) => sum + bytes, 0) / 1e6).toFixed(1)}\u00a0MB`;

const drawn = (name, attributes, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

// Runs the script that hands over a model's weights. Scripts load from a disk too, where fetch may not.
function weights(model) {
  return new Promise((resolve, reject) => {
    const script = element("script", { src: model.file });
    script.onload = () => {
      const content = shared.arrived[model.name];
      delete shared.arrived[model.name]; // the Worker keeps them; the page need not
      script.remove();
      content ? resolve(content) : reject(new Error(`${model.file} holds no weights of ${model.name}.`));
    };
    script.onerror = () => reject(new Error(`The weights ${model.file} could not be loaded.`));
    document.head.append(script);
  });
}

// The square in the middle of an image as a canvas gives it: { rgba (side side 4), side }.
function square(image) {
  const whole = Math.min(image.naturalWidth, image.naturalHeight);
  const side = Math.min(whole, LARGEST);
  const canvas = element("canvas", { width: side, height: side });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, side, side);
  const [left, top] = [(image.naturalWidth - whole) / 2, (image.naturalHeight - whole) / 2];
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, whole, whole, 0, 0, side, side);
  return { rgba: context.getImageData(0, 0, side, side).data, side };
}

async function decoded(address) {
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
  } catch {
    throw new Error("This file is no picture that this browser can read.");
  }
  return image;
}

// Map of a query (N) in one head or averaged over heads, and its attention distance.
function attention({ maps, distances, heads, size, patch }, { depth, head }, query) {
  const n = (size / patch) ** 2;
  const chosen = head === MEAN ? range(heads) : [head];
  const rows = chosen.map((one) => ((depth - 1) * heads + one) * n + query);
  const map = range(n).map((key) => mean(rows.map((row) => maps[row * n + key])));
  return { map, distance: mean(rows.map((row) => distances[row])) };
}

// A metric of this picture by depth (L), in one head or averaged over heads.
function curve(result, metric, head) {
  const { depth, heads } = result;
  const n = result.uniform.length;
  const one = (l, h) =>
    metric === "nmi"
      ? result.nmi[l * heads + h]
      : mean([...result.distances.subarray((l * heads + h) * n, (l * heads + h + 1) * n)]);
  return range(depth).map((l) => mean((head === MEAN ? range(heads) : [head]).map((h) => one(l, h))));
}

// Round steps of an axis from 0 to `highest`, four at most.
function steps(highest) {
  const unit = 10 ** Math.floor(Math.log10(highest / 4));
  const step = [1, 2, 5, 10].map((k) => k * unit).find((each) => highest / each <= 4) ?? 10 * unit;
  return range(Math.floor(highest / step) + 1).map((k) => k * step);
}

// Lines [{ values, colour, dashed, square }] against depth 1..L, with a mark at the depth that is looked at.
function chart(lines, depth, name) {
  const [width, height, left, bottom] = [320, 170, 38, 34];
  const last = lines[0].values.length;
  const highest = 1.05 * Math.max(...lines.flatMap(({ values }) => values), 1e-3);
  const x = (d) => left + ((width - left - 10) * (d - 1)) / Math.max(last - 1, 1);
  const y = (value) => height - bottom - (value / highest) * (height - bottom - 8);
  const text = (attributes, content) => drawn("text", attributes, content);
  const parts = [drawn("line", { x1: x(depth), x2: x(depth), y1: y(0), y2: y(highest), class: "here" })];
  for (const step of steps(highest)) {
    const label = Number(step.toPrecision(3));
    parts.push(drawn("line", { x1: left, x2: width - 10, y1: y(step), y2: y(step), class: "rule" }));
    parts.push(text({ x: left - 5, y: y(step) + 4, "text-anchor": "end" }, `${label}`));
  }
  for (const d of range(last)) parts.push(text({ x: x(d + 1), y: height - 18, "text-anchor": "middle" }, d + 1));
  parts.push(text({ x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, "depth"));
  for (const { values, colour, dashed, square } of lines) {
    const points = values.map((value, i) => [x(i + 1), y(value)]);
    const dash = dashed ? { "stroke-dasharray": "5 4" } : {};
    parts.push(drawn("polyline", { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": 2, ...dash }));
    for (const [cx, cy] of dashed ? [] : points) {
      const mark = square ? { x: cx - 3, y: cy - 3, width: 6, height: 6 } : { cx, cy, r: 3.5 };
      parts.push(drawn(square ? "rect" : "circle", { ...mark, fill: colour }));
    }
  }
  return drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name }, ...parts);
}

// One small picture of a model with the query outlined on it and lines of text below.
function view(grid, title, alternative) {
  const { canvas, mark, frame } = markedCanvas(grid, grid, { "aria-label": alternative });
  const note = element("span");
  const caption = element("div", { class: "caption" }, element("span", {}, title), note);
  const show = ({ row, column }, colour, text) => {
    mark(row, column);
    paint(canvas, colour);
    note.textContent = text;
  };
  return { show, box: element("div", {}, frame, caption) };
}

// A model's row of views; `draw` returns what is said of it.
function panel(model, result, ramp) {
  const grid = result.size / result.patch;
  const n = grid * grid;
  const seen = view(grid, "attention of the query", `attention map of ${model.label}`);
  const alike = view(grid, "similarity to the query", `cosine similarity of tokens to the query, ${model.label}`);
  const parts = view(grid, "principal components", `principal components of tokens, ${model.label}`);
  const box = element(
    "div",
    { role: "group", "aria-label": model.label },
    element("strong", {}, model.label),
    element("div", { class: "views" }, seen.box, alike.box, parts.box),
  );
  const draw = (state) => {
    const query = state.row * grid + state.column;
    const { map, distance } = attention(result, state, query);
    const peak = Math.max(...map);
    const uniform = result.uniform[query];
    seen.show(state, (i) => ramp(map[i] / peak), `distance ${pixels(distance)}, uniform ${pixels(uniform)}`);
    const start = ((state.depth - 1) * n + query) * n;
    const cosines = result.cosines.subarray(start, start + n);
    const others = (mean([...cosines]) * n - 1) / (n - 1);
    alike.show(state, (i) => ramp(Math.max(cosines[i], 0)), `mean ${others.toFixed(2)}`);
    const rgb = (i) => range(3).map((c) => 255 * result.colours[((state.depth - 1) * n + i) * 3 + c]);
    parts.show(state, rgb, `${Math.round(100 * result.explained[state.depth - 1])} % of variance`);
    return `${model.label} attention distance ${pixels(distance)}, mean similarity ${others.toFixed(2)}`;
  };
  return { box, draw };
}

function start(host, content) {
  const core = host.querySelector("script[type='text/plain']").textContent;
  const code = `${core}; onmessage = (event) => ownPictureCore.answer(event.data, postMessage);`;
  const { ramp, scale } = colourScale(content.colours);
  const state = { row: 3, column: 3, depth: Infinity, head: MEAN, group: 0 };
  const loaded = {}; // by model: the promise of its weights in the Worker
  let worker = null; // made with the first picture
  let [ticket, current, waiting] = [0, null, {}];
  let [patches, panels, results] = [{ cells: [] }, [], []];

  const group = element("select", {}, ...options(content.groups.map(({ title }, i) => [i, title])));
  const depth = element("input", { type: "range", min: 1 });
  const shown = element("span", { class: "value" });
  const head = element("select");
  const file = element("input", { type: "file", accept: "image/*" });
  const message = element("p", { class: "message", role: "status" });
  const summary = element("p", { class: "summary", role: "status" });
  const views = element("div", { class: "panels" });
  const charts = element("div", { class: "charts" });
  const offers = content.pictures.map((picture) => {
    const image = element("img", { src: picture.image, alt: picture.title, class: "dark-light" });
    const button = element("button", { type: "button", "aria-pressed": "false", title: picture.title }, image);
    button.addEventListener("click", () => take(picture.image, picture.title, picture.group));
    return button;
  });

  // The Worker gets a model's weights once.
  function fetched(model) {
    loaded[model.name] ??= weights(model).then((found) => worker.postMessage({ content: found }));
    loaded[model.name].catch(() => delete loaded[model.name]); // the next picture tries again
    return loaded[model.name];
  }

  function answered({ data }) {
    if (data.ticket !== ticket) return; // of a picture that was left behind
    waiting.answers[data.name] = data;
    const { models } = content.groups[state.group];
    if (models.every(({ name }) => waiting.answers[name])) show(models, waiting.answers);
  }

  function hire() {
    worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    worker.onmessage = answered;
    worker.onerror = (event) => (message.textContent = `The computation failed: ${event.message}`);
  }

  // Lets the encoders of a group look at a picture.
  async function take(address, title, number) {
    const own = ++ticket;
    const { models } = content.groups[number];
    try {
      message.textContent = "Reading the picture \u2026";
      const image = await decoded(address);
      if (own !== ticket) return;
      Object.assign(state, { group: number });
      current = { address, title, image };
      waiting = { answers: {} };
      group.value = number;
      offers.forEach((button, i) =>
        button.setAttribute("aria-pressed", content.pictures[i].image === address),
      );
      message.textContent = `Loading the encoders, ${megabytes(models)} \u2026`;
      if (!worker) hire();
      await Promise.all(models.map(fetched));
      if (own !== ticket) return;
      message.textContent = "Computing \u2026";
      const { rgba, side } = square(image);
      worker.postMessage({ ticket, rgba, side, names: models.map(({ name }) => name) }, [rgba.buffer]);
    } catch (error) {
      if (own === ticket) message.textContent = error.message;
    }
  }

  function pick(row, column) {
    Object.assign(state, { row, column });
    draw();
    patches.cells[row][column].focus({ preventScroll: true });
  }

  // New answers: the picture, a picker over it, a panel for each model.
  function show(models, answers) {
    const focused = patches.cells.flat().includes(document.activeElement);
    results = models.map((model) => ({ model, result: answers[model.name] }));
    Object.assign(shared.results, answers);
    const { pixels: small, size, patch } = results[0].result;
    const grid = size / patch;
    [state.row, state.column] = [clamp(state.row, grid), clamp(state.column, grid)];
    depth.max = Math.min(...results.map(({ result }) => result.depth));
    state.depth = Math.min(state.depth, depth.max);
    const heads = Math.min(...results.map(({ result }) => result.heads));
    state.head = state.head < heads ? state.head : MEAN;
    head.replaceChildren(...headOptions(heads));
    [depth.value, head.value] = [state.depth, state.head];

    const { image, title } = current;
    const given = element("img", { src: image.src, alt: title, class: "dark-light given" });
    const canvas = element("canvas", { width: size, height: size, "aria-hidden": "true" });
    patches = picker(canvas, grid, grid, "query patch", pick);
    paint(canvas, (i) => small.subarray(3 * i, 3 * i + 3));
    panels = results.map(({ model, result }) => panel(model, result, ramp));
    const caption = (text) => element("div", { class: "caption" }, text);
    views.replaceChildren(
      element("div", {}, given, caption(`${title}, ${image.naturalWidth} \u00d7 ${image.naturalHeight} px`)),
      element("div", {}, patches.frame, caption(`as the encoders see it, ${size} \u00d7 ${size} px`)),
      ...panels.map(({ box }) => box),
    );
    message.textContent = `${title}: click a patch of the picture, or move the outlined one with the arrow keys.`;
    found.hidden = false;
    draw();
    if (focused) patches.cells[state.row][state.column].focus({ preventScroll: true });
  }

  function drawCharts() {
    const at = state.depth - 1;
    const who = head.selectedOptions[0].textContent;
    const made = CHARTS.map(([metric, title, write]) => {
      const lines = results.flatMap(({ model, result }, i) => {
        const style = { colour: model.colour, square: i > 0 };
        return [
          { ...style, values: model.curves[metric][state.head + 1], dashed: true },
          { ...style, values: curve(result, metric, state.head) },
        ];
      });
      const values = results.map(({ model }, i) => {
        const [book, here] = [lines[2 * i], lines[2 * i + 1]].map(({ values }) => write(values[at]));
        return `${model.label} ${here} (book ${book})`;
      });
      const text = `Depth ${state.depth}, ${who}: ${values.join(", ")}`;
      const name = `${title} by depth, of this picture and of the book. ${text}`;
      return element("div", {}, element("strong", {}, title), chart(lines, state.depth, name), element("div", { class: "caption" }, text));
    });
    const legend = results.map(({ model }, i) => {
      const swatch = (dashed) => {
        const line = { x1: 0, x2: 26, y1: 5, y2: 5, stroke: model.colour, "stroke-width": 2 };
        const dash = dashed ? { "stroke-dasharray": "5 4" } : {};
        const mark = i > 0 ? drawn("rect", { x: 10, y: 2, width: 6, height: 6, fill: model.colour }) : drawn("circle", { cx: 13, cy: 5, r: 3.5, fill: model.colour });
        return drawn("svg", { width: 26, height: 10, "aria-hidden": "true" }, drawn("line", { ...line, ...dash }), ...(dashed ? [] : [mark]));
      };
      const images = model.images.toLocaleString("en");
      return element("span", {}, swatch(false), ` ${model.label}, this picture `, swatch(true), ` mean of ${images} test images`);
    });
    charts.replaceChildren(...made, element("p", { class: "legend" }, ...legend));
  }

  function draw() {
    patches.choose(state);
    shown.textContent = state.depth;
    const said = panels.map((one) => one.draw(state));
    drawCharts();
    const who = head.selectedOptions[0].textContent;
    summary.textContent = `Query in ${place(state)}; depth ${state.depth}; ${who}. ${said.join("; ")}.`;
  }

  function own(files) {
    if (files.length) take(URL.createObjectURL(files[0]), files[0].name, state.group);
  }

  file.addEventListener("change", () => own(file.files));
  host.addEventListener("dragover", (event) => event.preventDefault());
  host.addEventListener("drop", (event) => {
    event.preventDefault();
    own(event.dataTransfer.files);
  });
  group.addEventListener("change", () => take(current.address, current.title, Number(group.value)));
  follow(state, draw, depth, head);

  const found = element(
    "div",
    {},
    controls(["Encoders of", group], ["Depth", depth, shown], ["Head", head]),
    views,
    element("p", { class: "scale" }, "attention: nothing", scale, "maximum of the map; similarity: 0 to 1"),
    charts,
    summary,
  );
  found.hidden = true;
  message.textContent =
    `Nothing is loaded yet. With the first picture, encoders of ${megabytes(content.groups[0].models)} come ` +
    "into this browser; your picture stays in it.";
  host.replaceChildren(
    element("div", { class: "offers" }, ...offers),
    element("label", { class: "own" }, "Your own picture (or drop it here)", file),
    message,
    found,
  );
}

startAll("own-picture", "Attention maps of your own picture", start);
