// The sender's page: which files go together, what a receipt means, and that a table of it is no formula.

import assert from "node:assert/strict";
import { test } from "node:test";

import { question } from "../../api/pages/static/send/arrived.js";
import { consequence, csv, fateOf, inWords, pause, planned, read, shares } from "../../api/pages/static/send/plan.js";
import { walked } from "../../api/pages/static/send/walk.js";

const LIMITS = { maxFiles: 5000, maxBytes: 8e9 };
/** @param {string} path @param {number} size */
const item = (path, size = 10) => ({ path, size, file: new Blob() });

test("every file is in one request, none has too much, and an archive goes alone", () => {
  const items = Array.from({ length: 173 }, (_, i) => item(i % 40 === 7 ? `${i}.ZIP` : `${i}.dcm`, (i % 5) * 5e6));
  const { requests, tooLarge } = planned(items, LIMITS);
  assert.deepEqual(tooLarge, []);
  assert.equal(new Set(requests.flat()).size, items.length);
  assert.equal(requests.flat().length, items.length);
  for (const one of requests) {
    assert.ok(one.length <= 50);
    assert.ok(one.length === 1 || one.reduce((sum, { size }) => sum + size, 0) <= 64 * 1024 * 1024);
    assert.ok(one.length === 1 || !one.some(({ path }) => path.endsWith(".ZIP")));
  }
});

test("the API's limits count where they are lower", () => {
  const { requests, tooLarge } = planned([item("a", 5), item("b", 5), item("c", 5), item("d", 11)], { maxFiles: 2, maxBytes: 10 });
  assert.deepEqual(requests.map((one) => one.map(({ path }) => path)), [["a", "b"], ["c"]]);
  assert.deepEqual(tooLarge.map(({ path }) => path), ["d"]);
});

test("a receipt is read by the numbers that files were sent under", () => {
  const told = read([item("CD/1.dcm"), item("CD/2"), item("CD/3")], [
    { file: "2", outcome: "duplicate", study_id: "s" }, { file: "0", outcome: "stored" },
    { file: "1!a/b.dcm", outcome: "rejected", text: "No." }, { file: "1!c!d.dcm", outcome: "conflict" },
  ]);
  assert.deepEqual(told.map((one) => [one.index, one.path, one.fate, one.text, one.study]), [
    [2, "CD/3", "duplicate", "", "s"], [0, "CD/1.dcm", "stored", "", ""], [1, "CD/2 › a/b.dcm", "rejected", "No.", ""],
    [1, "CD/2 › c!d.dcm", "held", "", ""],
  ]);
  for (const outcome of ["conflict", "correction", "comparing"]) assert.equal(fateOf(outcome), "held");
});

test("how far each file is adds up to what is sent", () => {
  assert.deepEqual(shares([item("a", 10), item("b", 0), item("c", 30)], 25), [1, 1, 0.5]);
  assert.deepEqual(shares([item("a", 10), item("b", 0)], 0), [0, 0]);
  assert.deepEqual(shares([item("a", 10)], 99), [1]);
});

test("what passes is tried again, as the server asks or ever more seldom", () => {
  assert.deepEqual([0, 200, 202, 409, 401, 403, 408, 413, 422, 429, 503].map(consequence), [
    "again", "read", "read", "read", "login", "refused", "again", "halve", "refused", "again", "again",
  ]);
  assert.deepEqual([1, 2, 3, 9].map((tries) => pause(tries, null)), [1000, 2000, 4000, 30000]);
  assert.equal(pause(1, "7"), 7000);
  assert.equal(pause(1, "86400"), 120000);
  assert.equal(pause(2, "Wed, 21 Oct 2026 07:28:00 GMT"), 2000);
});

test("no cell of the receipt is a formula, whatever a file is called", () => {
  const text = csv([{ path: '=HYPERLINK("x")', fate: "rejected", text: "+1\n2", study: "" }]);
  assert.equal(text, `"file","outcome","why","study"\r\n"'=HYPERLINK(""x"")","rejected","'+1\n2",""\r\n`);
});

test("bytes are told in few digits", () => {
  assert.deepEqual([0, 999, 1500, 123456, 64e6, 2.5e9].map(inWords), ["0 B", "999 B", "1.5 kB", "123 kB", "64.0 MB", "2.5 GB"]);
});

test("a Study Instance UID is one, all else an accession number", () => {
  for (const uid of ["1.2.840.1", "2.25.329800735698586629295641978511506172918"]) assert.deepEqual(question(` ${uid} `), { study_instance_uid: uid });
  for (const number of ["4711", "47.11", "ACC-2026.1.2", "2026.11.30.7"]) assert.deepEqual(question(number), { accession_number: number });
});

test("a disc is walked to its end, however a browser gives its entries; what cannot be read is told", async () => {
  /** @param {string} path */
  const file = (path) => ({ isDirectory: false, fullPath: path, file: (/** @type {(file: unknown) => void} */ ok, /** @type {() => void} */ no) => (path.endsWith("bad") ? no() : ok({ size: 3 })) });
  /** @param {string} path @param {any[][]} batches */
  const folder = (path, batches) => ({
    isDirectory: true, fullPath: path,
    createReader: () => ({ readEntries: (/** @type {(found: any[]) => void} */ ok) => ok(batches.shift() ?? []) }),
  });
  /** @type {string[]} */
  const unreadable = [];
  const disc = folder("/CD", [[file("/CD/1"), folder("/CD/A", [[file("/CD/A/2"), file("/CD/A/bad")]])], [file("/CD/3")]]);
  const found = await walked(/** @type {any} */ ([disc, file("/4")]), (path) => unreadable.push(path));
  assert.deepEqual(found.map(({ path }) => path), ["CD/1", "CD/A/2", "CD/3", "4"]);
  assert.deepEqual(unreadable, ["CD/A/bad"]);
});
