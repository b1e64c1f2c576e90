// Windows, lookup tables, presets and the pyramid of the radiograph viewer.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Histogram, TOP, between, carriedWindow, draggedWindow, fieldCorners, fillLut, halved, presetWindow, windowAt,
} from "../../api/pages/static/viewer/gray.js";

const WHOLE = { x: 0, y: 0, width: 1, height: 1, turn: 0 };

/** The gray, 0..255, of each entry. @param {import("../../api/pages/static/viewer/gray.js").Window} window @param {object} [how] */
function grays(window, how) {
  const lut = new Uint32Array(TOP);
  fillLut(lut, window, how);
  for (const entry of lut) {
    const [red, green, blue, alpha] = [entry & 255, (entry >> 8) & 255, (entry >> 16) & 255, entry >>> 24];
    assert.ok(red === green && green === blue && alpha === 255);
  }
  return Array.from(lut, (entry) => entry & 255);
}

test("a window runs from black to white and is even in between", () => {
  const shown = grays([1000, 3000]);
  assert.deepEqual([shown[0], shown[1000], shown[2000], shown[3000], shown[TOP - 1]], [0, 0, 128, 255, 255]);
  assert.ok(shown.every((gray, value) => value === 0 || gray >= shown[value - 1]));
});

test("inverting turns each gray round, and so does a window whose white is the lesser value", () => {
  const shown = grays([1000, 3000]);
  const inverted = grays([1000, 3000], { inverted: true });
  const backwards = grays([3000, 1000]);
  for (let value = 0; value < TOP; value += 97) {
    assert.ok(Math.abs(shown[value] + inverted[value] - 255) <= 1);
    assert.equal(backwards[value], inverted[value]);
  }
});

test("a sigmoid is half gray in the middle and never quite black or white (PS3.3 C.11.2.1.3.1)", () => {
  const shown = grays([1000, 3000], { shape: "SIGMOID" });
  assert.equal(shown[2000], 128);
  assert.equal(shown[1000], Math.round(255 / (1 + Math.exp(2))));
  assert.equal(shown[3000], Math.round(255 / (1 + Math.exp(-2))));
  assert.ok(shown.every((gray, value) => value === 0 || gray >= shown[value - 1]));
});

test("a window of no width still separates black from white", () => {
  const shown = grays([500, 500]);
  assert.deepEqual([shown[499], shown[500], shown[501]], [0, 0, 255]);
});

test("presets go by what lies in the exposed field", () => {
  const pixels = Uint16Array.from({ length: 100 }, (_, i) => (i % 10 < 5 ? 60000 : 100 + i)); // the left half is border
  const field = { x: 0.5, y: 0, width: 0.5, height: 1, turn: 0 };
  const histogram = new Histogram({ pixels, rows: 10, columns: 10 }, { width: 10, height: 10, field });
  assert.deepEqual([histogram.counted, histogram.least, histogram.most], [50, 105, 199]);
  const radiograph = { histogram, window: /** @type {[number, number]} */ ([1, 2]), slope: 1 };
  assert.deepEqual(presetWindow("default", radiograph), [1, 2]);
  assert.notEqual(presetWindow("default", radiograph), radiograph.window); // a copy
  assert.deepEqual(presetWindow("full", radiograph), [105, 199]);
  assert.deepEqual(presetWindow("bone", radiograph), [histogram.quantile(0.5), 199]);
  assert.deepEqual(presetWindow("full", { ...radiograph, slope: -1 }), [199, 105]);
});

test("a radiograph of one value has a window all the same", () => {
  const histogram = new Histogram({ pixels: new Uint16Array(4).fill(7), rows: 2, columns: 2 }, { width: 2, height: 2, field: WHOLE });
  assert.deepEqual(presetWindow("full", { histogram, window: [0, 1], slope: 1 }), [7, 8]);
});

test("quantiles grow with the share and count what lies below", () => {
  const pixels = Uint16Array.from({ length: 1000 }, (_, i) => i);
  const histogram = new Histogram({ pixels, rows: 10, columns: 100 }, { width: 100, height: 10, field: WHOLE });
  assert.deepEqual([0.001, 0.25, 0.5, 1].map((share) => histogram.quantile(share)), [0, 249, 499, 999]);
});

