// The conversation: questions, answers as they come, citations that open their passage, receipts.

import { Offline, type Passage, type Turn, ask } from "./api.ts";
import { type Child, button, dialog, el } from "./elements.ts";
import { markdown } from "./markdown.ts";
import type { Words } from "./words.ts";

interface Answer {
  question: string;
  text: string;
  passages: Passage[];
  answered: boolean;
  receipt: string;
  problem: string;
  stopped: boolean;
}

export class Chat {
  readonly element: HTMLElement;
  private readonly list: HTMLElement;
  private readonly said: HTMLElement;
  private readonly input: HTMLTextAreaElement;
  private readonly sender: HTMLButtonElement;
  private readonly label: HTMLLabelElement;
  private readonly fresh: HTMLButtonElement;
  private readonly memory: HTMLElement;
  private answers: Answer[] = [];
  private running: AbortController | null = null;
  private ready = false;

  constructor(
    private words: Words,
    private readonly model: () => string,
    private readonly offline: () => void,
  ) {
    this.list = el("ol", { class: "turns", tabindex: 0 });
    this.said = el("p", { class: "heard", role: "status" });
    this.input = el("textarea", { id: "question", rows: 3 });
    this.label = el("label", { for: "question" });
    this.sender = button("", () => this.sendOrStop(), { class: "send" });
    this.fresh = button("", () => this.begin());
    this.memory = el("p", { class: "soft" });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.running) this.sendOrStop();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running && !document.querySelector("dialog[open]")) this.running.abort();
    });
    this.element = el(
      "main",
      { id: "conversation" },
      this.list,
      this.said,
      el("form", { class: "ask" }, this.label, this.input, el("div", { class: "acts" }, this.sender, this.fresh), this.memory),
    );
    this.element.querySelector("form")?.addEventListener("submit", (event) => event.preventDefault());
    this.speak(words);
  }

  speak(words: Words): void {
    this.words = words;
    this.element.setAttribute("aria-label", words.conversation);
    this.list.setAttribute("aria-label", words.conversation);
    this.label.textContent = words.ask;
    this.input.placeholder = words.placeholder;
    this.fresh.textContent = words.anew;
    this.memory.textContent = words.memory;
    this.show();
  }

  /** Whether something may be sent. */
  allow(ready: boolean): void {
    this.ready = ready;
    this.buttons();
  }

  private begin(): void {
    this.running?.abort();
    this.answers = [];
    this.show();
    this.input.focus();
  }

  private sendOrStop(): void {
    if (this.running) {
      this.running.abort();
      return;
    }
    const question = this.input.value.trim();
    if (!question || !this.ready) return;
    this.input.value = "";
    void this.answer(question);
  }

  private async answer(question: string): Promise<void> {
    const one: Answer = { question, text: "", passages: [], answered: true, receipt: "", problem: "", stopped: false };
    this.answers.push(one);
    const running = new AbortController();
    this.running = running;
    this.said.textContent = this.words.answering;
    this.show();
    const turns = this.answers.slice(0, -1).flatMap((before): Turn[] =>
      before.problem || !before.text ? [] : [{ role: "user", content: before.question }, { role: "assistant", content: before.text }],
    );
    let due = false;
    const soon = () => {
      if (due) return;
      due = true;
      requestAnimationFrame(() => {
        due = false;
        this.showLast();
      });
    };
    try {
      one.receipt = await ask(this.model(), [...turns, { role: "user", content: question }], running.signal, {
        text: (piece) => {
          one.text += piece;
          soon();
        },
        passages: (found) => {
          one.passages = found;
        },
        answered: (yes) => {
          one.answered = yes;
        },
      });
    } catch (error) {
      if (running.signal.aborted) one.stopped = true;
      else if (error instanceof Offline) {
        one.problem = this.words.offlineBanner;
        this.offline();
      } else one.problem = error instanceof Error ? error.message : String(error);
    } finally {
      if (this.running === running) this.running = null;
      this.said.textContent = one.problem || (one.stopped ? this.words.stopped : this.words.answered);
      this.show();
    }
  }

  private again(): void {
    const last = this.answers.pop();
    if (last && !this.running) void this.answer(last.question);
  }

  private buttons(): void {
    this.sender.textContent = this.running ? this.words.stop : this.words.send;
    this.sender.disabled = !this.running && !this.ready;
    this.fresh.disabled = this.answers.length === 0;
  }

  private show(): void {
    this.list.replaceChildren(
      ...(this.answers.length ? [] : [el("li", { class: "empty" }, this.words.empty)]),
      ...this.answers.flatMap((one, place) => [
        el("li", { class: "question" }, el("h3", {}, this.words.you), el("p", {}, one.question)),
        this.shown(one, place === this.answers.length - 1),
      ]),
    );
    this.list.scrollTop = this.list.scrollHeight;
    this.buttons();
  }

  private showLast(): void {
    const one = this.answers.at(-1);
    const before = this.list.lastElementChild;
    if (!one || !before) return;
    const near = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 80;
    before.replaceWith(this.shown(one, true));
    if (near) this.list.scrollTop = this.list.scrollHeight;
  }

  private shown(one: Answer, last: boolean): HTMLElement {
    const busy = last && this.running !== null;
    const cite = (number: number): HTMLElement | null => {
      const passage = one.passages.find((found) => found.number === number);
      return passage
        ? button(`[${number}]`, () => this.open(passage), { class: "cite", "aria-label": `${this.words.passage} ${number}: ${passage.title}` })
        : null;
    };
    const after: Child[] = [];
    if (!busy && one.passages.length) {
      after.push(
        el(
          "details",
          { class: "sources" },
          el("summary", {}, `${this.words.sources} (${one.passages.length})`),
          el("ol", {}, ...one.passages.map((passage) => el("li", {}, button(this.named(passage), () => this.open(passage), { class: "source" })))),
        ),
      );
    }
    if (!busy) {
      const acts: Child[] = [];
      if (last && !one.problem) acts.push(button(this.words.again, () => this.again()));
      if (one.receipt) {
        acts.push(
          el("a", { href: `./receipts/${one.receipt}`, download: `${one.receipt}.receipt`, title: this.words.receiptNote }, this.words.receipt),
        );
      }
      after.push(el("p", { class: "acts" }, ...acts));
    }
    return el(
      "li",
      { class: "answer", "aria-busy": busy ? "true" : "false" },
      el("h3", {}, this.words.answer, one.stopped ? el("span", { class: "tag" }, this.words.stopped) : null, one.answered ? null : el("span", { class: "tag" }, this.words.notThere)),
      el("div", { class: "text" }, ...markdown(one.text, this.words, cite), busy ? el("span", { class: "caret", "aria-hidden": "true" }, "▌") : null),
      one.problem ? el("p", { class: "problem", role: "alert" }, one.problem) : null,
      ...after,
    );
  }

  private named(passage: Passage): string {
    const page = passage.first_page === null ? "" : `, ${this.words.page} ${passage.first_page}`;
    return `[${passage.number}] ${[passage.title, ...passage.headings].filter((one, place, all) => all.indexOf(one) === place).join(" › ")} (${passage.document}${page})`;
  }

  private open(passage: Passage): void {
    dialog(
      `${this.words.passage} ${passage.number}`,
      this.words.close,
      el("p", { class: "soft" }, this.named(passage)),
      el("blockquote", { class: "passage", tabindex: 0 }, passage.text),
    );
  }
}
