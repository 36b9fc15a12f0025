// The document. Whatever the app can influence becomes text (textContent), never HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export function svg(tag, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export function write(node, text, mood = "") {
  // Untouched where nothing changed: a selection stays, and nothing is read out again.
  if (node.textContent !== text) node.textContent = text;
  if ((node.dataset.mood ?? "") !== mood) node.dataset.mood = mood;
}
