"use strict";
// Keeps the worklist live without moving the reader's focus, and lets it be walked by click and by key.

const EVERY_MS = 15000; // when nothing tells us of changes
const LIVE_MS = 45000; // nothing tells of the passing of time: what is overdue by now, which claims have run out
const updated = document.getElementById("updated");
let lastGood = new Date();
let live = false; // whether the server tells of changes
let asking = null; // one request at a time: an answer that was overtaken would show the past
let again = false; // something changed while it ran

function tell(trouble) {
  const words = live ? "Live, updated" : "Updated";
  updated.textContent = trouble ? `Not updated since ${Times.second(lastGood)}: ${trouble}` : `${words} ${Times.second(lastGood)}.`;
  updated.classList.toggle("stale", Boolean(trouble));
}

// Asks for this very page. With the version on the screen the server answers 304 unless something changed, and then
// nobody's identity is read again: only what is shown anew is a new entry in the audit.
function refresh() {
  again = Boolean(asking);
  asking ??= ask().finally(() => {
    asking = null;
    if (again) refresh();
  });
  return asking;
}

async function ask() {
  const list = document.getElementById("list");
  let answer, text;
  try {
    answer = await fetch(location.href, {
      headers: { Accept: "text/html", "If-None-Match": list.dataset.version }, signal: AbortSignal.timeout(10000),
    });
    text = answer.status === 200 ? await answer.text() : "";
  } catch {
    return tell("the server does not answer; trying on");
  }
  if (answer.redirected) return location.reload(); // logged out meanwhile
  if (answer.status !== 304 && !answer.ok) return tell(`the server answers ${answer.status}; trying on`);
  if (text) replace(new DOMParser().parseFromString(text, "text/html"));
  Times.show(document);
  lastGood = new Date();
  tell("");
}

function replace(fresh) {
  const focused = document.activeElement?.closest("#list a")?.getAttribute("href");
  for (const id of ["list", "counts", "revised-count"]) {
    const part = fresh.getElementById(id);
    if (part) document.getElementById(id).replaceWith(document.adoptNode(part));
  }
  if (focused) document.querySelector(`#list a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// -- live -----------------------------------------------------------------------------------------------------

// A browser opens few connections to one server: a page that nobody looks at holds none.
const Live = {
  source: null,
  begin() {
    if (this.source) return;
    this.source = new EventSource("/worklist/events");
    this.source.addEventListener("open", () => { live = true; refresh(); }); // what changed in between
    this.source.addEventListener("worklist", () => refresh());
    this.source.addEventListener("error", () => {
      live = false;
      if (this.source?.readyState === EventSource.CLOSED) this.source = null; // refused: the next round tries again
    });
  },
  end() {
    this.source?.close();
    this.source = null;
    live = false;
  },
};

function look() {
  if (document.hidden) return;
  if (live && Date.now() - lastGood < LIVE_MS) return Times.show(document);
  refresh();
  Live.begin();
}

setInterval(look, EVERY_MS);
document.addEventListener("visibilitychange", () => (document.hidden ? Live.end() : (refresh(), Live.begin())));
addEventListener("pagehide", () => Live.end());
addEventListener("pageshow", (event) => event.persisted && (refresh(), Live.begin()));

// -- rows -----------------------------------------------------------------------------------------------------

const links = () => [...document.querySelectorAll("#list a.open")];

document.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-study]");
  if (!row || event.target.closest("a") || String(getSelection())) return;
  row.querySelector("a.open").click();
});

function step(by) {
  const all = links();
  const at = all.indexOf(document.activeElement);
  const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by];
  next?.focus();
  next?.closest("tr").scrollIntoView({ block: "nearest" });
}

function open(hash) {
  const row = document.activeElement?.closest("tr[data-study]");
  if (row) location.href = row.querySelector("a.open").href + hash;
  else step(1); // nothing is chosen yet: show what would be
}

const help = document.getElementById("help");
const number = document.getElementById("number");
const KEYS = {
  j: () => step(1), k: () => step(-1), c: () => open(""), a: () => open("#agree"), d: () => open("#disagree"),
  "/": () => { number.focus(); number.select(); }, "?": () => help.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

document.getElementById("help-open").addEventListener("click", () => help.showModal());

// -- filters --------------------------------------------------------------------------------------------------

const filters = document.getElementById("filters");
// an address that says only what was chosen can be read, and saved
filters?.addEventListener("formdata", (event) => {
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
});

const saving = document.getElementById("save-dialog");
const form = document.getElementById("save-form");
document.getElementById("save")?.addEventListener("click", () => saving.showModal());
saving.querySelector("[data-close]").addEventListener("click", () => saving.close());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = document.getElementById("save-name").value;
  const answer = await send("POST", "/filters", { name, query: form.dataset.query });
  if (answer?.ok) return location.reload();
  const wrong = form.querySelector(".wrong");
  const detail = await answer?.json().then((problem) => problem.detail).catch(() => null);
  wrong.textContent = typeof detail === "string" ? detail : "The filters could not be saved. Try again.";
  wrong.hidden = false;
});

document.getElementById("saved").addEventListener("click", async (event) => {
  const id = event.target.closest("[data-forget]")?.dataset.forget;
  if (id && (await send("DELETE", `/filters/${id}`))?.ok) event.target.closest(".chip").remove();
});

function send(method, path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  return fetch(path, { method, headers, body: body && JSON.stringify(body) }).catch(() => null);
}

sessionStorage.setItem("worklist", location.search);
tell("");
if (!document.hidden) Live.begin();
