"use strict";
// The study page: which film is shown and how; and a page that waits for an analysis looks again by itself.

const byId = (id) => document.getElementById(id);
const remembered = (name, otherwise) => sessionStorage.getItem(name) ?? otherwise;
const remember = (name, value) => sessionStorage.setItem(name, value);
const pressed = (id) => byId(id).getAttribute("aria-pressed") === "true";
const press = (id, on) => byId(id).setAttribute("aria-pressed", on);

const KEPT_FILMS = 4; // full ones; each takes twenty megabytes and more
const KEPT_PREVIEWS = 24;
const PATIENCE_MS = 6000; // then the page says that the full film does not come, and goes on asking
const LINGER_MS = 150; // who leafs through does not ask for every full film

function openViewer() {
  const root = byId("viewer");
  const findings = [...document.querySelectorAll(".finding")];
  const thumbs = [...document.querySelectorAll(".thumb")];
  const viewer = new Viewer({ stage: byId("stage"), canvas: byId("canvas"), lines: byId("lines"), changed });
  const previews = new Kept(KEPT_PREVIEWS);
  const films = new Kept(KEPT_FILMS);
  const heats = new Kept(KEPT_PREVIEWS);
  const unveiled = new Set(); // findings that the model abstains on, and whose heatmap was asked for
  let [thumb, finding] = [null, null]; // what is shown
  let leaving = new AbortController(); // of what was shown

  // -- words --

  let saying = 0;
  function say(words) {
    clearTimeout(saying);
    saying = setTimeout(() => (byId("said").textContent = words), 250);
  }

  function quality(words, why = "") {
    byId("quality").textContent = why ? `${words}. ${why}` : words;
    byId("quality").classList.toggle("troubled", why !== "");
    if (why) say(`${words}. ${why}`);
  }

  const probability = (value) => (value > 0 && value < 0.01 ? `${(value * 100).toFixed(1)} %` : `${Math.round(value * 100)} %`);

  function tellView() {
    if (!viewer.film) return;
    const { film, view, window: [black, white] } = viewer;
    const times = view.scale / viewer.fitScale;
    const unit = (value) => Math.round(film.slope * value + film.intercept);
    const [centre, width] = [unit((black + white) / 2), Math.round(Math.abs((white - black) * film.slope))];
    const zoom = viewer.fitted ? "fitted" : `${times.toFixed(1)} × fitted`;
    byId("where").textContent = `C ${centre}  W ${width}  ·  ${zoom}, ${Math.round(view.scale * 100)} % of its pixels`;
    const steps = (value) => Math.round((1000 * value) / (film.most - film.least || 1));
    byId("centre").value = steps((black + white) / 2 - film.least);
    byId("width").value = steps(Math.abs(white - black));
    for (const [id, value] of [["centre", centre], ["width", width]]) {
      byId(`${id}-value`).textContent = value;
      byId(id).setAttribute("aria-valuetext", value);
    }
  }

  function changed(what) {
    if (what === "window") byId("preset").value = "own";
    tellView();
    if (what === "marking") say("Draw a box on the film. With keys: arrows move it, shift and arrows resize it, Enter takes it, Escape gives up.");
    if (what === "marked" || what === "mark given up") say(`Box ${what === "marked" ? "drawn" : "given up"}`);
    if (what === "window") say(byId("where").textContent.split("·")[0].replace("C", "Window centre").replace("W", ", width"));
    if (what === "view") say(byId("where").textContent.split("·")[1]);
  }

  // -- showing a film --

  function open(nextThumb, frame) {
    const { image } = nextThumb.dataset;
    const next = findings.find((one) => one.dataset.image === image && one.dataset.frame === String(frame));
    if (!next || next === finding) return;
    leaving.abort();
    leaving = new AbortController();
    const { signal } = leaving;
    const [sameStudy, sameImage] = [Boolean(thumb), thumb === nextThumb];
    [thumb, finding] = [nextThumb, next];
    thumb.dataset.frame = frame;
    for (const one of thumbs) one.setAttribute("aria-pressed", one === thumb);
    for (const one of document.querySelectorAll("#findings > .image")) one.hidden = one.dataset.image !== image;
    for (const one of findings) one.hidden = one !== finding;
    Object.assign(root.dataset, { image, frame }); // for who listens too late
    document.dispatchEvent(new CustomEvent("osteon:shown", { detail: { image: Number(image), frame: Number(frame) } }));
    if (sameStudy) history.replaceState(null, "", `#image=${image}&frame=${frame}`); // what came with the address stays at first
    offerFrames();
    drawHeat();
    const { field } = shapeOf(finding);
    byId("shutter").hidden = field.width === 1 && field.height === 1;
    byId("unloadable").hidden = true;
    const mine = thumbs.length > 1 ? `image ${image} of ${thumbs.length}` : `image ${image}`;
    byId("canvas").setAttribute("aria-label", `Radiograph, ${mine}, frame ${frame}. The model says: ${finding.dataset.words}.`);
    byId("stage").setAttribute("aria-label", `Film, ${mine}. Press question mark for its keys.`);
    say(`${mine}${frames().length > 1 ? `, frame ${frame}` : ""}: ${finding.dataset.words}`);
    const full = films.get(finding);
    viewer.heat = null;
    viewer.outlines = [];
    byId("drawn").textContent = "";
    if (!full && !previews.get(finding)) {
      viewer.clear();
      delete byId("stage").dataset.shown;
    }
    if (full) display(full, sameImage);
    else showPreview(signal, sameImage);
    showHeat(signal);
  }

  // same: another frame, or another quality, of the image that is there; it stays where it is.
  function display(film, same) {
    const earlier = viewer.film;
    const { image, frame } = finding.dataset;
    const keep = same && earlier?.width === film.width && earlier?.height === film.height;
    let next = film.preset(byId("preset").value);
    if (byId("preset").value === "own" && keep && earlier) next = carried(viewer.window, earlier, film);
    else if (byId("preset").value === "own") [next, byId("preset").value] = [film.preset("default"), "default"];
    viewer.show(film, { keep, place: { image: Number(image), frame: Number(frame) } });
    viewer.setWindow(next);
    viewer.paintNow(); // the picture is what the reader waits for
    byId("still").hidden = true;
    byId("stage").dataset.shown = `${image}/${frame}/${film.words.split(",")[0]}`;
    performance.mark("picture", { detail: byId("stage").dataset.shown });
    quality(film.words);
    tellView();
  }

  // A window of the reader's own, from the preview's grays to the film's values and back.
  function carried([black, white], from, to) {
    if (from.levels[0].pixels.length === to.levels[0].pixels.length && from.slope === to.slope) return [black, white];
    const [[a, b], [c, d]] = [from.window, to.window];
    const carry = (value) => c + ((value - a) / (b - a || 1)) * (d - c);
    return [carry(black), carry(white)];
  }

  async function showPreview(signal, same) {
    const mine = finding;
    let film = previews.get(mine);
    if (!film) {
      const still = byId("still");
      const image = still.getAttribute("src") === mine.dataset.preview ? still : Object.assign(new Image(), { src: mine.dataset.preview });
      try {
        await image.decode();
        film = Film.ofPreview(image, shapeOf(mine));
        previews.keep(mine, film);
      } catch {
        if (!signal.aborted) unloadable("The preview could not be loaded.");
      }
    }
    if (signal.aborted) return;
    if (film) display(film, same);
    if ("full" in root.dataset) showFull(signal, same);
    else quality("preview, 8 bit", "This installation shows previews only.");
  }

  function unloadable(why) {
    byId("unloadable").textContent = `${why} Load the page again; if it stays away, tell your administrator.`;
    byId("unloadable").hidden = false;
  }

  async function showFull(signal, same) {
    const mine = finding;
    await pause(LINGER_MS, signal);
    if (signal.aborted) return;
    const preview = "preview, 8 bit";
    quality(`${preview}; the full film is coming`);
    const begun = performance.now();
    try {
      const film = await fetchFilm(root.dataset.study, mine.dataset, signal, (trouble) => {
        const late = performance.now() - begun > PATIENCE_MS;
        if (late || trouble) quality(preview, `The full film does not come${trouble ? `: ${trouble}` : "; perhaps no worker runs."} Still asking.`);
      });
      films.keep(mine, film);
      if (signal.aborted) return;
      byId("unloadable").hidden = true;
      display(film, viewer.film !== null && (same || viewer.place.image === Number(mine.dataset.image)));
      if (performance.now() - begun > 2000) say(film.words); // else it came with the image
    } catch (wrong) {
      if (!signal.aborted) quality(preview, `No full film: ${wrong.message}`);
    }
  }

  async function showHeat(signal) {
    const mine = finding;
    let told = heats.get(mine);
    try {
      if (!told) {
        const { image, frame } = mine.dataset;
        const answer = await fetch(`/studies/${root.dataset.study}/heatmap.json?image=${image}&frame=${frame}`, { signal });
        if (!answer.ok) throw new Error(answer.statusText);
        const heat = new Heat(await answer.json(), shapeOf(mine));
        const silent = heat.assessment === "abstained"; // no line where the model does not answer
        const levels = [["sensitive", heat.sensitive_threshold], ["specific", heat.specific_threshold]];
        told = { heat, outlines: silent ? [] : levels.map(([name, level]) => ({ name, level, lines: heat.outline(level) })) };
        heats.keep(mine, told);
      }
    } catch {
      if (!signal.aborted) byId("drawn").textContent = "The heatmap could not be loaded. Load the page again.";
      return;
    }
    if (signal.aborted) return;
    viewer.heat = told.heat;
    viewer.outlines = told.outlines;
    byId("heat-most").textContent = `${told.heat.full < 1 ? "≥ " : ""}${probability(told.heat.full)}`;
    tellDrawn(told);
    setThreshold(byId("threshold").value);
  }

  function tellDrawn({ heat, outlines }) {
    const words = byId("drawn");
    if (heat.assessment === "abstained") {
      const heatmap = unveiled.has(finding) ? "" : " Its heatmap is hidden until you ask for it (h).";
      words.textContent = `No outline is drawn: the model abstains. Silence is not normal.${heatmap}`;
      return;
    }
    const areas = (count) => (count === 0 ? "none here" : count === 1 ? "1 area" : `${count} areas`);
    words.replaceChildren();
    for (const { name, lines } of outlines) {
      const sample = element("svg", { class: "sample", viewBox: "0 0 40 10", width: 40, height: 10, "aria-hidden": true });
      sample.append(element("path", { class: `outline ${name}`, d: "M2 5H38" }));
      const meaning = name === "sensitive" ? "dotted: alone enough for “unclear”" : "solid: alone enough for “positive”";
      const told = document.createElement("span");
      told.append(sample, `${meaning}, score ${name === "sensitive" ? 3 : 7} (${areas(lines.length)})`);
      words.append(told, " ");
    }
  }

  // -- frames and images --

  const frames = () => findings.filter((one) => one.dataset.image === thumb.dataset.image);

  function offerFrames() {
    const all = frames();
    byId("frames").hidden = all.length < 2;
    byId("frame").max = all.length;
    byId("frame").value = all.indexOf(finding) + 1;
    const words = `frame ${finding.dataset.frame} of ${all.length}`;
    byId("frame-value").textContent = words;
    byId("frame").setAttribute("aria-valuetext", words);
  }

  function frameAt(index) {
    const chosen = frames()[index];
    if (chosen) open(thumb, chosen.dataset.frame);
  }
  const stepFrame = (by) => frameAt(frames().indexOf(finding) + by);
  function stepImage(by) {
    const next = thumbs[thumbs.indexOf(thumb) + by];
    if (!next) return;
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    open(next, next.dataset.frame);
  }
  document.addEventListener("osteon:open", ({ detail: { image, frame } }) => {
    const next = thumbs.find((one) => one.dataset.image === String(image));
    if (!next) return;
    open(next, frame);
    const [list, one] = [byId("thumbs"), next.getBoundingClientRect()];
    const edge = list.getBoundingClientRect(); // the list alone is scrolled: the reader's place on the page stays
    if (one.top < edge.top || one.bottom > edge.bottom) list.scrollTop += one.top - edge.top;
    if (one.left < edge.left || one.right > edge.right) list.scrollLeft += one.left - edge.left;
  });

  // -- controls --

  function choosePreset(name) {
    if (name === "own" || !viewer.film) return;
    byId("preset").value = name;
    viewer.setWindow(viewer.film.preset(name));
    tellView();
  }

  // Of an abstention it is hidden until the reader asks for this very one; else as they chose last.
  const abstains = () => finding?.dataset.assessment === "abstained";

  function drawHeat() {
    const on = abstains() ? unveiled.has(finding) : remembered("heatmap", "true") === "true";
    press("overlay", on);
    viewer.showHeat = on;
    viewer.paint();
  }

  function setHeat(on) {
    if (!abstains()) remember("heatmap", on);
    else if (on) unveiled.add(finding);
    else unveiled.delete(finding);
    drawHeat();
    const told = heats.get(finding);
    if (told && abstains()) tellDrawn(told);
  }

  function setShutter(on) {
    press("shutter", on);
    viewer.shutter = on;
    viewer.paint();
  }

  function setLines(on) {
    press("outline", on);
    viewer.showLines = on;
    viewer.paint();
    remember("outline", on);
  }

  function setInvert(on) {
    press("invert", on);
    viewer.setInverted(on);
  }

  function setWindowing(on) {
    press("windowing", on);
    viewer.windowing = on;
    byId("stage").classList.toggle("windowing", on);
  }

  function setOpacity(value) {
    byId("opacity").value = value;
    byId("opacity-value").textContent = `${value} %`;
    viewer.opacity = value / 100;
    viewer.paint();
    remember("opacity", value);
  }

  function setThreshold(value) {
    const full = viewer.heat?.full ?? 1;
    const least = (value / 100) * full;
    byId("threshold").value = value;
    byId("threshold-value").textContent = value > 0 ? `≥ ${probability(least)}` : "all";
    byId("threshold").setAttribute("aria-valuetext", byId("threshold-value").textContent);
    viewer.heat?.colour(least);
    viewer.paint();
  }

  function reset() {
    setInvert(false);
    setWindowing(false);
    setHeat(!abstains());
    setLines(true);
    setShutter(true);
    setOpacity(45);
    setThreshold(0);
    choosePreset("default");
    viewer.fit();
    say("Everything as at the start");
  }

  function slideWindow() {
    const { film, window: [black, white] } = viewer;
    const range = (film.most - film.least || 1) / 1000;
    const sign = Math.sign(white - black) || 1;
    const centre = film.least + byId("centre").value * range;
    const width = Math.max(1, byId("width").value * range);
    viewer.setWindow([centre - (sign * width) / 2, centre + (sign * width) / 2]);
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
  for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
  byId("preset").addEventListener("change", (event) => choosePreset(event.target.value));
  for (const id of ["centre", "width"]) byId(id).addEventListener("input", slideWindow);
  byId("opacity").addEventListener("input", (event) => setOpacity(event.target.value));
  byId("threshold").addEventListener("input", (event) => setThreshold(event.target.value));
  byId("frame").addEventListener("input", (event) => frameAt(event.target.value - 1));
  for (const one of thumbs) one.addEventListener("click", () => open(one, one.dataset.frame));

  const keys = {
    "+": clicks.larger, "=": clicks.larger, "-": clicks.smaller, 0: clicks.fit, 1: clicks.whole, w: clicks.windowing,
    i: clicks.invert, h: clicks.overlay, t: clicks.outline, b: clicks.shutter, r: reset,
    ",": () => stepFrame(-1), ".": () => stepFrame(1), "[": () => stepImage(-1), "]": () => stepImage(1),
  };
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || elsewhere(event)) return;
    const onStage = event.target === byId("stage");
    if (viewer.box && onStage && viewer.markKey(event)) event.preventDefault();
    else if (onStage && moves[event.key]) {
      viewer.pan(...moves[event.key]);
      event.preventDefault();
    } else if (keys[event.key] && !(event.repeat && !"+-=,.[]".includes(event.key))) {
      keys[event.key]();
      event.preventDefault();
    }
  });

  const scale = byId("heat-scale").getContext("2d");
  const colours = scale.createImageData(256, 10);
  new Uint32Array(colours.data.buffer).forEach((_, i, out) => (out[i] = Heat.palette[i % 256]));
  scale.putImageData(colours, 0, 0);
  setLines(remembered("outline", "true") === "true");
  setOpacity(remembered("opacity", "45"));
  setThreshold(0);
  const asked = new URLSearchParams(location.hash.slice(1));
  const first = thumbs.find((one) => one.dataset.image === asked.get("image"));
  const start = first ?? thumbs.find((one) => one.getAttribute("aria-pressed") === "true");
  open(start, first ? asked.get("frame") : start.dataset.frame);
  if (!finding) open(start, start.dataset.frame); // a frame that is not there
}

