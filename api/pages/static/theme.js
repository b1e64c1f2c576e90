// The reader's choice of theme. Every page runs this before it is drawn, so that none appears in another theme first: no module, for
// those run later, and no names are left behind. The choice is in a cookie, since logging out empties the browser's other stores.

"use strict";

{
  const YEAR_S = 31536000;
  const root = document.documentElement;

  /** "light" or "dark"; "system" where nothing was chosen. */
  const chosen = () => /(?:^|; )theme=(light|dark)(?:;|$)/.exec(document.cookie)?.[1] ?? "system";

  const apply = () => {
    const theme = chosen();
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    for (const part of document.querySelectorAll("fieldset.theme")) part.removeAttribute("hidden");
    for (const box of document.querySelectorAll('input[name="theme"]')) {
      if (box instanceof HTMLInputElement) box.checked = box.value === theme;
    }
  };

  /** @param {string} theme */
  const keep = (theme) => {
    const age = theme === "system" ? 0 : YEAR_S;
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `theme=${theme}; Path=/; Max-Age=${age}; SameSite=Lax${secure}`;
  };

  apply();
  document.addEventListener("DOMContentLoaded", apply);
  addEventListener("pageshow", apply); // it may come back from the browser's memory, and another page have chosen meanwhile
  document.addEventListener("visibilitychange", apply);
  document.addEventListener("change", (event) => {
    const box = event.target;
    if (!(box instanceof HTMLInputElement) || box.name !== "theme") return;
    keep(box.value);
    apply();
  });
}
