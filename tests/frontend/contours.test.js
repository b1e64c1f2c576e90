// The heatmap's lines and colours.

import assert from "node:assert/strict";
import { test } from "node:test";

import { FINER, finer, marchingSquares } from "../../api/pages/static/viewer/contours.js";
import { PALETTE, logOdds } from "../../api/pages/static/viewer/heat.js";

/** @typedef {[number, number]} Point */

/** Twice the signed area within closed lines (the shoelace formula). @param {Point[][]} lines */
const area = (lines) =>
  lines.reduce((all, line) => all + line.reduce((sum, [x, y], i) => {
    const [nextX, nextY] = line[(i + 1) % line.length];
    return sum + x * nextY - nextX * y;
  }, 0), 0) / 2;

/** A grid of values, and the same in a row. @param {number} width @param {number} height @param {(x: number, y: number) => number} at */
const grid = (width, height, at) => Array.from({ length: width * height }, (_, i) => at(i % width, Math.floor(i / width)));

test("a round hill has one line, as far from its top as the level says", () => {
  const values = grid(41, 41, (x, y) => 10 - Math.hypot(x - 20, y - 20));
  const lines = marchingSquares(values, 41, 41, 2);
  assert.equal(lines.length, 1);
  for (const [x, y] of lines[0]) assert.ok(Math.abs(Math.hypot(x - 20, y - 20) - 8) < 0.1);
  assert.ok(Math.abs(Math.abs(area(lines)) - Math.PI * 64) < 2);
});

test("nothing is drawn where nothing reaches the level, and the edge closes what does everywhere", () => {
  assert.deepEqual(marchingSquares(new Float32Array(12), 4, 3, 1), []);
  const lines = marchingSquares(new Float32Array(12).fill(2), 4, 3, 1);
  assert.equal(lines.length, 1);
  assert.ok(Math.abs(Math.abs(area(lines)) - 3 * 2) < 0.01); // between the outermost points of the grid
});

test("a hole has a line of its own, which runs the other way round", () => {
  const values = grid(31, 31, (x, y) => 5 - Math.abs(Math.hypot(x - 15, y - 15) - 8));
  const lines = marchingSquares(values, 31, 31, 2);
  assert.equal(lines.length, 2);
  assert.ok(area([lines[0]]) * area([lines[1]]) < 0);
  assert.ok(Math.abs(Math.abs(area(lines)) - Math.PI * (11 ** 2 - 5 ** 2)) < 6);
});

test("high corners of a saddle stay apart", () => {
  const lines = marchingSquares([2, 0, 0, 2], 2, 2, 1);
  assert.equal(lines.length, 2);
});

test("whatever the values are: lines are closed, cross no level, and a higher level lies within a lower one", () => {
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647; // Park & Miller 1988
  for (let round = 0; round < 50; round++) {
    const [width, height] = [2 + Math.floor(random() * 9), 2 + Math.floor(random() * 9)];
    const values = grid(width, height, () => random());
    const [lower, higher] = [0.3, 0.6].map((level) => marchingSquares(values, width, height, level));
    for (const lines of [lower, higher]) {
      for (const line of lines) {
        assert.ok(line.length > 2);
        line.forEach(([x, y], i) => {
          const [nextX, nextY] = line[(i + 1) % line.length];
          assert.ok(Math.hypot(nextX - x, nextY - y) <= Math.SQRT2 + 1e-9); // neighbours share a square
          assert.ok(x >= -1 && y >= -1 && x <= width && y <= height);
        });
      }
    }
    assert.ok(Math.abs(area(higher)) <= Math.abs(area(lower)) + 1e-9);
  }
});

test("a finer map goes through its cells' values and is as even as they are", () => {
  const even = finer(new Array(6).fill(3), 3, 2);
  assert.equal(even.length, 6 * FINER * FINER);
  assert.ok(even.every((value) => Math.abs(value - 3) < 1e-6));
  const ramp = finer([0, 1, 2, 3, 4, 5], 6, 1);
  const middle = (/** @type {number} */ cell) => (ramp[cell * FINER + FINER / 2 - 1] + ramp[cell * FINER + FINER / 2]) / 2;
  for (const cell of [2, 3]) assert.ok(Math.abs(middle(cell) - cell) < 1e-5);
});

test("log odds are those of the probability, and end at fourteen either way", () => {
  assert.equal(logOdds(0.5), 0);
  assert.ok(Math.abs(logOdds(0.9) - Math.log(9)) < 1e-12);
  assert.deepEqual([logOdds(0), logOdds(1e-9), logOdds(1)], [-14, -14, 14]);
});

test("colours grow from transparent amber to red", () => {
  assert.equal(PALETTE.length, 256);
  const parts = Array.from(PALETTE, (entry) => ({ red: entry & 255, green: (entry >> 8) & 255, alpha: entry >>> 24 }));
  assert.deepEqual([parts[0].alpha, parts[255].alpha, parts[255].green], [0, 230, 0]);
  parts.slice(1).forEach(({ red, green, alpha }, i) => assert.ok(red === 255 && green <= parts[i].green && alpha >= parts[i].alpha));
});
