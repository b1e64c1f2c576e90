// When an open page asks, waits and connects; how fresh it says that it is; how long an offer to undo stands.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Countdown, STANDS_MS, offerWords } from "../../api/pages/static/feedback/undo.js";
import { pace } from "../../api/pages/static/lib/session.js";
import { age, inWords } from "../../api/pages/static/lib/times.js";
import { backOff, due, freshness, oneAtATime } from "../../api/pages/static/live/refresh.js";
import { Recent } from "../../api/pages/static/viewer/load.js";

test("a page that nobody looks at does nothing", () => {
  for (const live of [true, false]) assert.equal(due({ hidden: true, live, age: 1e9, liveEvery: 1 }), "nothing");
});

test("a live page asks seldom, one that is told of nothing in each round", () => {
  const seen = { hidden: false, liveEvery: 45000 };
  assert.equal(due({ ...seen, live: true, age: 44999 }), "ages");
  assert.equal(due({ ...seen, live: true, age: 45000 }), "ask");
  assert.equal(due({ ...seen, live: false, age: 0 }), "ask");
  assert.equal(due({ ...seen, live: true, age: 1e9, liveEvery: Infinity }), "ages");
});

test("waits grow to the longest and no further", () => {
  const waits = Array.from({ length: 12 }, (_, i) => backOff(i + 1, { first: 250, factor: 1.5, most: 5000 }));
  assert.equal(waits[0], 250);
  assert.equal(waits[1], 375);
  assert.equal(waits.at(-1), 5000);
  waits.slice(1).forEach((wait, i) => assert.ok(wait >= waits[i] && wait <= 5000));
});

test("two requests never run at once, and a change during one is asked for once more", async () => {
  /** @type {(() => void)[]} */
  const finish = [];
  let running = 0;
  const refresh = oneAtATime(async () => {
    running += 1;
    assert.equal(running, 1);
    await new Promise((done) => finish.push(() => done(undefined)));
    running -= 1;
  });
  const all = Promise.all([refresh(), refresh(), refresh()]);
  finish[0]();
  await new Promise(setImmediate);
  assert.equal(finish.length, 2);
  finish[1]();
  await all;
  const last = refresh(); // and a later one runs again
  assert.equal(finish.length, 3);
  finish[2]();
  await last;
});

test("a request that failed does not stop later ones", async () => {
  let asked = 0;
  const refresh = oneAtATime(async () => {
    asked += 1;
    if (asked === 1) throw new Error("once");
  });
  await assert.rejects(refresh());
  await refresh();
  assert.equal(asked, 2);
});

test("the foot says whether the page is live, and since when it is not up to date", () => {
  const page = { live: true, lastGood: new Date(2026, 0, 2, 3, 4, 5), trouble: "" };
  assert.match(freshness(page), /^Live, updated 0?3:04:05/);
  assert.match(freshness({ ...page, live: false }), /^Updated 0?3:04:05/);
  assert.match(freshness({ ...page, trouble: "the server answers 500" }), /^Not updated since 0?3:04:05.*: the server answers 500; trying on$/);
});

test("a page tells of use four times within what is left, and asks just after the end", () => {
  assert.deepEqual(pace(null), { checkIn: 60000, tellEvery: null });
  assert.deepEqual(pace(undefined), { checkIn: 60000, tellEvery: null });
  assert.deepEqual(pace(1800), { checkIn: 60000, tellEvery: 60000 });
  assert.deepEqual(pace(8), { checkIn: 8500, tellEvery: 2000 });
  assert.deepEqual(pace(0), { checkIn: 500, tellEvery: 0 });
});

test("an offer to undo stands for ten seconds of nobody's attention", () => {
  const offer = new Countdown(STANDS_MS, 5000);
  assert.equal(offer.tick(8000, false), 7000);
  assert.equal(offer.tick(60000, true), 7000); // pointed at, hidden, or being sent
  assert.equal(offer.seconds, 7);
  assert.equal(offer.tick(60100, false), 6900);
  assert.equal(offer.seconds, 7); // begun seconds count
  offer.atLeast(STANDS_MS);
  assert.equal(offer.tick(70100, false), 0);
  offer.tick(99999, false);
  assert.equal(offer.seconds, 0);
});

test("an offer says what the reader agreed with", () => {
  assert.deepEqual([0, 1, 2].map(offerWords), [
    "The study is marked as read.", "The study is marked as read, and you agreed with 1 finding.",
    "The study is marked as read, and you agreed with 2 findings.",
  ]);
});

test("ages are words", () => {
  const minute = 60000;
  assert.deepEqual(
    [0, minute - 1, minute, 59 * minute, 60 * minute, 125 * minute, 24 * 60 * minute, 50 * 60 * minute].map(age),
    ["< 1 min", "< 1 min", "1 min", "59 min", "1 h 00 min", "2 h 05 min", "1 d 0 h", "2 d 2 h"],
  );
});

test("a time of another day comes with its date", () => {
  const [at, later] = [new Date(2026, 4, 6, 7, 8), new Date(2026, 4, 7, 7, 8)];
  assert.match(inWords("clock", at, at), /^07:08$/);
  assert.match(inWords("clock", at, later), /6.*07:08|07:08.*6/);
  assert.match(inWords("second", at, at), /^07:08:00$/);
  assert.match(inWords("second", at, later), /6.*07:08:00|07:08:00.*6/);
  assert.match(inWords("full", at, later), /2026/);
  assert.equal(inWords("age", at, later), "1 d 0 h");
});

test("the last few are kept, and what is used again is not the oldest", () => {
  /** @type {Recent<string, number>} */
  const recent = new Recent(2);
  recent.keep("a", 1);
  recent.keep("b", 2);
  assert.equal(recent.get("a"), 1);
  recent.keep("c", 3);
  assert.deepEqual([recent.get("a"), recent.get("b"), recent.get("c")], [1, undefined, 3]);
});
