// One viewport: a radiograph on a canvas, its heatmap over it, lines, marks and measures as SVG whose strokes keep their width.
// It tells what its reader's hand wants (`act`) and does what it is told: so several can move together.

import { drawing, svg } from "../lib/dom.js";
import { announce } from "../lib/events.js";
import {
  UPRIGHT, composed, distance, held, inverse, moved, orientedSize, orienting, ruler, showing, zoomed,
} from "./geometry.js";
import { draggedWindow } from "./gray.js";
import { POINTS, calibrationWords, measureWords } from "./measures.js";

/** @typedef {import("./contours.js").Point} Point */
/** @typedef {import("./radiograph.js").Radiograph} Radiograph */
/** @typedef {import("./geometry.js").Matrix} Matrix */
/** @typedef {import("./geometry.js").Orientation} Orientation */
/** @typedef {import("./geometry.js").View} View */
/** @typedef {import("./gray.js").Window} Window */
/** @typedef {import("./heat.js").Heat} Heat */
/** @typedef {import("./measures.js").Kind} Kind */
/** @typedef {import("./measures.js").Measure} Measure */
/** @typedef {import("../lib/events.js").Mark} Mark */
/** @typedef {import("../lib/events.js").Place} Place */
/** @typedef {[number, number, number, number]} Box left, top, width and height in the radiograph's pixels; drawn leftwards or upwards it has sizes below 0 */
/** @typedef {"view" | "window" | "shown" | "marking" | "marked" | "mark given up" | "measuring" | "measured" | "measure given up"} Change */
/** @typedef {{name: string, level: number, lines: Point[][]}} Outline where the evidence reaches a level */
/** @typedef {{kind: Kind, points: Point[], current: number, drawn: boolean, fixed: Point}} Measuring a measure that is not taken yet, in the radiograph's pixels; fixed: where on the stage the point before was set */

/**
 * What a hand wants: zoom by a factor about a place of the stage, or to a scale; move by pixels of the page; fit; change the window.
 * @typedef {{zoom: number, x?: number, y?: number} | {scale: number} | {pan: Point} | {fit: true} | {window: Point}} Act
 */

export const ZOOM_STEP = 1.25;
const MAX_ZOOM = 16; // screen pixels for one of the radiograph
const CLICK = 4; // pixels of the page: who moves less has clicked
const LENS = { radius: 110, times: 2.5 };
const RULER = { share: 0.4, most: 400 }; // of the stage's height, and CSS pixels

/**
 * A box with its corner in the upper left, whichever way it was drawn.
 * @param {Box} box
 * @returns {Box}
 */
export function upright([x, y, width, height]) {
  return [Math.min(x, x + width), Math.min(y, y + height), Math.abs(width), Math.abs(height)];
}

export class Viewport {
  /** @type {Radiograph | null} */
  radiograph = null;
  /** @type {Heat | null} */
  heat = null;
  /** @type {View} in CSS pixels */
  view = { x: 0, y: 0, scale: 1 };
  /** @type {Orientation} */
  orientation = UPRIGHT;
  fitted = true;
  /** @type {Window} */
  window = [0, 255];
  inverted = false;
  windowing = false; // dragging changes the window
  magnifying = false;
  /** @type {Point | null} where on the stage the pointer is */
  pointer = null;
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
  /** @type {Measure[]} of the radiograph that is shown */
  measures = [];
  /** @type {Place} */
  place = { image: 0, frame: 0 };
  /** @type {Box | null} the mark being drawn */
  box = null;
  /** @type {Box | null} while a pointer draws: the box as it was before */
  before = null;
  placed = false; // the reader moved the box by keys
  /** @type {Measuring | null} */
  measuring = null;
  /** @type {number | null} the frame of the browser in which all is painted again */
  waiting = null;

