// A question that is asked before something is stored: a dialog whose buttons have one key each.

import { all, byId } from "../lib/dom.js";

/**
 * Escape and the button `back` close it, and the focus returns to where it was.
 * @param {HTMLDialogElement} dialog
 * @param {[id: string, key: string, act: () => void][]} choices a button's id, its key, and what it does
 * @param {HTMLElement} back
 * @returns {() => void} asks it
 */
export function question(dialog, choices, back) {
  let leaving = false; // one stroke, one choice
  const byKey = new Map(choices.map(([id, key]) => [key, byId(id)]));
  for (const [id, , act] of choices) {
    byId(id).addEventListener("click", () => {
      if (leaving) return;
      leaving = true;
      dialog.close();
      act();
    });
  }
  back.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the page below is covered
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.repeat && event.key !== "Tab") return event.preventDefault(); // a key that is still down from before
    const chosen = byKey.get(event.key.toLowerCase());
    if (chosen && !chosen.hidden) {
      event.preventDefault();
      chosen.click();
    } else if (event.key === "Tab") {
      const buttons = all("button", dialog).filter((button) => !button.hidden);
      const at = buttons.findIndex((button) => button === document.activeElement);
      const next = buttons[at + (event.shiftKey ? -1 : 1)] ?? buttons.at(event.shiftKey ? -1 : 0);
      event.preventDefault();
      next?.focus();
    }
  });
  return () => {
    leaving = false;
    dialog.showModal();
    back.focus(); // of all choices the one that changes nothing: a key that is pressed twice chooses no other
  };
}
