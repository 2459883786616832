// Oblivious HTTP (RFC 9458) and its chunked form (draft-ietf-ohai-chunked-ohttp), written out from their
// specifications on other people's HPKE. Runs in Node (peer.mjs) and, as it is, in a browser (../../browser/page.mjs).

import { Aes128Gcm, Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";

// Not a global before Node 19; Debian 12 has 18.
const crypto = globalThis.crypto ?? (await import("node:crypto")).webcrypto;

export const X_WING = 0x647a;
const KEMS = { 0x0020: DhkemX25519HkdfSha256, [X_WING]: XWing };
const AEADS = { 1: Aes128Gcm, 2: Aes256Gcm };
const KEY_LENGTH = { 1: 16, 2: 32 };
const PUBLIC_LENGTH = { 0x0020: 32, [X_WING]: 1216 };
const ENC_LENGTH = { 0x0020: 32, [X_WING]: 1120 };
const NONCE_LENGTH = 12;
const HEAD_LENGTH = 7;
const FINAL = text("final");
const NOTHING = new Uint8Array(0);

export function text(value) {
  return new TextEncoder().encode(value);
}

export function concat(...parts) {
  const arrays = parts.map((part) => new Uint8Array(part));
  const out = new Uint8Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let at = 0;
  for (const array of arrays) {
    out.set(array, at);
    at += array.length;
  }
  return out;
}

function number(data) {
  return data.reduce((sum, byte) => sum * 256 + byte, 0);
}

function suiteOf(kem, aead) {
  return new CipherSuite({ kem: new KEMS[kem](), kdf: new HkdfSha256(), aead: new AEADS[aead]() });
}

export async function senderTo(kem, aead, publicKey, info) {
  const suite = suiteOf(kem, aead);
  const recipientPublicKey = await suite.kem.deserializePublicKey(publicKey.buffer);
  return suite.createSenderContext({ recipientPublicKey, info });
}

export async function recipientOf(kem, aead, privateKey, enc, info) {
  const suite = suiteOf(kem, aead);
  const recipientKey = await suite.kem.deserializePrivateKey(privateKey.buffer);
  return suite.createRecipientContext({ recipientKey, enc, info });
}

function varint(value) {
  if (value < 64) return Uint8Array.of(value);
  if (value < 16384) return Uint8Array.of(0x40 | (value >> 8), value & 255);
  return Uint8Array.of(0x80 | (value >> 24), (value >> 16) & 255, (value >> 8) & 255, value & 255);
}

// Cuts the next whole chunk that is not the final one: { sealed, rest }; null: more has to come first, or it is final.
function nextChunk(data) {
  if (data.length === 0) return null;
  const size = 1 << (data[0] >> 6);
  if (data.length < size) return null;
  const length = number([data[0] & 0x3f, ...data.slice(1, size)]);
  if (length === 0 || data.length < size + length) return null;
  return { sealed: data.slice(size, size + length), rest: data.slice(size + length) };
}

// Opens a message as its bytes arrive. `open(sealed, aad)` throws where a chunk was altered.
class Opener {
  constructor(chunked, open) {
    this.chunked = chunked;
    this.open = open;
    this.data = NOTHING;
  }

  // The plaintexts of the chunks that are whole by now.
  async feed(data) {
    this.data = concat(this.data, data);
    const opened = [];
    while (this.chunked) {
      const chunk = nextChunk(this.data);
      if (chunk === null) break;
      this.data = chunk.rest;
      opened.push(await this.open(chunk.sealed, NOTHING));
    }
    return opened;
  }

  // The plaintext of the final chunk, which runs to the end. Throws where the message was cut.
  async finish() {
    if (!this.chunked) return this.open(this.data, NOTHING);
    const size = this.data.length ? 1 << (this.data[0] >> 6) : 1;
    if (this.data.length < size || number([this.data[0] & 0x3f, ...this.data.slice(1, size)]) !== 0) {
      throw new Error("the message ends before its final chunk");
    }
    return this.open(this.data.slice(size), FINAL);
  }
}

async function openWhole(opener, data) {
  return concat(...(await opener.feed(data)), await opener.finish());
}

// `seal(plaintext, aad)` over a message cut in portions of `portion` bytes, framed; portion 0: not chunked.
async function sealMessage(message, portion, seal) {
  if (!portion) return seal(message, NOTHING);
  const framed = [];
  let at = 0;
  for (; message.length - at > portion; at += portion) {
    const sealed = await seal(message.slice(at, at + portion), NOTHING);
    framed.push(varint(sealed.length), sealed);
  }
  return concat(...framed, Uint8Array.of(0), await seal(message.slice(at), FINAL));
}

async function hmac(key, data) {
  const imported = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, data));
}

