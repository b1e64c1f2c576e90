// What the operations page says to people, and what it asks of the server.

import { byId, one } from "../lib/dom.js";

/** Say what was done, or what went wrong; nothing of either clears what was said. @param {string} [words] @param {string} [trouble] */
export function say(words = "", trouble = "") {
  const said = byId("said");
  const box = byId("wrong");
  said.hidden = !words;
  said.textContent = words;
  box.hidden = !trouble;
  one("span", box).textContent = trouble;
}

/** What went wrong, said on the page. @param {string} words */
export const complain = (words) => say("", words);

/**
 * What the server answers, as a value; null, and its words told, when it refuses.
 * @param {string} url
 * @param {RequestInit} [options]
 * @param {(words: string) => void} [tell]
 */
export async function call(url, options = {}, tell = complain) {
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
