// The radiographs of a study: which one is shown, and how.

import { all, around, byId, data, drawing, make, svg } from "../lib/dom.js";
import { announce, hear } from "../lib/events.js";
import { VIEWER_KEYS, VIEWER_REPEATS, commandOf } from "../lib/keys.js";
import { Radiograph } from "./radiograph.js";
import { carriedWindow, windowAt } from "./gray.js";
import { Heat, PALETTE, outlineLevels } from "./heat.js";
import { Recent, fetchFrame, pause, shapeOf } from "./load.js";
import { ARROWS, Viewport, ZOOM_STEP } from "./viewport.js";

/** @typedef {import("./gray.js").Window} Window */
/** @typedef {import("./heat.js").Level} Level */
/** @typedef {import("./viewport.js").Change} Change */
/** @typedef {import("./viewport.js").Outline} Outline */
/** @typedef {{heat: Heat, outlines: Outline[], wider: Outline[]}} Evidence outlines at the point by which the finding is assessed; wider: at the sensitive one, where that is another */

const KEPT_FRAMES = 4; // full ones; each takes twenty megabytes and more
const KEPT_PREVIEWS = 24;
const PATIENCE_MS = 6000; // then the page says that the full-resolution frame does not come, and goes on asking
const LINGER_MS = 150; // who leafs through does not ask for every full-resolution frame
const PAN_STEP = 60; // screen pixels for an arrow key

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

/** Whether a key is for somebody who writes or chooses, or for a dialog, and not for the page; a slider needs no letters. @param {Event} event */
export const elsewhere = (event) =>
  Boolean(document.querySelector("dialog[open]") ?? around(event, "input:not([type=range]), textarea, select, [contenteditable]"));

