// What the parts of a page tell each other, by events of the document: no part needs to know who listens.

/** @typedef {{image: number, frame: number}} Place numbers of an image and of its frame, both from 1 */
/** @typedef {Place & {x: number, y: number, width: number, height: number, label?: string}} Mark a box, 0..1 of the radiograph */

/**
 * The events, and what comes with each:
 *
 * - `osteon:open`: this radiograph is to be shown. `osteon:shown`: it is shown; image 0: none that takes answers.
 * - `osteon:mark-start`: the next drag draws a box instead of moving the radiograph; with keys, arrows move it, shift resizes it and
 *   Enter takes it. `osteon:marking`: a box is begun. `osteon:mark`: it was drawn. `osteon:mark-cancel`: the reader gave it up.
 * - `osteon:mark-take`: take a box that the reader moved; one that was only begun stays. `osteon:mark-end`: give a begun box up.
 * - `osteon:marks`: show these in place of those shown before.
 * - `osteon:priors`: thumbs of prior examinations were added to the page.
 * - `osteon:feedback`: an entry was added to the study's history.
 * - `osteon:revised`: the number of revised findings has changed.
 *
 * @typedef {{
 *   "osteon:open": Place, "osteon:shown": Place, "osteon:mark-start": undefined, "osteon:marking": undefined, "osteon:mark": Mark,
 *   "osteon:mark-cancel": undefined, "osteon:mark-take": undefined, "osteon:mark-end": undefined, "osteon:marks": {marks: Mark[]},
 *   "osteon:feedback": undefined, "osteon:priors": undefined, "osteon:revised": undefined,
 * }} PageEvents
 */

/**
 * Tell the other parts of the page.
 * @template {keyof PageEvents} N
 * @param {N} name
 * @param {PageEvents[N] extends undefined ? [] : [PageEvents[N]]} detail
 */
export function announce(name, ...detail) {
  document.dispatchEvent(new CustomEvent(name, { detail: detail[0] }));
}

/**
 * Act whenever another part of the page tells this.
 * @template {keyof PageEvents} N
 * @param {N} name
 * @param {(detail: PageEvents[N]) => void} act
 */
export function hear(name, act) {
  document.addEventListener(name, (event) => act(/** @type {CustomEvent} */ (event).detail));
}