  /**
   * @param {object} parts
   * @param {HTMLElement} parts.stage
   * @param {HTMLCanvasElement} parts.canvas
   * @param {SVGSVGElement} parts.lines
   * @param {SVGSVGElement} parts.scale where the ruler is drawn
   * @param {(act: Act) => void} parts.act what the reader's hand wants
   * @param {(what: Change) => void} parts.changed told after "view" or "window" were changed, "shown" at a new radiograph, and of marks and
   *   measures
   * @param {(kind: Kind, points: Point[]) => void} parts.measured a measure was taken; points: 0..1 of the radiograph
   */
  constructor({ stage, canvas, lines, scale, act, changed, measured }) {
    this.stage = stage;
    this.canvas = canvas;
    this.lines = lines;
    this.scale = scale;
    this.act = act;
    this.changed = changed;
    this.measured = measured;
    this.context = drawing(canvas, { alpha: false });
    this.listen();
    this.watched = new ResizeObserver(() => (this.fitted ? this.fit() : this.paint()));
    this.watched.observe(stage);
  }

  /** Its pane is gone. */
  close() {
    this.watched.disconnect();
    if (this.waiting !== null) cancelAnimationFrame(this.waiting);
    this.radiograph = this.heat = this.box = this.before = this.measuring = null;
  }

  /** The radiograph that is there. Throws Error while none is. */
  get shown() {
    if (!this.radiograph) throw new Error("No radiograph is shown yet");
    return this.radiograph;
  }

  /** Its size as it lies on the screen. */
  get size() {
    return orientedSize(this.orientation, this.shown);
  }

