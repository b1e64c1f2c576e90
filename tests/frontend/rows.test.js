// Which rows wait while nobody may be moved away from one, and how far a due time is.

import assert from "node:assert/strict";
import { test } from "node:test";

import { inWords, lateness, till } from "../../api/pages/static/lib/times.js";
import { changes, waitingWords } from "../../api/pages/static/live/rows.js";

const MINUTE = 60000;

test("what is new, gone and moved is told apart", () => {
  assert.deepEqual(changes(["a", "b"], ["a", "b"]), { added: [], gone: [], moved: false });
  assert.deepEqual(changes(["a", "b"], ["c", "a", "b"]), { added: ["c"], gone: [], moved: false });
  assert.deepEqual(changes(["a", "b", "c"], ["a", "c"]), { added: [], gone: ["b"], moved: false });
  assert.deepEqual(changes(["a", "b", "c"], ["c", "a", "d"]), { added: ["d"], gone: ["b"], moved: true });
  assert.deepEqual(changes([], ["a"]), { added: ["a"], gone: [], moved: false });
});

test("nothing is said where the screen is as it should be", () => {
  assert.equal(waitingWords(changes(["a"], ["a"])), "");
  assert.equal(waitingWords(changes(["a"], ["b", "c", "a"])), "2 new: show");
  assert.equal(waitingWords(changes(["a", "b"], ["b", "a"])), "The list has changed: show");
  assert.equal(waitingWords(changes(["a", "b"], ["b"])), "The list has changed: show");
});

test("how far a due time is has one unit", () => {
  assert.equal(till(6 * MINUTE), "in 6 min");
  assert.equal(till(0), "in < 1 min");
  assert.equal(till(-30000), "< 1 min over");
  assert.equal(till(-12 * MINUTE), "12 min over");
  assert.equal(till(185 * MINUTE), "in 3 h");
  assert.equal(till(-47 * 60 * MINUTE), "47 h over");
  assert.equal(till(72 * 60 * MINUTE), "in 3 d");
});

test("lateness has two grades", () => {
  assert.deepEqual([0, -1, -10 * MINUTE + 1, -10 * MINUTE, -1e9].map(lateness), ["", "just", "just", "long", "long"]);
});

test("a due time of another day has its weekday, one far off its date", () => {
  const now = new Date(2026, 10, 30, 12, 0); // a Monday
  assert.match(inWords("due", new Date(2026, 10, 30, 14, 5), now), /^14:05$/);
  assert.match(inWords("due", new Date(2026, 11, 1, 14, 5), now), /^Tue 14:05$/);
  assert.match(inWords("due", new Date(2026, 11, 20, 14, 5), now), /20.*14:05$/);
});