/** Show the radiographs of this page. */
export function openRadiographs() {
  const root = byId("viewer");
  const stage = byId("stage");
  const preset = byId("preset", HTMLSelectElement);
  const findings = all(".finding");
  const thumbs = all(".thumb:not([data-prior])");
  const viewer = new Viewport({ stage, canvas: byId("canvas", HTMLCanvasElement), lines: byId("lines", SVGSVGElement), changed });
  /** @type {Recent<HTMLElement, Radiograph>} */
  const previews = new Recent(KEPT_PREVIEWS);
  /** @type {Recent<HTMLElement, Radiograph>} */
  const radiographs = new Recent(KEPT_FRAMES);
  /** @type {Recent<HTMLElement, Evidence>} */
  const heats = new Recent(KEPT_PREVIEWS);
  /** @type {Set<HTMLElement>} findings that the model abstains on, and whose heatmap was asked for */
  const unveiled = new Set();
  let thumb = thumbs[0]; // what is shown
  /** @type {HTMLElement | null} */
  let finding = null;
  let leaving = new AbortController(); // of what was shown
  const linesAtStart = root.dataset.overlay === "outlines"; // as the site chose
  let warm = false; // the heatmap's key is held

  // -- words --

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let saying;
  /** @param {string} words */
  function say(words) {
    clearTimeout(saying);
    saying = setTimeout(() => (byId("said").textContent = words), 250);
  }

  /** @param {string} words @param {string} [why] it is not better */
  function quality(words, why = "") {
    byId("quality").textContent = why ? `${words}. ${why}` : words;
    byId("quality").classList.toggle("troubled", why !== "");
    if (why) say(`${words}. ${why}`);
  }

  function tellView() {
    if (!viewer.radiograph) return;
    const { radiograph, view, window: [black, white] } = viewer;
    const times = view.scale / viewer.fitScale;
    /** @param {number} value in the file's units */
    const unit = (value) => Math.round(radiograph.slope * value + radiograph.intercept);
    const [centre, width] = [unit((black + white) / 2), Math.round(Math.abs((white - black) * radiograph.slope))];
    const zoom = viewer.fitted ? "fitted" : `${times.toFixed(1)} × fitted`;
    byId("where").textContent = `C ${centre}  W ${width}  ·  ${zoom}, ${Math.round(view.scale * 100)} % of its pixels`;
    /** @param {number} value */
    const steps = (value) => String(Math.round((1000 * value) / radiograph.range));
    slider("centre").value = steps((black + white) / 2 - radiograph.least);
    slider("width").value = steps(Math.abs(white - black));
    for (const [id, value] of Object.entries({ centre, width })) {
      byId(`${id}-value`).textContent = String(value);
      byId(id).setAttribute("aria-valuetext", String(value));
    }
  }

  /** @param {Change} what */
  function changed(what) {
    if (what === "window") preset.value = "own";
    tellView();
    const [window = "", view = ""] = (byId("where").textContent ?? "").split("·");
    if (what === "marking") say("Draw a box on the radiograph. With keys: arrows move it, shift and arrows resize it, Enter takes it, Escape gives up.");
    if (what === "marked" || what === "mark given up") say(`Box ${what === "marked" ? "drawn" : "given up"}`);
    if (what === "window") say(window.replace("C", "Window centre").replace("W", ", width"));
    if (what === "view") say(view);
  }

  // -- showing a radiograph --

  /** @param {HTMLElement} nextThumb @param {string | number | null | undefined} frame */
  function open(nextThumb, frame) {
    const image = data(nextThumb, "image");
    const next = findings.find((one) => one.dataset.image === image && one.dataset.frame === String(frame));
    if (!next || next === finding) return;
    leaving.abort();
    leaving = new AbortController();
    const { signal } = leaving;
    const [sameStudy, sameImage] = [finding !== null, finding !== null && thumb === nextThumb];
    [thumb, finding] = [nextThumb, next];
    thumb.dataset.frame = String(frame);
    for (const one of thumbs) one.setAttribute("aria-pressed", String(one === thumb));
    for (const one of all("#findings > .image")) one.hidden = one.dataset.image !== image;
    for (const one of findings) one.hidden = one !== finding;
    Object.assign(root.dataset, { image, frame }); // for who listens too late
    announce("osteon:shown", { image: Number(image), frame: Number(frame) });
    if (sameStudy) history.replaceState(null, "", `#image=${image}&frame=${frame}`); // what came with the address stays at first
    offerFrames(next);
    drawHeat();
    const { field } = shapeOf(next);
    byId("shutter").hidden = field.width === 1 && field.height === 1 && field.turn === 0;
    byId("unloadable").hidden = true;
    const mine = thumbs.length > 1 ? `image ${image} of ${thumbs.length}` : `image ${image}`;
    byId("canvas").setAttribute("aria-label", `Radiograph, ${mine}, frame ${frame}. The model says: ${next.dataset.words}.`);
    stage.setAttribute("aria-label", `Radiograph, ${mine}. Press question mark for its keys.`);
    say(`${mine}${frames().length > 1 ? `, frame ${frame}` : ""}: ${next.dataset.words}`);
    const full = radiographs.get(next);
    viewer.heat = null;
    viewer.outlines = [];
    byId("drawn").textContent = "";
    if (!full && !previews.get(next)) {
      viewer.clear();
      delete stage.dataset.shown;
    }
    if (full) display(next, full, sameImage);
    else showPreview(next, signal, sameImage);
    showHeat(next, signal);
  }

  /**
   * @param {HTMLElement} mine the finding whose radiograph it is, which is the one that is shown
   * @param {Radiograph} radiograph
   * @param {boolean} same another frame, or another quality, of the image that is there; it stays where it is
   */
  function display(mine, radiograph, same) {
    const earlier = viewer.radiograph;
    const { image, frame } = mine.dataset;
    const keep = same && earlier?.width === radiograph.width && earlier?.height === radiograph.height;
    let next = radiograph.preset(preset.value);
    if (preset.value === "own" && keep && earlier) next = carried(viewer.window, earlier, radiograph);
    else if (preset.value === "own") [next, preset.value] = [radiograph.preset("default"), "default"];
    viewer.show(radiograph, { keep, place: { image: Number(image), frame: Number(frame) } });
    viewer.setWindow(next);
    viewer.paintNow(); // the picture is what the reader waits for
    byId("still").hidden = true;
    stage.dataset.shown = `${image}/${frame}/${radiograph.words.split(",")[0]}`;
    performance.mark("picture", { detail: stage.dataset.shown });
    quality(radiograph.words);
    tellView();
  }

  /** A window of the reader's own, for the same radiograph in another quality. @param {Window} window @param {Radiograph} from @param {Radiograph} to */
  function carried(window, from, to) {
    if (from.levels[0].pixels.length === to.levels[0].pixels.length && from.slope === to.slope) return window;
    return carriedWindow(window, from.window, to.window);
  }

  /** @param {HTMLElement} mine @param {AbortSignal} signal @param {boolean} same */
  async function showPreview(mine, signal, same) {
    let radiograph = previews.get(mine);
    if (!radiograph) {
      const still = byId("still", HTMLImageElement);
      const image = still.getAttribute("src") === mine.dataset.preview ? still : make("img", { src: mine.dataset.preview });
      try {
        await image.decode();
        radiograph = Radiograph.ofPreview(image, shapeOf(mine));
        previews.keep(mine, radiograph);
      } catch {
        if (!signal.aborted) unloadable("The preview could not be loaded.");
      }
    }
    if (signal.aborted) return;
    if (radiograph) display(mine, radiograph, same);
    if ("full" in root.dataset) showFull(mine, signal, same);
    else quality("preview, 8 bit", "This installation shows previews only.");
  }

  /** @param {string} why */
  function unloadable(why) {
    byId("unloadable").textContent = `${why} Load the page again; if it stays away, tell your administrator.`;
    byId("unloadable").hidden = false;
  }

  /** @param {HTMLElement} mine @param {AbortSignal} signal @param {boolean} same */
  async function showFull(mine, signal, same) {
    await pause(LINGER_MS, signal);
    if (signal.aborted) return;
    const preview = "preview, 8 bit";
    quality(`${preview}; the full-resolution frame is coming`);
    const begun = performance.now();
    try {
      const radiograph = await fetchFrame(data(root, "study"), mine, signal, (trouble) => {
        const late = performance.now() - begun > PATIENCE_MS;
        if (late || trouble) quality(preview, `The full-resolution frame does not come${trouble ? `: ${trouble}` : "; perhaps no worker runs."} Still asking.`);
      });
      radiographs.keep(mine, radiograph);
      if (signal.aborted) return;
      byId("unloadable").hidden = true;
      display(mine, radiograph, viewer.radiograph !== null && (same || viewer.place.image === Number(mine.dataset.image)));
      if (performance.now() - begun > 2000) say(radiograph.words); // else it came with the image
    } catch (wrong) {
      if (!signal.aborted) quality(preview, `No full-resolution frame: ${wrong instanceof Error ? wrong.message : wrong}`);
    }
  }

  /** @param {HTMLElement} mine @param {AbortSignal} signal */
  async function showHeat(mine, signal) {
    let told = heats.get(mine);
    try {
      if (!told) {
        const { image, frame } = mine.dataset;
        const response = await fetch(`/api/v1/studies/${root.dataset.study}/heatmap.json?image=${image}&frame=${frame}`, { signal });
        if (!response.ok) throw new Error(response.statusText);
        const heat = new Heat(await response.json(), shapeOf(mine));
        const { tight, wide } = outlineLevels(heat.told);
        /** @param {Level[]} levels */
        const drawn = (levels) => levels.map(({ name, level }) => ({ name, level, lines: heat.outline(level) }));
        told = { heat, outlines: drawn(tight), wider: drawn(wide) };
        heats.keep(mine, told);
      }
    } catch {
      if (!signal.aborted) byId("drawn").textContent = "The heatmap could not be loaded. Load the page again.";
      return;
    }
    if (signal.aborted) return;
    viewer.heat = told.heat;
    viewer.outlines = outlinesOf(told);
    byId("heat-most").textContent = `${told.heat.full < 1 ? "≥ " : ""}${probability(told.heat.full)}`;
    tellDrawn(told);
    setThreshold(slider("threshold").value);
  }

  const wantsWider = () => byId("wider", HTMLInputElement).checked;
  /** @param {Evidence} evidence */
  const outlinesOf = ({ outlines, wider }) => (wantsWider() ? [...wider, ...outlines] : outlines);

  /** @param {Evidence} evidence of the radiograph that is shown */
  function tellDrawn(evidence) {
    const { heat } = evidence;
    const words = byId("drawn");
    if (heat.told.assessment === "abstained") {
      const heatmap = finding && unveiled.has(finding) ? "" : " Its heatmap is hidden until you ask for it (hold h).";
      words.textContent = `No outline is drawn: the model abstains. Silence is not normal.${heatmap}`;
      return;
    }
    /** @param {number} count */
    const areas = (count) => (count === 0 ? "none here" : count === 1 ? "1 area" : `${count} areas`);
    const shown = pressed("outline") ? "" : "Outlines are off (t). ";
    const outlines = outlinesOf(evidence);
    words.replaceChildren(shown, outlines.length ? "" : "A negative image has no outline.");
    for (const { name, lines } of outlines) {
      const sample = svg("svg", { class: "sample", viewBox: "0 0 40 10", width: 40, height: 10, "aria-hidden": true });
      sample.append(svg("path", { class: `outline ${name}`, d: "M2 5H38" }));
      const meaning = name === "sensitive" ? "dotted: alone enough for “unclear”" : "solid: alone enough for “positive”";
      const told = make("span", {}, sample, `${meaning}, score ${name === "sensitive" ? 3 : 7} (${areas(lines.length)})`);
      words.append(told, " ");
    }
  }

  // -- frames and images --

  const frames = () => findings.filter((one) => one.dataset.image === thumb.dataset.image);

  /** @param {HTMLElement} mine */
  function offerFrames(mine) {
    const there = frames();
    byId("frames").hidden = there.length < 2;
    slider("frame").max = String(there.length);
    slider("frame").value = String(there.indexOf(mine) + 1);
    const words = `frame ${mine.dataset.frame} of ${there.length}`;
    byId("frame-value").textContent = words;
    byId("frame").setAttribute("aria-valuetext", words);
  }

  /** @param {number} index */
  function frameAt(index) {
    const chosen = frames()[index];
    if (chosen) open(thumb, chosen.dataset.frame);
  }
  /** @param {1 | -1} by */
  const stepFrame = (by) => finding && frameAt(frames().indexOf(finding) + by);
  /** @param {1 | -1} by */
  function stepImage(by) {
    const next = thumbs[thumbs.indexOf(thumb) + by];
    if (!next) return;
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    open(next, next.dataset.frame);
  }
  hear("osteon:open", ({ image, frame }) => {
    const next = thumbs.find((one) => one.dataset.image === String(image));
    if (!next) return;
    open(next, frame);
    const [list, one] = [byId("thumbs"), next.getBoundingClientRect()];
    const edge = list.getBoundingClientRect(); // the list alone is scrolled: the reader's place on the page stays
    if (one.top < edge.top || one.bottom > edge.bottom) list.scrollTop += one.top - edge.top;
    if (one.left < edge.left || one.right > edge.right) list.scrollLeft += one.left - edge.left;
  });

  // -- controls --

  /** @param {string} name */
  function choosePreset(name) {
    if (name === "own" || !viewer.radiograph) return;
    preset.value = name;
    viewer.setWindow(viewer.radiograph.preset(name));
    tellView();
  }

  // The reader leads: it is hidden until they ask for it, and that of an abstention until they ask for this very one.
  const abstains = () => finding?.dataset.assessment === "abstained";

  function drawHeat() {
    const on = finding && abstains() ? unveiled.has(finding) : remembered("heatmap", "false") === "true";
    press("overlay", on);
    viewer.showHeat = on || warm;
    viewer.paint();
  }

  /** While the key is held. @param {boolean} on */
  function warmUp(on) {
    warm = on;
    drawHeat();
  }

  /** Nothing is drawn over the line of the bone while the key is held. @param {boolean} on */
  function bare(on) {
    viewer.bare = on;
    viewer.paint();
  }

  /** @param {boolean} on */
  function setHeat(on) {
    if (!finding) return;
    if (!abstains()) remember("heatmap", on);
    else if (on) unveiled.add(finding);
    else unveiled.delete(finding);
    drawHeat();
    const told = heats.get(finding);
    if (told && abstains()) tellDrawn(told);
  }

  /** @param {boolean} on */
  function setShutter(on) {
    press("shutter", on);
    viewer.shutter = on;
    viewer.paint();
  }

  /** @param {boolean} on */
  function drawLines(on) {
    press("outline", on);
    viewer.showLines = on;
    viewer.paint();
    redraw();
  }

  /** @param {boolean} on */
  function setLines(on) {
    remember("outline", on);
    drawLines(on);
  }

  /** The outlines that the reader wants, and the words about them. */
  function redraw() {
    const evidence = finding && heats.get(finding);
    if (!evidence) return;
    viewer.outlines = outlinesOf(evidence);
    viewer.paint();
    tellDrawn(evidence);
  }

  /** @param {boolean} on */
  function setInvert(on) {
    press("invert", on);
    viewer.setInverted(on);
  }

  /** @param {boolean} on */
  function setWindowing(on) {
    press("windowing", on);
    viewer.windowing = on;
    stage.classList.toggle("windowing", on);
  }

  /** @param {string} value of the slider */
  function setOpacity(value) {
    slider("opacity").value = value;
    byId("opacity-value").textContent = `${value} %`;
    viewer.opacity = Number(value) / 100;
    viewer.paint();
    remember("opacity", value);
  }

  /** @param {string} value of the slider */
  function setThreshold(value) {
    const least = (Number(value) / 100) * (viewer.heat?.full ?? 1);
    const words = Number(value) > 0 ? `≥ ${probability(least)}` : "all";
    slider("threshold").value = value;
    byId("threshold-value").textContent = words;
    byId("threshold").setAttribute("aria-valuetext", words);
    viewer.heat?.colour(least);
    viewer.paint();
  }

  function reset() {
    setInvert(false);
    setWindowing(false);
    setHeat(false);
    setLines(linesAtStart);
    setShutter(true);
    setOpacity("45");
    setThreshold("0");
    choosePreset("default");
    viewer.fit();
    say("Everything as at the start");
  }

  function slideWindow() {
    const { radiograph, window: [black, white] } = viewer;
    if (!radiograph) return;
    const step = radiograph.range / 1000;
    const sign = Math.sign(white - black) || 1;
    const width = Math.max(1, slider("width").valueAsNumber * step);
    viewer.setWindow(windowAt(radiograph.least + slider("centre").valueAsNumber * step, sign * width));
    changed("window");
  }

  const clicks = {
    smaller: () => viewer.zoomBy(1 / ZOOM_STEP), larger: () => viewer.zoomBy(ZOOM_STEP), fit: () => viewer.fit(),
    whole: () => viewer.zoomTo(1 / (window.devicePixelRatio || 1)), windowing: () => setWindowing(!pressed("windowing")),
    invert: () => setInvert(!pressed("invert")), overlay: () => setHeat(!pressed("overlay")),
    outline: () => setLines(!pressed("outline")), reset,
    shutter: () => byId("shutter").hidden || setShutter(!pressed("shutter")),
    "frame-before": () => stepFrame(-1), "frame-after": () => stepFrame(1),
  };
  const commands = {
    ...clicks, "image-before": () => stepImage(-1), "image-after": () => stepImage(1),
    overlay: () => warmUp(true), bare: () => bare(true),
  };
  /** @type {Record<string, () => void>} what ends when the key is let go */
  const ends = { overlay: () => warmUp(false), bare: () => bare(false) };
  for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
  preset.addEventListener("change", () => choosePreset(preset.value));
  for (const id of ["centre", "width"]) byId(id).addEventListener("input", slideWindow);
  byId("opacity").addEventListener("input", () => setOpacity(slider("opacity").value));
  byId("threshold").addEventListener("input", () => setThreshold(slider("threshold").value));
  byId("wider").addEventListener("change", () => {
    remember("wider", wantsWider());
    redraw();
  });
  byId("frame").addEventListener("input", () => frameAt(slider("frame").valueAsNumber - 1));
  for (const one of thumbs) one.addEventListener("click", () => open(one, one.dataset.frame));
  for (const prior of all(".thumb[data-prior]")) prior.addEventListener("click", () => location.assign(`/view/${prior.dataset.study}`));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || elsewhere(event)) return;
    const onStage = event.target === stage;
    const command = commandOf(VIEWER_KEYS, event, VIEWER_REPEATS);
    if (viewer.box && onStage && viewer.markKey(event)) event.preventDefault();
    else if (onStage && Object.hasOwn(ARROWS, event.key)) {
      const [right, down] = ARROWS[event.key];
      viewer.pan(-right * PAN_STEP, -down * PAN_STEP);
      event.preventDefault();
    } else if (command) {
      commands[command]();
      event.preventDefault();
    }
  });

  document.addEventListener("keyup", (event) => {
    const command = Object.hasOwn(VIEWER_KEYS, event.key.toLowerCase()) && VIEWER_KEYS[/** @type {keyof typeof VIEWER_KEYS} */ (event.key.toLowerCase())];
    if (command && Object.hasOwn(ends, command)) ends[command]();
  });
  addEventListener("blur", () => Object.values(ends).forEach((end) => end())); // a key that is let go elsewhere is not heard

  const scale = drawing(byId("heat-scale", HTMLCanvasElement));
  const colours = scale.createImageData(256, 10);
  new Uint32Array(colours.data.buffer).forEach((_, i, out) => (out[i] = PALETTE[i % 256]));
  scale.putImageData(colours, 0, 0);
  byId("wider", HTMLInputElement).checked = remembered("wider", "false") === "true";
  drawLines(remembered("outline", String(linesAtStart)) === "true");
  setOpacity(remembered("opacity", "45"));
  setThreshold("0");
  const asked = new URLSearchParams(location.hash.slice(1));
  const first = thumbs.find((one) => one.dataset.image === asked.get("image"));
  const start = first ?? thumbs.find((one) => one.getAttribute("aria-pressed") === "true") ?? thumbs[0];
  open(start, first ? asked.get("frame") : start.dataset.frame);
  if (!finding) open(start, start.dataset.frame); // a frame that is not there
}