// Who writes or chooses means that, not the page; a slider needs no letters.
const elsewhere = (event) =>
  document.querySelector("dialog[open]") || event.target.closest("input:not([type=range]), textarea, select, [contenteditable]");

// -- helpers of the viewer --------------------------------------------------------------------------------------

// The last few of many things: a study may have hundreds of films.
class Kept {
  constructor(most) {
    this.most = most;
    this.things = new Map();
  }
  get(key) {
    const thing = this.things.get(key);
    if (thing) this.keep(key, thing);
    return thing;
  }
  keep(key, thing) {
    this.things.delete(key);
    this.things.set(key, thing);
    if (this.things.size > this.most) this.things.delete(this.things.keys().next().value);
  }
}

// A finding's image as people see it: its size in square pixels, and its exposed field in shares.
function shapeOf({ dataset: { rows, columns, field } }) {
  const [x, y, width, height] = field.split(" ").map(Number);
  return { width: Number(columns), height: Number(rows), field: { x, y, width, height } };
}

const pause = (ms, signal) =>
  new Promise((done) => {
    setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });

// Ask until the worker has made the film; waiting(trouble) is called each time it is not there.
async function fetchFilm(study, finding, signal, waiting) {
  const { image, frame } = finding;
  for (let wait = 250; ; wait = Math.min(5000, wait * 1.5)) {
    let trouble = "";
    try {
      const answer = await fetch(`/studies/${study}/film?image=${image}&frame=${frame}`, { signal });
      if (answer.status === 200) {
        const about = JSON.parse(answer.headers.get("Osteon-Film"));
        return Film.ofAnswer(await answer.arrayBuffer(), about, shapeOf({ dataset: finding }));
      }
      const { detail } = await answer.json();
      if (answer.status < 500 && answer.status !== 202) throw new Refused(detail);
      if (answer.status !== 202) trouble = detail;
    } catch (wrong) {
      if (wrong instanceof Refused || signal.aborted) throw wrong;
      trouble = "the server does not answer.";
    }
    waiting(trouble);
    await pause(wait, signal);
  }
}

