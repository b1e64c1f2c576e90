// Shows notices in this browser, if somebody asked for it, while a page is open. A notice names no patient: it may stand
// on a screen that is locked.

const EVERY_MS = 30000;
const SEEN = 200; // ids that are remembered
const SINGLE = 3; // more than these become one
const BEGUN_BY = /** @type {Record<string, string>} */ ({ "queue.on-time": "queue.late", "delivery.well": "delivery.failed" });

/** @typedef {{id: string, event: string, words: string, path: string}} Notice of GET /api/v1/notices */
/** @typedef {{events: string[], from: number, to: number, zone: string}} Wanted what somebody wants to see, and in which hours not */
/** @typedef {{wanted: Wanted, after: string, seen: string[]}} Kept after: the server's time, from which on it is asked */
/** @typedef {{title: string, body: string, path: string, tag: string}} Shown */

/** Whether it is quiet in an hour of the day: from the first one on, until before the last one. @param {number} from @param {number} to @param {number} hour */
export const isQuiet = (from, to, hour) => (from <= to ? from <= hour && hour < to : hour >= from || hour < to);

/** The hour of the day, 0 to 23, where the site is. @param {string} zone @param {Date} at */
export const hourIn = (zone, at) =>
  Number(new Intl.DateTimeFormat("en-GB", { hour: "2-digit", hourCycle: "h23", timeZone: zone }).format(at));

/**
 * What is shown of what the server listed: nothing twice, nothing in quiet hours, and not many things one by one.
 * @param {Notice[]} notices the latest first
 * @param {Kept} kept
 * @param {number} hour
 * @returns {{shown: Shown[], seen: string[]}} seen: to be kept
 */
export function toShow(notices, kept, hour) {
  const known = new Set(kept.seen);
  const fresh = notices.filter((one) => !known.has(one.id));
  const seen = [...fresh.map((one) => one.id), ...kept.seen].slice(0, SEEN);
  const { events, from, to } = kept.wanted;
  if (isQuiet(from, to, hour)) return { shown: [], seen };
  const wanted = fresh.filter((one) => events.includes(BEGUN_BY[one.event] ?? one.event)).reverse();
  if (wanted.length > SINGLE) {
    return { shown: [{ title: "Osteon", body: `${wanted.length} notices`, path: "/notices", tag: "osteon-notices" }], seen };
  }
  return { shown: wanted.map((one) => ({ title: "Osteon", body: one.words, path: one.path, tag: `osteon-${one.id}` })), seen };
}

/** Where the choice of whoever is logged in is kept, in this browser; null where nobody is. */
function place() {
  const key = document.querySelector("form.who")?.getAttribute("data-key");
  return key ? `osteon.notices.${key}` : null;
}

/** What is kept; null: nothing is to be shown. @returns {Kept | null} */
export function kept() {
  const where = place();
  try {
    return where ? JSON.parse(localStorage.getItem(where) ?? "null") : null;
  } catch {
    return null; // storage is off, or holds something else
  }
}

/** @param {Kept | null} value null: show nothing from now on */
export function keep(value) {
  const where = place();
  if (!where) return;
  try {
    if (value) localStorage.setItem(where, JSON.stringify(value));
    else localStorage.removeItem(where);
  } catch {
    // a browser that keeps nothing shows nothing
  }
}

/** Whether this browser lets pages show something. */
export const allowed = () => typeof Notification !== "undefined" && Notification.permission === "granted";

/** @param {Shown} one */
export function show({ title, body, path, tag }) {
  try {
    const made = new Notification(title, { body, tag, icon: document.querySelector('link[rel="icon"]')?.getAttribute("href") ?? "" });
    made.addEventListener("click", () => {
      window.focus();
      location.assign(path);
    });
  } catch {
    // browsers of phones want a service worker for that
  }
}

/** Ask what has happened, and show it: nothing of what was there when somebody asked for it. */
export async function ask() {
  const before = kept();
  if (!before || !allowed()) return;
  const query = before.after ? `?after=${encodeURIComponent(before.after)}` : "";
  const response = await fetch(`/api/v1/notices${query}`, {
    headers: { Accept: "application/json" }, signal: AbortSignal.timeout(10000),
  }).catch(() => null);
  if (!response?.ok) return;
  /** @type {{at: string, notices: Notice[]}} */
  const { at, notices } = await response.json();
  const now = kept(); // another page may have shown it meanwhile
  if (!now) return;
  const { shown, seen } = toShow(notices, now, hourIn(now.wanted.zone, new Date()));
  keep({ ...now, after: at, seen });
  if (before.after) shown.forEach(show);
}

/** From now on. */
export function watchNotices() {
  setInterval(() => void ask(), EVERY_MS);
  void ask();
}
