// One pane of the stage: a viewport, the radiograph that is in it and its loads, and the words in its corner.

import { data, make, one } from "../lib/dom.js";
import { carriedWindow } from "./gray.js";
import { UPRIGHT } from "./geometry.js";
import { Heat, outlineLevels } from "./heat.js";
import { Recent, fetchFrame, pause, shapeOf } from "./load.js";
import { Radiograph } from "./radiograph.js";
import { Viewport } from "./viewport.js";

/** @typedef {import("./geometry.js").Orientation} Orientation */
/** @typedef {import("./gray.js").Window} Window */
/** @typedef {import("./heat.js").Level} Level */
/** @typedef {import("./measures.js").Kind} Kind */
/** @typedef {import("./contours.js").Point} Point */
/** @typedef {import("./viewport.js").Act} Act */
/** @typedef {import("./viewport.js").Change} Change */
/** @typedef {import("./viewport.js").Outline} Outline */
/** @typedef {{heat: Heat, outlines: Outline[], wider: Outline[]}} Evidence outlines at the point by which the finding is assessed; wider: at the sensitive one, where that is another */

const KEPT_FRAMES = 8; // full ones; each takes twenty megabytes and more
const KEPT_VALUES = 100_000_000; // of all of them: two bytes each
const KEPT_PREVIEWS = 24;
const PATIENCE_MS = 6000; // then the page says that the full-resolution frame does not come, and goes on asking
const LINGER_MS = 150; // who leafs through does not ask for every full-resolution frame
const PREVIEW = "preview, 8 bit";

/** What was loaded last, for all panes; the keys are findings, or thumbs of priors. */
export class Loaded {
  /** @type {Recent<HTMLElement, Radiograph>} */
  previews = new Recent(KEPT_PREVIEWS);
  /** @type {Recent<HTMLElement, Radiograph>} */
  frames = new Recent(KEPT_FRAMES, { weigh: (radiograph) => radiograph.weight, mostWeight: KEPT_VALUES });
  /** @type {Recent<HTMLElement, Evidence>} */
  evidence = new Recent(KEPT_PREVIEWS);
  /** @type {Map<HTMLElement, Orientation>} how each thumb's radiograph was turned */
  orientations = new Map();
}

/**
 * @typedef {object} Hooks what a pane tells the page
 * @property {(pane: Pane, act: Act) => void} act what a hand wants
 * @property {(pane: Pane, what: Change) => void} changed
 * @property {(pane: Pane, kind: Kind, points: Point[]) => void} measured
 * @property {(pane: Pane) => void} displayed another picture is there
 * @property {(pane: Pane) => void} evident its heatmap and outlines have come, or cannot
 * @property {(words: string) => void} say to a screen reader
 */

export class Pane {
  /** @type {HTMLElement | null} the thumb of what it shows */
  thumb = null;
  /** @type {HTMLElement | null} what describes the radiograph: the finding, or a prior's thumb */
  source = null;
  /** @type {Evidence | null} */
  evidence = null;
  evidenceFailed = false;
  preset = "default";
  leaving = new AbortController(); // of what it showed

  /**
   * @param {object} page
   * @param {HTMLTemplateElement} page.template
   * @param {string} page.study
   * @param {boolean} page.full whether there are full-resolution frames
   * @param {Loaded} page.loaded
   * @param {Hooks} page.hooks
   */
  constructor({ template, study, full, loaded, hooks }) {
    const copy = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
    this.root = one(".pane", copy);
    this.study = study;
    this.full = full;
    this.loaded = loaded;
    this.hooks = hooks;
    this.canvas = one("canvas", this.root, HTMLCanvasElement);
    this.viewport = new Viewport({
      stage: this.root, canvas: this.canvas, lines: one(".lines", this.root, SVGSVGElement), scale: one(".ruler", this.root, SVGSVGElement),
      act: (act) => hooks.act(this, act),
      changed: (what) => this.changed(what),
      measured: (kind, points) => hooks.measured(this, kind, points),
    });
  }

  get prior() {
    return this.thumb !== null && "prior" in this.thumb.dataset;
  }

