// From stored pixels to the screen's grays: windows and their lookup tables, presets, and the levels of a pyramid.

export const TOP = 65536; // values that a pixel may have

/** @typedef {[number, number]} Window the values that are shown black and white, in that order */
/** @typedef {[number, number]} Point [x, y] */
/** @typedef {{x: number, y: number, width: number, height: number, turn: number}} Field the exposed field, 0..1 of the radiograph; turn: by how many degrees it lies askew, clockwise about its middle */
/** @typedef {{pixels: Uint16Array, rows: number, columns: number}} Grid pixels row by row */
/** @typedef {{width: number, height: number, field: Field}} Shape a radiograph as people see it: its size in square pixels, and its field */

/**
 * Where the corners of the exposed field lie, in the radiograph's pixels, clockwise.
 * @param {Shape} shape
 * @returns {Point[]}
 */
export function fieldCorners({ width, height, field }) {
  const [middleX, middleY] = [(field.x + field.width / 2) * width, (field.y + field.height / 2) * height];
  const [sine, cosine] = [Math.sin((field.turn * Math.PI) / 180), Math.cos((field.turn * Math.PI) / 180)];
  return [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([right, down]) => {
    const [u, v] = [(right * field.width * width) / 2, (down * field.height * height) / 2];
    return [middleX + u * cosine - v * sine, middleY + u * sine + v * cosine];
  });
}

/**
 * The first column within a convex outline at height y, and the first beyond it.
 * @param {Point[]} corners
 * @param {number} y
 * @param {number} columns
 * @returns {[number, number]}
 */
export function between(corners, y, columns) {
  /** @type {number[]} */
  const places = [];
  corners.forEach(([x1, y1], i) => {
    const [x2, y2] = corners[(i + 1) % corners.length];
    if (y1 <= y !== y2 <= y) places.push(x1 + ((y - y1) / (y2 - y1)) * (x2 - x1));
  });
  const [left, right] = places.length ? [Math.min(...places), Math.max(...places)] : [0, 0];
  const from = Math.min(columns, Math.max(0, Math.ceil(left)));
  return [from, Math.max(from, Math.min(columns, Math.floor(right)))];
}

/** How often each value stands within the exposed field: presets and ranges go by what lies there. */
export class Histogram {
  /** @param {Grid} grid of the radiograph, or of a smaller picture of it @param {Shape} shape of the radiograph */
  constructor({ pixels, rows, columns }, shape) {
    const { width, height, field } = shape;
    const counts = new Uint32Array(TOP);
    let counted = 0;
    /** @param {number} top @param {number} bottom @param {number} left @param {number} right */
    const count = (top, bottom, left, right) => {
      for (let y = top; y < bottom; y++) for (let i = y * columns + left; i < y * columns + right; i++) counts[pixels[i]]++;
      counted += (bottom - top) * (right - left);
    };
    if (field.turn) {
      const corners = fieldCorners(shape).map(([x, y]) => /** @type {Point} */ ([(x / width) * columns, (y / height) * rows]));
      for (let y = 0; y < rows; y++) count(y, y + 1, ...between(corners, y + 0.5, columns));
    }
    const [left, top] = [Math.max(0, Math.floor(field.x * columns)), Math.max(0, Math.floor(field.y * rows))];
    const right = Math.min(columns, Math.max(left + 1, Math.round((field.x + field.width) * columns)));
    const bottom = Math.min(rows, Math.max(top + 1, Math.round((field.y + field.height) * rows)));
    if (!counted) count(top, bottom, left, right);
    this.counts = counts;
    this.counted = counted;
    this.least = counts.findIndex((times) => times > 0);
    this.most = counts.findLastIndex((times) => times > 0);
  }

  /** The value below which a share of the pixels lies. @param {number} share 0..1 */
  quantile(share) {
    let left = share * this.counted;
    for (let value = this.least; value < this.most; value++) {
      left -= this.counts[value];
      if (left <= 0) return value;
    }
    return this.most;
  }
}

/** @typedef {"bone" | "soft"} Tissue */
/** @typedef {Readonly<Record<Tissue, readonly [number, number]>>} Shares the shares of the field's values that are black and white */

