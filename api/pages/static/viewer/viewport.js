// One viewport: a radiograph on a canvas, its heatmap over it, lines and marks as SVG whose strokes keep their width.
// How a panel lets a reader mark a place by it, lib/events.js says.

import { drawing, svg } from "../lib/dom.js";
import { announce, hear } from "../lib/events.js";
import { draggedWindow } from "./gray.js";

/** @typedef {import("./contours.js").Point} Point */
/** @typedef {import("./radiograph.js").Radiograph} Radiograph */
/** @typedef {import("./radiograph.js").View} View */
/** @typedef {import("./gray.js").Window} Window */
/** @typedef {import("./heat.js").Heat} Heat */
/** @typedef {import("../lib/events.js").Mark} Mark */
/** @typedef {import("../lib/events.js").Place} Place */
/** @typedef {[number, number, number, number]} Box left, top, width and height in the radiograph's pixels; drawn leftwards or upwards it has sizes below 0 */
/** @typedef {"view" | "window" | "shown" | "marking" | "marked" | "mark given up"} Change */
/** @typedef {{name: string, level: number, lines: Point[][]}} Outline where the evidence reaches a level */

export const ZOOM_STEP = 1.25;
const MAX_ZOOM = 16; // screen pixels for one of the radiograph

/** @param {number} value @param {number} most @param {number} [least] */
export const held = (value, most, least = 0) => Math.min(most, Math.max(least, value));

/**
 * A box with its corner in the upper left, whichever way it was drawn.
 * @param {Box} box
 * @returns {Box}
 */
export function upright([x, y, width, height]) {
  return [Math.min(x, x + width), Math.min(y, y + height), Math.abs(width), Math.abs(height)];
}

/**
 * A view that shows another scale, and keeps the radiograph's point under (x, y) where it is.
 * @param {View} view
 * @param {number} scale
 * @param {number} x
 * @param {number} y
 * @returns {View}
 */
export function zoomed(view, scale, x, y) {
  return { x: view.x + x / view.scale - x / scale, y: view.y + y / view.scale - y / scale, scale };
}

export class Viewport {
  /** @type {Radiograph | null} */
  radiograph = null;
  /** @type {Heat | null} */
  heat = null;
  /** @type {View} in CSS pixels */
  view = { x: 0, y: 0, scale: 1 };
  fitted = true;
  /** @type {Window} */
  window = [0, 255];
  inverted = false;
  windowing = false; // dragging changes the window
  blank = false;
  showHeat = false;
  showLines = false;
  bare = false; // nothing is drawn over the radiograph
  shutter = true;
  opacity = 0.45;
  /** @type {Outline[]} */
  outlines = [];
  /** @type {Mark[]} */
  marks = [];
  /** @type {Place} */
  place = { image: 0, frame: 0 };
  /** @type {Box | null} the mark being drawn */
  box = null;
  /** @type {Box | null} while a pointer draws: the box as it was before */
  before = null;
  placed = false; // the reader moved the box by keys
  /** @type {number | null} the frame of the browser in which all is painted again */
  waiting = null;

  /**
   * @param {object} parts
   * @param {HTMLElement} parts.stage
   * @param {HTMLCanvasElement} parts.canvas
   * @param {SVGSVGElement} parts.lines
   * @param {(what: Change) => void} parts.changed told after "view" or "window" were changed by hand, "shown" at a new radiograph, and of
   *   marks
   */
  constructor({ stage, canvas, lines, changed }) {
    this.stage = stage;
    this.canvas = canvas;
    this.lines = lines;
    this.changed = changed;
    this.context = drawing(canvas, { alpha: false });
    this.listen();
    new ResizeObserver(() => (this.fitted ? this.fit() : this.paint())).observe(stage);
  }

  /** The radiograph that is there. Throws Error while none is. */
  get shown() {
    if (!this.radiograph) throw new Error("No radiograph is shown yet");
    return this.radiograph;
  }

  // -- what is shown --

