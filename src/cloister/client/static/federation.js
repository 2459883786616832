// The page of a federated run: asks its own back end on this machine, and lays out what that made of a verified aggregator's
// facts. Elements arrive as lists of tag, attributes and children; only those named here are made, and text is always text.

import { ask, fill, notice } from "./elements.js";

/** Milliseconds between two questions, and once no round follows. */
const PAUSE = 2000;
const OVER = 15000;
const SVG = "http://www.w3.org/2000/svg";
const TAGS = new Set(
  ("article caption code dd desc div dl dt figcaption figure footer g h1 h2 h3 header li line main ol p path section span " +
    "strong svg table tbody td text th thead time title tr ul").split(" "),
);
const ATTRIBUTES = new Set(
  ("aria-label aria-labelledby class d datetime id role scope stroke-dasharray tabindex text-anchor viewBox x x1 x2 y " +
    "y1 y2").split(" "),
);
const content = document.getElementById("content");
const pause = document.getElementById("pause");
let held = false;
let timer = null;

/** A new element, or a text. */
function grow(node, drawing) {
  if (typeof node === "string") return document.createTextNode(node);
  const [tag, attributes, children] = node;
  if (!TAGS.has(tag)) throw new Error(`the page has no element ${tag}`);
  const inside = drawing || tag === "svg";
  const made = inside ? document.createElementNS(SVG, tag) : document.createElement(tag);
  dress(made, attributes);
  made.append(...children.map((child) => grow(child, inside)));
  return made;
}

/** Give an element these attributes, and no others. */
function dress(element, attributes) {
  for (const name of element.getAttributeNames()) {
    if (!(name in attributes)) element.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(attributes)) {
    if (!ATTRIBUTES.has(name)) throw new Error(`the page has no attribute ${name}`);
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
}

/** Make the children of a place these, touching only what differs: focus, scrolling and selection stay. */
function tend(place, nodes, drawing) {
  const old = [...place.childNodes];
  nodes.forEach((node, at) => {
    const now = old[at];
    if (now === undefined) place.append(grow(node, drawing));
    else if (typeof node === "string" && now.nodeType === Node.TEXT_NODE) {
      if (now.data !== node) now.data = node;
    } else if (typeof node !== "string" && now.localName === node[0] && now.id === (node[1].id ?? "")) {
      dress(now, node[1]);
      tend(now, node[2], drawing || node[0] === "svg");
    } else now.replaceWith(grow(node, drawing));
  });
  for (const left of old.slice(nodes.length)) left.remove();
}

const clock = () => new Date().toLocaleTimeString([], { hour12: false });

/** Ask once, show it, and come again. */
async function look() {
  clearTimeout(timer);
  let next = PAUSE;
  try {
    const found = await ask("api/run");
    tend(content, found.parts, false);
    document.title = `${found.title} (Cloister)`;
    const said = document.getElementById("said");
    if (said.textContent !== found.said) said.textContent = found.said;
    if (document.getElementById("notices").hasChildNodes()) fill("notices");
    fill("when", `as of ${clock()}`);
    document.body.dataset.state = held ? "held" : "shown";
    next = found.over ? OVER : PAUSE;
  } catch (error) {
    if (document.getElementById("notices").textContent !== error.message) {
      fill("notices", notice({ tone: "bad", text: error.message, todo: "" }));
    }
    if (document.body.dataset.state !== "failed") fill("when", `nothing newer since ${clock()}`);
    document.body.dataset.state = "failed";
  }
  if (!held) timer = setTimeout(look, next);
}

pause.addEventListener("click", () => {
  held = !held;
  pause.setAttribute("aria-pressed", String(held));
  if (held) {
    clearTimeout(timer);
    document.body.dataset.state = "held";
    fill("when", `held still at ${clock()}`);
  } else look();
});
document.body.dataset.state = "asking";
look();
