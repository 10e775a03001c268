// Code of both widgets' views. base.py prepends this file to annotator.js and clip_browser.js, which
// cannot import other files.

const COLORS = { positive: "#009e73", negative: "#d55e00", box: "#f0e442", halo: "#ffffff" };
const MAX_PIXEL = 48; // canvas pixels per frame pixel at maximum zoom
const ZOOM_STEP = 1.25;

const rgb = (color, alpha = 1) => `rgb(${color.join(" ")} / ${alpha})`;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
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

// Icons as SVG paths in a 16 x 16 square, because fonts lack some of these characters.
const ICONS = {
  back: "M10 3 5 8l5 5",
  next: "M6 3l5 5-5 5",
  play: "M5 3v10l8-5z",
  pause: "M5 3v10M11 3v10",
  shown: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8zM8 6.2a1.8 1.8 0 1 0 .01 0",
  hidden: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8zM3 13.5 13 2.5",
  keep: "M3 8.5l3.5 3.5L13 4.5",
  remove: "M4 4l8 8M12 4l-8 8",
  reload: "M13 8a5 5 0 1 1-1.6-3.7M13 2.5v3h-3",
};

function setIcon(button, name) {
  if (button.dataset.icon === name) return;
  button.dataset.icon = name;
  const image = svg("svg", { viewBox: "0 0 16 16", class: "icon", "aria-hidden": true });
  const fill = name === "play" ? "currentColor" : "none";
  image.append(svg("path", { d: ICONS[name], fill }));
  button.replaceChildren(image);
}

// Rebuild an element only if its content has changed: a button that is replaced between press and
// release would lose the click.
function refill(element, content, build) {
  const text = JSON.stringify(content);
  if (element.dataset.content === text) return;
  element.dataset.content = text;
  element.replaceChildren();
  build();
}

// Text for the position of a frame, counted from 0 as in file names, JSON files and methods. Frames of
// a part of a video have their numbers in the whole video.
const framePosition = (t, count, numbers = []) =>
  `frame ${numbers[t] ?? t} of ${numbers[0] ?? 0}–${numbers[count - 1] ?? count - 1}`;
const FRAME_TITLE = "Frame index, counted from 0 as in file names and JSON files";

// ------------------------------------------------------------------ masks

// Decode a PNG of labels without changing the label values.
async function decodeLabels(bytes) {
  const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), exact);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const labels = new Uint8Array(pixels.data.length / 4);
  for (let i = 0; i < labels.length; i++) labels[i] = pixels.data[4 * i];
  return { canvas, context, pixels, labels };
}

// Colour the labels of a plane. colorOf(position) returns [r, g, b], or null for a hidden object.
// Contours are drawn by outlines(), so that they are sharp at every zoom level.
function tint({ base, context, pixels, labels }, colorOf) {
  const colors = new Uint32Array(256);
  for (let label = 1; label < 256; label++) {
    const color = colorOf(255 * base + label - 1);
    if (color) colors[label] = (255 << 24) | (color[2] << 16) | (color[1] << 8) | color[0];
  }
  const out = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < labels.length; i++) out[i] = colors[labels[i]];
  context.putImageData(pixels, 0, 0);
}

// Return the outlines of a plane's objects as paths between pixels, by position of the object.
function outlines({ base, canvas, labels }) {
  const { width, height } = canvas;
  const paths = new Map();
  const path = (label) => {
    if (!paths.has(label)) paths.set(label, new Path2D());
    return paths.get(label);
  };
  const scan = (count, length, at, line) => {
    for (let row = 0; row <= count; row++) {
      for (const side of [-1, 0]) {
        const inside = row + side;
        if (inside < 0 || inside >= count) continue;
        const beyond = inside + (side ? 1 : -1);
        let start = 0, label = 0;
        for (let n = 0; n <= length; n++) {
          const value = n < length ? labels[at(inside, n)] : 0;
          const isEdge = value && (beyond < 0 || beyond >= count || labels[at(beyond, n)] !== value);
          const current = isEdge ? value : 0;
          if (current === label) continue;
          if (label) line(path(label), row, start, n);
          [start, label] = [n, current];
        }
      }
    }
  };
  scan(height, width, (y, x) => y * width + x,
    (p, y, from, to) => (p.moveTo(from, y), p.lineTo(to, y)));
  scan(width, height, (x, y) => y * width + x,
    (p, x, from, to) => (p.moveTo(x, from), p.lineTo(x, to)));
  return new Map([...paths].map(([label, p]) => [255 * base + label - 1, p]));
}

