// What a measure says, and that it comes back after a reload; and which panes there are.

import assert from "node:assert/strict";
import { test } from "node:test";

import { columnsOf, filled, nextLayout, panesAtStart } from "../../api/pages/static/viewer/layout.js";
import { calibrationOf, calibrationWords, measureWords, readMeasures, writeMeasures } from "../../api/pages/static/viewer/measures.js";

const SIZE = { width: 2000, height: 1000 };
/** @type {import("../../api/pages/static/viewer/measures.js").Measure} */
const LENGTH = { study: "s", image: 1, frame: 1, kind: "length", points: [[0.1, 0.2], [0.4, 0.6]] }; // 600 across, 400 down

test("a length is in millimetres by the file's spacing, which is named, and else in pixels", () => {
  const about = { rows: 1000, columns: 2000, spacing: /** @type {[number, number]} */ ([0.1, 0.1]) };
  const calibrated = calibrationOf({ ...about, spacing_from: "PixelSpacing" }, SIZE);
  assert.equal(measureWords(LENGTH, SIZE, calibrated), "72.1 mm");
  assert.equal(calibrationWords(calibrated), "by Pixel Spacing");
  const detector = calibrationOf({ ...about, spacing_from: "ImagerPixelSpacing" }, SIZE);
  assert.equal(measureWords(LENGTH, SIZE, detector), "72.1 mm at the detector");
  assert.match(calibrationWords(detector), /Imager Pixel Spacing/);
  assert.equal(measureWords(LENGTH, SIZE, calibrationOf({ ...about, spacing: null }, SIZE)), "721 px");
  assert.equal(measureWords(LENGTH, SIZE, calibrationOf({ rows: 1, columns: 1 }, SIZE)), "721 px");
  assert.match(calibrationWords(null), /pixels/);
  assert.match(calibrationWords(calibrationOf(about, SIZE)), /spacing/); // made before it was said which
});

test("pixels that are not square are measured as they are seen", () => {
  const squashed = { rows: 1000, columns: 1000, spacing: /** @type {[number, number]} */ ([0.1, 0.2]), spacing_from: "PixelSpacing" };
  assert.equal(measureWords(LENGTH, SIZE, calibrationOf(squashed, SIZE)), "72.1 mm");
});

test("an angle needs no spacing", () => {
  assert.equal(measureWords({ kind: "angle", points: [[0.1, 0.2], [0.1, 0.6], [0.3, 0.6]] }, SIZE, null), "90.0°");
});

test("measures survive a reload; what is damaged is left out", () => {
  const angle = { ...LENGTH, kind: "angle", points: [[0, 0], [1, 1], [0, 1]] };
  assert.deepEqual(readMeasures(writeMeasures(/** @type {any} */ ([LENGTH, angle]))), [LENGTH, angle]);
  for (const text of [null, "", "{", "7", "null", "{}", '["x", null, 7, {}]']) assert.deepEqual(readMeasures(text), []);
  const damaged = [
    { ...LENGTH, kind: "area" }, { ...LENGTH, points: [[0, 0]] }, { ...LENGTH, points: [[0, 0], [2, 0]] }, { ...LENGTH, image: "1" },
    { ...LENGTH, study: 3 }, { ...LENGTH, points: [[0, 0], ["1", 0]] }, { ...angle, points: LENGTH.points },
  ];
  assert.deepEqual(readMeasures(JSON.stringify([...damaged, LENGTH])), [LENGTH]);
  assert.equal(readMeasures(JSON.stringify(Array(1000).fill(LENGTH))).length, 200);
});

test("a stage begins with a pane an image, as far as they are wide enough", () => {
  assert.deepEqual([1, 2, 3, 4, 400].map((images) => panesAtStart(1400, images)), [1, 2, 3, 4, 4]);
  assert.deepEqual([1, 2, 3, 4].map((images) => panesAtStart(686, images)), [1, 2, 2, 4]); // three stand beside each other
  assert.deepEqual([1, 2, 3, 4].map((images) => panesAtStart(390, images)), [1, 1, 1, 1]);
  assert.equal(panesAtStart(0, 3), 1); // before styles have come
  assert.equal(columnsOf(4), 2);
});

test("the layout goes round through those that can be filled", () => {
  assert.deepEqual([1, 2, 3].map((panes) => nextLayout(panes, 3)), [2, 3, 1]);
  assert.equal(nextLayout(1, 1), 1);
  assert.equal(nextLayout(4, 400), 1);
});

test("what the reader looks at stays on the stage", () => {
  const hung = ["a", "b", "c", "d", "e"];
  assert.deepEqual(filled({ panes: 2, shown: ["d"], hung, needed: "d" }), ["d", "a"]);
  assert.deepEqual(filled({ panes: 1, shown: ["a", "b"], hung, needed: "b" }), ["b"]);
  assert.deepEqual(filled({ panes: 4, shown: ["b", "prior"], hung, needed: "b" }), ["b", "prior", "a", "c"]);
  assert.deepEqual(filled({ panes: 4, shown: ["a"], hung: ["a"], needed: "a" }), ["a"]);
});
