import assert from "node:assert/strict";
import test from "node:test";
import { addresses } from "../../api/pages/static/live/ahead.js";

test("previews of the next study come before its frames, and all of it before the study after it", () => {
  const picture = (/** @type {string} */ name, full = true) => ({ preview_url: `${name}.jpg`, frame_url: full ? `${name}.raw` : null });
  const studies = [
    { url: "/view/1", pictures: [picture("a"), picture("b", false)] },
    { url: "/view/2", pictures: [picture("c")] },
    { url: "/view/3", pictures: [] },
  ];
  assert.deepEqual(addresses(studies), ["a.jpg", "b.jpg", "a.raw", "c.jpg", "c.raw"]);
  assert.deepEqual(addresses([]), []);
});
