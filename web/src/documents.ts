// The user's documents: drag them in, see them read, list and remove them.

import { type Collection, Offline, add, collections, documents, remove } from "./api.ts";
import { button, dialog, el } from "./elements.ts";
import type { Words } from "./words.ts";

/** Opens the dialog of documents; `changed` is called when there are others. */
export async function openDocuments(words: Words, changed: () => void): Promise<void> {
  const body = el("div", { class: "documents" }, words.asking);
  dialog(words.documents, words.close, body);
  try {
    const found = await collections();
    body.replaceChildren(...(found.length ? found.map((one) => section(one, words, changed)) : [el("p", {}, words.noCollections)]));
  } catch (error) {
    body.replaceChildren(el("p", { class: "problem", role: "alert" }, told(error, words)));
  }
}

function section(one: Collection, words: Words, changed: () => void): HTMLElement {
  const list = el("ul", { class: "files" });
  const status = el("p", { class: "soft", role: "status" });
  const fill = async () => {
    const rows = await documents(one.collection);
    list.replaceChildren(
      ...(rows.length ? [] : [el("li", { class: "soft" }, words.none)]),
      ...rows.map((row) =>
        el(
          "li",
          {},
          el("span", {}, row.title === row.document ? row.document : `${row.title} (${row.document})`, el("small", {}, ` ${words.passages(row.passages)}`)),
          one.writable ? button(words.remove, () => sure(row.document), { "aria-label": `${words.remove}: ${row.document}` }) : null,
        ),
      ),
    );
  };
  const sure = (name: string) => {
    const made = dialog(
      name,
      words.close,
      el("p", {}, words.sure),
      el(
        "p",
        { class: "acts" },
        button(words.yes, () => {
          made.close();
          void remove(one.collection, name)
            .then((copies) => {
              status.textContent = `${name}: ${copies ? `${words.removedCopies} ${copies}` : words.removed}`;
              changed();
              return fill();
            })
            .catch((error: unknown) => {
              status.textContent = `${name}: ${told(error, words)}`;
            });
        }),
        button(words.no, () => made.close()),
      ),
    );
  };
  const made = el("section", {}, el("h3", {}, one.collection), one.writable ? null : el("p", { class: "soft" }, words.readOnly), list, status);
  if (one.writable) made.append(inlet(one.collection, words, () => void fill().then(changed)));
  void fill().catch((error: unknown) => {
    status.textContent = told(error, words);
  });
  return made;
}

function inlet(collection: string, words: Words, done: () => void): HTMLElement {
  const identity = `files-${collection}`;
  const input = el("input", { type: "file", multiple: true, id: identity });
  const progress = el("ul", { class: "files", "aria-live": "polite" });
  const place = el("div", { class: "inlet" }, el("label", { for: identity }, words.drop), input, progress);
  const take = async (files: Iterable<File>) => {
    for (const file of files) {
      const bar = el("progress", { max: 1, value: 0, "aria-label": file.name });
      const line = el("span", {}, file.name);
      progress.append(el("li", {}, line, bar));
      try {
        const ended = await add(collection, file, (what, part, of) => {
          bar.value = of ? part / of : 0;
          line.textContent = `${file.name}: ${words[what]}`;
        });
        const outcome = { added: words.added, replaced: words.replaced, unchanged: words.unchanged }[ended.what] ?? ended.what;
        line.textContent = `${file.name}: ${outcome}${ended.passages ? `, ${words.passages(ended.passages)}` : ""}`;
        bar.remove();
        done();
      } catch (error) {
        bar.remove();
        line.className = "problem";
        line.textContent = `${file.name}: ${words.failed}: ${told(error, words)}`;
      }
    }
  };
  input.addEventListener("change", () => {
    const files = [...(input.files ?? [])];
    input.value = "";
    void take(files);
  });
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    void take([...(event.dataTransfer?.files ?? [])]);
  });
  return place;
}

function told(error: unknown, words: Words): string {
  if (error instanceof Offline) return words.networkError;
  if (error instanceof RangeError) return words.tooLarge;
  return error instanceof Error ? error.message : String(error);
}