// Seals or opens the chunks of one response, in order (RFC 9458, section 4.4, and the draft's counter).
async function responseCipher(aead, enc, nonce, secret, usage) {
  const prk = await hmac(concat(enc, nonce), secret);
  const keyBytes = (await hmac(prk, concat(text("key"), [1]))).slice(0, KEY_LENGTH[aead]);
  const base = (await hmac(prk, concat(text("nonce"), [1]))).slice(0, NONCE_LENGTH);
  const key = await crypto.subtle.importKey("raw", keyBytes, "AES-GCM", false, [usage]);
  let counter = 0;
  return async (data, additionalData) => {
    const iv = base.slice();
    new DataView(iv.buffer).setUint32(8, new DataView(base.buffer).getUint32(8) ^ counter++);
    return new Uint8Array(await crypto.subtle[usage]({ name: "AES-GCM", iv, additionalData }, key, data));
  };
}

function labels(chunked) {
  const kind = chunked ? "message/bhttp chunked " : "message/bhttp ";
  return { request: text(kind + "request"), response: text(kind + "response") };
}

function secretLength(aead) {
  return Math.max(NONCE_LENGTH, KEY_LENGTH[aead]);
}

// The configurations of an `application/ohttp-keys` list, in its order.
export function parseKeyConfigs(list) {
  const configs = [];
  for (let at = 0; at < list.length; ) {
    const length = number(list.slice(at, at + 2));
    const config = list.slice(at + 2, at + 2 + length);
    at += 2 + length;
    const kem = number(config.slice(1, 3));
    const end = 3 + PUBLIC_LENGTH[kem];
    configs.push({ start: config.slice(0, 3), kem, publicKey: config.slice(3, end), pairs: config.slice(end + 2) });
  }
  return configs;
}

// A client's request: { sealed, exchange }, the latter being what it takes to open the response. `pair` counts the
// configuration's pairs of KDF and AEAD.
export async function sealRequest(config, pair, portion, message) {
  const algorithms = config.pairs.slice(4 * pair, 4 * pair + 4);
  const aead = number(algorithms.slice(2));
  const head = concat(config.start, algorithms);
  const label = labels(portion > 0);
  const sender = await senderTo(config.kem, aead, config.publicKey, concat(label.request, [0], head));
  const seal = async (data, aad) => new Uint8Array(await sender.seal(data, aad));
  const sealed = await sealMessage(message, portion, seal);
  const secret = new Uint8Array(await sender.export(label.response, secretLength(aead)));
  const enc = new Uint8Array(sender.enc);
  return { sealed: concat(head, enc, sealed), exchange: { aead, enc, secret, chunked: portion > 0 } };
}

// A client's side of the response, as it arrives: `feed(data)` gives opened chunks, `finish()` the final one.
export class ResponseOpener {
  constructor(exchange) {
    this.exchange = exchange;
    this.early = NOTHING;
    this.opener = null;
  }

  async feed(data) {
    if (this.opener !== null) return this.opener.feed(data);
    const { aead, enc, secret, chunked } = this.exchange;
    this.early = concat(this.early, data);
    const length = secretLength(aead);
    if (this.early.length < length) return [];
    const open = await responseCipher(aead, enc, this.early.slice(0, length), secret, "decrypt");
    this.opener = new Opener(chunked, open);
    return this.opener.feed(this.early.slice(length));
  }

  async finish() {
    if (this.opener === null) throw new Error("the response ends before its nonce does");
    return this.opener.finish();
  }
}

export async function openResponse(exchange, data) {
  return openWhole(new ResponseOpener(exchange), data);
}

// A gateway's side: { message, seal }, the opened request and what seals a response to it.
export async function openRequest(privateKey, chunked, data) {
  const head = data.slice(0, HEAD_LENGTH);
  const kem = number(head.slice(1, 3));
  const aead = number(head.slice(5, 7));
  const enc = data.slice(HEAD_LENGTH, HEAD_LENGTH + ENC_LENGTH[kem]);
  const label = labels(chunked);
  const recipient = await recipientOf(kem, aead, privateKey, enc, concat(label.request, [0], head));
  const open = async (chunk, aad) => new Uint8Array(await recipient.open(chunk, aad));
  const message = await openWhole(new Opener(chunked, open), data.slice(HEAD_LENGTH + enc.length));

  const seal = async (response, portion) => {
    const length = secretLength(aead);
    const secret = new Uint8Array(await recipient.export(label.response, length));
    const nonce = crypto.getRandomValues(new Uint8Array(length));
    const cipher = await responseCipher(aead, enc, nonce, secret, "encrypt");
    return concat(nonce, await sealMessage(response, portion, cipher));
  };
  return { message, seal };
}
