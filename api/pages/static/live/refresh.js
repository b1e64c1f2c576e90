// Keeps an open page fresh: by the server's stream of changes where there is one, else by asking at intervals. A page that
// nobody looks at neither asks nor holds a connection, for a browser opens few to one server.

import { checkLogin } from "../lib/session.js";
import { showTimes, toSecond } from "../lib/times.js";

const PATIENCE_MS = 10000;
const STREAM = "/api/v1/worklist/events";

/**
 * How long to wait before the next try of something that did not work, or is not there yet.
 * @param {number} tries how many there were, at least 1
 * @param {{first: number, factor: number, most: number}} pace first and longest wait in milliseconds
 */
export const backOff = (tries, { first, factor, most }) => Math.min(most, first * factor ** (tries - 1));

/**
 * What a page does when its clock strikes: nothing while nobody looks at it; only its ages, while the server tells it of
 * changes and its last response is not too old; else it asks, and connects again if the server refused its stream.
 * @param {{hidden: boolean, live: boolean, age: number, liveEvery: number}} page milliseconds
 * @returns {"nothing" | "ages" | "ask"}
 */
export function due({ hidden, live, age, liveEvery }) {
  if (hidden) return "nothing";
  return live && age < liveEvery ? "ages" : "ask";
}

/**
 * `ask`, but never twice at a time: a response that another one overtook would show the past. Who calls while it runs has it
 * run once more afterwards, since that response may be from before the change.
 * @param {() => Promise<void>} ask
 * @returns {() => Promise<void>} done when nothing is left to ask
 */
export function oneAtATime(ask) {
  /** @type {Promise<void> | null} */
  let running = null;
  let again = false;
  const run = async () => {
    do {
      again = false;
      await ask();
    } while (again);
  };
  return () => {
    again = running !== null;
    running ??= run().finally(() => (running = null));
    return running;
  };
}

/**
 * @typedef {{kind: "changed", page: Document} | {kind: "unchanged" | "logged-off"} | {kind: "trouble", words: string}} PageResponse
 */

/**
 * Ask for this very page. With the version on the screen the server answers 304 unless something changed, and then nobody's
 * identity is read again: only what was not shown before is a new entry in the audit.
 * @param {string} version
 * @returns {Promise<PageResponse>}
 */
export async function askForPage(version) {
  let response, text;
  try {
    response = await fetch(location.href, {
      headers: { Accept: "text/html", "If-None-Match": version }, signal: AbortSignal.timeout(PATIENCE_MS),
    });
    text = response.status === 200 ? await response.text() : "";
  } catch {
    return { kind: "trouble", words: "the server does not answer" };
  }
  if (response.redirected) return { kind: "logged-off" };
  if (response.status === 304) return { kind: "unchanged" };
  if (!response.ok) return { kind: "trouble", words: `the server answers ${response.status}` };
  return { kind: "changed", page: new DOMParser().parseFromString(text, "text/html") };
}

/**
 * How fresh the page is, in words.
 * @param {{live: boolean, lastGood: Date, trouble: string}} page
 */
export function freshness({ live, lastGood, trouble }) {
  if (trouble) return `Not updated since ${toSecond(lastGood)}: ${trouble}; trying on`;
  return `${live ? "Live, updated" : "Updated"} ${toSecond(lastGood)}.`;
}

/** The server's stream of changes, or none. */
class Stream {
  live = false; // whether the server tells of changes
  /** @type {EventSource | null} */
  source = null;

  /** @param {Record<string, () => void>} acts from the name of an event to what is done then; "open" is one, too */
  constructor(acts) {
    this.acts = acts;
  }

  begin() {
    if (this.source) return;
    const source = new EventSource(STREAM);
    this.source = source;
    source.addEventListener("open", () => (this.live = true));
    for (const [name, act] of Object.entries(this.acts)) source.addEventListener(name, act);
    source.addEventListener("error", () => {
      this.live = false; // the browser connects again by itself
      if (source.readyState !== EventSource.CLOSED || this.source !== source) return;
      this.source = null; // refused: the next round tries again
      checkLogin();
    });
  }

  end() {
    this.source?.close();
    this.source = null;
    this.live = false;
  }
}

/**
 * Ask at intervals, and at once where the server tells of a change or somebody looks at the page again.
 * @param {object} how
 * @param {() => unknown} how.ask
 * @param {number} how.every milliseconds between two rounds
 * @param {Record<string, (ask: () => unknown) => void>} [how.events] of the server's stream; without them there is none
 * @param {number} [how.liveEvery] milliseconds after which a page asks though the server told of no change
 * @param {() => number} [how.age] milliseconds since the last good response
 * @param {() => void} [how.ages] written again in a round that does not ask
 * @param {() => boolean} [how.busy] whether the rounds pause
 */
export function keepFresh({ ask, every, events, liveEvery = Infinity, age = () => 0, ages, busy = () => false }) {
  const stream = events && new Stream(Object.fromEntries(Object.entries(events).map(([name, act]) => [name, () => act(ask)])));
  const again = () => {
    ask();
    stream?.begin();
  };
  const round = () => {
    const now = due({ hidden: document.hidden, live: stream?.live ?? false, age: age(), liveEvery });
    if (now === "ages") ages?.();
    if (now === "ask" && !busy()) again();
  };
  setInterval(round, every);
  document.addEventListener("visibilitychange", () => (document.hidden ? stream?.end() : again()));
  addEventListener("pagehide", () => stream?.end());
  addEventListener("pageshow", (event) => event.persisted && again());
  if (!document.hidden) stream?.begin();
  return { round, live: () => stream?.live ?? false };
}

/**
 * A page whose parts are replaced in place when they change, and whose foot says how fresh it is.
 * @param {object} page
 * @param {HTMLElement} page.foot
 * @param {() => string} page.version of what is on the screen
 * @param {(fresh: Document) => void} page.replace
 * @param {number} page.every milliseconds between two rounds
 * @param {number} [page.liveEvery] as of `keepFresh`
 * @param {() => boolean} [page.busy] as of `keepFresh`
 * @param {string[]} [page.events] of the server's stream, at which the page asks
 */
export function freshPage({ foot, version, replace, every, liveEvery, busy, events }) {
  const state = { lastGood: new Date() };

  /** @param {string} trouble */
  function tell(trouble) {
    foot.textContent = freshness({ ...state, live: rounds.live(), trouble });
    foot.classList.toggle("stale", trouble !== "");
  }

  const refresh = oneAtATime(async () => {
    const response = await askForPage(version());
    if (response.kind === "logged-off") return location.reload();
    if (response.kind === "trouble") return tell(response.words);
    if (response.kind === "changed") replace(response.page);
    showTimes(document);
    state.lastGood = new Date();
    tell("");
  });

  const rounds = keepFresh({
    ask: refresh, every, liveEvery, busy,
    events: events && Object.fromEntries(events.map((name) => [name, (ask) => void ask()])),
    age: () => Date.now() - state.lastGood.getTime(), ages: () => showTimes(document),
  });
  tell("");
  return { refresh, round: rounds.round, state };
}
