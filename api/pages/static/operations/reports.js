// Comparisons of models and reports of backfill runs, as tables.

import { byId, make, one } from "../lib/dom.js";

const ASSESSMENTS = ["positive", "unclear", "abstained", "negative"];
const NAMED = 20; // studies that are linked; /docs tells how scripts get all

/** @typedef {Record<string, Record<string, number>>} Changes old assessment -> new assessment -> studies */

/**
 * @param {string} caption
 * @param {string[]} heads
 * @param {[string, ...(string | number)[]][]} rows
 */
function table(caption, heads, rows) {
  const made = make("table", { className: "sheet" }, make("caption", {}, caption));
  const head = made.createTHead().insertRow();
  for (const name of heads) head.append(make("th", { scope: "col", className: name === heads[0] ? "" : "number" }, name));
  const body = made.createTBody();
  for (const [name, ...values] of rows) {
    const row = body.insertRow();
    row.append(make("th", { scope: "row" }, name));
    for (const value of values) row.append(make("td", { className: "number" }, typeof value === "number" ? value.toLocaleString("en") : value));
  }
  return made;
}

/** @param {string} caption @param {Changes} changes */
function changesTable(caption, changes) {
  /** @type {[string, ...number[]][]} */
  const rows = ASSESSMENTS.filter((old) => changes[old]).map((old) => [`was ${old}`, ...ASSESSMENTS.map((now) => changes[old][now] ?? 0)]);
  return table(caption, ["", ...ASSESSMENTS.map((now) => `now ${now}`)], rows);
}

/** @param {string} words @param {string[]} ids of studies */
function named(words, ids) {
  const part = make("p", {}, ids.length ? `${words}: ` : "");
  ids.slice(0, NAMED).forEach((id, number) => {
    part.append(number ? ", " : "", make("a", { href: `/view/${id}`, title: id }, id.slice(0, 8)));
  });
  if (ids.length > NAMED) part.append(` and ${ids.length - NAMED} more`);
  return part;
}

/** @param {number} count */
function studies(count) {
  return `${count.toLocaleString("en")} ${count === 1 ? "study" : "studies"}`;
}

/** @param {string} title @param {...Node} parts */
function show(title, ...parts) {
  const part = byId("compared");
  part.hidden = false;
  one("h2", part).textContent = title;
  one("div", part).replaceChildren(...parts);
  one("h2", part).focus();
}

/** @typedef {{studies: number, changes: Changes, probability_change: number, abstention_change: number}} Stratum */

/**
 * @param {{old: string, new: string, all: Stratum, regions: Record<string, Stratum>, newly_positive: number, newly_negative: number,
 *   newly_positive_studies: string[], newly_negative_studies: string[], notice: string}} value of GET /api/v1/bundles/{}/compare/{}
 */
export function compared(value) {
  /** @param {Stratum} stratum */
  const changed = ({ changes }) =>
    ASSESSMENTS.flatMap((old) => ASSESSMENTS.map((now) => (old === now ? 0 : changes[old]?.[now] ?? 0))).reduce((sum, each) => sum + each, 0);
  /** @type {[string, ...(string | number)[]][]} */
  const regions = Object.entries(value.regions).map(([name, each]) => [
    name, each.studies, changed(each), each.probability_change.toFixed(3), each.abstention_change,
  ]);
  const words = value.all.studies
    ? `Both have looked at ${studies(value.all.studies)}. ${value.new} does not say negative of ${studies(value.newly_positive)} of which ${value.old} did, and says negative of ${studies(value.newly_negative)} of which it did not.`
    : `No study was looked at by both yet: Shadow lets ${value.new} look at history, unseen.`;
  show(
    `${value.old} against ${value.new}`,
    make("p", {}, words),
    ...(value.all.studies ? [
      changesTable(`Assessments by ${value.old}, and what ${value.new} makes of them`, value.all.changes),
      table("By region, as the former recognised it", ["region", "studies", "assessments that change", "mean change of probability", "more abstentions"], regions),
    ] : []),
    named("Newly unclear or positive", value.newly_positive_studies),
    named("Newly negative", value.newly_negative_studies),
    make("p", { className: "quiet" }, value.notice),
  );
}

/**
 * @param {{run: {day: string, bundle: string}, kinds: Record<string, Record<string, number>>, changes: Changes, newly_positive: number,
 *   newly_negative: number, from_abstained: number, revised_findings: {study_id: string}[], from_abstained_studies: string[],
 *   notice: string}} value of GET /api/v1/backfill-runs/{day}
 */
export function backfillRun(value) {
  const states = [...new Set(Object.values(value.kinds).flatMap((each) => Object.keys(each)))].sort();
  /** @type {[string, ...number[]][]} */
  const rows = Object.entries(value.kinds).map(([kind, counts]) => [kind, ...states.map((state) => counts[state] ?? 0)]);
  const words = `${studies(value.newly_positive)} that the older bundle assessed as negative ${value.newly_positive === 1 ? "is" : "are"} unclear or positive now, ${value.newly_negative.toLocaleString("en")} no longer; ${value.from_abstained.toLocaleString("en")} of those it abstained on are.`;
  show(
    `Backfill run of ${value.run.day}, ${value.run.bundle}`,
    make("p", {}, words),
    rows.length ? table("What was chosen, and how it ended", ["why chosen", ...states], rows) : make("p", {}, "There was nothing to look at."),
    ...(Object.keys(value.changes).length ? [changesTable("Assessments before and after", value.changes)] : []),
    named("Newly unclear or positive, at this site", value.revised_findings.map((each) => each.study_id)),
    named("Unclear or positive after an abstention, at this site", value.from_abstained_studies),
    make("p", { className: "quiet" }, value.notice),
  );
}
