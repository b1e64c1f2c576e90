"use strict";
// The reader's answer: one entry a finding, a form for what needs words, a draft that outlives the page, the history;
// and what is asked before a study leaves the list.

(() => {
  const panel = document.getElementById("answer");
  const part = (id) => document.getElementById(id);
  const form = part("reply-form");
  const rows = [...panel.querySelectorAll(".reply-row")];
  const list = sessionStorage.getItem("worklist"); // the next study comes from the list that the reader came with
  const url = `/studies/${panel.dataset.study}/answers${list ? `?${new URLSearchParams({ worklist: list })}` : ""}`;
  const DRAFT = `answer ${panel.dataset.key} ${panel.dataset.study}`; // another reader at this desk never gets it
  let current = null; // the row that keys speak of: the finding of the film on the screen
  let writing = null; // {verdict, image, frame, bundle, marks, request}: what the form is about
  let known = { entries: [], regions: [], read_at: null, next_study: null };
  let busy = false;
  let marking = false; // a box is on the film that nobody took yet

  // -- what stands ------------------------------------------------------------------------------------------------

  const standing = () => known.entries.filter((entry) => !entry.superseded_by && entry.verdict !== "withdrawn");
  const about = (row) => ({ image: Number(row.dataset.image), frame: Number(row.dataset.frame), bundle: row.dataset.bundle });
  const isAbout = (entry, row) =>
    entry.image === Number(row.dataset.image) && entry.frame === Number(row.dataset.frame) && entry.bundle === row.dataset.bundle;

  function show(answers) {
    known = answers;
    for (const row of rows) {
      const said = standing().filter((entry) => isAbout(entry, row));
      for (const button of row.querySelectorAll("[data-verdict]")) {
        button.setAttribute("aria-pressed", said.some((entry) => entry.mine && entry.verdict === button.dataset.verdict));
      }
      row.querySelector(".reply-said").textContent = said.map(inShort).join(" · ");
      row.querySelector("[data-more]").hidden = !mine(row, "disagree");
      row.querySelector("[data-withdraw]").hidden = !verdictOn(row);
    }
    showReaders(answers.readers);
    part("reply-state").textContent = answers.read_at ? "This study is marked as read." : words(rows.filter(unanswered).length);
    part("reopen").hidden = !answers.read_at;
    part("done").textContent = answers.next_study ? "Done, next study" : "Done";
    answers.regions.forEach(offerRegion);
    showHistory();
    showMarks();
  }

  // What readers say stands before the model's word as soon as one of them contradicts it.
  function showReaders(readers) {
    part("readers-word").hidden = !readers;
    part("readers-words").textContent = readers?.words ?? "";
    part("model-word").classList.toggle("beside", Boolean(readers));
  }

  function offerRegion(region) {
    const regions = form.elements.region;
    if (![...regions.options].some((option) => option.value === region)) regions.add(new Option(region, region));
  }

  const mine = (row, verdict) =>
    standing().some((entry) => entry.mine && isAbout(entry, row) && (!verdict || entry.verdict === verdict));
  const verdictOn = (row) =>
    standing().find((entry) => entry.mine && isAbout(entry, row) && ["agree", "disagree"].includes(entry.verdict));
  const unanswered = (row) => !mine(row);
  const graver = (a, b) =>
    b.dataset.gravity - a.dataset.gravity || b.dataset.probability - a.dataset.probability;

  function words(open) {
    if (!rows.length) return "There is no finding to answer; you can still mark the study as read.";
    return open ? `${open} of ${rows.length} not answered by you.` : "All findings are answered.";
  }

  function inShort(entry) {
    const whom = entry.mine ? "you" : entry.reader;
    return `${whom}: ${entry.verdict}${entry.text || entry.marks.length ? ", with more in the history" : ""}`;
  }

  const VERDICTS = { agree: "agrees", disagree: "disagrees", supplement: "adds", withdrawn: "withdraws the answer", done: "marks the study as read", reopened: "reopens the study", seen: "has seen the revised finding" };

  function sentence(entry) {
    const where = entry.image ? ` on image ${entry.image}${entry.frame > 1 ? `, frame ${entry.frame}` : ""} (${entry.bundle})` : entry.bundle ? ` of ${entry.bundle}` : "";
    const seen = [
      entry.fracture && `fracture: ${entry.fracture}`, entry.region, entry.severity && `extent ${entry.severity}`,
      entry.marks.length && `${entry.marks.length} mark${entry.marks.length > 1 ? "s" : ""}`,
    ].filter(Boolean);
    return `${VERDICTS[entry.verdict]}${where}${seen.length ? `: ${seen.join(", ")}` : ""}`;
  }

  function showHistory() {
    part("history").hidden = !known.entries.length;
    part("history-count").textContent = `${known.entries.length} entr${known.entries.length === 1 ? "y" : "ies"}`;
    part("entries").replaceChildren(...known.entries.map((entry) => {
      const item = document.createElement("li");
      item.classList.toggle("past", Boolean(entry.superseded_by));
      const when = document.createElement("time");
      when.dateTime = entry.answered_at;
      when.dataset.form = "full";
      const what = document.createElement("span");
      what.className = "what";
      what.textContent = `${entry.reader} ${sentence(entry)}`;
      item.append(when, " ", what);
      if (entry.superseded_by) item.append(" (superseded)");
      if (entry.mine && !entry.superseded_by && (entry.verdict === "disagree" || entry.verdict === "supplement")) {
        const correct = document.createElement("button");
        correct.className = "button small ghost";
        correct.type = "button";
        correct.textContent = "Correct";
        correct.setAttribute("aria-label", `Correct: ${sentence(entry)}`);
        correct.addEventListener("click", () => correctEntry(entry));
        item.append(" ", correct);
      }
      if (entry.text) {
        const said = document.createElement("p");
        said.className = "said";
        said.textContent = entry.text;
        item.append(said);
      }
      return item;
    }));
    Times.show(panel);
  }

  function showMarks() {
    const marks = standing().flatMap((entry) => entry.marks).concat(writing?.marks ?? []);
    document.dispatchEvent(new CustomEvent("osteon:marks", { detail: { marks } }));
  }

  // -- talking to the server --------------------------------------------------------------------------------------

  function wrong(text) {
    const box = part("reply-wrong");
    box.hidden = !text;
    box.firstElementChild.textContent = text;
  }

  // The answers; or null after saying in words why there are none; or what must be asked first, which has a `code` that
  // `questions` names. A retry of the same request writes nothing twice.
  async function ask(said, request, questions = []) {
    const [what, cure] = said ? ["Not stored", "What you wrote is kept here; try again."] : ["Answers cannot be shown", "Load the page again."];
    let answer;
    try {
      answer = await fetch(url, said
        ? { method: "POST", body: JSON.stringify(said), signal: AbortSignal.timeout(20000),
            headers: { "Content-Type": "application/json", Accept: "application/json", "Idempotency-Key": request } }
        : { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(20000) });
    } catch {
      wrong(`${what}: the server does not answer. ${cure}`);
      return null;
    }
    if (answer.ok) return answer.json();
    const problem = await answer.json().catch(() => ({}));
    if (questions.includes(problem.code)) return problem;
    const why = answer.status === 401 ? "you are logged out. Log in again in another tab." : typeof problem.detail === "string" ? problem.detail : `the server answers ${answer.status}.`;
    wrong(`${what}: ${why} ${cure}`);
    part("older").hidden = problem.code !== "newer-finding";
    return null;
  }

  async function store(said, request, questions) {
    if (busy) return null;
    busy = true;
    panel.setAttribute("aria-busy", "true");
    try {
      const answers = await ask(said, request, questions);
      if (answers?.entries) {
        wrong("");
        show(answers);
      }
      return answers;
    } finally {
      busy = false;
      panel.removeAttribute("aria-busy");
    }
  }

  // -- the form and its draft -------------------------------------------------------------------------------------

  const FIELDS = ["fracture", "region", "severity", "text"];

  function keep() {
    if (!writing) return sessionStorage.removeItem(DRAFT);
    const fields = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
    sessionStorage.setItem(DRAFT, JSON.stringify({ writing, fields }));
  }

  function open(about, fields) {
    writing = about;
    if (fields.region) offerRegion(fields.region); // a draft's may come before the server's list, or without it
    for (const name of FIELDS) form.elements[name].value = fields[name] ?? "";
    const frame = about.frame > 1 ? `, frame ${about.frame}` : "";
    const what = about.verdict === "disagree" ? "Disagree with" : "Supplement to";
    part("reply-what").textContent = `${what} image ${about.image}${frame}${about.supersedes ? ", corrected" : ""}`;
    part("older").hidden = true;
    form.hidden = false;
    tellMarks();
    keep();
  }

  function close() {
    writing = null;
    document.dispatchEvent(new CustomEvent("osteon:mark-end"));
    keep();
    form.hidden = true;
    wrong("");
    showMarks();
  }

  function tellMarks() {
    const count = writing?.marks.length ?? 0;
    part("marks").textContent = count ? `${count} mark${count > 1 ? "s" : ""}` : "no mark yet";
    part("unmark").hidden = !count;
    showMarks();
  }

  const pressing = new Map(); // row and verdict to request: pressed again after an answer that got lost, it is the same

  // What disagreeing most often means; the reader may say otherwise afterwards.
  const opposite = (row) => ({ positive: "no", unclear: "no", negative: "yes" })[row.dataset.assessment];

  function correctEntry(entry) {
    const { verdict, image, frame, bundle, marks } = entry;
    open({ verdict, image, frame, bundle, marks, supersedes: entry.id, request: crypto.randomUUID() }, entry);
    form.elements.text.focus();
  }

  function elsewhereWriting(row) {
    if (!writing || isAbout(writing, row)) return false;
    form.scrollIntoView({ block: "nearest" });
    wrong("Store or cancel the answer that you are writing first.");
    return true;
  }

  // Agree and Disagree answer at once. Disagree again says more: region, extent, a box, words.
  async function press(row, verdict) {
    choose(row);
    if (verdict === "supplement") return supplement(row);
    const before = verdictOn(row);
    if (before?.verdict === verdict) {
      if (verdict === "disagree" && !elsewhereWriting(row) && !writing) correctEntry(before);
      return;
    }
    const key = `${row.dataset.image} ${row.dataset.frame} ${row.dataset.bundle} ${verdict}`;
    if (!pressing.has(key)) pressing.set(key, crypto.randomUUID());
    const said = { ...about(row), verdict };
    if (verdict === "disagree" && opposite(row)) said.fracture = opposite(row);
    if (!(await store(said, pressing.get(key)))) return;
    pressing.delete(key);
    if (verdict === "agree") moveOn();
  }

  function supplement(row) {
    if (elsewhereWriting(row)) return;
    if (!writing || writing.verdict !== "supplement" || writing.supersedes) {
      const text = writing ? form.elements.text.value : "";
      open({ ...about(row), verdict: "supplement", marks: [], request: crypto.randomUUID() }, { text });
    }
    form.elements.text.focus();
  }

  async function withdraw(row) {
    choose(row);
    const before = verdictOn(row);
    if (!before) return;
    const { image, frame, bundle } = before;
    if (await store({ verdict: "withdrawn", image, frame, bundle, supersedes: before.id, older_bundle: true }, crypto.randomUUID())) {
      row.querySelector("[data-verdict=agree]").focus();
    }
  }

  async function submit({ older = false, meant = false } = {}) {
    if (!writing) return;
    document.dispatchEvent(new CustomEvent("osteon:mark-take")); // a box that was moved by keys, and is seen on the film
    if (marking) return wrong("A box is begun on the film: draw it, or press Enter there to take it as it is, or Escape to give it up.");
    const { request, ...said } = writing;
    for (const name of FIELDS) if (form.elements[name].value) said[name] = form.elements[name].value;
    if (older) said.older_bundle = true;
    if (meant) said.contradiction_meant = true;
    if (said.verdict === "supplement" && !said.marks.length && !FIELDS.some((name) => said[name])) {
      return wrong("A supplement says something: write a word, choose what is missing, or mark where.");
    }
    const row = rows.find((one) => isAbout(said, one));
    const answers = await store(said, request, ["contradictory"]);
    if (answers?.code) return doubt(answers, { older });
    if (answers) {
      close();
      row?.querySelector(`[data-verdict=${said.verdict}]`).focus();
      moveOn();
    }
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
  part("cancel").addEventListener("click", close);
  part("older").addEventListener("click", () => submit({ older: true }));
  part("mark").addEventListener("click", () => {
    showFilm(writing);
    document.dispatchEvent(new CustomEvent("osteon:mark-start"));
  });
  part("unmark").addEventListener("click", () => {
    writing = { ...writing, marks: [], request: crypto.randomUUID() };
    tellMarks();
    keep();
    part("mark").focus();
  });
  document.addEventListener("osteon:mark", (event) => {
    marking = false;
    if (!writing) return;
    const { image, frame, x, y, width, height } = event.detail;
    if (image !== writing.image || frame !== writing.frame) {
      tellMarks();
      return wrong("The box was drawn on another film than the one that this answer is about, and was not taken.");
    }
    wrong("");
    writing = { ...writing, marks: [...writing.marks, { image, frame, x, y, width, height }], request: crypto.randomUUID() };
    tellMarks();
    keep();
  });

  document.addEventListener("osteon:marking", () => {
    marking = true;
    if (!writing?.marks.length) part("marks").textContent = "draw a box on the film";
  });
  document.addEventListener("osteon:mark-cancel", () => {
    marking = false;
    tellMarks();
  });

  // -- questions: a dialog whose buttons have one key each -----------------------------------------------------------

  // choices: [button id, key, act]; Escape and the button `back` close it, and the focus returns to where it was.
  function question(dialog, choices, back) {
    let leaving = false; // one stroke, one choice
    const byKey = Object.fromEntries(choices.map(([id, key]) => [key, part(id)]));
    for (const [id, , act] of choices) {
      part(id).addEventListener("click", () => {
        if (leaving) return;
        leaving = true;
        dialog.close();
        act();
      });
    }
    back.addEventListener("click", () => dialog.close());
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation(); // the page below is covered
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.repeat && event.key !== "Tab") return event.preventDefault(); // a key that is still down from before
      const chosen = byKey[event.key.toLowerCase()];
      if (chosen && !chosen.hidden) {
        event.preventDefault();
        chosen.click();
      } else if (event.key === "Tab") {
        const buttons = [...dialog.querySelectorAll("button")].filter((button) => !button.hidden);
        const next = buttons[buttons.indexOf(document.activeElement) + (event.shiftKey ? -1 : 1)];
        event.preventDefault();
        (next ?? buttons.at(event.shiftKey ? -1 : 0)).focus();
      }
    });
    return () => {
      leaving = false;
      dialog.showModal();
      back.focus(); // of all choices the one that changes nothing: a key that is pressed twice chooses no other
    };
  }

  // -- done -------------------------------------------------------------------------------------------------------

  let asked = []; // positive findings that the reader is asked about
  const requests = {}; // verdict and choice to request: the same press again, after an answer that got lost
  const showQuestion = question(part("ask"), [
    ["ask-agree", "a", () => whole("done", "agree")],
    ["ask-leave", "r", () => whole("done", "leave")],
    ["ask-load", "l", () => location.reload()],
  ], part("ask-back"));

  const findingOf = ({ image, frame, bundle }) => ({ image, frame, bundle });
  const openPositives = () => rows.filter((row) => row.dataset.assessment === "positive" && unanswered(row)).map(about);

  function askAbout(findings) {
    asked = findings.map(findingOf);
    const unknown = asked.filter((finding) => !rows.some((row) => isAbout(finding, row)));
    const images = [...new Set(asked.map((finding) => finding.image))];
    const many = images.length > 1;
    part("ask-title").textContent = `${images.length} positive image${many ? "s are" : " is"} not answered`;
    part("ask-which").replaceChildren(...asked.map((finding) => {
      const item = document.createElement("li");
      const row = rows.find((one) => isAbout(finding, one));
      const what = row ? row.querySelector(".reply-about > .quiet").textContent : `${finding.bundle} has found this since you opened the page; you have not seen it`;
      item.textContent = `Image ${finding.image}${finding.frame > 1 ? `, frame ${finding.frame}` : ""}: ${what}`;
      return item;
    }));
    part("ask-agree").hidden = unknown.length > 0; // nobody agrees with what is not on the screen
    part("ask-load").hidden = !unknown.length;
    part("ask-agree").firstElementChild.textContent = asked.length > 1 ? "Agree with all, and go on" : "Agree, and go on";
    part("ask-leave").firstElementChild.textContent = asked.length > 1 ? "Mark as read without answers" : "Mark as read without an answer";
    showQuestion();
  }
  part("ask").addEventListener("close", () => {
    const first = asked.map((finding) => rows.find((row) => isAbout(finding, row))).find(Boolean);
    if (first && !busy) choose(first);
  });

  async function whole(verdict, choice) {
    if (writing) {
      form.scrollIntoView({ block: "nearest" });
      return wrong("Store or cancel the answer that you are writing first.");
    }
    if (busy || part("done").disabled) return;
    if (verdict === "done" && !choice) {
      const open = openPositives();
      if (open.length) return askAbout(open);
    }
    const said = verdict === "done" ? { verdict, images: Number(panel.dataset.images) } : { verdict };
    if (choice) said.unanswered = { choice, findings: asked };
    const key = JSON.stringify(said);
    requests[key] ??= crypto.randomUUID();
    const answers = await store(said, requests[key], ["positive-unanswered"]);
    if (!answers) return;
    if (answers.code) return askAbout(answers.findings);
    for (const each of Object.keys(requests)) delete requests[each];
    if (verdict !== "done") return;
    part("done").disabled = true; // the page is left
    const done = answers.entries.findLast((entry) => entry.verdict === "done" && entry.mine && !entry.superseded_by);
    if (done) Undo.offer({ study: panel.dataset.study, entry: done.id, key: panel.dataset.key, agreed: choice === "agree" ? asked.length : 0 });
    location.assign(answers.next_study ?? `/${sessionStorage.getItem("worklist") ?? ""}`);
  }

  part("done").addEventListener("click", () => whole("done"));
  part("reopen").addEventListener("click", () => whole("reopened"));
  addEventListener("pageshow", (event) => event.persisted && (part("done").disabled = false));

  // -- an answer that contradicts itself ----------------------------------------------------------------------------

  let doubted = {}; // how it was to be stored
  const showDoubt = question(part("doubt"), [
    ["doubt-fracture", "f", () => {
      form.elements.fracture.value = "yes";
      writing.request = crypto.randomUUID();
      keep();
      submit(doubted);
    }],
    ["doubt-store", "s", () => submit({ ...doubted, meant: true })],
  ], part("doubt-back"));

  function doubt(problem, how) {
    doubted = how;
    part("doubt-why").textContent = problem.detail.replace(/^This answer contradicts itself\. /, "");
    part("doubt-fracture").hidden = !problem.contradictions.includes("box-without-fracture") || writing.verdict === "agree";
    showDoubt();
  }

  // -- keys, hashes, start ----------------------------------------------------------------------------------------

  function setCurrent(row) {
    current?.classList.remove("current");
    current = row ?? null;
    current?.classList.add("current");
  }

  // image, frame: numbers of the film that is to be on the screen
  const showFilm = ({ image, frame }) => document.dispatchEvent(new CustomEvent("osteon:open", { detail: { image, frame } }));
  const rowOf = (image, frame) => rows.find((row) => row.dataset.image === String(image) && row.dataset.frame === String(frame));

  // No answer without its film: who goes to a finding sees it.
  function choose(row) {
    setCurrent(row);
    showFilm(about(row));
  }

  function moveOn() {
    const open = rows.filter(unanswered);
    if (open.length && !open.includes(current)) choose(open.sort(graver)[0]);
  }

  document.addEventListener("osteon:shown", (event) => setCurrent(rowOf(event.detail.image, event.detail.frame)));

  for (const row of rows) {
    row.addEventListener("focusin", () => choose(row));
    row.addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.preventDefault()); // one stroke, one answer
    for (const button of row.querySelectorAll("[data-verdict]")) {
      button.addEventListener("click", () => press(row, button.dataset.verdict));
    }
    row.querySelector("[data-more]").addEventListener("click", () => press(row, "disagree"));
    row.querySelector("[data-withdraw]").addEventListener("click", () => withdraw(row));
  }

  const reach = (button) => {
    button?.scrollIntoView({ block: "nearest" });
    button?.focus();
  };
  const focus = (verdict) => reach(current?.querySelector(`[data-verdict=${verdict}]`));
  const KEYS = {
    a: () => current && press(current, "agree"), d: () => current && press(current, "disagree"), s: () => current && press(current, "supplement"),
    n: () => reach(part("done")),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, select, textarea") || !KEYS[event.key]) return;
    event.preventDefault(); // or the letter would land in the field that the key opens
    KEYS[event.key]();
  });

  function followHash() {
    const verdict = location.hash.slice(1);
    if (verdict === "agree" || verdict === "disagree") focus(verdict);
  }

  async function start() {
    const shown = part("viewer")?.dataset;
    if (shown) setCurrent(rowOf(shown.image, shown.frame));
    const answers = await ask();
    if (answers) show(answers);
    else part("reply-state").textContent = "Earlier answers could not be fetched.";
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    if (draft) {
      open(draft.writing, draft.fields);
      const row = rows.find((one) => isAbout(draft.writing, one));
      if (row) choose(row);
    }
    followHash();
  }

  document.addEventListener("osteon:answered", async () => {
    const answers = await ask();
    if (answers) show(answers);
  });
  addEventListener("hashchange", followHash);
  start();
})();