  /** The study that its radiograph belongs to. */
  get studyShown() {
    return this.prior && this.thumb ? data(this.thumb, "study") : this.study;
  }

  get region() {
    return this.source?.dataset.region ?? "";
  }

  get abstains() {
    return this.source?.dataset.assessment === "abstained";
  }

  close() {
    this.leaving.abort();
    this.viewport.endMark(false); // who asked for a box hears that none comes
    this.viewport.close();
    this.root.remove();
  }

  /** @param {Change} what */
  changed(what) {
    if (what === "window") this.preset = "own";
    this.tellView();
    this.hooks.changed(this, what);
  }

  // -- words --

  /** @param {string} words @param {string} [why] it is not better */
  quality(words, why = "") {
    const corner = one(".quality", this.root);
    corner.textContent = why ? `${words}. ${why}` : words;
    corner.classList.toggle("troubled", why !== "");
    if (why) this.hooks.say(`${words}. ${why}`);
  }

  /** The window in the file's units. */
  units() {
    const { radiograph, window: [black, white] } = this.viewport;
    if (!radiograph) return { centre: 0, width: 0 };
    const centre = Math.round((radiograph.slope * (black + white)) / 2 + radiograph.intercept);
    return { centre, width: Math.round(Math.abs((white - black) * radiograph.slope)) };
  }

  tellView() {
    const { viewport } = this;
    if (!viewport.radiograph) return;
    const { centre, width } = this.units();
    const zoom = viewport.fitted ? "fitted" : `${(viewport.view.scale / viewport.fitScale).toFixed(1)} × fitted`;
    one(".where", this.root).textContent = `C ${centre}  W ${width}  ·  ${zoom}, ${Math.round(viewport.view.scale * 100)} % of its pixels`;
  }

  /** @param {string} what view and side, or its number @param {string} label for a screen reader */
  name(what, label) {
    one(".what", this.root).textContent = what;
    this.canvas.setAttribute("aria-label", label);
  }

  /** @param {string} why */
  unloadable(why) {
    const words = one(".unloadable", this.root);
    words.textContent = `${why} Load the page again; if it stays away, tell your administrator.`;
    words.hidden = false;
  }

  // -- showing a radiograph --

  /**
   * @param {HTMLElement} thumb
   * @param {HTMLElement} source
   */
  open(thumb, source) {
    if (source === this.source) return;
    this.leaving.abort();
    this.leaving = new AbortController();
    const { signal } = this.leaving;
    const same = thumb === this.thumb;
    const { viewport, loaded } = this;
    [this.thumb, this.source, this.evidence, this.evidenceFailed] = [thumb, source, null, false];
    this.root.classList.toggle("prior", this.prior);
    one(".unloadable", this.root).hidden = true;
    viewport.heat = null;
    viewport.outlines = [];
    viewport.measures = [];
    const full = loaded.frames.get(source);
    if (!full && !loaded.previews.get(source)) {
      viewport.clear();
      delete this.root.dataset.shown;
    }
    if (full) this.display(source, full, same);
    else this.showPreview(source, signal, same);
    if (!this.prior) this.showHeat(source, signal);
  }

  /**
   * @param {HTMLElement} source
   * @param {Radiograph} radiograph
   * @param {boolean} same another frame, or another quality, of the image that is there; it stays where it is
   */
  display(source, radiograph, same) {
    const { viewport, thumb } = this;
    if (!thumb) return;
    const earlier = viewport.radiograph;
    const { image, frame } = source.dataset;
    const keep = same && earlier?.width === radiograph.width && earlier?.height === radiograph.height;
    let next = radiograph.preset(this.preset, this.region);
    if (this.preset === "own" && keep && earlier) next = carried(viewport.window, earlier, radiograph);
    else if (this.preset === "own") [next, this.preset] = [radiograph.preset("default"), "default"];
    if (!keep) viewport.orientation = this.loaded.orientations.get(thumb) ?? UPRIGHT;
    viewport.show(radiograph, { keep, place: { image: this.prior ? 0 : Number(image), frame: Number(frame) } });
    viewport.setWindow(next);
    viewport.paintNow(); // the picture is what the reader waits for
    this.root.dataset.shown = `${image}/${frame}/${radiograph.words.split(",")[0]}`;
    performance.mark("picture", { detail: this.root.dataset.shown });
    this.quality(radiograph.words);
    this.tellView();
    this.hooks.displayed(this);
  }

