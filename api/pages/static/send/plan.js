// Which files go in which request, what a receipt says of them, and how it is written down. Nothing here knows the page.

/** @typedef {{path: string, size: number, file: Blob}} Item a file to send; its path names patients, perhaps: it stays here */
/** @typedef {"waiting" | "sending" | "stored" | "duplicate" | "rejected" | "kept" | "held" | "skipped" | "unsent"} Fate */
/** @typedef {{file: string, outcome: string, text?: string | null, study_id?: string | null}} FileReceipt a line of the API's */

const FILES = 50;
const BYTES = 64 * 1024 * 1024;
const ARCHIVE = /\.zip$/i; // holds many files: it goes alone, so that its lines are its own

/**
 * Files in requests: few enough that a lost connection costs little, many enough that small ones are quick.
 * @param {Item[]} items
 * @param {{maxFiles: number, maxBytes: number}} limits of the API
 * @returns {{requests: Item[][], tooLarge: Item[]}}
 */
export function planned(items, { maxFiles, maxBytes }) {
  const files = Math.min(FILES, maxFiles);
  const bytes = Math.min(BYTES, maxBytes);
  /** @type {Item[][]} */
  const requests = [];
  /** @type {Item[]} */
  const tooLarge = [];
  /** @type {Item[]} */
  let group = [];
  let size = 0;
  const close = () => {
    if (group.length) requests.push(group);
    group = [];
    size = 0;
  };
  for (const item of items) {
    if (item.size > maxBytes) tooLarge.push(item);
    else if (ARCHIVE.test(item.path)) requests.push([item]);
    else {
      if (group.length === files || (group.length && size + item.size > bytes)) close();
      group.push(item);
      size += item.size;
    }
  }
  close();
  return { requests, tooLarge };
}

const HELD = ["conflict", "correction", "comparing"];

/** What an outcome of the API means for a person. @param {string} outcome @returns {Fate} */
export function fateOf(outcome) {
  if (outcome === "stored" || outcome === "duplicate" || outcome === "rejected" || outcome === "kept" || outcome === "skipped") return outcome;
  return HELD.includes(outcome) ? "held" : "rejected";
}

/** @type {Record<Fate, string>} */
export const WORDS = {
  waiting: "waits", sending: "is being sent", stored: "stored", duplicate: "was here before", rejected: "rejected",
  kept: "kept, not analysed", held: "stored; an administrator decides", skipped: "left out, no image", unsent: "not sent",
};

/**
 * What a receipt says of each file of a request; of an archive, a line for each member. Files are sent under their numbers.
 * @param {Item[]} items
 * @param {FileReceipt[]} lines
 * @returns {{index: number, path: string, fate: Fate, text: string, study: string}[]} index: of the item
 */
export function read(items, lines) {
  return lines.map((line) => {
    const [number, ...members] = line.file.split("!");
    const path = items[Number(number)]?.path ?? "";
    return {
      index: Number(number), path: members.length ? `${path} › ${members.join("!")}` : path, fate: fateOf(line.outcome),
      text: line.text ?? "", study: line.study_id ?? "",
    };
  });
}

/** How far each file of a request has got, 0 to 1, when so many bytes of it are sent. @param {Item[]} items @param {number} sent */
export function shares(items, sent) {
  let left = sent;
  return items.map(({ size }) => {
    const share = size ? Math.max(0, Math.min(1, left / size)) : left > 0 ? 1 : 0;
    left -= size;
    return share;
  });
}

/**
 * How long to wait before a request is sent again: as the server asks, else twice as long each time.
 * @param {number} tries so far, at least 1
 * @param {string | null} retryAfter seconds, as the server says
 * @returns {number} milliseconds
 */
export function pause(tries, retryAfter) {
  const asked = retryAfter !== null && /^\d+$/.test(retryAfter) ? Number(retryAfter) : null;
  return 1000 * Math.min(120, asked ?? Math.min(30, 2 ** (tries - 1)));
}

/** What becomes of a request, by its status. @param {number} status 0: none came @returns {"read" | "again" | "halve" | "login" | "refused"} */
export function consequence(status) {
  if (status === 200 || status === 202 || status === 409) return "read";
  if (status === 0 || status === 408 || status === 429 || status >= 500) return "again";
  if (status === 413) return "halve";
  return status === 401 ? "login" : "refused";
}

/** A cell of a table that other programs open: in quotation marks, and never a formula. @param {string} text */
const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

/** The receipt as CSV. @param {{path: string, fate: Fate, text: string, study: string}[]} lines */
export const csv = (lines) =>
  [["file", "outcome", "why", "study"], ...lines.map((one) => [one.path, one.fate, one.text, one.study])]
    .map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

/** @param {number} bytes */
export function inWords(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  for (; value >= 1000 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}
