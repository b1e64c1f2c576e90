// The study page: radiographs, the reader's feedback and lock; and a page that waits for an analysis looks again by itself.

import "./page.js";
import { openFeedback } from "./feedback/panel.js";
import { startUndo } from "./feedback/undo.js";
import { around, byId, data, one } from "./lib/dom.js";
import { hear } from "./lib/events.js";
import { STUDY_KEYS, commandOf } from "./lib/keys.js";
import { showTimes } from "./lib/times.js";
import { loadAhead } from "./live/ahead.js";
import { startLock } from "./live/lock.js";
import { askForPage, keepFresh } from "./live/refresh.js";
import { elsewhere, openRadiographs } from "./viewer/radiographs.js";

const AGES_MS = 30000;

const viewer = document.getElementById("viewer");
if (viewer) openRadiographs();
startLock();
startUndo();
openFeedback();
if (viewer) loadAhead(data(viewer, "study"));

const back = byId("back", HTMLAnchorElement);
back.search = sessionStorage.getItem("worklist") ?? ""; // back to the filters the reader came with

const COMMANDS = { help: () => byId("help-sheet", HTMLDialogElement).showModal(), back: () => back.click() };
byId("help").addEventListener("click", COMMANDS.help);
document.addEventListener("keydown", (event) => {
  const command = commandOf(STUDY_KEYS, event);
  if (!command || event.defaultPrevented || elsewhere(event)) return;
  event.preventDefault();
  COMMANDS[command]();
});

const main = byId("main");
setInterval(() => showTimes(document), AGES_MS);

// Words that are being written, and a box that is being drawn, are not taken away.
const occupied = () => !byId("reply-form").hidden || Boolean(document.querySelector(".marking, .measuring, dialog[open]"));

/** Whether the page would not look the same if it were loaded again; true after the login has ended, too. */
async function outdated() {
  const response = await askForPage(data(main, "version"));
  return response.kind === "changed" || response.kind === "logged-off";
}

export async function lookAgain() {
  if (document.hidden || !(await outdated())) return;
  if (occupied()) byId("news").hidden = false;
  else location.reload();
}
if (main.dataset.refresh) keepFresh({ ask: lookAgain, every: Number(main.dataset.refresh) * 1000 });

/** While images are expected: say how many came, without taking away what somebody looks at. */
async function countImages() {
  if (document.hidden || !main.dataset.receiving) return;
  const response = await askForPage(data(main, "version"));
  if (response.kind !== "changed") return;
  const fresh = one("#main", response.page);
  byId("completeness").textContent = one("#completeness", response.page).textContent;
  if (data(fresh, "images") !== data(main, "images")) {
    byId("news").hidden = false;
    return;
  }
  main.dataset.version = data(fresh, "version");
  if (!fresh.dataset.receiving) delete main.dataset.receiving;
}
if (main.dataset.receiving) keepFresh({ ask: countImages, every: Number(main.dataset.receiving) * 1000 });
// A revised finding may be of this very study: radiographs that somebody looks at are not taken away for it.
hear("osteon:revised", async () => {
  if (document.querySelector(".revision-seen[role=status]")) return; // this page said so itself
  if (await outdated()) byId("news").hidden = false;
});
/** What went wrong with results, said beside them. @param {string} words */
function complain(words) {
  const box = byId("results-wrong");
  box.hidden = false;
  one("span", box).textContent = words;
}

document.addEventListener("click", async (event) => {
  const button = around(event, "button[data-post]");
  if (!button || button.getAttribute("aria-disabled")) return;
  button.setAttribute("aria-disabled", "true");
  const how = { method: "POST", headers: { Accept: "application/json" }, signal: AbortSignal.timeout(60000) };
  const response = await fetch(data(button, "post"), how).catch(() => null);
  button.removeAttribute("aria-disabled");
  if (response?.ok) {
    location.hash = "results"; // where the page is after it is loaded again
    location.reload();
    return;
  }
  const told = await response?.json().catch(() => null);
  complain(told?.detail ?? "The server does not answer. Nothing is known of what it did; look again in a moment.");
});
byId("reload").addEventListener("click", () => location.reload());
