// Menus that stand over the page: they close where somebody acts elsewhere, and by Escape.

/** Close each open menu of the page that `target` is not within. @param {EventTarget | null} target */
function closeOthers(target) {
  for (const menu of document.querySelectorAll("details.account[open]")) {
    if (!(target instanceof Node && menu.contains(target))) menu.removeAttribute("open");
  }
}

/** From now on. */
export function watchMenus() {
  for (const kind of ["pointerdown", "focusin"]) document.addEventListener(kind, (event) => closeOthers(event.target));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.querySelector("details.account[open]");
    closeOthers(null);
    open?.querySelector("summary")?.focus();
  });
}
