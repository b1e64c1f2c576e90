"use strict";
// Claims the study while its page is open, says plainly if somebody else reads it, and gives it back at the end.

(() => {
  const EVERY_MS = 10000; // a takeover is seen this late at most
  const panel = document.getElementById("claim");
  const words = document.getElementById("claim-words");
  const dialog = document.getElementById("claim-held");
  const url = `/studies/${panel.dataset.study}/claim`;
  // gives the claim back; the page's own, so that one that is left before its first answer can do so too
  const token = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let mine = false;
  let left = false; // given back, once
  let looking = false; // somebody else has it, and the reader knows
  let overdue = 0; // rounds without an answer

  function show(state, text) {
    panel.dataset.state = state;
    words.setAttribute("role", ["look", "unknown", "shared"].includes(state) ? "alert" : "status");
    if (words.textContent !== text) words.textContent = text; // said aloud only when it changes
  }

  const clock = (at) => new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(new Date(at));

  function reader(held) {
    if (held.same_key) return `Another login of your own key, ${held.name},`;
    return held.name;
  }

  function lost(held) {
    const before = mine; // until now
    mine = false;
    const since = `since ${clock(held.since)}`;
    if (looking && !before) return show("look", `${reader(held)} reads this study, ${since}. You only look: it is not yours.`);
    looking = false;
    show("held", `${reader(held)} reads this study, ${since}.`);
    document.getElementById("claim-title").textContent = before ? "This study was taken over" : "Somebody else reads this study";
    document.getElementById("claim-take").textContent = before ? "Take it back" : "Take it over";
    document.getElementById("claim-look").textContent = before ? "Go on, only looking" : "Only look";
    if (!dialog.open) dialog.showModal();
    document.getElementById("claim-who").textContent = before
      ? `${reader(held)} took this study over at ${clock(held.since)} and reads it now.`
      : `${reader(held)} has been reading it ${since}.`;
  }

  async function claim(takeOver = false) {
    let answer, body, held;
    try {
      const query = new URLSearchParams({ token, ...(takeOver && { take_over: true }) });
      answer = await fetch(`${url}?${query}`, { method: "POST", signal: AbortSignal.timeout(8000) });
      body = await answer.json();
    } catch {
      body = null;
    }
    held = body && (answer.ok || answer.status === 409) ? body : null;
    if (answer?.status === 401) {
      left = true; // logged out meanwhile
      return location.reload();
    }
    if (held === null) {
      overdue += 1;
      if (dialog.open || (mine && overdue < 6)) return; // the claim outlasts this
      const why = typeof body?.detail === "string" ? body.detail.replace(/\.$/, "") : answer && !answer.ok ? `the server answers ${answer.status}` : "the server does not answer";
      return show("unknown", `Nobody can tell whether somebody else reads this study: ${why}. Trying on.`);
    }
    overdue = 0;
    if (!held.mine) return lost(held);
    const first = !mine;
    mine = true;
    looking = false;
    if (dialog.open) dialog.close();
    const yours = `You read this study, since ${clock(held.since)}; others see that.`;
    if (held.own_since) show("shared", `${yours} Another login of your key, ${held.name}, had it open since ${clock(held.own_since)}, and is told.`);
    else if (first || panel.dataset.state !== "shared") show("mine", yours);
  }

  function release() {
    if (left) return;
    left = true;
    fetch(`${url}/${token}`, { method: "DELETE", keepalive: true }).catch(() => {}); // of somebody else's, nothing changes
    mine = false;
  }

  document.getElementById("claim-take").addEventListener("click", () => claim(true));
  document.getElementById("claim-look").addEventListener("click", () => {
    looking = true;
    dialog.close();
    show("look", `${words.textContent} You only look: it is not yours.`);
  });
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // a way out must be chosen
  // j, h and the like of the page below must not act while it is covered
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  document.getElementById("claim-leave").href = `/${sessionStorage.getItem("worklist") ?? ""}`;

  // while only looking, asking must not take the study once it is free: the reader said that it is not theirs
  const round = () => (looking ? watch() : claim());

  async function watch() {
    const held = await fetch(url, { signal: AbortSignal.timeout(8000) }).then((answer) => (answer.ok ? answer.json() : null)).catch(() => null);
    if (!held || !looking) return;
    if (held.name) lost(held);
    else show("look", "Nobody reads this study any more. Open it again to read it.");
  }

  claim();
  setInterval(round, EVERY_MS);
  document.addEventListener("visibilitychange", () => document.hidden || round());
  addEventListener("pagehide", release);
  document.querySelector("form.who")?.addEventListener("submit", release); // afterwards the login is gone
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    left = false;
    claim();
  });
})();
