// The sender's page: sends what is dropped or chosen, a request at a time, and says of each file what became of it.

import "./page.js";
import { byId, data, make, one } from "./lib/dom.js";
import { checkLogin } from "./lib/session.js";
import { STAGES, answerQuestions } from "./send/arrived.js";
import { WORDS, consequence, csv, inWords, pause, planned, read, shares } from "./send/plan.js";
import { chosen, entriesOfDrop, walked } from "./send/walk.js";

/** @typedef {import("./send/plan.js").Item} Item */
/** @typedef {import("./send/plan.js").Fate} Fate */
/** @typedef {{path: string, fate: Fate, text: string, study: string, cell: HTMLElement | null}} Line */

const MAX_SHOWN = 1000; // lines; those beyond are in the receipt, and rejected ones are always shown
const STATES_EVERY_MS = 3000;
const DONE = ["analysed", "quarantined", "kept"];
const drop = byId("drop");
const limits = { maxFiles: Number(data(drop, "maxFiles")), maxBytes: Number(data(drop, "maxBytes")) };

/** @type {Line[]} */
const lines = [];
/** @type {Map<Item, Line>} */
const lineOf = new Map();
/** @type {Item[][]} requests that wait */
const queue = [];
/** @type {Map<string, string>} study to its state */
const studies = new Map();
/** @type {XMLHttpRequest | null} */
let request = null;
/** @type {(() => void) | null} ends a pause */
let wake = null;
let stopped = false;
let running = false;
let total = 0; // bytes
let done = 0;

/** @param {string} words */
function say(words) {
  const box = byId("said");
  box.hidden = !words;
  box.textContent = words;
}

/** @param {string} words */
function complain(words) {
  const box = byId("wrong");
  box.hidden = !words;
  one("span", box).textContent = words;
}

/** @param {Line} line */
function show(line, share = 0) {
  if (line.cell) {
    const percent = line.fate === "sending" ? ` ${Math.floor(share * 100)} %` : "";
    line.cell.textContent = `${WORDS[line.fate]}${percent}${line.text ? `: ${line.text}` : ""}`;
    line.cell.className = line.fate === "rejected" || line.fate === "unsent" ? "bad" : "";
  }
}

/** A line for a file, and on the page if there is room, or if it is bad. @param {string} path @param {Fate} fate @param {string} text @param {string} study */
function add(path, fate = "waiting", text = "", study = "") {
  /** @type {Line} */
  const line = { path, fate, text, study, cell: null };
  lines.push(line);
  if (lines.length <= MAX_SHOWN || fate === "rejected") draw(line);
  show(line);
  return line;
}

/** @param {Line} line */
function draw(line) {
  line.cell = make("td");
  byId("lines").append(make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, line.path)), line.cell));
}

/** Totals, in words and as a bar. @param {number} now bytes of the request on its way */
function count(now = 0) {
  /** @type {Partial<Record<Fate, number>>} */
  const fates = {};
  for (const { fate } of lines) fates[fate] = (fates[fate] ?? 0) + 1;
  const told = /** @type {Fate[]} */ (Object.keys(WORDS)).filter((fate) => fates[fate]).map((fate) => `${fates[fate]} ${WORDS[fate]}`);
  byId("totals").textContent = `${inWords(done + now)} of ${inWords(total)}; ${lines.length} ${lines.length === 1 ? "file" : "files"}: ${told.join(", ")}`;
  byId("progress", HTMLProgressElement).value = total ? Math.min(1, (done + now) / total) : 1;
  const hidden = lines.filter((line) => !line.cell).length;
  byId("more").hidden = !hidden;
  byId("more").textContent = `${hidden} more files are not listed here; the receipt has all.`;
}

/**
 * Send one request. The files have numbers for names: their own may name patients.
 * @param {Item[]} items
 * @param {string} key the same for the same request, so that the server gives the receipt that was lost
 * @returns {Promise<{status: number, retryAfter: string | null, value: any}>} status 0: no response came
 */
function send(items, key) {
  const body = new FormData();
  body.append("priority", byId("priority", HTMLSelectElement).value);
  items.forEach(({ file }, number) => body.append("files", file, String(number)));
  return new Promise((resolve) => {
    const made = (request = new XMLHttpRequest());
    made.open("POST", "/api/v1/studies");
    made.setRequestHeader("Accept", "application/json");
    made.setRequestHeader("Idempotency-Key", key);
    made.responseType = "json";
    made.upload.addEventListener("progress", ({ loaded }) => {
      shares(items, loaded).forEach((share, number) => {
        const line = lineOf.get(items[number]);
        if (line) show(Object.assign(line, { fate: "sending" }), share);
      });
      count(loaded);
    });
    made.addEventListener("loadend", () => {
      request = null;
      resolve({ status: made.status, retryAfter: made.getResponseHeader("Retry-After"), value: made.response });
    });
    made.send(body);
  });
}

/** @param {number} ms */
const wait = (ms) =>
  new Promise((resolve) => {
    const timer = setTimeout(() => wake?.(), ms);
    wake = () => {
      clearTimeout(timer);
      wake = null;
      resolve(undefined);
    };
  });

/** @param {Item[]} items @param {Fate} fate @param {string} text */
function mark(items, fate, text = "") {
  for (const item of items) {
    const line = lineOf.get(item);
    if (line) show(Object.assign(line, { fate, text }));
  }
}

