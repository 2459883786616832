"""Oblivious HTTP (RFC 9458) and its chunked form (draft-ietf-ohai-chunked-ohttp): sealing and opening, no I/O.

A request is ``key id (1) ‖ KEM (2) ‖ KDF (2) ‖ AEAD (2) ‖ enc`` and sealed chunks; its response is a nonce and
sealed chunks under keys that only this request's two ends can derive. Whoever made the request object makes the
opener of its one response from it, so a response to another request cannot be opened by accident.

The last chunk goes on to the end of the stream: **its plaintext comes out of** ``finish()``. A caller acts on a
message as a whole only after ``finish()`` returned. Once an opener has raised, it stays shut.

Refused, each by its own error: a key id nobody holds or algorithms its configuration does not offer
(:class:`UnknownKey`); a request sealed to another key, or altered in its head or first chunk
(:class:`DecapsulationFailed`); a chunk altered, reordered, spliced in, empty, or of another exchange, and bytes
behind the last one (:class:`ChunkRefused`); an end before the last chunk (:class:`TruncatedMessage`); a chunk over
the bound (:class:`OversizedChunk`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from cloister.channel.chunks import MAX_CHUNK, Opener, check_seal, final_aad, frame
from cloister.channel.hpke import (
    Buffer,
    KeyPair,
    Recipient,
    Suite,
    setup_recipient,
    setup_sender,
)
from cloister.channel.key_config import (
    DEFAULT_SYMMETRIC,
    KEYS_TYPE,
    KeyConfig,
    ServerKey,
    encode_key_config,
    encode_key_configs,
    parse_key_config,
    parse_key_configs,
)
from cloister.channel.ohttp_response import ResponseOpener, ResponseSealer, response_secret
from cloister.errors import (
    ChunkRefused,
    DecapsulationFailed,
    UnknownKey,
    UsageError,
)

__all__ = [
    "CHUNKED_REQUEST_TYPE",
    "CHUNKED_RESPONSE_TYPE",
    "DEFAULT_SYMMETRIC",
    "INTEROPERABLE_CHUNK",
    "KEYS_TYPE",
    "MAX_CHUNK",
    "REQUEST_TYPE",
    "RESPONSE_TYPE",
    "KeyConfig",
    "RequestOpener",
    "RequestSealer",
    "ResponseOpener",
    "ResponseSealer",
    "ServerKey",
    "encode_key_config",
    "encode_key_configs",
    "parse_key_config",
    "parse_key_configs",
]

REQUEST_TYPE: Final = "message/ohttp-req"
RESPONSE_TYPE: Final = "message/ohttp-res"
CHUNKED_REQUEST_TYPE: Final = "message/ohttp-chunked-req"
CHUNKED_RESPONSE_TYPE: Final = "message/ohttp-chunked-res"

INTEROPERABLE_CHUNK: Final = 1 << 14
"""Plaintext bytes that every receiver of the draft takes."""

_HEADER_LENGTH: Final = 7


class RequestSealer:
    """The client's side: seals one request and makes the opener of its response.

    ``header`` goes out first, then what each ``seal`` returns.
    """

    def __init__(self, config: KeyConfig, *, chunked: bool = True, ephemeral: KeyPair | None = None) -> None:
        """``ephemeral`` reproduces published vectors and is never given otherwise.

        Raises :class:`ChannelError`: no algorithms in common, or a public key that is none.
        """
        suite = config.choose_suite()
        head = _head(config.key_id, suite)
        info = _info(head, chunked=chunked)
        self.enc, self._sender = setup_sender(suite, config.public_key, info, ephemeral=ephemeral)
        self.header: bytes = head + self.enc
        self.chunked = chunked
        self._finished = False
        self._answered = False

    def seal(self, data: Buffer, *, final: bool) -> bytes:
        """The next chunk, framed; nothing for no data that is not final. Without chunks, the one final message.

        Raises :class:`UsageError` after the final one, :class:`OversizedChunk`.
        """
        check_seal(data, final=final, chunked=self.chunked, finished=self._finished)
        if not final and not len(data):
            return b""
        self._finished = final
        sealed = self._sender.seal(final_aad(final=final, chunked=self.chunked), data)
        return frame(sealed, final=final) if self.chunked else sealed

    def response(self, *, max_chunk: int = MAX_CHUNK) -> ResponseOpener:
        """The opener of the one response to this request."""
        if self._answered:
            raise UsageError("a request has one response")
        self._answered = True
        suite = self._sender.suite
        secret = response_secret(self._sender, chunked=self.chunked)
        return ResponseOpener(suite, self.enc, secret, chunked=self.chunked, max_chunk=max_chunk)


class RequestOpener(Opener):
    """The gateway's side: opens one request and makes the sealer of its response."""

    def __init__(
        self, find_key: Callable[[int], ServerKey], *, chunked: bool = True, max_chunk: int = MAX_CHUNK
    ) -> None:
        """``find_key`` answers for a key id, or raises :class:`UnknownKey`."""
        super().__init__(chunked=chunked, max_chunk=max_chunk)
        self.key_id: int | None = None
        """None until the head was read; so is ``enc``."""
        self.enc: bytes | None = None
        self._find_key = find_key
        self._head: tuple[bytes, Suite, KeyPair] | None = None
        self._recipient: Recipient | None = None
        self._answered = False

    def response(self, entropy: Callable[[int], bytes] = os.urandom) -> ResponseSealer:
        """The sealer of the one response. Raises :class:`UsageError` before any of the request has opened."""
        if self._recipient is None or self.enc is None or not (self.complete or self._recipient.sequence):
            raise UsageError("there is no request to answer yet")
        if self._answered:
            raise UsageError("a request has one response")
        self._answered = True
        secret = response_secret(self._recipient, chunked=self.chunked)
        return ResponseSealer(self._recipient.suite, self.enc, secret, chunked=self.chunked, entropy=entropy)

    def _begin(self) -> bool:
        if self._recipient is not None:
            return True
        if self._head is None:
            head = self._reader.take(_HEADER_LENGTH)
            if head is None:
                return False
            self._head = self._read_head(head)
        head, suite, pair = self._head
        enc = self._reader.take(suite.kem.enc_length)
        if enc is None:
            return False
        self._recipient = setup_recipient(suite, pair, enc, _info(head, chunked=self.chunked))
        self.enc = enc
        return True

    def _read_head(self, head: bytes) -> tuple[bytes, Suite, KeyPair]:
        key_id = head[0]
        kem, kdf, aead = (int.from_bytes(head[at : at + 2], "big") for at in (1, 3, 5))
        key = self._find_key(key_id)
        if kem != key.config.kem or (kdf, aead) not in key.config.symmetric:
            raise UnknownKey(
                f"key {key_id} does not offer KEM {kem:#06x} with KDF {kdf} and AEAD {aead}",
                todo="verify again and use the key configuration that the workload shows",
            )
        self.key_id = key_id
        return head, Suite.of(kem, kdf, aead), key.pair

    def _open(self, aad: bytes, sealed: bytes) -> bytes:
        if self._recipient is None:
            raise UsageError("there is no request to open yet")
        try:
            return self._recipient.open(aad, sealed)
        except ChunkRefused:
            if self._recipient.sequence:
                raise
            # A wrong private key first shows here: neither KEM says so by itself.
            raise DecapsulationFailed(
                f"the request does not open under key {self.key_id}", todo="verify again and retry once"
            ) from None


def _head(key_id: int, suite: Suite) -> bytes:
    return key_id.to_bytes(1, "big") + suite.suite_id[4:]


def _info(head: bytes, *, chunked: bool) -> bytes:
    label = b"message/bhttp chunked request" if chunked else b"message/bhttp request"
    return label + b"\x00" + head
