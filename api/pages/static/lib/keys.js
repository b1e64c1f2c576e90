// The keys of the pages: which stroke means which command. Pages with several maps at once keep them apart.

/** @typedef {Readonly<Record<string, string>>} KeyMap from `KeyboardEvent.key` to the name of a command */

/** @satisfies {KeyMap} */
export const WORKLIST_KEYS = /** @type {const} */ ({
  j: "next", k: "previous", c: "open", a: "agree", d: "disagree", n: "fresh", "/": "search", "?": "help",
});

/** @satisfies {KeyMap} */
export const VIEWER_KEYS = /** @type {const} */ ({
  "+": "larger", "=": "larger", "-": "smaller", 0: "fit", 9: "whole", w: "windowing", i: "invert", h: "overlay",
  v: "bare", t: "outline", b: "shutter", r: "reset", ",": "frame-before", ".": "frame-after", "[": "image-before", "]": "image-after",
  o: "rotate", x: "flip", l: "length", g: "angle", Backspace: "unmeasure", q: "magnify", y: "layout", k: "link", f: "full", p: "prior",
  1: "pane-1", 2: "pane-2", 3: "pane-3", 4: "pane-4",
});
export const VIEWER_REPEATS = "+-=,.[]";

/** @satisfies {KeyMap} */
export const STUDY_KEYS = /** @type {const} */ ({ "?": "help", u: "back" });

/** @satisfies {KeyMap} */
export const FEEDBACK_KEYS = /** @type {const} */ ({ a: "agree", d: "disagree", s: "supplement", n: "done", Enter: "finish" });

/** @satisfies {KeyMap} */
export const UNDO_KEYS = /** @type {const} */ ({ z: "undo" });

/**
 * The command that a stroke means, or null. A stroke with Ctrl, Alt or the system's key is the browser's.
 * @template {KeyMap} M
 * @param {M} map
 * @param {Pick<KeyboardEvent, "key" | "ctrlKey" | "metaKey" | "altKey" | "repeat">} stroke
 * @param {string} [repeats] the keys that act again while they are held down
 * @returns {M[keyof M] | null}
 */
export function commandOf(map, stroke, repeats = "") {
  if (stroke.ctrlKey || stroke.metaKey || stroke.altKey) return null;
  if (stroke.repeat && !repeats.includes(stroke.key)) return null;
  return Object.hasOwn(map, stroke.key) ? /** @type {M[keyof M]} */ (map[stroke.key]) : null;
}
