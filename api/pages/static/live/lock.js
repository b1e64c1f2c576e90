// Locks the study while its page is open, says plainly if somebody else reads it, and gives it back at the end.

import { byId, data, make } from "../lib/dom.js";
import { toMinute } from "../lib/times.js";

const EVERY_MS = 10000; // a takeover is seen this late at most
const PATIENCE_MS = 8000;

/**
 * @typedef {object} LockHolder who has the study, as the API answers
 * @property {boolean} mine
 * @property {string} name
 * @property {string} since
 * @property {boolean} same_key another login of the reader's own key
 * @property {string | null} own_since since when that other login has had it open
 */

/** Whom to name. @param {Pick<LockHolder, "same_key" | "name">} held */
export const readerOf = (held) => (held.same_key ? `Another login of your own key, ${held.name},` : held.name);

/** Lock the study of this page, and go on doing so. */
export function startLock() {
  const panel = byId("lock");
  const words = byId("lock-words");
  const dialog = byId("lock-held", HTMLDialogElement);
  const url = `/api/v1/studies/${data(panel, "study")}/lock`;
  // gives the lock back; the page's own, so that one that is left before its first response can do so too
  const token = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let mine = false;
  let left = false; // given back, once
  let looking = false; // somebody else has it, and the reader knows
  let overdue = 0; // rounds without a response

  /** A name is set apart: letters that run from right to left turn nothing round it. @param {HTMLElement} place @param {string} text @param {string} name */
  function write(place, text, name) {
    if (place.textContent === text) return; // said aloud only when it changes
    const [before, ...after] = name ? text.split(name) : [text];
    place.replaceChildren(before, ...(after.length ? [make("bdi", { textContent: name }), after.join(name)] : []));
  }

  /** @param {"mine" | "shared" | "held" | "look" | "unknown"} state @param {string} text @param {string} [name] */
  function show(state, text, name = "") {
    panel.dataset.state = state;
    words.setAttribute("role", ["look", "unknown", "shared"].includes(state) ? "alert" : "status");
    write(words, text, name);
  }

  /** @param {string} at */
  const clock = (at) => toMinute(new Date(at));

  /** @param {LockHolder} held */
  function lost(held) {
    const before = mine; // until now
    mine = false;
    const since = `since ${clock(held.since)}`;
    if (looking && !before) return show("look", `${readerOf(held)} reads this study, ${since}. You only look: it is not yours.`, held.name);
    looking = false;
    show("held", `${readerOf(held)} reads this study, ${since}.`, held.name);
    byId("lock-title").textContent = before ? "This study was taken over" : "Somebody else reads this study";
    byId("lock-take").textContent = before ? "Take it back" : "Take it over";
    byId("lock-look").textContent = before ? "Go on, only looking" : "Only look";
    if (!dialog.open) dialog.showModal();
    const told = before
      ? `${readerOf(held)} took this study over at ${clock(held.since)} and reads it now.`
      : `${readerOf(held)} has been reading it ${since}.`;
    write(byId("lock-who"), told, held.name);
  }

  async function acquire(takeOver = false) {
    let response, body;
    try {
      const query = new URLSearchParams({ token, ...(takeOver && { take_over: "true" }) });
      response = await fetch(`${url}?${query}`, { method: "POST", signal: AbortSignal.timeout(PATIENCE_MS) });
      body = await response.json();
    } catch {
      body = null;
    }
    if (response?.status === 401) {
      left = true; // logged out meanwhile
      return location.reload();
    }
    /** @type {LockHolder | null} */
    const held = body && (response?.ok || response?.status === 409) ? body : null;
    if (held === null) {
      overdue += 1;
      if (dialog.open || (mine && overdue < 6)) return; // the lock outlasts this
      const why = typeof body?.detail === "string" ? body.detail.replace(/\.$/, "") : response && !response.ok ? `the server answers ${response.status}` : "the server does not answer";
      return show("unknown", `Nobody can tell whether somebody else reads this study: ${why}. Trying on.`);
    }
    overdue = 0;
    if (!held.mine) return lost(held);
    const first = !mine;
    mine = true;
    looking = false;
    if (dialog.open) dialog.close();
    const yours = `You read this study, since ${clock(held.since)}; others see that.`;
    if (held.own_since) show("shared", `${yours} Another login of your key, ${held.name}, had it open since ${clock(held.own_since)}, and is told.`, held.name);
    else if (first || panel.dataset.state !== "shared") show("mine", yours);
  }

  function release() {
    if (left) return;
    left = true;
    fetch(`${url}/${token}`, { method: "DELETE", keepalive: true }).catch(() => {}); // of somebody else's, nothing changes
    mine = false;
  }

  byId("lock-take").addEventListener("click", () => acquire(true));
  byId("lock-look").addEventListener("click", () => {
    looking = true;
    dialog.close();
    show("look", `${words.textContent} You only look: it is not yours.`);
  });
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // a way out must be chosen
  // j, h and the like of the page below must not act while it is covered
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  byId("lock-leave", HTMLAnchorElement).href = `/${sessionStorage.getItem("worklist") ?? ""}`;

  // while only looking, asking must not take the study once it is free: the reader said that it is not theirs
  const round = () => (looking ? watch() : acquire());

  async function watch() {
    /** @type {LockHolder | null} */
    const held = await fetch(url, { signal: AbortSignal.timeout(PATIENCE_MS) }).then((response) => (response.ok ? response.json() : null)).catch(() => null);
    if (!held || !looking) return;
    if (held.name) lost(held);
    else show("look", "Nobody reads this study any more. Open it again to read it.");
  }

  acquire();
  setInterval(round, EVERY_MS);
  document.addEventListener("visibilitychange", () => document.hidden || round());
  addEventListener("pagehide", release);
  document.querySelector("form.who")?.addEventListener("submit", release); // afterwards the login is gone
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    left = false;
    acquire();
  });
}
