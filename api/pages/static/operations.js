// Keeps the operations page fresh without moving the focus, and sends what its buttons say.

import "./page.js";
import { all, around, byId, data, one } from "./lib/dom.js";
import { freshPage } from "./live/refresh.js";
import { useDestinations } from "./operations/destinations.js";
import { usePeers } from "./operations/peers.js";
import { backfillRun, compared } from "./operations/reports.js";
import { showSecret, useSecrets } from "./operations/secret.js";
import { call, complain, say } from "./operations/talk.js";

const EVERY_MS = 10000;
const ask = byId("ask", HTMLDialogElement);
const busy = () => document.querySelector("dialog[open]") !== null;

/** A link to a part that stands on another tab, as those of before there were tabs, leads there. */
function openTabOfPart() {
  const part = location.hash.slice(1);
  if (!part || document.getElementById(part)) return;
  for (const tab of all("#tabs a", document, HTMLAnchorElement)) {
    if (data(tab, "parts").split(" ").includes(part)) location.replace(tab.href + location.hash);
  }
}
openTabOfPart();
addEventListener("hashchange", openTabOfPart);

// Only the parts that show something: what somebody is typing stays. Whoever had the focus has it again, and when that
// is gone, as the button of a released study is, the part's heading takes it.
/** @param {Document} fresh */
function replace(fresh) {
  const focused = document.activeElement;
  const part = focused?.closest(".live");
  const open = all(".live details[open]").map((each) => each.id);
  const scrolled = all(".live .scrolls").map((each) => ({ id: each.parentElement?.id, top: each.scrollTop }));
  for (const old of document.querySelectorAll(".live")) {
    const now = fresh.getElementById(old.id);
    if (now) old.replaceWith(document.adoptNode(now));
  }
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  for (const { id, top } of scrolled) {
    const box = id && document.getElementById(id)?.querySelector(".scrolls");
    if (box) box.scrollTop = top;
  }
  if (!focused || !part || document.activeElement === focused) return;
  const again = focused.id ? document.getElementById(focused.id) : summaryLike(focused);
  const now = document.getElementById(part.id);
  const heading = now?.querySelector("h2[tabindex]") ?? now?.closest("section")?.querySelector("h2[tabindex]");
  const next = again ?? heading;
  if (next instanceof HTMLElement) next.focus({ preventScroll: true });
}

/** The summary, which has no id of its own, of the details that `summary` was one of. @param {Element} summary */
const summaryLike = (summary) =>
  summary.tagName === "SUMMARY" ? document.querySelector(`#${summary.parentElement?.id} > summary`) : null;

const version = () => data(byId("tabs"), "version");
export const { refresh } = freshPage({ foot: byId("updated"), version, replace, every: EVERY_MS, busy });

/** Whether somebody said yes; where a reason is wanted, also which one. @param {string} words @returns {Promise<boolean>} */
function agreed(words, wantsReason = false) {
  byId("ask-words").textContent = words;
  byId("ask-why").hidden = !wantsReason;
  const field = byId("ask-reason", HTMLInputElement);
  field.value = "";
  field.required = wantsReason;
  ask.returnValue = "no";
  ask.showModal();
  if (wantsReason) field.focus();
  return new Promise((resolve) => ask.addEventListener("close", () => resolve(ask.returnValue === "yes"), { once: true }));
}

/** @param {HTMLElement} button @param {{released?: number, left?: number}} value */
function done(button, value) {
  const words = (button.textContent ?? "").trim();
  if (value.released !== undefined) return `${value.released} released${value.left ? `, ${value.left} left: release again for the next ones` : ""}.`;
  return `Done: ${words.charAt(0).toLowerCase()}${words.slice(1)}.`;
}

// no submit button: Enter in the reason's field would press it, the first one
byId("ask-no").addEventListener("click", () => ask.close("no"));

