// The reader's feedback: one entry a finding, a form for what needs words, a draft that outlives the page, the history;
// and what is asked before a study leaves the list.

import { all, around, byId, data, make, one } from "../lib/dom.js";
import { announce, hear } from "../lib/events.js";
import { FEEDBACK_KEYS, commandOf } from "../lib/keys.js";
import { showTimes } from "../lib/times.js";
import { question } from "./question.js";
import { offerUndo } from "./undo.js";
import { entriesWords, frameWords, graver, inShort, marksWords, opposite, sentence, standing, stateWords } from "./words.js";

/** @typedef {import("../lib/events.js").Mark} Mark */
/** @typedef {import("../lib/events.js").Place} Place */
/** @typedef {import("./words.js").Entry} Entry */
/** @typedef {{image: number | null, frame: number | null, bundle: string | null}} FindingRef a finding, or nothing for the whole study */

/**
 * @typedef {object} StudyFeedback all of a study, as the API gives them
 * @property {Entry[]} entries
 * @property {string[]} regions to choose from
 * @property {string | null} read_at
 * @property {string | null} next_study
 * @property {{words: string} | null} [readers] what readers say of the whole study
 */

/**
 * @typedef {object} Problem why nothing was stored
 * @property {string} code
 * @property {string} detail
 * @property {FindingRef[]} findings that must be asked about first
 * @property {string[]} contradictions
 */

/** @typedef {Place & {bundle: string, verdict: string, marks: Mark[], request: string, supersedes?: string}} Writing what the form is about, with the id of its request */
/** @typedef {Partial<Pick<Entry, "fracture" | "region" | "severity" | "text">>} Fields of the form */

const PATIENCE_MS = 20000;
/** @type {(keyof Fields)[]} */
const FIELDS = ["fracture", "region", "severity", "text"];