  /** @param {HTMLElement} source @param {AbortSignal} signal @param {boolean} same */
  async showPreview(source, signal, same) {
    let radiograph = this.loaded.previews.get(source);
    if (!radiograph) {
      const still = document.getElementById("still");
      const image = still instanceof HTMLImageElement && still.getAttribute("src") === source.dataset.preview ? still : make("img", { src: data(source, "preview") });
      try {
        await image.decode();
        radiograph = Radiograph.ofPreview(image, shapeOf(source));
        this.loaded.previews.keep(source, radiograph);
      } catch {
        if (!signal.aborted) this.unloadable("The preview could not be loaded.");
      }
    }
    if (signal.aborted) return;
    if (radiograph) this.display(source, radiograph, same);
    if (this.full) this.showFull(source, signal, same);
    else this.quality(PREVIEW, "This installation shows previews only.");
  }

  /** @param {HTMLElement} source @param {AbortSignal} signal @param {boolean} same */
  async showFull(source, signal, same) {
    await pause(LINGER_MS, signal);
    if (signal.aborted) return;
    this.quality(`${PREVIEW}; the full-resolution frame is coming`);
    const begun = performance.now();
    try {
      const radiograph = await fetchFrame(this.studyShown, source, signal, (trouble) => {
        const late = performance.now() - begun > PATIENCE_MS;
        if (late || trouble) this.quality(PREVIEW, `The full-resolution frame does not come${trouble ? `: ${trouble}` : "; perhaps no worker runs."} Still asking.`);
      });
      if (signal.aborted) return;
      this.loaded.frames.keep(source, radiograph);
      one(".unloadable", this.root).hidden = true;
      const here = this.root.dataset.shown !== undefined; // the preview came
      this.display(source, radiograph, this.viewport.radiograph !== null && (same || here));
      if (performance.now() - begun > 2000) this.hooks.say(radiograph.words); // else it came with the image
    } catch (error) {
      if (!signal.aborted) this.quality(PREVIEW, `No full-resolution frame: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** @param {HTMLElement} source @param {AbortSignal} signal */
  async showHeat(source, signal) {
    let evidence = this.loaded.evidence.get(source);
    try {
      if (!evidence) {
        const { image, frame } = source.dataset;
        const response = await fetch(`/api/v1/studies/${this.study}/heatmap.json?image=${image}&frame=${frame}`, { signal });
        if (!response.ok) throw new Error(response.statusText);
        const heat = new Heat(await response.json(), shapeOf(source));
        const { tight, wide } = outlineLevels(heat.told);
        /** @param {Level[]} levels */
        const drawn = (levels) => levels.map(({ name, level }) => ({ name, level, lines: heat.outline(level) }));
        evidence = { heat, outlines: drawn(tight), wider: drawn(wide) };
        this.loaded.evidence.keep(source, evidence);
      }
    } catch {
      if (signal.aborted) return;
      this.evidenceFailed = true;
      return this.hooks.evident(this);
    }
    if (signal.aborted) return;
    this.evidence = evidence;
    this.viewport.heat = evidence.heat;
    this.hooks.evident(this);
  }

  /** @param {Orientation} orientation */
  lay(orientation) {
    if (!this.thumb || !this.viewport.radiograph) return;
    this.loaded.orientations.set(this.thumb, orientation);
    this.viewport.setOrientation(orientation);
  }
}

/** A window of the reader's own, for the same radiograph in another quality. @param {Window} window @param {Radiograph} from @param {Radiograph} to */
function carried(window, from, to) {
  if (from.levels[0].pixels.length === to.levels[0].pixels.length && from.slope === to.slope) return window;
  return carriedWindow(window, from.window, to.window);
}
