// The other side of the channel, made of other people's packages: reads one JSON object with an `op` from standard
// input, writes one JSON object to standard output. Bytes are hexadecimal. Oblivious HTTP (RFC 9458, and
// draft-ietf-ohai-chunked-ohttp) is written out here from its specifications, on their HPKE and their Binary HTTP.

import { webcrypto as crypto } from "node:crypto"; // not a global before Node 19; Debian 12 has 18

import { Aes128Gcm, Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";
import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

const KEMS = { 0x0020: DhkemX25519HkdfSha256, 0x647a: XWing };
const AEADS = { 1: Aes128Gcm, 2: Aes256Gcm };
const KEY_LENGTH = { 1: 16, 2: 32 };
const PUBLIC_LENGTH = { 0x0020: 32, 0x647a: 1216 };
const ENC_LENGTH = { 0x0020: 32, 0x647a: 1120 };
const NONCE_LENGTH = 12;
const FINAL = text("final");
const NOTHING = new Uint8Array(0);

function text(value) {
  return new TextEncoder().encode(value);
}

function bytes(hex) {
  return Uint8Array.from(Buffer.from(hex, "hex"));
}

function hex(data) {
  return Buffer.from(data).toString("hex");
}

function concat(...parts) {
  return Uint8Array.from(Buffer.concat(parts.map((part) => Buffer.from(part))));
}

function number(data) {
  return data.reduce((sum, byte) => sum * 256 + byte, 0);
}

function suiteOf(kem, aead) {
  return new CipherSuite({ kem: new KEMS[kem](), kdf: new HkdfSha256(), aead: new AEADS[aead]() });
}

async function senderTo(kem, aead, publicKey, info) {
  const suite = suiteOf(kem, aead);
  const recipientPublicKey = await suite.kem.deserializePublicKey(publicKey.buffer);
  return suite.createSenderContext({ recipientPublicKey, info });
}

async function recipientOf(kem, aead, privateKey, enc, info) {
  const suite = suiteOf(kem, aead);
  const recipientKey = await suite.kem.deserializePrivateKey(privateKey.buffer);
  return suite.createRecipientContext({ recipientKey, enc, info });
}

function varint(value) {
  if (value < 64) return Uint8Array.of(value);
  if (value < 16384) return Uint8Array.of(0x40 | (value >> 8), value & 255);
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value + 0x80000000);
  return Uint8Array.from(out);
}

