// The timeline: proven entries, the newest first, filtered by the back end.

import { ask, el, evidenceLink, facts, fill, notice } from "./elements.js";

const form = document.getElementById("filters");
const older = document.getElementById("older");
let before = null;
let round = 0;

function row(one) {
  return el(
    "li",
    { class: one.tone },
    el(
      "div",
      { class: "when" },
      el("span", {}, `№ ${one.number}`),
      el("time", { datetime: new Date(one.time * 1000).toISOString() }, one.moment),
      el("span", {}, one.event),
      one.simulated ? el("span", { class: "tag bad" }, "simulated TEE") : null,
      one.evidence ? evidenceLink(one.number, "evidence report") : null,
    ),
    el("p", { class: "what" }, one.what),
    one.why ? el("p", { class: "why" }, one.why) : null,
    one.facts.length
      ? el("details", {}, el("summary", {}, "everything the entry says"), el("dl", {}, facts(one.facts)))
      : null,
  );
}

async function more(fresh) {
  const mine = ++round;
  const query = new URLSearchParams();
  for (const name of ["resource", "workload", "event"]) {
    if (form.elements[name].value) query.set(name, form.elements[name].value);
  }
  if (!fresh && before !== null) query.set("before", before);
  older.disabled = true;
  try {
    const page = await ask(`api/log?${query}`);
    if (mine !== round) return;
    const rows = document.getElementById("rows");
    if (fresh) rows.replaceChildren();
    rows.append(...page.rows.map(row));
    before = page.before;
    older.hidden = before === null;
    fill("rows-end", before === null ? (rows.children.length ? "These are all." : "There are none.") : "");
  } catch (error) {
    if (mine === round) fill("rows-end", notice({ tone: "bad", text: error.message, todo: "" }));
  } finally {
    older.disabled = false;
  }
}

function choices(name, values) {
  const select = form.elements[name];
  const chosen = select.value;
  select.replaceChildren(
    el("option", { value: "" }, "all"),
    ...values.map((value) => el("option", { value }, value)),
  );
  select.options[0].value = "";
  if (values.includes(chosen)) select.value = chosen;
}

/** Show the newest entries, with these names to filter by. */
export function showTimeline({ resources, workloads, events }) {
  choices("resource", resources);
  choices("workload", workloads);
  choices("event", events);
  return more(true);
}

/** Show one resource's entries. */
export function showResource(uri) {
  form.elements.resource.value = uri;
  form.elements.workload.value = "";
  form.elements.event.value = "";
  document.getElementById("timeline").focus();
  return more(true);
}

form.addEventListener("change", () => more(true));
form.addEventListener("submit", (event) => event.preventDefault());
older.addEventListener("click", () => more(false));
