// What is kept of a study's radiographs: the last few, and no more than they may weigh.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Recent } from "../../api/pages/static/viewer/load.js";

test("the last few are kept, the one that was used last the longest", () => {
  const recent = new Recent(2);
  recent.keep("a", 1);
  recent.keep("b", 2);
  assert.equal(recent.get("a"), 1);
  recent.keep("c", 3);
  assert.deepEqual(["a", "b", "c"].map((key) => recent.get(key)), [1, undefined, 3]);
});

test("400 radiographs weigh no more than a few, and one of 8,000 pixels square is kept alone", () => {
  const recent = new Recent(8, { weigh: (/** @type {number} */ pixels) => pixels, mostWeight: 100e6 });
  const kept = () => [...recent.things.values()].reduce((sum, pixels) => sum + pixels, 0);
  for (let i = 0; i < 400; i++) {
    recent.keep(i, 15e6);
    assert.ok(kept() <= 100e6);
  }
  assert.equal(recent.things.size, 6);
  recent.keep("large", 64e6);
  assert.ok(kept() <= 100e6 && recent.get("large") === 64e6);
  recent.keep("huge", 200e6); // it is on the screen, so it is there anyway
  assert.deepEqual([...recent.things.values()], [200e6]);
});
