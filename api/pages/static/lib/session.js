// Tells the server that somebody uses this page, and leaves it as soon as the login has ended: what a page asks by itself
// keeps no login alive, and nobody is to find a patient on a screen that was left.

const CHECK_EVERY_MS = 60000; // a key may be revoked, or the login ended in another tab
let told = Date.now(); // opening the page counts
let tellEvery = CHECK_EVERY_MS;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

function leave() {
  location.replace(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}

/** @param {"GET" | "POST"} method GET asks, POST says that somebody uses the page */
async function ask(method) {
  const response = await fetch("/active", { method, signal: AbortSignal.timeout(10000) }).catch(() => null);
  if (response?.status === 401) leave();
  return response;
}

/**
 * When a page asks and tells, after it has heard how long its login lasts.
 * @param {number | null | undefined} left seconds until the login ends; nothing where it was not said
 * @returns {{checkIn: number, tellEvery: number | null}} in milliseconds; null: as before
 */
export function pace(left) {
  if (left === null || left === undefined) return { checkIn: CHECK_EVERY_MS, tellEvery: null };
  return { checkIn: Math.min(CHECK_EVERY_MS, left * 1000 + 500), tellEvery: Math.min(CHECK_EVERY_MS, left * 250) };
}

/** Ask whether the login still holds, now and from then on in time; leave the page if it does not. */
export async function checkLogin() {
  clearTimeout(timer);
  const response = await ask("GET");
  /** @type {{left_s?: number | null}} */
  const { left_s: left } = response?.ok ? await response.json().catch(() => ({})) : {};
  const next = pace(left);
  tellEvery = next.tellEvery ?? tellEvery;
  timer = setTimeout(checkLogin, next.checkIn);
}

function used() {
  if (Date.now() - told < tellEvery) return;
  told = Date.now();
  ask("POST");
}

/** From now on. */
export function watchLogin() {
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"]) {
    addEventListener(kind, used, { passive: true, capture: true });
  }
  document.addEventListener("visibilitychange", () => document.hidden || checkLogin());
  addEventListener("pageshow", (event) => event.persisted && checkLogin());
  checkLogin();
}
