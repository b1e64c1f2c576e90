// Which lines are drawn: at the point by which a finding is assessed, and no other unless asked for.

import assert from "node:assert/strict";
import { test } from "node:test";

import { outlineLevels } from "../../api/pages/static/viewer/heat.js";

const POINTS = { sensitive_threshold: 0.1, specific_threshold: 0.6 };
/** @param {string} assessment */
const names = (assessment) => {
  const { tight, wide } = outlineLevels({ assessment, ...POINTS });
  return { tight: tight.map((one) => [one.name, one.level]), wide: wide.map((one) => one.name) };
};

test("a positive finding has the line of the specific point; the wider one is a choice", () => {
  assert.deepEqual(names("positive"), { tight: [["specific", 0.6]], wide: ["sensitive"] });
});

test("an unclear finding has the line of the point that it reaches", () => {
  assert.deepEqual(names("unclear"), { tight: [["sensitive", 0.1]], wide: [] });
});

test("a negative finding and an abstention have none, however hot their map", () => {
  for (const assessment of ["negative", "abstained"]) assert.deepEqual(names(assessment), { tight: [], wide: [] });
});
