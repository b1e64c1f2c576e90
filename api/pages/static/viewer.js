"use strict";
// One viewport: a film on a canvas, its heatmap over it, lines and marks as SVG whose strokes keep their width.
//
// For a panel that lets a reader mark a place:
//   document.dispatchEvent(new CustomEvent("osteon:mark-start"))     the next drag draws a box instead of moving the film;
//                                                                    with keys: arrows move it, shift resizes, Enter takes it
//   document "osteon:marking"                                                     a box is begun
//   document.dispatchEvent(new CustomEvent("osteon:mark-take"))      takes a box that the reader moved; a begun one stays
//   document.dispatchEvent(new CustomEvent("osteon:mark-end"))       gives a begun box up
//   document "osteon:mark"         detail {image, frame, x, y, width, height}     it was drawn; 0..1 of the film
//   document "osteon:mark-cancel"                                                 Escape was pressed instead
//   document.dispatchEvent(new CustomEvent("osteon:marks", {detail: {marks: [{image, frame, x, y, width, height, label}]}}))
//                                                                    shows these, in place of those shown before

const ZOOM_STEP = 1.25;
const MOST_ZOOM = 16; // screen pixels for one of the film
const SVG = "http://www.w3.org/2000/svg";

class Viewer {
  // changed(what): told after "view" or "window" were changed by hand, "shown" at a new film, and of marks.
  constructor({ stage, canvas, lines, changed }) {
    Object.assign(this, { stage, canvas, lines, changed });
    this.context = canvas.getContext("2d", { alpha: false });
    this.film = this.heat = null;
    this.view = { x: 0, y: 0, scale: 1 }; // the film's point in the upper left corner; CSS pixels for one of the film
    this.fitted = true;
    this.window = [0, 255];
    this.inverted = this.windowing = this.blank = false;
    this.showHeat = this.showLines = this.shutter = true;
    this.opacity = 0.45;
    this.outlines = [];
    this.marks = [];
    this.place = { image: 0, frame: 0 };
    this.box = null; // the mark being drawn, in the film's pixels
    this.before = null; // while a pointer draws: the box as it was before
    this.placed = false; // the reader moved the box by keys
    this.listen();
    new ResizeObserver(() => (this.fitted ? this.fit() : this.paint())).observe(stage);
  }

  // -- what is shown --

  // keep: the same film, in another quality; it stays where it is.
  show(film, { keep, place }) {
    this.film = film;
    this.place = place;
    this.blank = false;
    if (keep) this.paint();
    else this.fit("shown");
    if (this.box && !keep) this.beginMark(); // a box that was begun on another film is drawn anew
  }

  // Nothing, until the next film is there: no picture may stand beside another one's words.
  clear() {
    this.blank = true;
    this.paintNow();
  }

  setWindow(window) {
    this.window = window;
    this.film.setWindow(window, this.inverted);
    this.paint();
  }

  setInverted(on) {
    this.inverted = on;
    this.setWindow(this.window);
  }

