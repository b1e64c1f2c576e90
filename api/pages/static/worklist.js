// Keeps the worklist live without moving the reader's focus, and lets it be walked by click and by key.

import "./page.js";
import { startUndo } from "./feedback/undo.js";
import { all, around, byId, data, one } from "./lib/dom.js";
import { WORKLIST_KEYS, commandOf } from "./lib/keys.js";
import { freshPage } from "./live/refresh.js";

const EVERY_MS = 15000; // when nothing tells us of changes
const LIVE_MS = 45000; // nothing tells of the passing of time: what is overdue by now, which locks have run out

/** @param {Document} fresh */
function replace(fresh) {
  const focused = document.activeElement?.closest("#list a")?.getAttribute("href");
  for (const id of ["list", "counts", "revised-count"]) {
    const part = fresh.getElementById(id);
    if (part) document.getElementById(id)?.replaceWith(document.adoptNode(part));
  }
  if (!focused) return;
  const again = document.querySelector(`#list a[href="${CSS.escape(focused)}"]`);
  if (again instanceof HTMLElement) again.focus({ preventScroll: true });
}

const version = () => data(byId("list"), "version");
export const { refresh, round, state } = freshPage({
  foot: byId("updated"), version, replace, every: EVERY_MS, liveEvery: LIVE_MS,
  events: ["open", "worklist"], // opened: what changed in between
});

// -- rows -----------------------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const row = around(event, "tr[data-study]");
  if (!row || around(event, "a") || String(getSelection())) return;
  one("a.open", row).click();
});

/** @param {1 | -1} by */
function step(by) {
  const links = all("#list a.open");
  const at = links.findIndex((link) => link === document.activeElement);
  const next = links[at < 0 ? (by > 0 ? 0 : links.length - 1) : at + by];
  next?.focus();
  next?.closest("tr")?.scrollIntoView({ block: "nearest" });
}

/** @param {string} hash what to begin with there */
function open(hash) {
  const row = document.activeElement?.closest("tr[data-study]");
  if (row) location.href = one("a.open", row, HTMLAnchorElement).href + hash;
  else step(1); // nothing is chosen yet: show what would be
}

const help = byId("help", HTMLDialogElement);
const number = byId("number", HTMLInputElement);
const COMMANDS = {
  next: () => step(1), previous: () => step(-1),
  open: () => open(""), agree: () => open("#agree"), disagree: () => open("#disagree"),
  search: () => { number.focus(); number.select(); },
  help: () => help.showModal(),
};

document.addEventListener("keydown", (event) => {
  const command = commandOf(WORKLIST_KEYS, event, Object.keys(WORKLIST_KEYS).join(""));
  if (!command || around(event, "input, select, textarea, dialog")) return;
  event.preventDefault();
  COMMANDS[command]();
});

byId("help-open").addEventListener("click", () => help.showModal());

// -- filters --------------------------------------------------------------------------------------------------

// an address that says only what was chosen can be read, and saved
document.getElementById("filters")?.addEventListener("formdata", (event) => {
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
});

const saving = byId("save-dialog", HTMLDialogElement);
const form = byId("save-form");
document.getElementById("save")?.addEventListener("click", () => saving.showModal());
one("[data-close]", saving).addEventListener("click", () => saving.close());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = byId("save-name", HTMLInputElement).value;
  const response = await send("POST", "/api/v1/filters", { name, query: form.dataset.query });
  if (response?.ok) return location.reload();
  const wrong = one(".wrong", form);
  const problem = await response?.json().catch(() => null);
  wrong.textContent = typeof problem?.detail === "string" ? problem.detail : "The filters could not be saved. Try again.";
  wrong.hidden = false;
});

byId("saved").addEventListener("click", async (event) => {
  const id = around(event, "[data-forget]")?.dataset.forget;
  if (id && (await send("DELETE", `/api/v1/filters/${id}`))?.ok) around(event, ".chip")?.remove();
});

/** @param {string} method @param {string} path @param {object} [body] */
function send(method, path, body) {
  const headers = body && { "Content-Type": "application/json" };
  return fetch(path, { method, headers, body: body && JSON.stringify(body) }).catch(() => null);
}

sessionStorage.setItem("worklist", location.search);
startUndo();