  /** From the radiograph's pixels to those of the stage. */
  get matrix() {
    return showing(this.view, this.orientation, this.shown);
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
    if (keep) return;
    if (this.box) this.beginMark(); // a box that was begun on another radiograph is drawn again
    if (this.measuring) this.beginMeasure(this.measuring.kind);
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

  /** Turned or mirrored: what was in the middle stays there. @param {Orientation} orientation */
  setOrientation(orientation) {
    const [across, down] = this.middle;
    const point = this.radiograph && !this.blank ? moved(inverse(this.matrix), [across, down]) : null;
    this.orientation = orientation;
    if (!point || this.fitted) return this.fit();
    const [x, y] = moved(orienting(orientation, this.shown), point);
    this.view = { ...this.view, x: x - across / this.view.scale, y: y - down / this.view.scale };
    this.moved(false);
  }

  /** @returns {Point} of the stage */
  get middle() {
    return [this.stage.clientWidth / 2, this.stage.clientHeight / 2];
  }

  paint() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.paintNow();
    });
  }

  paintNow() {
    const { stage, canvas, context, lines, scale, view, radiograph } = this;
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(stage.clientWidth * dense), Math.round(stage.clientHeight * dense)];
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    // a stage without a size, before styles have come, has a scale of 0, at which no level of a radiograph is small enough
    if (!radiograph || this.blank || !(view.scale > 0)) {
      lines.replaceChildren();
      scale.replaceChildren();
      return;
    }
    const device = composed([dense, 0, 0, dense, 0, 0], this.matrix);
    this.paintImage(device);
    if (this.magnifying && this.pointer) this.paintLens(device, dense, this.pointer);
    this.paintLines();
    this.paintRuler();
  }

  /** @param {Matrix} device to the canvas's pixels @param {[number, number, number, number]} [part] of the canvas */
  paintImage(device, part) {
    this.shown.draw(this.context, device, part);
    if (this.shutter) this.paintShutter(device);
    if (this.heat && this.showHeat && !this.bare) this.heat.draw(this.context, device, this.opacity);
  }

  /** Black over what lies outside the exposed field. @param {Matrix} device */
  paintShutter(device) {
    const { context, shown: radiograph } = this;
    const { field, width, height } = radiograph;
    if (field.width === 1 && field.height === 1 && !field.turn) return;
    context.save();
    context.setTransform(...device);
    context.fillStyle = "#000";
    context.beginPath(); // all of the image but the field: a point within both outlines is left out
    context.rect(-1, -1, width + 2, height + 2);
    radiograph.fieldCorners().forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.fill("evenodd");
    context.restore();
  }

  /** @param {Matrix} device @param {number} dense @param {Point} pointer */
  paintLens(device, dense, [x, y]) {
    const { context } = this;
    const [across, down, radius] = [x * dense, y * dense, LENS.radius * dense];
    const larger = composed([LENS.times, 0, 0, LENS.times, across * (1 - LENS.times), down * (1 - LENS.times)], device);
    context.save();
    context.beginPath();
    context.arc(across, down, radius, 0, 2 * Math.PI);
    context.save();
    context.clip();
    context.fillStyle = "#000";
    context.fillRect(across - radius, down - radius, 2 * radius, 2 * radius);
    this.paintImage(larger, [across - radius, down - radius, across + radius, down + radius]);
    context.restore();
    context.strokeStyle = "#e8ecf0";
    context.lineWidth = 1.5 * dense;
    context.stroke();
    context.restore();
  }

  paintLines() {
    const { lines, stage, view, shown: radiograph } = this;
    lines.setAttribute("viewBox", `${view.x} ${view.y} ${stage.clientWidth / view.scale} ${stage.clientHeight / view.scale}`);
    if (this.bare) {
      lines.replaceChildren();
      return;
    }
    const orient = orienting(this.orientation, radiograph);
    const group = svg("g", { transform: `matrix(${orient.join(" ")})` });
    /** @type {SVGElement[]} words stay upright, however the radiograph lies */
    const words = [];
    /** @param {Point} point of the radiograph @param {string} text @param {[number, number]} aside CSS pixels */
    const write = (point, text, [right, below]) => {
      const [x, y] = moved(orient, point);
      const label = svg("text", { class: "mark-label", x: x + right / view.scale, y: y + below / view.scale, "font-size": 14 / view.scale });
      label.textContent = text;
      words.push(label);
    };
    if (this.showLines) {
      for (const { name, lines: closed } of this.outlines) {
        if (!closed.length) continue;
        const path = closed.map((line) => `M${line.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`).join("");
        group.append(svg("path", { class: `halo ${name}`, d: path }), svg("path", { class: `outline ${name}`, d: path }));
      }
    }
    for (const mark of this.marks) {
      if (mark.image !== this.place.image || mark.frame !== this.place.frame) continue;
      const [x, y] = [mark.x * radiograph.width, mark.y * radiograph.height];
      const [width, height] = [mark.width * radiograph.width, mark.height * radiograph.height];
      group.append(...boxed([x, y, width, height], "mark"));
      if (!mark.label) continue;
      const corners = [[x, y], [x + width, y], [x, y + height], [x + width, y + height]].map((corner) => moved(orient, /** @type {Point} */ (corner)));
      const corner = /** @type {Point} */ ([Math.min(...corners.map(([u]) => u)), Math.min(...corners.map(([, v]) => v))]);
      write(moved(inverse(orient), corner), mark.label, [0, -6]);
    }
    if (this.box) group.append(...boxed(this.box, "mark drawing"));
    const now = this.measuringNow();
    const taking = this.measuring && !this.measuring.drawn ? now[0].points : null; // by keys, which move one point
    for (const { kind, points } of [...this.measures, ...now]) {
      const places = points.map(([x, y]) => /** @type {Point} */ ([x * radiograph.width, y * radiograph.height]));
      group.append(...drawnMeasure(places));
      if (points === taking) group.append(svg("path", { class: "measure current", d: `M${places[this.measuring?.current ?? 0].join(" ")}h0` }));
      if (places.length === POINTS[kind]) write(places[places.length - 1], measureWords({ kind, points }, radiograph, radiograph.calibration), [10, -8]);
    }
    lines.replaceChildren(group, ...words);
  }

  /** @returns {{kind: Kind, points: Point[]}[]} the measure that is being taken, 0..1 of the radiograph */
  measuringNow() {
    if (!this.measuring) return [];
    const { width, height } = this.shown;
    return [{ kind: this.measuring.kind, points: this.measuring.points.map(([x, y]) => [x / width, y / height]) }];
  }

  paintRuler() {
    const { scale, stage, view, shown: { calibration } } = this;
    if (!calibration || this.bare) return scale.replaceChildren();
    const { mm, pixels, parts } = ruler(Math.min(RULER.most, RULER.share * stage.clientHeight), view.scale / calibration.mm);
    const [right, top] = [stage.clientWidth - 12, (stage.clientHeight - pixels) / 2];
    const ticks = Array.from({ length: parts + 1 }, (_, i) => `M${right} ${top + (i * pixels) / parts}h${i % parts ? -5 : -8}`).join("");
    const line = `M${right} ${top}v${pixels}${ticks}`;
    const label = svg("text", { x: right, y: top + pixels + 16, "text-anchor": "end" });
    label.textContent = mm < 10 ? `${Number(mm.toPrecision(1))} mm` : `${mm / 10} cm`;
    const source = svg("text", { x: right, y: top + pixels + 30, "text-anchor": "end", class: "source" });
    source.textContent = calibrationWords(calibration);
    scale.replaceChildren(svg("path", { class: "halo", d: line }), svg("path", { class: "ticks", d: line }), label, source);
  }

  // -- zoom and pan --

  get fitScale() {
    const { stage, size } = this;
    return Math.min(stage.clientWidth / size.width, stage.clientHeight / size.height);
  }

  /** @param {Change} [what] */
  fit(what = "view") {
    if (!this.radiograph) return;
    const { size, stage } = this;
    this.view.scale = this.fitScale;
    this.view.x = (size.width - stage.clientWidth / this.view.scale) / 2;
    this.view.y = (size.height - stage.clientHeight / this.view.scale) / 2;
    this.moved(true, what);
  }

  /** Keeps the radiograph's point under the stage's (x, y), by default its middle. @param {number} scale */
  zoomTo(scale, x = this.middle[0], y = this.middle[1]) {
    if (!this.radiograph) return;
    this.view = zoomed(this.view, held(scale, Math.max(MAX_ZOOM, this.fitScale), this.fitScale / 4), x, y);
    this.moved(false);
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
    const { view, size, stage } = this;
    /** @param {number} at @param {number} seen @param {number} whole */
    const within = (at, seen, whole) => held(at, (3 * whole) / 4, whole / 4 - seen);
    if (!fitted) {
      view.x = within(view.x, stage.clientWidth / view.scale, size.width);
      view.y = within(view.y, stage.clientHeight / view.scale, size.height);
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
    stage.addEventListener("dblclick", () => {
      if (!this.measuring) this.act({ fit: true });
    });
    stage.addEventListener(
      "wheel",
      (event) => {
        if (!this.radiograph) return;
        event.preventDefault();
        const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 100 : event.deltaY / 3;
        this.act({ zoom: ZOOM_STEP ** -Math.min(3, Math.max(-3, lines)), ...at(event) });
      },
      { passive: false },
    );
    stage.addEventListener("pointerdown", (event) => {
      if (!this.radiograph || this.blank || ![0, 1, 2].includes(event.button)) return;
      stage.setPointerCapture(event.pointerId);
      const { x, y } = at(event);
      pointers.set(event.pointerId, { x, y, button: event.button });
      if (pointers.size > 1) {
        this.undraw(); // a second finger: a pinch
        if (this.measuring) this.beginMeasure(this.measuring.kind);
      } else if (this.box) [this.before, this.box] = [this.box, [...this.onRadiograph(x, y), 0, 0]];
      else if (this.measuring && event.button === 0) this.pressMeasure(x, y);
    });
    stage.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      const now = at(event);
      this.hover(now, pointers.size);
      if (!before) return;
      if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, pointer]) => pointer);
        /** @param {{x: number, y: number}} one */
        const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
        this.act({ zoom: apart(now) / apart(before), x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
        this.act({ pan: [(now.x - before.x) / 2, (now.y - before.y) / 2] });
      } else if (this.before && this.box) {
        const [[left, top], [x, y]] = [this.box, this.onRadiograph(now.x, now.y)];
        this.box = [left, top, x - left, y - top];
        this.paint();
      } else if (this.measuring?.drawn && before.button === 0) {
        // the point follows, see `hover`
      } else if (before.button === 2 || (this.windowing && before.button === 0)) {
        this.act({ window: [now.x - before.x, now.y - before.y] });
      } else {
        this.act({ pan: [now.x - before.x, now.y - before.y] });
      }
      Object.assign(before, now);
    });
    stage.addEventListener("pointerup", (event) => {
      const last = pointers.delete(event.pointerId) && !pointers.size;
      if (!last) return;
      const { x, y } = at(event);
      if (this.measuring?.drawn && event.button === 0) return this.releaseMeasure(x, y);
      if (!this.before || !this.box) return;
      if (Math.abs(this.box[2] * this.box[3]) * this.view.scale ** 2 > 16) this.endMark(true);
      else this.undraw(); // a click draws nothing
    });
    stage.addEventListener("pointercancel", (event) => {
      pointers.delete(event.pointerId);
      this.undraw();
    });
    stage.addEventListener("pointerleave", () => {
      this.pointer = null;
      if (this.magnifying) this.paint();
    });
  }

  /** Where the pointer is. @param {{x: number, y: number}} now @param {number} pressed how many pointers are down */
  hover({ x, y }, pressed) {
    this.pointer = [x, y];
    const { measuring } = this;
    if (measuring?.drawn && pressed < 2 && this.radiograph && !this.blank) {
      measuring.points[measuring.points.length - 1] = this.onRadiograph(x, y);
      this.paint();
    } else if (this.magnifying) this.paint();
  }

  /** The radiograph's point under one of the stage, held within the radiograph. @param {number} x @param {number} y @returns {Point} */
  onRadiograph(x, y) {
    const [across, down] = moved(inverse(this.matrix), [x, y]);
    return [held(across, this.shown.width), held(down, this.shown.height)];
  }

  /** Where an arrow key leads on the radiograph, however it lies. @param {string} key */
  arrow(key) {
    const [a, b, c, d] = inverse(orienting(this.orientation, this.shown));
    return moved([a, b, c, d, 0, 0], ARROWS[key]);
  }

  // -- marks --

  /** What is begun takes the keys, and is seen. @param {"marking" | "measuring"} what */
  beginOn(what) {
    this.stage.classList.add(what);
    this.stage.focus({ preventScroll: true });
    this.stage.scrollIntoView({ block: "nearest" });
    this.paint();
    this.changed(what);
  }

  beginMark() {
    if (!this.radiograph) return;
    this.endMeasure(false);
    const { width, height } = this.radiograph;
    const [across, down] = this.middle;
    const [left, top, wide, high] = between(this.onRadiograph(0.8 * across, 0.8 * down), this.onRadiograph(1.2 * across, 1.2 * down));
    this.box = wide > 0 && high > 0 ? [left, top, wide, high] : [0.4 * width, 0.4 * height, 0.2 * width, 0.2 * height];
    this.before = null;
    this.placed = false;
    this.beginOn("marking");
    announce("osteon:marking");
  }

  /** What a pointer began to draw is none: the box is again as it was. */
  undraw() {
    if (!this.before) return;
    [this.box, this.before] = [this.before, null];
    this.paint();
  }

  /** It is begun on another pane instead. */
  dropMark() {
    this.box = this.before = null;
    this.stage.classList.remove("marking");
    this.paint();
  }

  /** @param {boolean} taken or given up */
  endMark(taken) {
    if (!this.box) return;
    const [x, y, width, height] = upright(this.box);
    this.dropMark();
    const { shown: radiograph, place } = this;
    if (taken) announce("osteon:mark", { ...place, x: x / radiograph.width, y: y / radiograph.height, width: width / radiograph.width, height: height / radiograph.height });
    else announce("osteon:mark-cancel");
    this.changed(taken ? "marked" : "mark given up");
  }

  /** A key while a mark is drawn; whether it was for us. @param {KeyboardEvent} event */
  markKey(event) {
    if (this.before || this.blank || !this.box) return true; // the pointer draws, or the radiograph is not there yet
    if (event.key === "Enter") this.endMark(true);
    else if (event.key === "Escape") this.endMark(false);
    else if (Object.hasOwn(ARROWS, event.key)) {
      this.placed = true;
      this.box = movedBox(this.box, { by: this.arrow(event.key), resize: event.shiftKey }, 10 / this.view.scale, this.shown);
      this.paint();
    } else return false;
    return true;
  }

  // -- measures --

  /** A pointer draws it anew; with keys, arrows move its points. @param {Kind} kind */
  beginMeasure(kind) {
    if (!this.radiograph || this.blank) return;
    this.endMark(false);
    const [across, down] = this.middle;
    /** @type {Point[]} */
    const places = kind === "length" ? [[0.8 * across, down], [1.2 * across, down]] : [[0.8 * across, 0.8 * down], [across, 1.1 * down], [1.2 * across, 0.8 * down]];
    const points = places.map(([x, y]) => this.onRadiograph(x, y));
    this.measuring = { kind, points, current: points.length - 1, drawn: false, fixed: [0, 0] };
    this.beginOn("measuring");
  }

  /** @param {number} x @param {number} y of the stage */
  pressMeasure(x, y) {
    const { measuring } = this;
    if (!measuring) return;
    const point = this.onRadiograph(x, y);
    if (!measuring.drawn) Object.assign(measuring, { points: [point, [...point]], drawn: true, fixed: [x, y] });
    else measuring.points[measuring.points.length - 1] = point;
    this.paint();
  }

  /** A point is set where the pointer is let go, or, after a click, where it clicks next. @param {number} x @param {number} y of the stage */
  releaseMeasure(x, y) {
    const { measuring } = this;
    if (!measuring || distance([x, y], measuring.fixed) < CLICK) return;
    const point = this.onRadiograph(x, y);
    measuring.points[measuring.points.length - 1] = point;
    measuring.fixed = [x, y];
    if (measuring.points.length === POINTS[measuring.kind]) this.endMeasure(true);
    else measuring.points.push([...point]);
    this.paint();
  }

  /** @param {boolean} taken or given up */
  endMeasure(taken) {
    const { measuring } = this;
    if (!measuring) return;
    const [{ points }] = this.measuringNow();
    this.measuring = null;
    this.stage.classList.remove("measuring");
    if (taken) this.measured(measuring.kind, points.map(([x, y]) => [held(x, 1), held(y, 1)]));
    this.paint();
    this.changed(taken ? "measured" : "measure given up");
  }

  /** A key while something is measured; whether it was for us. @param {KeyboardEvent} event */
  measureKey(event) {
    const { measuring } = this;
    if (!measuring || this.blank) return true;
    if (event.key === "Escape") this.endMeasure(false);
    else if (measuring.drawn) return false; // the pointer draws
    else if (event.key === "Enter") this.endMeasure(true);
    else if (event.key === " ") measuring.current = (measuring.current + 1) % measuring.points.length; // the next point, for the arrows
    else if (Object.hasOwn(ARROWS, event.key)) {
      const [across, down] = this.arrow(event.key);
      const step = (event.shiftKey ? 1 : 10) / this.view.scale;
      const [x, y] = measuring.points[measuring.current];
      measuring.points[measuring.current] = [held(x + across * step, this.shown.width), held(y + down * step, this.shown.height)];
    } else return false;
    this.paint();
    return true;
  }
}