  paint() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.paintNow();
    });
  }

  paintNow() {
    const { stage, canvas, context, lines, view, film } = this;
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(stage.clientWidth * dense), Math.round(stage.clientHeight * dense)];
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    if (!film || this.blank) {
      lines.replaceChildren();
      return;
    }
    const device = { x: view.x, y: view.y, scale: view.scale * dense };
    film.draw(context, device);
    if (this.shutter) this.paintShutter(device);
    if (this.heat && this.showHeat) this.heat.draw(context, device, this.opacity);
    this.paintLines();
  }

  // Black over what lies outside the exposed field.
  paintShutter(device) {
    const { context, film } = this;
    const at = (x, y) => [(x * film.width - device.x) * device.scale, (y * film.height - device.y) * device.scale];
    const { field } = film;
    const [left, top] = at(0, 0).map(Math.floor);
    const [right, bottom] = at(1, 1).map(Math.ceil);
    const [from, above] = at(field.x, field.y).map(Math.round);
    const [to, below] = at(field.x + field.width, field.y + field.height).map(Math.round);
    context.fillStyle = "#000";
    if (field.y > 0) context.fillRect(left, top, right - left, above - top);
    if (field.y + field.height < 1) context.fillRect(left, below, right - left, bottom - below);
    if (field.x > 0) context.fillRect(left, above, from - left, below - above);
    if (field.x + field.width < 1) context.fillRect(to, above, right - to, below - above);
  }

  paintLines() {
    const { lines, stage, view, film } = this;
    lines.setAttribute("viewBox", `${view.x} ${view.y} ${stage.clientWidth / view.scale} ${stage.clientHeight / view.scale}`);
    const parts = [];
    if (this.showLines) {
      for (const { name, lines: closed } of this.outlines) {
        if (!closed.length) continue;
        const path = closed.map((line) => `M${line.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`).join("");
        parts.push(element("path", { class: `halo ${name}`, d: path }), element("path", { class: `outline ${name}`, d: path }));
      }
    }
    for (const mark of this.marks) {
      if (mark.image !== this.place.image || mark.frame !== this.place.frame) continue;
      const [x, y] = [mark.x * film.width, mark.y * film.height];
      parts.push(...boxed(x, y, mark.width * film.width, mark.height * film.height, "mark"));
      if (!mark.label) continue;
      const text = element("text", { class: "mark-label", x, y: y - 6 / view.scale, "font-size": 14 / view.scale });
      text.textContent = mark.label;
      parts.push(text);
    }
    if (this.box) parts.push(...boxed(...this.box, "mark drawing"));
    lines.replaceChildren(...parts);
  }

  // -- zoom and pan --

  get fitScale() {
    const { stage, film } = this;
    return Math.min(stage.clientWidth / film.width, stage.clientHeight / film.height);
  }

  fit(what = "view") {
    if (!this.film) return;
    this.view.scale = this.fitScale;
    this.view.x = (this.film.width - this.stage.clientWidth / this.view.scale) / 2;
    this.view.y = (this.film.height - this.stage.clientHeight / this.view.scale) / 2;
    this.moved(true, what);
  }

  // x, y: the stage's point that keeps its place on the film; by default the middle.
  zoomTo(scale, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    if (!this.film) return;
    const { view } = this;
    const next = Math.min(Math.max(scale, this.fitScale / 4), Math.max(MOST_ZOOM, this.fitScale));
    view.x += x / view.scale - x / next;
    view.y += y / view.scale - y / next;
    view.scale = next;
    this.moved(false);
  }

  zoomBy(factor, x, y) {
    this.zoomTo(this.view.scale * factor, x, y);
  }

  // In CSS pixels; the film's middle half never leaves the stage.
  pan(across, down) {
    this.view.x -= across / this.view.scale;
    this.view.y -= down / this.view.scale;
    this.moved(false);
  }

  moved(fitted, what = "view") {
    const { view, film, stage } = this;
    const within = (at, seen, size) => Math.min(Math.max(at, size / 4 - seen), (3 * size) / 4);
    if (!fitted) {
      view.x = within(view.x, stage.clientWidth / view.scale, film.width);
      view.y = within(view.y, stage.clientHeight / view.scale, film.height);
    }
    this.fitted = fitted;
    this.paint();
    this.changed(what);
  }

  // Sideways the width, upwards a lower centre: brighter. A stage's breadth is the film's whole range.
  dragWindow(across, down) {
    if (!this.film) return;
    const { film, stage } = this;
    const [black, white] = this.window;
    const step = (film.most - film.least || 1) / Math.max(300, stage.clientWidth);
    const sign = Math.sign(white - black) || 1;
    const width = Math.max(1, Math.abs(white - black) + across * step);
    const centre = (black + white) / 2 + sign * down * step;
    this.setWindow([centre - (sign * width) / 2, centre + (sign * width) / 2]);
    this.changed("window");
  }

  // -- pointers --

  listen() {
    const { stage } = this;
    const pointers = new Map(); // id to {x, y, button}
    const at = (event) => {
      const edge = stage.getBoundingClientRect();
      return { x: event.clientX - edge.left - stage.clientLeft, y: event.clientY - edge.top - stage.clientTop };
    };
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("dblclick", () => this.fit());
    stage.addEventListener(
      "wheel",
      (event) => {
        if (!this.film) return;
        event.preventDefault();
        const { x, y } = at(event);
        const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 100 : event.deltaY / 3;
        this.zoomBy(ZOOM_STEP ** -Math.min(3, Math.max(-3, lines)), x, y);
      },
      { passive: false },
    );
    stage.addEventListener("pointerdown", (event) => {
      if (!this.film || this.blank || ![0, 1, 2].includes(event.button)) return;
      stage.setPointerCapture(event.pointerId);
      const { x, y } = at(event);
      pointers.set(event.pointerId, { x, y, button: event.button });
      if (this.box && pointers.size === 1) [this.before, this.box] = [this.box, [...this.onFilm(x, y), 0, 0]];
      else this.undraw(); // a second finger: a pinch
    });
    stage.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const now = at(event);
      if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, pointer]) => pointer);
        const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
        this.zoomBy(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
        this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
      } else if (this.before) {
        const [x, y] = this.onFilm(now.x, now.y);
        [this.box[2], this.box[3]] = [x - this.box[0], y - this.box[1]];
        this.paint();
      } else if (before.button === 2 || (this.windowing && before.button === 0)) {
        this.dragWindow(now.x - before.x, now.y - before.y);
      } else {
        this.pan(now.x - before.x, now.y - before.y);
      }
      Object.assign(before, now);
    });
    stage.addEventListener("pointerup", (event) => {
      const last = pointers.delete(event.pointerId) && !pointers.size;
      if (!last || !this.before) return;
      if (Math.abs(this.box[2] * this.box[3]) * this.view.scale ** 2 > 16) this.endMark(true);
      else this.undraw(); // a click draws nothing
    });
    stage.addEventListener("pointercancel", (event) => {
      pointers.delete(event.pointerId);
      this.undraw();
    });
    document.addEventListener("osteon:mark-start", () => this.beginMark());
    document.addEventListener("osteon:mark-take", () => this.box && this.placed && !this.blank && this.endMark(true));
    document.addEventListener("osteon:mark-end", () => this.box && this.endMark(false));
    document.addEventListener("osteon:marks", (event) => {
      this.marks = event.detail?.marks ?? [];
      this.paint();
    });
  }

  // The film's point under one of the stage, held within the film.
  onFilm(x, y) {
    const { view, film } = this;
    const held = (value, most) => Math.min(most, Math.max(0, value));
    return [held(view.x + x / view.scale, film.width), held(view.y + y / view.scale, film.height)];
  }

  // -- marks --

  beginMark() {
    if (!this.film) return;
    const { stage } = this;
    const [left, top] = this.onFilm(0.4 * stage.clientWidth, 0.4 * stage.clientHeight);
    const [right, bottom] = this.onFilm(0.6 * stage.clientWidth, 0.6 * stage.clientHeight);
    const { width, height } = this.film;
    const seen = right > left && bottom > top;
    this.box = seen ? [left, top, right - left, bottom - top] : [0.4 * width, 0.4 * height, 0.2 * width, 0.2 * height];
    this.before = null;
    this.placed = false;
    stage.classList.add("marking");
    stage.focus({ preventScroll: true });
    stage.scrollIntoView({ block: "nearest" });
    this.paint();
    this.changed("marking");
    document.dispatchEvent(new CustomEvent("osteon:marking"));
  }

  // What a pointer began to draw is none: the box is again as it was.
  undraw() {
    if (!this.before) return;
    [this.box, this.before] = [this.before, null];
    this.paint();
  }

  endMark(taken) {
    let [x, y, width, height] = this.box;
    if (width < 0) [x, width] = [x + width, -width];
    if (height < 0) [y, height] = [y + height, -height];
    this.box = this.before = null;
    this.stage.classList.remove("marking");
    this.paint();
    const { film, place } = this;
    const detail = { ...place, x: x / film.width, y: y / film.height, width: width / film.width, height: height / film.height };
    document.dispatchEvent(taken ? new CustomEvent("osteon:mark", { detail }) : new CustomEvent("osteon:mark-cancel"));
    this.changed(taken ? "marked" : "mark given up");
  }

  // A key while a mark is drawn; whether it was for us.
  markKey(event) {
    if (this.before || this.blank) return true; // the pointer draws, or the film is not there yet
    const step = 10 / this.view.scale;
    const [across, down] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [0, 0];
    if (event.key === "Enter") this.endMark(true);
    else if (event.key === "Escape") this.endMark(false);
    else if (!across && !down) return false;
    else {
      const [x, y, width, height] = this.box;
      const { film } = this;
      const held = (value, most) => Math.min(most, Math.max(0, value));
      this.placed = true;
      if (event.shiftKey) {
        this.box = [x, y, held(width + across, film.width - x) || step, held(height + down, film.height - y) || step];
      } else this.box = [held(x + across, film.width - width), held(y + down, film.height - height), width, height];
      this.paint();
    }
    return true;
  }
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function boxed(x, y, width, height, name) {
  const place = { x: Math.min(x, x + width), y: Math.min(y, y + height), width: Math.abs(width), height: Math.abs(height) };
  return [element("rect", { class: "halo", ...place }), element("rect", { class: name, ...place })];
}
