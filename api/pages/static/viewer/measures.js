// Lengths and angles that a reader measures on a radiograph: what they say, and how they survive a reload.

import { angle, distance } from "./geometry.js";

/** @typedef {import("./contours.js").Point} Point */
/** @typedef {import("./geometry.js").Size} Size */
/** @typedef {"length" | "angle"} Kind */
/** @typedef {{image: number, frame: number, study: string}} Where the image and the frame of a study */
/** @typedef {Where & {kind: Kind, points: Point[]}} Measure points: 0..1 of the radiograph; an angle's vertex is the second one */
/** @typedef {{mm: number, from: string} | null} Calibration mm of a pixel, and the DICOM keyword that says so; null: nothing does */

/** @type {Readonly<Record<Kind, number>>} */
export const POINTS = Object.freeze({ length: 2, angle: 3 });
const MAX_MEASURES = 200;
/** @type {Readonly<Record<string, string>>} */
const SOURCES = Object.freeze({
  PixelSpacing: "by Pixel Spacing", ImagerPixelSpacing: "at the detector, by Imager Pixel Spacing",
  NominalScannedPixelSpacing: "by Nominal Scanned Pixel Spacing",
});

/** How a calibration is told. @param {Calibration} calibration */
export const calibrationWords = (calibration) => (calibration ? (SOURCES[calibration.from] ?? "by the file’s spacing") : "in pixels: the file has no spacing");

/**
 * The millimetres of a pixel of a radiograph, whose pixels are square.
 * @param {{spacing?: [number, number] | null, spacing_from?: string, rows: number, columns: number}} about as Osteon-Frame says; spacing: mm
 *   from row to row and from column to column
 * @param {Size} size of the radiograph
 * @returns {Calibration}
 */
export function calibrationOf({ spacing, spacing_from: from = "", columns }, { width }) {
  if (!spacing || !(spacing[1] > 0) || !width) return null;
  return { mm: (spacing[1] * columns) / width, from };
}

/**
 * @param {Pick<Measure, "kind" | "points">} measure
 * @param {Size} size of the radiograph
 * @param {Calibration} calibration
 */
export function measureWords({ kind, points }, { width, height }, calibration) {
  const [one, two, three] = points.map(([x, y]) => /** @type {Point} */ ([x * width, y * height]));
  if (kind === "angle") return `${angle(one, two, three).toFixed(1)}°`;
  const pixels = distance(one, two);
  return calibration ? `${(pixels * calibration.mm).toFixed(1)} mm${calibration.from === "ImagerPixelSpacing" ? " at the detector" : ""}` : `${Math.round(pixels)} px`;
}

/** @param {unknown} value */
const isShare = (value) => typeof value === "number" && value >= 0 && value <= 1;

/** @param {any} one of an unknown kind @returns {one is Measure} */
function isMeasure(one) {
  return (
    one !== null && typeof one === "object" && (one.kind === "length" || one.kind === "angle") && Number.isInteger(one.image) && Number.isInteger(one.frame) &&
    typeof one.study === "string" && Array.isArray(one.points) && one.points.length === POINTS[/** @type {Kind} */ (one.kind)] &&
    one.points.every((/** @type {unknown} */ point) => Array.isArray(point) && point.length === 2 && point.every(isShare))
  );
}

/**
 * The measures that were kept; what cannot be read is left out.
 * @param {string | null} text
 * @returns {Measure[]}
 */
export function readMeasures(text) {
  try {
    const kept = JSON.parse(text ?? "[]");
    return Array.isArray(kept) ? kept.filter(isMeasure).slice(-MAX_MEASURES) : [];
  } catch {
    return [];
  }
}

/** @param {Measure[]} measures the newest last */
export const writeMeasures = (measures) => JSON.stringify(measures.slice(-MAX_MEASURES));
