// Turned, mirrored, zoomed and moved as one likes: places are found again, lengths and angles stay what they are.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  UPRIGHT, angle, composed, distance, flipped, inverse, moved, orientedSize, orienting, ruler, showing, turned, zoomed,
} from "../../api/pages/static/viewer/geometry.js";

/** @typedef {[number, number]} Point */

/** Numbers between 0 and 1 that are the same in every run. @param {number} seed */
function dice(seed) {
  let state = seed;
  return () => {
    state = (state * 1664525 + 1013904223) % 4294967296;
    return state / 4294967296;
  };
}
const ORIENTATIONS = [0, 1, 2, 3].flatMap((turns) => [{ turns, mirrored: false }, { turns, mirrored: true }]);

/** As many places, sizes and views as `times` says, each with every orientation. @param {number} times @param {(one: {orientation: {turns: number, mirrored: boolean}, size: {width: number, height: number}, view: {x: number, y: number, scale: number}, some: () => Point}) => void} check */
function many(times, check) {
  const roll = dice(7);
  for (let i = 0; i < times; i++) {
    for (const orientation of ORIENTATIONS) {
      const size = { width: 1 + Math.floor(roll() * 8000), height: 1 + Math.floor(roll() * 8000) };
      const view = { x: (roll() - 0.5) * 9000, y: (roll() - 0.5) * 9000, scale: 0.02 + roll() * 16 };
      check({ orientation, size, view, some: () => [roll() * size.width, roll() * size.height] });
    }
  }
}
/** @param {readonly number[]} one @param {readonly number[]} other @param {number} [within] */
const near = (one, other, within = 1e-6) => one.forEach((value, i) => assert.ok(Math.abs(value - other[i]) < within * Math.max(1, Math.abs(value)), `${one} ${other}`));

test("four quarter turns are none, and mirrored twice is not mirrored", () => {
  for (const orientation of ORIENTATIONS) {
    assert.deepEqual(turned(turned(turned(turned(orientation)))), orientation);
    assert.deepEqual(turned(turned(orientation), -1), orientation);
    assert.deepEqual(flipped(flipped(orientation)), orientation);
  }
  assert.deepEqual(turned(UPRIGHT, -1), { turns: 3, mirrored: false });
});

test("a quarter turn leads the upper left corner to the upper right, mirroring exchanges left and right of what is seen", () => {
  const size = { width: 30, height: 20 };
  near(moved(orienting(turned(UPRIGHT), size), [0, 0]), [20, 0]);
  assert.deepEqual(orientedSize(turned(UPRIGHT), size), { width: 20, height: 30 });
  many(20, ({ orientation, size: any, some }) => {
    const point = some();
    const { width } = orientedSize(orientation, any);
    const [x, y] = moved(orienting(orientation, any), point);
    near(moved(orienting(flipped(orientation), any), point), [width - x, y]);
    const { height } = orientedSize(orientation, any);
    near(moved(orienting(turned(orientation), any), point), [height - y, x]);
  });
});

test("an oriented radiograph fills its place", () => {
  many(20, ({ orientation, size }) => {
    const corners = [[0, 0], [size.width, 0], [0, size.height], [size.width, size.height]].map((corner) => moved(orienting(orientation, size), /** @type {Point} */ (corner)));
    const { width, height } = orientedSize(orientation, size);
    near([Math.min(...corners.map(([x]) => x)), Math.max(...corners.map(([x]) => x))], [0, width]);
    near([Math.min(...corners.map(([, y]) => y)), Math.max(...corners.map(([, y]) => y))], [0, height]);
  });
});

test("from the radiograph to the stage and back is where one was", () => {
  many(50, ({ orientation, size, view, some }) => {
    const matrix = showing(view, orientation, size);
    const point = some();
    near(moved(inverse(matrix), moved(matrix, point)), point);
    near(composed(matrix, inverse(matrix)), [1, 0, 0, 1, 0, 0]);
  });
});

test("a zoom keeps the point under the pointer", () => {
  many(20, ({ orientation, size, view, some }) => {
    const at = /** @type {Point} */ ([300, 200]);
    const point = moved(inverse(showing(view, orientation, size)), at);
    near(moved(showing(zoomed(view, view.scale * 1.7, ...at), orientation, size), point), at, 1e-5);
    assert.equal(some().length, 2);
  });
});

test("a length is the same however it is seen, but for the zoom; an angle is the same", () => {
  many(50, ({ orientation, size, view, some }) => {
    const matrix = showing(view, orientation, size);
    const [one, two, three] = [some(), some(), some()];
    near([distance(moved(matrix, one), moved(matrix, two)) / view.scale], [distance(one, two)]);
    if (Math.min(distance(one, two), distance(two, three)) < 1) return;
    near([angle(moved(matrix, one), moved(matrix, two), moved(matrix, three))], [angle(one, two, three)], 1e-4);
  });
});

test("angles are between 0 and 180 degrees", () => {
  near([angle([1, 0], [0, 0], [0, 1])], [90]);
  near([angle([1, 0], [0, 0], [-1, 0])], [180]);
  near([angle([1, 0], [0, 0], [5, 0])], [0]);
  near([angle([1, 0], [0, 0], [1, -1])], [45]);
});

test("a ruler has a round length that fits", () => {
  for (const pixels of [0.01, 0.3, 1, 2.37, 40]) {
    const { mm, pixels: long, parts } = ruler(300, pixels);
    assert.ok(long <= 300 * 1.0001 && long > 300 / 2.6, `${pixels}: ${long}`);
    assert.match(mm.toExponential(), /^[125](\.0*)?e/);
    assert.ok(parts >= 2 && parts <= 10);
  }
  assert.deepEqual(ruler(200, 4), { mm: 50, pixels: 200, parts: 5 });
});
