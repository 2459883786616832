// The page's own back end, on this machine: it verifies, seals, and passes on. Nothing here speaks to anybody else.

export interface Check {
  number: number;
  title: string;
  outcome: string;
  detail: string;
}

export interface State {
  state: "verified" | "not-verified";
  problem: string;
  simulated: boolean;
  address: string;
  tee: string;
  tcb: string;
  policy: string;
  key: string;
  verified_at: number;
  expires: number;
  verifications: number;
  measurements: Record<string, string>;
  events: Record<string, string>;
  checks: Check[];
}

export interface Passage {
  number: number;
  collection: string;
  document: string;
  title: string;
  headings: string[];
  first_page: number | null;
  last_page: number | null;
  passage: number;
  text: string;
}

export interface Collection {
  collection: string;
  documents: number;
  passages: number;
  writable: boolean;
}

export interface DocumentRow {
  document: string;
  title: string;
  passages: number;
  digest: string;
}

export interface Turn {
  role: "user" | "assistant";
  content: string;
}

/** What an answer tells as it comes. */
export interface Listener {
  text(piece: string): void;
  passages(found: Passage[]): void;
  answered(yes: boolean): void;
}

export interface Added {
  what: string;
  passages: number;
}

/** What is being done, how much of it, and of how much. */
export type Told = (what: "sent" | "embedded", done: number, of: number) => void;

/** Nobody answers on this machine. */
export class Offline extends Error {}

const WHOLE = 64 << 20;
const PART = 2 << 20;
// Another site cannot send this field without asking first, which is refused.
const OWN = { "x-cloister-page": "1" };

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  try {
    return await fetch(path, {
      credentials: "same-origin",
      cache: "no-store",
      ...init,
      headers: { ...OWN, ...(init.headers as Record<string, string> | undefined) },
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Offline();
  }
}

async function refusal(response: Response): Promise<Error> {
  const text = (await response.text()).slice(0, 2000);
  try {
    return new Error(String(JSON.parse(text).error.message));
  } catch {
    return new Error(text.trim() || `status ${response.status}`);
  }
}

async function json<T>(path: string, init: RequestInit = {}): Promise<T> {
  const response = await call(path, init);
  if (!response.ok) throw await refusal(response);
  return (await response.json()) as T;
}

/** Who is verified; `again` verifies now. */
export function state(again = false): Promise<State> {
  return json<State>("./state", again ? { method: "POST" } : {});
}

/** Names of models, collections among them. */
export async function models(): Promise<string[]> {
  const found = await json<{ data: { id: string }[] }>("./v1/models");
  return found.data.map((one) => one.id);
}

/** Ask, and hear the answer as it comes; resolves to the request's id, by which its receipt is named. */
export async function ask(model: string, turns: Turn[], signal: AbortSignal, listener: Listener): Promise<string> {
  const response = await call("./v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, messages: turns, stream: true }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  let whole = false;
  for await (const data of events(response, signal)) {
    if (data === "[DONE]") {
      whole = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(String(chunk.error.message));
    if (chunk.knowledge?.passages) listener.passages(chunk.knowledge.passages);
    if (typeof chunk.knowledge?.answered === "boolean") listener.answered(chunk.knowledge.answered);
    for (const choice of chunk.choices ?? []) {
      if (choice.delta?.content) listener.text(String(choice.delta.content));
    }
  }
  // Half an answer is never taken for the whole.
  if (!whole) throw new Error("the answer was broken off");
  return response.headers.get("x-cloister-request-id") ?? "";
}

async function* events(response: Response, signal: AbortSignal): AsyncGenerator<string> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  let rest = "";
  for (;;) {
    let part: ReadableStreamReadResult<string>;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Error("the answer was broken off");
    }
    if (part.done) return;
    rest += part.value;
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (data.length) yield data.join("\n");
    }
  }
}

/** The user's collections; none where the service has no documents. */
export async function collections(): Promise<Collection[]> {
  const response = await call("./v1/knowledge/collections");
  if (response.status === 404 || response.status === 403) return [];
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data;
}

export async function documents(collection: string): Promise<DocumentRow[]> {
  return (await json<{ data: DocumentRow[] }>(`./v1/knowledge/collections/${encodeURIComponent(collection)}/documents`)).data;
}

/** Remove a document; how many of the same content are left. */
export async function remove(collection: string, name: string): Promise<number> {
  return (await json<{ copies: number }>(place(collection, name), { method: "DELETE" })).copies;
}

/** Add a file in parts; what is there is not sent again. */
export async function add(collection: string, file: File, told: Told): Promise<Added> {
  if (file.size > WHOLE) throw new RangeError();
  const content = await file.arrayBuffer();
  const digest = hex(await crypto.subtle.digest("SHA-256", content));
  const parts = Math.max(1, Math.ceil(content.byteLength / PART));
  const request = JSON.stringify({ digest, parts });
  const there = await put(collection, file.name, request, told); // it may be there, or its parts
  if (there) return there;
  const uploads = `./v1/knowledge/uploads/${digest}`;
  const held = new Set((await json<{ parts: number[] }>(uploads)).parts);
  for (let number = 0; number < parts; number++) {
    const body = content.slice(number * PART, (number + 1) * PART);
    if (!held.has(number)) {
      await json(`${uploads}/${number}`, { method: "PUT", headers: { "content-type": "application/octet-stream" }, body });
    }
    told("sent", Math.min(content.byteLength, (number + 1) * PART), content.byteLength);
  }
  const added = await put(collection, file.name, request, told);
  if (!added) throw new Offline();
  return added;
}

/** Add a document whose parts are there; null where some are missing. */
async function put(collection: string, name: string, body: string, told: Told): Promise<Added | null> {
  const response = await call(place(collection, name), { method: "PUT", headers: { "content-type": "application/json" }, body });
  if (response.status === 409) return null;
  if (!response.ok) throw await refusal(response);
  if (response.headers.get("content-type")?.startsWith("application/json")) return response.json();
  for await (const data of events(response, new AbortController().signal)) {
    const event = JSON.parse(data);
    if (event.error) throw new Error(String(event.error.message));
    if (event.type === "end") return event;
    told("embedded", event.done, event.of);
  }
  throw new Offline();
}

function place(collection: string, name: string): string {
  return `./v1/knowledge/collections/${encodeURIComponent(collection)}/documents/${encodeURIComponent(name)}`;
}

function hex(bytes: ArrayBuffer): string {
  return Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