// Draw planes that cover the rectangle [x0, y0, x1, y1] of the frame.
function drawPlanes(context, view, planes, rect, { colorOf, opacity, fill, outline, selected }) {
  const [x0, y0, x1, y1] = rect;
  context.save();
  view.apply(context);
  context.imageSmoothingEnabled = false;
  context.globalAlpha = opacity;
  if (fill)
    for (const { canvas } of planes) context.drawImage(canvas, x0, y0, x1 - x0, y1 - y0);
  context.globalAlpha = 1;
  if (outline) {
    for (const plane of planes) {
      plane.paths ??= outlines(plane);
      context.save();
      context.translate(x0, y0);
      context.scale((x1 - x0) / plane.canvas.width, (y1 - y0) / plane.canvas.height);
      const unit = plane.canvas.width / ((x1 - x0) * view.scale); // plane pixels per canvas pixel
      context.lineCap = "square";
      for (const [n, path] of plane.paths) {
        const color = colorOf(n);
        if (!color) continue;
        // A dark line around the coloured one makes it visible on any image.
        const width = n === selected ? 2.6 : 1.5;
        for (const [style, w] of [["rgb(0 0 0 / 0.75)", width + 1.6], [rgb(color), width]]) {
          context.strokeStyle = style;
          context.lineWidth = w * unit * (window.devicePixelRatio || 1);
          context.stroke(path);
        }
      }
      context.restore();
    }
  }
  context.restore();
}

// ------------------------------------------------------------------ prompts

