// How many panes a stage has, and what is in them.

const MIN_PANE = 280; // CSS pixels of a pane's width: less is too narrow to read
export const MAX_PANES = 4;

/** Panes beside each other. @param {number} panes */
export const columnsOf = (panes) => (panes === 4 ? 2 : panes);

/**
 * How many panes a stage begins with.
 * @param {number} width of the stage in CSS pixels
 * @param {number} images of the study
 */
export function panesAtStart(width, images) {
  let panes = Math.max(1, Math.min(MAX_PANES, images));
  while (panes > 1 && width / columnsOf(panes) < MIN_PANE) panes -= 1;
  return panes;
}

/** The next layout of those that an image each can fill. @param {number} panes @param {number} images */
export const nextLayout = (panes, images) => (panes >= Math.min(MAX_PANES, images) ? 1 : panes + 1);

/**
 * What the panes show after their number has changed: what was there stays, the rest comes in the order in which the study hangs.
 * @template T
 * @param {object} stage
 * @param {number} stage.panes how many there are now
 * @param {T[]} stage.shown what was in them
 * @param {T[]} stage.hung all that there is, in order
 * @param {T} stage.needed what must be among them
 * @returns {T[]} no more than there are panes
 */
export function filled({ panes, shown, hung, needed }) {
  const all = [...new Set([...shown, ...hung])].slice(0, panes);
  if (!all.includes(needed)) all.splice(panes - 1, 1, needed);
  return all;
}
