// Closed lines where a coarse map of values reaches a level, drawn smoothly.

export const FINER = 8; // points of the drawn map for one cell

/** @typedef {[number, number]} Point [x, y] */

/**
 * Cubic interpolation (Catmull & Rom 1974) along both axes; the edge's cells go on beyond it.
 * @param {ArrayLike<number>} values row by row
 * @param {number} width
 * @param {number} height
 * @returns {Float32Array} FINER times as many in each direction
 */
export function finer(values, width, height) {
  const across = new Float32Array(height * width * FINER);
  const out = new Float32Array(height * FINER * width * FINER);
  /**
   * @param {(index: number) => number} from
   * @param {number} count
   * @param {number} stride
   * @param {(index: number, value: number) => void} to
   * @param {number} toStride
   */
  const spread = (from, count, stride, to, toStride) => {
    /** @param {number} i */
    const at = (i) => from(Math.min(count - 1, Math.max(0, i)) * stride);
    for (let i = 0; i < count * FINER; i++) {
      const where = (i + 0.5) / FINER - 0.5;
      const cell = Math.floor(where);
      const t = where - cell;
      const [a, b, c, d] = [at(cell - 1), at(cell), at(cell + 1), at(cell + 2)];
      const value = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
      to(i * toStride, value);
    }
  };
  for (let row = 0; row < height; row++) {
    const [begin, end] = [row * width, row * width * FINER];
    spread((i) => values[begin + i], width, 1, (i, value) => (across[end + i] = value), 1);
  }
  const wide = width * FINER;
  for (let column = 0; column < wide; column++) {
    spread((i) => across[i + column], height, wide, (i, value) => (out[i + column] = value), wide);
  }
  return out;
}

/**
 * Marching squares (Lorensen & Cline 1987, in the plane). Beyond the edge everything is below the level, so lines close.
 * A saddle is cut so that its high corners stay apart.
 * @param {ArrayLike<number>} values row by row
 * @param {number} width
 * @param {number} height
 * @param {number} level
 * @returns {Point[][]} closed lines of points between the grid's
 */
export function marchingSquares(values, width, height, level) {
  /** @param {number} x @param {number} y */
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? -1e9 : values[y * width + x] - level);
  /** @type {Map<string, {to: string, point: Point}>} from the edge by which a line enters a square to that by which it leaves */
  const next = new Map();
  /** @param {number} x1 @param {number} y1 @param {number} x2 @param {number} y2 @returns {Point} */
  const cross = (x1, y1, x2, y2) => {
    const [a, b] = [at(x1, y1), at(x2, y2)];
    const t = Math.abs(b) > 1e8 ? 0 : Math.abs(a) > 1e8 ? 1 : a / (a - b);
    return [x1 + t * (x2 - x1), y1 + t * (y2 - y1)];
  };
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const high = [at(x, y) >= 0, at(x + 1, y) >= 0, at(x + 1, y + 1) >= 0, at(x, y + 1) >= 0];
      const kind = high.reduce((sum, one, i) => sum + (one ? 1 << i : 0), 0);
      if (kind === 0 || kind === 15) continue;
      const edges = [`h${x},${y}`, `v${x + 1},${y}`, `h${x},${y + 1}`, `v${x},${y}`]; // top, right, bottom, left
      const points = [
        () => cross(x, y, x + 1, y), () => cross(x + 1, y, x + 1, y + 1),
        () => cross(x, y + 1, x + 1, y + 1), () => cross(x, y, x, y + 1),
      ];
      // walking round the corners: a line comes in where low turns to high, and goes out at the high run's end
      for (let i = 0; i < 4; i++) {
        if (high[i] || !high[(i + 1) % 4]) continue;
        let j = (i + 1) % 4;
        while (high[(j + 1) % 4]) j = (j + 1) % 4;
        next.set(edges[j], { to: edges[i], point: points[j]() });
      }
    }
  }
  const lines = [];
  for (let [start] = next.keys(); start !== undefined; [start] = next.keys()) {
    /** @type {Point[]} */
    const line = [];
    let edge = start;
    for (let step = next.get(edge); step; step = next.get(edge)) {
      next.delete(edge);
      line.push(step.point);
      edge = step.to;
    }
    if (line.length > 2) lines.push(line);
  }
  return lines;
}
