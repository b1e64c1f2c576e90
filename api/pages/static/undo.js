"use strict";
// The offer to take a "done" back: it is made on the page that follows, and stands there for ten seconds.

const Undo = (() => {
  const KEPT = "done"; // in this tab's storage: no patient, only our ids
  const STANDS_MS = 10000;

  // offered: {study, entry, key, agreed}; entry: the id of the "done", agreed: how many findings it agreed with
  function offer(offered) {
    sessionStorage.setItem(KEPT, JSON.stringify({ ...offered, request: crypto.randomUUID(), left: STANDS_MS }));
  }

  const kept = () => JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  const forget = () => sessionStorage.removeItem(KEPT);

  function element(name, attributes, text = "") {
    const made = Object.assign(document.createElement(name), attributes);
    if (text) made.textContent = text;
    return made;
  }

  function begin() {
    const offered = kept();
    if (!offered) return;
    if (offered.key !== document.querySelector("form.who")?.dataset.key) return forget(); // another reader at this desk
    const toast = element("section", { className: "undo" });
    toast.setAttribute("aria-label", "The study before");
    const words = element("p", {}, "");
    words.setAttribute("role", "status");
    const left = element("span", { className: "left" });
    left.setAttribute("aria-hidden", "true"); // a clock that is read aloud every second helps nobody
    const undo = element("button", { className: "button small", type: "button", id: "undo" });
    undo.setAttribute("aria-keyshortcuts", "z");
    undo.append("Undo ", element("kbd", {}, "z"));
    toast.append(words, undo, left);
    document.body.append(toast);
    const more = offered.agreed ? `, and you agreed with ${offered.agreed} finding${offered.agreed > 1 ? "s" : ""}` : "";
    setTimeout(() => (words.textContent = `The study is marked as read${more}.`)); // said aloud once it is there

    let rest = offered.left;
    let last = performance.now();
    let running = false; // the request
    const timer = setInterval(() => {
      const now = performance.now();
      // who points at it, or has it in focus, is not hurried
      if (!running && !document.hidden && !toast.matches(":hover, :focus-within")) rest -= now - last;
      last = now;
      left.textContent = `${Math.max(0, Math.ceil(rest / 1000))} s`;
      if (rest <= 0) end();
      else if (!running && kept()?.entry === offered.entry) sessionStorage.setItem(KEPT, JSON.stringify({ ...offered, left: rest })); // a page that is loaded again goes on
    }, 100);

    function end() {
      clearInterval(timer);
      document.removeEventListener("keydown", byKey);
      toast.remove();
      if (kept()?.entry === offered.entry) forget(); // the next "done" may have been offered already
    }

    // What came of it, until the reader has read it.
    function say(text, url = "") {
      clearInterval(timer);
      document.removeEventListener("keydown", byKey);
      forget();
      words.textContent = text;
      const close = element("button", { className: "button small ghost", type: "button" }, "Close");
      close.addEventListener("click", () => toast.remove());
      const held = toast.contains(document.activeElement);
      toast.replaceChildren(words, ...(url ? [element("a", { className: "button small", href: url }, "Open it")] : []), close);
      if (held) close.focus();
    }

    async function takeBack() {
      if (running) return;
      running = true;
      undo.disabled = true;
      let answer, body;
      try {
        answer = await fetch(`/studies/${offered.study}/answers/${offered.entry}/undo`, {
          method: "POST", headers: { Accept: "application/json", "Idempotency-Key": offered.request }, signal: AbortSignal.timeout(20000),
        });
        body = await answer.json();
      } catch {
        body = null;
      }
      if (answer?.ok && body?.reader) {
        const who = body.same_key ? `another login of your own key, ${body.reader},` : body.reader;
        return say(`The study is back on the list, but not yours: ${who} reads it now.`, body.url);
      }
      if (answer?.ok && body) {
        end();
        return location.assign(body.url);
      }
      if (answer && answer.status < 500 && body) return say(`Not undone. ${body.detail}`, `/view/${offered.study}`);
      running = false; // the same request may be sent again: it is written once
      rest = Math.max(rest, STANDS_MS);
      undo.disabled = false;
      words.textContent = "Not undone: the server does not answer. Try again.";
    }

    function byKey(event) {
      if (event.key !== "z" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
      if (document.querySelector("dialog[open]") || event.target.closest("input, select, textarea")) return;
      event.preventDefault();
      takeBack();
    }
    undo.addEventListener("click", takeBack);
    document.addEventListener("keydown", byKey);
  }

  begin();
  addEventListener("pageshow", (event) => event.persisted && document.querySelector(".undo")?.remove());
  return { offer };
})();