test("an askew field is counted within its own outline", () => {
  const pixels = new Uint16Array(10000).fill(1);
  const field = { x: 0.25, y: 0.25, width: 0.5, height: 0.5, turn: 45 };
  const histogram = new Histogram({ pixels, rows: 100, columns: 100 }, { width: 100, height: 100, field });
  // a turned square has the area of the square, less the pixels that its sides cut: at most two in each of 71 rows
  assert.ok(histogram.counted <= 2500 && histogram.counted > 2500 - 2 * 71);
});

test("the corners of a turned field stay as far from its middle", () => {
  const shape = { width: 200, height: 100, field: { x: 0.2, y: 0.3, width: 0.4, height: 0.6, turn: 0 } };
  const middle = [0.4 * 200, 0.6 * 100];
  const far = Math.hypot(40, 30);
  for (const turn of [0, 10, -35, 90]) {
    const corners = fieldCorners({ ...shape, field: { ...shape.field, turn } });
    for (const [x, y] of corners) assert.ok(Math.abs(Math.hypot(x - middle[0], y - middle[1]) - far) < 1e-9);
  }
  assert.deepEqual(fieldCorners(shape).map((corner) => corner.map(Math.round)), [[40, 30], [120, 30], [120, 90], [40, 90]]);
});

test("a row meets a convex outline in one run of columns, or in none", () => {
  /** @type {[number, number][]} */
  const diamond = [[5, 0], [10, 5], [5, 10], [0, 5]];
  assert.deepEqual(between(diamond, 5, 20), [0, 10]);
  assert.deepEqual(between(diamond, 2.5, 20), [3, 7]);
  const [from, to] = between(diamond, 11, 20);
  assert.equal(from, to);
  assert.deepEqual(between(diamond, 5, 4), [0, 4]);
});

test("dragging sideways widens, upwards brightens, and a mirrored window stays mirrored", () => {
  assert.deepEqual(draggedWindow([100, 200], { across: 10, down: 0, step: 2 }), [90, 210]);
  assert.deepEqual(draggedWindow([100, 200], { across: 0, down: -10, step: 2 }), [80, 180]);
  assert.deepEqual(draggedWindow([200, 100], { across: 10, down: 0, step: 2 }), [210, 90]);
  const [black, white] = draggedWindow([100, 200], { across: -1000, down: 0, step: 2 });
  assert.equal(white - black, 1); // never narrower
});

test("a window's centre and width are what they were", () => {
  assert.deepEqual(windowAt(150, 100), [100, 200]);
  assert.deepEqual(windowAt(150, -100), [200, 100]);
});

test("a window of the reader's own means the same in another quality of the radiograph, and back", () => {
  assert.deepEqual(carriedWindow([0, 255], [0, 255], [400, 3200]), [400, 3200]);
  const full = carriedWindow([51, 204], [0, 255], [400, 3200]);
  assert.deepEqual(full.map(Math.round), [960, 2640]);
  assert.deepEqual(carriedWindow(full, [400, 3200], [0, 255]).map(Math.round), [51, 204]);
});

test("each level of the pyramid is the mean of four, and ends with one pixel", () => {
  const grid = { pixels: Uint16Array.from([1, 3, 5, 7, 5, 7, 9, 11]), rows: 2, columns: 4 };
  assert.deepEqual(halved(grid), { pixels: Uint16Array.from([4, 8]), rows: 1, columns: 2 });
  assert.deepEqual(halved(halved(grid)), { pixels: Uint16Array.from([6]), rows: 1, columns: 1 });
  /** @type {import("../../api/pages/static/viewer/gray.js").Grid} */
  let odd = { pixels: new Uint16Array(35).fill(9), rows: 5, columns: 7 };
  while (odd.rows * odd.columns > 1) {
    odd = halved(odd);
    assert.equal(odd.pixels.length, odd.rows * odd.columns);
    assert.ok(odd.pixels.every((value) => value === 9));
  }
});
