// The other side of the channel, made of other people's packages: reads one JSON object with an `op` from standard
// input, writes one JSON object to standard output. Bytes are hexadecimal.

import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

import { openRequest, openResponse, parseKeyConfigs, recipientOf, sealRequest, senderTo } from "./ohttp.mjs";

function bytes(hex) {
  return Uint8Array.from(Buffer.from(hex, "hex"));
}

function hex(data) {
  return Buffer.from(data).toString("hex");
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
    const [config] = parseKeyConfigs(bytes(keys));
    const { sealed, exchange } = await sealRequest(config, pair, portion, await encodeRequest(request));
    return { sealed: hex(sealed), aead: exchange.aead, enc: hex(exchange.enc), secret: hex(exchange.secret) };
  },

  async client_response({ aead, enc, secret, chunked, sealed }) {
    const exchange = { aead, enc: bytes(enc), secret: bytes(secret), chunked };
    return decodeResponse(await openResponse(exchange, bytes(sealed)));
  },

  // A gateway: opens a request and answers it.
  async gateway({ private_key, sealed, portion, response }) {
    const { message, seal } = await openRequest(bytes(private_key), portion > 0, bytes(sealed));
    const request = await decodeRequest(message);
    return { request, sealed: hex(await seal(await encodeResponse(response), portion)) };
  },
};

const input = [];
for await (const chunk of process.stdin) input.push(chunk);
const { op, ...options } = JSON.parse(Buffer.concat(input).toString());
process.stdout.write(JSON.stringify(await OPERATIONS[op](options)));