/** Let the reader of this page give feedback. */
export function openFeedback() {
  const panel = byId("feedback");
  const form = byId("reply-form", HTMLFormElement);
  const doneButton = byId("done", HTMLButtonElement);
  const rows = all(".reply-row", panel);
  const study = data(panel, "study");
  const key = data(panel, "key");
  const list = sessionStorage.getItem("worklist"); // the next study comes from the list that the reader came with
  const url = `/api/v1/studies/${study}/feedback${list ? `?${new URLSearchParams({ worklist: list })}` : ""}`;
  const DRAFT = `feedback ${key} ${study}`; // another reader at this workstation never gets it
  /** @type {HTMLElement | null} the row that keys speak of: the finding of the radiograph on the screen */
  let current = null;
  /** @type {Writing | null} */
  let writing = null;
  /** @type {StudyFeedback} */
  let known = { entries: [], regions: [], read_at: null, next_study: null };
  let busy = false;
  let marking = false; // a box is on the radiograph that nobody took yet

  /** A field of the form. @param {keyof Fields} name */
  const field = (name) => /** @type {HTMLSelectElement | HTMLTextAreaElement} */ (form.elements.namedItem(name));

  // -- what stands ------------------------------------------------------------------------------------------------

  /** @param {HTMLElement} row */
  const about = (row) => ({ image: Number(row.dataset.image), frame: Number(row.dataset.frame), bundle: data(row, "bundle") });
  /** @param {FindingRef} entry @param {HTMLElement} row */
  const isAbout = (entry, row) =>
    entry.image === Number(row.dataset.image) && entry.frame === Number(row.dataset.frame) && entry.bundle === row.dataset.bundle;
  /** @param {HTMLElement} row @param {(entry: Entry) => boolean} [fits] */
  const mine = (row, fits = () => true) => standing(known.entries).find((entry) => entry.mine && isAbout(entry, row) && fits(entry));
  /** @param {HTMLElement} row */
  const verdictOn = (row) => mine(row, ({ verdict }) => verdict === "agree" || verdict === "disagree");
  /** @param {HTMLElement} row */
  const unanswered = (row) => !mine(row);
  /** @param {HTMLElement} row */
  const weight = (row) => ({ gravity: Number(row.dataset.gravity), probability: Number(row.dataset.probability) });

  /** @param {StudyFeedback} feedback */
  function show(feedback) {
    known = feedback;
    for (const row of rows) {
      const said = standing(known.entries).filter((entry) => isAbout(entry, row));
      for (const button of all("[data-verdict]", row)) {
        button.setAttribute("aria-pressed", String(said.some((entry) => entry.mine && entry.verdict === button.dataset.verdict)));
      }
      one(".reply-said", row).textContent = said.map(inShort).join(" · ");
      one("[data-more]", row).hidden = !mine(row, ({ verdict }) => verdict === "disagree");
      one("[data-withdraw]", row).hidden = !verdictOn(row);
    }
    showReaders(feedback.readers);
    byId("reply-state").textContent = feedback.read_at ? "This study is marked as read." : stateWords(rows.filter(unanswered).length, rows.length);
    byId("reopen").hidden = !feedback.read_at;
    doneButton.textContent = feedback.next_study ? "Done, next study" : "Done";
    feedback.regions.forEach(offerRegion);
    showHistory();
    showMarks();
  }

  /** What readers say stands before the model's word as soon as one of them contradicts it. @param {StudyFeedback["readers"]} readers */
  function showReaders(readers) {
    byId("readers-summary").hidden = !readers;
    byId("readers-words").textContent = readers?.words ?? "";
    byId("model-word").classList.toggle("beside", Boolean(readers));
  }

  /** @param {string} region */
  function offerRegion(region) {
    const regions = field("region");
    if (regions instanceof HTMLSelectElement && ![...regions.options].some((option) => option.value === region)) regions.add(new Option(region, region));
  }

  function showHistory() {
    byId("history").hidden = !known.entries.length;
    byId("history-count").textContent = entriesWords(known.entries.length);
    byId("entries").replaceChildren(...known.entries.map(listed));
    showTimes(panel);
  }

  /** @param {Entry} entry */
  function listed(entry) {
    const when = make("time", { dateTime: entry.answered_at });
    when.dataset.form = "full";
    const what = make("span", { className: "what" }, make("bdi", {}, entry.reader), ` ${sentence(entry)}`);
    const item = make("li", { className: entry.superseded_by ? "past" : "" }, when, " ", what);
    if (entry.superseded_by) item.append(" (superseded)");
    if (entry.mine && !entry.superseded_by && (entry.verdict === "disagree" || entry.verdict === "supplement")) {
      const correct = make("button", { className: "button small ghost", type: "button" }, "Correct");
      correct.setAttribute("aria-label", `Correct: ${sentence(entry)}`);
      correct.addEventListener("click", () => correctEntry(entry));
      item.append(" ", correct);
    }
    if (entry.text) item.append(make("p", { className: "said" }, entry.text));
    return item;
  }

  function showMarks() {
    announce("osteon:marks", { marks: standing(known.entries).flatMap((entry) => entry.marks).concat(writing?.marks ?? []) });
  }

  // -- talking to the server --------------------------------------------------------------------------------------

  /** @param {string} text */
  function wrong(text) {
    const box = byId("reply-wrong");
    box.hidden = !text;
    one("span", box).textContent = text;
  }

  /**
   * A retry of the same request writes nothing twice.
   * @param {{said: object, request: string} | null} entry what to store with the id of its request; null: nothing
   * @param {string[]} [questions] codes of problems that the caller asks the reader about
   * @returns {Promise<StudyFeedback | Problem | null>} the feedback; what must be asked first; or null after saying in words why there
   *   is none
   */
  async function ask(entry, questions = []) {
    const [what, hint] = entry ? ["Not stored", "What you wrote is kept here; try again."] : ["Feedback cannot be shown", "Load the page again."];
    let response;
    try {
      response = await fetch(url, {
        signal: AbortSignal.timeout(PATIENCE_MS),
        headers: { Accept: "application/json" },
        ...(entry && {
          method: "POST", body: JSON.stringify(entry.said),
          headers: { "Content-Type": "application/json", Accept: "application/json", "Idempotency-Key": entry.request },
        }),
      });
    } catch {
      wrong(`${what}: the server does not answer. ${hint}`);
      return null;
    }
    if (response.ok) return response.json();
    const problem = await response.json().catch(() => ({}));
    if (questions.includes(problem.code)) return problem;
    const why = response.status === 401 ? "you are logged out. Log in again in another tab." : typeof problem.detail === "string" ? problem.detail : `the server answers ${response.status}.`;
    wrong(`${what}: ${why} ${hint}`);
    byId("older").hidden = problem.code !== "newer-finding";
    return null;
  }

  async function refetch() {
    const feedback = await ask(null);
    if (!feedback || "code" in feedback) return false;
    show(feedback);
    return true;
  }

  /** @param {object} said @param {string} request @param {string[]} [questions] */
  async function store(said, request, questions) {
    if (busy) return null;
    busy = true;
    panel.setAttribute("aria-busy", "true");
    try {
      const feedback = await ask({ said, request }, questions);
      if (feedback && "entries" in feedback) {
        wrong("");
        show(feedback);
      }
      return feedback;
    } finally {
      busy = false;
      panel.removeAttribute("aria-busy");
    }
  }

  // -- the form and its draft -------------------------------------------------------------------------------------

  function keep() {
    if (!writing) return sessionStorage.removeItem(DRAFT);
    const fields = Object.fromEntries(FIELDS.map((name) => [name, field(name).value]));
    sessionStorage.setItem(DRAFT, JSON.stringify({ writing, fields }));
  }

  /** @param {Writing} about @param {Fields} fields */
  function open(about, fields) {
    writing = about;
    if (fields.region) offerRegion(fields.region); // a draft's may come before the server's list, or without it
    for (const name of FIELDS) field(name).value = fields[name] ?? "";
    const what = about.verdict === "disagree" ? "Disagree with" : "Supplement to";
    byId("reply-what").textContent = `${what} image ${about.image}${frameWords(about.frame)}${about.supersedes ? ", corrected" : ""}`;
    byId("older").hidden = true;
    form.hidden = false;
    tellMarks();
    keep();
  }

  function close() {
    writing = null;
    announce("osteon:mark-end");
    keep();
    form.hidden = true;
    wrong("");
    showMarks();
  }

  function tellMarks() {
    const count = writing?.marks.length ?? 0;
    byId("marks").textContent = marksWords(count);
    byId("unmark").hidden = !count;
    showMarks();
  }

  /** @type {Map<string, string>} row and verdict to request: pressed again after a response that got lost, it is the same */
  const pressing = new Map();

  /** @param {Entry} entry of the reader's own */
  function correctEntry(entry) {
    const { verdict, image, frame, bundle, marks } = entry;
    if (image === null || frame === null || bundle === null) return; // of the whole study: there is nothing to correct
    open({ verdict, image, frame, bundle, marks, supersedes: entry.id, request: crypto.randomUUID() }, entry);
    field("text").focus();
  }

  /** @param {HTMLElement} row */
  function elsewhereWriting(row) {
    if (!writing || isAbout(writing, row)) return false;
    form.scrollIntoView({ block: "nearest" });
    wrong("Store or cancel the feedback that you are writing first.");
    return true;
  }

  /** Agree and Disagree are stored at once. Disagree again says more: region, extent, a box, words. @param {HTMLElement} row @param {string} verdict */
  async function press(row, verdict) {
    choose(row);
    if (verdict === "supplement") return supplement(row);
    const before = verdictOn(row);
    if (before?.verdict === verdict) {
      if (verdict === "disagree" && !elsewhereWriting(row) && !writing) correctEntry(before);
      return;
    }
    const pressed = `${row.dataset.image} ${row.dataset.frame} ${row.dataset.bundle} ${verdict}`;
    const request = pressing.get(pressed) ?? crypto.randomUUID();
    pressing.set(pressed, request);
    const fracture = verdict === "disagree" ? opposite(row.dataset.assessment) : undefined; // undefined is not sent
    if (!(await store({ ...about(row), verdict, fracture }, request))) return;
    pressing.delete(pressed);
    if (verdict === "agree") moveOn();
  }

  /** @param {HTMLElement} row */
  function supplement(row) {
    if (elsewhereWriting(row)) return;
    if (!writing || writing.verdict !== "supplement" || writing.supersedes) {
      const text = writing ? field("text").value : "";
      open({ ...about(row), verdict: "supplement", marks: [], request: crypto.randomUUID() }, { text });
    }
    field("text").focus();
  }

  /** @param {HTMLElement} row */
  async function withdraw(row) {
    choose(row);
    const before = verdictOn(row);
    if (!before) return;
    const { image, frame, bundle } = before;
    if (await store({ verdict: "withdrawn", image, frame, bundle, supersedes: before.id, older_bundle: true }, crypto.randomUUID())) {
      one("[data-verdict=agree]", row).focus();
    }
  }

  async function submit({ older = false, meant = false } = {}) {
    if (!writing) return;
    announce("osteon:mark-take"); // a box that was moved by keys, and is seen on the radiograph
    if (marking) return wrong("A box is begun on the radiograph: draw it, or press Enter there to take it as it is, or Escape to give it up.");
    const { request, ...what } = writing;
    const fields = Object.fromEntries(FIELDS.map((name) => [name, field(name).value]).filter(([, value]) => value));
    const said = { ...what, ...fields, ...(older && { older_bundle: true }), ...(meant && { contradiction_meant: true }) };
    if (said.verdict === "supplement" && !said.marks.length && !Object.keys(fields).length) {
      return wrong("A supplement says something: write a word, choose what is missing, or mark where.");
    }
    const row = rows.find((each) => isAbout(said, each));
    const feedback = await store(said, request, ["contradictory"]);
    if (!feedback) return;
    if ("code" in feedback) return doubt(feedback, { older });
    close();
    if (row) one(`[data-verdict=${said.verdict}]`, row).focus();
    moveOn();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("input", () => {
    if (writing) writing.request = crypto.randomUUID(); // other words are another request
    keep();
  });
  form.addEventListener("keydown", (event) => {
    event.stopPropagation(); // letters are text here, not the page's keys
    if (event.key === "Escape") close();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  });
  byId("cancel").addEventListener("click", close);
  byId("older").addEventListener("click", () => submit({ older: true }));
  byId("mark").addEventListener("click", () => {
    if (writing) showRadiograph(writing);
    announce("osteon:mark-start");
  });
  byId("unmark").addEventListener("click", () => {
    if (writing) writing = { ...writing, marks: [], request: crypto.randomUUID() };
    tellMarks();
    keep();
    byId("mark").focus();
  });
  hear("osteon:mark", ({ image, frame, x, y, width, height }) => {
    marking = false;
    if (!writing) return;
    if (image !== writing.image || frame !== writing.frame) {
      tellMarks();
      return wrong("The box was drawn on another radiograph than the one that this feedback is about, and was not taken.");
    }
    wrong("");
    writing = { ...writing, marks: [...writing.marks, { image, frame, x, y, width, height }], request: crypto.randomUUID() };
    tellMarks();
    keep();
  });

  hear("osteon:marking", () => {
    marking = true;
    if (!writing?.marks.length) byId("marks").textContent = "draw a box on the radiograph";
  });
  hear("osteon:mark-cancel", () => {
    marking = false;
    tellMarks();
  });

  // -- done -------------------------------------------------------------------------------------------------------

  /** @type {FindingRef[]} positive findings that the reader is asked about */
  let asked = [];
  /** @type {Map<string, string>} verdict and choice to request: the same press again, after a response that got lost */
  const requests = new Map();
  const showQuestion = question(byId("ask", HTMLDialogElement), [
    ["ask-agree", "a", () => whole("done", "agree")],
    ["ask-leave", "r", () => whole("done", "leave")],
    ["ask-load", "l", () => location.reload()],
  ], byId("ask-back"));

  /** @param {FindingRef} finding */
  const findingOf = ({ image, frame, bundle }) => ({ image, frame, bundle });
  const openPositives = () => rows.filter((row) => row.dataset.assessment === "positive" && unanswered(row)).map(about);

  /** @param {FindingRef[]} findings */
  function askAbout(findings) {
    asked = findings.map(findingOf);
    const unknown = asked.filter((finding) => !rows.some((row) => isAbout(finding, row)));
    const images = [...new Set(asked.map((finding) => finding.image))];
    const many = images.length > 1;
    byId("ask-title").textContent = `${images.length} positive image${many ? "s have" : " has"} no feedback`;
    byId("ask-which").replaceChildren(...asked.map((finding) => {
      const row = rows.find((each) => isAbout(finding, each));
      const what = row ? one(".reply-about > .quiet", row).textContent : `${finding.bundle} has found this since you opened the page; you have not seen it`;
      return make("li", {}, `Image ${finding.image}${frameWords(finding.frame)}: ${what}`);
    }));
    byId("ask-agree").hidden = unknown.length > 0; // nobody agrees with what is not on the screen
    byId("ask-load").hidden = !unknown.length;
    one("span", byId("ask-agree")).textContent = asked.length > 1 ? "Agree with all, and go on" : "Agree, and go on";
    one("span", byId("ask-leave")).textContent = "Mark as read without feedback";
    showQuestion();
  }
  byId("ask").addEventListener("close", () => {
    const first = asked.map((finding) => rows.find((row) => isAbout(finding, row))).find((row) => row !== undefined);
    if (first && !busy) choose(first);
  });

  /** @param {"done" | "reopened"} verdict on the whole study @param {"agree" | "leave"} [choice] for positive findings without feedback */
  async function whole(verdict, choice) {
    if (writing) {
      form.scrollIntoView({ block: "nearest" });
      return wrong("Store or cancel the feedback that you are writing first.");
    }
    if (busy || doneButton.disabled) return;
    if (verdict === "done" && !choice) {
      const open = openPositives();
      if (open.length) return askAbout(open);
    }
    const said = {
      verdict,
      ...(verdict === "done" && { images: Number(panel.dataset.images) }),
      ...(choice && { unanswered: { choice, findings: asked } }),
    };
    const pressed = JSON.stringify(said);
    const request = requests.get(pressed) ?? crypto.randomUUID();
    requests.set(pressed, request);
    const feedback = await store(said, request, ["positive-unanswered"]);
    if (!feedback) return;
    if ("code" in feedback) return askAbout(feedback.findings);
    requests.clear();
    if (verdict !== "done") return;
    doneButton.disabled = true; // the page is left
    const done = feedback.entries.findLast((entry) => entry.verdict === "done" && entry.mine && !entry.superseded_by);
    if (done) offerUndo({ study, entry: done.id, key, agreed: choice === "agree" ? asked.length : 0 });
    location.assign(feedback.next_study ?? `/${sessionStorage.getItem("worklist") ?? ""}`);
  }

  doneButton.addEventListener("click", () => whole("done"));
  byId("reopen").addEventListener("click", () => whole("reopened"));
  addEventListener("pageshow", (event) => event.persisted && (doneButton.disabled = false));

  // -- feedback that contradicts itself ------------------------------------------------------------------------------

  /** @type {{older?: boolean}} how it was to be stored */
  let doubted = {};
  const showDoubt = question(byId("doubt", HTMLDialogElement), [
    ["doubt-fracture", "f", () => {
      field("fracture").value = "yes";
      if (writing) writing.request = crypto.randomUUID();
      keep();
      submit(doubted);
    }],
    ["doubt-store", "s", () => submit({ ...doubted, meant: true })],
  ], byId("doubt-back"));

  /** @param {Problem} problem @param {{older: boolean}} how */
  function doubt(problem, how) {
    doubted = how;
    byId("doubt-why").textContent = problem.detail.replace(/^This feedback contradicts itself\. /, "");
    byId("doubt-fracture").hidden = !problem.contradictions.includes("box-without-fracture") || writing?.verdict === "agree";
    showDoubt();
  }

  // -- keys, hashes, start ----------------------------------------------------------------------------------------

  /** @param {HTMLElement | undefined} row */
  function setCurrent(row) {
    current?.classList.remove("current");
    current = row ?? null;
    current?.classList.add("current");
  }

  /** @param {Place} place of the radiograph that is to be on the screen */
  const showRadiograph = ({ image, frame }) => announce("osteon:open", { image, frame });
  /** @param {string | number | undefined} image @param {string | number | undefined} frame */
  const rowOf = (image, frame) => rows.find((row) => row.dataset.image === String(image) && row.dataset.frame === String(frame));

  /** No feedback without its radiograph: who goes to a finding sees it. @param {HTMLElement} row */
  function choose(row) {
    setCurrent(row);
    showRadiograph(about(row));
  }

  function moveOn() {
    const open = rows.filter(unanswered);
    if (open.length && !open.some((row) => row === current)) choose(open.sort((a, b) => graver(weight(a), weight(b)))[0]);
  }

  hear("osteon:shown", ({ image, frame }) => setCurrent(rowOf(image, frame)));

  for (const row of rows) {
    row.addEventListener("focusin", () => choose(row));
    row.addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.preventDefault()); // one stroke, one verdict
    for (const button of all("[data-verdict]", row)) button.addEventListener("click", () => press(row, data(button, "verdict")));
    one("[data-more]", row).addEventListener("click", () => press(row, "disagree"));
    one("[data-withdraw]", row).addEventListener("click", () => withdraw(row));
  }

  /** @param {HTMLElement} button */
  function reach(button) {
    button.scrollIntoView({ block: "nearest" });
    button.focus();
  }
  /** @param {"agree" | "disagree" | "supplement"} verdict */
  const pressCurrent = (verdict) => current && press(current, verdict);
  const COMMANDS = {
    agree: () => pressCurrent("agree"), disagree: () => pressCurrent("disagree"), supplement: () => pressCurrent("supplement"),
    done: () => reach(doneButton), finish: () => whole("done"),
  };
  const CONTROLS = "a, button, summary, [role=button]"; // Enter is theirs while they have the focus
  const pointing = () => document.querySelector(".marking, .measuring") !== null; // Enter takes what is drawn
  document.addEventListener("keydown", (event) => {
    const command = commandOf(FEEDBACK_KEYS, event);
    if (!command || document.querySelector("dialog[open]") || around(event, "input, select, textarea")) return;
    if (command === "finish" && (event.defaultPrevented || pointing() || around(event, CONTROLS))) return;
    event.preventDefault(); // or the letter would land in the field that the key opens
    COMMANDS[command]();
  });

  function followHash() {
    const verdict = location.hash.slice(1);
    if (current && (verdict === "agree" || verdict === "disagree")) reach(one(`[data-verdict=${verdict}]`, current));
  }

  async function start() {
    const shown = document.getElementById("viewer")?.dataset;
    if (shown) setCurrent(rowOf(shown.image, shown.frame));
    if (!(await refetch())) byId("reply-state").textContent = "Earlier feedback could not be fetched.";
    /** @type {{writing: Writing, fields: Fields} | null} */
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    if (draft) {
      open(draft.writing, draft.fields);
      const row = rows.find((each) => isAbout(draft.writing, each));
      if (row) choose(row);
    }
    followHash();
  }

  hear("osteon:feedback", refetch);
  addEventListener("hashchange", followHash);
  start();
}
