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

// Whether somebody said yes; where a reason is wanted, also which one.
function agreed(words, wantsReason = false) {
  document.getElementById("ask-words").textContent = words;
  document.getElementById("ask-why").hidden = !wantsReason;
  const field = document.getElementById("ask-reason");
  field.value = "";
  field.required = wantsReason;
  ask.returnValue = "no";
  ask.showModal();
  if (wantsReason) field.focus();
  return new Promise((resolve) => ask.addEventListener("close", () => resolve(ask.returnValue === "yes"), { once: true }));
}

function done(button, value) {
  const words = button.textContent.trim();
  if (value.released !== undefined) return `${value.released} released${value.left ? `, ${value.left} left: release again for the next ones` : ""}.`;
  return `Done: ${words.charAt(0).toLowerCase()}${words.slice(1)}.`;
}

// no submit button: Enter in the reason's field would press it, the first one
document.getElementById("ask-no").addEventListener("click", () => ask.close("no"));

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post], button[data-show]");
  if (!button) return;
  const { post, show: source, ask: question, reason } = button.dataset;
  let { body } = button.dataset;
  if (question && !(await agreed(question, reason !== undefined))) return;
  if (reason !== undefined) body = JSON.stringify({ ...JSON.parse(body), reason: document.getElementById("ask-reason").value });
  button.setAttribute("aria-disabled", "true");
  const value = source
    ? await call(source)
    : await call(post, { method: "POST", body, headers: body ? { "Content-Type": "application/json" } : {} });
  button.removeAttribute("aria-disabled");
  if (value === null) return;
  if (source) return (value.run ? night : compared)(value);
  say(done(button, value));
  await refresh();
});

const ASSESSMENTS = ["positive", "unclear", "abstained", "negative"];
const NAMED = 20; // studies that are linked; /docs tells how scripts get all

function element(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
}

// rows: [name, ...values]; a value is a text, or a number.
function table(caption, heads, rows) {
  const made = element("table", "", "sheet");
  made.append(element("caption", caption));
  const head = made.createTHead().insertRow();
  for (const name of heads) head.append(Object.assign(element("th", name, name === heads[0] ? "" : "number"), { scope: "col" }));
  const body = made.createTBody();
  for (const [name, ...values] of rows) {
    const row = body.insertRow();
    row.append(Object.assign(element("th", name), { scope: "row" }));
    for (const value of values) row.append(element("td", typeof value === "number" ? value.toLocaleString("en") : value, "number"));
  }
  return made;
}

// changes: old assessment -> new assessment -> studies.
function changesTable(caption, changes) {
  const rows = ASSESSMENTS.filter((old) => changes[old]).map((old) => [`was ${old}`, ...ASSESSMENTS.map((now) => changes[old][now] ?? 0)]);
  return table(caption, ["", ...ASSESSMENTS.map((now) => `now ${now}`)], rows);
}

function named(words, ids) {
  const part = element("p", ids.length ? `${words}: ` : "");
  ids.slice(0, NAMED).forEach((id, number) => {
    part.append(number ? ", " : "", Object.assign(element("a", id.slice(0, 8)), { href: `/view/${id}`, title: id }));
  });
  if (ids.length > NAMED) part.append(` and ${ids.length - NAMED} more`);
  return part;
}

function studies(count) {
  return `${count.toLocaleString("en")} ${count === 1 ? "study" : "studies"}`;
}

function show(title, ...parts) {
  const part = document.getElementById("compared");
  part.hidden = false;
  part.querySelector("h2").textContent = title;
  part.querySelector("div").replaceChildren(...parts);
  part.querySelector("h2").focus();
}

function compared(value) {
  const changed = ({ changes }) => ASSESSMENTS.flatMap((old) => ASSESSMENTS.map((now) => (old === now ? 0 : changes[old]?.[now] ?? 0))).reduce((sum, one) => sum + one, 0);
  const regions = Object.entries(value.regions).map(([name, one]) => [
    name, one.studies, changed(one), one.probability_change.toFixed(3), one.abstention_change,
  ]);
  const words = value.all.studies
    ? `Both have looked at ${studies(value.all.studies)}. ${value.new} does not say negative of ${studies(value.newly_positive)} of which ${value.old} did, and says negative of ${studies(value.newly_negative)} of which it did not.`
    : `No study was looked at by both yet: Shadow lets ${value.new} look at history, unseen.`;
  show(
    `${value.old} against ${value.new}`,
    element("p", words),
    ...(value.all.studies ? [
      changesTable(`Assessments by ${value.old}, and what ${value.new} makes of them`, value.all.changes),
      table("By region, as the former recognised it", ["region", "studies", "assessments that change", "mean change of probability", "more abstentions"], regions),
    ] : []),
    named("Newly unclear or positive", value.newly_positive_studies),
    named("Newly negative", value.newly_negative_studies),
    element("p", value.notice, "quiet"),
  );
}

function night(value) {
  const states = [...new Set(Object.values(value.kinds).flatMap((each) => Object.keys(each)))].sort();
  const rows = Object.entries(value.kinds).map(([kind, counts]) => [kind, ...states.map((state) => counts[state] ?? 0)]);
  const words = `${studies(value.newly_positive)} that the older bundle assessed as negative ${value.newly_positive === 1 ? "is" : "are"} unclear or positive now, ${value.newly_negative.toLocaleString("en")} no longer; ${value.from_abstained.toLocaleString("en")} of those it abstained on are.`;
  show(
    `Night of ${value.run.night}, ${value.run.bundle}`,
    element("p", words),
    ...(rows.length ? [table("What was chosen, and how it ended", ["why chosen", ...states], rows)] : [element("p", "There was nothing to look at.")]),
    ...(Object.keys(value.changes).length ? [changesTable("Assessments before and after", value.changes)] : []),
    named("Newly unclear or positive, at this site", value.alerts.map((one) => one.study_id)),
    named("Unclear or positive after an abstention, at this site", value.from_abstained_studies),
    element("p", value.notice, "quiet"),
  );
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
