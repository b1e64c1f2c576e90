// The radiographs of a study and of its priors: which panes there are, what is in them, and how it is shown.

import { all, around, byId, data, drawing, svg } from "../lib/dom.js";
import { announce, hear } from "../lib/events.js";
import { VIEWER_KEYS, VIEWER_REPEATS, commandOf } from "../lib/keys.js";
import { UPRIGHT, flipped, turned } from "./geometry.js";
import { carriedWindow, windowAt } from "./gray.js";
import { PALETTE } from "./heat.js";
import { filled, nextLayout, panesAtStart } from "./layout.js";
import { calibrationWords, measureWords, readMeasures, writeMeasures } from "./measures.js";
import { Loaded, Pane } from "./pane.js";
import { shapeOf } from "./load.js";
import { ARROWS, ZOOM_STEP } from "./viewport.js";

/** @typedef {import("./contours.js").Point} Point */
/** @typedef {import("./measures.js").Kind} Kind */
/** @typedef {import("./pane.js").Evidence} Evidence */
/** @typedef {import("./viewport.js").Act} Act */
/** @typedef {import("./viewport.js").Change} Change */

const PAN_STEP = 60; // screen pixels for an arrow key
/** @type {Readonly<Partial<Record<Change, string>>>} */
const TOLD = {
  marking: "Draw a box on the radiograph. With keys: arrows move it, shift and arrows resize it, Enter takes it, Escape gives up.",
  measuring: "Drag on the radiograph. With keys: arrows move a point, space goes to the next one, Enter takes it, Escape gives up.",
  marked: "Box drawn", "mark given up": "Box given up", "measure given up": "Measuring given up",
};

/** @param {string} name @param {string} otherwise */
const remembered = (name, otherwise) => sessionStorage.getItem(name) ?? otherwise;
/** @param {string} name @param {string | number | boolean} value */
const remember = (name, value) => sessionStorage.setItem(name, String(value));
/** @param {string} id of a button */
const pressed = (id) => byId(id).getAttribute("aria-pressed") === "true";
/** @param {string} id of a button @param {boolean} on */
const press = (id, on) => byId(id).setAttribute("aria-pressed", String(on));
/** @param {string} id */
const slider = (id) => byId(id, HTMLInputElement);

/**
 * A probability in words, never rounded to none.
 * @param {number} value
 */
export const probability = (value) => (value > 0 && value < 0.01 ? `${(value * 100).toFixed(1)} %` : `${Math.round(value * 100)} %`);

/** Whether a key is for somebody who writes or chooses, or for a dialog, and not for the page; a slider and a box to tick need no letters. @param {Event} event */
export const elsewhere = (event) =>
  Boolean(document.querySelector("dialog[open]") ?? around(event, "input:not([type=range], [type=checkbox]), textarea, select, [contenteditable]"));

