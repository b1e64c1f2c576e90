"use strict";
// Rewrites <time> elements, which come in UTC, in the reader's own zone, and keeps ages true.

const Times = (() => {
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const full = new Intl.DateTimeFormat(undefined, {
    year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23",
  });

  // The same words as `span` in api/pages.py.
  function age(milliseconds) {
    const minutes = Math.floor(milliseconds / 60000);
    const hours = Math.floor(minutes / 60);
    if (minutes < 1) return "< 1 min";
    if (minutes < 60) return `${minutes} min`;
    if (hours < 24) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
    return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  }

  function text(form, at, now) {
    if (form === "age") return age(now - at);
    if (form === "full") return full.format(at);
    return at.toDateString() === now.toDateString() ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
  }

  function show(root) {
    const now = new Date();
    for (const element of root.querySelectorAll("time[data-form]")) {
      const at = new Date(element.dateTime);
      element.textContent = text(element.dataset.form, at, now);
      element.title = full.format(at);
    }
  }

  function second(at) {
    return new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" }).format(at);
  }

  show(document);
  const zone = document.getElementById("zone");
  if (zone) zone.textContent = `Times are in your zone, ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`;
  return { show, second };
})();
