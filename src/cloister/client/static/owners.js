// The page of owners and auditors: asks its own back end on this machine, and lays out what that verified.

import { ask, el, evidenceLink, facts, fill, notice } from "./elements.js";
import { showResource, showTimeline } from "./timeline.js";

/** Milliseconds between two rounds: the broker limits how often it is asked. */
const PAUSE = 1000;
const again = document.getElementById("again");

/** How often, in words. */
const often = (times) => (times === 1 ? "once" : `${times} times`);

function receiver(one) {
  const purpose = one.purpose ? `, for ${one.purpose}` : "";
  return el(
    "li",
    {},
    el("strong", {}, one.workload),
    ` ${often(one.times)}, last on ${one.last}${purpose}, in ${one.tee} `,
    one.simulated ? el("span", { class: "tag bad" }, "simulated") : null,
    " ",
    evidenceLink(one.number, "evidence"),
  );
}

function card(one) {
  const entries = el("button", { type: "button" }, "Its entries in the timeline");
  entries.addEventListener("click", () => showResource(one.uri));
  return el(
    "article",
    { class: `card ${one.tone}` },
    el("h3", {}, one.uri),
    el("p", { class: "soft" }, `${one.stored}; decided by ${one.owners}`),
    el("h4", {}, "The rule"),
    el("p", {}, one.rule),
    one.rule_words.length ? el("ul", {}, one.rule_words.map((line) => el("li", {}, line))) : null,
    el("h4", {}, "Who received it"),
    one.receivers.length ? el("ul", {}, one.receivers.map(receiver)) : el("p", {}, "Nobody received it."),
    one.released ? el("p", { class: "soft" }, `Released: ${one.released}`) : null,
    one.refused ? el("p", {}, el("span", { class: "tag bad" }, `refused ${often(one.refused)}`)) : null,
    el(
      "details",
      {},
      el("summary", {}, "Commands for it"),
      one.commands.map((line) => el("code", { class: "command" }, line)),
      one.rule_digest ? el("p", {}, "Rule ", el("code", {}, one.rule_digest)) : null,
    ),
    el("p", {}, entries),
  );
}

function version(one, at) {
  return el(
    "details",
    {},
    el("summary", {}, `Version ${one.version}, issued ${one.issued}${at === 0 ? ", in force" : ""}`),
    el("p", {}, `Signed by ${one.signers.join(", ")}. Digest `, el("code", {}, one.digest)),
    el("ul", {}, one.words.map((line) => el("li", {}, line))),
  );
}

function person(one) {
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, one.name),
    el("td", {}, one.roles.join(", ")),
    el("td", {}, el("code", {}, one.key)),
  );
}

function key(one) {
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, one.name),
    [one.version, one.state, one.algorithm, one.owner, one.created].map((value) => el("td", {}, String(value))),
  );
}

function show(found) {
  document.title = `${found.title}: Cloister key broker`;
  fill("title", found.title);
  fill("where", found.broker);
  fill("summary", found.summary.map((line) => el("li", {}, line))).className = found.tone;
  fill("notices", found.notices.map(notice));
  fill("facts", facts(found.facts));
  fill("log", facts(found.log));
  fill("cards", found.cards.length ? found.cards.map(card) : el("p", { class: "soft" }, found.note));
  if (found.more_cards) document.getElementById("cards").append(el("p", {}, `and ${found.more_cards} more`));
  fill("people-rows", found.people.map(person));
  fill("versions", found.manifests.map(version));
  fill("key-rows", found.keys.map(key));
  return showTimeline({
    resources: found.cards.map((one) => one.uri),
    workloads: found.workloads,
    events: found.events,
  });
}

/** Have the broker verified and asked again; a long log takes several rounds. */
async function look() {
  again.disabled = true;
  fill("checked", "verifying the broker …");
  try {
    for (;;) {
      const found = await ask("api/overview");
      await show(found);
      if (found.reading === null) {
        fill("checked", `${found.tone === "bad" ? "looked at" : "verified"} on ${found.checked}`);
        break;
      }
      fill("checked", `reading ${found.reading.what}: ${found.reading.have} of ${found.reading.want}`);
      await new Promise((go) => setTimeout(go, PAUSE));
    }
    document.body.dataset.state = "shown";
  } catch (error) {
    fill("notices", notice({ tone: "bad", text: error.message, todo: "" }));
    fill("checked", "nothing newer was verified");
    document.body.dataset.state = "failed";
  } finally {
    again.disabled = false;
  }
}

again.addEventListener("click", look);
look();
