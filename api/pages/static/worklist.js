// Keeps the worklist live without moving the row under the pointer, and lets it be walked by click and by key.

import "./page.js";
import { startUndo } from "./feedback/undo.js";
import { all, around, byId, data, make, one } from "./lib/dom.js";
import { WORKLIST_KEYS, commandOf } from "./lib/keys.js";
import { showTimes } from "./lib/times.js";
import { freshPage } from "./live/refresh.js";
import { changes, waitingWords } from "./live/rows.js";

const EVERY_MS = 15000; // when nothing tells us of changes
const LIVE_MS = 45000; // nothing tells of the passing of time: what is overdue by now, which locks have run out
const YEAR_S = 31536000;
const AROUND = ["tabs", "revised-count", "rows", "paging"]; // parts that move no row

/** What this browser prefers, for the server to read with the page. @param {string} name @param {string} value */
function remember(name, value) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `${name}=${value}; Path=/; Max-Age=${value ? YEAR_S : 0}; SameSite=Strict${secure}`;
}

remember("zone", Intl.DateTimeFormat().resolvedOptions().timeZone);

// -- live -----------------------------------------------------------------------------------------------------

const fresh = byId("fresh", HTMLButtonElement);
/** @type {HTMLElement | null} the whole list as it is now, while its rows on the screen must not move */
let waiting = null;

/** @param {HTMLElement} list @returns {HTMLElement[]} */
const rowsOf = (list) => all("tr[data-study]", list);
/** @param {HTMLElement} row */
const idOf = (row) => data(row, "study");
/** Whether somebody points at a row, or has chosen one. */
const isHeld = () => document.querySelector("#list tr[data-study]:hover, #list tr[data-study]:focus-within") !== null;

/** What in a row has the focus, as a selector within that row. */
function focusedIn() {
  const focused = document.activeElement;
  const row = focused?.closest("#list tr[data-study]");
  if (!(row instanceof HTMLElement) || !focused) return null;
  return { id: idOf(row), what: focused.matches("a.open") ? "a.open" : ".when" };
}

/** @param {ReturnType<typeof focusedIn>} focused */
function focusAgain(focused) {
  if (!focused) return;
  const again = document.querySelector(`#list tr[data-study="${CSS.escape(focused.id)}"] ${focused.what}`);
  if (again instanceof HTMLElement) again.focus({ preventScroll: true });
}

/** Put the whole fresh list on the screen. @param {HTMLElement} list */
function show(list) {
  const focused = focusedIn();
  byId("list").replaceWith(list);
  waiting = null;
  fresh.hidden = true;
  showTimes(list);
  focusAgain(focused);
}

/** Renew the rows on the screen where they stand; what is new waits. @param {HTMLElement} list */
function renewInPlace(list) {
  const here = byId("list");
  const there = new Map(rowsOf(list).map((row) => [idOf(row), row]));
  const focused = focusedIn();
  for (const row of rowsOf(here)) {
    const now = there.get(idOf(row));
    if (now) row.replaceWith(now.cloneNode(true));
    else leave(row);
  }
  here.dataset.version = data(list, "version"); // what is on the screen, or waits to be
  focusAgain(focused);
  waiting = list;
  const words = waitingWords(changes(rowsOf(here).map(idOf), [...there.keys()]));
  fresh.textContent = words;
  fresh.hidden = !words;
}

/** A row that is on this page no more stays until the rows may move. @param {HTMLElement} row */
function leave(row) {
  if (row.classList.contains("gone")) return;
  row.classList.add("gone");
  row.querySelector(".far")?.replaceChildren(make("span", {}, "no longer here"));
}

/** @param {Document} page */
function replace(page) {
  for (const id of AROUND) {
    const part = page.getElementById(id);
    if (part) document.getElementById(id)?.replaceWith(document.adoptNode(part));
  }
  const list = page.getElementById("list");
  if (!list) return;
  document.adoptNode(list);
  if (isHeld() && list.querySelector("tr[data-study]")) renewInPlace(list);
  else show(list);
}

const showWaiting = () => waiting && show(waiting);
const showWaitingIfFree = () => setTimeout(() => isHeld() || showWaiting());

