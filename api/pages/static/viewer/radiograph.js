// One radiograph's gray values, and how they are drawn through a window. A preview and a full-resolution frame are both one of these.

import { drawing, make } from "../lib/dom.js";
import { Histogram, TOP, fieldCorners, fillLut, halved, presetWindow } from "./gray.js";

/** @typedef {import("./gray.js").Grid} Grid */
/** @typedef {import("./gray.js").Shape} Shape */
/** @typedef {import("./gray.js").Window} Window */
/** @typedef {{x: number, y: number, scale: number}} View the radiograph's point in the upper left corner, and how many pixels of the canvas, or of the page, are one of the radiograph */

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
 */

export class Radiograph {
  /**
   * rows and columns are of these pixels, which need not be square. slope * pixel + intercept are the file's units.
   * @param {Grid & Shape & {window: Window, words: string, shape?: string, slope?: number, intercept?: number}} radiograph
   */
  constructor({ pixels, rows, columns, width, height, field, window, shape = "LINEAR", slope = 1, intercept = 0, words }) {
    this.width = width;
    this.height = height;
    this.field = field;
    this.window = window;
    this.shape = shape;
    this.slope = slope;
    this.intercept = intercept;
    this.words = words;
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
    return new Radiograph({ pixels, rows, columns, ...shape, window, shape: curve, slope, intercept, words });
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

  /** @param {string} name as `presetWindow` has it */
  preset(name) {
    return presetWindow(name, this);
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

  /** @param {CanvasRenderingContext2D} context @param {View} view in the canvas's pixels */
  draw(context, view) {
    const { pixels, rows, columns } = this.level(view.scale);
    const across = columns / this.width;
    const down = rows / this.height;
    const left = Math.max(0, Math.floor(view.x * across) - 1);
    const top = Math.max(0, Math.floor(view.y * down) - 1);
    const right = Math.min(columns, Math.ceil((view.x + context.canvas.width / view.scale) * across) + 1);
    const bottom = Math.min(rows, Math.ceil((view.y + context.canvas.height / view.scale) * down) + 1);
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
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "medium";
    context.drawImage(
      this.scratch, 0, 0, width, height,
      (left / across - view.x) * view.scale, (top / down - view.y) * view.scale,
      (width / across) * view.scale, (height / down) * view.scale,
    );
  }
}
