// Keeps the operations page fresh without moving the focus, and sends what its buttons say.

import "./page.js";
import { all, around, byId, data, make, one } from "./lib/dom.js";
import { freshPage } from "./live/refresh.js";

const EVERY_MS = 10000;
const ask = byId("ask", HTMLDialogElement);
const peer = byId("peer", HTMLDialogElement);
const destination = byId("destination", HTMLDialogElement);

// Only the parts that show something: what somebody is typing stays. Whoever had the focus has it again, and when that
// is gone, as the button of a released study is, the part's heading takes it.
/** @param {Document} fresh */
function replace(fresh) {
  const focused = document.activeElement;
  const part = focused?.closest(".live");
  const open = all(".live details[open]").map((each) => each.id);
  const scrolled = all(".live .scrolls").map((each) => ({ id: each.parentElement?.id, top: each.scrollTop }));
  for (const old of document.querySelectorAll(".live, #counts")) {
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

const version = () => data(byId("now"), "version");
export const { refresh } = freshPage({ foot: byId("updated"), version, replace, every: EVERY_MS, busy: () => ask.open || peer.open || destination.open });

function say(words = "", trouble = "") {
  const said = byId("said");
  const box = byId("wrong");
  said.hidden = !words;
  said.textContent = words;
  box.hidden = !trouble;
  one("span", box).textContent = trouble;
}

/** What went wrong, said on the page. @param {string} words */
const complain = (words) => say("", words);

/**
 * What the server answers, as a value; null, and its words told, when it refuses.
 * @param {string} url
 * @param {RequestInit} [options]
 * @param {(words: string) => void} [tell]
 */
async function call(url, options = {}, tell = complain) {
  let response;
  try {
    response = await fetch(url, { ...options, headers: { Accept: "application/json", ...options.headers }, signal: AbortSignal.timeout(60000) });
  } catch {
    tell("The server does not answer. Nothing is known of what it did; look again in a moment.");
    return null;
  }
  const value = await response.json().catch(() => ({}));
  if (response.ok) return value;
  /** @type {string | {msg: string}[] | undefined} */
  const detail = value.detail;
  const words = typeof detail === "string" ? detail : detail?.map((each) => each.msg).join("; ");
  tell(words || `The server answers ${response.status}.`);
  return null;
}

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
    if (!ask.open && !peer.open && !destination.open) await refresh();
  }
  if (document.querySelector("[data-testing]")) complain("The test is still under way. Look whether the process deliver runs.");
}

const ASSESSMENTS = ["positive", "unclear", "abstained", "negative"];
const NAMED = 20; // studies that are linked; /docs tells how scripts get all

/** @typedef {Record<string, Record<string, number>>} Changes old assessment -> new assessment -> studies */

/**
 * @param {string} caption
 * @param {string[]} heads
 * @param {[string, ...(string | number)[]][]} rows
 */
function table(caption, heads, rows) {
  const made = make("table", { className: "sheet" }, make("caption", {}, caption));
  const head = made.createTHead().insertRow();
  for (const name of heads) head.append(make("th", { scope: "col", className: name === heads[0] ? "" : "number" }, name));
  const body = made.createTBody();
  for (const [name, ...values] of rows) {
    const row = body.insertRow();
    row.append(make("th", { scope: "row" }, name));
    for (const value of values) row.append(make("td", { className: "number" }, typeof value === "number" ? value.toLocaleString("en") : value));
  }
  return made;
}

/** @param {string} caption @param {Changes} changes */
function changesTable(caption, changes) {
  /** @type {[string, ...number[]][]} */
  const rows = ASSESSMENTS.filter((old) => changes[old]).map((old) => [`was ${old}`, ...ASSESSMENTS.map((now) => changes[old][now] ?? 0)]);
  return table(caption, ["", ...ASSESSMENTS.map((now) => `now ${now}`)], rows);
}

/** @param {string} words @param {string[]} ids of studies */
function named(words, ids) {
  const part = make("p", {}, ids.length ? `${words}: ` : "");
  ids.slice(0, NAMED).forEach((id, number) => {
    part.append(number ? ", " : "", make("a", { href: `/view/${id}`, title: id }, id.slice(0, 8)));
  });
  if (ids.length > NAMED) part.append(` and ${ids.length - NAMED} more`);
  return part;
}

/** @param {number} count */
function studies(count) {
  return `${count.toLocaleString("en")} ${count === 1 ? "study" : "studies"}`;
}

/** @param {string} title @param {...Node} parts */
function show(title, ...parts) {
  const part = byId("compared");
  part.hidden = false;
  one("h2", part).textContent = title;
  one("div", part).replaceChildren(...parts);
  one("h2", part).focus();
}

/** @typedef {{studies: number, changes: Changes, probability_change: number, abstention_change: number}} Stratum */

/**
 * @param {{old: string, new: string, all: Stratum, regions: Record<string, Stratum>, newly_positive: number, newly_negative: number,
 *   newly_positive_studies: string[], newly_negative_studies: string[], notice: string}} value of GET /api/v1/bundles/{}/compare/{}
 */
