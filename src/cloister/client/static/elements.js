// Elements out of text: whatever came from a broker is a text node, never markup. The page's Trusted Types policy lets
// nothing else through either.

/** An element with these attributes and children; strings become text, null is left out. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== "" && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== ""));
  return made;
}

/** Put these children in place of all there were. */
export function fill(id, ...children) {
  const place = document.getElementById(id);
  place.replaceChildren(...children.flat().filter((child) => child !== null));
  return place;
}

/** Named values of a definition list. */
export function facts(list) {
  return list.map((fact) =>
    el(
      "div",
      {},
      el("dt", {}, fact.name),
      el("dd", { class: fact.tone }, fact.code ? el("code", {}, fact.value) : fact.value),
    ),
  );
}

/** One warning; the worst are announced at once. */
export function notice(one) {
  return el(
    "div",
    { class: `notice ${one.tone}`, role: one.tone === "bad" ? "alert" : "note" },
    el("p", {}, one.text),
    one.todo ? el("p", { class: "todo" }, `What to do: ${one.todo}`) : null,
  );
}

/** The entry's evidence report, in a tab of its own. */
export function evidenceLink(number, text) {
  return el("a", { href: `evidence/${Number(number)}`, target: "_blank", rel: "noopener" }, text);
}

/** JSON of the page's own back end. Throws what is wrong, in one line. */
export async function ask(path) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Error("network: the command that serves this page has ended; start it again");
  }
  const kind = response.headers.get("content-type") ?? "";
  if (!kind.startsWith("application/json")) throw new Error((await response.text()).slice(0, 500));
  const found = await response.json();
  if (!response.ok) throw new Error(found.todo ? `${found.text}; ${found.todo}` : found.text);
  return found;
}