/** Show the radiographs of this page. */
export function openRadiographs() {
  const root = byId("viewer");
  const stage = byId("stage");
  const study = data(root, "study");
  const preset = byId("preset", HTMLSelectElement);
  const findings = all(".finding");
  const thumbs = all(".thumb:not([data-prior])");
  const hung = [...thumbs].sort((a, b) => Number(a.dataset.hang ?? 0) - Number(b.dataset.hang ?? 0));
  const loaded = new Loaded();
  /** @type {Set<HTMLElement>} findings that the model abstains on, and whose heatmap was asked for */
  const unveiled = new Set();
  const linesAtStart = root.dataset.overlay === "outlines"; // as the site chose
  const overlay = { heat: false, lines: false, wider: false, warm: false, bare: false, shutter: true, opacity: 0.45, threshold: 0 };
  const MEASURES = `measures ${document.getElementById("feedback")?.dataset.key ?? ""} ${study}`; // another reader at this workstation never gets them
  let measures = readMeasures(sessionStorage.getItem(MEASURES));
  let linked = remembered("linked", "true") === "true";
  /** @type {Pane[]} as they stand on the stage */
  const panes = [];
  /** @type {Pane} which the tools act on */
  let active;
  /** @type {Pane} the last one with a radiograph of this study */
  let own;
  let begun = false; // the first radiograph was opened

  // -- words --

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let saying;
  /** @param {string} words */
  function say(words) {
    clearTimeout(saying);
    saying = setTimeout(() => (byId("said").textContent = words), 250);
  }

  /** @param {Pane} pane @param {Change} what */
  function changed(pane, what) {
    if (pane !== active) return;
    tellActive();
    const { centre, width } = pane.units();
    const words = TOLD[what];
    if (words) say(words);
    if (what === "window") say(`Window centre ${centre}, width ${width}`);
    if (what === "view") say(pane.root.querySelector(".where")?.textContent?.split("·")[1] ?? "");
  }

  /** The sliders, and what the buttons say, are of the active pane. */
  function tellActive() {
    const { viewport, source, preset: name } = active;
    preset.value = name;
    press("invert", viewport.inverted);
    stage.dataset.shown = active.root.dataset.shown ?? "";
    if (active.root.dataset.shown === undefined) delete stage.dataset.shown;
    stage.classList.toggle("marking", viewport.box !== null);
    press("length", viewport.measuring?.kind === "length");
    press("angle", viewport.measuring?.kind === "angle");
    byId("unmeasure").hidden = !viewport.measures.length;
    if (source) {
      const { field } = shapeOf(source);
      byId("shutter").hidden = field.width === 1 && field.height === 1 && field.turn === 0;
    }
    const { radiograph, window: [black, white] } = viewport;
    if (!radiograph) return;
    /** @param {number} value */
    const steps = (value) => String(Math.round((1000 * value) / radiograph.range));
    slider("centre").value = steps((black + white) / 2 - radiograph.least);
    slider("width").value = steps(Math.abs(white - black));
    for (const [id, value] of Object.entries(active.units())) {
      byId(`${id}-value`).textContent = String(value);
      byId(id).setAttribute("aria-valuetext", String(value));
    }
  }

  /** @param {HTMLElement} thumb */
  const viewOf = (thumb) => thumb.dataset.view ?? "";

  /** @param {Pane} pane */
  function name(pane) {
    const { thumb, source } = pane;
    if (!thumb || !source) return;
    const [view, { image, frame }] = [viewOf(thumb), source.dataset];
    if (pane.prior) {
      const words = `prior, ${thumb.dataset.prior}${view ? ` · ${view}` : ""}`;
      pane.name(words, `Radiograph of a ${words}. It takes no answers and no marks.`);
      pane.root.setAttribute("aria-label", `Radiograph, ${words}. Press question mark for its keys.`);
      return;
    }
    const mine = `image ${image}${thumbs.length > 1 ? ` of ${thumbs.length}` : ""}`;
    const count = framesOf(thumb).length;
    pane.name(`${view || `Image ${image}`}${count > 1 ? ` · frame ${frame} of ${count}` : ""}`, `Radiograph, ${mine}${view ? `, ${view}` : ""}, frame ${frame}. The model says: ${source.dataset.words}.`);
    pane.root.setAttribute("aria-label", `Radiograph, ${mine}${view ? `, ${view}` : ""}. Press question mark for its keys.`);
  }

  // -- panes --

  const hooks = {
    act, changed, say,
    measured: takeMeasure,
    /** @param {Pane} pane */
    displayed(pane) {
      document.getElementById("still")?.remove();
      drawMeasures(pane);
      if (pane === active) tellActive();
    },
    /** @param {Pane} pane */
    evident(pane) {
      dress(pane);
      if (pane === active) tellDrawn();
    },
  };

  function addPane() {
    const pane = new Pane({ template: byId("pane", HTMLTemplateElement), study, full: "full" in root.dataset, loaded, hooks });
    stage.append(pane.root);
    for (const kind of ["pointerdown", "focusin"]) pane.root.addEventListener(kind, () => activate(pane), { capture: true }); // before it acts
    pane.viewport.marks = panes[0]?.viewport.marks ?? [];
    pane.viewport.windowing = pressed("windowing");
    pane.root.classList.toggle("windowing", pressed("windowing"));
    pane.viewport.magnifying = pressed("magnify");
    panes.push(pane);
    return pane;
  }

  /** @param {HTMLElement} thumb */
  const paneOf = (thumb) => panes.find((pane) => pane.thumb === thumb);

  /** What describes a thumb's radiograph. @param {HTMLElement} thumb @param {string | number | null | undefined} frame */
  function sourceOf(thumb, frame) {
    if ("prior" in thumb.dataset) return thumb;
    return findings.find((finding) => finding.dataset.image === thumb.dataset.image && finding.dataset.frame === String(frame));
  }

  /** @param {Pane} pane @param {HTMLElement} thumb @param {string | number | null | undefined} [frame] */
  function put(pane, thumb, frame = thumb.dataset.frame) {
    const source = sourceOf(thumb, frame);
    if (!source || source === pane.source) return;
    if ("prior" in thumb.dataset) pane.viewport.endMark(false); // a prior takes no marks
    if (source !== thumb) thumb.dataset.frame = String(frame);
    pane.open(thumb, source);
    name(pane);
    dress(pane);
  }

  /**
   * As many panes as there are thumbs, with these radiographs in them.
   * @param {HTMLElement[]} wanted
   * @param {HTMLElement} first which of them is to be active
   */
  function arrange(wanted, first) {
    const focused = stage.contains(document.activeElement);
    while (panes.length > wanted.length) panes.pop()?.close();
    while (panes.length < wanted.length) addPane();
    stage.dataset.panes = String(panes.length);
    const [at, lead] = [wanted.indexOf(first), own?.thumb];
    put(panes[at], first); // what the reader looks at is loaded first
    wanted.forEach((thumb, i) => put(panes[i], thumb));
    own = panes.find((pane) => !pane.prior && pane.thumb === lead) ?? panes.find((pane) => !pane.prior) ?? panes[at];
    tellLinked();
    byId("layout").hidden = thumbs.length < 2 && panes.length < 2;
    activate(panes[at], true);
    if (focused) active.root.focus({ preventScroll: true });
  }

  /** @param {HTMLElement} thumb */
  const hangs = (thumb) => ("prior" in thumb.dataset ? Infinity : hung.indexOf(thumb));

  /** @param {number} count */
  function layOut(count) {
    const shown = panes.flatMap((pane) => pane.thumb ?? []);
    const needed = own?.thumb ?? first;
    const wanted = filled({ panes: count, shown: [needed, ...shown.filter((thumb) => thumb !== needed)], hung, needed });
    const lead = active?.thumb && wanted.includes(active.thumb) ? active.thumb : needed;
    arrange(wanted.sort((a, b) => hangs(a) - hangs(b)), lead);
  }

  const wide = () => panesAtStart(stage.clientWidth, thumbs.length);
  const chosen = () => Math.min(Number(remembered("layout", "0")) || wide(), thumbs.length);

  /** Tools act on it, and the rail speaks of it. @param {Pane} pane @param {boolean} [anew] it shows something else than before */
  function activate(pane, anew = false) {
    if (pane === active && !anew) return;
    active?.root.classList.remove("active");
    const before = active;
    active = pane;
    if (before && before !== pane) before.viewport.endMeasure(false);
    if (before && before !== pane && !pane.prior && before.viewport.box && pane.viewport.radiograph) {
      before.viewport.dropMark(); // a box that is begun goes along, as it does to another radiograph in one pane
      pane.viewport.beginMark();
    }
    if (!pane.prior) own = pane;
    if (pane.root.dataset.shown) performance.mark("picture", { detail: pane.root.dataset.shown }); // what was chosen is there already
    pane.root.classList.add("active");
    tellThumbs();
    tellActive();
    if (!pane.prior) showRail(pane);
    else say(`Prior of ${pane.thumb?.dataset.prior}. It takes no answers.`);
    tellPlace();
    tellDrawn();
  }

  function tellThumbs() {
    for (const thumb of all(".thumb")) {
      thumb.setAttribute("aria-pressed", String(thumb === active.thumb));
      thumb.classList.toggle("shown", Boolean(paneOf(thumb)));
    }
  }

  /** The words of the radiograph that is in the active pane. @param {Pane} pane */
  function showRail({ thumb, source }) {
    if (!thumb || !source) return;
    const { image, frame } = source.dataset;
    for (const section of all("#findings > .image")) section.hidden = section.dataset.image !== image;
    for (const finding of findings) finding.hidden = finding !== source;
    const elsewhereBefore = root.dataset.image !== image || root.dataset.frame !== frame;
    Object.assign(root.dataset, { image, frame }); // for who listens too late
    if (begun && elsewhereBefore) history.replaceState(null, "", `#image=${image}&frame=${frame}`); // what came with the address stays at first
    begun = true;
    offerFrames();
    const mine = `image ${image}${thumbs.length > 1 ? ` of ${thumbs.length}` : ""}`;
    say(`${mine}${framesOf(thumb).length > 1 ? `, frame ${frame}` : ""}: ${source.dataset.words}`);
  }

  /** Keys answer the radiograph that is shown, beside its words: none over a prior, and none where the stage has the screen. */
  function tellPlace() {
    const silent = active.prior || document.body.classList.contains("full");
    announce("osteon:shown", silent || !active.source ? { image: 0, frame: 0 } : { image: Number(active.source.dataset.image), frame: Number(active.source.dataset.frame) });
  }

  /** @param {HTMLElement} thumb @param {string | number | null | undefined} [frame] */
  function open(thumb, frame = thumb.dataset.frame) {
    const pane = paneOf(thumb) ?? active;
    const source = sourceOf(thumb, frame);
    if (!source || (pane === active && source === pane.source)) return;
    const before = pane.source;
    put(pane, thumb, frame);
    activate(pane, pane.source !== before);
  }

  /** The radiographs move together, or each by itself. */
  function tellLinked() {
    press("link", linked);
    byId("link").hidden = panes.length < 2;
    for (const pane of panes) pane.root.classList.toggle("linked", linked && panes.length > 1);
  }

  // -- moving, one pane or all that are linked --

  /** @param {Pane} pane */
  const others = (pane) => (linked ? panes.filter((other) => other !== pane && other.viewport.radiograph) : []);
  /** @param {Pane} pane */
  const together = (pane) => [pane, ...others(pane)];

  /** @param {Pane} pane @param {Act} what */
  function act(pane, what) {
    const { viewport } = pane;
    if (!viewport.radiograph) return;
    if ("fit" in what) for (const { viewport: one } of together(pane)) one.fit();
    if ("pan" in what) for (const { viewport: one } of together(pane)) one.pan(...what.pan);
    if ("window" in what) {
      viewport.dragWindow(...what.window);
      passWindow(pane);
    }
    if ("zoom" in what) zoom(pane, viewport.view.scale * what.zoom, what.x, what.y);
    if ("scale" in what) zoom(pane, what.scale);
  }

  /** The others follow by millimetres where both files have a spacing, else by how large they are fitted. @param {Pane} pane @param {number} scale @param {number} [x] @param {number} [y] of its stage */
  function zoom(pane, scale, x = pane.viewport.middle[0], y = pane.viewport.middle[1]) {
    const { viewport } = pane;
    viewport.zoomTo(scale, x, y);
    for (const { viewport: other } of others(pane)) {
      const [mine, theirs] = [viewport.shown.calibration, other.shown.calibration];
      const ratio = mine && theirs ? theirs.mm / mine.mm : other.fitScale / viewport.fitScale;
      other.zoomTo(viewport.view.scale * ratio, (x / viewport.middle[0]) * other.middle[0], (y / viewport.middle[1]) * other.middle[1]);
    }
  }

  /** The others' windows stand to the windows that their files came with as this one's does to its own. @param {Pane} pane */
  function passWindow(pane) {
    const { window, radiograph } = pane.viewport;
    if (!radiograph) return;
    for (const other of others(pane)) {
      other.viewport.setWindow(carriedWindow(window, radiograph.window, other.viewport.shown.window));
      other.changed("window");
    }
  }

  // -- the overlay: the reader leads --

  /** Whether the reader asked for a pane's heatmap; that of an abstention is asked for by itself. @param {Pane} pane */
  const wantsHeat = (pane) => (pane.source && pane.abstains ? unveiled.has(pane.source) : overlay.heat);
  /** @param {Evidence} evidence */
  const outlinesOf = ({ outlines, wider }) => (overlay.wider ? [...wider, ...outlines] : outlines);

  /** @param {Pane} pane */
  function dress(pane) {
    const { viewport, evidence } = pane;
    viewport.showHeat = wantsHeat(pane) || overlay.warm;
    viewport.showLines = overlay.lines;
    viewport.bare = overlay.bare;
    viewport.shutter = overlay.shutter;
    viewport.opacity = overlay.opacity;
    viewport.outlines = evidence ? outlinesOf(evidence) : [];
    evidence?.heat.colour(overlay.threshold * evidence.heat.full);
    viewport.paint();
  }

  function redraw() {
    panes.forEach(dress);
    tellDrawn();
  }

  /** What is drawn in the active pane. */
  function tellDrawn() {
    const { evidence, source, prior } = active;
    press("overlay", wantsHeat(active));
    press("outline", overlay.lines);
    const words = byId("drawn");
    const least = overlay.threshold * (evidence?.heat.full ?? 1);
    byId("threshold-value").textContent = overlay.threshold > 0 ? `≥ ${probability(least)}` : "all";
    byId("threshold").setAttribute("aria-valuetext", byId("threshold-value").textContent ?? "");
    if (prior) words.textContent = "Nothing is drawn on a prior.";
    else if (active.evidenceFailed) words.textContent = "The heatmap could not be loaded. Load the page again.";
    else if (!evidence) words.textContent = "";
    else if (active.abstains) {
      const heatmap = source && unveiled.has(source) ? "" : " Its heatmap is hidden until you ask for it (hold h).";
      words.textContent = `No outline is drawn: the model abstains. Silence is not normal.${heatmap}`;
    } else tellOutlines(evidence);
    if (evidence) byId("heat-most").textContent = `${evidence.heat.full < 1 ? "≥ " : ""}${probability(evidence.heat.full)}`;
  }

  /** @param {Evidence} evidence */
  function tellOutlines(evidence) {
    /** @param {number} count */
    const areas = (count) => (count === 0 ? "none here" : count === 1 ? "1 area" : `${count} areas`);
    const outlines = outlinesOf(evidence);
    const words = byId("drawn");
    words.replaceChildren(overlay.lines ? "" : "Outlines are off (t). ", outlines.length ? "" : "A negative image has no outline.");
    for (const { name: level, lines } of outlines) {
      const sample = svg("svg", { class: "sample", viewBox: "0 0 40 10", width: 40, height: 10, "aria-hidden": true });
      sample.append(svg("path", { class: `outline ${level}`, d: "M2 5H38" }));
      const meaning = level === "sensitive" ? "dotted: alone enough for “unclear”" : "solid: alone enough for “positive”";
      const told = document.createElement("span");
      told.append(sample, `${meaning}, score ${level === "sensitive" ? 3 : 7} (${areas(lines.length)})`);
      words.append(told, " ");
    }
  }

  /** @param {boolean} on */
  function setHeat(on) {
    if (active.source && active.abstains) unveiled[on ? "add" : "delete"](active.source);
    else {
      overlay.heat = on;
      remember("heatmap", on);
    }
    redraw();
  }

  /** @param {boolean} on */
  function setLines(on) {
    overlay.lines = on;
    remember("outline", on);
    redraw();
  }

  /** While a key is held. @param {"warm" | "bare"} what @param {boolean} on */
  function hold(what, on) {
    if (overlay[what] === on) return;
    overlay[what] = on;
    panes.forEach(dress);
  }

  /** @param {boolean} on */
  function setShutter(on) {
    press("shutter", on);
    overlay.shutter = on;
    panes.forEach(dress);
  }

  /** @param {string} value of the slider */
  function setOpacity(value) {
    slider("opacity").value = value;
    byId("opacity-value").textContent = `${value} %`;
    overlay.opacity = Number(value) / 100;
    panes.forEach(dress);
    remember("opacity", value);
  }

  /** @param {string} value of the slider */
  function setThreshold(value) {
    slider("threshold").value = value;
    overlay.threshold = Number(value) / 100;
    redraw();
  }

  // -- frames and images --

  /** @param {HTMLElement} thumb */
  const framesOf = (thumb) => findings.filter((finding) => finding.dataset.image === thumb.dataset.image);

  function offerFrames() {
    const { thumb, source } = own;
    if (!thumb || !source) return;
    const there = framesOf(thumb);
    byId("frames").hidden = there.length < 2;
    slider("frame").max = String(there.length);
    slider("frame").value = String(there.indexOf(source) + 1);
    const words = `frame ${source.dataset.frame} of ${there.length}`;
    byId("frame-value").textContent = words;
    byId("frame").setAttribute("aria-valuetext", words);
  }

  /** @param {number} index */
  function frameAt(index) {
    const chosenFrame = own.thumb && framesOf(own.thumb)[index];
    if (own.thumb && chosenFrame) open(own.thumb, chosenFrame.dataset.frame);
  }
  /** @param {1 | -1} by */
  const stepFrame = (by) => own.thumb && own.source && frameAt(framesOf(own.thumb).indexOf(own.source) + by);
  /** @param {1 | -1} by */
  function stepImage(by) {
    const next = own.thumb && thumbs[thumbs.indexOf(own.thumb) + by];
    if (!next) return;
    if (active.prior) activate(own);
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    open(next);
  }
  hear("osteon:open", ({ image, frame }) => {
    const next = thumbs.find((thumb) => thumb.dataset.image === String(image));
    if (!next) return;
    if (active.prior && !paneOf(next)) activate(own);
    open(next, frame);
    const [list, box] = [byId("thumbs"), next.getBoundingClientRect()];
    const edge = list.getBoundingClientRect(); // the list alone is scrolled: the reader's place on the page stays
    if (box.top < edge.top || box.bottom > edge.bottom) list.scrollTop += box.top - edge.top;
    if (box.left < edge.left || box.right > edge.right) list.scrollLeft += box.left - edge.left;
  });

  // -- priors --

  const priors = () => all(".thumb[data-prior]");

  /** Beside what is shown; again: gone. @param {HTMLElement | undefined} thumb */
  function openPrior(thumb) {
    if (!thumb) return say("There is no prior examination.");
    const there = paneOf(thumb);
    if (there) {
      const rest = panes.filter((pane) => pane !== there).flatMap((pane) => pane.thumb ?? []);
      const count = Math.max(1, Math.min(chosen(), thumbs.length));
      arrange(filled({ panes: count, shown: rest, hung, needed: own.thumb ?? first }).sort((a, b) => hangs(a) - hangs(b)), own.thumb ?? first);
      return say("The prior is closed.");
    }
    const shown = panes.flatMap((pane) => (pane.thumb && !pane.prior ? [pane.thumb] : []));
    const kept = shown.length === 1 ? shown : [own.thumb ?? first];
    arrange([...kept, thumb], thumb);
  }

  /** @param {HTMLElement} thumb */
  function offerPrior(thumb) {
    if (thumb.dataset.bound) return;
    thumb.dataset.bound = "true";
    thumb.addEventListener("click", () => openPrior(thumb));
  }
  hear("osteon:priors", () => priors().forEach(offerPrior));

  // -- measures --

  /** @param {Pane} pane */
  function drawMeasures(pane) {
    const { image, frame } = pane.source?.dataset ?? {};
    pane.viewport.measures = measures.filter((one) => one.study === pane.studyShown && String(one.image) === image && String(one.frame) === frame);
    pane.viewport.paint();
  }

  function keepMeasures() {
    sessionStorage.setItem(MEASURES, writeMeasures(measures));
    panes.forEach(drawMeasures);
    tellActive();
  }

  /** @param {Pane} pane @param {Kind} kind @param {Point[]} points */
  function takeMeasure(pane, kind, points) {
    const { image, frame } = pane.source?.dataset ?? {};
    measures.push({ study: pane.studyShown, image: Number(image), frame: Number(frame), kind, points });
    keepMeasures();
    const { shown } = pane.viewport;
    say(`${measureWords({ kind, points }, shown, shown.calibration)}${kind === "length" ? `, ${calibrationWords(shown.calibration)}` : ""}`);
  }

  /** The last one of the active pane's radiograph. */
  function dropMeasure() {
    const last = active.viewport.measures.at(-1);
    if (!last) return;
    measures = measures.filter((one) => one !== last);
    keepMeasures();
    say("Measure removed");
  }

  /** @param {Kind} kind */
  function measure(kind) {
    const { viewport } = active;
    if (viewport.measuring?.kind === kind) viewport.endMeasure(false);
    else viewport.beginMeasure(kind);
  }

  // -- marks --

  hear("osteon:mark-start", () => {
    if (active.prior) activate(own);
    own.viewport.beginMark();
  });
  hear("osteon:mark-take", () => panes.forEach(({ viewport }) => viewport.placed && !viewport.blank && viewport.endMark(true)));
  hear("osteon:mark-end", () => panes.forEach(({ viewport }) => viewport.endMark(false)));
  hear("osteon:marks", ({ marks }) => {
    for (const { viewport } of panes) {
      viewport.marks = marks;
      viewport.paint();
    }
  });

  // -- controls --

  /** @param {string} choice of a preset */
  function choosePreset(choice) {
    if (choice === "own") return;
    for (const pane of together(active)) {
      pane.preset = choice;
      const { viewport } = pane;
      if (viewport.radiograph) viewport.setWindow(viewport.radiograph.preset(choice, pane.region));
      pane.tellView();
    }
    tellActive();
  }

  /** @param {boolean} on */
  function setInvert(on) {
    for (const { viewport } of together(active)) viewport.setInverted(on);
    press("invert", on);
  }

  /** @param {boolean} on */
  function setWindowing(on) {
    press("windowing", on);
    for (const pane of panes) {
      pane.viewport.windowing = on;
      pane.root.classList.toggle("windowing", on);
    }
  }

  /** @param {boolean} on */
  function setMagnify(on) {
    press("magnify", on);
    for (const { viewport } of panes) {
      viewport.magnifying = on;
      viewport.paint();
    }
  }

  /** @param {boolean} on */
  function setLinked(on) {
    linked = on;
    remember("linked", on);
    tellLinked();
    say(on ? "The images move together" : "Each image moves by itself");
  }

  /** @param {boolean} on */
  function setFull(on) {
    document.body.classList.toggle("full", on);
    press("full", on);
    tellPlace();
    if (on) document.documentElement.requestFullscreen?.().catch(() => {}); // the stage has the window all the same
    else if (document.fullscreenElement) document.exitFullscreen().catch(() => {});
    say(on ? "The images have the screen. Answers are given when you leave it with f." : "The page is back");
  }
  document.addEventListener("fullscreenchange", () => {
    if (!document.fullscreenElement && document.body.classList.contains("full")) setFull(false);
  });

  function reset() {
    setWindowing(false);
    setMagnify(false);
    unveiled.clear();
    overlay.heat = false;
    remember("heatmap", false);
    setLines(linesAtStart);
    setShutter(true);
    setOpacity("45");
    setThreshold("0");
    for (const pane of panes) {
      pane.viewport.endMeasure(false);
      pane.viewport.setInverted(false);
      pane.lay(UPRIGHT);
      pane.preset = "default";
      const { viewport } = pane;
      if (viewport.radiograph) viewport.setWindow(viewport.radiograph.preset("default"));
      viewport.fit();
    }
    tellActive();
    say("Everything as at the start");
  }

  function slideWindow() {
    const { radiograph, window: [black, white] } = active.viewport;
    if (!radiograph) return;
    const step = radiograph.range / 1000;
    const sign = Math.sign(white - black) || 1;
    const width = Math.max(1, slider("width").valueAsNumber * step);
    active.viewport.setWindow(windowAt(radiograph.least + slider("centre").valueAsNumber * step, sign * width));
    active.changed("window");
    passWindow(active);
  }

  /** @param {number} index */
  function choosePane(index) {
    if (!panes[index]) return;
    activate(panes[index]);
    panes[index].root.focus({ preventScroll: true });
  }

  function changeLayout() {
    const count = nextLayout(panes.length, thumbs.length + panes.filter((pane) => pane.prior).length);
    remember("layout", count);
    layOut(count);
    say(panes.length === 1 ? "One image" : `${panes.length} images`);
  }

  const clicks = {
    smaller: () => act(active, { zoom: 1 / ZOOM_STEP }), larger: () => act(active, { zoom: ZOOM_STEP }), fit: () => act(active, { fit: true }),
    whole: () => act(active, { scale: 1 / (window.devicePixelRatio || 1) }), windowing: () => setWindowing(!pressed("windowing")),
    invert: () => setInvert(!pressed("invert")), overlay: () => setHeat(!pressed("overlay")),
    outline: () => setLines(!pressed("outline")), reset,
    shutter: () => byId("shutter").hidden || setShutter(!pressed("shutter")),
    rotate: () => active.lay(turned(active.viewport.orientation)), flip: () => active.lay(flipped(active.viewport.orientation)),
    length: () => measure("length"), angle: () => measure("angle"), unmeasure: dropMeasure,
    magnify: () => setMagnify(!pressed("magnify")), link: () => setLinked(!linked), layout: changeLayout,
    full: () => setFull(!document.body.classList.contains("full")),
    "frame-before": () => stepFrame(-1), "frame-after": () => stepFrame(1),
  };
  const commands = {
    ...clicks, "image-before": () => stepImage(-1), "image-after": () => stepImage(1),
    overlay: () => hold("warm", true), bare: () => hold("bare", true), prior: () => openPrior(panes.find((pane) => pane.prior)?.thumb ?? priors()[0]),
    "pane-1": () => choosePane(0), "pane-2": () => choosePane(1), "pane-3": () => choosePane(2), "pane-4": () => choosePane(3),
  };
  /** @type {Record<string, () => void>} what ends when the key is let go */
  const ends = { overlay: () => hold("warm", false), bare: () => hold("bare", false) };
  for (const [id, click] of Object.entries(clicks)) byId(id).addEventListener("click", click);
  preset.addEventListener("change", () => choosePreset(preset.value));
  for (const id of ["centre", "width"]) byId(id).addEventListener("input", slideWindow);
  byId("opacity").addEventListener("input", () => setOpacity(slider("opacity").value));
  byId("threshold").addEventListener("input", () => setThreshold(slider("threshold").value));
  byId("wider").addEventListener("change", () => {
    overlay.wider = slider("wider").checked;
    remember("wider", overlay.wider);
    redraw();
  });
  byId("frame").addEventListener("input", () => frameAt(slider("frame").valueAsNumber - 1));
  for (const thumb of thumbs) thumb.addEventListener("click", () => open(thumb));
  priors().forEach(offerPrior);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || elsewhere(event)) return;
    const onPane = event.target === active.root;
    const { viewport } = active;
    const command = commandOf(VIEWER_KEYS, event, VIEWER_REPEATS);
    if (onPane && ((viewport.box && viewport.markKey(event)) || (viewport.measuring && viewport.measureKey(event)))) event.preventDefault();
    else if (onPane && Object.hasOwn(ARROWS, event.key)) {
      const [right, down] = ARROWS[event.key];
      act(active, { pan: [-right * PAN_STEP, -down * PAN_STEP] });
      event.preventDefault();
    } else if (command) {
      commands[command]();
      event.preventDefault();
    }
  });
  document.addEventListener("keyup", (event) => {
    const key = event.key.toLowerCase();
    const command = Object.hasOwn(VIEWER_KEYS, key) ? VIEWER_KEYS[/** @type {keyof typeof VIEWER_KEYS} */ (key)] : "";
    if (Object.hasOwn(ends, command)) ends[command]();
  });
  addEventListener("blur", () => Object.values(ends).forEach((end) => end())); // a key that is let go elsewhere is not heard

  // -- start --

  const scale = drawing(byId("heat-scale", HTMLCanvasElement));
  const colours = scale.createImageData(256, 10);
  new Uint32Array(colours.data.buffer).forEach((_, i, out) => (out[i] = PALETTE[i % 256]));
  scale.putImageData(colours, 0, 0);
  overlay.heat = remembered("heatmap", "false") === "true";
  overlay.lines = remembered("outline", String(linesAtStart)) === "true";
  overlay.wider = remembered("wider", "false") === "true";
  overlay.opacity = Number(remembered("opacity", "45")) / 100;
  slider("wider").checked = overlay.wider;
  slider("opacity").value = String(Math.round(overlay.opacity * 100));
  byId("opacity-value").textContent = `${slider("opacity").value} %`;
  slider("threshold").value = "0";
  const asked = new URLSearchParams(location.hash.slice(1));
  const wanted = thumbs.find((thumb) => thumb.dataset.image === asked.get("image"));
  const first = wanted ?? thumbs.find((thumb) => thumb.getAttribute("aria-pressed") === "true") ?? thumbs[0];
  if (wanted && sourceOf(wanted, asked.get("frame"))) first.dataset.frame = String(asked.get("frame"));
  layOut(chosen());
  new ResizeObserver(() => {
    const settled = panes.every((pane) => !pane.prior && !pane.viewport.box && !pane.viewport.measuring);
    if (settled && chosen() !== panes.length) layOut(chosen());
  }).observe(stage);
}
