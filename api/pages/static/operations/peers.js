// Who may send by DICOM: one form adds a peer, admits a refused caller, and changes a peer; the button says which values it begins with.

import { all, around, byId, data, one } from "../lib/dom.js";
import { call, say } from "./talk.js";

/**
 * Let the form do what its buttons say.
 * @param {HTMLDialogElement} peer
 * @param {() => Promise<void>} refresh of the page
 */
export function usePeers(peer, refresh) {
  const peerForm = byId("peer-form", HTMLFormElement);
  let peerId = "";

  /** What is wrong with the form, said within it. @param {string} words */
  function peerWrong(words) {
    const box = byId("peer-wrong");
    box.hidden = !words;
    one("span", box).textContent = words;
  }

  document.addEventListener("click", (event) => {
    const button = around(event, "button[data-peer]");
    if (!button) return;
    const words = button.dataset.words ?? "Add a peer";
    /** @type {Record<string, string | number | boolean | null>} */
    const values = { called_ae: "OSTEON", may_send: true, ...JSON.parse(data(button, "peer")) };
    peerId = String(values.id ?? "");
    peerForm.reset();
    peerWrong("");
    for (const field of all("input", peerForm, HTMLInputElement)) {
      const value = values[field.name];
      if (field.type === "checkbox") field.checked = value === true;
      else field.value = String((field.name === "query_port" ? value || "" : value) ?? "");
    }
    for (const part of all(".new", peerForm)) part.hidden = peerId !== "";
    byId("peer-query", HTMLDetailsElement).open = Boolean(values.query_host);
    byId("peer-title").textContent = words;
    byId("peer-save").textContent = words.split(" ", 1)[0];
    peer.showModal();
  });

  byId("peer-cancel").addEventListener("click", () => peer.close());

  peerForm.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { name, site, silent_after_h, query_port, ...texts } = Object.fromEntries(new FormData(peerForm));
    const wanted = {
      ...texts,
      may_send: one('[name="may_send"]', peerForm, HTMLInputElement).checked,
      may_commit: one('[name="may_commit"]', peerForm, HTMLInputElement).checked,
      silent_after_h: silent_after_h === "" ? null : Number(silent_after_h),
      query_port: Number(query_port),
      ...(!peerId && name && { name }),
      ...(!peerId && site && { site }),
    };
    const how = { method: peerId ? "PUT" : "POST", body: JSON.stringify(wanted), headers: { "Content-Type": "application/json" } };
    const made = await call(`/api/v1/dicom-peers${peerId && `/${peerId}`}`, how, peerWrong);
    if (made === null) return;
    peer.close();
    say(`${made.name} ${peerId ? "is changed" : `may send to ${made.called_ae} now`}.`);
    await refresh();
  });
}
