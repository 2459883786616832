// What a model writes, as elements: the tokens of `marked` and nothing that they do not say. Markup in the text stays text;
// links and images are shown as what they say, and nothing of them is fetched or followed.

import { type Token, type Tokens, lexer } from "marked";

import { type Child, button, el } from "./elements.ts";
import type { Words } from "./words.ts";

const CITED = /\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]/g;

/** Makes a citation's number a button, or leaves it text. */
export type Cite = (number: number) => HTMLElement | null;

/** `text` as elements. */
export function markdown(text: string, words: Words, cite: Cite): Node[] {
  return blocks(lexer(text, { gfm: true }), words, cite);
}

function blocks(tokens: Token[], words: Words, cite: Cite): Node[] {
  return tokens.map((token) => block(token, words, cite)).filter((made): made is Node => made !== null);
}

function block(token: Token, words: Words, cite: Cite): Node | null {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "hr":
      return el("hr");
    case "heading":
      // Headings of an answer are below those of the page.
      return el("p", { class: "heading" }, ...inline(token.tokens ?? [], cite));
    case "code": {
      const code = token as Tokens.Code;
      const copy = button(words.copy, () => {
        void navigator.clipboard?.writeText(code.text).then(() => {
          copy.textContent = words.copied;
        });
      });
      return el("div", { class: "code" }, copy, el("pre", { tabindex: 0 }, el("code", {}, code.text)));
    }
    case "blockquote":
      return el("blockquote", {}, ...blocks(token.tokens ?? [], words, cite));
    case "list": {
      const list = token as Tokens.List;
      const items = list.items.map((item) => el("li", {}, ...blocks(item.tokens, words, cite)));
      return list.ordered ? el("ol", { start: Number(list.start) || 1 }, ...items) : el("ul", {}, ...items);
    }
    case "table": {
      const table = token as Tokens.Table;
      const row = (cells: Tokens.TableCell[], tag: "td" | "th") =>
        el("tr", {}, ...cells.map((cell) => el(tag, tag === "th" ? { scope: "col" } : {}, ...inline(cell.tokens, cite))));
      return el(
        "div",
        { class: "table", tabindex: 0 },
        el("table", {}, el("thead", {}, row(table.header, "th")), el("tbody", {}, ...table.rows.map((one) => row(one, "td")))),
      );
    }
    case "paragraph":
      return el("p", {}, ...inline(token.tokens ?? [], cite));
    case "text":
      return el("span", {}, ...(token.tokens ? inline(token.tokens, cite) : cited(plain(token), cite)));
    default:
      return el("p", {}, token.raw);
  }
}

function inline(tokens: Token[], cite: Cite): Child[] {
  return tokens.flatMap((token): Child[] => {
    switch (token.type) {
      case "strong":
        return [el("strong", {}, ...inline(token.tokens ?? [], cite))];
      case "em":
        return [el("em", {}, ...inline(token.tokens ?? [], cite))];
      case "del":
        return [el("del", {}, ...inline(token.tokens ?? [], cite))];
      case "codespan":
        return [el("code", {}, plain(token))];
      case "br":
        return [el("br")];
      case "link":
      case "image":
        // A citation can look like a link's label; an address is shown, and leads nowhere.
        return [el("span", { class: "link" }, token.raw)];
      case "text":
        return "tokens" in token && token.tokens ? inline(token.tokens, cite) : cited(plain(token), cite);
      case "escape":
        return [plain(token)];
      default:
        return [token.raw];
    }
  });
}

/** marked escapes what it takes for HTML's sake; here everything is text anyway. */
function plain(token: Token): string {
  return "text" in token ? String(token.text) : token.raw;
}

function cited(text: string, cite: Cite): Child[] {
  const found: Child[] = [];
  let from = 0;
  for (const match of text.matchAll(CITED)) {
    const numbers = (match[1] ?? "").split(",").map(Number);
    const made = numbers.map(cite);
    if (made.some((one) => one === null)) continue;
    found.push(text.slice(from, match.index), ...made);
    from = match.index + match[0].length;
  }
  found.push(text.slice(from));
  return found;
}
