// The outlines that the page draws are those of the results that leave: tests/unit/worker/test_outlines.py reads the same file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Heat } from "../../api/pages/static/viewer/heat.js";

/** @typedef {import("../../api/pages/static/viewer/heat.js").HeatmapResponse} HeatmapResponse */

/** @type {{name: string, field: number[], told: HeatmapResponse, lines: Record<string, [number, number][][]>}[]} */
const cases = JSON.parse(readFileSync(new URL("../data/contours.json", import.meta.url), "utf8"));

for (const { name, field: [rows, columns], told, lines } of cases) {
  test(`outlines: ${name}`, () => {
    const [left, top, width, height] = told.frame;
    const [across, down, wide, high] = told.field;
    const toRadiograph = { x: columns / width, y: rows / height, left, top };
    const middle = [(across + wide / 2 - left) * toRadiograph.x, (down + high / 2 - top) * toRadiograph.y];
    const heat = Object.assign(Object.create(Heat.prototype), { told, toRadiograph, middle, turn: (told.field_turn * Math.PI) / 180 });
    for (const [level, point] of Object.entries({ sensitive: told.sensitive_threshold, specific: told.specific_threshold })) {
      /** @type {[number, number][][]} */
      const drawn = heat.outline(point);
      assert.equal(drawn.length, lines[level].length);
      drawn.forEach((line, i) => line.forEach(([x, y], j) => {
        const [wasX, wasY] = lines[level][i][j];
        assert.ok(Math.hypot(x - wasX, y - wasY) < 0.1);
      }));
    }
  });
}
