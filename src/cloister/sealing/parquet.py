"""Parquet modular encryption with our keys: a data key for each column, wrapped under the key at a ``kbs:///`` URI.

Refuses to write a column in the clear: one that has no key of its own goes under the footer's. A reader that is given the
keys of some columns reads those and no others. Whether a file is encrypted at all, and which file it is, a sealed
directory has to say. Format: docs/spec/parquet-keys.md.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pyarrow.parquet.encryption as modular
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.encoding import b64url_decode, b64url_encode
from cloister.errors import FormatError, TamperedFile, UsageError, WrongKey
from cloister.sealing import KeySource
from cloister.sealing.envelope import erase, framed
from cloister.sealing.remembered import RememberedKeys
from cloister.sealing.uri import parse_key_uri

SALT_SIZE = 32
COMMITMENT_SIZE = 32
TAG_SIZE = 16
DATA_KEY_SIZES = (16, 24, 32)

_LABEL = "cloister/parquet-key-wrap/v1"
_SCHEME = "kbs:///"
_NONCE = bytes(12)  # each wrap has a key of its own
_SEPARATORS = frozenset(":;,")
_LIFETIME = timedelta(minutes=10)


def encryption_properties(
    keys: KeySource,
    *,
    footer_key: str,
    schema: Any,
    column_keys: Mapping[str, Sequence[str]] | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Any:
    """What ``pyarrow.parquet.write_table`` takes as ``encryption_properties``, for tables of this ``schema``.

    ``footer_key`` is a key URI; ``column_keys`` maps key URIs to names of columns, and a column that it does not name
    is encrypted under ``footer_key``. Raises :class:`~cloister.errors.UsageError`, and what ``keys`` raises.
    """
    footer = _identifier(footer_key)
    columns: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for uri, names in (column_keys or {}).items():
        for name in names:
            if name not in schema.names:
                raise UsageError(f"there is no column {name!r} to encrypt", todo="name columns of the schema")
            if name in owner:
                raise UsageError(f"the column {name!r} is given two keys", todo="name it once")
            owner[name] = uri
            columns.setdefault(_identifier(uri), []).append(name)
    for name in schema.names:
        if _SEPARATORS & set(name):
            raise UsageError(f"the column {name!r} has a colon, semicolon or comma", todo="rename it")
        if name not in owner:
            columns.setdefault(footer, []).append(name)
    configuration = modular.EncryptionConfiguration(
        footer_key=footer,
        column_keys=columns,
        encryption_algorithm="AES_GCM_V1",
        plaintext_footer=False,
        double_wrapping=False,
        internal_key_material=True,
        cache_lifetime=_LIFETIME,
        data_key_length_bits=256,
    )
    factory = modular.CryptoFactory(_client(keys, entropy))
    return factory.file_encryption_properties(modular.KmsConnectionConfig(), configuration)


def decryption_properties(keys: KeySource) -> Any:
    """What ``pyarrow.parquet`` readers take as ``decryption_properties``.

    Keys are asked for when a column under them is read: naming ``columns`` reads with the keys of those. A key that
    ``keys`` does not give raises what it raises; a wrap that does not open raises
    :class:`~cloister.errors.WrongKey` or :class:`~cloister.errors.TamperedFile`.
    """
    factory = modular.CryptoFactory(_client(keys, os.urandom))
    settings = modular.DecryptionConfiguration(cache_lifetime=_LIFETIME)
    return factory.file_decryption_properties(modular.KmsConnectionConfig(), settings)


def wrap_key(data_key: bytes, *, uri: str, kek: bytes, salt: bytes) -> str:
    """A data key of 16, 24 or 32 bytes wrapped under ``kek`` (32 bytes). ``salt``: 32 random bytes, used once."""
    if len(data_key) not in DATA_KEY_SIZES or len(kek) != 32 or len(salt) != SALT_SIZE:
        raise FormatError("a data key has 16, 24 or 32 bytes; key-encryption key and salt have 32")
    aead, commitment = _wrap_keys(kek, salt, uri)
    return b64url_encode(salt + commitment + aead.encrypt(_NONCE, data_key, _info(uri)))


def unwrap_key(wrapped: str, *, uri: str, kek: bytes) -> bytes:
    """The data key. Raises :class:`~cloister.errors.WrongKey` and :class:`~cloister.errors.TamperedFile`."""
    try:
        raw = b64url_decode(wrapped, what="a wrapped key")
    except FormatError:
        raise TamperedFile(f"a wrapped key of {uri} is not base64url") from None
    if len(raw) - SALT_SIZE - COMMITMENT_SIZE - TAG_SIZE not in DATA_KEY_SIZES:
        raise TamperedFile(f"a wrapped key of {uri} has {len(raw)} bytes, which it cannot have")
    if len(kek) != 32:
        raise WrongKey(f"the key at {uri} is {len(kek)} bytes long, not 32")
    salt, commitment = raw[:SALT_SIZE], raw[SALT_SIZE : SALT_SIZE + COMMITMENT_SIZE]
    aead, expected = _wrap_keys(kek, salt, uri)
    if not hmac.compare_digest(commitment, expected):
        raise WrongKey(
            f"the key at {uri} does not open this column, or the column's key was wrapped for another",
            todo="check that the broker holds the key that the file was written with",
        )
    try:
        return aead.decrypt(_NONCE, raw[SALT_SIZE + COMMITMENT_SIZE :], _info(uri))
    except InvalidTag:
        raise TamperedFile(f"a wrapped key of {uri} does not authenticate") from None


def _client(keys: KeySource, entropy: Callable[[int], bytes]) -> Callable[[Any], Any]:
    remembered = RememberedKeys(keys)

    class Client(modular.KmsClient):  # type: ignore[misc]  # pyarrow has no types
        """Parquet's seam for key services, over a :class:`KeySource`."""

        def __init__(self, _configuration: Any) -> None:
            super().__init__()

        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            uri = _uri(master_key_identifier)
            return wrap_key(key_bytes, uri=uri, kek=remembered.key(uri), salt=entropy(SALT_SIZE))

        def unwrap_key(self, wrapped_key: str | bytes, master_key_identifier: str) -> bytes:
            uri = _uri(master_key_identifier)
            text = wrapped_key.decode("ascii", "replace") if isinstance(wrapped_key, bytes) else wrapped_key
            return unwrap_key(text, uri=uri, kek=remembered.key(uri))

    return Client


def _identifier(uri: str) -> str:
    try:
        return str(parse_key_uri(uri)).removeprefix(_SCHEME)
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None


def _uri(identifier: str) -> str:
    try:
        return str(parse_key_uri(_SCHEME + identifier))
    except FormatError:
        raise TamperedFile("a column names no key URI as that of its key") from None


def _info(uri: str) -> bytes:
    return framed(_LABEL, uri.encode("ascii"))


def _wrap_keys(kek: bytes, salt: bytes, uri: str) -> tuple[AESGCM, bytes]:
    derived = bytearray(64)
    HKDF(SHA256(), 64, salt, _info(uri)).derive_into(kek, derived)
    aead, commitment = AESGCM(memoryview(derived)[:32]), bytes(derived[32:])
    erase(derived)
    return aead, commitment
