// The files that somebody dropped or chose: of a folder or a disc, all that are in it.

/** @typedef {import("./plan.js").Item} Item */

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<FileSystemEntry[]>} */
async function entriesOf(folder) {
  const reader = folder.createReader();
  /** @type {FileSystemEntry[]} */
  const found = [];
  for (;;) { // a browser gives some at a time
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...some);
  }
}

/** @param {FileSystemFileEntry} entry @returns {Promise<File>} */
const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

/**
 * All files of entries, folder by folder. What cannot be read is told, and hurts nothing else.
 * @param {FileSystemEntry[]} entries
 * @param {(path: string) => void} unreadable
 * @returns {Promise<Item[]>}
 */
export async function walked(entries, unreadable) {
  /** @type {Item[]} */
  const items = [];
  const left = [...entries].reverse();
  for (let entry = left.pop(); entry; entry = left.pop()) {
    const path = entry.fullPath.replace(/^\//, "");
    try {
      if (entry.isDirectory) left.push(...(await entriesOf(/** @type {FileSystemDirectoryEntry} */ (entry))).reverse());
      else {
        const file = await fileOf(/** @type {FileSystemFileEntry} */ (entry));
        items.push({ path, size: file.size, file });
      }
    } catch {
      unreadable(path);
    }
  }
  return items;
}

/** What was dropped, before the browser forgets it. @param {DataTransfer} dropped */
export const entriesOfDrop = (dropped) =>
  [...dropped.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);

/** What was chosen by a button. @param {FileList} files @returns {Item[]} */
export const chosen = (files) => [...files].map((file) => ({ path: file.webkitRelativePath || file.name, size: file.size, file }));
