// A secret that is shown once, and copied from there.

import { around, byId, one } from "../lib/dom.js";
import { say } from "./talk.js";

/**
 * A secret, which the page has until it is hidden or loaded again.
 * @param {string} id of its box
 * @param {{name: string, secret: string}} value
 */
export function showSecret(id, value) {
  const box = byId(id);
  one("b", box).textContent = value.name;
  one("code", box).textContent = value.secret;
  box.hidden = false;
  box.focus();
}

/** Let the buttons beside secrets copy and hide them. */
export function useSecrets() {
  document.addEventListener("click", async (event) => {
    const button = around(event, ".secret button");
    const box = button?.closest(".secret");
    if (!button || !(box instanceof HTMLElement)) return;
    const code = one("code", box);
    if (button.classList.contains("seen")) {
      box.hidden = true;
      code.textContent = "";
      one("h2[tabindex]", box.closest("section") ?? document).focus();
      return;
    }
    try {
      await navigator.clipboard.writeText(code.textContent ?? "");
      say("Copied.");
    } catch {
      getSelection()?.selectAllChildren(code);
      say("Select and copy it yourself: this browser does not let pages do so.");
    }
  });
}
