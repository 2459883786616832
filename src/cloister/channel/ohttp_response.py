"""The response half of Oblivious HTTP (RFC 9458, section 4.4; draft-ietf-ohai-chunked-ohttp, section 5.2).

A nonce, then sealed chunks under a key derived from the request's HPKE export, its ``enc`` and that nonce: only the
two ends of that one request can make or open them.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag

from cloister.channel.chunks import Opener, check_seal, final_aad, frame
from cloister.channel.hpke import (
    NONCE_LENGTH,
    Buffer,
    Cipher,
    Nonces,
    Recipient,
    Sender,
    Suite,
    cipher,
    expand,
    extract,
    nonce_at,
)
from cloister.errors import ChunkRefused, UsageError


class ResponseSealer:
    """The gateway's side: seals the one response. ``header``, a nonce, goes out first."""

    def __init__(
        self, suite: Suite, enc: bytes, secret: bytes, *, chunked: bool, entropy: Callable[[int], bytes]
    ) -> None:
        """Made by :meth:`RequestOpener.response`."""
        self.header: bytes = entropy(_entropy_length(suite))
        if len(self.header) != _entropy_length(suite):
            raise UsageError(f"a response nonce has {_entropy_length(suite)} bytes, not {len(self.header)}")
        self.chunked = chunked
        self._cipher, base_nonce = _keys(suite, enc, secret, self.header)
        self._nonces = Nonces(base_nonce)
        self._finished = False

    def seal(self, data: Buffer, *, final: bool) -> bytes:
        """As :meth:`RequestSealer.seal`."""
        check_seal(data, final=final, chunked=self.chunked, finished=self._finished)
        if not final and not len(data):
            return b""
        self._finished = final
        aad = final_aad(final=final, chunked=self.chunked)
        sealed = self._cipher.encrypt(self._nonces.take(), data, aad)
        return frame(sealed, final=final) if self.chunked else sealed


class ResponseOpener(Opener):
    """The client's side: opens the one response to its request."""

    def __init__(self, suite: Suite, enc: bytes, secret: bytes, *, chunked: bool, max_chunk: int) -> None:
        """Made by :meth:`RequestSealer.response`."""
        super().__init__(chunked=chunked, max_chunk=max_chunk)
        self._suite, self._enc, self._secret = suite, enc, secret
        self._keys: tuple[Cipher, int] | None = None
        self._sequence = 0

    def _begin(self) -> bool:
        if self._keys is None:
            nonce = self._reader.take(_entropy_length(self._suite))
            if nonce is None:
                return False
            self._keys = _keys(self._suite, self._enc, self._secret, nonce)
            self._secret = b""
        return True

    def _open(self, aad: bytes, sealed: bytes) -> bytes:
        if self._keys is None:
            raise UsageError("there is no response to open yet")
        opener, base_nonce = self._keys
        try:
            opened = opener.decrypt(nonce_at(base_nonce, self._sequence), sealed, aad)
        except InvalidTag:
            raise ChunkRefused(f"chunk {self._sequence} of the response does not authenticate") from None
        self._sequence += 1
        return opened


def _keys(suite: Suite, enc: bytes, secret: bytes, nonce: bytes) -> tuple[Cipher, int]:
    """AEAD and base nonce of one response (RFC 9458, section 4.4)."""
    prk = extract(suite.kdf, enc + nonce, secret)
    key = expand(suite.kdf, prk, b"key", suite.aead.key_length)
    return cipher(suite.aead, key), int.from_bytes(expand(suite.kdf, prk, b"nonce", NONCE_LENGTH), "big")


def _entropy_length(suite: Suite) -> int:
    return max(NONCE_LENGTH, suite.aead.key_length)


def response_secret(side: Sender | Recipient, *, chunked: bool) -> bytes:
    label = b"message/bhttp chunked response" if chunked else b"message/bhttp response"
    return side.export(label, _entropy_length(side.suite))
