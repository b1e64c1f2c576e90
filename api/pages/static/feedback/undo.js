// The offer to take a "done" back: it is made on the page that follows, and stands there for ten seconds.

import { around, make } from "../lib/dom.js";
import { UNDO_KEYS, commandOf } from "../lib/keys.js";

const KEPT = "done"; // in this tab's storage: no patient, only our ids
export const STANDS_MS = 10000;
const TICK_MS = 100;
const PATIENCE_MS = 20000;

/**
 * @typedef {object} Done what may be taken back
 * @property {string} study
 * @property {string} entry the id of the "done" in the study's history
 * @property {string} key whose it is
 * @property {number} agreed how many findings it agreed with
 */
/** @typedef {Done & {request: string, left: number}} Offer with the id of its request, and the milliseconds that are left */

/** The time that an offer still stands, in milliseconds. It stops while somebody is not to be hurried. */
export class Countdown {
  /** @param {number} rest @param {number} now of a clock that never goes back, in milliseconds */
  constructor(rest, now) {
    this.rest = rest;
    this.last = now;
  }

  /** @param {number} now @param {boolean} held whether the time since the last call does not count */
  tick(now, held) {
    if (!held) this.rest -= now - this.last;
    this.last = now;
    return this.rest;
  }

  /** From now on at least so long. @param {number} rest */
  atLeast(rest) {
    this.rest = Math.max(this.rest, rest);
  }

  get seconds() {
    return Math.max(0, Math.ceil(this.rest / 1000));
  }
}

/**
 * What is said of an offer.
 * @param {number} agreed
 */
export function offerWords(agreed) {
  const more = agreed ? `, and you agreed with ${agreed} finding${agreed > 1 ? "s" : ""}` : "";
  return `The study is marked as read${more}.`;
}

/** Have the next page offer to take this back. @param {Done} done */
export function offerUndo(done) {
  keep({ ...done, request: crypto.randomUUID(), left: STANDS_MS });
}

/** @param {Offer} offer */
const keep = (offer) => sessionStorage.setItem(KEPT, JSON.stringify(offer));
/** @returns {Offer | null} */
const kept = () => JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
const forget = () => sessionStorage.removeItem(KEPT);

/** @param {Offer} offered */
function show(offered) {
  const words = make("p");
  words.setAttribute("role", "status");
  const left = make("span", { className: "left" });
  left.setAttribute("aria-hidden", "true"); // a clock that is read aloud every second helps nobody
  const undo = make("button", { className: "button small", type: "button", id: "undo" }, "Undo ", make("kbd", {}, "z"));
  undo.setAttribute("aria-keyshortcuts", "z");
  const toast = make("section", { className: "undo" }, words, undo, left);
  toast.setAttribute("aria-label", "The study before");
  document.body.append(toast);
  setTimeout(() => (words.textContent = offerWords(offered.agreed))); // said aloud once it is there

  const countdown = new Countdown(offered.left, performance.now());
  let running = false; // the request
  const timer = setInterval(() => {
    // who points at it, or has it in focus, is not hurried
    const rest = countdown.tick(performance.now(), running || document.hidden || toast.matches(":hover, :focus-within"));
    left.textContent = `${countdown.seconds} s`;
    if (rest <= 0) end();
    else if (!running && kept()?.entry === offered.entry) keep({ ...offered, left: rest }); // a page that is loaded again goes on
  }, TICK_MS);

  function end() {
    clearInterval(timer);
    document.removeEventListener("keydown", byKey);
    toast.remove();
    if (kept()?.entry === offered.entry) forget(); // the next "done" may have been offered already
  }

  /** What came of it, until the reader has read it. @param {string} text @param {string} [url] */
  function say(text, url) {
    clearInterval(timer);
    document.removeEventListener("keydown", byKey);
    forget();
    words.textContent = text;
    const close = make("button", { className: "button small ghost", type: "button" }, "Close");
    close.addEventListener("click", () => toast.remove());
    const held = toast.contains(document.activeElement);
    toast.replaceChildren(words, ...(url ? [make("a", { className: "button small", href: url }, "Open it")] : []), close);
    if (held) close.focus();
  }

  async function takeBack() {
    if (running) return;
    running = true;
    undo.disabled = true;
    let response, body;
    try {
      response = await fetch(`/api/v1/studies/${offered.study}/feedback/${offered.entry}/undo`, {
        method: "POST", headers: { Accept: "application/json", "Idempotency-Key": offered.request }, signal: AbortSignal.timeout(PATIENCE_MS),
      });
      body = await response.json();
    } catch {
      body = null;
    }
    if (response?.ok && body?.reader) {
      const who = body.same_key ? `another login of your own key, ${body.reader},` : body.reader;
      return say(`The study is back on the list, but not yours: ${who} reads it now.`, body.url);
    }
    if (response?.ok && body) {
      end();
      return location.assign(body.url);
    }
    if (response && response.status < 500 && body) return say(`Not undone. ${body.detail}`, `/view/${offered.study}`);
    running = false; // the same request may be sent again: it is written once
    countdown.atLeast(STANDS_MS);
    undo.disabled = false;
    words.textContent = "Not undone: the server does not answer. Try again.";
  }

  /** @param {KeyboardEvent} event */
  function byKey(event) {
    if (!commandOf(UNDO_KEYS, event) || document.querySelector("dialog[open]") || around(event, "input, select, textarea")) return;
    event.preventDefault();
    takeBack();
  }
  undo.addEventListener("click", takeBack);
  document.addEventListener("keydown", byKey);
}

/** Show what the page before offered. */
export function startUndo() {
  const offered = kept();
  const who = document.querySelector("form.who");
  if (offered && who instanceof HTMLElement && offered.key === who.dataset.key) show(offered);
  else if (offered) forget(); // another reader at this workstation
  addEventListener("pageshow", (event) => event.persisted && document.querySelector(".undo")?.remove());
}
