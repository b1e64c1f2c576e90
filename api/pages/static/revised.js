"use strict";
// Keeps the count of revised findings in the navigation live, and lets a study's page say that one was seen.

(() => {
  const EVERY_MS = 60000; // where nothing tells of changes
  const count = document.getElementById("revised-count");
  let source = null;
  let live = false;

  function show({ unseen, at_least: atLeast }) {
    if (Number(count.dataset.count) === unseen) return;
    count.dataset.count = unseen;
    count.firstChild.data = atLeast ? `${unseen - 1}+` : String(unseen);
    count.hidden = !unseen;
    document.dispatchEvent(new CustomEvent("osteon:revised"));
  }

  async function ask() {
    const answer = await fetch("/alerts/count", { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(10000) }).catch(() => null);
    if (answer?.ok) show(await answer.json());
  }

  // A browser opens few connections to one server: a page that nobody looks at holds none.
  function begin() {
    if (source) return;
    source = new EventSource("/worklist/events");
    source.addEventListener("open", () => (live = true)); // what changed in between is told first
    source.addEventListener("revised", ask);
    source.addEventListener("error", () => {
      live = false;
      if (source?.readyState === EventSource.CLOSED) source = null; // refused: the next round tries again
    });
  }

  function end() {
    source?.close();
    source = null;
    live = false;
  }

  // the worklist has a stream of its own, and renews the count with its rows
  if (count && !document.getElementById("list")) {
    if (!document.hidden) begin();
    setInterval(() => {
      if (document.hidden) return;
      if (!live) ask();
      begin();
    }, EVERY_MS);
    document.addEventListener("visibilitychange", () => (document.hidden ? end() : (ask(), begin())));
    addEventListener("pagehide", end);
    addEventListener("pageshow", (event) => event.persisted && (ask(), begin()));
  }

  for (const banner of document.querySelectorAll(".revision")) {
    banner.querySelector("form").addEventListener("submit", async (event) => {
      event.preventDefault(); // the page stays: films, drafts and the claim with it
      const button = banner.querySelector("button");
      button.disabled = true;
      const answer = await fetch(`/alerts/${banner.dataset.alert}/seen`, { method: "POST", headers: { Accept: "application/json" } }).catch(() => null);
      const words = document.createElement("p");
      words.className = "revision-seen";
      words.setAttribute("role", "status");
      words.tabIndex = -1;
      if (answer?.ok || answer?.status === 409) {
        const title = banner.querySelector("h2").textContent;
        words.textContent = answer.ok ? `${title}. You have seen it; that is kept with who and when.` : `${title}. Somebody has seen it already.`;
        banner.replaceWith(words);
        words.focus();
        document.dispatchEvent(new CustomEvent("osteon:answered")); // it stands in the history, too
        return ask();
      }
      button.disabled = false;
      words.setAttribute("role", "alert");
      words.textContent = "Not stored: the server does not answer. Try again.";
      banner.querySelector(".wrong")?.remove();
      words.className = "wrong";
      banner.append(words);
    });
  }
})();
