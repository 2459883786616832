"""The body of a sealed file: Tink's AES256-GCM-HKDF-1MB streaming AEAD, segment by segment.

Pure: keys, salts and buffers come in, ciphertext or verified plaintext goes out, in any order and from any
thread. Refuses to hand out a byte that did not authenticate, and knows no way to seal a segment again.
Format: docs/spec/sealed-file.md; Tink's wire format for AES-GCM-HKDF streaming
(https://developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import FormatError, TamperedFile, TruncatedFile

SEGMENT_SIZE = 1 << 20
"""A ciphertext segment with its tag, bytes; the first one also counts the preamble."""
TAG_SIZE = 16
SALT_SIZE = 32
PREFIX_SIZE = 7
PREAMBLE_SIZE = 1 + SALT_SIZE + PREFIX_SIZE
"""What Tink calls its header: length byte, salt, nonce prefix."""
KEY_SIZE = 32
MAX_SEGMENTS = 1 << 20
"""1 TiB: as many leaves as one Merkle tree of ours has."""

_FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - TAG_SIZE
_OTHER = SEGMENT_SIZE - TAG_SIZE
MAX_SIZE = _FIRST + (MAX_SEGMENTS - 1) * _OTHER

Buffer: TypeAlias = bytes | bytearray | memoryview
Writable: TypeAlias = bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the segments of ``size`` bytes of plaintext lie, in the plaintext and in the body."""

    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise FormatError(f"a sealed file holds 0 to {MAX_SIZE} bytes, not {self.size}")

    @property
    def segments(self) -> int:
        """How many there are; at least one."""
        return 1 + max(0, -(-(self.size - _FIRST) // _OTHER))

    @property
    def body_size(self) -> int:
        """Bytes of the body: preamble, plaintext and one tag for each segment."""
        return PREAMBLE_SIZE + self.size + TAG_SIZE * self.segments

    def plain(self, segment: int) -> Span:
        """What segment ``segment`` covers of the plaintext."""
        start = 0 if segment == 0 else _FIRST + (segment - 1) * _OTHER
        capacity = _FIRST if segment == 0 else _OTHER
        return Span(start, min(capacity, self.size - start))

    def block(self, segment: int) -> Span:
        """The same segment in the body, with its tag; segment 0 with the preamble before it."""
        start = segment * SEGMENT_SIZE
        return Span(start, min(SEGMENT_SIZE, self.body_size - start))

    def segment_at(self, offset: int) -> int:
        """Which segment holds plaintext byte ``offset``."""
        return 0 if offset < _FIRST else 1 + (offset - _FIRST) // _OTHER


def layout_of_body(body_size: int, *, name: str) -> Layout:
    """The layout of a body of this many bytes.

    Raises :class:`~cloister.errors.TruncatedFile` where no plaintext has a body of that length, and
    :class:`~cloister.errors.FormatError` over the bound.
    """
    segments = -(-body_size // SEGMENT_SIZE)
    size = body_size - PREAMBLE_SIZE - TAG_SIZE * segments
    if size < 0:
        raise TruncatedFile(f"{name} ends before its first segment does", todo="get the whole file again")
    layout = Layout(size)
    if layout.body_size != body_size:
        raise TruncatedFile(f"{name} ends inside a tag", todo="get the whole file again")
    return layout


class SegmentCipher:
    """Seals or opens the segments of one body. Thread-safe; errors name the file by ``name``."""

    __slots__ = ("_aead", "_prefix", "name")

    def __init__(self, data_key: Buffer, preamble: Buffer, associated_data: bytes, *, name: str) -> None:
        """``data_key`` is 32 bytes, ``preamble`` 40. Raises :class:`~cloister.errors.TamperedFile`."""
        if len(data_key) != KEY_SIZE:
            raise FormatError(f"a data key has {KEY_SIZE} bytes, not {len(data_key)}")
        if len(preamble) != PREAMBLE_SIZE or preamble[0] != PREAMBLE_SIZE:
            raise TamperedFile(f"the body of {name} does not begin as it should")
        salt = bytes(preamble[1 : 1 + SALT_SIZE])
        key = bytearray(KEY_SIZE)
        HKDF(SHA256(), KEY_SIZE, salt, associated_data).derive_into(data_key, key)
        self._aead = AESGCM(key)
        key[:] = bytes(KEY_SIZE)
        self._prefix = bytes(preamble[1 + SALT_SIZE :])
        self.name = name

    def seal_into(self, segment: int, last: bool, plain: Buffer, out: Writable) -> None:
        """Encrypt into ``out``, which is longer than ``plain`` by a tag. Once for each segment, ever."""
        self._aead.encrypt_into(self._nonce(segment, last), plain, None, out)

    def open_into(self, segment: int, last: bool, sealed: Buffer, out: Writable) -> None:
        """Decrypt into ``out``, which is shorter than ``sealed`` by a tag.

        On failure ``out`` is zeroed, as the library leaves unverified bytes there.
        Raises :class:`~cloister.errors.TamperedFile`; :class:`~cloister.errors.TruncatedFile` if the segment
        should be the last and is genuine, but others followed it once.
        """
        if self._opens(segment, last, sealed, out):
            return
        cut = last and self._opens(segment, False, sealed, out)
        out[:] = bytes(len(out))
        if cut:
            raise TruncatedFile(
                f"{self.name} ends after segment {segment}, more followed once",
                todo="get the whole file again",
            )
        raise TamperedFile(
            f"segment {segment} of {self.name} does not authenticate",
            todo="get the file again from its owner",
        )

    def _opens(self, segment: int, last: bool, sealed: Buffer, out: Writable) -> bool:
        try:
            self._aead.decrypt_into(self._nonce(segment, last), sealed, None, out)
        except InvalidTag:
            return False
        return True

    def _nonce(self, segment: int, last: bool) -> bytes:
        return self._prefix + segment.to_bytes(4, "big") + bytes([last])


def new_preamble(salt: bytes, prefix: bytes) -> bytes:
    """Tink's header from 32 bytes of salt and 7 of nonce prefix, both random and used once."""
    if len(salt) != SALT_SIZE or len(prefix) != PREFIX_SIZE:
        raise FormatError("a preamble is made of 32 bytes of salt and 7 of nonce prefix")
    return bytes([PREAMBLE_SIZE]) + salt + prefix
