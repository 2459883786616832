"""The server's half of one TLS 1.3 handshake (RFC 8446), by hand: an attacker whose TLS lets it show any certificate.

OpenSSL refuses to load a certificate without its key; an attacker is not bound to that. One suite and one group are spoken:
TLS_AES_128_GCM_SHA256 and X25519.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256

HANDSHAKE, APPLICATION_DATA, CHANGE_CIPHER_SPEC = 22, 23, 20
X25519 = 0x001D
MAX_PLAIN = 16_000


def _expand(secret: bytes, label: str, context: bytes, length: int) -> bytes:
    name = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + bytes([len(context)]) + context
    return hmac.new(secret, info + b"\x01", hashlib.sha256).digest()[:length]


def _message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


@dataclass
class ForgedServer:
    """Shows ``certificate`` (DER) and signs the handshake with ``key``, whoever's it is."""

    certificate: bytes
    key: ec.EllipticCurvePrivateKey
    transcript: bytes = b""
    number: int = 0
    answered: bytes = field(default=b"", repr=False)
    """Everything that the client sent after the server's half."""

    def serve(self, connection: socket.socket) -> None:
        hello = self._record(connection)
        self.transcript = hello
        session, share = _client_hello(hello)
        mine = X25519PrivateKey.generate()
        shown = X25519.to_bytes(2, "big") + b"\x00\x20" + mine.public_key().public_bytes_raw()
        answer = (
            b"\x03\x03" + os.urandom(32) + bytes([len(session)]) + session + b"\x13\x01\x00"
            + _extensions((0x002B, b"\x03\x04"), (0x0033, shown))
        )  # fmt: skip
        self._send(connection, _message(2, answer))
        connection.sendall(bytes([CHANGE_CIPHER_SPEC]) + b"\x03\x03\x00\x01\x01")
        self._agree(mine.exchange(X25519PublicKey.from_public_bytes(share)))
        size = len(self.certificate).to_bytes(3, "big")
        entry = size + self.certificate + b"\x00\x00"
        self._seal(connection, _message(8, b"\x00\x00"))
        self._seal(connection, _message(11, b"\x00" + len(entry).to_bytes(3, "big") + entry))
        signed = b" " * 64 + b"TLS 1.3, server CertificateVerify\x00" + self._digest()
        signature = self.key.sign(signed, ec.ECDSA(SHA256()))
        self._seal(connection, _message(15, b"\x04\x03" + len(signature).to_bytes(2, "big") + signature))
        finished = hmac.new(
            _expand(self.secret, "finished", b"", 32), self._digest(), hashlib.sha256
        ).digest()
        self._seal(connection, _message(20, finished))
        while part := connection.recv(65536):
            self.answered += part

    def _agree(self, shared: bytes) -> None:
        empty = hashlib.sha256(b"").digest()
        early = hmac.new(b"\0" * 32, b"\0" * 32, hashlib.sha256).digest()
        secret = hmac.new(_expand(early, "derived", empty, 32), shared, hashlib.sha256).digest()
        self.secret = _expand(secret, "s hs traffic", self._digest(), 32)
        self.cipher = AESGCM(_expand(self.secret, "key", b"", 16))
        self.iv = int.from_bytes(_expand(self.secret, "iv", b"", 12), "big")

    def _digest(self) -> bytes:
        return hashlib.sha256(self.transcript).digest()

    def _send(self, connection: socket.socket, message: bytes) -> None:
        self.transcript += message
        connection.sendall(bytes([HANDSHAKE]) + b"\x03\x03" + len(message).to_bytes(2, "big") + message)

    def _seal(self, connection: socket.socket, message: bytes) -> None:
        self.transcript += message
        for at in range(0, len(message), MAX_PLAIN):
            plain = message[at : at + MAX_PLAIN] + bytes([HANDSHAKE])
            head = bytes([APPLICATION_DATA]) + b"\x03\x03" + (len(plain) + 16).to_bytes(2, "big")
            nonce = (self.iv ^ self.number).to_bytes(12, "big")
            connection.sendall(head + self.cipher.encrypt(nonce, plain, head))
            self.number += 1

    @staticmethod
    def _record(connection: socket.socket) -> bytes:
        head = connection.recv(5, socket.MSG_WAITALL)
        return connection.recv(int.from_bytes(head[3:], "big"), socket.MSG_WAITALL)


def _extensions(*extensions: tuple[int, bytes]) -> bytes:
    body = b"".join(
        kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content for kind, content in extensions
    )
    return len(body).to_bytes(2, "big") + body


def _client_hello(message: bytes) -> tuple[bytes, bytes]:
    """The session id to echo, and the client's X25519 share."""
    at = 4 + 2 + 32
    session = message[at + 1 : at + 1 + message[at]]
    at += 1 + len(session)
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    at += 1 + message[at]
    end = at + 2 + int.from_bytes(message[at : at + 2], "big")
    at += 2
    while at < end:
        kind, size = (
            int.from_bytes(message[at : at + 2], "big"),
            int.from_bytes(message[at + 2 : at + 4], "big"),
        )
        content = message[at + 4 : at + 4 + size]
        at += 4 + size
        if kind == 0x0033 and int.from_bytes(content[2:4], "big") == X25519:
            return session, content[6:38]
    raise AssertionError("the client offers no X25519")
