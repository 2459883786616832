"""What a service may answer, and what is said when it does not: pure checks and texts of fetch.py.

Refused are statuses but 200, media types that the part does not have, compression that nobody asked for, and bodies
announced over their bound. An error quotes no more of a reply than its media type, in printable characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from cloister.endorsements.asking import Part
from cloister.errors import EndorsementError, NetworkError

BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which a service may answer when it is asked again."""
UNKNOWN: Final = frozenset({404, 410, 461, 462})
"""410: an evaluation number that is no longer served. 461, 462: a PCCS that has no such platform."""


def check_head(part: Part, status: int, headers: Mapping[str, str]) -> None:
    """Raise :class:`~cloister.errors.EndorsementError` unless a body that may be ``part`` follows."""
    if 300 <= status < 400:
        raise EndorsementError(
            f"the service redirects {part.what} elsewhere, which is not followed",
            todo="name the right address yourself",
        )
    if status != 200:
        raise EndorsementError(f"the service answered with status {status} for {part.what}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in part.types:
        raise EndorsementError(
            f"the service sent {printable(kind) or 'nothing named'} for {part.what}",
            todo="a login page or a proxy may have answered",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise EndorsementError(f"the service sent {part.what} compressed, unasked")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 9 or int(length) > part.limit):
        raise EndorsementError(f"{part.what} is over its bound of {part.limit} bytes")


def failed(part: Part, reason: str) -> NetworkError:
    """The service could not be asked for ``part``."""
    return NetworkError(
        f"cannot fetch {part.what} from {host(part)}: {reason}", todo="try again later, or name a mirror"
    )


def offline_error(lacking: Sequence[str]) -> EndorsementError:
    """``lacking`` is not in the cache, and nobody may be asked."""
    shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
    return EndorsementError(
        f"offline, and the cache lacks {shown}",
        todo="where there is a network `cloister endorsements export EVIDENCE --out bundle.json`, "
        "here `cloister endorsements import bundle.json`",
    )


def host(part: Part) -> str:
    """Who is asked."""
    return urlsplit(part.url).hostname or ""


def printable(text: str) -> str:
    """At most 120 characters, nothing that steers a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:120])


def day(seconds: int) -> str:
    """For people."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def reason_of(error: Exception) -> str:
    """The first line of a foreign error, or its class."""
    text = printable(str(error).splitlines()[0] if str(error) else "")
    return text or type(error).__name__