document.addEventListener("click", async (event) => {
  const button = around(event, "button[data-post], button[data-show]");
  if (!button) return;
  const { post, show: source, ask: question, reason } = button.dataset;
  let { body } = button.dataset;
  if (question && !(await agreed(question, reason !== undefined))) return;
  if (reason !== undefined) body = JSON.stringify({ ...JSON.parse(body ?? "{}"), reason: byId("ask-reason", HTMLInputElement).value });
  button.setAttribute("aria-disabled", "true");
  const value = source
    ? await call(source)
    : await call(post ?? "", { method: "POST", body, headers: body ? { "Content-Type": "application/json" } : {} });
  button.removeAttribute("aria-disabled");
  if (value === null) return;
  if (source) return value.run ? backfillRun(value) : compared(value);
  const waits = button.dataset.await !== undefined;
  say(waits ? "The test is under way." : done(button, value));
  if (value.secret) showSecret("webhook-secret", value);
  await refresh();
  if (waits) await outcome();
});

const LOOKS = 20; // a second apart, after what another process does for a button

/** Look until no test is under way any more: the process that sends makes it, and waits for the destination. */
async function outcome() {
  for (let look = 0; look < LOOKS; look += 1) {
    if (!document.querySelector("[data-testing]")) return say("The test is done: its answer stands beside the destination.");
    await new Promise((resolve) => setTimeout(resolve, 1000));
    if (!busy()) await refresh();
  }
  if (document.querySelector("[data-testing]")) complain("The test is still under way. Look whether the process deliver runs.");
}

const newKey = document.getElementById("new-key");
newKey?.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!(newKey instanceof HTMLFormElement)) return;
  const { days, site, ...fields } = Object.fromEntries(new FormData(newKey));
  const expires = days && new Date(Date.now() + Number(days) * 86400000).toISOString();
  const wanted = JSON.stringify({ ...fields, ...(expires && { expires_at: expires }), ...(site && { site }) });
  const made = await call("/api/v1/keys", { method: "POST", body: wanted, headers: { "Content-Type": "application/json" } });
  if (made === null) return;
  say();
  newKey.reset();
  await refresh();
  showSecret("secret", made);
});

// The whole table goes as one: the server says in words what does not fit together.
const targets = document.getElementById("turnaround-targets-form");
targets?.addEventListener("submit", async (event) => {
  event.preventDefault();
  /** @type {Record<string, Record<string, number>>} */
  const minutes = {};
  for (const field of all("input", targets, HTMLInputElement)) {
    const [name, priority] = field.name.split("/");
    (minutes[name] ??= {})[priority] = field.valueAsNumber;
  }
  const body = JSON.stringify({ minutes });
  const now = await call("/api/v1/turnaround-targets", { method: "PUT", body, headers: { "Content-Type": "application/json" } });
  if (now === null) return;
  say(`Changed. ${now.moved} unread ${now.moved === 1 ? "study" : "studies"} moved; the longest wait is now ${now.longest_minutes} minutes.`);
});

const refusedKinds = document.getElementById("refused-kinds-form");
refusedKinds?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const follow = event instanceof SubmitEvent && event.submitter?.getAttribute("name") === "reset";
  const boxes = all("input", refusedKinds, HTMLInputElement);
  const kinds = follow ? null : boxes.filter((box) => box.checked).map((box) => box.name);
  const body = JSON.stringify({ kinds });
  const now = await call("/api/v1/refused-kinds", { method: "PUT", body, headers: { "Content-Type": "application/json" } });
  if (now === null) return;
  for (const box of boxes) box.checked = now.in_force.includes(box.name);
  one("span", refusedKinds).textContent = `Now in force: ${now.kinds ? "the choice of this site" : "the installation's setting"}`;
  say(`Changed. ${now.in_force.length ? `Refused: ${now.in_force.join(", ")}.` : "Nothing is refused."}`);
});

const resultChoices = document.getElementById("result-choices-form");
resultChoices?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const probability = one("input", resultChoices, HTMLInputElement).checked;
  const modality = one("select", resultChoices, HTMLSelectElement).value;
  const body = JSON.stringify({ states_probability: probability, capture_modality: modality });
  const now = await call("/api/v1/result-choices", { method: "PUT", body, headers: { "Content-Type": "application/json" } });
  if (now !== null) say(`Changed. Results made from now on ${now.states_probability ? "state the probability" : "do not state the probability"}; pictures are ${now.capture_modality}.`);
});

const peer = document.getElementById("peer");
if (peer instanceof HTMLDialogElement) usePeers(peer, refresh);
const destination = document.getElementById("destination");
if (destination instanceof HTMLDialogElement) useDestinations(destination, refresh);
useSecrets();
