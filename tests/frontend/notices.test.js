// What a browser shows: nothing twice, nothing in quiet hours, not many things one by one.

import assert from "node:assert/strict";
import { test } from "node:test";

import { hourIn, isQuiet, toShow } from "../../api/pages/static/live/notices.js";

const WANTED = { events: ["positive.overdue", "queue.late"], from: 0, to: 0, zone: "Europe/Berlin" };
/** @param {string} id */
const notice = (id, event = "positive.overdue") => ({ id, event, words: `${id} waits.`, path: `/view/${id}` });

test("it is quiet from the first hour on until before the last one", () => {
  for (let from = 0; from < 24; from += 1) {
    for (let to = 0; to < 24; to += 1) {
      const quiet = new Set(Array.from({ length: (to - from + 24) % 24 }, (_, i) => (from + i) % 24));
      for (let hour = 0; hour < 24; hour += 1) assert.equal(isQuiet(from, to, hour), quiet.has(hour), `${from} ${to} ${hour}`);
    }
  }
});

test("the hour is the site's, whatever its clock does", () => {
  assert.equal(hourIn("Europe/Berlin", new Date("2026-03-29T00:59:00Z")), 1);
  assert.equal(hourIn("Europe/Berlin", new Date("2026-03-29T01:00:00Z")), 3); // its clock leaves 02:00 out
  assert.equal(hourIn("Europe/Berlin", new Date("2026-10-25T00:30:00Z")), 2);
  assert.equal(hourIn("Europe/Berlin", new Date("2026-10-25T01:30:00Z")), 2); // and has it twice
  assert.equal(hourIn("Asia/Kolkata", new Date("2026-11-30T18:30:00Z")), 0);
});

test("each notice is shown once, the earliest first", () => {
  const kept = { wanted: WANTED, after: "", seen: ["a"] };
  const { shown, seen } = toShow([notice("c"), notice("b"), notice("a")], kept, 12);
  assert.deepEqual(shown.map((one) => one.body), ["b waits.", "c waits."]);
  assert.deepEqual(toShow([notice("c"), notice("b")], { ...kept, seen }, 12).shown, []);
});

test("only what somebody wants, with its end", () => {
  const kept = { wanted: WANTED, after: "", seen: [] };
  const listed = [notice("1", "queue.on-time"), notice("2", "delivery.failed"), notice("3", "queue.late")];
  assert.deepEqual(toShow(listed, kept, 12).shown.map((one) => one.tag), ["osteon-3", "osteon-1"]);
});

test("in quiet hours nothing, and it is not shown afterwards", () => {
  const kept = { wanted: { ...WANTED, from: 22, to: 6 }, after: "", seen: [] };
  const { shown, seen } = toShow([notice("a")], kept, 23);
  assert.deepEqual(shown, []);
  assert.deepEqual(toShow([notice("a")], { ...kept, seen }, 6).shown, []);
  assert.equal(toShow([notice("a")], kept, 6).shown.length, 1);
});

test("many become one, and what is remembered stays bounded", () => {
  const many = Array.from({ length: 300 }, (_, i) => notice(String(i)));
  const { shown, seen } = toShow(many, { wanted: WANTED, after: "", seen: [] }, 12);
  assert.deepEqual(shown.map((one) => [one.body, one.path]), [["300 notices", "/notices"]]);
  assert.equal(seen.length, 200);
});
