// View of the annotator: draws the state that the kernel (annotator.py) sends and sends user actions
// back. common.js is prepended to this file.

const TOOLS = [
  ["point", "Click", "Left click: on the object. Right click: off the object. Drag: a box (c)"],
  ["brush", "Brush", "Paint onto the object's mask (b)"],
  ["erase", "Erase", "Erase from the object's mask (e)"],
];
const MAX_HEIGHT = 620; // of the frame, in CSS pixels
const DRAG_DISTANCE = 5; // in CSS pixels; a shorter drag is a click, a longer one draws a box
const ANSWER_SECONDS = 15; // then the view reports that the kernel does not respond
const PLAY_INTERVAL = 60; // milliseconds between two frames, if the kernel is fast enough
const TRACKS = [ // timeline markers: name, text, shape
  ["prompted", "prompted", "dot"],
  ["corrected", "corrected", "dot"],
  ["tracked", "tracked", "bar"],
  ["accepted", "accepted", "bar"],
  ["annotated", "annotated", "bar"],
];
const DIRECTIONS = [
  ["backward", "◀ Track back", "Track backward from the prompts"],
  ["both", "◀ Both ▶", "Track backward and forward from the prompts"],
  ["forward", "Track ▶", "Track forward from the first prompt, or within the range (t)"],
];

