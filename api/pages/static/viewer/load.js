// Radiographs and heatmaps of a study as the server gives them, and the last few of each.

import { backOff } from "../live/refresh.js";
import { data } from "../lib/dom.js";
import { Radiograph } from "./radiograph.js";

/** @typedef {import("./gray.js").Shape} Shape */

const ASK_AGAIN = { first: 250, factor: 1.5, most: 5000 };

/**
 * The last few of many things: a study may have hundreds of radiographs.
 * @template K, T
 */
export class Recent {
  /**
   * @param {number} most how many are kept
   * @param {object} [bound]
   * @param {(thing: T) => number} [bound.weigh]
   * @param {number} [bound.mostWeight] of all that are kept; the one that was used last is kept whatever it weighs
   */
  constructor(most, { weigh = () => 0, mostWeight = Infinity } = {}) {
    this.most = most;
    this.weigh = weigh;
    this.mostWeight = mostWeight;
    /** @type {Map<K, T>} the one that was used last stands last */
    this.things = new Map();
  }

  /** @param {K} key @returns {T | undefined} */
  get(key) {
    const thing = this.things.get(key);
    if (thing !== undefined) this.keep(key, thing);
    return thing;
  }

  /** @param {K} key @param {T} thing */
  keep(key, thing) {
    this.things.delete(key);
    this.things.set(key, thing);
    let weight = [...this.things.values()].reduce((sum, one) => sum + this.weigh(one), 0);
    for (const [oldest, one] of this.things) {
      if (this.things.size === 1 || (this.things.size <= this.most && weight <= this.mostWeight)) break;
      this.things.delete(oldest);
      weight -= this.weigh(one);
    }
  }
}

/**
 * A radiograph as people see it.
 * @param {HTMLElement} finding of it, or a prior's thumb
 * @returns {Shape}
 */
export function shapeOf(finding) {
  const [x, y, width, height] = data(finding, "field").split(" ").map(Number);
  return {
    width: Number(finding.dataset.columns), height: Number(finding.dataset.rows),
    field: { x, y, width, height, turn: Number(finding.dataset.turn) },
  };
}

/**
 * Wait, or until something is given up.
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export const pause = (ms, signal) =>
  new Promise((done) => {
    setTimeout(done, ms);
    signal.addEventListener("abort", () => done());
  });

/** The server says that there is no such radiograph, and why. */
class LoadError extends Error {}

/**
 * Ask until the worker has made the radiograph. Rejects with an Error whose message says why there is none.
 * @param {string} study
 * @param {HTMLElement} finding
 * @param {AbortSignal} signal
 * @param {(trouble: string) => void} waiting called each time it is not there yet; trouble: what is wrong, if anything
 */
export async function fetchFrame(study, finding, signal, waiting) {
  const { image, frame } = finding.dataset;
  for (let tries = 1; ; tries++) {
    let trouble = "";
    try {
      const response = await fetch(`/api/v1/studies/${study}/frame?image=${image}&frame=${frame}`, { signal });
      if (response.status === 200) {
        const about = JSON.parse(response.headers.get("Osteon-Frame") ?? "");
        return Radiograph.ofResponse(await response.arrayBuffer(), about, shapeOf(finding));
      }
      const { detail } = await response.json();
      if (response.status < 500 && response.status !== 202) throw new LoadError(detail);
      if (response.status !== 202) trouble = detail;
    } catch (wrong) {
      if (wrong instanceof LoadError || signal.aborted) throw wrong;
      trouble = "the server does not answer.";
    }
    waiting(trouble);
    await pause(backOff(tries, ASK_AGAIN), signal);
  }
}