// Cuts what stands behind the head: [{ sealed, final }].
function unframe(data) {
  const chunks = [];
  let at = 0;
  for (;;) {
    const size = 1 << (data[at] >> 6);
    const length = number([data[at] & 0x3f, ...data.slice(at + 1, at + size)]);
    at += size;
    if (length === 0) return [...chunks, { sealed: data.slice(at), final: true }];
    chunks.push({ sealed: data.slice(at, at + length), final: false });
    at += length;
  }
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

async function openMessage(data, chunked, open) {
  if (!chunked) return open(data, NOTHING);
  const opened = [];
  for (const { sealed, final } of unframe(data)) opened.push(await open(sealed, final ? FINAL : NOTHING));
  return concat(...opened);
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

async function encodeRequest({ method, url, headers, body }) {
  const init = { method, headers };
  if (body) init.body = bytes(body);
  return new Uint8Array(await new BHttpEncoder().encodeRequest(new Request(url, init)));
}

async function decodeRequest(message) {
  const request = new BHttpDecoder().decodeRequest(message);
  const body = hex(await request.arrayBuffer());
  return { method: request.method, url: request.url, headers: [...request.headers], body };
}

async function encodeResponse({ status, headers, body }) {
  return new Uint8Array(await new BHttpEncoder().encodeResponse(new Response(bytes(body), { status, headers })));
}

async function decodeResponse(message) {
  const response = new BHttpDecoder().decodeResponse(message);
  const body = hex(await response.arrayBuffer());
  return { status: response.status, headers: [...response.headers], body };
}

const OPERATIONS = {
  async hpke_seal({ kem, aead, public_key, info, aad, messages, context, length }) {
    const sender = await senderTo(kem, aead, bytes(public_key), bytes(info));
    const sealed = [];
    for (const message of messages) sealed.push(hex(await sender.seal(bytes(message), bytes(aad))));
    return { enc: hex(sender.enc), sealed, exported: hex(await sender.export(bytes(context), length)) };
  },

  async hpke_open({ kem, aead, private_key, enc, info, aad, sealed, context, length }) {
    const recipient = await recipientOf(kem, aead, bytes(private_key), bytes(enc), bytes(info));
    const messages = [];
    for (const message of sealed) messages.push(hex(await recipient.open(bytes(message), bytes(aad))));
    return { messages, exported: hex(await recipient.export(bytes(context), length)) };
  },

  async encode_request(request) {
    return { message: hex(await encodeRequest(request)) };
  },

  async decode_request({ message }) {
    return decodeRequest(bytes(message));
  },

  async encode_response(response) {
    return { message: hex(await encodeResponse(response)) };
  },

  async decode_response({ message }) {
    return decodeResponse(bytes(message));
  },

  // A client's request: the first key configuration of the list, its pair number `pair`.
  async client_request({ keys, pair, portion, request }) {
    const list = bytes(keys);
    const config = list.slice(2, 2 + number(list.slice(0, 2)));
    const kem = number(config.slice(1, 3));
    const pairs = config.slice(3 + PUBLIC_LENGTH[kem] + 2);
    const algorithms = pairs.slice(4 * pair, 4 * pair + 4);
    const aead = number(algorithms.slice(2));
    const head = concat(config.slice(0, 3), algorithms);
    const label = labels(portion > 0);
    const info = concat(label.request, [0], head);
    const sender = await senderTo(kem, aead, config.slice(3, 3 + PUBLIC_LENGTH[kem]), info);
    const seal = async (data, aad) => new Uint8Array(await sender.seal(data, aad));
    const sealed = await sealMessage(await encodeRequest(request), portion, seal);
    const secret = hex(await sender.export(label.response, secretLength(aead)));
    const enc = new Uint8Array(sender.enc);
    return { sealed: hex(concat(head, enc, sealed)), aead, enc: hex(enc), secret };
  },

  async client_response({ aead, enc, secret, chunked, sealed }) {
    const data = bytes(sealed);
    const nonce = data.slice(0, secretLength(aead));
    const open = await responseCipher(aead, bytes(enc), nonce, bytes(secret), "decrypt");
    return decodeResponse(await openMessage(data.slice(nonce.length), chunked, open));
  },

  // A gateway: opens a request and answers it.
  async gateway({ private_key, sealed, portion, response }) {
    const data = bytes(sealed);
    const head = data.slice(0, 7);
    const kem = number(head.slice(1, 3));
    const aead = number(head.slice(5, 7));
    const enc = data.slice(7, 7 + ENC_LENGTH[kem]);
    const label = labels(portion > 0);
    const info = concat(label.request, [0], head);
    const recipient = await recipientOf(kem, aead, bytes(private_key), enc, info);
    const open = async (chunk, aad) => new Uint8Array(await recipient.open(chunk, aad));
    const request = await decodeRequest(await openMessage(data.slice(7 + enc.length), portion > 0, open));

    const length = secretLength(aead);
    const secret = new Uint8Array(await recipient.export(label.response, length));
    const nonce = crypto.getRandomValues(new Uint8Array(length));
    const seal = await responseCipher(aead, enc, nonce, secret, "encrypt");
    const answer = await sealMessage(await encodeResponse(response), portion, seal);
    return { request, sealed: hex(concat(nonce, answer)) };
  },
};

const input = [];
for await (const chunk of process.stdin) input.push(chunk);
const { op, ...options } = JSON.parse(Buffer.concat(input).toString());
process.stdout.write(JSON.stringify(await OPERATIONS[op](options)));
