// Did a study arrive, and what became of it?

import { byId, make, one } from "../lib/dom.js";

/** @typedef {{id: string, stage: string, received_at: string, ended_at: string | null, images: number, detail: string, completeness: string}} Study */
/** @typedef {{stage: string, received_at: string, ended_at: string | null}} HeldFile */

/** @type {Record<string, string>} */
export const STAGES = {
  received: "received, waits to be analysed", analysing: "being analysed", analysed: "analysed", kept: "kept, not analysed",
  failed: "could not be analysed", held: "held until an administrator decides", rejected: "rejected by an administrator",
};

/** What is asked for: a Study Instance UID begins with 0, 1 or 2, and has three numbers at least. @param {string} text */
export const question = (text) => {
  const number = text.trim();
  return /^[0-2](\.[0-9]+){2,}$/.test(number) ? { study_instance_uid: number } : { accession_number: number };
};

/** @param {string} time */
const at = (time) => new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** @param {string} stage @param {string} received @param {string | null} ended @param {string} more */
function paragraph(stage, received, ended, more = "") {
  const words = STAGES[stage] ?? stage;
  const line = make("p", {}, make("b", {}, words.charAt(0).toUpperCase() + words.slice(1)));
  line.append(`. Received ${at(received)}${ended ? `, ${stage} ${at(ended)}` : ""}.${more ? ` ${more}` : ""}`);
  return line;
}

/** @param {{studies: Study[], held: HeldFile[]}} found */
function shown({ studies, held }) {
  const lines = studies.map((each) => {
    const images = `${each.images} ${each.images === 1 ? "file" : "files"}${each.completeness === "receiving" ? ", more may follow" : ""}.`;
    return paragraph(each.stage, each.received_at, each.ended_at, `${images} ${each.detail} Study ${each.id}.`.replace("  ", " "));
  });
  lines.push(...held.map((each) => paragraph(each.stage, each.received_at, each.ended_at, "One file.")));
  if (lines.length) return lines;
  return [make("p", {}, "Nothing with this number is stored here. A file that was rejected is not stored: the receipt of its upload says why.")];
}

/** From now on. */
export function answerQuestions() {
  const form = byId("ask-form", HTMLFormElement);
  const answer = byId("answer");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const number = one("#number", form, HTMLInputElement).value;
    answer.replaceChildren(make("p", {}, "Asking …"));
    const response = await fetch("/api/v1/studies/arrived", {
      method: "POST", body: JSON.stringify(question(number)), headers: { Accept: "application/json", "Content-Type": "application/json" },
      signal: AbortSignal.timeout(30000),
    }).catch(() => null);
    const value = await response?.json().catch(() => null);
    if (response?.ok && value) answer.replaceChildren(...shown(value));
    else {
      const words = typeof value?.detail === "string" ? value.detail : response ? `The server answers ${response.status}.` : "The server does not answer. Ask again.";
      answer.replaceChildren(make("p", { className: "wrong" }, words));
    }
    answer.focus();
  });
}