class Refused extends Error {}

// -- start, refreshing ------------------------------------------------------------------------------------------

if (byId("viewer")) openViewer();
byId("back").search = remembered("worklist", ""); // back to the filters the reader came with

const help = () => byId("help-sheet").showModal();
byId("help").addEventListener("click", help);
const pageKeys = { "?": help, u: () => byId("back").click() };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.defaultPrevented || elsewhere(event)) return;
  if (!pageKeys[event.key]) return;
  event.preventDefault();
  pageKeys[event.key]();
});

const main = byId("main");
setInterval(() => Times.show(document), 30000);

// Words that are being written, and a box that is being drawn, are not taken away.
const occupied = () => !byId("reply-form").hidden || Boolean(document.querySelector(".stage.marking, dialog[open]"));

async function lookAgain() {
  if (document.hidden) return;
  const headers = { Accept: "text/html", "If-None-Match": main.dataset.version };
  const answer = await fetch(location.href, { headers }).catch(() => null);
  if (!answer?.ok) return;
  if (occupied()) byId("news").hidden = false;
  else location.reload();
}
if (main.dataset.refresh) setInterval(lookAgain, main.dataset.refresh * 1000);
// A revised finding may be of this very study: films that somebody looks at are not taken away for it.
document.addEventListener("osteon:revised", async () => {
  if (document.querySelector(".revision-seen[role=status]")) return; // this page said so itself
  const headers = { Accept: "text/html", "If-None-Match": main.dataset.version };
  const answer = await fetch(location.href, { headers }).catch(() => null);
  if (answer?.ok) byId("news").hidden = false;
});
byId("reload").addEventListener("click", () => location.reload());
