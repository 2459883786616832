// Who answers, and how that was verified: the lock, its banner and its dialog.

import { Offline, type State, state } from "./api.ts";
import { button, dialog, el } from "./elements.ts";
import type { Words } from "./words.ts";

/** How often the page looks whether what was verified still is, in milliseconds. */
const EVERY = 5000;

export class Lock {
  readonly element: HTMLButtonElement;
  readonly banner: HTMLElement;
  private seen: State | null = null;
  private offline = false;

  constructor(
    private words: Words,
    private readonly changed: (ready: boolean) => void,
  ) {
    this.element = button("", () => this.open(), { class: "lock", "data-state": "asking" });
    this.banner = el("div", { class: "banners", "aria-live": "polite" });
    this.show();
  }

  speak(words: Words): void {
    this.words = words;
    this.show();
  }

  /** Look now, and from then on every few seconds. */
  async watch(): Promise<void> {
    for (;;) {
      await this.look();
      await new Promise((done) => setTimeout(done, EVERY));
    }
  }

  async look(again = false): Promise<void> {
    const before = this.seen;
    try {
      this.seen = await state(again);
      this.offline = false;
      if (before && this.seen.state === "verified" && this.seen.verifications > before.verifications && !again) {
        this.note(this.words.rotated);
      }
    } catch (error) {
      this.offline = error instanceof Offline;
      if (!this.offline) throw error;
    }
    this.show();
    this.changed(this.ready);
  }

  get ready(): boolean {
    return !this.offline && this.seen?.state === "verified";
  }

  private show(): void {
    const [name, text] = this.summary();
    this.element.dataset.state = name;
    document.documentElement.dataset.state = name;
    this.element.replaceChildren(el("span", { class: "mark", "aria-hidden": "true" }, name === "verified" ? "🔒" : "⚠"), text);
    this.element.title = this.words.verification;
    const notices = [...this.banner.querySelectorAll(".passing")];
    const alarm = {
      simulated: this.words.simulatedBanner,
      "not-verified": `${this.words.notVerifiedBanner} ${this.seen?.problem ?? ""}`,
      offline: this.words.offlineBanner,
    }[name];
    this.banner.replaceChildren(...(alarm ? [el("p", { class: `banner ${name}`, role: "alert" }, alarm)] : []), ...notices);
  }

  private summary(): [string, string] {
    if (this.offline) return ["offline", this.words.offline];
    if (this.seen === null) return ["asking", this.words.asking];
    if (this.seen.state !== "verified") return ["not-verified", this.words.notVerified];
    return this.seen.simulated
      ? ["simulated", this.words.simulated]
      : ["verified", `${this.words.verified}: ${this.seen.tee.toUpperCase()}`];
  }

  /** A line that passes by itself. */
  private note(text: string): void {
    const line = el("p", { class: "banner passing", role: "status" }, text);
    this.banner.append(line);
    setTimeout(() => line.remove(), 20000);
  }

  private open(): void {
    const one = this.seen;
    if (one === null) return;
    const time = (seconds: number) => new Date(seconds * 1000).toLocaleString(document.documentElement.lang);
    const fact = (name: string, value: string, code = false) =>
      value ? el("div", {}, el("dt", {}, name), el("dd", {}, code ? el("code", {}, value) : value)) : null;
    const table = (name: string, values: Record<string, string>) =>
      Object.keys(values).length
        ? el("details", {}, el("summary", {}, name), el("dl", {}, ...Object.entries(values).map(([key, value]) => fact(key, value, true))))
        : null;
    const checks = one.checks.map((check) =>
      el(
        "tr",
        { class: check.outcome },
        el("td", {}, String(check.number)),
        el("td", {}, check.title, check.detail ? el("small", {}, check.detail) : null),
        el("td", {}, check.outcome === "passed" ? this.words.held : check.outcome === "skipped" ? this.words.notAsked : check.outcome),
      ),
    );
    const made = dialog(
      this.words.verification,
      this.words.close,
      one.problem ? el("p", { class: "problem" }, one.problem) : null,
      el(
        "dl",
        {},
        fact(this.words.address, one.address),
        fact(this.words.tee, one.simulated ? `${one.tee.toUpperCase()} (${this.words.simulated})` : one.tee.toUpperCase()),
        fact(this.words.tcb, one.tcb),
        fact(this.words.since, one.verified_at ? time(one.verified_at) : ""),
        fact(this.words.until, one.expires ? time(one.expires) : ""),
        fact(this.words.policy, one.policy, true),
        fact(this.words.key, one.key, true),
      ),
      table(this.words.measurements, one.measurements),
      table(this.words.events, one.events),
      checks.length
        ? el(
            "div",
            { class: "table", tabindex: 0 },
            el(
              "table",
              {},
              el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "№"), el("th", { scope: "col" }, this.words.what), el("th", { scope: "col" }, this.words.outcome))),
              el("tbody", {}, ...checks),
            ),
          )
        : null,
      el(
        "p",
        { class: "acts" },
        button(this.words.verifyAgain, () => {
          made.close();
          void this.look(true).then(() => this.open());
        }),
        one.state === "verified" ? el("a", { href: "./report", download: "cloister-report.html" }, this.words.report) : null,
      ),
    );
  }
}