function drawBox(context, [x0, y0, x1, y1], color = COLORS.box) {
  for (const [style, width] of [["rgb(0 0 0 / 0.7)", 4], [color, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

// Draw a click: a disc with a plus (on the object) or a minus (off the object).
function drawClick(context, x, y, positive) {
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

// ------------------------------------------------------------------ zoom

// The visible part of a frame on a canvas. Frame coordinates refer to pixel corners: the centre of
// pixel 0 is at 0.5.
class Viewport {
  constructor(canvas, changed) {
    Object.assign(this, { canvas, changed, columns: 1, rows: 1, zoom: 1, x: 0.5, y: 0.5 });
  }

  // Fit a frame into an area of the page, in CSS pixels.
  resize(columns, rows, width, height) {
    const isOther = columns !== this.columns || rows !== this.rows;
    Object.assign(this, { columns, rows });
    const fit = Math.max(0.01, Math.min(width / columns, height / rows));
    const density = window.devicePixelRatio || 1;
    this.canvas.style.width = `${Math.round(columns * fit)}px`;
    this.canvas.style.height = `${Math.round(rows * fit)}px`;
    const size = [columns, rows].map((n) => Math.max(1, Math.round(n * fit * density)));
    if (this.canvas.width !== size[0]) this.canvas.width = size[0];
    if (this.canvas.height !== size[1]) this.canvas.height = size[1];
    if (isOther) this.fit();
    this.limit();
  }

  get scale() { // canvas pixels per pixel of the frame
    return (this.canvas.width / this.columns) * this.zoom;
  }

  get rect() { // the visible part of the frame: x0, y0, x1, y1
    const [w, h] = [this.columns / this.zoom / 2, this.rows / this.zoom / 2];
    const [x, y] = [this.x * this.columns, this.y * this.rows];
    return [x - w, y - h, x + w, y + h];
  }

  limit() {
    const strongest = Math.max(1, (MAX_PIXEL * this.columns) / this.canvas.width);
    this.zoom = clamp(this.zoom, 1, strongest);
    const half = 0.5 / this.zoom;
    this.x = clamp(this.x, half, 1 - half);
    this.y = clamp(this.y, half, 1 - half);
  }

  apply(context) {
    const [x0, y0] = this.rect;
    const rowScale = (this.canvas.height / this.rows) * this.zoom;
    context.setTransform(this.scale, 0, 0, rowScale, -x0 * this.scale, -y0 * rowScale);
  }

  toCanvas(x, y) {
    const [x0, y0] = this.rect;
    return [(x - x0) * this.scale, (y - y0) * (this.canvas.height / this.rows) * this.zoom];
  }

  toFrame(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const [x0, y0, x1, y1] = this.rect;
    return [x0 + ((clientX - box.left) / box.width) * (x1 - x0),
      y0 + ((clientY - box.top) / box.height) * (y1 - y0)];
  }

  // The pixel of the frame under the pointer.
  pixel(event) {
    const [x, y] = this.toFrame(event.clientX, event.clientY);
    return [clamp(Math.floor(x), 0, this.columns - 1), clamp(Math.floor(y), 0, this.rows - 1)];
  }

  fit() {
    Object.assign(this, { zoom: 1, x: 0.5, y: 0.5 });
    this.changed();
  }

  // Zoom around the pointer, or around the centre without a pointer.
  zoomBy(factor, event = null) {
    const point = event && this.toFrame(event.clientX, event.clientY);
    this.zoom *= factor;
    this.limit();
    if (point) {
      const moved = this.toFrame(event.clientX, event.clientY);
      this.x += (point[0] - moved[0]) / this.columns;
      this.y += (point[1] - moved[1]) / this.rows;
      this.limit();
    }
    this.changed();
  }

  // Move by a distance on the page, in CSS pixels.
  pan(dx, dy) {
    const box = this.canvas.getBoundingClientRect();
    this.x -= dx / box.width / this.zoom;
    this.y -= dy / box.height / this.zoom;
    this.limit();
    this.changed();
  }

  // The wheel only zooms if the widget has the focus, so that a notebook can be scrolled past it.
  listenToWheel(root) {
    this.canvas.addEventListener("wheel", (event) => {
      const hasFocus = root.contains(document.activeElement);
      if (!hasFocus && !event.ctrlKey && !event.metaKey) return;
      if (event.deltaY > 0 && this.zoom === 1) return;
      event.preventDefault();
      this.zoomBy(ZOOM_STEP ** clamp(-event.deltaY / 60, -3, 3), event);
    }, { passive: false });
  }
}

// ------------------------------------------------------------------ keys

// Handle the keys of a widget, regardless of which of its elements has the focus.
//
// Bindings are [keys, help text, action(event)], with key names as in KeyboardEvent.key and "1–9" for
// the digits. Arrow keys always change the frame, also on sliders, but not in text fields and lists.
// No key reaches the notebook.
class Keyboard {
  constructor(root, bindings) {
    root.dataset.lmSuppressShortcuts = "true"; // JupyterLab ignores keys below this element
    this.root = root;
    this.bindings = bindings;
    this.panel = this.buildHelp();
    this.actions = new Map();
    for (const [keys, , action] of bindings)
      for (const key of keys) if (action) this.actions.set(key, action);
    root.addEventListener("keydown", (event) => this.press(event), true);
    root.addEventListener("keyup", (event) => event.stopPropagation());
    root.addEventListener("keydown", (event) => event.stopPropagation());
    // A button or list that was used with the pointer gives up the focus, so that Space and the arrow
    // keys work as shortcuts again.
    root.addEventListener("click", (event) => {
      if (event.detail && event.target.closest("button")) this.focus();
    });
    root.addEventListener("change", (event) => {
      if (event.target.matches("select, [type=range], [type=checkbox]")) this.focus();
    });
  }

  focus() {
    if (!this.root.querySelector("input.editing")) this.root.focus({ preventScroll: true });
  }

  press(event) {
    const { target, key } = event;
    const isText = target.matches("input:not([type=range], [type=checkbox], [type=color])");
    if (isText || target.matches("select, textarea")) {
      if (key === "Escape" || (key === "Enter" && target.type === "number")) this.focus();
      return;
    }
    // Space and Enter activate buttons and check boxes that were focused with Tab.
    if ((key === " " || key === "Enter") && target.matches("button, summary, [type=checkbox]"))
      return;
    if (event.altKey) return;
    const action = this.find(event);
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action(event);
  }

  find(event) {
    const digit = /^Digit([1-9])$/.exec(event.code) ?? /^([1-9])$/.exec(event.key);
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const modifiers = [event.ctrlKey || event.metaKey ? "Ctrl+" : "", event.shiftKey ? "Shift+" : ""];
    if (digit && !modifiers[0]) {
      const action = this.actions.get(event.shiftKey ? "Shift+1–9" : "1–9");
      return action && (() => action(Number(digit[1]) - 1));
    }
    const full = this.actions.get(modifiers.join("") + name);
    // Characters such as ? need Shift on some keyboards.
    return full ?? (modifiers[0] ? undefined : this.actions.get(name));
  }

  buildHelp() {
    const panel = make("div", { className: "help", hidden: true, role: "dialog" }, this.root);
    panel.setAttribute("aria-label", "Keyboard shortcuts");
    const head = make("div", { className: "head" }, panel);
    make("strong", { textContent: "Keyboard shortcuts" }, head);
    make("button", { textContent: "Close", title: "Close (?)" }, head).onclick = () => this.help();
    const list = make("div", { className: "keys" }, panel);
    for (const [keys, text] of this.bindings.filter((binding) => binding[1])) {
      const names = make("span", {}, list);
      for (const key of keys.filter((name) => !HIDDEN_KEYS.has(name)))
        make("kbd", { textContent: KEY_NAMES[key] ?? key.replace("Shift+", "⇧ ").replace("Delete", "Del") }, names);
      make("span", { textContent: text }, list);
    }
    return panel;
  }

  help(shown = this.panel.hidden) {
    this.panel.hidden = !shown;
  }
}
const KEY_NAMES = {
  ArrowLeft: "←", ArrowRight: "→", "Shift+ArrowLeft": "⇧ ←", "Shift+ArrowRight": "⇧ →",
  " ": "Space", Escape: "Esc", Delete: "Del", "-": "−",
};
const HIDDEN_KEYS = new Set(["=", "_", "Backspace", "Shift+Backspace", "Ctrl+Shift+z"]);

// Shortcuts of both widgets. step(by), go(t) and so on are methods of the view.
const commonKeys = (view) => [
  [["ArrowLeft", "ArrowRight"], "previous, next frame",
    (event) => view.step(event.key === "ArrowLeft" ? -1 : 1)],
  [["Shift+ArrowLeft", "Shift+ArrowRight"], "ten frames back, forward",
    (event) => view.step(event.key === "ArrowLeft" ? -10 : 10)],
  [["Home", "End"], "first, last frame", (event) => view.go(event.key === "Home" ? 0 : Infinity)],
  [[" "], "play, pause (hold and drag to pan)", null],
  [["+", "-", "=", "_"], "zoom in, zoom out (also with the wheel)",
    (event) => view.viewport.zoomBy("+=".includes(event.key) ? ZOOM_STEP : 1 / ZOOM_STEP)],
  [["f"], "fit the whole frame", () => view.viewport.fit()],
  [["m"], "show or hide the masks", () => view.toggle("masks")],
  [["o"], "show or hide the outlines", () => view.toggle("outlines")],
  [["p"], "show or hide the prompts", () => view.toggle("prompts")],
  [[",", "."], "decrease, increase mask opacity", (event) => view.fade(event.key === "," ? -0.1 : 0.1)],
  [["0"], "show or hide all objects", () => view.toggleAll()],
  [["Shift+1–9"], "show or hide an object", (n) => view.toggleObject(n)],
  [["?"], "show or close this list", () => view.keyboard.help()],
];

// Pan with Space held down or with the middle button; Space alone plays or pauses.
class Panning {
  constructor(root, stage, viewport, play) {
    this.held = this.moved = false;
    this.drag = null;
    root.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target.matches("input:not([type=range]), select, button, summary"))
        return;
      event.preventDefault();
      if (!this.held) this.moved = false;
      this.held = true;
      stage.classList.add("pan");
    }, true);
    const release = (isKey) => {
      if (this.held && isKey && !this.moved) play();
      this.held = false;
      stage.classList.remove("pan");
    };
    root.addEventListener("keyup", (event) => event.key === " " && release(true), true);
    root.addEventListener("focusout", (event) => root.contains(event.relatedTarget) || release(false));
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 1 && !(this.held && event.button === 0)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      root.focus({ preventScroll: true });
      stage.setPointerCapture(event.pointerId);
      this.drag = [event.clientX, event.clientY];
      this.moved = true;
    }, true);
    stage.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      event.stopImmediatePropagation();
      viewport.pan(event.clientX - this.drag[0], event.clientY - this.drag[1]);
      this.drag = [event.clientX, event.clientY];
    }, true);
    for (const type of ["pointerup", "pointercancel"])
      stage.addEventListener(type, (event) => {
        if (!this.drag) return;
        event.stopImmediatePropagation();
        this.drag = null;
      }, true);
  }
}