function compared(value) {
  /** @param {Stratum} stratum */
  const changed = ({ changes }) =>
    ASSESSMENTS.flatMap((old) => ASSESSMENTS.map((now) => (old === now ? 0 : changes[old]?.[now] ?? 0))).reduce((sum, each) => sum + each, 0);
  /** @type {[string, ...(string | number)[]][]} */
  const regions = Object.entries(value.regions).map(([name, each]) => [
    name, each.studies, changed(each), each.probability_change.toFixed(3), each.abstention_change,
  ]);
  const words = value.all.studies
    ? `Both have looked at ${studies(value.all.studies)}. ${value.new} does not say negative of ${studies(value.newly_positive)} of which ${value.old} did, and says negative of ${studies(value.newly_negative)} of which it did not.`
    : `No study was looked at by both yet: Shadow lets ${value.new} look at history, unseen.`;
  show(
    `${value.old} against ${value.new}`,
    make("p", {}, words),
    ...(value.all.studies ? [
      changesTable(`Assessments by ${value.old}, and what ${value.new} makes of them`, value.all.changes),
      table("By region, as the former recognised it", ["region", "studies", "assessments that change", "mean change of probability", "more abstentions"], regions),
    ] : []),
    named("Newly unclear or positive", value.newly_positive_studies),
    named("Newly negative", value.newly_negative_studies),
    make("p", { className: "quiet" }, value.notice),
  );
}

/**
 * @param {{run: {day: string, bundle: string}, kinds: Record<string, Record<string, number>>, changes: Changes, newly_positive: number,
 *   newly_negative: number, from_abstained: number, revised_findings: {study_id: string}[], from_abstained_studies: string[],
 *   notice: string}} value of GET /api/v1/backfill-runs/{day}
 */
function backfillRun(value) {
  const states = [...new Set(Object.values(value.kinds).flatMap((each) => Object.keys(each)))].sort();
  /** @type {[string, ...number[]][]} */
  const rows = Object.entries(value.kinds).map(([kind, counts]) => [kind, ...states.map((state) => counts[state] ?? 0)]);
  const words = `${studies(value.newly_positive)} that the older bundle assessed as negative ${value.newly_positive === 1 ? "is" : "are"} unclear or positive now, ${value.newly_negative.toLocaleString("en")} no longer; ${value.from_abstained.toLocaleString("en")} of those it abstained on are.`;
  show(
    `Backfill run of ${value.run.day}, ${value.run.bundle}`,
    make("p", {}, words),
    rows.length ? table("What was chosen, and how it ended", ["why chosen", ...states], rows) : make("p", {}, "There was nothing to look at."),
    ...(Object.keys(value.changes).length ? [changesTable("Assessments before and after", value.changes)] : []),
    named("Newly unclear or positive, at this site", value.revised_findings.map((each) => each.study_id)),
    named("Unclear or positive after an abstention, at this site", value.from_abstained_studies),
    make("p", { className: "quiet" }, value.notice),
  );
}

const newKey = byId("new-key", HTMLFormElement);
newKey.addEventListener("submit", async (event) => {
  event.preventDefault();
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

// One form adds a peer, admits a refused caller, and changes a peer: the button says which values it begins with.
const peerForm = byId("peer-form", HTMLFormElement);
let peerId = "";

/** What is wrong with the form, said within it. @param {string} words */
function peerWrong(words) {
  const box = byId("peer-wrong");
  box.hidden = !words;
  one("span", box).textContent = words;
}

document.addEventListener("click", (event) => {
  const button = around(event, "button[data-peer]");
  if (!button) return;
  const words = button.dataset.words ?? "Add a peer";
  /** @type {Record<string, string | number | boolean | null>} */
  const values = { called_ae: "OSTEON", may_send: true, ...JSON.parse(data(button, "peer")) };
  peerId = String(values.id ?? "");
  peerForm.reset();
  peerWrong("");
  for (const field of all("input", peerForm, HTMLInputElement)) {
    const value = values[field.name];
    if (field.type === "checkbox") field.checked = value === true;
    else field.value = String((field.name === "query_port" ? value || "" : value) ?? "");
  }
  for (const part of all(".new", peerForm)) part.hidden = peerId !== "";
  byId("peer-query", HTMLDetailsElement).open = Boolean(values.query_host);
  byId("peer-title").textContent = words;
  byId("peer-save").textContent = words.split(" ", 1)[0];
  peer.showModal();
});

byId("peer-cancel").addEventListener("click", () => peer.close());

peerForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { name, site, silent_after_h, query_port, ...texts } = Object.fromEntries(new FormData(peerForm));
  const wanted = {
    ...texts,
    may_send: one('[name="may_send"]', peerForm, HTMLInputElement).checked,
    may_commit: one('[name="may_commit"]', peerForm, HTMLInputElement).checked,
    silent_after_h: silent_after_h === "" ? null : Number(silent_after_h),
    query_port: Number(query_port),
    ...(!peerId && name && { name }),
    ...(!peerId && site && { site }),
  };
  const how = { method: peerId ? "PUT" : "POST", body: JSON.stringify(wanted), headers: { "Content-Type": "application/json" } };
  const made = await call(`/api/v1/dicom-peers${peerId && `/${peerId}`}`, how, peerWrong);
  if (made === null) return;
  peer.close();
  say(`${made.name} ${peerId ? "is changed" : `may send to ${made.called_ae} now`}.`);
  await refresh();
});