document.addEventListener("pointerout", (event) => {
  if (waiting && around(event, "#list")) showWaitingIfFree();
});
document.addEventListener("focusout", () => waiting && showWaitingIfFree());
fresh.addEventListener("click", showWaiting);

const version = () => data(byId("list"), "version");
export const { refresh, round, state } = freshPage({
  foot: byId("updated"), version, replace, every: EVERY_MS, liveEvery: LIVE_MS,
  events: ["open", "worklist"], // opened: what changed in between
});

// a picture that is not there leaves its place empty
document.addEventListener("error", (event) => {
  const picture = event.target;
  if (picture instanceof HTMLImageElement) picture.replaceWith(make("span", { className: "no-picture" }));
}, true);

// -- rows -----------------------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const row = around(event, "tr[data-study]");
  if (!row || around(event, "a") || String(getSelection())) return;
  one("a.open", row).click();
});

/** @param {1 | -1} by */
function step(by) {
  const links = all("#list a.open");
  const row = document.activeElement?.closest("tr[data-study]");
  const at = links.findIndex((link) => link.closest("tr") === row);
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
const words = byId("words", HTMLInputElement);
const COMMANDS = {
  next: () => step(1), previous: () => step(-1),
  open: () => open(""), agree: () => open("#agree"), disagree: () => open("#disagree"),
  fresh: () => showWaiting(),
  search: () => { words.focus(); words.select(); },
  help: () => help.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeMenus(null);
  const command = commandOf(WORKLIST_KEYS, event, Object.keys(WORKLIST_KEYS).join(""));
  if (!command || around(event, "input, select, textarea, dialog, details")) return;
  event.preventDefault();
  COMMANDS[command]();
});

byId("help-open").addEventListener("click", () => help.showModal());

// -- filters, columns, views ----------------------------------------------------------------------------------

/** Close what is unfolded. @param {Element | null} but this one */
function closeMenus(but) {
  for (const menu of document.querySelectorAll(".chips details[open]")) {
    if (menu === but) continue;
    const held = menu.contains(document.activeElement);
    menu.removeAttribute("open");
    if (held) one("summary", menu).focus();
  }
}

document.addEventListener("click", (event) => closeMenus(around(event, ".chips details")));

const columns = one("#columns form", document, HTMLFormElement);

/** @param {string} value */
function showColumns(value) {
  remember("worklist-columns", value);
  const address = new URL(location.href);
  address.searchParams.delete("columns"); // a view's own
  location.assign(address);
}

columns.addEventListener("submit", (event) => {
  event.preventDefault();
  const chosen = new FormData(columns).getAll("columns").map(String);
  showColumns(chosen.join(".") || "priority"); // a list of no column at all would mean the usual ones
});
byId("usual-columns").addEventListener("click", () => showColumns(""));

const saving = byId("save-dialog", HTMLDialogElement);
const form = byId("save-form");
const name = byId("save-name", HTMLInputElement);

/** @param {string} title @param {string} id of a view that is renamed; "" for a new one @param {string} now its name */
function askName(title, id, now) {
  byId("save-title").textContent = title;
  byId("save-words").hidden = id !== "";
  one(".wrong", form).hidden = true;
  form.dataset.id = id;
  name.value = now;
  saving.showModal();
  name.select();
}

document.getElementById("save")?.addEventListener("click", () => askName("Save this view", "", ""));
one("[data-close]", saving).addEventListener("click", () => saving.close());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { id, query } = form.dataset;
  const response = id
    ? await send("PATCH", `/api/v1/filters/${id}`, { name: name.value })
    : await send("POST", "/api/v1/filters", { name: name.value, query });
  if (response?.ok) return location.reload();
  const wrong = one(".wrong", form);
  const problem = await response?.json().catch(() => null);
  wrong.textContent = typeof problem?.detail === "string" ? problem.detail : "The view could not be saved. Try again.";
  wrong.hidden = false;
});

byId("saved").addEventListener("click", async (event) => {
  const renamed = around(event, "[data-rename]");
  if (renamed) askName("Rename this view", data(renamed, "rename"), data(renamed, "name"));
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
