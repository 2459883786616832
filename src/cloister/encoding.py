"""Strict decoding and labelled hashing: one way to read JSON and CBOR, one way to hash several things.

Nothing here pads, truncates, repairs or guesses. Duplicate keys, unknown fields, trailing bytes, non-finite
numbers, invalid UTF-8, too deep nesting and too large inputs raise :class:`~cloister.errors.FormatError`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from cloister.errors import FormatError

T = TypeVar("T")

MAX_DEPTH = 32
MAX_QUOTED = 300
"""Characters of a validation error, which may quote the document."""
MAX_SAFE_INTEGER = 2**53 - 1


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every wire structure: immutable, every field named, unknown fields refused."""


def decode_json(data: bytes | str, kind: type[T], *, what: str, limit: int = 1 << 20) -> T:
    """Decode strict JSON into ``kind`` (a :class:`Record` or a plain type).

    ``what`` names the document in errors; ``limit`` is in bytes. Binary fields
    (``bytes``) are standard base64.
    Raises :class:`FormatError`.
    """
    value = parse_json(data, what=what, limit=limit)
    return convert(value, kind, what=what)


def convert(value: object, kind: type[T], *, what: str) -> T:
    """Turn parsed JSON or TOML into ``kind``, strictly. Raises :class:`FormatError`."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        # The text may quote a name out of the document: one bounded line, and nothing that steers a terminal.
        found = "".join(char if char.isprintable() else "?" for char in str(error)[:MAX_QUOTED])
        raise FormatError(f"{what} does not have the form it should: {found}") from None


def parse_json(data: bytes | str, *, what: str, limit: int = 1 << 20) -> Any:
    """Parse strict JSON (RFC 8259 and I-JSON, RFC 7493: no duplicate names, no unsafe integers)."""
    size = len(data.encode("utf-8", "surrogatepass")) if isinstance(data, str) else len(data)
    if size > limit:
        raise FormatError(f"{what} is {size} bytes long, over its bound of {limit}")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{what} is not UTF-8") from None
    _check_depth(text, what)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique(what),
            parse_constant=_no_constant(what),
            parse_int=_integer(what),
            parse_float=_finite(what),
        )
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{what} is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    # Half of a surrogate pair is no text (RFC 7493, section 2.1); only an escape or a str can smuggle it in.
    if isinstance(data, str) or "\\ud" in text.lower():
        _no_surrogates(value, what)
    return value


def encode_json(value: object) -> bytes:
    """Canonical JSON (RFC 8785 for the values we use, so no floating point): sorted, no white space, UTF-8.

    Records are encoded by field name; ``bytes`` as standard base64. Raises :class:`FormatError` on floats.
    """
    plain = msgspec.to_builtins(value, str_keys=True)
    _no_floats(plain)
    # RFC 8785 sorts by UTF-16 code units; for names inside the basic plane that is Python's own order.
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("canonical JSON here has no lone surrogates") from None


def labelled_hash(label: str, *parts: bytes, algorithm: str = "sha256") -> bytes:
    """Hash ``parts`` under a versioned label: every input, label first, goes in behind its 8-byte length.

    So ``("a", "bc")`` and ``("ab", "c")`` never collide, nor do two purposes.
    """
    digest = hashlib.new(algorithm)
    for part in (label.encode("ascii"), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def from_hex(text: str, length: int, *, what: str) -> bytes:
    """Decode exactly ``length`` bytes of lower-case hexadecimal. Raises :class:`FormatError`."""
    if len(text) != 2 * length or text != text.lower():
        raise FormatError(f"{what} must be {2 * length} lower-case hexadecimal digits")
    try:
        value = binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        raise FormatError(f"{what} must be {2 * length} lower-case hexadecimal digits") from None
    return value


def b64url_encode(data: bytes) -> str:
    """base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str, *, what: str, length: int | None = None) -> bytes:
    """Decode canonical base64url without padding; ``length`` bytes if given. Raises :class:`FormatError`."""
    try:
        raw = text.encode("ascii")
        value = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise FormatError(f"{what} is not base64url") from None
    if b64url_encode(value) != text:
        raise FormatError(f"{what} is not canonical base64url")
    if length is not None and len(value) != length:
        raise FormatError(f"{what} is {len(value)} bytes long, not {length}")
    return value


def decode_cbor(data: bytes, *, what: str, limit: int = 1 << 20) -> Any:
    """Decode one CBOR item (RFC 8949) with no duplicate keys and nothing behind it."""
    import cbor2  # noqa: PLC0415 -- only attested TLS and EAT need it; keeps `import cloister` quick

    if len(data) > limit:
        raise FormatError(f"{what} is {len(data)} bytes long, over its bound of {limit}")
    try:
        value = cbor2.loads(data)
        # Re-encoding canonically shows duplicates, trailing bytes and non-minimal lengths at once.
        again = cbor2.dumps(value, canonical=True)
    except (cbor2.CBORError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise FormatError(f"{what} is not CBOR ({type(error).__name__})") from None
    if again != data:
        raise FormatError(f"{what} is not deterministic CBOR (RFC 8949, section 4.2)")
    _no_infinities(value, what)
    return value


_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def _check_depth(text: str, what: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        char = text[match.start()]
        if char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise FormatError(f"{what} is nested deeper than {MAX_DEPTH}")
        elif char in "]}":
            depth -= 1


def _no_surrogates(value: object, what: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError(f"{what} holds a lone surrogate (RFC 7493)") from None


def _unique(what: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise FormatError(f"{what} names a field twice")
        return table

    return hook


def _no_constant(what: str) -> Callable[[str], Any]:
    def hook(name: str) -> Any:
        raise FormatError(f"{what} holds {name}, which is not JSON")

    return hook


def _integer(what: str) -> Callable[[str], int]:
    def hook(digits: str) -> int:
        if len(digits) > 17 or abs(int(digits)) > MAX_SAFE_INTEGER:
            raise FormatError(f"{what} holds an integer over 2^53 (RFC 7493)")
        return int(digits)

    return hook


def _finite(what: str) -> Callable[[str], float]:
    def hook(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise FormatError(f"{what} holds a number beyond every bound")
        return float(digits)

    return hook


def _no_infinities(value: object, what: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise FormatError(f"{what} holds a number that is not finite")
    if isinstance(value, dict):
        for key, item in cast(dict[object, object], value).items():
            _no_infinities(key, what)
            _no_infinities(item, what)
    elif isinstance(value, (list, tuple)):
        for item in cast(list[object], value):
            _no_infinities(item, what)


def _no_floats(value: object) -> None:
    if isinstance(value, float):
        raise FormatError("canonical JSON here has no floating point")
    if isinstance(value, dict):
        for item in cast(dict[str, object], value).values():
            _no_floats(item)
    elif isinstance(value, list):
        for item in cast(list[object], value):
            _no_floats(item)
