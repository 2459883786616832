// Asks sealed questions with other people's packages and writes what came of each into the page. It takes the keys
// that it is shown: it verifies no evidence.

import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

import { ResponseOpener, X_WING, concat, parseKeyConfigs, sealRequest } from "/ohttp.mjs";

const GATEWAY = "/.well-known/ohttp-gateway";
const CHAT = location.origin + "/v1/chat/completions";
const QUESTION = new URLSearchParams(location.search).get("question");
const PORTION = 64;

// One line of the page; `id` is what the test reads.
function show(id, label, value) {
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = label;
  description.id = id;
  description.textContent = value;
  document.querySelector("dl").append(term, description);
  return description;
}

async function encodeChat(stream) {
  const messages = [{ role: "user", content: QUESTION }];
  const body = JSON.stringify({ model: "echo-1", messages, stream });
  const request = new Request(CHAT, { method: "POST", headers: { "content-type": "application/json" }, body });
  return new Uint8Array(await new BHttpEncoder().encodeRequest(request));
}

async function shownKey() {
  const list = new Uint8Array(await (await fetch(GATEWAY)).arrayBuffer());
  return parseKeyConfigs(list).find((config) => config.kem === X_WING);
}

// A sealed question; `opened(plaintext)` sees each chunk as it is opened. Resolves to the decoded answer.
async function ask(config, { portion, stream, query = "", opened = async () => {} }) {
  const { sealed, exchange } = await sealRequest(config, 0, portion, await encodeChat(stream));
  const kind = portion ? "ohttp-chunked" : "ohttp";
  const headers = { "content-type": `message/${kind}-req` };
  const response = await fetch(GATEWAY + query, { method: "POST", headers, body: sealed });
  const type = response.headers.get("content-type");
  if (!response.ok || type !== `message/${kind}-res`) throw new Error(`${response.status} ${type}`);
  const opener = new ResponseOpener(exchange);
  const reader = response.body.getReader();
  const parts = [];
  for (;;) {
    const { done, value } = await reader.read();
    const chunks = done ? [await opener.finish()] : await opener.feed(value);
    for (const chunk of chunks) {
      parts.push(chunk);
      await opened(chunk);
    }
    if (done) return new BHttpDecoder().decodeResponse(concat(...parts));
  }
}

function tokens(events) {
  const lines = events.split("\n\n").filter((event) => event.startsWith("data: {"));
  return lines.map((line) => JSON.parse(line.slice(6)).choices[0].delta.content);
}

async function refusal(promise) {
  try {
    return `NOT refused: ${await (await promise).text()}`;
  } catch (error) {
    return ["refused", error.name, error.message].filter(Boolean).join(": ");
  }
}

async function main() {
  show("question", "Question", QUESTION);
  const config = await shownKey();
  show("kem", "Key encapsulation, from the key configurations", "0x" + config.kem.toString(16));

  let chunks = 0;
  const streamed = await ask(config, {
    portion: PORTION,
    stream: true,
    // The application goes on when it hears that a token was opened: nothing here waits for the end.
    opened: async (chunk) => {
      chunks += 1;
      if (new TextDecoder().decode(chunk).includes("data: {")) await fetch("/go-on");
    },
  });
  show("streamed", "Streamed answer, chunked", tokens(await streamed.text()).join(""));
  show("chunks", "Chunks opened, the final one among them", chunks);

  const whole = await ask(config, { portion: 0, stream: false });
  show("whole", "Answer in one piece, not chunked", (await whole.json()).choices[0].message.content);

  for (const [name, label] of [
    ["flipped", "A bit of the streamed answer flipped on its way"],
    ["cut", "The streamed answer cut before its final chunk"],
    ["swapped", "Another request's streamed answer"],
  ]) {
    show(name, label, await refusal(ask(config, { portion: PORTION, stream: true, query: "?" + name })));
  }
  const flipped = ask(config, { portion: 0, stream: false, query: "?flipped" });
  show("flipped-whole", "A bit of the answer in one piece flipped on its way", await refusal(flipped));

  const plain = await fetch(CHAT, { method: "POST", body: "{}", headers: { "content-type": "application/json" } });
  show("plain", "The same path without a seal", `${plain.status} ${(await plain.json()).error.code}`);
}

const state = document.getElementById("state");
try {
  await main();
  state.textContent = "finished";
} catch (error) {
  state.textContent = `failed: ${error.name}: ${error.message}`;
} finally {
  await fetch("/finished");
}
