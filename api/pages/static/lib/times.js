// Writes <time> elements, which come in UTC, in the reader's own zone, and keeps ages true.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const weekday = new Intl.DateTimeFormat("en", { weekday: "short" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23",
});
const second = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });

/**
 * How long something lasts, in the words of `span` in shared/domain/worklist.py.
 * @param {number} milliseconds
 * @returns {string} such as "2 h 05 min"
 */
export function age(milliseconds) {
  const minutes = Math.floor(milliseconds / 60000);
  const hours = Math.floor(minutes / 60);
  if (minutes < 1) return "< 1 min";
  if (minutes < 60) return `${minutes} min`;
  if (hours < 24) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/**
 * How far a time is, in one unit.
 * @param {number} milliseconds from now; less than 0 once it is over
 * @returns {string} such as "in 6 min" or "12 min over"
 */
export function till(milliseconds) {
  const minutes = Math.floor(Math.abs(milliseconds) / 60000);
  const hours = Math.floor(minutes / 60);
  const far = hours >= 48 ? `${Math.floor(hours / 24)} d` : hours ? `${hours} h` : minutes ? `${minutes} min` : "< 1 min";
  return milliseconds < 0 ? `${far} over` : `in ${far}`;
}

/**
 * How late a study is, as a page grades it.
 * @param {number} milliseconds from now until it is due
 * @returns {"" | "just" | "long"} over by less than ten minutes, or by more
 */
export function lateness(milliseconds) {
  if (milliseconds >= 0) return "";
  return milliseconds > -600000 ? "just" : "long";
}

/** Hours and minutes in the reader's zone. @param {Date} at */
export const toMinute = (at) => clock.format(at);

/** Hours, minutes and seconds in the reader's zone. @param {Date} at */
export const toSecond = (at) => second.format(at);

/**
 * A time as a page shows it.
 * @param {string | undefined} form "age"; "till", how far it is; "due", with the weekday within six days; "full", with its date;
 *   "second", with seconds; or else the clock. The last two have the date of another day
 * @param {Date} at
 * @param {Date} now
 */
export function inWords(form, at, now) {
  if (form === "age") return age(now.getTime() - at.getTime());
  if (form === "till") return till(at.getTime() - now.getTime());
  if (form === "full") return full.format(at);
  const near = Math.abs(at.getTime() - now.getTime()) < 6 * 86400000 && at.toDateString() !== now.toDateString();
  if (form === "due" && near) return `${weekday.format(at)} ${clock.format(at)}`;
  const exact = form === "second" ? second : clock;
  return at.toDateString() === now.toDateString() ? exact.format(at) : `${day.format(at)}, ${exact.format(at)}`;
}

/** Write all times below `root` again. @param {ParentNode} root */
export function showTimes(root) {
  const now = new Date();
  for (const element of root.querySelectorAll("time")) {
    if (element.dataset.form === undefined) continue;
    const at = new Date(element.dateTime);
    element.textContent = inWords(element.dataset.form, at, now);
    element.title = full.format(at);
    if (element.dataset.form === "till") element.dataset.late = lateness(at.getTime() - now.getTime());
  }
}

/** Where the page's foot says that times are in UTC, they are from now on in the reader's zone, and the foot says that. */
export function startTimes() {
  const zone = document.getElementById("zone");
  if (!zone) return;
  showTimes(document);
  zone.textContent = `Times are in your zone, ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`;
}
