// The page: who answers, which model, the conversation, documents.

import { collections, models } from "./api.ts";
import { Chat } from "./chat.ts";
import { openDocuments } from "./documents.ts";
import { button, el } from "./elements.ts";
import { Lock } from "./lock.ts";
import { type Language, preferred, words } from "./words.ts";

let language: Language = preferred();
let listed = false;

const model = el("select", { id: "model" });
const modelLabel = el("label", { for: "model" });
const files = button("", () => void openDocuments(words(language), () => void list()), { hidden: true });
const other = button("", () => speak(language === "en" ? "zh" : "en"), { class: "language" });
const lock = new Lock(words(language), (ready) => {
  chat.allow(ready && model.options.length > 0);
  if (ready && !listed) void list();
});
const chat = new Chat(
  words(language),
  () => model.value,
  () => void lock.look(),
);
const skip = el("a", { class: "skip", href: "#question" });

/** Which models and collections there are. */
async function list(): Promise<void> {
  try {
    const [names, found] = await Promise.all([models(), collections()]);
    listed = true;
    const before = model.value;
    // Who has documents came to ask them.
    const usual = names.find((name) => name.startsWith("knowledge/")) ?? names[0] ?? "";
    model.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    model.value = names.includes(before) ? before : usual;
    files.hidden = found.length === 0;
    chat.allow(lock.ready && names.length > 0);
  } catch {
    listed = false; // asked again when the lock looks next
  }
}

function speak(next: Language): void {
  language = next;
  const spoken = words(language);
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  modelLabel.textContent = spoken.model;
  files.textContent = spoken.documents;
  other.textContent = spoken.language;
  other.lang = language === "zh" ? "en" : "zh-Hans";
  skip.textContent = spoken.skip;
  lock.speak(spoken);
  chat.speak(spoken);
}

document.body.replaceChildren(
  skip,
  el(
    "header",
    {},
    el("h1", {}, "Cloister"),
    lock.element,
    el("span", { class: "model" }, modelLabel, model),
    files,
    other,
  ),
  lock.banner,
  chat.element,
);
speak(language);
void lock.watch();