/** @type {Readonly<Record<string, Point>>} where an arrow key leads */
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The upright box between two points. @param {Point} one @param {Point} other @returns {Box} */
const between = ([x, y], [u, v]) => upright([x, y, u - x, v - y]);

/**
 * A box that was moved by a step, or resized. It stays on the radiograph.
 * @param {Box} box
 * @param {{by: Point, resize: boolean}} how by: -1, 0 or 1 to the right and down on the radiograph
 * @param {number} step
 * @param {{width: number, height: number}} radiograph
 * @returns {Box}
 */
export function movedBox([x, y, width, height], { by: [right, below], resize }, step, radiograph) {
  const [across, down] = [right * step, below * step];
  if (resize) return [x, y, held(width + across, radiograph.width - x) || step, held(height + down, radiograph.height - y) || step];
  return [held(x + across, radiograph.width - width), held(y + down, radiograph.height - height), width, height];
}

/** @param {Box} box @param {string} name of its class */
function boxed(box, name) {
  const [x, y, width, height] = upright(box);
  const place = { x, y, width, height };
  return [svg("rect", { class: "halo", ...place }), svg("rect", { class: name, ...place })];
}

/** @param {Point[]} points */
function drawnMeasure(points) {
  const line = `M${points.map((point) => point.join(" ")).join("L")}`;
  const ends = points.map((point) => `M${point.join(" ")}h0`).join("");
  return [svg("path", { class: "halo", d: line }), svg("path", { class: "measure", d: line }), svg("path", { class: "measure ends", d: ends })];
}
