// Where a point of a radiograph stands on the screen and back: quarter turns, mirroring, zoom and pan; lengths and angles.

/** @typedef {import("./contours.js").Point} Point */
/** @typedef {readonly [number, number, number, number, number, number]} Matrix a to f of CSS: x' = a x + c y + e, y' = b x + d y + f */
/** @typedef {{turns: number, mirrored: boolean}} Orientation mirrored from left to right, then so many quarter turns clockwise, 0 to 3 */
/** @typedef {{width: number, height: number}} Size */
/** @typedef {{x: number, y: number, scale: number}} View the point of the oriented radiograph in the upper left corner, and how many pixels of the page are one of the radiograph */

/** @type {Readonly<Orientation>} */
export const UPRIGHT = Object.freeze({ turns: 0, mirrored: false });
/** @type {Matrix} */
const IDENTITY = [1, 0, 0, 1, 0, 0];

/** @param {number} value @param {number} most @param {number} [least] */
export const held = (value, most, least = 0) => Math.min(most, Math.max(least, value));

/**
 * A further quarter turn of what is seen.
 * @param {Orientation} orientation
 * @param {number} [by] quarter turns clockwise
 * @returns {Orientation}
 */
export const turned = ({ turns, mirrored }, by = 1) => ({ turns: (((turns + by) % 4) + 4) % 4, mirrored });

/**
 * What is seen, mirrored from left to right.
 * @param {Orientation} orientation
 * @returns {Orientation}
 */
export const flipped = ({ turns, mirrored }) => ({ turns: (4 - turns) % 4, mirrored: !mirrored });

/**
 * The size that a radiograph has on the screen, in its own pixels.
 * @param {Orientation} orientation
 * @param {Size} size
 * @returns {Size}
 */
export const orientedSize = ({ turns }, { width, height }) => (turns % 2 ? { width: height, height: width } : { width, height });

/**
 * First the inner, then the outer one.
 * @param {Matrix} outer
 * @param {Matrix} inner
 * @returns {Matrix}
 */
export function composed([a, b, c, d, e, f], [A, B, C, D, E, F]) {
  return [a * A + c * B, b * A + d * B, a * C + c * D, b * C + d * D, a * E + c * F + e, b * E + d * F + f];
}

/**
 * @param {Matrix} matrix that can be inverted
 * @returns {Matrix}
 */
export function inverse([a, b, c, d, e, f]) {
  const determinant = a * d - b * c;
  return [d / determinant, -b / determinant, -c / determinant, a / determinant, (c * f - d * e) / determinant, (b * e - a * f) / determinant];
}

/** @param {Matrix} matrix @param {Point} point @returns {Point} */
export const moved = ([a, b, c, d, e, f], [x, y]) => [a * x + c * y + e, b * x + d * y + f];

/**
 * From a radiograph's pixels to those of the oriented one, whose upper left corner is the origin.
 * @param {Orientation} orientation
 * @param {Size} size of the radiograph
 * @returns {Matrix}
 */
export function orienting({ turns, mirrored }, { width, height }) {
  /** @type {Matrix} */
  let matrix = mirrored ? [-1, 0, 0, 1, width, 0] : IDENTITY;
  for (let i = 0, high = height, wide = width; i < turns; i++, [high, wide] = [wide, high]) {
    matrix = composed([0, 1, -1, 0, high, 0], matrix);
  }
  return matrix;
}

/**
 * From a radiograph's pixels to those of the stage.
 * @param {View} view
 * @param {Orientation} orientation
 * @param {Size} size of the radiograph
 * @returns {Matrix}
 */
export function showing({ x, y, scale }, orientation, size) {
  return composed([scale, 0, 0, scale, -x * scale, -y * scale], orienting(orientation, size));
}

/**
 * A view that shows another scale, and keeps the point under (x, y) of the stage where it is.
 * @param {View} view
 * @param {number} scale
 * @param {number} x
 * @param {number} y
 * @returns {View}
 */
export function zoomed(view, scale, x, y) {
  return { x: view.x + x / view.scale - x / scale, y: view.y + y / view.scale - y / scale, scale };
}

/** @param {Point} from @param {Point} to */
export const distance = ([x, y], [u, v]) => Math.hypot(u - x, v - y);

/**
 * The angle between two arms, in degrees, 0 to 180.
 * @param {Point} one where the first arm ends
 * @param {Point} vertex where both begin
 * @param {Point} other where the second one ends
 */
export function angle(one, vertex, other) {
  const [x, y, u, v] = [one[0] - vertex[0], one[1] - vertex[1], other[0] - vertex[0], other[1] - vertex[1]];
  return (Math.atan2(Math.abs(x * v - y * u), x * u + y * v) * 180) / Math.PI;
}

/**
 * How long a ruler is: 1, 2 or 5 times a power of ten.
 * @param {number} most pixels of the page that it may have
 * @param {number} pixels of the page for a millimetre
 * @returns {{mm: number, pixels: number, parts: number}} parts: how many its ticks divide it into
 */
export function ruler(most, pixels) {
  const longest = most / pixels;
  const power = 10 ** Math.floor(Math.log10(longest));
  const steps = [5, 2, 1].find((times) => times * power <= longest * (1 + 1e-9)) ?? 1;
  return { mm: steps * power, pixels: steps * power * pixels, parts: steps === 1 ? 10 : steps };
}
