"""Who may use the local proxy: programs of this machine's own user, and no web page.

A port of loopback is open to every program and every web site of this machine. So the proxy answers to its own address
only (a site that calls itself by another name and resolves it to 127.0.0.1 is refused: DNS rebinding), to no request that
a browser made for a page, and only to who has its key. Over a Unix socket the file's rights say who may. Pure: no I/O.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from cloister.encoding import encode_json

Fields = Iterable[tuple[bytes, bytes]]
MAX_TARGET: Final = 8192
"""Bytes of path and query."""
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE"))
_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")
_BY_BROWSERS: Final = (b"origin", b"sec-fetch-site", b"access-control-request-method")
"""Of these one at least is in every request that a page can cause in a browser of this decade."""
_SEGMENT: Final = re.compile(rb"(?:[A-Za-z0-9\-_~!$&'()*+,;=:@.]|%(?!2[eEfF]|5[cC])[0-9A-Fa-f]{2})+\Z")
"""Of a path: nothing that a URL may not have, and neither dot, slash nor backslash in disguise."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is answered at the door, in the shape of OpenAI's errors."""

    status: int
    code: str
    message: str

    def body(self) -> bytes:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return encode_json(
            {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}
        )


@dataclass(frozen=True, slots=True)
class Door:
    """``hosts``: what ``Host`` may be, None over a Unix socket. ``key``: the digest of the key, None where none is asked."""

    hosts: frozenset[str] | None
    key: bytes | None = field(repr=False)
    page: bool = False
    """Behind the guard of this machine's own page, which has asked already."""

    @classmethod
    def of_port(cls, port: int, key: str, *, address: str = "127.0.0.1") -> Self:
        """On loopback, at ``address`` too."""
        names = (*_NAMES, f"[{address}]" if ":" in address else address)
        shown = {f"{name}:{port}" for name in names} | (
            {*names} if port == 80 else set()
        )  # clients leave 80 out
        return cls(frozenset(shown), _digest(key))

    @classmethod
    def of_socket(cls) -> Self:
        """On a Unix socket that only its owner may open."""
        return cls(None, None)

    @classmethod
    def of_page(cls) -> Self:
        """Behind :class:`~cloister.client.guard.Guard`."""
        return cls(None, None, page=True)

    def refusal(self, method: str, path: bytes, query: bytes, fields: Fields) -> Refusal | None:
        """Why a request is not passed on; None lets it in. ``path`` is as it came, without the query."""
        found: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            found.setdefault(name.lower(), []).append(value)
        hosts = [value.decode("latin-1").lower() for value in found.get(b"host", [])]
        if self.hosts is not None and (len(hosts) != 1 or hosts[0] not in self.hosts):
            return Refusal(421, "misdirected", "this proxy answers to its own address only")
        if not self.page and any(name in found for name in _BY_BROWSERS):
            return Refusal(403, "web_page", "this proxy answers programs, and no web page")
        if self.key is not None and not self._known(found.get(b"authorization", [])):
            return Refusal(
                401, "invalid_api_key", "this proxy has a key of its own: pass the one whose file it named when it started"
            )  # fmt: skip
        return _misplaced(method, path, query)

    def _known(self, given: list[bytes]) -> bool:
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        right = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self.key or b"")
        return right and scheme.lower() == b"bearer"


def _misplaced(method: str, path: bytes, query: bytes) -> Refusal | None:
    if method not in _METHODS:
        return Refusal(405, "method_not_allowed", f"this proxy passes on {', '.join(sorted(_METHODS))}")
    if len(path) + len(query) > MAX_TARGET:
        return Refusal(414, "address_too_long", f"path and query are over {MAX_TARGET} bytes")
    root, *segments = path.removeprefix(b"/").split(b"/")
    if not path.startswith(b"/") or root != b"v1" or not segments:
        return Refusal(404, "not_found", "the API is below /v1: the base URL ends with it")
    if any(one in (b".", b"..") or not _SEGMENT.match(one) for one in segments):
        return Refusal(400, "malformed_address", "this is no plain path below /v1")
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("ascii")).digest()