const number = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits));
const hex = (color) => `#${color.map((v) => v.toString(16).padStart(2, "0")).join("")}`;
const duration = (seconds) =>
  seconds < 90 ? `${Math.round(seconds)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;

class Annotator {
  constructor(model, el) {
    this.model = model;
    this.tool = "point";
    this.shows = { masks: true, outlines: true, prompts: true };
    this.opacity = 0.45;
    this.gesture = null; // the pressed pointer, and the current box or stroke
    this.pointer = null; // position over the canvas, for the outline of the brush
    this.pending = []; // clicks without an answer from the kernel
    this.nextFrame = this.requestedFrame = null;
    this.build(el);
    this.listen();
    this.painted = () => this.paint();
    model.on("change:seq", this.painted);
    this.paint();
    this.send("ready");
  }

  // A message {type: NAME, ...} calls the method on_NAME of the widget in the kernel.
  send(type, fields = {}, buffers = undefined) {
    this.model.send({ type, ...fields }, undefined, buffers);
    this.sent ??= performance.now();
  }

  get state() {
    return this.model.get("state");
  }

  get objects() {
    return this.model.get("objects");
  }

  // ------------------------------------------------------------------ elements

  button(parent, text, title, act, name = text.toLowerCase()) {
    const element = make("button", { type: "button", textContent: text, title, onclick: act }, parent);
    element.dataset.name = name; // tests select the button by this name
    return element;
  }

  group(parent, label) {
    const element = make("div", { className: "group", role: "toolbar" }, parent);
    element.setAttribute("aria-label", label);
    return element;
  }

  field(parent, text, attributes) {
    const label = make("label", { textContent: text }, parent);
    return make("input", attributes, label);
  }

  section(parent, title) {
    const element = make("section", {}, parent);
    const head = make("header", {}, element);
    return { element, head, title: make("h4", { textContent: title }, head) };
  }

  build(el) {
    const root = (this.root = make("div", { className: "sam2kit sam2kit-annotator", tabIndex: 0 }, el));
    root.setAttribute("aria-label", "Annotator");
    this.buildData(make("div", { className: "bar" }, root));
    this.buildTools(make("div", { className: "bar" }, root));
    const main = make("div", { className: "main" }, root);
    this.buildStage(make("div", { className: "left" }, main));
    const side = make("div", { className: "side" }, main);
    this.buildObjects(side);
    this.buildCandidates(side);
    this.buildChecks(side);
    this.buildTracking(make("div", { className: "bar" }, root));
    this.buildResults(make("div", { className: "bar" }, root));
    this.scores = make("div", { className: "scores" }, root);
    this.status = make("div", { className: "status", role: "status" }, root);
    this.report = make("div", { className: "report", hidden: true }, root);
  }

  // The video, the folder and the model.
  buildData(bar) {
    this.videoLabel = make("label", { textContent: "video" }, bar);
    this.videos = make("select", { title: "Video" }, this.videoLabel);
    this.videos.onchange = () => this.send("open_video", { video: Number(this.videos.value) });
    setIcon(this.button(bar, "", "Reload the video and its annotations from disk",
      () => this.send("open_video", { video: this.state.video }), "reload"), "reload");
    const open = (name, title, type, key) => {
      const input = this.field(bar, key, { type: "text", className: "path", title, spellcheck: false });
      input.dataset.name = name;
      input.onchange = () => {
        if (!input.value.trim()) return this.paint();
        this.wait(`opening ${input.value}…`);
        this.send(type, { [key]: input.value.trim() });
      };
      input.onkeydown = (event) => event.key === "Enter" && (input.blur(), this.keyboard.focus());
      return input;
    };
    this.folder = open("folder", "Directory or video file; press Enter to open it", "open_folder", "folder");
    this.modelField = open("model",
      "Model name, run directory or checkpoint; press Enter to load it", "open_model", "model");
    this.modelNames = make("datalist", { id: `sam2kit-models-${Math.random()}` }, bar);
    this.modelField.setAttribute("list", this.modelNames.id);
    make("span", { className: "space" }, bar);
    this.undo = this.button(bar, "Undo", "Revert the last edit (z)", () => this.send("undo"));
    this.redo = this.button(bar, "Redo", "Redo the reverted edit (y)", () => this.send("redo"));
    this.button(bar, "?", "Keyboard shortcuts (?)", () => this.keyboard.help(), "help");
  }

  buildTools(bar) {
    const tools = this.group(bar, "Tools");
    this.tools = TOOLS.map(([name, text, title]) =>
      this.button(tools, text, title, () => this.choose(name), name));
    this.radius = this.field(bar, "size", {
      type: "range", min: 1, max: 100, value: 10,
      title: "Brush radius in pixels of the frame ([ and ])", oninput: () => this.redraw(),
    });
    this.imported = make("input", { type: "file", accept: "image/*", hidden: true }, this.root);
    this.imported.onchange = async () => {
      const { files } = this.imported;
      if (files.length) this.send(this.importType, {}, [await files[0].arrayBuffer()]);
      this.imported.value = "";
    };
    const prompts = this.group(bar, "Prompts");
    this.button(prompts, "Mask file…", "Import an image and use its nonzero pixels as the object's mask",
      () => this.pick("import"), "import");
    this.truth = this.button(prompts, "Ground truth", "Use the ground truth mask as the prompt",
      () => this.send("take_truth"), "truth");
    this.recipes = make("select", { title: "Recipe of the random prompt" }, prompts);
    this.random = this.button(prompts, "Random prompt",
      "Sample a random prompt as in training; press again for another",
      () => this.send("random_prompt", { recipe: this.recipes.value }), "random");
    this.button(prompts, "Clear", "Remove the object's prompts on this frame (Del)",
      () => this.send("clear"));
    this.button(prompts, "Clear all", "Remove all prompts of the video; Undo restores them",
      () => this.send("clear", { everything: true }), "clear-all");
  }

  buildStage(parent) {
    this.stage = make("div", { className: "stage" }, parent);
    this.canvas = make("canvas", {}, this.stage);
    this.badges = make("div", { className: "badges" }, this.stage);
    const zoom = make("div", { className: "zoom" }, this.stage);
    this.button(zoom, "−", "Zoom out (−)", () => this.viewport.zoomBy(1 / ZOOM_STEP), "zoom-out");
    this.zoomText = this.button(zoom, "1×", "Fit the whole frame (f)", () => this.viewport.fit(), "fit");
    this.button(zoom, "+", "Zoom in (+)", () => this.viewport.zoomBy(ZOOM_STEP), "zoom-in");
    const frames = make("div", { className: "bar frames" }, parent);
    setIcon(this.button(frames, "", "Previous frame (←)", () => this.step(-1), "back"), "back");
    this.playButton = this.button(frames, "", "Play, pause (Space)", () => this.play(), "play");
    setIcon(this.playButton, "play");
    setIcon(this.button(frames, "", "Next frame (→)", () => this.step(1), "next"), "next");
    this.position = make("output", { className: "position", title: FRAME_TITLE }, frames);
    const toggles = make("span", { className: "toggles" }, frames);
    this.boxes = {};
    for (const name of Object.keys(this.shows)) {
      const label = make("label", {}, toggles);
      this.boxes[name] = make("input", { type: "checkbox", checked: true, title: `Show the ${name}` }, label);
      this.boxes[name].onchange = () => this.toggle(name);
      label.append(name);
    }
    const errors = make("label", {}, toggles);
    this.errors = make("input", {
      type: "checkbox",
      title: "Errors of the selected object: hits in blue, missed pixels in yellow, false positives in red",
      onchange: () => this.send("view", { mode: this.errors.checked ? "errors" : "masks" }),
    }, errors);
    this.errors.dataset.name = "errors";
    errors.append("errors");
    this.opacityField = make("input", {
      type: "range", min: 0, max: 100, value: 100 * this.opacity, title: "Mask opacity (, and .)",
      oninput: () => ((this.opacity = this.opacityField.value / 100), this.redraw()),
    }, toggles);
    this.slider = make("input", { type: "range", min: 0, title: "Frame", className: "frame-slider" }, parent);
    this.slider.oninput = () => (this.stop(), this.go(Number(this.slider.value)));
    this.timeline = make("canvas", {
      className: "timeline", title: "Timeline: click to jump to a frame",
    }, parent);
    this.legend = make("div", { className: "legend" }, parent);
    this.viewport = new Viewport(this.canvas, () => this.zoomed());
  }

  buildObjects(parent) {
    const { head, element } = this.section(parent, "Objects");
    this.allButton = this.button(head, "", "Show or hide all objects (0)",
      () => this.toggleAll(), "toggle-all");
    this.objectList = make("div", { className: "objects", role: "listbox" }, element);
    const add = make("div", { className: "row" }, element);
    this.newName = make("input", {
      type: "text", className: "name", placeholder: "name of the new object",
      title: "Name of the new object; leave empty for the next free number",
    }, add);
    const create = () => {
      this.send("add_object", { identity: this.newName.value });
      this.newName.value = "";
      this.keyboard.focus();
    };
    this.newName.onkeydown = (event) => event.key === "Enter" && create();
    this.button(add, "Add", "Add an object", create, "add");
    const many = make("div", { className: "row many" }, element);
    this.propose = this.button(many, "Find objects",
      "Segment this frame automatically, and keep or discard each mask in the list",
      () => (this.wait("Segmenting the frame…"), this.send("propose")), "propose");
    this.button(many, "Label image…",
      "Import a label image (PNG, TIFF): pixel values are object numbers, 0 is background",
      () => this.pick("import_labels"), "labels");
    this.proposals = make("div", { className: "proposals", hidden: true }, element);
    make("span", { className: "count" }, this.proposals);
    this.button(this.proposals, "Keep all", "Keep all remaining proposals as objects",
      () => this.send("accept_proposals"), "keep-all");
    this.button(this.proposals, "Discard all", "Discard the remaining proposals",
      () => this.send("discard_proposals"), "discard-all");
  }

  buildCandidates(parent) {
    this.candidates = this.section(parent, "Candidate masks");
    this.candidates.element.classList.add("candidates");
    this.strip = make("div", { className: "strip" }, this.candidates.element);
  }

  buildChecks(parent) {
    this.checks = this.section(parent, "Frames to check");
    const { head, element } = this.checks;
    this.next = this.button(head, "Next", "Go to the next frame to check (n)",
      () => this.send("next_check"), "next-check");
    this.checkList = make("div", { className: "checks" }, element);
  }

  buildTracking(bar) {
    const directions = this.group(bar, "Tracking");
    this.runs = DIRECTIONS.map(([name, text, title]) =>
      this.button(directions, text, title, () => this.track(name), name));
    const field = (name, placeholder) => {
      const input = this.field(bar, name, {
        type: "number", min: 0, placeholder, title: `${name === "from" ? "First" : "Last"} frame to `
          + "track; leave empty for no limit",
      });
      input.dataset.name = name;
      return input;
    };
    this.from = field("from", "first");
    this.to = field("to", "last");
    this.button(bar, "From here", "Track forward from this frame, using the masks and prompts before it",
      () => this.track("forward", this.state.frame), "here");
    this.cancel = this.button(bar, "Cancel", "Stop tracking and keep the masks tracked so far (Esc)",
      () => this.send("cancel"));
    this.progress = make("progress", { title: "Tracked frames" }, bar);
    this.progressText = make("span", { className: "progress-text" }, bar);
  }

  buildResults(bar) {
    const accept = this.group(bar, "Accept");
    this.acceptButton = this.button(accept, "Accept frame",
      "Accept the masks of this frame as ground truth; press again to revert (a)",
      () => this.send("accept"), "accept");
    this.button(accept, "Accept all", "Accept every Nth tracked frame",
      () => this.send("accept_all", { every: Number(this.every.value) || 1 }), "accept-all");
    this.every = this.field(accept, "every", { type: "number", min: 1, value: 1, title: "N" });
    this.every.dataset.name = "every";
    const make_ = this.group(bar, "Training set");
    this.trainingSet = this.button(make_, "Make training set",
      "Write the accepted frames of all annotated videos to a training set", () => {
        this.wait("Writing the training set…");
        this.send("make_training_set", { folder: this.target.value.trim() });
      }, "training-set");
    this.trainingSet.classList.add("primary");
    this.target = make("input", { type: "text", className: "path", title: "Directory of the training set" }, make_);
    this.target.dataset.name = "training-folder";
    make("span", { className: "space" }, bar);
    const files = this.group(bar, "Files");
    this.button(files, "Save prompts", "Write the prompts of all videos to prompts.json",
      () => this.send("save"), "save");
    this.append = this.button(files, "Append to data",
      "Append this frame's masks to the dataset's corrections, which training reads with "
        + "dataset.corrections", () => this.send("append"), "append");
  }

  // ------------------------------------------------------------------ events

  listen() {
    const one = (keys, text, action) => [keys, text, action];
    const edit = (name) => () => this.send(name);
    this.keyboard = new Keyboard(this.root, [
      ...commonKeys(this),
      one(["1–9"], "select an object", (n) => n < this.objects.length && this.send("select", { index: n })),
      one(["h"], "hide or show the selected object", () => this.toggleObject(this.state.object)),
      one(["c", "b", "e"], "click and box, brush, eraser", (event) => this.choose(
        { c: "point", b: "brush", e: "erase" }[event.key.toLowerCase()])),
      one(["[", "]"], "smaller, larger brush", (event) => this.resizeBrush(event.key === "[" ? -1 : 1)),
      one(["z", "Ctrl+z"], "undo", edit("undo")),
      one(["y", "Ctrl+y", "Ctrl+Shift+z"], "redo", edit("redo")),
      one(["Delete", "Backspace"], "clear the object's prompts on this frame", edit("clear")),
      one(["Shift+Delete", "Shift+Backspace"], "delete the selected object", () =>
        this.state.object != null && this.send("delete_object", { index: this.state.object })),
      one(["t"], "track forward, within the range if there is one", () => this.track("forward")),
      one(["a"], "accept the frame, or revert acceptance", edit("accept")),
      one(["n"], "next frame to check", edit("next_check")),
      one(["Escape"], "stop tracking or playing, close this list", () => this.escape()),
    ]);
    this.viewport.listenToWheel(this.root);
    this.panning = new Panning(this.root, this.stage, this.viewport, () => this.play());
    this.listenToPointer();
    this.timeline.onclick = (event) => {
      const box = this.timeline.getBoundingClientRect();
      const share = (event.clientX - box.left - 8) / (box.width - 16);
      this.stop();
      this.go(Math.round(share * (this.state.frames - 1)));
      this.keyboard.focus();
    };
    this.resizing = new ResizeObserver(() => this.layout());
    this.resizing.observe(this.stage.parentElement);
    this.clock = setInterval(() => this.tick(), 500);
  }

  listenToPointer() {
    const { canvas, viewport } = this;
    // The right button adds a negative click, so suppress the context menu.
    canvas.oncontextmenu = (event) => (event.preventDefault(), event.stopPropagation());
    canvas.onpointerdown = (event) => {
      const [x, y] = viewport.pixel(event);
      this.root.focus({ preventScroll: true });
      this.stop();
      if (event.button === 2) return this.click(x, y, false);
      if (event.button !== 0) return undefined;
      canvas.setPointerCapture(event.pointerId);
      this.gesture = { x, y, from: [event.clientX, event.clientY] };
      if (this.tool !== "point") this.gesture.line = [[x, y]];
      return this.redraw();
    };
    canvas.onpointermove = (event) => {
      this.pointer = viewport.toFrame(event.clientX, event.clientY);
      const { gesture } = this;
      if (gesture) {
        const [x, y] = viewport.pixel(event);
        const distance = Math.hypot(event.clientX - gesture.from[0], event.clientY - gesture.from[1]);
        if (gesture.line) gesture.line.push([x, y]);
        else if (distance >= DRAG_DISTANCE || gesture.box) gesture.box = [gesture.x, gesture.y, x, y];
      }
      if (gesture || this.tool !== "point") this.redraw();
    };
    canvas.onpointerup = () => {
      if (!this.gesture) return;
      const { x, y, box, line } = this.gesture;
      this.gesture = null;
      const radius = Number(this.radius.value);
      if (line) this.send("brush", { points: line, radius, erase: this.tool === "erase" });
      else if (box) this.send("box", { x0: box[0], y0: box[1], x1: box[2], y1: box[3] });
      else this.click(x, y, true);
    };
    canvas.onpointercancel = () => ((this.gesture = null), this.redraw());
    canvas.onpointerleave = () => ((this.pointer = null), this.redraw());
  }

  // ------------------------------------------------------------------ actions

  // Let the user choose a file, and send its content in a message of this type.
  pick(type) {
    this.importType = type;
    this.imported.click();
  }

  click(x, y, positive) {
    this.pending.push([x, y, positive]); // drawn immediately; the mask arrives later
    this.send("click", { x, y, positive });
    this.redraw();
  }

  choose(tool) {
    this.tool = tool;
    this.fill();
    this.redraw();
  }

  resizeBrush(by) {
    const value = Number(this.radius.value);
    this.radius.value = value + by * Math.max(1, Math.round(value / 6));
    this.redraw();
  }

  toggle(name) {
    this.shows[name] = !this.shows[name];
    this.boxes[name].checked = this.shows[name];
    this.redraw();
  }

  fade(by) {
    this.opacity = clamp(Math.round((this.opacity + by) * 10) / 10, 0, 1);
    this.opacityField.value = 100 * this.opacity;
    this.redraw();
  }

  toggleObject(n) {
    const object = this.objects[n];
    if (object && !object.proposal) this.send("set_hidden", { index: n, hidden: !object.hidden });
  }

  toggleAll() {
    this.send("hide_all", { hidden: !this.objects.some(({ hidden }) => hidden) });
  }

  // Track within the range of the input fields, or from `start`.
  track(direction, start = null) {
    if (this.state.running) return;
    const value = (input) => (input.value === "" ? null : Number(input.value));
    this.send("propagate", { direction, start: start ?? value(this.from), end: value(this.to) });
  }

  escape() {
    if (!this.keyboard.panel.hidden) this.keyboard.help(false);
    else if (this.gesture) (this.gesture = null), this.redraw();
    else if (this.playing) this.stop();
    else if (this.state.running) this.send("cancel");
  }

  // Request one frame at a time. While the slider is dragged, frames that it passes in the meantime
  // are skipped, so that the kernel keeps up.
  go(frame) {
    this.nextFrame = clamp(frame, 0, this.state.frames - 1);
    this.requestFrame();
  }

  step(by) {
    this.stop();
    this.go((this.nextFrame ?? this.requestedFrame ?? this.state.frame) + by);
  }

  requestFrame() {
    if (this.nextFrame === null || this.requestedFrame !== null) return;
    this.requestedFrame = this.nextFrame;
    this.nextFrame = null;
    this.slider.value = this.requestedFrame;
    this.send("go", { frame: this.requestedFrame });
  }

  play() {
    if (this.playing) return this.stop();
    this.playing = performance.now();
    setIcon(this.playButton, "pause");
    return this.go(this.state.frame === this.state.frames - 1 ? 0 : this.state.frame + 1);
  }

  async playNext() {
    if (!this.playing || this.requestedFrame !== null) return;
    const { playing } = this;
    await sleep(PLAY_INTERVAL - (performance.now() - playing));
    if (this.playing !== playing) return;
    if (this.state.frame === this.state.frames - 1) return void this.stop();
    this.playing = performance.now();
    this.go(this.state.frame + 1);
  }

  stop() {
    this.playing = null;
    setIcon(this.playButton, "play");
  }

  // Show a message until the kernel answers.
  wait(text) {
    this.root.classList.add("busy");
    this.status.textContent = text;
    this.status.classList.remove("error");
  }

  // Request the visible part in full resolution if the frame is larger than the displayed image.
  zoomed() {
    this.redraw();
    clearTimeout(this.zooming);
    this.zooming = setTimeout(() => {
      const { picture, viewport } = this;
      if (!picture) return;
      const isReduced = picture.bitmap.width < viewport.columns;
      const rect = viewport.zoom > 1 && isReduced ? viewport.rect.map((v, n) =>
        clamp(n < 2 ? Math.floor(v) : Math.ceil(v), 0, n % 2 ? viewport.rows : viewport.columns)) : null;
      if (JSON.stringify(rect) === this.sentRect) return;
      this.sentRect = JSON.stringify(rect);
      this.send("viewport", { rect });
    }, 120);
  }

  // ------------------------------------------------------------------ drawing

  layout() {
    if (!this.picture) return;
    const [rows, columns] = this.state.size;
    const width = this.stage.parentElement.clientWidth;
    this.viewport.resize(columns, rows, width, Math.min(MAX_HEIGHT, Math.max(260, window.innerHeight * 0.62)));
    this.draw();
    this.drawTimeline();
  }

  redraw() {
    this.drawing ??= requestAnimationFrame(() => ((this.drawing = undefined), this.draw()));
  }

  colorOf(n) {
    if (this.state.mode === "errors" && this.state.errors) return this.state.errors[n] ?? null;
    const object = this.objects[n];
    return object && !object.hidden ? object.color : null;
  }

  draw() {
    const { picture, viewport, canvas } = this;
    if (!picture) return;
    const { state } = this;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const whole = [0, 0, viewport.columns, viewport.rows];
    const isError = state.mode === "errors" && state.errors;
    viewport.apply(context);
    context.filter = isError ? "grayscale(1) brightness(0.8)" : "none";
    // Do not smooth enlarged pixels.
    context.imageSmoothingEnabled = (viewport.scale * viewport.columns) / picture.bitmap.width < 2;
    context.drawImage(picture.bitmap, ...whole);
    const { detail } = this;
    if (detail) {
      const [x0, y0, x1, y1] = detail.rect;
      context.imageSmoothingEnabled = (viewport.scale * (x1 - x0)) / detail.bitmap.width < 2;
      context.drawImage(detail.bitmap, x0, y0, x1 - x0, y1 - y0);
    }
    context.filter = "none";
    const style = {
      colorOf: (n) => this.colorOf(n), opacity: this.opacity, fill: this.shows.masks,
      outline: this.shows.masks && this.shows.outlines, selected: isError ? null : state.object,
    };
    if (detail) {
      context.save(); // outside the full-resolution part, draw the masks of the whole frame
      const [x0, y0, x1, y1] = detail.rect;
      context.beginPath();
      context.rect(...whole);
      context.rect(x0, y0, x1 - x0, y1 - y0);
      context.clip("evenodd");
      drawPlanes(context, viewport, this.planes, whole, style);
      context.restore();
      viewport.apply(context);
      drawPlanes(context, viewport, detail.planes, detail.rect, style);
    } else drawPlanes(context, viewport, this.planes, whole, style);
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (this.shows.prompts) this.drawPrompts(context);
    this.drawGesture(context);
    this.zoomText.textContent = `${Number(viewport.zoom.toFixed(1))}×`;
    this.root.dataset.zoom = viewport.zoom.toFixed(2);
  }

  center(x, y) { // of a pixel of the frame, on the canvas
    return this.viewport.toCanvas(x + 0.5, y + 0.5);
  }

  drawPrompts(context) {
    for (const mark of this.state.marks) {
      if (this.objects[mark.object]?.hidden) continue;
      context.globalAlpha = mark.object === this.state.object ? 1 : 0.4;
      if (mark.box) drawBox(context, this.corners(mark.box));
      mark.points.forEach(([x, y], n) => drawClick(context, ...this.center(x, y), mark.labels[n]));
    }
    context.globalAlpha = 1;
    for (const [x, y, positive] of this.pending) drawClick(context, ...this.center(x, y), positive);
  }

  corners([x0, y0, x1, y1]) {
    return [...this.center(x0, y0), ...this.center(x1, y1)];
  }

  drawGesture(context) {
    const { gesture, pointer, tool, viewport } = this;
    if (gesture?.box) drawBox(context, this.corners(gesture.box));
    const width = (2 * Number(this.radius.value) + 1) * viewport.scale;
    const color = tool === "erase" ? COLORS.negative : COLORS.positive;
    if (gesture?.line) {
      Object.assign(context, { strokeStyle: color, lineWidth: width, lineCap: "round", lineJoin: "round" });
      context.globalAlpha = 0.5;
      context.beginPath();
      gesture.line.forEach(([x, y]) => context.lineTo(...this.center(x, y)));
      // A zero-length line would not be drawn.
      const [x, y] = this.center(...gesture.line.at(-1));
      context.lineTo(x + 0.01, y);
      context.stroke();
      context.globalAlpha = 1;
    }
    if (pointer && tool !== "point") {
      const [x, y] = viewport.toCanvas(...pointer);
      for (const [style, line] of [["rgb(0 0 0 / 0.7)", 3.5], [color, 1.5]]) {
        Object.assign(context, { strokeStyle: style, lineWidth: line });
        context.beginPath();
        context.arc(x, y, width / 2, 0, 7);
        context.stroke();
      }
    }
  }

  // The timeline has one row each for prompted, tracked, accepted and annotated frames; a vertical line
  // marks the current frame.
  drawTimeline() {
    const { timeline } = this;
    const ranges = this.model.get("timeline");
    const { frames, frame } = this.state;
    const density = window.devicePixelRatio || 1;
    const width = timeline.clientWidth;
    if (!width) return;
    timeline.width = width * density;
    timeline.height = 26 * density;
    const context = timeline.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    // The centre of the slider's thumb stays 8 pixels away from each end.
    const step = (width - 16) / Math.max(1, frames - 1);
    const at = (t) => 8 + t * step;
    const style = getComputedStyle(this.root);
    const rows = { prompted: 5, corrected: 5, tracked: 12, accepted: 17, annotated: 22 };
    for (const [name, , shape] of [...TRACKS].sort((a, b) => a[2] < b[2] ? -1 : 1)) {
      context.fillStyle = style.getPropertyValue(`--${name}`);
      for (const [first, last] of ranges[name] ?? []) {
        if (shape === "bar") {
          const half = Math.max(1, Math.min(step / 2, 4));
          context.fillRect(at(first) - half, rows[name] - 2, at(last) - at(first) + 2 * half, 3.5);
        } else
          for (let t = first; t <= last; t++) {
            context.beginPath();
            context.arc(at(t), rows[name], 3.5, 0, 7);
            context.fill();
          }
      }
    }
    context.fillStyle = style.getPropertyValue("--check");
    for (const check of this.model.get("checks")) {
      context.beginPath();
      context.moveTo(at(check.frame), 9);
      context.lineTo(at(check.frame) - 3, 15);
      context.lineTo(at(check.frame) + 3, 15);
      context.fill();
    }
    context.fillStyle = style.color;
    context.fillRect(at(frame) - 0.5, 0, 1, 26);
    this.drawLegend(ranges);
  }

  drawLegend(ranges) {
    const counts = TRACKS.map(([name]) =>
      (ranges[name] ?? []).reduce((sum, [first, last]) => sum + last - first + 1, 0));
    const checks = this.model.get("checks").length;
    refill(this.legend, [counts, checks], () => {
      TRACKS.forEach(([name, text, shape], n) => {
        const entry = make("span", { className: counts[n] ? "" : "none" }, this.legend);
        make("i", { className: `${shape} ${name}` }, entry);
        entry.append(`${text} ${counts[n]}`);
        entry.dataset.count = `${name}-${counts[n]}`;
      });
      const entry = make("span", { className: checks ? "" : "none" }, this.legend);
      make("i", { className: "dot check" }, entry);
      entry.append(`to check ${checks}`);
    });
  }

  // ------------------------------------------------------------------ controls and texts

  fill() {
    const { state } = this;
    this.fillData();
    this.fillObjects();
    this.fillCandidates();
    this.fillChecks();
    this.tools.forEach((b) => b.setAttribute("aria-pressed", b.dataset.name === this.tool));
    this.stage.dataset.tool = this.tool;
    this.radius.parentElement.classList.toggle("off", this.tool === "point");
    this.undo.disabled = !state.can_undo;
    this.redo.disabled = !state.can_redo;
    this.truth.disabled = !state.annotated;
    const hasTruth = this.model.get("setup").has_truth;
    this.errors.parentElement.hidden = this.truth.hidden = !hasTruth;
    // Corrections need a dataset with masks; raw videos become a training set.
    this.append.hidden = !hasTruth;
    this.errors.disabled = !state.annotated;
    this.random.disabled = state.object === null;
    this.errors.checked = state.mode === "errors";
    this.slider.max = state.frames - 1;
    if (this.nextFrame === null) this.slider.value = state.frame;
    this.position.textContent = framePosition(state.frame, state.frames);
    refill(this.badges, state.badges, () => state.badges.forEach((text) =>
      make("span", { textContent: text }, this.badges)));
    this.acceptButton.setAttribute("aria-pressed", state.accepted);
    for (const b of [...this.runs, this.propose]) b.disabled = state.running;
    this.from.max = this.to.max = state.frames - 1;
    // Show the kernel's last value, also after a reload, but keep a number that was only typed.
    if (this.shownEvery !== state.every) this.every.value = this.shownEvery = state.every;
    this.cancel.disabled = !state.running;
    this.fillScores();
    this.tick();
  }

  fillData() {
    const setup = this.model.get("setup");
    refill(this.videos, setup.videos, () => setup.videos.forEach((name, n) =>
      make("option", { value: n, textContent: name }, this.videos)));
    if (setup.more_videos && this.videos.length === setup.videos.length)
      make("option", {
        disabled: true, textContent: `${setup.more_videos} more: open_video("name")`,
      }, this.videos);
    this.videos.value = this.state.video;
    this.videoLabel.hidden = setup.videos.length < 2;
    refill(this.recipes, setup.recipes, () => setup.recipes.forEach((name) =>
      make("option", { value: name, textContent: name }, this.recipes)));
    this.recipes.value = this.state.recipe;
    refill(this.modelNames, setup.models, () => setup.models.forEach((name) =>
      make("option", { value: name }, this.modelNames)));
    const text = (input, value) => {
      if (document.activeElement !== input) input.value = value;
      input.title = input.title.split("\n")[0] + `\n${value}`;
    };
    text(this.folder, setup.folder);
    text(this.modelField, setup.model);
    if (this.target.dataset.default !== setup.training_set)
      this.target.value = this.target.dataset.default = setup.training_set;
  }

  fillObjects() {
    const { objects, state } = this;
    if (this.objectList.querySelector("input.editing")) return;
    refill(this.objectList, [objects, state.object], () => {
      objects.forEach((object, n) => this.addRow(object, n));
      if (!objects.length)
        make("p", { textContent: "Click on an object in the frame, or add an object by name." }, this.objectList);
    });
    const chosen = this.objectList.querySelector("[aria-selected=true]");
    if (this.shownObject !== state.object) {
      // scrollIntoView would also scroll the page.
      if (chosen) this.objectList.scrollTop = chosen.offsetTop - this.objectList.clientHeight / 2;
      this.shownObject = state.object;
    }
    this.allButton.hidden = objects.length < 2;
    setIcon(this.allButton, objects.some(({ hidden }) => hidden) ? "hidden" : "shown");
    this.proposals.hidden = !state.proposals;
    if (state.proposals) {
      const [count, frame] = state.proposals;
      this.proposals.firstChild.textContent = `${count} proposals on frame ${frame}`;
    }
  }

  addRow(object, n) {
    const row = make("div", { className: "object", role: "option" }, this.objectList);
    row.dataset.name = `object-${n}`;
    row.setAttribute("aria-selected", n === this.state.object);
    row.classList.toggle("bare", !object.mask);
    row.classList.toggle("is-hidden", object.hidden);
    row.classList.toggle("proposal", object.proposal);
    const color = make("input", { type: "color", value: hex(object.color), title: "Change the colour" }, row);
    color.onchange = () => (this.send("recolor", { index: n, color: color.value }), this.keyboard.focus());
    const name = make("button", {
      type: "button", className: "label", textContent: object.name,
      title: `Select object ${object.name}${n < 9 ? ` (${n + 1})` : ""}. Double-click to rename`,
    }, row);
    name.onclick = () => this.send("select", { index: n });
    name.ondblclick = () => this.rename(row, name, n);
    if (object.note) make("span", { className: "note", textContent: object.note }, row);
    const icon = (name, title, act, dataName) => {
      const element = this.button(row, "", title, act, dataName);
      element.setAttribute("aria-label", title);
      setIcon(element, name);
    };
    if (object.proposal)
      icon("keep", "Keep this proposal as an object",
        () => this.send("accept_proposals", { indices: [n] }), `keep-${n}`);
    else
      icon(object.hidden ? "hidden" : "shown", `${object.hidden ? "Show" : "Hide"} object ${object.name}`,
        () => this.toggleObject(n), `hide-${n}`);
    icon("remove", object.proposal ? "Discard this proposal" : `Delete object ${object.name}; Undo restores it`,
      () => this.send("delete_object", { index: n }), `delete-${n}`);
  }

  rename(row, label, n) {
    const input = make("input", { type: "text", className: "editing name", value: label.textContent });
    label.replaceWith(input);
    input.focus();
    input.select();
    const end = (save) => {
      if (!input.isConnected || !input.classList.contains("editing")) return;
      input.classList.remove("editing");
      const value = input.value.trim();
      if (save && value && value !== label.textContent) this.send("rename", { index: n, name: value });
      delete this.objectList.dataset.content; // force a rebuild of the row
      this.fillObjects();
      this.keyboard.focus();
    };
    input.onkeydown = (event) => {
      if (event.key === "Enter" || event.key === "Escape") end(event.key === "Enter");
    };
    input.onblur = () => end(true);
  }

  fillCandidates() {
    const images = this.model.get("candidates");
    const { ious, chosen } = this.state;
    this.candidates.element.hidden = !images.length;
    if (this.shownCandidates !== images || this.shownChosen !== chosen) {
      this.shownCandidates = images;
      this.shownChosen = chosen;
      this.strip.replaceChildren(...images.map((bytes, n) => {
        const url = URL.createObjectURL(new Blob([bytes]));
        const element = make("button", {
          type: "button", title: `Use candidate ${n + 1} as the mask; the number is the predicted IoU`,
          onclick: () => this.send("choose", { candidate: n }),
        });
        element.dataset.name = `candidate-${n}`;
        element.setAttribute("aria-pressed", n === chosen);
        const onload = () => URL.revokeObjectURL(url);
        make("img", { src: url, alt: `candidate ${n + 1}`, onload }, element);
        make("span", { textContent: `IoU ${number(ious[n])}` }, element);
        return element;
      }));
    }
  }

  fillChecks() {
    const checks = this.model.get("checks");
    const { frame } = this.state;
    this.checks.title.textContent = checks.length ? `Frames to check (${checks.length})` : "Frames to check";
    this.next.disabled = !checks.length;
    const tracked = (this.model.get("timeline").tracked ?? []).length > 0;
    refill(this.checkList, [checks, frame, tracked], () => {
      checks.forEach((check, n) => {
        const row = this.button(this.checkList, "", "Go to this frame",
          () => this.send("go_to_check", { index: n }), `check-${n}`);
        row.setAttribute("aria-current", check.frame === frame);
        make("b", { textContent: check.frame }, row);
        make("span", { textContent: `${check.name}: ${check.reason}` }, row);
      });
      if (!checks.length)
        make("p", { textContent: tracked ? "No tracked mask looks wrong."
          : "After tracking, frames whose masks may be wrong are listed here." }, this.checkList);
    });
  }

  fillScores() {
    const { state } = this;
    const parts = [];
    if (state.j !== null) parts.push(`J ${number(state.j)} on this frame`);
    if (state.mean_j !== null) parts.push(`mean J ${number(state.mean_j)} over the tracked frames`);
    if (state.score !== null) parts.push(`object score ${number(state.score, 1)}`);
    if (state.provenance) parts.push(state.provenance);
    if (state.stale) parts.push("prompts have changed since tracking: track again");
    this.scores.textContent = parts.join(" · ");
    const error = this.model.get("error");
    this.status.textContent = error || state.message || this.model.get("setup").kept;
    this.status.classList.toggle("error", Boolean(error));
    this.root.classList.remove("busy");
    const report = this.model.get("report");
    this.report.hidden = !report.length;
    refill(this.report, report, () => {
      for (const { text, command } of report) {
        const line = make("div", { className: "line" }, this.report);
        make(command ? "code" : "span", { textContent: text }, line);
        if (command) this.button(line, "Copy", "Copy the command",
          () => navigator.clipboard?.writeText(text), "copy");
      }
      this.button(this.report, "Close", "Close this message", () => this.send("close_report"), "close-report");
    });
  }

  // Update progress and remaining time twice per second, also during slow frames, and warn if the kernel
  // does not answer.
  tick() {
    const { state } = this;
    this.progress.max = state.total || 1;
    this.progress.value = state.done;
    this.progress.hidden = this.progressText.hidden = !state.running;
    if (state.running) {
      if (this.shownRun !== state.run) Object.assign(this, { shownRun: state.run, began: performance.now() });
      const elapsed = (performance.now() - this.began) / 1000;
      const left = state.done ? (elapsed / state.done) * (state.total - state.done) : null;
      const done = state.unit === "%" ? `${state.done} %` : `${state.done} of ${state.total} frames`;
      this.progressText.textContent = `${done} · ${duration(elapsed)}`
        + (left === null ? "" : ` · about ${duration(left)} left`);
    }
    const waits = this.sent !== undefined && performance.now() - this.sent > 1000 * ANSWER_SECONDS;
    this.root.classList.toggle("silent", waits);
    if (waits && !this.root.classList.contains("busy")) {
      this.status.textContent = "No answer from the kernel for "
          + `${duration((performance.now() - this.sent) / 1000)}: it is busy or has died. If it died, `
          + "restart it and run this cell again; only the last action is lost.";
    }
  }

  // ------------------------------------------------------------------ answers from the kernel

  // Decode images once per change; they are redrawn whenever the pointer moves.
  async decode() {
    const [picture, planes, detail] = ["picture", "planes", "detail"].map((name) => this.model.get(name));
    const bitmap = async (bytes) => createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    const plane = async ({ base, labels }) => ({ base, ...(await decodeLabels(labels)) });
    const decodePlanes = (list) => Promise.all(list.map(plane));
    const [newPicture, newPlanes, newDetail] = await Promise.all([
      this.picture?.source === picture ? this.picture : bitmap(picture).then((b) => ({ source: picture, bitmap: b })),
      this.planesSource === planes ? this.planes : decodePlanes(planes),
      this.detailSource === detail ? this.detail : detail.rect ? Promise.all([
        bitmap(detail.picture), decodePlanes(detail.planes),
      ]).then(([b, p]) => ({ rect: detail.rect, bitmap: b, planes: p })) : null,
    ]);
    return { picture: newPicture, planes: newPlanes, detail: newDetail, planesSource: planes, detailSource: detail };
  }

  async paint() {
    const seq = this.model.get("seq");
    const decoded = await this.decode();
    if (seq !== this.model.get("seq")) return; // a newer state arrived while decoding
    Object.assign(this, decoded);
    this.sent = undefined;
    this.pending = [];
    for (const plane of [...this.planes, ...(this.detail?.planes ?? [])]) tint(plane, (n) => this.colorOf(n));
    if (this.shownVideo !== this.state.key) {
      this.shownVideo = this.state.key;
      this.viewport.fit();
    }
    this.requestedFrame = null;
    this.fill();
    this.layout();
    this.root.dataset.seq = seq;
    this.root.dataset.frame = this.state.frame;
    this.root.dataset.running = this.state.running;
    this.root.dataset.ready = "true";
    this.requestFrame();
    this.playNext();
  }

  close() {
    this.stop();
    this.resizing.disconnect();
    clearInterval(this.clock);
    clearTimeout(this.zooming);
    cancelAnimationFrame(this.drawing);
    this.model.off("change:seq", this.painted);
  }
}

export default {
  render({ model, el }) {
    const annotator = new Annotator(model, el);
    return () => annotator.close();
  },
};
