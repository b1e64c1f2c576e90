// What the feedback panel says of entries and findings, in words.

/** @typedef {import("../lib/events.js").Mark} Mark */

/**
 * @typedef {object} Entry one of a study's history, as GET /api/v1/studies/{id}/feedback has it
 * @property {string} id
 * @property {string} verdict agree, disagree, supplement, withdrawn, done, reopened or seen
 * @property {number | null} image
 * @property {number | null} frame
 * @property {string | null} bundle
 * @property {string | null} fracture
 * @property {string | null} region
 * @property {string | null} severity
 * @property {string} text
 * @property {Mark[]} marks
 * @property {string} reader
 * @property {boolean} mine
 * @property {string} answered_at
 * @property {string | null} superseded_by
 */

/** @type {Readonly<Record<string, string>>} */
const VERDICTS = {
  agree: "agrees", disagree: "disagrees", supplement: "adds", withdrawn: "withdraws the feedback", done: "marks the study as read",
  reopened: "reopens the study", seen: "has seen the revised finding",
};

/**
 * The entries that hold: neither superseded nor taken back.
 * @param {Entry[]} entries
 */
export const standing = (entries) => entries.filter((entry) => !entry.superseded_by && entry.verdict !== "withdrawn");

/** How many findings have no feedback of the reader's. @param {number} open @param {number} all */
export function stateWords(open, all) {
  if (!all) return "There is no finding; you can still mark the study as read.";
  return open ? `${open} of ${all} without your feedback.` : "All findings have your feedback.";
}

/** Who said what, beside a finding. @param {Pick<Entry, "mine" | "reader" | "verdict" | "text" | "marks">} entry */
export function inShort(entry) {
  const whom = entry.mine ? "you" : entry.reader;
  return `${whom}: ${entry.verdict}${entry.text || entry.marks.length ? ", with more in the history" : ""}`;
}

/** What the reader did, after their name. @param {Entry} entry */
export function sentence(entry) {
  const where = entry.image ? ` on image ${entry.image}${frameWords(entry.frame)} (${entry.bundle})` : entry.bundle ? ` of ${entry.bundle}` : "";
  const seen = [
    entry.fracture && `fracture: ${entry.fracture}`, entry.region, entry.severity && `extent ${entry.severity}`,
    entry.marks.length && marksWords(entry.marks.length),
  ].filter(Boolean);
  return `${VERDICTS[entry.verdict]}${where}${seen.length ? `: ${seen.join(", ")}` : ""}`;
}

/** Nothing for the only frame of most images. @param {number | null} frame */
export const frameWords = (frame) => (frame && frame > 1 ? `, frame ${frame}` : "");

/** @param {number} count */
export const marksWords = (count) => (count ? `${count} mark${count > 1 ? "s" : ""}` : "no mark yet");

/** @param {number} count */
export const entriesWords = (count) => `${count} entr${count === 1 ? "y" : "ies"}`;

/** What disagreeing most often means; the reader may say otherwise afterwards. @param {string | undefined} assessment @returns {"yes" | "no" | undefined} */
export function opposite(assessment) {
  if (assessment === "positive" || assessment === "unclear") return "no";
  return assessment === "negative" ? "yes" : undefined;
}

/** @typedef {{gravity: number, probability: number}} Weight of a finding */

/** Which finding stands first: the graver, then the likelier one. @param {Weight} a @param {Weight} b */
export const graver = (a, b) => b.gravity - a.gravity || b.probability - a.probability;
