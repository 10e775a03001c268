// The view of the prompt debugger: draws the state that the kernel (annotator.py) sends, and sends
// user actions back.

const TOOLS = [
  ["point", "Point", "Left click: on the object. Right click: off the object. Drag: a box."],
  ["brush", "Brush", "Paint onto the object's mask"],
  ["erase", "Erase", "Erase from the object's mask"],
];
const MIN_WIDTH = 600; // of the canvas, in pixels; smaller frames are enlarged
const DRAG_DISTANCE = 5; // in pixels; a shorter movement is a click, a longer one a box
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
  // A message {type: NAME, ...} calls the method on_NAME of the widget in the kernel.
  const send = (type, fields = {}, buffers) =>
    model.send({ type, ...fields }, undefined, buffers);
  const button = (parent, text, title, act, name = text.toLowerCase()) => {
    const element = make(parent, "button", { textContent: text, title, onclick: act });
    element.dataset.name = name; // tests find the button by this name
    return element;
  };
  const bar = (label) => {
    const element = make(root, "div", { className: "bar" });
    element.setAttribute("role", "toolbar");
    element.setAttribute("aria-label", label);
    return element;
  };

  // The video, the objects and the prompt tools.
  const objectBar = bar("Objects");
  const videos = make(objectBar, "select", { title: "Video" });
  videos.onchange = () => send("open_video", { video: Number(videos.value) });
  const objects = make(objectBar, "span", { className: "group" });
  const newName = make(objectBar, "input", {
    className: "name", placeholder: "name",
    title: "Name of the new object; empty: the next free number",
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
    type: "range", min: 1, max: 60, value: 10, title: "Radius of the brush in pixels of the frame",
  });
  const file = make(root, "input", { type: "file", accept: "image/png", hidden: true });
  file.onchange = async () => {
    if (file.files.length) send("import", {}, [await file.files[0].arrayBuffer()]);
    file.value = "";
  };
  button(toolBar, "Import…", "Use the nonzero pixels of a PNG as the object's mask",
    () => file.click(), "import");
  const truth = button(toolBar, "Ground truth", "Use the ground truth mask as the prompt",
    () => send("take_truth"), "truth");
  const recipes = make(toolBar, "select", { title: "Recipe of the random prompt" });
  const dice = button(toolBar, "Dice", "Draw a random prompt as in training; each press draws another",
    () => send("dice", { recipe: recipes.value }), "dice");
  button(toolBar, "Undo", "Revert the last edit (z)", () => send("undo"));
  button(toolBar, "Clear", "Remove the object's prompts on this frame", () => send("clear"));
  button(toolBar, "Clear all", "Remove all prompts", () => send("clear", { everything: true }),
    "clear-all");

  // The frame.
  const stage = make(root, "div", { className: "stage" });
  const canvas = make(stage, "canvas");
  const strip = make(stage, "div", { className: "candidates" });
  const frameBar = bar("Frames");
  const step = (by) => send("go", { frame: model.get("state").frame + by });
  button(frameBar, "◀", "Previous frame (left arrow)", () => step(-1), "back");
  const slider = make(frameBar, "input", { type: "range", min: 0, title: "Frame" });
  slider.className = "wide";
  button(frameBar, "▶", "Next frame (right arrow)", () => step(1), "next");
  const position = make(frameBar, "span", {
    className: "position", title: "Index of the frame and of the last frame, from 0",
  });

  // Tracking, display and files.
  const runBar = bar("Tracking");
  const run = button(runBar, "Propagate", "Track all objects from the first prompt to the end",
    () => send("propagate"));
  const preview = button(runBar, "From here",
    "Quick preview: track from this frame with only the memories of the prompts",
    () => send("propagate", { start: model.get("state").frame }), "here");
  const cancel = button(runBar, "Cancel", "Stop tracking and keep the results so far",
    () => send("cancel"));
  const progress = make(runBar, "progress", { title: "Frames tracked" });
  const errors = button(runBar, "Errors",
    "Hits in blue, missed pixels in yellow, false positives in red",
    () => send("view", { mode: model.get("state").mode === "errors" ? "masks" : "errors" }));
  const opacity = labelled(runBar, "masks ", {
    type: "range", min: 0, max: 100, value: 55, title: "Opacity of the masks", oninput: () => draw(),
  });
  button(runBar, "Save", "Write the prompts to prompts.json", () => send("save"));
  button(runBar, "Append to data", "Append this frame's masks to the corrections of the dataset",
    () => send("append"), "append");
  const scores = make(root, "div", { className: "scores" });
  const status = make(root, "div", { className: "status" });
  status.setAttribute("role", "status");

  // One frame is requested at a time. While the slider is dragged, frames that it has passed in the
  // meantime are never requested, so the kernel keeps up.
  let nextFrame = null, requestedFrame = null;
  const requestFrame = () => {
    if (nextFrame === null || requestedFrame !== null) return;
    requestedFrame = nextFrame;
    nextFrame = null;
    send("go", { frame: requestedFrame });
  };
  slider.oninput = () => { nextFrame = Number(slider.value); requestFrame(); };
  root.onkeydown = (event) => {
    if (event.target.tagName === "INPUT" || event.target.tagName === "SELECT") return;
    const act = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), z: () => send("undo") }[event.key];
    if (act && !event.ctrlKey && !event.metaKey) { event.preventDefault(); act(); }
  };

  // Images are decoded once per change and redrawn on every movement of the pointer.
  const bitmaps = {};
  async function decode(name) {
    const bytes = model.get(name);
    if (bitmaps[name]?.bytes !== bytes) {
      bitmaps[name] = { bytes, bitmap: await createImageBitmap(new Blob([bytes])) };
    }
  }
  let gesture = null; // {x, y} of the pressed pointer, and the box or line drawn so far
  function draw() {
    const { picture, masks } = bitmaps;
    const state = model.get("state");
    const context = canvas.getContext("2d");
    const zoom = Math.ceil(MIN_WIDTH / picture.bitmap.width);
    if (canvas.width !== picture.bitmap.width * zoom || canvas.height !== picture.bitmap.height * zoom) {
      canvas.width = picture.bitmap.width * zoom;
      canvas.height = picture.bitmap.height * zoom;
    }
    context.imageSmoothingEnabled = false; // enlarged pixels stay sharp
    context.globalAlpha = 1;
    context.filter = state.mode === "errors" && state.annotated ? "grayscale(1) brightness(0.8)" : "none";
    context.drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    context.globalAlpha = opacity.value / 100;
    context.drawImage(masks.bitmap, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    const scale = canvas.width / state.size[1];
    const at = (v) => (v + 0.5) * scale; // centre of a pixel
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
      // A line without length would not be drawn.
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

  // Position of the pointer in pixels of the video's frame, which may be larger than the image sent.
  function pixel(event) {
    const [rows, columns] = model.get("state").size;
    const box = canvas.getBoundingClientRect();
    const pixelIndex = (value, start, length, count) =>
      Math.min(Math.max(Math.floor(((value - start) / length) * count), 0), count - 1);
    return [pixelIndex(event.clientX, box.left, box.width, columns),
      pixelIndex(event.clientY, box.top, box.height, rows)];
  }
  // The right button is the negative click: neither the browser nor JupyterLab opens a menu.
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
    const distance = Math.hypot(event.clientX - gesture.from[0], event.clientY - gesture.from[1]);
    if (gesture.line) gesture.line.push([x, y]);
    else if (distance >= DRAG_DISTANCE || gesture.box) gesture.box = [gesture.x, gesture.y, x, y];
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

  // Controls and texts.
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
    if (nextFrame === null && document.activeElement !== slider) slider.value = state.frame;
    position.textContent = `frame ${state.frame} / ${state.frames - 1}`
      + (state.prompted.includes(state.frame) ? " · prompted" : "")
      + (state.annotated ? " · annotated" : "");
    strip.replaceChildren(...model.get("candidates").map((bytes, n) => {
      const url = URL.createObjectURL(new Blob([bytes]));
      const element = make(null, "button", {
        title: `Use candidate ${n + 1} as the mask`, onclick: () => send("choose", { candidate: n }),
      });
      element.dataset.name = `candidate-${n}`;
      element.setAttribute("aria-pressed", n === state.chosen);
      const onload = () => URL.revokeObjectURL(url);
      make(element, "img", { src: url, alt: `candidate ${n + 1}`, onload });
      make(element, "span", { textContent: `predicted IoU ${number(state.ious[n])}` });
      return element;
    }));
    run.disabled = preview.disabled = state.running;
    cancel.disabled = !state.running;
    progress.max = state.total || 1;
    progress.value = state.done;
    const parts = [];
    if (state.j !== null) parts.push(`J ${number(state.j)} on this frame`);
    if (state.mean_j !== null) parts.push(`mean J ${number(state.mean_j)} over the tracked frames`);
    if (state.score !== null) parts.push(`object score ${number(state.score, 1)}`);
    if (state.stale) parts.push("tracked masks are stale: press Propagate");
    scores.textContent = parts.join(" · ");
    const error = model.get("error");
    status.textContent = error || state.message;
    status.classList.toggle("error", Boolean(error));
  }

  async function paint() {
    const seq = model.get("seq");
    await Promise.all([decode("picture"), decode("masks")]);
    if (seq !== model.get("seq")) return; // a newer state arrived while decoding
    update();
    draw();
    root.dataset.seq = seq;
    root.dataset.ready = "true";
    requestedFrame = null;
    requestFrame();
  }
  model.on("change:seq", paint);
  paint();
  send("ready");
  return () => model.off("change:seq", paint);
}

export default { render };
