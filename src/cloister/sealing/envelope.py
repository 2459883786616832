"""The header of a sealed file: who it is, and its data key wrapped under the key at a ``kbs:///`` URI.

Pure. Refuses another version or suite, lengths out of bounds, padding that is not zero, and a wrap that was
made for another file, another URI or another key. Replacing URI and wrap (:func:`rewrap`) leaves the body,
its associated data and the file id alone. Format: docs/spec/sealed-file.md.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import ForeignFile, FormatError, TamperedFile, TruncatedFile, WrongKey
from cloister.sealing.segments import KEY_SIZE, Buffer
from cloister.sealing.uri import MAX_URI, parse_key_uri

MAGIC = b"CLOISTER"
VERSION = 1
SUITE: Final = 1
"""Sealed once: a header and its body in one file (docs/spec/sealed-file.md)."""
TREE_SUITE: Final = 2
"""Written in place: the header of a sealed tree (docs/spec/sealed-tree.md)."""
HEADER_SIZE = 4096
FILE_ID_SIZE = 32
WRAP_SALT_SIZE = 32
WRAPPED_SIZE = WRAP_SALT_SIZE + 32 + KEY_SIZE + 16

_FIXED = 48
_BODY_LABEL = "cloister/sealed-file/v1"
_WRAP_LABEL = "cloister/key-wrap/v1"
# Every wrap key is derived under a fresh salt and seals once, so the nonce can be fixed.
_WRAP_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header; nothing in it is authentic before :func:`unwrap` succeeded."""

    file_id: bytes
    key_uri: str
    wrapped: bytes
    suite: int = SUITE

    @property
    def associated_data(self) -> bytes:
        """What the body's key is derived with; immutable over the file's life."""
        return framed(_BODY_LABEL, self.file_id, self.suite.to_bytes(2, "big"))


