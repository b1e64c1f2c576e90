// Loads what the next studies open with while this one is read, so that the browser has it when they are opened.

import { pause } from "../viewer/load.js";
import { backOff } from "./refresh.js";

const BEGIN_MS = 800; // after this study's own pictures were asked for
const ASK_AGAIN = { first: 500, factor: 2, most: 8000 };
const MAX_TRIES = 6; // a frame that no worker makes meanwhile is asked for when its study is opened

/**
 * @typedef {{preview_url: string, frame_url: string | null}} Picture
 * @typedef {{url: string, pictures: Picture[]}} Upcoming
 */

/**
 * The addresses in the order in which they are wanted: the next study's previews, its frames, then the one after it.
 * @param {Upcoming[]} studies
 * @returns {string[]}
 */
export const addresses = (studies) =>
  studies.flatMap(({ pictures }) => [
    ...pictures.map((picture) => picture.preview_url),
    ...pictures.flatMap((picture) => picture.frame_url ?? []),
  ]);

/**
 * Load one address into the browser's cache; a frame that is being made is asked for again.
 * @param {string} address
 * @param {AbortSignal} signal
 */
async function load(address, signal) {
  for (let tries = 1; tries <= MAX_TRIES; tries++) {
    const response = await fetch(address, { signal, priority: "low" });
    await response.arrayBuffer(); // the cache keeps what was read to its end
    if (response.status !== 202) return;
    await pause(backOff(tries, ASK_AGAIN), signal);
  }
}

/**
 * Load ahead, one address after the other. What cannot be loaded is left: whoever opens the study asks again.
 * @param {string} study that is read now
 */
export async function loadAhead(study) {
  const leaving = new AbortController();
  addEventListener("pagehide", () => leaving.abort(), { once: true });
  const { signal } = leaving;
  await pause(BEGIN_MS, signal);
  try {
    const list = sessionStorage.getItem("worklist"); // the next studies come from the list that the reader came with
    const response = await fetch(`/api/v1/studies/${study}/upcoming${list ? `?${new URLSearchParams({ worklist: list })}` : ""}`, { signal });
    if (!response.ok) return;
    for (const address of addresses(await response.json())) await load(address, signal);
  } catch {
    // the page is left, or the server does not answer
  }
}