/** @param {Item[]} items @param {{files: import("./send/plan.js").FileReceipt[], studies: {id: string, status: string}[]}} receipt */
function take(items, receipt) {
  const known = new Set();
  for (const { index, ...told } of read(items, receipt.files)) {
    const line = known.has(index) ? undefined : lineOf.get(items[index]);
    known.add(index);
    if (!line) add(told.path, told.fate, told.text, told.study); // a further file of an archive
    else {
      Object.assign(line, told);
      if (!line.cell && line.fate === "rejected") draw(line);
      show(line);
    }
  }
  for (const { id, status } of receipt.studies) studies.set(id, status);
  showStudies();
}

/** Send what waits, to its end or until somebody stops it. */
async function run() {
  if (running) return;
  running = true;
  for (let items = queue.shift(); items && !stopped; items = queue.shift()) {
    const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    for (let tries = 1; ; tries += 1) {
      mark(items, "sending");
      const { status, retryAfter, value } = await send(items, key);
      if (stopped) {
        mark(items, "waiting");
        queue.unshift(items);
        break;
      }
      const then = consequence(status);
      if (then === "again") {
        say(status ? "The server has no room or no time just now. It goes on by itself." : "The connection is lost. It goes on by itself once it is back; what has arrived is not sent again.");
        mark(items, "waiting");
        await wait(pause(tries, retryAfter));
        if (!stopped) continue;
        queue.unshift(items);
        break;
      }
      say("");
      if (then === "login") {
        queue.unshift(items);
        stopped = true;
        await checkLogin();
        break;
      }
      if (then === "halve" && items.length > 1) {
        queue.unshift(items.slice(0, items.length >> 1), items.slice(items.length >> 1));
        mark(items, "waiting");
        break;
      }
      if (then === "read" && Array.isArray(value?.files)) take(items, value);
      else mark(items, "rejected", typeof value?.detail === "string" ? value.detail : `The server answers ${status}.`);
      done += items.reduce((sum, { size }) => sum + size, 0);
      break;
    }
    count();
    if (stopped) break;
  }
  running = false;
  count();
  state();
  if (!stopped && !queue.length) say("All is sent. Save the receipt, if somebody may ask for it.");
}

/** Which buttons there are. */
function state() {
  byId("stop").hidden = !running;
  byId("go-on").hidden = running || !queue.length;
}

/** @param {Item[]} items @param {string[]} unreadable */
function begin(items, unreadable = []) {
  if (!items.length && !unreadable.length) return complain("There is no file in it.");
  complain("");
  byId("run").hidden = false;
  for (const path of unreadable) add(path, "unsent", "this browser cannot read it");
  const { requests, tooLarge } = planned(items, limits);
  for (const item of items) lineOf.set(item, add(item.path));
  mark(tooLarge, "rejected", `it is larger than ${inWords(limits.maxBytes)}`);
  total += items.reduce((sum, { size }) => sum + size, 0) - tooLarge.reduce((sum, { size }) => sum + size, 0);
  queue.push(...requests);
  stopped = false;
  count();
  void run();
  state();
}

for (const id of ["files", "folder"]) {
  const field = byId(id, HTMLInputElement);
  const sendChosen = () => {
    begin(chosen(/** @type {FileList} */ (field.files)));
    field.value = ""; // the same may be chosen again
  };
  field.addEventListener("change", sendChosen);
  if (field.files?.length) queueMicrotask(sendChosen); // chosen before this script was here
}

drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (!event.dataTransfer) return;
  const entries = entriesOfDrop(event.dataTransfer);
  say("Looking for files …");
  /** @type {string[]} */
  const unreadable = [];
  const items = await walked(entries, (path) => unreadable.push(path));
  say("");
  begin(items, unreadable);
});
// a file that misses the field is not opened in place of the page
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

byId("stop").addEventListener("click", () => {
  stopped = true;
  request?.abort();
  wake?.();
  say("Stopped. What has arrived stays; Go on sends the rest.");
  byId("stop").hidden = true;
  byId("go-on").hidden = false;
  byId("go-on").focus();
});

byId("go-on").addEventListener("click", () => {
  stopped = false;
  say("");
  void run();
  state();
  byId("stop").focus();
});

byId("save").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob(["\ufeff", csv(lines)], { type: "text/csv" }));
  make("a", { href: url, download: `osteon-receipt-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
});

addEventListener("online", () => wake?.());
addEventListener("beforeunload", (event) => {
  if (running) event.preventDefault(); // asks whether to leave
});

/** @type {Record<string, string>} */
const STATUS = { queued: STAGES.received, running: STAGES.analysing, retrying: STAGES.analysing, analysed: STAGES.analysed, quarantined: STAGES.failed, kept: STAGES.kept };

function showStudies() {
  byId("studies").replaceChildren(...[...studies].map(([id, status]) => make("li", {}, `${id}: ${STATUS[status] ?? status}`)));
}

async function askStates() {
  const open = [...studies].filter(([, status]) => !DONE.includes(status)).map(([id]) => id).slice(0, 1000);
  if (!open.length || document.hidden) return;
  const response = await fetch("/api/v1/studies/states", {
    method: "POST", body: JSON.stringify({ ids: open }), headers: { Accept: "application/json", "Content-Type": "application/json" },
    signal: AbortSignal.timeout(10000),
  }).catch(() => null);
  if (!response?.ok) return;
  /** @type {{studies: {id: string, status: string}[]}} */
  const value = await response.json();
  for (const { id, status } of value.studies) studies.set(id, status);
  showStudies();
}

setInterval(() => void askStates(), STATES_EVERY_MS);
answerQuestions();
