// The page Notices: what this browser shows is chosen here, and mail and webhooks are tested.

import "./page.js";
import { all, around, byId, data, one } from "./lib/dom.js";
import { allowed, ask, keep, kept, show as showNotice } from "./live/notices.js";

const LOOKS = 30; // a second apart, after what another process does for a button
const form = byId("browser-form", HTMLFormElement);

/** @param {string} words */
function tell(words) {
  const box = byId("said");
  box.hidden = !words;
  box.textContent = words;
}

/** How things stand, in words. */
function show() {
  const on = kept() !== null && allowed();
  byId("browser-off").hidden = !on;
  byId("browser-on").textContent = on ? "Change" : "Show them in this browser";
  byId("browser-state").textContent = on ? "This browser shows what is chosen." : "This browser shows no notices.";
}

/** Whether the browser lets us, after it has asked. */
async function permitted() {
  if (typeof Notification === "undefined") {
    tell("This browser has no notifications.");
    return false;
  }
  if (Notification.permission !== "granted") await Notification.requestPermission();
  if (!allowed()) tell("This browser does not let this site show anything: allow notifications for it in the browser's settings.");
  return allowed();
}

const number = (/** @type {string} */ name) => one(`[name="${name}"]`, form, HTMLInputElement).valueAsNumber;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  if (!(await permitted())) return show();
  const events = all('[name="events"]', form, HTMLInputElement).filter((box) => box.checked).map((box) => box.value);
  const before = kept();
  keep({ after: before?.after ?? "", seen: before?.seen ?? [], wanted: { events, from: number("from"), to: number("to"), zone: data(form, "zone") } });
  show();
  tell("Kept in this browser, for your key.");
  await ask();
});

byId("browser-off").addEventListener("click", () => {
  keep(null);
  show();
  tell("This browser shows none from now on.");
  byId("browser-on").focus();
});

byId("browser-test").addEventListener("click", async () => {
  tell("");
  if (!(await permitted())) return;
  showNotice({ title: "Osteon", body: "This is a test of notices.", path: "/notices", tag: "osteon-test" });
  tell("A test was shown. If you saw nothing, look whether the system holds notifications back.");
});

/** @typedef {{id: string, name: string, testing: boolean, test: {reason: string | null, detail: string, words: string} | null}} Destination */

/** @param {string} id @returns {Promise<Destination | null>} */
async function destination(id) {
  const response = await fetch("/api/v1/destinations", { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(10000) }).catch(() => null);
  /** @type {Destination[]} */
  const found = response?.ok ? await response.json() : [];
  return found.find((each) => each.id === id) ?? null;
}

document.addEventListener("click", async (event) => {
  const button = around(event, "button[data-test]");
  if (!button || button.getAttribute("aria-disabled")) return;
  const id = data(button, "test");
  button.setAttribute("aria-disabled", "true");
  tell("The test is under way.");
  const asked = await fetch(`/api/v1/destinations/${id}/test`, { method: "POST", headers: { Accept: "application/json" } }).catch(() => null);
  let found = null;
  for (let look = 0; asked?.ok && look < LOOKS; look += 1) {
    found = await destination(id);
    if (found && !found.testing) break;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  button.removeAttribute("aria-disabled");
  if (!found || found.testing) tell("The test has no outcome. Look whether the process deliver runs.");
  else if (found.test?.reason) tell(`${found.name}: ${found.test.detail} ${found.test.words}`);
  else tell(`${found.name} has taken the test.`);
});

const begun = kept();
if (begun) {
  for (const box of all('[name="events"]', form, HTMLInputElement)) box.checked = begun.wanted.events.includes(box.value);
  one('[name="from"]', form, HTMLInputElement).value = String(begun.wanted.from);
  one('[name="to"]', form, HTMLInputElement).value = String(begun.wanted.to);
}
show();
