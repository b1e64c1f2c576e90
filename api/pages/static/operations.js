"use strict";
// Keeps the page fresh without moving the focus, and sends what its buttons say.

const EVERY_MS = 10000;
const updated = document.getElementById("updated");
const ask = document.getElementById("ask");
let lastGood = new Date();
let version = document.getElementById("now").dataset.version;

function tell(trouble) {
  updated.textContent = trouble ? `Not updated since ${Times.second(lastGood)}: ${trouble}` : `Updated ${Times.second(lastGood)}.`;
  updated.classList.toggle("stale", Boolean(trouble));
}

async function refresh() {
  let answer;
  try {
    answer = await fetch(location.href, {
      headers: { Accept: "text/html", "If-None-Match": version }, signal: AbortSignal.timeout(10000),
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

// Only the parts that show something: what somebody is typing stays. Whoever had the focus has it again, and when that
// is gone, as the button of a released study is, the part's heading takes it.
function replace(fresh) {
  const focused = document.activeElement;
  const part = focused?.closest(".live");
  const open = [...document.querySelectorAll(".live details[open]")].map((each) => each.id);
  const scrolled = [...document.querySelectorAll(".live .scrolls")].map((each) => [each.parentElement.id, each.scrollTop]);
  for (const old of document.querySelectorAll(".live, #counts")) {
    const now = fresh.getElementById(old.id);
    if (now) old.replaceWith(document.adoptNode(now));
  }
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  for (const [id, top] of scrolled) {
    const box = id && document.getElementById(id)?.querySelector(".scrolls");
    if (box) box.scrollTop = top;
  }
  version = document.getElementById("now").dataset.version;
  if (!part || document.activeElement === focused) return;
  const again = focused.id ? document.getElementById(focused.id) : focused.tagName === "SUMMARY" && document.querySelector(`#${focused.parentElement.id} > summary`);
  const heading = document.getElementById(part.id)?.querySelector("h2[tabindex]") ?? document.getElementById(part.id)?.closest("section")?.querySelector("h2[tabindex]");
  (again || heading)?.focus({ preventScroll: true });
}

function say(words, wrong = "") {
  const said = document.getElementById("said");
  const box = document.getElementById("wrong");
  said.hidden = !words;
  said.textContent = words;
  box.hidden = !wrong;
  box.querySelector("span").textContent = wrong;
}

// What the server answers, as a value; null, and its words on the page, when it refuses.
async function call(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, { ...options, headers: { Accept: "application/json", ...options.headers }, signal: AbortSignal.timeout(60000) });
  } catch {
    say("", "The server does not answer. Nothing is known of what it did; look again in a moment.");
    return null;
  }
  const value = await answer.json().catch(() => ({}));
  if (answer.ok) return value;
  const detail = typeof value.detail === "string" ? value.detail : value.detail?.map((each) => each.msg).join("; ");
  say("", detail || `The server answers ${answer.status}.`);
  return null;
}

function agreed(words) {
  document.getElementById("ask-words").textContent = words;
  ask.returnValue = "no";
  ask.showModal();
  return new Promise((resolve) => ask.addEventListener("close", () => resolve(ask.returnValue === "yes"), { once: true }));
}

function done(button, value) {
  const words = button.textContent.trim();
  if (value.released !== undefined) return `${value.released} released${value.left ? `, ${value.left} left: release again for the next ones` : ""}.`;
  return `Done: ${words.charAt(0).toLowerCase()}${words.slice(1)}.`;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post], button[data-show]");
  if (!button) return;
  const { post, body, show, ask: question } = button.dataset;
  if (question && !(await agreed(question))) return;
  button.setAttribute("aria-disabled", "true");
  const value = show
    ? await call(show)
    : await call(post, { method: "POST", body, headers: body ? { "Content-Type": "application/json" } : {} });
  button.removeAttribute("aria-disabled");
  if (value === null) return;
  if (show) return compared(value);
  say(done(button, value));
  await refresh();
});

// Whatever a comparison holds, as nested lists of names and values.
function listed(value) {
  if (value === null || typeof value !== "object") {
    const text = document.createElement("span");
    text.textContent = typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : String(value ?? "–");
    return text;
  }
  const list = document.createElement("dl");
  for (const [name, each] of Object.entries(value)) {
    const term = list.appendChild(document.createElement("dt"));
    term.textContent = name.replaceAll("_", " ");
    list.appendChild(document.createElement("dd")).append(listed(each));
  }
  return list;
}

function compared(value) {
  const part = document.getElementById("compared");
  part.hidden = false;
  part.querySelector("div").replaceChildren(listed(value));
  part.querySelector("h2").focus();
}

document.getElementById("new-key").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const wanted = JSON.stringify(Object.fromEntries(new FormData(form)));
  const made = await call("/keys", { method: "POST", body: wanted, headers: { "Content-Type": "application/json" } });
  if (made === null) return;
  say("");
  const box = document.getElementById("secret");
  box.querySelector("b").textContent = made.name;
  box.querySelector("code").textContent = made.secret;
  box.hidden = false;
  form.reset();
  await refresh();
  box.focus();
});

// The whole table goes as one: the server says in words what does not fit together.
document.getElementById("allowances-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const minutes = {};
  for (const field of event.target.querySelectorAll("input")) {
    const [name, priority] = field.name.split("/");
    (minutes[name] ??= {})[priority] = field.valueAsNumber;
  }
  const body = JSON.stringify({ minutes });
  const now = await call("/allowances", { method: "PUT", body, headers: { "Content-Type": "application/json" } });
  if (now === null) return;
  say(`Changed. ${now.moved} unread ${now.moved === 1 ? "study" : "studies"} moved; the longest wait is now ${now.longest_minutes} minutes.`);
});

document.getElementById("copy").addEventListener("click", async () => {
  const code = document.querySelector("#secret code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(code);
    say("Select and copy it yourself: this browser does not let pages do so.");
  }
});

document.getElementById("seen").addEventListener("click", () => {
  const box = document.getElementById("secret");
  box.hidden = true;
  box.querySelector("code").textContent = "";
  document.getElementById("keys-title").focus();
});

setInterval(() => document.hidden || ask.open || refresh(), EVERY_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
tell("");