// One form adds a destination and changes where one is, as that of peers.
const destinationForm = byId("destination-form", HTMLFormElement);
const kindField = one('[name="kind"]', destinationForm, HTMLSelectElement);
let destinationId = "";

/** What is wrong with the form, said within it. @param {string} words */
function destinationWrong(words) {
  const box = byId("destination-wrong");
  box.hidden = !words;
  one("span", box).textContent = words;
}

/** Only what the chosen kind of destination has is asked for; what cannot be changed later, when one is added. */
function showFields() {
  for (const part of all("[data-kinds], .new", destinationForm)) {
    const { kinds } = part.dataset;
    const later = destinationId !== "" && part.classList.contains("new");
    part.hidden = later || (kinds !== undefined && !kinds.split(" ").includes(kindField.value));
  }
}
kindField.addEventListener("change", showFields);

/** The fields that say where a destination is, of the chosen kind. */
const placeFields = () =>
  all("[data-kinds]:not([hidden]):not(.new) :is(input, select)", destinationForm).filter((field) => !field.closest("fieldset"));

/** The fields that say in which hours something goes, where the chosen kind has them. */
const hourFields = () => all('label:not([hidden]) [name^="hour_"]', destinationForm, HTMLInputElement);

/** What is ticked of a list, of the chosen kind. @param {string} name */
const ticked = (name) =>
  all(`fieldset:not([hidden]) label:not([hidden]) [name="${name}"]`, destinationForm, HTMLInputElement)
    .filter((box) => box.checked)
    .map((box) => box.value);

document.addEventListener("click", (event) => {
  const button = around(event, "button[data-destination]");
  if (!button) return;
  const words = button.dataset.words ?? "Add a destination";
  /** @type {Record<string, string | number | boolean>} */
  const values = { kind: "dicom", ...JSON.parse(data(button, "destination")) };
  destinationId = String(values.id ?? "");
  destinationForm.reset();
  destinationWrong("");
  kindField.value = String(values.kind);
  showFields();
  for (const field of destinationId ? placeFields() : []) {
    if (field instanceof HTMLSelectElement) field.value = String(values[field.name]);
    else if (field instanceof HTMLInputElement && field.type === "checkbox") field.checked = values[field.name] === true;
    else if (field instanceof HTMLInputElement) field.value = String(values[field.name] || "");
  }
  one('[name="name"]', destinationForm, HTMLInputElement).required = destinationId === "";
  byId("destination-title").textContent = words;
  byId("destination-save").textContent = words.split(" ", 1)[0];
  destination.showModal();
});

byId("destination-cancel").addEventListener("click", () => destination.close());

destinationForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  /** @type {Record<string, unknown>} */
  const wanted = { kind: kindField.value };
  for (const field of placeFields()) {
    if (field instanceof HTMLSelectElement) wanted[field.name] = field.value;
    else if (field instanceof HTMLInputElement) {
      wanted[field.name] = field.type === "checkbox" ? field.checked : field.type === "number" ? Number(field.value) : field.value;
    }
  }
  if (!destinationId) {
    const chosen = new FormData(destinationForm);
    wanted.name = chosen.get("name");
    const hours = hourFields().map((field) => [field.name, field.valueAsNumber]);
    wanted.rules = [{ when: chosen.get("when"), kinds: ticked("kinds"), events: ticked("events"), ...Object.fromEntries(hours) }];
    if (chosen.has("site")) wanted.site = chosen.get("site");
  }
  const how = { method: destinationId ? "PUT" : "POST", body: JSON.stringify(wanted), headers: { "Content-Type": "application/json" } };
  const made = await call(`/api/v1/destinations${destinationId && `/${destinationId}`}`, how, destinationWrong);
  if (made === null) return;
  destination.close();
  say(`${made.name} ${destinationId ? "is changed" : "gets results from now on"}. Test it.`);
  await refresh();
  if (made.secret) showSecret("webhook-secret", made);
});

/**
 * A secret, which the page has until it is hidden or loaded again.
 * @param {string} id of its box
 * @param {{name: string, secret: string}} value
 */
function showSecret(id, value) {
  const box = byId(id);
  one("b", box).textContent = value.name;
  one("code", box).textContent = value.secret;
  box.hidden = false;
  box.focus();
}

document.addEventListener("click", async (event) => {
  const button = around(event, ".secret button");
  const box = button?.closest(".secret");
  if (!button || !(box instanceof HTMLElement)) return;
  const code = one("code", box);
  if (button.classList.contains("seen")) {
    box.hidden = true;
    code.textContent = "";
    one("h2[tabindex]", box.closest("section") ?? document).focus();
    return;
  }
  try {
    await navigator.clipboard.writeText(code.textContent ?? "");
    say("Copied.");
  } catch {
    getSelection()?.selectAllChildren(code);
    say("Select and copy it yourself: this browser does not let pages do so.");
  }
});
