// The view of the prompt debugger: it draws what the kernel sends and sends back what is done.

const TOOLS = [
  ["point", "Point", "Left click: on the object. Right click: beside it. Drag: a box."],
  ["brush", "Brush", "Paint onto the object's mask"],
  ["erase", "Erase", "Paint off the object's mask"],
];
const SMALLEST = 600; // pixels that a frame is wide at least: smaller ones are enlarged
const DRAG = 5; // pixels from which on a click is a box
const COLORS = { positive: "#009e73", negative: "#d55e00", box: "#f0e442", halo: "#ffffff" };

function make(parent, tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  parent?.append(element);
  return element;
}

function render({ model, el }) {
  const root = make(el, "div", { className: "sam2kit-debugger", tabIndex: 0 });
  root.dataset.lmSuppressShortcuts = "true";
  root.setAttribute("aria-label", "Prompt debugger");
  const send = (type, fields = {}, buffers) =>
    model.send({ type, ...fields }, undefined, buffers);
  const button = (parent, text, title, act, name = text.toLowerCase()) => {
    const made = make(parent, "button", { textContent: text, title, onclick: act });
    made.dataset.name = name;
    return made;
  };
  const bar = (label) => {
    const made = make(root, "div", { className: "bar" });
    made.setAttribute("role", "toolbar");
    made.setAttribute("aria-label", label);
    return made;
  };

  // What is prompted, and with what.
  const objectBar = bar("Objects");
  const videos = make(objectBar, "select", { title: "Video" });
  videos.onchange = () => send("open_video", { video: Number(videos.value) });
  const objects = make(objectBar, "span", { className: "group" });
  const newName = make(objectBar, "input", {
    className: "name", placeholder: "name", title: "Name of a new object; empty: a number",
  });
  button(objectBar, "+ object", "Add an object", () => {
    send("add_object", { identity: newName.value });
    newName.value = "";
  }, "add");

  const toolBar = bar("Tools");
  let tool = "point";
  const tools = TOOLS.map(([name, text, title]) =>
    button(toolBar, text, title, () => { tool = name; update(); }, name));
  const labelled = (parent, text, properties) =>
    make(make(parent, "label", { textContent: text }), "input", properties);
  const radius = labelled(toolBar, "size ", {
    type: "range", min: 1, max: 60, value: 10, title: "Radius of the brush, in pixels of the frame",
  });
  const file = make(root, "input", { type: "file", accept: "image/png", hidden: true });
  file.onchange = async () => {
    if (file.files.length) send("import", {}, [await file.files[0].arrayBuffer()]);
    file.value = "";
  };
  button(toolBar, "Import…", "A PNG whose pixels are the object's mask", () => file.click(), "import");
  const truth = button(toolBar, "Truth", "The true mask as the prompt", () => send("take_truth"));
  const recipes = make(toolBar, "select", { title: "How training would prompt the object" });
  const dice = button(toolBar, "Dice", "Draw a prompt as training does; again: another one",
    () => send("dice", { recipe: recipes.value }), "dice");
  button(toolBar, "Undo", "Take back the last prompt (z)", () => send("undo"));
  button(toolBar, "Clear", "Forget the object's prompts on this frame", () => send("clear"));
  button(toolBar, "Clear all", "Forget all prompts", () => send("clear", { everything: true }),
    "clear-all");

  // The frame.
  const stage = make(root, "div", { className: "stage" });
  const canvas = make(stage, "canvas");
  const strip = make(stage, "div", { className: "candidates" });
  const frameBar = bar("Frames");
  const step = (by) => send("go", { frame: model.get("state").frame + by });
  button(frameBar, "◀", "One frame back (left arrow)", () => step(-1), "back");
  const slider = make(frameBar, "input", { type: "range", min: 0, title: "Frame" });
  slider.className = "wide";
  button(frameBar, "▶", "One frame on (right arrow)", () => step(1), "on");
  const place = make(frameBar, "span", { className: "place" });

  // What is done with it.
  const runBar = bar("Tracking");
  const run = button(runBar, "Propagate", "Track all objects from the first prompt to the end",
    () => send("propagate"));
  const here = button(runBar, "From here", "Track from this frame on: a quick look",
    () => send("propagate", { start: model.get("state").frame }), "here");
  const cancel = button(runBar, "Cancel", "Stop tracking; what is tracked stays",
    () => send("cancel"));
  const progress = make(runBar, "progress", { title: "Frames tracked" });
  const errors = button(runBar, "Errors", "Right in blue, missed in yellow, false alarm in red",
    () => send("view", { mode: model.get("state").mode === "errors" ? "masks" : "errors" }));
  const opacity = labelled(runBar, "masks ", {
    type: "range", min: 0, max: 100, value: 55, title: "Opacity of the masks", oninput: () => draw(),
  });
  button(runBar, "Save", "Write the prompts to prompts.json", () => send("save"));
  button(runBar, "Append to data", "Append this frame's masks to the corrections of the data set",
    () => send("append"), "append");
  const scores = make(root, "div", { className: "scores" });
  const status = make(root, "div", { className: "status" });
  status.setAttribute("role", "status");

  // Frames are asked for one at a time: a slider that is dragged skips those it has passed.
  let wanted = null, asked = null;
  const ask = () => {
    if (wanted === null || asked !== null) return;
    asked = wanted;
    wanted = null;
    send("go", { frame: asked });
  };
  slider.oninput = () => { wanted = Number(slider.value); ask(); };
  root.onkeydown = (event) => {
    if (event.target.tagName === "INPUT" || event.target.tagName === "SELECT") return;
    const act = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), z: () => send("undo") }[event.key];
    if (act && !event.ctrlKey && !event.metaKey) { event.preventDefault(); act(); }
  };

  // Pictures: decoded once, drawn as often as something moves.
  const bitmaps = {};
  async function decode(name) {
    const bytes = model.get(name);
    if (bitmaps[name]?.bytes !== bytes) {
      bitmaps[name] = { bytes, bitmap: await createImageBitmap(new Blob([bytes])) };
    }
  }
  let gesture = null; // {x, y} where the pointer went down, and the pixels it passed
  function draw() {
    const { picture, masks } = bitmaps;
    const state = model.get("state");
    const context = canvas.getContext("2d");
    const zoom = Math.ceil(SMALLEST / picture.bitmap.width);
    if (canvas.width !== picture.bitmap.width * zoom || canvas.height !== picture.bitmap.height * zoom) {
      canvas.width = picture.bitmap.width * zoom;
      canvas.height = picture.bitmap.height * zoom;
    }
    context.imageSmoothingEnabled = false;
    context.globalAlpha = 1;
    context.filter = state.mode === "errors" && state.annotated ? "grayscale(1) brightness(0.8)" : "none";
    context.drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    context.globalAlpha = opacity.value / 100;
    context.drawImage(masks.bitmap, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    const scale = canvas.width / state.size[1];
    const at = (v) => (v + 0.5) * scale; // the centre of a pixel
    for (const mark of state.marks) {
      context.globalAlpha = mark.object === state.object ? 1 : 0.4;
      if (mark.box) outline(context, mark.box.map(at));
      mark.points.forEach(([x, y], n) => point(context, at(x), at(y), mark.labels[n]));
    }
    context.globalAlpha = 1;
    if (gesture?.box) outline(context, gesture.box.map(at));
    if (gesture?.line) {
      context.strokeStyle = tool === "erase" ? COLORS.negative : COLORS.positive;
      context.lineWidth = (2 * Number(radius.value) + 1) * scale;
      context.lineCap = context.lineJoin = "round";
      context.globalAlpha = 0.5;
      context.beginPath();
      gesture.line.forEach(([x, y]) => context.lineTo(at(x), at(y)));
      context.lineTo(at(gesture.x) + 0.01, at(gesture.y));
      context.stroke();
      context.globalAlpha = 1;
    }
  }
  function outline(context, [x0, y0, x1, y1]) {
    for (const [color, width] of [[COLORS.halo, 4], [COLORS.box, 2]]) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
  }
  function point(context, x, y, positive) {
    context.lineWidth = 2;
    context.strokeStyle = COLORS.halo;
    context.fillStyle = positive ? COLORS.positive : COLORS.negative;
    context.beginPath();
    context.arc(x, y, 6, 0, 7);
    context.fill();
    context.stroke();
    context.fillStyle = COLORS.halo;
    context.fillRect(x - 3, y - 1, 6, 2);
    if (positive) context.fillRect(x - 1, y - 3, 2, 6);
  }

  // The pointer, in pixels of the video's frame.
  function pixel(event) {
    const [rows, columns] = model.get("state").size;
    const box = canvas.getBoundingClientRect();
    const along = (value, start, length, count) =>
      Math.min(Math.max(Math.floor(((value - start) / length) * count), 0), count - 1);
    return [along(event.clientX, box.left, box.width, columns),
            along(event.clientY, box.top, box.height, rows)];
  }
  canvas.oncontextmenu = (event) => { event.preventDefault(); event.stopPropagation(); };
  canvas.onpointerdown = (event) => {
    const [x, y] = pixel(event);
    root.focus({ preventScroll: true });
    if (event.button === 2) { send("click", { x, y, positive: false }); return; }
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    gesture = { x, y, from: [event.clientX, event.clientY] };
    if (tool !== "point") { gesture.line = [[x, y]]; draw(); }
  };
  canvas.onpointermove = (event) => {
    if (!gesture) return;
    const [x, y] = pixel(event);
    const far = Math.hypot(event.clientX - gesture.from[0], event.clientY - gesture.from[1]);
    if (gesture.line) gesture.line.push([x, y]);
    else if (far >= DRAG || gesture.box) gesture.box = [gesture.x, gesture.y, x, y];
    draw();
  };
  canvas.onpointerup = () => {
    if (!gesture) return;
    const { x, y, box, line } = gesture;
    gesture = null;
    if (line) send("brush", { points: line, radius: Number(radius.value), erase: tool === "erase" });
    else if (box) send("box", { x0: box[0], y0: box[1], x1: box[2], y1: box[3] });
    else send("click", { x, y, positive: true });
  };
  canvas.onpointercancel = () => { gesture = null; draw(); };

  // Everything around the frame.
  const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));
  function fill(select, names, chosen) {
    if (select.dataset.names !== JSON.stringify(names)) {
      select.dataset.names = JSON.stringify(names);
      select.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
    }
    select.value = chosen;
  }
  function update() {
    const state = model.get("state");
    fill(videos, state.videos.map((name, n) => [n, name]), state.video);
    videos.hidden = state.videos.length < 2;
    fill(recipes, state.recipes.map((name) => [name, name]), state.recipe);
    objects.replaceChildren(...state.objects.map(({ name, color, mask }, n) => {
      const chip = button(null, name, `Prompt object ${name}`, () => send("select", { index: n }), `object-${n}`);
      chip.prepend(make(null, "i", { style: `background: rgb(${color})` }));
      chip.setAttribute("aria-pressed", n === state.object);
      chip.classList.toggle("bare", !mask);
      return chip;
    }));
    tools.forEach((made) => made.setAttribute("aria-pressed", made.dataset.name === tool));
    radius.disabled = tool === "point";
    truth.disabled = !state.annotated;
    dice.title = `Draw a prompt as training does; again: another one (draw ${state.seed})`;
    errors.disabled = !state.annotated;
    errors.setAttribute("aria-pressed", state.mode === "errors");
    slider.max = state.frames - 1;
    if (wanted === null && document.activeElement !== slider) slider.value = state.frame;
    place.textContent = `frame ${state.frame} of ${state.frames}`
      + (state.prompted.includes(state.frame) ? " · prompted" : "")
      + (state.annotated ? " · annotated" : "");
    strip.replaceChildren(...model.get("candidates").map((bytes, n) => {
      const url = URL.createObjectURL(new Blob([bytes]));
      const made = make(null, "button", { title: `Take candidate ${n + 1}`, onclick: () => send("choose", { candidate: n }) });
      made.dataset.name = `candidate-${n}`;
      made.setAttribute("aria-pressed", n === state.chosen);
      make(made, "img", { src: url, alt: `candidate ${n + 1}`, onload: () => URL.revokeObjectURL(url) });
      make(made, "span", { textContent: `predicted IoU ${number(state.ious[n])}` });
      return made;
    }));
    run.disabled = here.disabled = state.running;
    cancel.disabled = !state.running;
    progress.max = state.total || 1;
    progress.value = state.done;
    const parts = [];
    if (state.j !== null) parts.push(`J ${number(state.j)} on this frame`);
    if (state.mean_j !== null) parts.push(`mean J ${number(state.mean_j)} over the tracked frames`);
    if (state.score !== null) parts.push(`object score ${number(state.score, 1)}`);
    if (state.stale) parts.push("prompts have changed since it was tracked");
    scores.textContent = parts.join(" · ");
    const error = model.get("error");
    status.textContent = error || state.message;
    status.classList.toggle("error", Boolean(error));
  }

  async function paint() {
    const seq = model.get("seq");
    await Promise.all([decode("picture"), decode("masks")]);
    if (seq !== model.get("seq")) return; // a newer state is on its way to be painted
    update();
    draw();
    root.dataset.seq = seq;
    root.dataset.ready = "true";
    asked = null;
    ask();
  }
  model.on("change:seq", paint);
  paint();
  send("ready");
  return () => model.off("change:seq", paint);
}

export default { render };