/** @type {Shares} where air surrounds a thin part: half of the field is darker than bone */
const THIN = { bone: [0.5, 0.9995], soft: [0.05, 0.85] };
/** @type {Shares} where soft tissue fills the field */
const THICK = { bone: [0.3, 0.9995], soft: [0.01, 0.7] };
/** @type {Readonly<Record<string, Shares>>} by the model's region; every other one is thin */
const SHARES = { hip: THICK, shoulder: THICK };

/**
 * The window of a preset; with a negative slope the greater value is the darker one.
 * @param {string} name "default", the file's own; "bone" or "soft" tissue; or "full", from the least value to the greatest
 * @param {{histogram: Histogram, window: Window, slope: number}} radiograph
 * @param {string} [region] of the body, as the model names it
 * @returns {Window}
 */
export function presetWindow(name, { histogram, window, slope }, region = "") {
  if (name === "default") return [...window];
  const shares = name === "bone" || name === "soft" ? (SHARES[region] ?? THIN)[name] : null;
  /** @type {Window} */
  const sides = shares ? [histogram.quantile(shares[0]), histogram.quantile(shares[1])] : [histogram.least, histogram.most];
  if (sides[0] === sides[1]) sides[1] += 1;
  return slope < 0 ? [sides[1], sides[0]] : sides;
}

/**
 * Fill a lookup table from values to opaque grays, as ImageData has them. Source: PS3.3 C.11.2.1.
 * @param {Uint32Array} lut of TOP entries
 * @param {Window} window
 * @param {{shape?: string, inverted?: boolean}} [how] shape: the VOI LUT function, LINEAR or SIGMOID
 */
export function fillLut(lut, [black, white], { shape = "LINEAR", inverted = false } = {}) {
  const span = white - black || 1;
  for (let value = 0; value < TOP; value++) {
    let share = (value - black) / span;
    if (shape === "SIGMOID") share = 1 / (1 + Math.exp(-4 * (share - 0.5)));
    if (inverted) share = 1 - share;
    const gray = share <= 0 ? 0 : share >= 1 ? 255 : Math.round(share * 255);
    lut[value] = 0xff000000 | (gray * 0x010101);
  }
}

/**
 * A window after a drag: sideways its width, upwards a lower centre, which is brighter.
 * @param {Window} window
 * @param {{across: number, down: number, step: number}} drag in screen pixels; step: values for one of them
 * @returns {Window}
 */
export function draggedWindow([black, white], { across, down, step }) {
  const sign = Math.sign(white - black) || 1;
  const width = Math.max(1, Math.abs(white - black) + across * step);
  return windowAt((black + white) / 2 + sign * down * step, sign * width);
}

/**
 * @param {number} centre
 * @param {number} width below 0: the greater value is the darker one
 * @returns {Window}
 */
export const windowAt = (centre, width) => [centre - width / 2, centre + width / 2];

/**
 * A window of the reader's own, from the preview's grays to the radiograph's values or back: what stood where in the first radiograph's
 * default window stands there in the second's.
 * @param {Window} window
 * @param {Window} from
 * @param {Window} to
 * @returns {Window}
 */
export function carriedWindow([black, white], [a, b], [c, d]) {
  /** @param {number} value */
  const carry = (value) => c + ((value - a) / (b - a || 1)) * (d - c);
  return [carry(black), carry(white)];
}

/**
 * A grid of half the size, each pixel the mean of four.
 * @param {Grid} grid
 * @returns {Grid}
 */
export function halved({ pixels, rows, columns }) {
  const [height, width] = [Math.max(1, rows >> 1), Math.max(1, columns >> 1)];
  const [down, across] = [rows > 1 ? columns : 0, columns > 1 ? 1 : 0];
  const small = new Uint16Array(height * width);
  for (let y = 0, to = 0; y < height; y++) {
    let from = 2 * y * columns;
    for (let x = 0; x < width; x++, from += 2) {
      small[to++] = (pixels[from] + pixels[from + across] + pixels[from + down] + pixels[from + down + across]) >> 2;
    }
  }
  return { pixels: small, rows: height, columns: width };
}
