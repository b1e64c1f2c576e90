// Elements of the page, found or made. What a page must have and does not have is an error that names it.

/**
 * @template {Element} T
 * @typedef {new () => T} ElementClass the class of an element, such as HTMLInputElement
 */

/**
 * @template {Element} T
 * @param {unknown} found
 * @param {ElementClass<T> | undefined} kind HTMLElement where it is left out
 * @param {string} name what was looked for
 * @returns {T}
 */
function required(found, kind, name) {
  if (found instanceof (kind ?? HTMLElement)) return /** @type {T} */ (found);
  throw new TypeError(`The page has no ${(kind ?? HTMLElement).name} ${name}`);
}

/**
 * The element with this id. Throws TypeError where the page has none of this kind.
 * @template {Element} [T=HTMLElement]
 * @param {string} id
 * @param {ElementClass<T>} [kind]
 * @returns {T}
 */
export const byId = (id, kind) => required(document.getElementById(id), kind, `#${id}`);

/**
 * The first element that a selector finds. Throws TypeError where it finds none of this kind.
 * @template {Element} [T=HTMLElement]
 * @param {string} selector
 * @param {ParentNode} [within]
 * @param {ElementClass<T>} [kind]
 * @returns {T}
 */
export const one = (selector, within = document, kind) => required(within.querySelector(selector), kind, selector);

/**
 * All elements that a selector finds.
 * @template {Element} [T=HTMLElement]
 * @param {string} selector
 * @param {ParentNode} [within]
 * @param {ElementClass<T>} [kind]
 * @returns {T[]}
 */
export const all = (selector, within = document, kind) =>
  [...within.querySelectorAll(selector)].map((found) => required(found, kind, selector));

/**
 * The element of an event that a selector fits: what was pressed, or what holds it.
 * @param {Event} event
 * @param {string} selector
 * @returns {HTMLElement | null}
 */
export const around = (event, selector) => (event.target instanceof Element ? event.target.closest(selector) : null);

/**
 * What a data attribute of an element says. Throws TypeError where it has none.
 * @param {HTMLElement} element
 * @param {string} name as `dataset` has it
 * @returns {string}
 */
export function data(element, name) {
  const value = element.dataset[name];
  if (value === undefined) throw new TypeError(`<${element.localName} id="${element.id}"> has no data-${name}`);
  return value;
}

/**
 * A new element.
 * @template {keyof HTMLElementTagNameMap} N
 * @param {N} name
 * @param {Partial<HTMLElementTagNameMap[N]>} [properties]
 * @param {...(string | Node)} parts what it holds
 * @returns {HTMLElementTagNameMap[N]}
 */
export function make(name, properties = {}, ...parts) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...parts);
  return made;
}

/**
 * A new element of SVG.
 * @template {keyof SVGElementTagNameMap} N
 * @param {N} name
 * @param {Record<string, string | number | boolean>} attributes
 * @returns {SVGElementTagNameMap[N]}
 */
export function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, String(value));
  return made;
}

/** The 2D context of a canvas. @param {HTMLCanvasElement} canvas @param {CanvasRenderingContext2DSettings} [settings] */
export function drawing(canvas, settings) {
  const context = canvas.getContext("2d", settings);
  if (!context) throw new Error("This browser does not draw on canvases");
  return context;
}
