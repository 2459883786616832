// Elements out of text: whatever came from a model, a document or a service is a text node, never markup. The page's
// Trusted Types policy lets nothing else through either.

export type Child = Node | string | null | undefined | false;
type Attributes = Record<string, string | number | boolean | null | undefined>;

/** An element with these attributes and children; `true` is an empty attribute, `false` and null leave it out. */
export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: (Child | Child[])[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.flat().filter((child): child is Node | string => Boolean(child)));
  return made;
}

/** A button that does something. */
export function button(text: string, act: () => void, attributes: Attributes = {}): HTMLButtonElement {
  const made = el("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", act);
  return made;
}

/** A dialog with a heading and a way out, open; it is gone when it closes, and the focus goes back. */
export function dialog(title: string, close: string, ...content: Child[]): HTMLDialogElement {
  const before = document.activeElement;
  const heading = el("h2", { id: "dialog-title" }, title);
  const made = el("dialog", { "aria-labelledby": "dialog-title" });
  const leave = button(close, () => made.close(), { class: "leave", "aria-label": close });
  made.append(el("div", { class: "head" }, heading, leave), ...content.filter((one): one is Node | string => Boolean(one)));
  made.addEventListener("click", (event) => {
    if (event.target === made) made.close();
  });
  made.addEventListener("close", () => {
    made.remove();
    if (before instanceof HTMLElement) before.focus();
  });
  document.body.append(made);
  made.showModal();
  return made;
}
