"use strict";
// Keeps the worklist fresh without moving the reader's focus, and lets rows be opened by click and by key.

const EVERY_MS = 15000;
const updated = document.getElementById("updated");
let lastGood = new Date();

function tell(trouble) {
  updated.textContent = trouble ? `Not updated since ${Times.second(lastGood)}: ${trouble}` : `Updated ${Times.second(lastGood)}.`;
  updated.classList.toggle("stale", Boolean(trouble));
}

// Asks for this very page. With the version on the screen the server answers 304 unless something changed, and then
// nobody's identity is read again: only what is shown anew is a new entry in the audit.
async function refresh() {
  const list = document.getElementById("list");
  let answer;
  try {
    answer = await fetch(location.href, {
      headers: { Accept: "text/html", "If-None-Match": list.dataset.version }, signal: AbortSignal.timeout(10000),
    });
  } catch {
    return tell("the server does not answer; trying on");
  }
  if (answer.redirected) return location.reload(); // logged out meanwhile
  if (answer.status !== 304 && !answer.ok) return tell(`the server answers ${answer.status}; trying on`);
  if (answer.status !== 304) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
  Times.show(document);
  lastGood = new Date();
  tell("");
}

function replace(fresh) {
  const focused = document.activeElement?.closest("#list a")?.getAttribute("href");
  for (const id of ["list", "counts"]) {
    const part = fresh.getElementById(id);
    if (part) document.getElementById(id).replaceWith(document.adoptNode(part));
  }
  if (focused) document.querySelector(`#list a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-study]");
  if (!row || event.target.closest("a") || String(getSelection())) return;
  row.querySelector("a.open").click();
});

document.addEventListener("keydown", (event) => {
  const step = { j: 1, k: -1 }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const links = [...document.querySelectorAll("#list a.open")];
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? (step > 0 ? 0 : links.length - 1) : at + step]?.focus();
});

setInterval(() => document.hidden || refresh(), EVERY_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
sessionStorage.setItem("worklist", location.search);
tell("");