def framed(label: str, *parts: bytes) -> bytes:
    """Label and parts, each behind its 8-byte length: no two lists of inputs give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in (label.encode("ascii"), *parts))


def encode_header(header: Header) -> bytes:
    """The 4096 bytes of a header. Raises :class:`~cloister.errors.FormatError`."""
    uri = str(parse_key_uri(header.key_uri)).encode("ascii")
    if len(header.file_id) != FILE_ID_SIZE or len(header.wrapped) != WRAPPED_SIZE:
        raise FormatError("a header holds a file id of 32 bytes and a wrapped key of 112")
    fixed = MAGIC + VERSION.to_bytes(2, "big") + header.suite.to_bytes(2, "big") + header.file_id
    lengths = len(uri).to_bytes(2, "big") + WRAPPED_SIZE.to_bytes(2, "big")
    return (fixed + lengths + uri + header.wrapped).ljust(HEADER_SIZE, b"\0")


def parse_header(data: bytes, *, name: str, suite: int = SUITE) -> Header:
    """Parse the first 4096 bytes of a sealed file, or of a tree's header; ``name`` is for errors.

    Raises :class:`~cloister.errors.ForeignFile`, :class:`~cloister.errors.TruncatedFile` or
    :class:`~cloister.errors.TamperedFile`.
    """
    if not data.startswith(MAGIC[: max(1, len(data))]):
        raise ForeignFile(f"{name} is not a sealed file", todo="seal it with `cloister seal`")
    if len(data) < HEADER_SIZE:
        raise TruncatedFile(f"{name} ends inside its header", todo="get the whole file again")
    version, found = int.from_bytes(data[8:10], "big"), int.from_bytes(data[10:12], "big")
    if (version, found) != (VERSION, suite):
        raise ForeignFile(
            f"{name} is of version {version}, suite {found}; here belongs version 1, suite {suite}",
            todo="use the release that sealed it",
        )
    uri_end = _FIXED + int.from_bytes(data[44:46], "big")
    wrapped_size = int.from_bytes(data[46:48], "big")
    if not _FIXED < uri_end <= _FIXED + MAX_URI or wrapped_size != WRAPPED_SIZE:
        raise TamperedFile(f"the header of {name} has lengths that it cannot have")
    end = uri_end + wrapped_size
    if data[end:HEADER_SIZE].strip(b"\0"):
        raise TamperedFile(f"the header of {name} has bytes where it must be zero")
    try:
        uri = str(parse_key_uri(data[_FIXED:uri_end].decode("ascii")))
    except (FormatError, UnicodeDecodeError):
        raise TamperedFile(f"the header of {name} names no key URI") from None
    return Header(file_id=data[12:44], key_uri=uri, wrapped=data[uri_end:end], suite=suite)


def new_header(
    *, key_uri: str, kek: Buffer, data_key: Buffer, file_id: bytes, salt: bytes, suite: int = SUITE
) -> Header:
    """A header for a new file or tree. ``kek``, ``data_key``, ``file_id`` and ``salt`` are 32 bytes each.

    ``file_id`` and ``salt`` are random and used once. Raises :class:`~cloister.errors.FormatError`.
    """
    if not len(kek) == len(data_key) == KEY_SIZE or len(salt) != WRAP_SALT_SIZE:
        raise FormatError("key-encryption key, data key and salt are 32 bytes each")
    uri = str(parse_key_uri(key_uri))
    aead, commitment = _wrap_keys(kek, salt, uri, file_id)
    sealed = aead.encrypt(_WRAP_NONCE, data_key, _wrap_info(uri, file_id))
    return Header(file_id=file_id, key_uri=uri, wrapped=salt + commitment + sealed, suite=suite)


def unwrap(header: Header, kek: Buffer, *, name: str) -> bytearray:
    """The 32-byte data key; the caller erases it when done.

    Raises :class:`~cloister.errors.WrongKey` if ``kek`` is not what the key was wrapped under (for this file and
    this URI), :class:`~cloister.errors.TamperedFile` if it is and the wrap is damaged.
    """
    if len(kek) != KEY_SIZE:
        raise WrongKey(f"the key at {header.key_uri} is {len(kek)} bytes long, not {KEY_SIZE}")
    salt, commitment, sealed = header.wrapped[:32], header.wrapped[32:64], header.wrapped[64:]
    aead, expected = _wrap_keys(kek, salt, header.key_uri, header.file_id)
    if not hmac.compare_digest(commitment, expected):
        raise WrongKey(
            f"the key at {header.key_uri} does not open {name}",
            todo="give the key that it was sealed under: another key file, or what the broker should hold at that address",
        )
    data_key = bytearray(KEY_SIZE)
    try:
        info = _wrap_info(header.key_uri, header.file_id)
        aead.decrypt_into(_WRAP_NONCE, sealed, info, data_key)
    except InvalidTag:
        erase(data_key)
        raise TamperedFile(f"the wrapped key of {name} does not authenticate") from None
    return data_key


def rewrap(header: Header, *, kek: Buffer, new_uri: str, new_kek: Buffer, salt: bytes, name: str) -> Header:
    """The same file under another key or another URI. ``salt`` is 32 fresh random bytes. Raises as unwrap."""
    data_key = unwrap(header, kek, name=name)
    try:
        made = new_header(key_uri=new_uri, kek=new_kek, data_key=data_key, file_id=header.file_id, salt=salt)
    finally:
        erase(data_key)
    return replace(header, key_uri=made.key_uri, wrapped=made.wrapped)


def erase(secret: bytearray) -> None:
    """Overwrite a buffer with zeros. Copies that the interpreter or libraries made are out of reach."""
    secret[:] = bytes(len(secret))


def _wrap_info(uri: str, file_id: bytes) -> bytes:
    return framed(_WRAP_LABEL, uri.encode("ascii"), file_id)


def _wrap_keys(kek: Buffer, salt: bytes, uri: str, file_id: bytes) -> tuple[AESGCM, bytes]:
    derived = bytearray(64)
    HKDF(SHA256(), 64, salt, _wrap_info(uri, file_id)).derive_into(kek, derived)
    aead, commitment = AESGCM(memoryview(derived)[:KEY_SIZE]), bytes(derived[KEY_SIZE:])
    erase(derived)
    return aead, commitment
