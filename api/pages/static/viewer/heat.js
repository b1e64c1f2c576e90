// A heatmap as GET /api/v1/studies/{id}/heatmap.json answers it: its colours, and outlines at the operating points.

import { drawing, make } from "../lib/dom.js";
import { FINER, finer, marchingSquares } from "./contours.js";

/** @typedef {import("./contours.js").Point} Point */
/** @typedef {import("./geometry.js").Matrix} Matrix */

/**
 * @typedef {object} HeatmapResponse the API's response
 * @property {number} width cells
 * @property {number} height
 * @property {number[]} cells each one's own fracture probability, row by row
 * @property {number[]} local the probability that the radiograph would have with nothing but what lies around the cell
 * @property {number} full the probability that has the strongest colour
 * @property {string} assessment
 * @property {number} sensitive_threshold
 * @property {number} specific_threshold
 * @property {[number, number, number, number]} frame left, top, width and height of the radiograph in the map, in cells
 * @property {[number, number, number, number]} field of the exposed field
 * @property {number} field_turn degrees by which the field lies askew in the radiograph
 */

/** @typedef {{name: "sensitive" | "specific", level: number}} Level an operating point: its name, and the probability from which on it is reached */

const LOWEST = -14; // log odds that stand for "nothing here"

// From transparent over amber to red, as the API's heatmap.png: readable on gray, and by alpha without colour.
export const PALETTE = Uint32Array.from({ length: 256 }, (_, level) => {
  const share = level / 255;
  const green = Math.round(200 * (1 - share) ** 0.8);
  const [blue, alpha] = [Math.round(40 * (1 - share)), Math.round(230 * share ** 1.3)];
  return ((alpha << 24) | (blue << 16) | (green << 8) | 255) >>> 0;
});

/**
 * The log odds of a probability, within ±14: a cell with none at all still has a place on the scale.
 * @param {number} probability
 */
export function logOdds(probability) {
  if (probability > 0 && probability < 1) return Math.max(LOWEST, Math.log(probability / (1 - probability)));
  return probability ? -LOWEST : LOWEST;
}

/**
 * The points at which lines are drawn. Tight: the one by which the finding is assessed. Wide: the sensitive one beside it, which surrounds
 * more, for who asks for it. None where the model does not answer, and none of a negative finding.
 * @param {Pick<HeatmapResponse, "assessment" | "sensitive_threshold" | "specific_threshold">} told
 * @returns {{tight: Level[], wide: Level[]}}
 */
export function outlineLevels({ assessment, sensitive_threshold: sensitive, specific_threshold: specific }) {
  /** @type {Level} */
  const wide = { name: "sensitive", level: sensitive };
  if (assessment === "positive") return { tight: [{ name: "specific", level: specific }], wide: [wide] };
  return { tight: assessment === "unclear" ? [wide] : [], wide: [] };
}

export class Heat {
  /** @param {HeatmapResponse} told @param {{width: number, height: number}} radiograph in square pixels */
  constructor(told, radiograph) {
    this.told = told;
    // the radiograph's place in the map, and from a cell's edge to the radiograph's pixels
    const [left, top, width, height] = told.frame;
    this.toRadiograph = { x: radiograph.width / width, y: radiograph.height / height, left, top };
    // the field lies askew in the radiograph, by so much about this point
    const [across, down, wide, high] = told.field;
    this.turn = (told.field_turn * Math.PI) / 180;
    this.middle = [(across + wide / 2 - left) * this.toRadiograph.x, (down + high / 2 - top) * this.toRadiograph.y];
    this.canvas = make("canvas", { width: told.width * FINER, height: told.height * FINER });
    this.fine = finer(told.cells, told.width, told.height);
    this.colour(0);
  }

  /** The probability that has the strongest colour. */
  get full() {
    return this.told.full;
  }

  /** Colour what is at or over the threshold. @param {number} threshold a cell's probability */
  colour(threshold) {
    const context = drawing(this.canvas);
    const picture = context.createImageData(this.canvas.width, this.canvas.height);
    const out = new Uint32Array(picture.data.buffer);
    const least = Math.max(threshold, 1e-9);
    for (let i = 0; i < out.length; i++) {
      const value = Math.min(this.full, this.fine[i]);
      out[i] = value >= least ? PALETTE[Math.round((255 * value) / this.full)] : 0;
    }
    context.putImageData(picture, 0, 0);
  }

  /** @param {CanvasRenderingContext2D} context @param {Matrix} matrix as of `Radiograph.draw` @param {number} opacity 0..1 */
  draw(context, matrix, opacity) {
    const { x, y, left, top } = this.toRadiograph;
    const [middleX, middleY] = this.middle;
    context.save();
    context.setTransform(...matrix);
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = true;
    context.translate(middleX, middleY);
    context.rotate(this.turn);
    context.translate(-middleX, -middleY);
    const [across, down, width, height] = this.told.field;
    context.beginPath(); // the square's margin holds no radiograph
    context.rect((across - left) * x, (down - top) * y, width * x, height * y);
    context.clip();
    context.drawImage(this.canvas, -left * x, -top * y, this.told.width * x, this.told.height * y);
    context.restore();
  }

  /** Where the local probability reaches `level`: closed lines in the radiograph's pixels. @param {number} level @returns {Point[][]} */
  outline(level) {
    const { local, width: columns, height: rows } = this.told;
    const [width, height] = [columns * FINER, rows * FINER];
    const { x, y, left, top } = this.toRadiograph;
    const lines = marchingSquares(finer(local.map(logOdds), columns, rows), width, height, Math.log(level / (1 - level)));
    const [middleX, middleY] = this.middle;
    const [sine, cosine] = [Math.sin(this.turn), Math.cos(this.turn)];
    /** @param {Point} point @returns {Point} */
    const place = ([u, v]) => {
      const [right, below] = [((u + 0.5) / FINER - left) * x - middleX, ((v + 0.5) / FINER - top) * y - middleY];
      return [middleX + right * cosine - below * sine, middleY + right * sine + below * cosine];
    };
    return lines.map((line) => line.map(place));
  }
}
