// Which key means what, and that each page says so.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  FEEDBACK_KEYS, STUDY_KEYS, UNDO_KEYS, VIEWER_KEYS, VIEWER_REPEATS, WORKLIST_KEYS, commandOf,
} from "../../api/pages/static/lib/keys.js";

const TEMPLATES = new URL("../../api/pages/templates/", import.meta.url);
/** @type {Record<string, Readonly<Record<string, string>>[]>} all maps that listen on one page at once */
const PAGES = { "worklist.html": [WORKLIST_KEYS, UNDO_KEYS], "study.html": [VIEWER_KEYS, STUDY_KEYS, FEEDBACK_KEYS, UNDO_KEYS] };

/** @param {string} key @param {object} [more] */
const stroke = (key, more) => ({ key, ctrlKey: false, metaKey: false, altKey: false, repeat: false, ...more });

test("no key means two things on one page", () => {
  for (const [page, maps] of Object.entries(PAGES)) {
    const keys = maps.flatMap((map) => Object.keys(map));
    assert.deepEqual(keys.filter((key, i) => keys.indexOf(key) !== i), [], page);
  }
});

test("each page's help names every key of it", () => {
  for (const [page, maps] of Object.entries(PAGES)) {
    const text = readFileSync(new URL(page, TEMPLATES), "utf8");
    const named = new Set([...text.matchAll(/<kbd>(.*?)<\/kbd>/g)].map(([, key]) => key));
    const silent = new Set(page === "worklist.html" ? ["z"] : ["="]); // the toast itself says z; = is + without shift
    for (const key of maps.flatMap((map) => Object.keys(map))) assert.ok(named.has(key) || silent.has(key), `${page}: ${key}`);
  }
});

test("a button that a key presses names the key to screen readers", () => {
  const study = readFileSync(new URL("study.html", TEMPLATES), "utf8");
  for (const [key, command] of Object.entries(VIEWER_KEYS)) {
    const [button] = study.match(new RegExp(`<button [^>]*id="${command}"[^>]*>`)) ?? [];
    if (!button || key === "=") continue; // the images have a list of their own
    assert.ok(button.includes(`aria-keyshortcuts="${key}"`), command);
  }
});

test("a stroke with another key held is the browser's", () => {
  assert.equal(commandOf(WORKLIST_KEYS, stroke("a")), "agree");
  for (const held of ["ctrlKey", "metaKey", "altKey"]) assert.equal(commandOf(WORKLIST_KEYS, stroke("a", { [held]: true })), null);
});

test("a key that is held down acts again only where that does no harm", () => {
  for (const key of Object.keys(VIEWER_KEYS)) {
    const again = commandOf(VIEWER_KEYS, stroke(key, { repeat: true }), VIEWER_REPEATS);
    assert.equal(again !== null, ["+", "=", "-", ",", ".", "[", "]"].includes(key), key);
  }
  for (const key of Object.keys(FEEDBACK_KEYS)) assert.equal(commandOf(FEEDBACK_KEYS, stroke(key, { repeat: true })), null);
});

test("what is no key of the page means nothing, whatever it is called", () => {
  for (const key of ["x", "A", "Enter", "toString", "constructor", "__proto__", ""]) {
    assert.equal(commandOf(WORKLIST_KEYS, stroke(key)), null, key);
  }
});
