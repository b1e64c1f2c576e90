// The words of the feedback panel, what counts as answered, and boxes that readers draw.

import assert from "node:assert/strict";
import { test } from "node:test";

import { frameWords, graver, inShort, marksWords, opposite, sentence, standing, stateWords } from "../../api/pages/static/feedback/words.js";
import { readerOf } from "../../api/pages/static/live/lock.js";
import { probability } from "../../api/pages/static/viewer/radiographs.js";
import { zoomed } from "../../api/pages/static/viewer/geometry.js";
import { ARROWS, movedBox, upright } from "../../api/pages/static/viewer/viewport.js";

/** @typedef {import("../../api/pages/static/feedback/words.js").Entry} Entry */

/** @param {Partial<Entry>} [more] @returns {Entry} */
const entry = (more) => ({
  id: "1", verdict: "agree", image: 1, frame: 1, bundle: "second-look", fracture: null, region: null, severity: null, text: "", marks: [],
  reader: "dr-ada", mine: false, answered_at: "2026-01-02T03:04:05Z", superseded_by: null, ...more,
});
const MARK = { image: 1, frame: 1, x: 0, y: 0, width: 1, height: 1 };

test("what was superseded or taken back does not stand", () => {
  const entries = [entry({ superseded_by: "2" }), entry({ verdict: "withdrawn" }), entry({ id: "3" })];
  assert.deepEqual(standing(entries).map(({ id }) => id), ["3"]);
});

test("an entry in a line of the history", () => {
  assert.equal(sentence(entry()), "agrees on image 1 (second-look)");
  assert.equal(
    sentence(entry({ verdict: "disagree", frame: 2, fracture: "yes", region: "wrist", severity: "severe", marks: [MARK, MARK] })),
    "disagrees on image 1, frame 2 (second-look): fracture: yes, wrist, extent severe, 2 marks",
  );
  assert.equal(sentence(entry({ verdict: "done", image: null, frame: null, bundle: null })), "marks the study as read");
  assert.equal(sentence(entry({ verdict: "seen", image: null, frame: null })), "has seen the revised finding of second-look");
});

test("an entry beside its finding", () => {
  assert.equal(inShort(entry()), "dr-ada: agree");
  assert.equal(inShort(entry({ mine: true, text: "fat pad" })), "you: agree, with more in the history");
});

test("numbers in words", () => {
  assert.deepEqual([0, 1, 2].map(marksWords), ["no mark yet", "1 mark", "2 marks"]);
  assert.deepEqual([null, 1, 2].map(frameWords), ["", "", ", frame 2"]);
  assert.equal(stateWords(2, 3), "2 of 3 without your feedback.");
  assert.equal(stateWords(0, 3), "All findings have your feedback.");
  assert.match(stateWords(0, 0), /There is no finding/);
});

test("disagreeing means the opposite, where there is one", () => {
  assert.deepEqual(["positive", "unclear", "negative", "abstained", undefined].map(opposite), ["no", "no", "yes", undefined, undefined]);
});

test("the graver finding comes first, of two alike the likelier", () => {
  const sorted = [{ gravity: 1, probability: 0.9 }, { gravity: 3, probability: 0.1 }, { gravity: 3, probability: 0.2 }].sort(graver);
  assert.deepEqual(sorted.map(({ probability: likely }) => likely), [0.2, 0.1, 0.9]);
});

test("another login of one's own key is named as that", () => {
  assert.equal(readerOf({ name: "dr-ada", same_key: false }), "dr-ada");
  assert.equal(readerOf({ name: "dr-ada", same_key: true }), "Another login of your own key, dr-ada,");
});

test("a small probability is not shown as none", () => {
  assert.deepEqual([0, 0.004, 0.37, 1].map(probability), ["0 %", "0.4 %", "37 %", "100 %"]);
});

test("a box has its corner in the upper left, whichever way it was drawn", () => {
  const boxes = /** @type {[number, number, number, number][]} */ ([[1, 2, 3, 4], [4, 2, -3, 4], [1, 6, 3, -4], [4, 6, -3, -4]]);
  for (const box of boxes) assert.deepEqual(upright(box), [1, 2, 3, 4]);
});

test("arrows move a box, with shift they resize it, and it stays on the radiograph", () => {
  const radiograph = { width: 100, height: 50 };
  assert.deepEqual(movedBox([10, 10, 20, 20], { by: ARROWS.ArrowRight, resize: false }, 5, radiograph), [15, 10, 20, 20]);
  assert.deepEqual(movedBox([10, 10, 20, 20], { by: ARROWS.ArrowDown, resize: true }, 5, radiograph), [10, 10, 20, 25]);
  for (const resize of [true, false]) {
    for (const [key, by] of Object.entries(ARROWS)) {
      /** @type {[number, number, number, number]} */
      let box = [10, 10, 20, 20];
      for (let i = 0; i < 50; i++) box = movedBox(box, { by, resize }, 7, radiograph);
      const [x, y, width, height] = box;
      assert.ok(x >= 0 && y >= 0 && width > 0 && height > 0 && x + width <= 100 && y + height <= 50, `${key} ${resize}: ${box}`);
    }
  }
});

test("zooming keeps the radiograph's point under the pointer", () => {
  const view = { x: 13, y: 7, scale: 0.5 };
  for (const scale of [0.1, 0.5, 4]) {
    const next = zoomed(view, scale, 120, 80);
    assert.ok(Math.abs(next.x + 120 / next.scale - (view.x + 120 / view.scale)) < 1e-9);
    assert.ok(Math.abs(next.y + 80 / next.scale - (view.y + 80 / view.scale)) < 1e-9);
  }
});
