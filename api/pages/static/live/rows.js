// How a list on the screen differs from a fresh one: the row that somebody points at, or has chosen, must not move away.

/**
 * @typedef {object} Changes
 * @property {string[]} added ids of fresh rows that are not on the screen
 * @property {string[]} gone ids of rows that are on the screen and not fresh
 * @property {boolean} moved whether rows that stay have another order
 */

/**
 * Compare two lists of rows.
 * @param {string[]} shown ids of the rows on the screen, from above
 * @param {string[]} fresh ids of the fresh rows
 * @returns {Changes}
 */
export function changes(shown, fresh) {
  const here = new Set(shown);
  const there = new Set(fresh);
  const before = shown.filter((id) => there.has(id));
  const after = fresh.filter((id) => here.has(id));
  return {
    added: fresh.filter((id) => !here.has(id)),
    gone: shown.filter((id) => !there.has(id)),
    moved: before.some((id, place) => id !== after[place]),
  };
}

/**
 * What waits to be shown, in words; nothing if the screen is as it should be.
 * @param {Changes} found
 */
export function waitingWords({ added, gone, moved }) {
  if (added.length) return `${added.length} new: show`;
  return gone.length || moved ? "The list has changed: show" : "";
}
