// Keeps the count of revised findings in the navigation live, and lets a study's page say that one was seen.

import { all, data, make, one } from "../lib/dom.js";
import { announce } from "../lib/events.js";
import { keepFresh } from "./refresh.js";

const EVERY_MS = 60000; // where nothing tells of changes

/** @param {HTMLElement} count @param {{unseen: number, at_least: boolean}} counted by GET /api/v1/revised-findings/count */
function show(count, { unseen, at_least: atLeast }) {
  if (Number(count.dataset.count) === unseen) return;
  count.dataset.count = String(unseen);
  if (count.firstChild instanceof Text) count.firstChild.data = atLeast ? `${unseen - 1}+` : String(unseen);
  count.hidden = !unseen;
  announce("osteon:revised");
}

/** Ask how many there are, and show it. */
async function ask() {
  const count = document.getElementById("revised-count");
  const response = await fetch("/api/v1/revised-findings/count", {
    headers: { Accept: "application/json" }, signal: AbortSignal.timeout(10000),
  }).catch(() => null);
  if (count && response?.ok) show(count, await response.json());
}

/** @param {HTMLElement} banner a revised finding that nobody has seen yet */
async function seen(banner) {
  const button = one("button", banner, HTMLButtonElement);
  button.disabled = true;
  const response = await fetch(`/api/v1/revised-findings/${data(banner, "revised")}/seen`, {
    method: "POST", headers: { Accept: "application/json" },
  }).catch(() => null);
  const words = make("p", { className: "revision-seen", tabIndex: -1 });
  words.setAttribute("role", "status");
  if (response?.ok || response?.status === 409) {
    const title = one("h2", banner).textContent;
    words.textContent = response.ok ? `${title}. You have seen it; that is kept with who and when.` : `${title}. Somebody has seen it already.`;
    banner.replaceWith(words);
    words.focus();
    announce("osteon:feedback"); // it stands in the history, too
    return ask();
  }
  button.disabled = false;
  words.setAttribute("role", "revised");
  Object.assign(words, { className: "wrong", textContent: "Not stored: the server does not answer. Try again." });
  banner.querySelector(".wrong")?.remove();
  banner.append(words);
}

/** From now on. */
export function watchRevised() {
  // the worklist has a stream of its own, and renews the count with its rows
  if (document.getElementById("revised-count") && !document.getElementById("list")) {
    keepFresh({ ask, every: EVERY_MS, events: { revised: (again) => void again() } });
  }
  for (const banner of all(".revision")) {
    one("form", banner).addEventListener("submit", (event) => {
      event.preventDefault(); // the page stays: radiographs, drafts and the lock with it
      seen(banner);
    });
  }
}
