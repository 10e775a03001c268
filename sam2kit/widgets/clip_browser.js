// The view of the clip browser: requests frames from the kernel (clip_browser.py) on demand, caches
// a bounded number of them, and draws them with masks, prompts and the swipe.

const CACHE_BYTES = 48 * 2 ** 20; // of encoded frames; one is about 0.1 MB
const FRAMES_AHEAD = 12; // frames requested in advance while playing
const IN_FLIGHT = 2; // maximum number of open requests, so that dragging the slider builds no queue
const MIN_WIDTH = 640; // of the canvas, in pixels; smaller frames are enlarged
// Of the trackers, when colours stand for objects.
const DASHES = ["", "7 3", "2 3", "10 3 2 3", "1 6"];
const KEYS =
  "Keys: ← → one frame (with Shift ten), Home and End first and last frame, Space play or pause, " +
  "1–9 show or hide an object, 0 all objects, M masks, P prompts. Drag on the image to move the " +
  "swipe, click on the curve to jump to a frame.";

const rgb = (color, alpha = 1) => `rgb(${color.join(" ")} / ${alpha})`;
const sleep = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms)));

function make(tag, attributes = {}, parent = null) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    name in element ? (element[name] = value) : element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Rebuild an element only if its content has changed: a click on a button that is replaced between
// press and release would be lost.
function refill(element, content, build) {
  const text = JSON.stringify(content);
  if (element.dataset.content === text) return;
  element.dataset.content = text;
  element.replaceChildren();
  build();
}

// Encoded frames as the kernel sent them; evicts the least recently used ones beyond CACHE_BYTES.
class FrameCache {
  constructor() {
    this.clear();
  }
  clear() {
    this.entries = new Map();
    this.bytes = 0;
  }
  get(t) {
    const entry = this.entries.get(t);
    // A Map iterates in order of insertion: the least recently used entry comes first.
    if (entry) this.entries.delete(t), this.entries.set(t, entry);
    return entry;
  }
  set(t, entry) {
    this.entries.set(t, entry);
    this.bytes += entry.bytes;
    for (const [old, value] of this.entries) {
      if (this.bytes <= CACHE_BYTES || old === t) break;
      this.entries.delete(old);
      this.bytes -= value.bytes;
    }
  }
}

async function decode(entry) {
  // Label values must survive decoding unchanged.
  const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const image = await createImageBitmap(new Blob([entry.buffers[0]], { type: "image/jpeg" }));
  const planes = [];
  for (const [n, plane] of entry.planes.entries()) {
    const file = new Blob([entry.buffers[n + 1]], { type: "image/png" });
    const bitmap = await createImageBitmap(file, exact);
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const labels = new Uint8Array(pixels.data.length / 4);
    for (let i = 0; i < labels.length; i++) labels[i] = pixels.data[4 * i];
    planes.push({ ...plane, canvas, context, pixels, labels });
  }
  return { ...entry, image, planes };
}

class ClipBrowser {
  constructor(model, el) {
    this.model = model;
    this.cache = new FrameCache();
    this.requested = new Set();
    this.build(el);
    this.listen();
    this.reset();
    model.send({ type: "ready" });
    this.pump();
    this.show();
  }

  // ------------------------------------------------------------------ the elements

