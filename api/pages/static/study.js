"use strict";
// The study page: heatmap, inversion, zoom, frames; and a page that waits for an analysis looks again by itself.

const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const remembered = (name, otherwise) => sessionStorage.getItem(name) ?? otherwise;
const remember = (name, value) => sessionStorage.setItem(name, value);

// -- heatmap and inversion ------------------------------------------------------------------------------------

function showHeatmap(on) {
  byId("overlay").setAttribute("aria-pressed", on);
  root.classList.toggle("no-heatmap", !on);
  remember("heatmap", on);
}

function setOpacity(value) {
  byId("opacity").value = value;
  byId("opacity-value").textContent = `${value} %`;
  root.style.setProperty("--overlay", value / 100);
  remember("opacity", value);
}

function invert(on) {
  byId("invert").setAttribute("aria-pressed", on);
  root.classList.toggle("inverted", on);
}

const pressed = (id) => byId(id).getAttribute("aria-pressed") === "true";
byId("overlay").addEventListener("click", () => showHeatmap(!pressed("overlay")));
byId("invert").addEventListener("click", () => invert(!pressed("invert")));
byId("opacity").addEventListener("input", (event) => setOpacity(event.target.value));

// -- zoom -----------------------------------------------------------------------------------------------------

const STEPS = [1, 1.5, 2, 3, 4];
let zoom = 1;

function layOut() {
  for (const film of document.querySelectorAll(".film")) {
    const stage = film.parentElement;
    const { rows, columns } = film.dataset;
    const fit = Math.min(stage.clientWidth, (stage.clientHeight * columns) / rows);
    film.style.setProperty("--film", `${Math.floor(fit * zoom)}px`);
    stage.classList.toggle("zoomed", zoom > 1);
  }
  byId("zoom").textContent = `${zoom * 100} %`;
}

function zoomTo(next) {
  const centres = [...document.querySelectorAll(".stage")].map((stage) => [
    stage,
    (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth,
    (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight,
  ]);
  zoom = next;
  layOut();
  for (const [stage, x, y] of centres) {
    stage.scrollTo(x * stage.scrollWidth - stage.clientWidth / 2, y * stage.scrollHeight - stage.clientHeight / 2);
  }
}

const step = (by) => zoomTo(STEPS[Math.min(STEPS.length - 1, Math.max(0, STEPS.indexOf(zoom) + by))]);
byId("smaller").addEventListener("click", () => step(-1));
byId("larger").addEventListener("click", () => step(1));
byId("fit").addEventListener("click", () => zoomTo(1));
addEventListener("resize", layOut);

for (const stage of document.querySelectorAll(".stage")) {
  let grip = null;
  stage.addEventListener("pointerdown", (event) => {
    if (zoom === 1 || event.pointerType !== "mouse" || event.button !== 0) return;
    grip = { x: event.clientX + stage.scrollLeft, y: event.clientY + stage.scrollTop };
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (grip) stage.scrollTo(grip.x - event.clientX, grip.y - event.clientY);
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (grip = null));
}

// -- frames ---------------------------------------------------------------------------------------------------

for (const viewer of document.querySelectorAll(".viewer")) {
  const [preview, heatmap] = [viewer.querySelector(".preview"), viewer.querySelector(".heatmap")];
  const unloadable = viewer.querySelector(".unloadable");
  const check = () => {
    unloadable.hidden = [preview, heatmap].every((image) => !image.complete || image.naturalWidth > 0);
  };
  for (const image of [preview, heatmap]) {
    image.addEventListener("error", check);
    image.addEventListener("load", check);
    image.draggable = false;
  }
  check();

  const slider = viewer.querySelector(".frames input");
  if (!slider) continue;
  const findings = [...viewer.querySelectorAll(".answer")];
  const output = viewer.querySelector(".frames output");
  const frames = output.textContent.split(" of ")[1];
  const choose = () => {
    const chosen = findings[slider.value - 1];
    for (const finding of findings) finding.hidden = finding !== chosen;
    output.textContent = `frame ${chosen.dataset.frame} of ${frames}`;
    preview.src = chosen.dataset.preview;
    heatmap.src = chosen.dataset.heatmap;
  };
  slider.addEventListener("input", choose);
  for (const button of viewer.querySelectorAll(".frames button")) {
    button.addEventListener("click", () => {
      slider.value = Number(slider.value) + Number(button.dataset.step);
      choose();
    });
  }
}

// -- keys, start, refreshing ----------------------------------------------------------------------------------

const KEYS = {
  h: () => showHeatmap(!pressed("overlay")),
  i: () => invert(!pressed("invert")),
  "+": () => step(1),
  "-": () => step(-1),
  0: () => zoomTo(1),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  KEYS[event.key]?.();
});

showHeatmap(remembered("heatmap", "true") === "true");
setOpacity(remembered("opacity", "45"));
layOut();
byId("back").search = remembered("worklist", ""); // back to the filters the reader came with

const main = byId("main");
setInterval(() => Times.show(document), 30000);
if (main.dataset.refresh) {
  setInterval(async () => {
    if (document.hidden) return;
    const headers = { Accept: "text/html", "If-None-Match": main.dataset.version };
    const answer = await fetch(location.href, { headers }).catch(() => null);
    if (answer?.ok) location.reload();
  }, main.dataset.refresh * 1000);
}
