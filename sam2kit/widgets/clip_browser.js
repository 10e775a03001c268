// View of the clip browser: requests frames from the kernel (clip_browser.py) on demand, caches a
// bounded number of them, and draws them with masks, prompts and the swipe. common.js is prepended to
// this file.

const CACHE_BYTES = 48 * 2 ** 20; // encoded frames; one is about 0.1 MB
const FRAMES_AHEAD = 12; // frames requested in advance while playing
const IN_FLIGHT = 2; // maximum number of open requests, so that dragging the slider does not build up a queue
const MAX_HEIGHT = 480; // of the frame, in CSS pixels
// Line styles of the trackers if colours represent objects.
const DASHES = ["", "7 3", "2 3", "10 3 2 3", "1 6"];

// LRU cache of encoded frames, limited to CACHE_BYTES.
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
    // A Map iterates in insertion order, so the least recently used entry comes first.
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
  const image = await createImageBitmap(new Blob([entry.buffers[0]], { type: "image/jpeg" }));
  const planes = [];
  for (const [n, plane] of entry.planes.entries())
    planes.push({ ...plane, ...(await decodeLabels(entry.buffers[n + 1])) });
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

  // ------------------------------------------------------------------ elements

  build(el) {
    const root = make("div", { className: "sam2kit sam2kit-clip", tabIndex: 0 }, el);
    root.setAttribute("aria-label", "Clip browser");
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
    make("span", { className: "space" }, top);
    const helpButton = make("button", { textContent: "?", title: "Keyboard shortcuts (?)" }, top);
    helpButton.onclick = () => this.keyboard.help();
    this.stage = make("div", { className: "stage" }, root);
    this.canvas = make("canvas", {}, this.stage);
    this.badges = make("div", { className: "badges" }, this.stage);
    this.viewport = new Viewport(this.canvas, () => this.redraw());
    const zoom = make("div", { className: "zoom" }, this.stage);
    const zoomButton = (text, title, action) =>
      Object.assign(make("button", { textContent: text, title }, zoom), { onclick: action });
    zoomButton("−", "Zoom out (−)", () => this.viewport.zoomBy(1 / ZOOM_STEP));
    this.zoomText = zoomButton("1×", "Fit the whole frame (f)", () => this.viewport.fit());
    zoomButton("+", "Zoom in (+)", () => this.viewport.zoomBy(ZOOM_STEP));
    const bar = make("div", { className: "bar" }, root);
    const icon = (name, title, action) => {
      const element = make("button", { title, onclick: action }, bar);
      setIcon(element, name);
      return element;
    };
    icon("back", "Previous frame (←)", () => this.step(-1));
    this.playButton = icon("play", "Play or pause (Space)", () => this.togglePlay());
    icon("next", "Next frame (→)", () => this.step(1));
    const range = { type: "range", min: 0, step: 1, title: "Frame (← →)" };
    this.slider = make("input", { ...range, className: "frames" }, bar);
    this.position = make("output", { className: "position", title: FRAME_TITLE }, bar);
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
    this.opacity = make("input", { ...zeroToOne, title: "Mask opacity (, and .)" }, tools);
    this.outlines = check("outlines");
    this.prompts = check("prompts");
    this.perObject = check("J per object");
    this.error = make("div", { className: "error", role: "alert" }, root);
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
      [["opacity", "swipe", "show_masks", "show_outlines", "show_prompts"],
        () => (this.fill(), this.paint())],
      [["fps", "error"], () => this.fill()],
    ];
    for (const [names, action] of this.watched) on(names, action);
    this.videoChoice.onchange = () => {
      this.stop();
      model.send({ type: "open", video: Number(this.videoChoice.value) });
    };
    for (const [side, choice] of Object.entries(this.sides))
      choice.onchange = () => this.set(side, choice.value);
    this.slider.oninput = () => (this.stop(), this.goto(Number(this.slider.value)));
    this.speed.onchange = () => this.speed.checkValidity() && this.set("fps", +this.speed.value);
    this.masks.onchange = () => this.set("show_masks", this.masks.checked);
    this.outlines.onchange = () => this.set("show_outlines", this.outlines.checked);
    this.prompts.onchange = () => this.set("show_prompts", this.prompts.checked);
    this.opacity.oninput = () => this.set("opacity", Number(this.opacity.value));
    this.perObject.onchange = () => this.draw();
    this.chart.onclick = (event) => (this.stop(), this.goto(this.frameAt(event)));
    const swipe = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      if (event.buttons & 1 && this.swiping && model.get("left") !== model.get("right"))
        this.set("swipe", Math.min(1, Math.max(0, share)));
    };
    this.canvas.onpointerdown = (event) => {
      this.root.focus({ preventScroll: true });
      this.canvas.setPointerCapture(event.pointerId);
      this.swiping = true;
      swipe(event);
    };
    this.canvas.onpointermove = swipe;
    this.canvas.onpointerup = this.canvas.onpointercancel = () => (this.swiping = false);
    this.keyboard = new Keyboard(this.root, [
      ...commonKeys(this),
      [["1–9"], "show or hide an object", (n) => this.toggleObject(n)],
      [["Escape"], "stop playing, close this list",
        () => (this.keyboard.panel.hidden ? this.stop() : this.keyboard.help(false))],
    ]);
    this.viewport.listenToWheel(this.root);
    this.panning = new Panning(this.root, this.stage, this.viewport, () => this.togglePlay());
    this.resizing = new ResizeObserver(() => this.paint());
    this.resizing.observe(this.root);
  }

  step(by) {
    this.stop();
    this.goto(this.model.get("frame") + by);
  }

  go(t) {
    this.stop();
    this.goto(t);
  }

  toggle(name) {
    this.set(`show_${name}`, !this.model.get(`show_${name}`));
  }

  toggleAll() {
    this.hide(this.model.get("hidden").length ? [] : this.model.get("objects").keys());
  }

  fade(by) {
    this.set("opacity", clamp(Math.round((this.model.get("opacity") + by) * 10) / 10, 0, 1));
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

  // The video has changed: discard all frames and J.
  reset() {
    this.count = this.model.get("num_frames");
    this.measured = { done: 0, J: {}, counted: {}, annotated: [], fault: "" };
    this.curvesRequested = false;
    this.refetch();
  }

  // The layers have changed: request the frames again; J remains valid.
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
    this.position.textContent = framePosition(t, this.count, this.model.get("numbers"));
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

  togglePlay() {
    if (this.playing) return this.stop();
    this.play();
  }

  stop() {
    this.playing = null;
    setIcon(this.playButton, "play");
    this.root.dataset.playing = "false";
    this.painted?.();
  }

  // Show each frame when it is due and loaded: a slow kernel slows the playback down, and no frame
  // is skipped.
  async play() {
    const playback = (this.playing = {}); // stop() or another play() replaces it
    setIcon(this.playButton, "pause");
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
    this.outlines.checked = model.get("show_outlines");
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

  // J of an object on a frame: 1 if it is in neither mask, null if not measured.
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
      // With one line per object, colours represent objects and dashes represent trackers.
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

  redraw() {
    this.repainting ??= requestAnimationFrame(() => ((this.repainting = undefined), this.paint()));
  }

  paint() {
    const { shown, canvas, model, viewport } = this;
    if (shown?.key !== this.frameKey) return; // frames of the current layers have been requested
    const [rows, columns] = shown.size;
    const style = getComputedStyle(this.root);
    const space = this.root.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    viewport.resize(columns, rows, space, clamp(window.innerHeight * 0.55, 260, MAX_HEIGHT));
    const { width, height } = canvas;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    viewport.apply(context);
    context.imageSmoothingEnabled = (viewport.scale * columns) / shown.image.width < 2;
    context.drawImage(shown.image, 0, 0, columns, rows);
    context.setTransform(1, 0, 0, 1, 0, 0);
    const split = model.get("left") !== model.get("right");
    const border = split ? model.get("swipe") * width : width;
    if (model.get("show_masks")) {
      const visible = new Set(this.visible());
      this.colorOf = (n) => (visible.has(n) ? this.color(n) : null);
      for (const plane of shown.planes) tint(plane, this.colorOf);
      this.layer(context, model.get("left"), 0, border);
      if (split) this.layer(context, model.get("right"), border, width);
    }
    if (model.get("show_prompts")) this.drawPrompts(context);
    if (split) this.drawSwipe(context, border, width, height);
    this.zoomText.textContent = `${Number(viewport.zoom.toFixed(1))}×`;
    this.root.dataset.zoom = viewport.zoom.toFixed(2);
    this.root.dataset.frame = shown.t;
    this.root.dataset.layers = JSON.stringify(this.layers);
    this.root.dataset.ready = "true";
    this.root.dataset.seq = Number(this.root.dataset.seq) + 1;
  }

  layer(context, name, from, to) {
    const planes = this.shown.planes.filter((p) => p.layer === name);
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, context.canvas.height);
    context.clip();
    drawPlanes(context, this.viewport, planes, [0, 0, this.viewport.columns, this.viewport.rows], {
      colorOf: this.colorOf, opacity: this.model.get("opacity"), fill: true,
      outline: this.model.get("show_outlines"), selected: null,
    });
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

  drawPrompts(context) {
    const at = ([x, y]) => this.viewport.toCanvas(x + 0.5, y + 0.5);
    const visible = new Set(this.visible());
    const current = this.model.get("marks").filter((mark) => mark.frame === this.shown.t);
    for (const mark of current.filter((m) => visible.has(m.object))) {
      for (const outline of mark.outline ?? []) {
        for (const [style, width] of [["white", 4], [rgb(this.color(mark.object)), 2]]) {
          Object.assign(context, { strokeStyle: style, lineWidth: width });
          context.beginPath();
          outline.map(at).forEach(([x, y]) => context.lineTo(x, y));
          context.closePath();
          context.stroke();
        }
      }
      const { points = [], labels = [] } = mark;
      const corner = labels.indexOf(2);
      if (corner >= 0) drawBox(context, [...at(points[corner]), ...at(points[labels.indexOf(3)])]);
      points.forEach((point, n) => labels[n] < 2 && drawClick(context, ...at(point), labels[n] === 1));
    }
  }

  close() {
    this.stop();
    cancelAnimationFrame(this.drawing);
    cancelAnimationFrame(this.repainting);
    this.resizing.disconnect();
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
