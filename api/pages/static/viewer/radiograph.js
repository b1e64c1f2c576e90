// One radiograph's gray values, and how they are drawn through a window. A preview and a full-resolution frame are both one of these.

import { drawing, make } from "../lib/dom.js";
import { composed, inverse, moved } from "./geometry.js";
import { Histogram, TOP, fieldCorners, fillLut, halved, presetWindow } from "./gray.js";
import { calibrationOf } from "./measures.js";

/** @typedef {import("./gray.js").Grid} Grid */
/** @typedef {import("./gray.js").Shape} Shape */
/** @typedef {import("./gray.js").Window} Window */
/** @typedef {import("./geometry.js").Matrix} Matrix */
/** @typedef {import("./measures.js").Calibration} Calibration */

/**
 * @typedef {object} FrameInfo what the header Osteon-Frame of GET /api/v1/studies/{id}/frame says
 * @property {number} rows
 * @property {number} columns
 * @property {number} bits
 * @property {number} slope
 * @property {number} intercept
 * @property {Window} window
 * @property {string} window_shape
 * @property {boolean} exact
 * @property {[number, number] | null} [spacing] mm from row to row and from column to column
 * @property {string} [spacing_from] the DICOM keyword that says so
 */

export class Radiograph {
  /**
   * rows and columns are of these pixels, which need not be square. slope * pixel + intercept are the file's units.
   * @param {Grid & Shape & {window: Window, words: string, shape?: string, slope?: number, intercept?: number, calibration?: Calibration}} radiograph
   */
  constructor({ pixels, rows, columns, width, height, field, window, shape = "LINEAR", slope = 1, intercept = 0, words, calibration = null }) {
    this.width = width;
    this.height = height;
    this.field = field;
    this.window = window;
    this.shape = shape;
    this.slope = slope;
    this.intercept = intercept;
    this.words = words;
    this.calibration = calibration;
    this.levels = [{ pixels, rows, columns }];
    this.lut = new Uint32Array(TOP);
    this.scratch = make("canvas");
    this.histogram = new Histogram(this.levels[0], this);
  }

  /** A preview: a decoded JPEG that already went through the file's own window. @param {HTMLImageElement} image @param {Shape} shape */
  static ofPreview(image, shape) {
    const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    const context = drawing(canvas, { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const pixels = new Uint16Array(data.length / 4);
    for (let i = 0; i < pixels.length; i++) pixels[i] = data[4 * i];
    return new Radiograph({ pixels, rows: canvas.height, columns: canvas.width, ...shape, window: [0, 255], words: "preview, 8 bit" });
  }

  /** A full-resolution frame, as GET /api/v1/studies/{id}/frame answers it; the browser has unpacked it already. @param {ArrayBuffer} buffer @param {FrameInfo} about @param {Shape} shape */
  static ofResponse(buffer, about, shape) {
    const { rows, columns, bits, slope, intercept, window, window_shape: curve, exact } = about;
    const words = `full-resolution frame, ${bits} bit${exact ? "" : ", scaled"}`;
    const pixels = new Uint16Array(buffer); // little endian, as every browser's machine is
    const calibration = calibrationOf(about, shape);
    return new Radiograph({ pixels, rows, columns, ...shape, window, shape: curve, slope, intercept, words, calibration });
  }

  get least() {
    return this.histogram.least;
  }

  get most() {
    return this.histogram.most;
  }

  /** From the least to the greatest value, at least 1. */
  get range() {
    return this.most - this.least || 1;
  }

  fieldCorners() {
    return fieldCorners(this);
  }

  /** @param {string} name as `presetWindow` has it @param {string} [region] */
  preset(name, region) {
    return presetWindow(name, this, region);
  }

  /** @param {Window} window @param {boolean} inverted */
  setWindow(window, inverted) {
    fillLut(this.lut, window, { shape: this.shape, inverted });
  }

  /** The level whose pixels are at most as large as the screen's: drawing costs what is seen, not what was sent. @param {number} scale */
  level(scale) {
    let [number, size] = [0, (scale * this.width) / this.levels[0].columns];
    while (size * 2 <= 1) {
      number += 1;
      size *= 2;
      if (!this.levels[number]) this.levels[number] = halved(this.levels[number - 1]);
    }
    return this.levels[number];
  }

  /** How many values are kept for it: two bytes each, and a third more for smaller levels. */
  get weight() {
    return this.levels[0].pixels.length;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Matrix} matrix from the radiograph's pixels to the canvas's
   * @param {[number, number, number, number]} [part] left, top, right and bottom of what is drawn of the canvas; all of it where it is left out
   */
  draw(context, matrix, part = [0, 0, context.canvas.width, context.canvas.height]) {
    const { pixels, rows, columns } = this.level(Math.hypot(matrix[0], matrix[1]));
    const across = columns / this.width;
    const down = rows / this.height;
    const back = composed([across, 0, 0, down, 0, 0], inverse(matrix));
    const [[x, y], [u, v]] = [moved(back, [part[0], part[1]]), moved(back, [part[2], part[3]])];
    const [left, top] = [Math.max(0, Math.floor(Math.min(x, u)) - 1), Math.max(0, Math.floor(Math.min(y, v)) - 1)];
    const [right, bottom] = [Math.min(columns, Math.ceil(Math.max(x, u)) + 1), Math.min(rows, Math.ceil(Math.max(y, v)) + 1)];
    if (right <= left || bottom <= top) return;
    const [width, height] = [right - left, bottom - top];
    const seen = new ImageData(width, height);
    const out = new Uint32Array(seen.data.buffer);
    for (let y = 0, to = 0; y < height; y++) {
      let from = (top + y) * columns + left;
      for (let x = 0; x < width; x++) out[to++] = this.lut[pixels[from++]];
    }
    if (this.scratch.width < width) this.scratch.width = width;
    if (this.scratch.height < height) this.scratch.height = height;
    drawing(this.scratch).putImageData(seen, 0, 0);
    context.save();
    context.setTransform(...matrix);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "medium";
    context.drawImage(this.scratch, 0, 0, width, height, left / across, top / down, width / across, height / down);
    context.restore();
  }
}
