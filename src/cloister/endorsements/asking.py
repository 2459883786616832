"""What is asked of a vendor's service, and what came back, as values: the seam between pure vendor modules and I/O.

A vendor module is a generator (:data:`Asking`): it yields the :class:`Part` values it needs, is sent their contents
and returns the finished document. It never opens a socket or a file. ``fetch.py`` drives it over HTTP and the cache.
Bytes from a service are data, never instructions: no address, header or redirect of a reply leads to another request.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from cloister.endorsements.x509 import read_certificate, read_revocation_list
from cloister.errors import EndorsementError

Vendor = Literal["intel", "amd", "nvidia"]
VENDORS: Final[tuple[Vendor, ...]] = ("intel", "amd", "nvidia")

MAX_KEY: Final = 200
MAX_CONTENT: Final = 1 << 20
"""Bytes of one part's content."""
_KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")

DER_TYPES: Final = frozenset(
    {
        "application/pkix-cert",
        "application/pkix-crl",
        "application/x-x509-ca-cert",
        "application/x-pkcs7-crl",
        "application/octet-stream",
        "binary/octet-stream",
    }
)
PEM_TYPES: Final = frozenset(
    {"application/x-pem-file", "application/pem-certificate-chain", "text/plain", *DER_TYPES}
)
JSON_TYPES: Final = frozenset({"application/json"})


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer with status 200. Header names are in lower case."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that a vendor signs, and how it is asked for."""

    vendor: Vendor
    key: str
    """Its name in caches and bundles: the same whichever mirror it came from. See :func:`check_key`."""
    what: str
    """For people, such as ``TCB info of FMSPC 00a06d080000``."""
    url: str
    types: frozenset[str]
    """Media types that the answer may have, without parameters."""
    limit: int
    """Upper bound of the answer's body, bytes."""
    read: Callable[[Reply], bytes]
    """Answer to content (what is cached and bundled). Raises :class:`~cloister.errors.EndorsementError`."""
    max_age: int
    """Seconds after which it is asked for again, though it still holds."""
    unknown: str
    """What status 404 means, after the subject, such as ``Intel does not know this platform``."""
    optional: bool = False
    """404 is an answer (None), not an error."""
    post: bytes | None = None
    """The body of a POST; None for a GET."""
    post_type: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One part as it is kept: in a cache, or in a bundle that is carried."""

    vendor: Vendor
    key: str
    fetched_at: int
    """Unix seconds, by the clock of whoever fetched it."""
    content: bytes


Asking = Generator[tuple[Part, ...], tuple[bytes | None, ...], bytes]
"""Yields what it needs next, is sent the contents in that order (None only for optional parts), returns the document."""


def check_key(key: str) -> str:
    """``key``, if it is one: segments of letters, digits, ``._-`` that do not begin with a dot, joined by ``/``.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    if len(key) > MAX_KEY or not _KEY.fullmatch(key):
        raise EndorsementError("a name of an endorsement is malformed")
    return key


def seconds_of(text: object, *, what: str) -> int:
    """Unix seconds of an RFC 3339 time in UTC, as vendors write it. Raises :class:`EndorsementError`."""
    try:
        if not isinstance(text, str) or not text.endswith("Z"):
            raise ValueError
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise EndorsementError(f"{what} is not a time in UTC") from None


def certificates_end(certificates: Iterable[bytes]) -> int:
    """Unix seconds of the earliest ``notAfter`` among DER certificates. Raises :class:`EndorsementError`."""
    return min(read_certificate(der).not_after for der in certificates)


def crl_ends(der: bytes) -> int:
    """Unix seconds of a revocation list's ``nextUpdate``. Raises :class:`EndorsementError`."""
    return read_revocation_list(der).next_update


def pem_of(certificates: Iterable[bytes]) -> str:
    """Canonical PEM (64 columns, LF), one behind the other."""
    return "".join(
        "-----BEGIN CERTIFICATE-----\n"
        + "\n".join(textwrap.wrap(base64.b64encode(der).decode("ascii"), 64))
        + "\n-----END CERTIFICATE-----\n"
        for der in certificates
    )