  /**
   * @param {Radiograph} radiograph
   * @param {{keep: boolean, place: Place}} how keep: the same radiograph, in another quality; it stays where it is
   */
  show(radiograph, { keep, place }) {
    this.radiograph = radiograph;
    this.place = place;
    this.blank = false;
    if (keep) this.paint();
    else this.fit("shown");
    if (this.box && !keep) this.beginMark(); // a box that was begun on another radiograph is drawn again
  }

  /** Nothing, until the next radiograph is there: no picture may stand beside another one's words. */
  clear() {
    this.blank = true;
    this.paintNow();
  }

  /** @param {Window} window */
  setWindow(window) {
    this.window = window;
    this.radiograph?.setWindow(window, this.inverted);
    this.paint();
  }

  /** @param {boolean} on */
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
    const { stage, canvas, context, lines, view, radiograph } = this;
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(stage.clientWidth * dense), Math.round(stage.clientHeight * dense)];
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    // a stage without a size, before styles have come, has a scale of 0, at which no level of a radiograph is small enough
    if (!radiograph || this.blank || !(view.scale > 0)) {
      lines.replaceChildren();
      return;
    }
    const device = { x: view.x, y: view.y, scale: view.scale * dense };
    radiograph.draw(context, device);
    if (this.shutter) this.paintShutter(device);
    if (this.heat && this.showHeat && !this.bare) this.heat.draw(context, device, this.opacity);
    this.paintLines();
  }

  /** Black over what lies outside the exposed field. @param {View} device in the canvas's pixels */
  paintShutter(device) {
    const { context, shown: radiograph } = this;
    /** @param {number} x @param {number} y 0..1 of the radiograph */
    const at = (x, y) => [(x * radiograph.width - device.x) * device.scale, (y * radiograph.height - device.y) * device.scale];
    const { field } = radiograph;
    const [left, top] = at(0, 0).map(Math.floor);
    const [right, bottom] = at(1, 1).map(Math.ceil);
    if (field.turn) {
      context.fillStyle = "#000";
      context.beginPath(); // all of the image but the field: a point within both outlines is left out
      context.rect(left, top, right - left, bottom - top);
      const corners = radiograph.fieldCorners().map(([x, y]) => at(x / radiograph.width, y / radiograph.height));
      corners.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.fill("evenodd");
      return;
    }
    const [from, above] = at(field.x, field.y).map(Math.round);
    const [to, below] = at(field.x + field.width, field.y + field.height).map(Math.round);
    context.fillStyle = "#000";
    if (field.y > 0) context.fillRect(left, top, right - left, above - top);
    if (field.y + field.height < 1) context.fillRect(left, below, right - left, bottom - below);
    if (field.x > 0) context.fillRect(left, above, from - left, below - above);
    if (field.x + field.width < 1) context.fillRect(to, above, right - to, below - above);
  }

  paintLines() {
    const { lines, stage, view, shown: radiograph } = this;
    lines.setAttribute("viewBox", `${view.x} ${view.y} ${stage.clientWidth / view.scale} ${stage.clientHeight / view.scale}`);
    /** @type {SVGElement[]} */
    const parts = [];
    if (this.bare) {
      lines.replaceChildren();
      return;
    }
    if (this.showLines) {
      for (const { name, lines: closed } of this.outlines) {
        if (!closed.length) continue;
        const path = closed.map((line) => `M${line.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`).join("");
        parts.push(svg("path", { class: `halo ${name}`, d: path }), svg("path", { class: `outline ${name}`, d: path }));
      }
    }
    for (const mark of this.marks) {
      if (mark.image !== this.place.image || mark.frame !== this.place.frame) continue;
      const [x, y] = [mark.x * radiograph.width, mark.y * radiograph.height];
      parts.push(...boxed([x, y, mark.width * radiograph.width, mark.height * radiograph.height], "mark"));
      if (!mark.label) continue;
      const text = svg("text", { class: "mark-label", x, y: y - 6 / view.scale, "font-size": 14 / view.scale });
      text.textContent = mark.label;
      parts.push(text);
    }
    if (this.box) parts.push(...boxed(this.box, "mark drawing"));
    lines.replaceChildren(...parts);
  }

  // -- zoom and pan --

  get fitScale() {
    const { stage, shown: radiograph } = this;
    return Math.min(stage.clientWidth / radiograph.width, stage.clientHeight / radiograph.height);
  }

  /** @param {Change} [what] */
  fit(what = "view") {
    if (!this.radiograph) return;
    this.view.scale = this.fitScale;
    this.view.x = (this.radiograph.width - this.stage.clientWidth / this.view.scale) / 2;
    this.view.y = (this.radiograph.height - this.stage.clientHeight / this.view.scale) / 2;
    this.moved(true, what);
  }

  /** Keeps the radiograph's point under the stage's (x, y), by default its middle. @param {number} scale */
  zoomTo(scale, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    if (!this.radiograph) return;
    this.view = zoomed(this.view, held(scale, Math.max(MAX_ZOOM, this.fitScale), this.fitScale / 4), x, y);
    this.moved(false);
  }

  /** @param {number} factor @param {number} [x] @param {number} [y] */
  zoomBy(factor, x, y) {
    this.zoomTo(this.view.scale * factor, x, y);
  }

  /** In CSS pixels; the radiograph's middle half never leaves the stage. @param {number} across @param {number} down */
  pan(across, down) {
    if (!this.radiograph) return;
    this.view.x -= across / this.view.scale;
    this.view.y -= down / this.view.scale;
    this.moved(false);
  }

  /** @param {boolean} fitted @param {Change} [what] */
  moved(fitted, what = "view") {
    const { view, shown: radiograph, stage } = this;
    /** @param {number} at @param {number} seen @param {number} size */
    const within = (at, seen, size) => held(at, (3 * size) / 4, size / 4 - seen);
    if (!fitted) {
      view.x = within(view.x, stage.clientWidth / view.scale, radiograph.width);
      view.y = within(view.y, stage.clientHeight / view.scale, radiograph.height);
    }
    this.fitted = fitted;
    this.paint();
    this.changed(what);
  }

  /** Sideways the width, upwards a lower centre. A stage's breadth is the radiograph's whole range. @param {number} across @param {number} down */
  dragWindow(across, down) {
    if (!this.radiograph) return;
    this.setWindow(draggedWindow(this.window, { across, down, step: this.radiograph.range / Math.max(300, this.stage.clientWidth) }));
    this.changed("window");
  }

  // -- pointers --

  listen() {
    const { stage } = this;
    /** @type {Map<number, {x: number, y: number, button: number}>} by their ids */
    const pointers = new Map();
    /** @param {MouseEvent} event */
    const at = (event) => {
      const edge = stage.getBoundingClientRect();
      return { x: event.clientX - edge.left - stage.clientLeft, y: event.clientY - edge.top - stage.clientTop };
    };
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("dblclick", () => this.fit());
    stage.addEventListener(
      "wheel",
      (event) => {
        if (!this.radiograph) return;
        event.preventDefault();
        const { x, y } = at(event);
        const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 100 : event.deltaY / 3;
        this.zoomBy(ZOOM_STEP ** -Math.min(3, Math.max(-3, lines)), x, y);
      },
      { passive: false },
    );
    stage.addEventListener("pointerdown", (event) => {
      if (!this.radiograph || this.blank || ![0, 1, 2].includes(event.button)) return;
      stage.setPointerCapture(event.pointerId);
      const { x, y } = at(event);
      pointers.set(event.pointerId, { x, y, button: event.button });
      if (this.box && pointers.size === 1) [this.before, this.box] = [this.box, [...this.onRadiograph(x, y), 0, 0]];
      else this.undraw(); // a second finger: a pinch
    });
    stage.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const now = at(event);
      if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, pointer]) => pointer);
        /** @param {{x: number, y: number}} one */
        const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
        this.zoomBy(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
        this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
      } else if (this.before && this.box) {
        const [[left, top], [x, y]] = [this.box, this.onRadiograph(now.x, now.y)];
        this.box = [left, top, x - left, y - top];
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
      if (!last || !this.before || !this.box) return;
      if (Math.abs(this.box[2] * this.box[3]) * this.view.scale ** 2 > 16) this.endMark(true);
      else this.undraw(); // a click draws nothing
    });
    stage.addEventListener("pointercancel", (event) => {
      pointers.delete(event.pointerId);
      this.undraw();
    });
    hear("osteon:mark-start", () => this.beginMark());
    hear("osteon:mark-take", () => this.placed && !this.blank && this.endMark(true));
    hear("osteon:mark-end", () => this.endMark(false));
    hear("osteon:marks", ({ marks }) => {
      this.marks = marks;
      this.paint();
    });
  }

  /** The radiograph's point under one of the stage, held within the radiograph. @param {number} x @param {number} y @returns {Point} */
  onRadiograph(x, y) {
    const { view, shown: radiograph } = this;
    return [held(view.x + x / view.scale, radiograph.width), held(view.y + y / view.scale, radiograph.height)];
  }

  // -- marks --

  beginMark() {
    if (!this.radiograph) return;
    const { stage } = this;
    const [left, top] = this.onRadiograph(0.4 * stage.clientWidth, 0.4 * stage.clientHeight);
    const [right, bottom] = this.onRadiograph(0.6 * stage.clientWidth, 0.6 * stage.clientHeight);
    const { width, height } = this.radiograph;
    const seen = right > left && bottom > top;
    this.box = seen ? [left, top, right - left, bottom - top] : [0.4 * width, 0.4 * height, 0.2 * width, 0.2 * height];
    this.before = null;
    this.placed = false;
    stage.classList.add("marking");
    stage.focus({ preventScroll: true });
    stage.scrollIntoView({ block: "nearest" });
    this.paint();
    this.changed("marking");
    announce("osteon:marking");
  }

  /** What a pointer began to draw is none: the box is again as it was. */
  undraw() {
    if (!this.before) return;
    [this.box, this.before] = [this.before, null];
    this.paint();
  }

  /** @param {boolean} taken or given up */
  endMark(taken) {
    if (!this.box) return;
    const [x, y, width, height] = upright(this.box);
    this.box = this.before = null;
    this.stage.classList.remove("marking");
    this.paint();
    const { shown: radiograph, place } = this;
    if (taken) announce("osteon:mark", { ...place, x: x / radiograph.width, y: y / radiograph.height, width: width / radiograph.width, height: height / radiograph.height });
    else announce("osteon:mark-cancel");
    this.changed(taken ? "marked" : "mark given up");
  }

  /** A key while a mark is drawn; whether it was for us. @param {KeyboardEvent} event */
  markKey(event) {
    if (this.before || this.blank || !this.box) return true; // the pointer draws, or the radiograph is not there yet
    const step = 10 / this.view.scale;
    const moved = movedBox(this.box, event, step, this.shown);
    if (event.key === "Enter") this.endMark(true);
    else if (event.key === "Escape") this.endMark(false);
    else if (!moved) return false;
    else {
      this.placed = true;
      this.box = moved;
      this.paint();
    }
    return true;
  }
}

/** @type {Readonly<Record<string, Point>>} where an arrow key leads */
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * A box after an arrow key, which moves it, or with shift resizes it; null after another key. It stays on the radiograph.
 * @param {Box} box
 * @param {{key: string, shiftKey: boolean}} stroke
 * @param {number} step
 * @param {{width: number, height: number}} radiograph
 * @returns {Box | null}
 */
export function movedBox([x, y, width, height], { key, shiftKey }, step, radiograph) {
  if (!Object.hasOwn(ARROWS, key)) return null;
  const [across, down] = [ARROWS[key][0] * step, ARROWS[key][1] * step];
  if (shiftKey) return [x, y, held(width + across, radiograph.width - x) || step, held(height + down, radiograph.height - y) || step];
  return [held(x + across, radiograph.width - width), held(y + down, radiograph.height - height), width, height];
}

/** @param {Box} box @param {string} name of its class */
function boxed(box, name) {
  const [x, y, width, height] = upright(box);
  const place = { x, y, width, height };
  return [svg("rect", { class: "halo", ...place }), svg("rect", { class: name, ...place })];
}