  build(el) {
    const root = make("div", { className: "sam2kit-clip", tabIndex: 0 }, el);
    root.dataset.lmSuppressShortcuts = "true";
    root.dataset.seq = 0;
    const top = make("div", { className: "bar" }, root);
    this.videoChoice = make("select", { title: "Video" }, top);
    this.model.get("videos").forEach((name, n) =>
      make("option", { value: n, textContent: name }, this.videoChoice));
    this.videoChoice.hidden = this.model.get("videos").length < 2;
    this.sides = {};
    for (const side of ["left", "right"]) {
      const label = make("label", { textContent: `${side} ` }, top);
      this.sides[side] = make("select", { title: `Layer on the ${side} side` }, label);
    }
    this.stage = make("div", { className: "stage" }, root);
    this.canvas = make("canvas", { width: MIN_WIDTH, height: 360 }, this.stage);
    this.badges = make("div", { className: "badges" }, this.stage);
    const bar = make("div", { className: "bar" }, root);
    this.playButton = make("button", { textContent: "▶", title: "Play or pause (Space)" }, bar);
    const range = { type: "range", min: 0, step: 1, title: "Frame (← →)" };
    this.slider = make("input", { ...range, className: "frames" }, bar);
    const positionTitle = "Index of the frame and of the last frame, from 0";
    this.position = make("output", { className: "position", title: positionTitle }, bar);
    const speed = make("label", { textContent: "frames/s " }, bar);
    this.speed = make("input", { type: "number", min: 0.1, max: 120, step: "any" }, speed);
    const chartTitle = "J over time; click to jump to a frame";
    this.chart = make("div", { className: "chart", title: chartTitle }, root);
    this.curves = svg("svg", { preserveAspectRatio: "none" });
    this.chart.append(this.curves);
    make("span", { className: "one", textContent: "J 1" }, this.chart);
    make("span", { className: "zero", textContent: "0" }, this.chart);
    this.cursor = make("div", { className: "cursor" }, this.chart);
    this.legend = make("div", { className: "bar legend" }, root);
    this.chips = make("div", { className: "bar chips" }, root);
    const tools = make("div", { className: "bar" }, root);
    this.tools = tools;
    const check = (text) => {
      const label = make("label", {}, tools);
      const box = make("input", { type: "checkbox" }, label);
      label.append(` ${text}`);
      return box;
    };
    this.masks = check("masks");
    const zeroToOne = { type: "range", min: 0, max: 1, step: 0.05 };
    this.opacity = make("input", { ...zeroToOne, title: "Opacity of the masks" }, tools);
    this.prompts = check("prompts");
    this.perObject = check("J of each object");
    this.error = make("div", { className: "error", role: "alert" }, root);
    make("div", { className: "keys", textContent: KEYS }, root);
    this.root = root;
  }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  listen() {
    const { model } = this;
    const on = (names, action) => model.on(names.map((n) => `change:${n}`).join(" "), action);
    this.received = (content, buffers) => this.receive(content, buffers);
    model.on("msg:custom", this.received);
    this.watched = [
      [["video", "num_frames", "layers"], () => this.reset()],
      [["left", "right"], () => this.refetch()],
      [["frame"], () => this.show()],
      [["objects", "hidden"], () => (this.fill(), this.paint(), this.draw())],
      [["opacity", "swipe", "show_masks", "show_prompts"], () => (this.fill(), this.paint())],
      [["fps", "error"], () => this.fill()],
    ];
    for (const [names, action] of this.watched) on(names, action);
    this.videoChoice.onchange = () => {
      this.stop();
      model.send({ type: "open", video: Number(this.videoChoice.value) });
    };
    for (const [side, choice] of Object.entries(this.sides))
      choice.onchange = () => this.set(side, choice.value);
    this.playButton.onclick = () => this.toggle();
    this.slider.oninput = () => (this.stop(), this.goto(Number(this.slider.value)));
    this.speed.onchange = () => this.speed.checkValidity() && this.set("fps", +this.speed.value);
    this.masks.onchange = () => this.set("show_masks", this.masks.checked);
    this.prompts.onchange = () => this.set("show_prompts", this.prompts.checked);
    this.opacity.oninput = () => this.set("opacity", Number(this.opacity.value));
    this.perObject.onchange = () => this.draw();
    this.chart.onclick = (event) => (this.stop(), this.goto(this.frameAt(event)));
    const swipe = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      if (event.buttons & 1 && model.get("left") !== model.get("right"))
        this.set("swipe", Math.min(1, Math.max(0, share)));
    };
    this.stage.onpointerdown = (event) => {
      this.stage.setPointerCapture(event.pointerId);
      swipe(event);
    };
    this.stage.onpointermove = swipe;
    this.root.onkeydown = (event) => this.key(event);
  }

  key(event) {
    const { target } = event;
    // Sliders, lists and number fields have their own keys.
    const movesSlider = target.type === "range" && /^(Arrow|Home|End)/.test(event.key);
    const takesText = target.matches("select, input[type=number]");
    if (takesText || movesSlider || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 10 : 1;
    const t = this.model.get("frame");
    const toggle = (name) => this.set(name, !this.model.get(name));
    const actions = {
      ArrowLeft: () => (this.stop(), this.goto(t - step)),
      ArrowRight: () => (this.stop(), this.goto(t + step)),
      Home: () => (this.stop(), this.goto(0)),
      End: () => (this.stop(), this.goto(this.count - 1)),
      " ": () => this.toggle(),
      m: () => toggle("show_masks"),
      p: () => toggle("show_prompts"),
      0: () => this.hide(this.model.get("hidden").length ? [] : this.model.get("objects").keys()),
    };
    for (let n = 1; n <= 9; n++) actions[n] = () => this.toggleObject(n - 1);
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    // Space on a button or a check box presses it.
    if (!action || (event.key === " " && target.matches("button, [type=checkbox]"))) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  hide(positions) {
    this.set("hidden", [...positions]);
  }

  toggleObject(n) {
    if (n >= this.model.get("objects").length) return;
    const hidden = this.model.get("hidden");
    this.hide(hidden.includes(n) ? hidden.filter((m) => m !== n) : [...hidden, n]);
  }

  // ------------------------------------------------------------------ frames from the kernel

  // After a change of the video: discard all frames and J.
  reset() {
    this.count = this.model.get("num_frames");
    this.measured = { done: 0, J: {}, counted: {}, annotated: [], fault: "" };
    this.curvesRequested = false;
    this.refetch();
  }

  // After a change of the layers: request the frames again; J remains valid.
  refetch() {
    const { model } = this;
    this.layers = [...new Set([model.get("left"), model.get("right")])].filter((name) => name);
    const key = JSON.stringify([model.get("video"), this.layers]);
    if (key !== this.frameKey) {
      this.frameKey = key;
      this.cache.clear();
      this.requested.clear();
    }
    this.fill();
    this.draw();
    this.show();
  }

  framesToLoad() {
    const t = this.model.get("frame");
    const near = this.playing ? [...Array(FRAMES_AHEAD).keys()].map((n) => t + 1 + n)
      : [t + 1, t - 1, t + 2, t - 2];
    return [t, ...near].filter((n) => n >= 0 && n < this.count);
  }

  // Request missing frames, the current one first; measure J when no frame is missing.
  pump() {
    const video = this.model.get("video");
    const { entries } = this.cache;
    const missing = this.framesToLoad().filter((t) => !entries.has(t) && !this.requested.has(t));
    for (const t of missing.slice(0, IN_FLIGHT - this.requested.size)) {
      this.requested.add(t);
      this.model.send({ type: "frame", key: this.frameKey, video, t, layers: this.layers });
    }
    const { done, fault } = this.measured;
    if (this.requested.size || this.curvesRequested || done >= this.count || fault) return;
    this.curvesRequested = true;
    this.model.send({ type: "curves", video, first: done });
  }

  receive(content, buffers) {
    if (content.type === "frame" && content.key === this.frameKey) {
      this.requested.delete(content.t);
      const bytes = buffers.reduce((sum, buffer) => sum + buffer.byteLength, 0);
      this.cache.set(content.t, { ...content, buffers, bytes });
      if (content.t === this.model.get("frame")) this.show();
    }
    if (content.type === "curves" && content.video === this.model.get("video")) {
      this.curvesRequested = false;
      this.addCurves(content);
    }
    this.pump();
  }

  addCurves({ J, counted, annotated, first, until, fault }) {
    const measured = this.measured;
    const put = (row, values) => values.forEach((value, n) => (row[first + n] = value));
    for (const [layer, rows] of Object.entries(J))
      for (const [n, values] of Object.entries(rows))
        put(((measured.J[layer] ??= {})[n] ??= []), values);
    for (const [layer, values] of Object.entries(counted))
      put((measured.counted[layer] ??= []), values);
    put(measured.annotated, annotated);
    measured.done = Math.max(measured.done, until);
    measured.fault = fault;
    if (!this.drawing) // several answers may arrive between two repaints
      this.drawing = requestAnimationFrame(() => ((this.drawing = 0), this.draw(), this.fill()));
  }

  // ------------------------------------------------------------------ time

  goto(t) {
    const frame = Math.min(this.count - 1, Math.max(0, t));
    if (frame !== this.model.get("frame")) this.set("frame", frame);
    return this.show();
  }

  // Paint the current frame if it is cached; otherwise receive() calls this again when it arrives.
  async show() {
    const t = this.model.get("frame");
    this.position.textContent = `frame ${t} / ${this.count - 1}`;
    this.slider.value = t;
    this.cursor.style.left = `${this.shareOf(t) * 100}%`;
    const [entry, key] = [this.cache.get(t), this.frameKey];
    this.pump();
    if (!entry) return;
    if (this.shown?.entry !== entry) {
      const decoded = await decode(entry); // the frame may change meanwhile
      if (this.model.get("frame") !== t || this.frameKey !== key) return;
      this.shown?.image.close();
      this.shown = { ...decoded, entry };
    }
    this.fill();
    this.paint();
    this.painted?.();
  }

  toggle() {
    if (this.playing) return this.stop();
    this.play();
  }

  stop() {
    this.playing = null;
    this.playButton.textContent = "▶";
    this.root.dataset.playing = "false";
    this.painted?.();
  }

  // Show each frame when it is due and loaded: a slow kernel slows the playback down, and no frame
  // is skipped.
  async play() {
    const playback = (this.playing = {}); // stop() or another play() replaces it
    this.playButton.textContent = "⏸";
    this.root.dataset.playing = "true";
    if (this.model.get("frame") === this.count - 1) this.goto(0);
    while (this.playing === playback) {
      const [start, t] = [performance.now(), this.model.get("frame") + 1];
      if (t >= this.count) return this.stop();
      await new Promise((done) => {
        this.painted = () => (this.shown?.t === t || this.playing !== playback) && done();
        this.goto(t);
      });
      await sleep(1000 / this.model.get("fps") - (performance.now() - start));
    }
  }

  // ------------------------------------------------------------------ drawing

  color(n) {
    const colors = this.model.get("colors").objects;
    return colors[n % colors.length];
  }

  // Name of a layer for display; the kernel has replaced invisible characters.
  label(name) {
    const n = this.model.get("layers").indexOf(name);
    return n < 0 ? "frame only" : this.model.get("layer_labels")[n];
  }

  // Update the controls and texts around the image.
  fill() {
    const { model } = this;
    this.videoChoice.value = model.get("video");
    this.videoChoice.title = `Video ${model.get("videos")[model.get("video")]}`;
    for (const [side, choice] of Object.entries(this.sides)) {
      const names = [...model.get("layers"), ""];
      refill(choice, names, () => names.forEach((name) =>
        make("option", { value: name, textContent: this.label(name) }, choice)));
      choice.value = model.get(side);
      choice.parentElement.hidden = !model.get("layers").length;
    }
    this.slider.max = this.count - 1;
    this.slider.value = model.get("frame");
    this.speed.value = Number(model.get("fps").toFixed(2));
    this.masks.checked = model.get("show_masks");
    this.prompts.checked = model.get("show_prompts");
    this.prompts.parentElement.hidden = !model.get("marks").length;
    this.tools.hidden = !model.get("layers").length && !model.get("marks").length;
    this.perObject.parentElement.hidden = !Object.keys(this.measured.counted).length;
    this.opacity.value = model.get("opacity");
    this.fillObjects();
    this.fillLegend();
    const { shown, measured } = this;
    const addBadge = (text) => make("span", { textContent: text }, this.badges);
    this.badges.replaceChildren();
    for (const name of shown?.missing ?? [])
      addBadge(name === "truth" ? "unannotated" : `${this.label(name)}: no masks for this frame`);
    const faults = [...(shown?.faults ?? []), measured.fault, model.get("error")];
    this.error.textContent = [...new Set(faults)].filter((text) => text).join("\n");
  }

  fillObjects() {
    const names = this.model.get("objects");
    refill(this.chips, names, () => names.forEach((name, n) => {
      const key = n < 9 ? ` (key ${n + 1})` : "";
      const chip = make("button", { title: `Show or hide object ${name}${key}` }, this.chips);
      chip.onclick = () => this.toggleObject(n);
      make("i", {}, chip).style.background = rgb(this.color(n));
      chip.append(n < 9 && name !== `${n + 1}` ? `${n + 1}: ${name}` : name);
    }));
    const hidden = this.model.get("hidden");
    [...this.chips.children].forEach((chip, n) =>
      chip.setAttribute("aria-pressed", !hidden.includes(n)));
  }

  visible() {
    const hidden = this.model.get("hidden");
    return [...this.model.get("objects").keys()].filter((n) => !hidden.includes(n));
  }

  // J of an object on a frame: 1 if neither ground truth nor tracker has it, null if not measured.
  value(layer, n, t) {
    const { J, counted } = this.measured;
    return J[layer]?.[n]?.[t] ?? (counted[layer]?.[t] ? 1 : null);
  }

  mean(layer, t, objects = this.visible()) {
    const values = objects.map((n) => this.value(layer, n, t)).filter((v) => v !== null);
    return values.length ? values.reduce((a, b) => a + b) / values.length : null;
  }

  fillLegend() {
    this.legend.replaceChildren();
    const trackers = Object.keys(this.measured.counted);
    trackers.forEach((layer, k) => {
      const entry = make("span", {}, this.legend);
      // With one line per object, colours stand for objects and dashes for trackers.
      const perObject = this.perObject.checked;
      const style = {
        stroke: perObject ? "currentColor" : rgb(this.lineColor(k)),
        "stroke-dasharray": perObject ? DASHES[k % DASHES.length] : "",
      };
      const line = svg("svg", { class: "line", viewBox: "0 0 30 4" });
      line.append(svg("path", { d: "M0 2h30", "stroke-width": 3, ...style }));
      entry.append(line);
      const J = this.mean(layer, this.model.get("frame"));
      entry.append(J === null ? this.label(layer) : `${this.label(layer)}: J ${J.toFixed(2)}`);
    });
    const { done } = this.measured;
    if (trackers.length && done < this.count)
      make("span", { textContent: `measured ${done} of ${this.count} frames` }, this.legend);
  }

  lineColor(k) {
    const colors = this.model.get("colors").lines;
    return colors[k % colors.length];
  }

  shareOf(t) {
    return this.count > 1 ? t / (this.count - 1) : 0.5;
  }

  frameAt(event) {
    const box = this.chart.getBoundingClientRect();
    return Math.round(((event.clientX - box.left) / box.width) * (this.count - 1));
  }

  // Draw J over time, one line per tracker or per tracker and object; mark unannotated frames below.
  draw() {
    const { measured, count } = this;
    const trackers = Object.keys(measured.counted);
    const truth = this.model.get("layers").includes("truth");
    this.chart.hidden = !truth;
    this.chart.classList.toggle("flat", !trackers.length);
    const width = Math.max(1, count - 1);
    const objects = this.visible();
    this.curves.setAttribute("viewBox", `0 0 ${width} 1.12`);
    this.curves.replaceChildren();
    const line = (color, dash, value) => {
      let path = "";
      for (let t = 0; t < measured.done; t++) {
        const J = value(t);
        if (J !== null) path += `${path ? "L" : "M"}${this.shareOf(t) * width} ${1.02 - J}`;
      }
      const style = { stroke: rgb(color), "stroke-dasharray": dash, class: "J" };
      if (path) this.curves.append(svg("path", { d: `${path}h0`, ...style }));
    };
    trackers.forEach((layer, k) => {
      const dash = DASHES[k % DASHES.length];
      if (!this.perObject.checked) line(this.lineColor(k), "", (t) => this.mean(layer, t, objects));
      else for (const n of objects) line(this.color(n), dash, (t) => this.value(layer, n, t));
    });
    let gaps = "";
    for (let t = 0; t < measured.done; t++)
      if (!measured.annotated[t]) gaps += `M${this.shareOf(t) * width - 0.5} 1.08h1`;
    if (gaps) this.curves.append(svg("path", { d: gaps, class: "gaps" }));
    this.root.dataset.measured = measured.done;
    this.fillLegend();
  }

  // Colour the labels of a plane; outlines are opaque.
  tint({ base, canvas, context, pixels, labels }) {
    const { width } = canvas;
    const colors = new Uint32Array(256);
    const edges = new Uint32Array(256);
    const shown = new Set(this.visible());
    for (let label = 1; label < 256; label++) {
      const n = 255 * base + label - 1;
      if (!shown.has(n)) continue;
      const [r, g, b] = this.color(n);
      const solid = (b << 16) | (g << 8) | r;
      colors[label] = solid | (Math.round(255 * this.model.get("opacity")) << 24);
      edges[label] = solid | (255 << 24);
    }
    const out = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < labels.length; i++) {
      const label = labels[i];
      const inside = label === labels[i - 1] && label === labels[i + 1] &&
        label === labels[i - width] && label === labels[i + width];
      out[i] = label ? (inside ? colors : edges)[label] : 0;
    }
    context.putImageData(pixels, 0, 0);
  }

  paint() {
    const { shown, canvas, model } = this;
    if (shown?.key !== this.frameKey) return; // frames of the current layers have been requested
    const zoom = Math.max(1, Math.ceil(MIN_WIDTH / shown.image.width));
    const [width, height] = [shown.image.width * zoom, shown.image.height * zoom];
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(shown.image, 0, 0, width, height);
    const split = model.get("left") !== model.get("right");
    const border = split ? model.get("swipe") * width : width;
    if (model.get("show_masks")) {
      for (const plane of shown.planes) this.tint(plane);
      this.layer(context, model.get("left"), 0, border);
      if (split) this.layer(context, model.get("right"), border, width);
    }
    if (model.get("show_prompts")) this.drawPrompts(context, width / shown.size[1]);
    if (split) this.drawSwipe(context, border, width, height);
    this.root.dataset.frame = shown.t;
    this.root.dataset.layers = JSON.stringify(this.layers);
    this.root.dataset.ready = "true";
    this.root.dataset.seq = Number(this.root.dataset.seq) + 1;
  }

  layer(context, name, from, to) {
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, context.canvas.height);
    context.clip();
    for (const plane of this.shown.planes.filter((p) => p.layer === name))
      context.drawImage(plane.canvas, 0, 0, context.canvas.width, context.canvas.height);
    context.restore();
  }

  drawSwipe(context, border, width, height) {
    context.fillStyle = "white";
    context.fillRect(border - 1, 0, 2, height);
    context.font = `${Math.round(width / 50)}px sans-serif`;
    context.textBaseline = "bottom";
    context.strokeStyle = "black";
    context.lineWidth = 3;
    for (const [name, align, x] of [["left", "right", border - 8], ["right", "left", border + 8]]) {
      context.textAlign = align;
      context.strokeText(this.label(this.model.get(name)), x, height - 6);
      context.fillText(this.label(this.model.get(name)), x, height - 6);
    }
  }

  // Positive clicks are discs, negative ones crosses, as in sam2kit.viz.overlays.
  drawPrompts(context, scale) {
    const unit = Math.max(4, context.canvas.width / 120);
    const { positive, negative, box } = this.model.get("colors");
    const at = ([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale];
    const stroke = (color, path, close = false) => {
      for (const [style, width] of [["white", unit], [rgb(color), unit / 2]]) {
        Object.assign(context, { strokeStyle: style, lineWidth: width });
        context.beginPath();
        path.map(at).forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
        if (close) context.closePath();
        context.stroke();
      }
    };
    const disc = (point) => {
      for (const [style, radius] of [["white", unit], [rgb(positive), 0.65 * unit]]) {
        context.fillStyle = style;
        context.beginPath();
        context.arc(...at(point), radius, 0, 2 * Math.PI);
        context.fill();
      }
    };
    const visible = new Set(this.visible());
    const current = this.model.get("marks").filter((mark) => mark.frame === this.shown.t);
    for (const mark of current.filter((m) => visible.has(m.object))) {
      for (const outline of mark.outline ?? []) stroke(this.color(mark.object), outline, true);
      const { points = [], labels = [] } = mark;
      const corner = labels.indexOf(2);
      if (corner >= 0) {
        const [[x0, y0], [x1, y1]] = [points[corner], points[labels.indexOf(3)]];
        stroke(box, [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], true);
      }
      const d = (0.8 * unit) / scale;
      points.forEach(([x, y], n) => {
        if (labels[n] === 1) disc([x, y]);
        if (labels[n] !== 0) return;
        stroke(negative, [[x - d, y - d], [x + d, y + d]]);
        stroke(negative, [[x - d, y + d], [x + d, y - d]]);
      });
    }
  }

  close() {
    this.stop();
    cancelAnimationFrame(this.drawing);
    this.model.off("msg:custom", this.received);
    for (const [names, action] of this.watched)
      this.model.off(names.map((n) => `change:${n}`).join(" "), action);
  }
}

export default {
  render({ model, el }) {
    const browser = new ClipBrowser(model, el);
    return () => browser.close();
  },
};
