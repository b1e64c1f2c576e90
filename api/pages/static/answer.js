"use strict";
// The reader's answer: one entry a finding, a form for what needs words, a draft that outlives the page, the history.

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

  const standing = () => known.entries.filter((entry) => !entry.superseded_by);
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
    }
    part("reply-state").textContent = answers.read_at ? "This study is marked as read." : words(rows.filter(unanswered).length);
    part("reopen").hidden = !answers.read_at;
    part("done").textContent = answers.next_study ? "Done, next study" : "Done";
    answers.regions.forEach(offerRegion);
    showHistory();
    showMarks();
  }

  function offerRegion(region) {
    const regions = form.elements.region;
    if (![...regions.options].some((option) => option.value === region)) regions.add(new Option(region, region));
  }

  const mine = (row, verdict) =>
    standing().some((entry) => entry.mine && isAbout(entry, row) && (!verdict || entry.verdict === verdict));
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

  const VERDICTS = { agree: "agrees", disagree: "disagrees", supplement: "adds", done: "marks the study as read", reopened: "reopens the study" };

  function sentence(entry) {
    const where = entry.image ? ` on image ${entry.image}${entry.frame > 1 ? `, frame ${entry.frame}` : ""} (${entry.bundle})` : "";
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
        correct.addEventListener("click", () => {
          const { verdict, image, frame, bundle, marks } = entry;
          open({ verdict, image, frame, bundle, marks, supersedes: entry.id, request: crypto.randomUUID() }, entry);
          form.elements.text.focus();
        });
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

  // The answers, or null after saying in words why there are none. A retry of the same request writes nothing twice.
  async function ask(said, request) {
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
    const why = answer.status === 401 ? "you are logged out. Log in again in another tab." : typeof problem.detail === "string" ? problem.detail : `the server answers ${answer.status}.`;
    wrong(`${what}: ${why} ${cure}`);
    part("older").hidden = answer.status !== 409;
    return null;
  }

  async function store(said, request) {
    if (busy) return null;
    busy = true;
    panel.setAttribute("aria-busy", "true");
    try {
      const answers = await ask(said, request);
      if (answers) {
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

  const agreeing = new Map(); // row to request: pressed again after an answer that got lost, it is the same request

  async function press(row, verdict) {
    choose(row);
    if (verdict === "agree") {
      if (mine(row, "agree")) return; // said already
      if (!agreeing.has(row)) agreeing.set(row, crypto.randomUUID());
      if (await store({ ...about(row), verdict }, agreeing.get(row))) {
        agreeing.delete(row);
        moveOn();
      }
      return;
    }
    const request = crypto.randomUUID();
    if (!writing || writing.verdict !== verdict || writing.supersedes || !isAbout(writing, row)) {
      // what disagreeing most often means; the reader may say otherwise
      const opposite = { positive: "no", unclear: "no", negative: "yes" }[row.dataset.assessment];
      if (writing && !isAbout(writing, row)) {
        form.scrollIntoView({ block: "nearest" });
        return wrong("Store or cancel the answer that you are writing first.");
      }
      const typed = writing ? form.elements.text.value : "";
      open({ ...about(row), verdict, marks: [], request }, { fracture: verdict === "disagree" ? opposite : "", text: typed });
    }
    form.elements.text.focus();
  }

  async function submit(older) {
    if (!writing) return;
    document.dispatchEvent(new CustomEvent("osteon:mark-take")); // a box that was moved by keys, and is seen on the film
    if (marking) return wrong("A box is begun on the film: draw it, or press Enter there to take it as it is, or Escape to give it up.");
    const { request, ...said } = writing;
    for (const name of FIELDS) if (form.elements[name].value) said[name] = form.elements[name].value;
    if (older) said.older_bundle = true;
    if (said.verdict === "supplement" && !said.marks.length && !FIELDS.some((name) => said[name])) {
      return wrong("A supplement says something: write a word, choose what is missing, or mark where.");
    }
    const row = rows.find((one) => isAbout(said, one));
    if (await store(said, request)) {
      close();
      row?.querySelector(`[data-verdict=${said.verdict}]`).focus();
      moveOn();
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(false);
  });
  form.addEventListener("input", () => {
    if (writing) writing.request = crypto.randomUUID(); // other words are another request
    keep();
  });
  form.addEventListener("keydown", (event) => {
    event.stopPropagation(); // letters are text here, not the page's keys
    if (event.key === "Escape") close();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(false);
  });
  part("cancel").addEventListener("click", close);
  part("older").addEventListener("click", () => submit(true));
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

  // -- done -------------------------------------------------------------------------------------------------------

  const requests = { done: crypto.randomUUID(), reopened: crypto.randomUUID() };

  async function whole(verdict) {
    if (writing) {
      form.scrollIntoView({ block: "nearest" });
      return wrong("Store or cancel the answer that you are writing first.");
    }
    const seen = verdict === "done" ? { images: Number(panel.dataset.images) } : {};
    const answers = await store({ verdict, ...seen }, requests[verdict]);
    if (!answers) return;
    for (const each of Object.keys(requests)) requests[each] = crypto.randomUUID();
    if (verdict === "done") location.assign(answers.next_study ?? `/${sessionStorage.getItem("worklist") ?? ""}`);
  }

  part("done").addEventListener("click", () => whole("done"));
  part("reopen").addEventListener("click", () => whole("reopened"));

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
  }

  // Agreeing takes two strokes, a and Enter: one alone, hit by mistake, would write for good.
  const reach = (button) => {
    button?.scrollIntoView({ block: "nearest" });
    button?.focus();
  };
  const focus = (verdict) => reach(current?.querySelector(`[data-verdict=${verdict}]`));
  const KEYS = {
    a: () => focus("agree"), d: () => current && press(current, "disagree"), s: () => current && press(current, "supplement"),
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

  addEventListener("hashchange", followHash);
  start();
})();
