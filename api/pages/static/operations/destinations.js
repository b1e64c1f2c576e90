// Where results go: one form adds a destination and changes where one is, as that of peers.

import { all, around, byId, data, one } from "../lib/dom.js";
import { showSecret } from "./secret.js";
import { call, say } from "./talk.js";

/**
 * Let the form do what its buttons say.
 * @param {HTMLDialogElement} destination
 * @param {() => Promise<void>} refresh of the page
 */
export function useDestinations(destination, refresh) {
  const destinationForm = byId("destination-form", HTMLFormElement);
  const kindField = one('[name="kind"]', destinationForm, HTMLSelectElement);
  let destinationId = "";

  /** What is wrong with the form, said within it. @param {string} words */
  function destinationWrong(words) {
    const box = byId("destination-wrong");
    box.hidden = !words;
    one("span", box).textContent = words;
  }

  /** Only what the chosen kind of destination has is asked for; what cannot be changed later, when one is added. */
  function showFields() {
    for (const part of all("[data-kinds], .new", destinationForm)) {
      const { kinds } = part.dataset;
      const later = destinationId !== "" && part.classList.contains("new");
      part.hidden = later || (kinds !== undefined && !kinds.split(" ").includes(kindField.value));
    }
  }
  kindField.addEventListener("change", showFields);

  /** The fields that say where a destination is, of the chosen kind. */
  const placeFields = () =>
    all("[data-kinds]:not([hidden]):not(.new) :is(input, select)", destinationForm).filter((field) => !field.closest("fieldset"));

  /** The fields that say in which hours something goes, where the chosen kind has them. */
  const hourFields = () => all('label:not([hidden]) [name^="hour_"]', destinationForm, HTMLInputElement);

  /** What is ticked of a list, of the chosen kind. @param {string} name */
  const ticked = (name) =>
    all(`fieldset:not([hidden]) label:not([hidden]) [name="${name}"]`, destinationForm, HTMLInputElement)
      .filter((box) => box.checked)
      .map((box) => box.value);

  document.addEventListener("click", (event) => {
    const button = around(event, "button[data-destination]");
    if (!button) return;
    const words = button.dataset.words ?? "Add a destination";
    /** @type {Record<string, string | number | boolean>} */
    const values = { kind: "dicom", ...JSON.parse(data(button, "destination")) };
    destinationId = String(values.id ?? "");
    destinationForm.reset();
    destinationWrong("");
    kindField.value = String(values.kind);
    showFields();
    for (const field of destinationId ? placeFields() : []) {
      if (field instanceof HTMLSelectElement) field.value = String(values[field.name]);
      else if (field instanceof HTMLInputElement && field.type === "checkbox") field.checked = values[field.name] === true;
      else if (field instanceof HTMLInputElement) field.value = String(values[field.name] || "");
    }
    one('[name="name"]', destinationForm, HTMLInputElement).required = destinationId === "";
    byId("destination-title").textContent = words;
    byId("destination-save").textContent = words.split(" ", 1)[0];
    destination.showModal();
  });

  byId("destination-cancel").addEventListener("click", () => destination.close());

  destinationForm.addEventListener("submit", async (event) => {
    event.preventDefault();
    /** @type {Record<string, unknown>} */
    const wanted = { kind: kindField.value };
    for (const field of placeFields()) {
      if (field instanceof HTMLSelectElement) wanted[field.name] = field.value;
      else if (field instanceof HTMLInputElement) {
        wanted[field.name] = field.type === "checkbox" ? field.checked : field.type === "number" ? Number(field.value) : field.value;
      }
    }
    if (!destinationId) {
      const chosen = new FormData(destinationForm);
      wanted.name = chosen.get("name");
      const hours = hourFields().map((field) => [field.name, field.valueAsNumber]);
      wanted.rules = [{ when: chosen.get("when"), kinds: ticked("kinds"), events: ticked("events"), ...Object.fromEntries(hours) }];
      if (chosen.has("site")) wanted.site = chosen.get("site");
    }
    const how = { method: destinationId ? "PUT" : "POST", body: JSON.stringify(wanted), headers: { "Content-Type": "application/json" } };
    const made = await call(`/api/v1/destinations${destinationId && `/${destinationId}`}`, how, destinationWrong);
    if (made === null) return;
    destination.close();
    say(`${made.name} ${destinationId ? "is changed" : "gets results from now on"}. Test it.`);
    await refresh();
    if (made.secret) showSecret("webhook-secret", made);
  });
}
