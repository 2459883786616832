"""Talking to a key store of somebody else: its library when it is needed, bounded answers, bounded patience.

Nothing is read from the environment: no proxy, no credential, no address, no CA bundle. An answer over its bound, late or
cut short is no answer (:class:`~cloister.errors.KeystoreUnavailable`). What the libraries would log in detail holds
plaintexts and tokens, so their loggers stay above that.
"""

from __future__ import annotations

import importlib
import ipaddress
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError

T = TypeVar("T")

CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 10
ANSWER_SECONDS: Final = 20
"""For a whole answer, however steadily it drips."""
MAX_ANSWER: Final = 1 << 20
CHUNK: Final = 1 << 16
ATTEMPTS: Final = 3
PAUSE: Final = 0.2
"""Seconds before the second attempt; doubled for each further one."""
BUSY: Final = (408, 425, 429)
UNANSWERED: Final = 500
"""This status and above: the store has a trouble of its own."""
_LOGGERS: Final = ("urllib3", "requests", "hvac", "boto3", "botocore", "azure", "msal", "google")


def imported(name: str, extra: str) -> Any:
    """The module ``name``, imported now. Raises :class:`~cloister.errors.UsageError` when it is not installed."""
    for logger in _LOGGERS:
        logging.getLogger(logger).setLevel(logging.WARNING)
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"the key store needs {name}, which is not installed",
            todo=f"run `pip install 'cloister[{extra}]'`",
        ) from None


def retried(call: Callable[[], T], *, sleep: Callable[[float], None] = time.sleep) -> T:
    """What ``call`` answers, asked again a few times while the store is unavailable. Only for what may happen twice."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return call()
        except KeystoreUnavailable:
            sleep(PAUSE * 2**attempt)
    return call()


def refusal(store: str, status: int, doing: str) -> KeystoreError:
    """What an HTTP status other than success means; the store's own words stay out, they may quote the request."""
    if status in BUSY or status >= UNANSWERED:
        return unavailable(store, f"answered {status}")
    if status in (401, 403):
        return KeystoreError(
            f"{store} does not let this broker {doing} ({status})",
            todo="check the credentials, and what they may do there",
        )
    return KeystoreError(f"{store} refused to {doing} ({status})")


def unavailable(store: str, why: str) -> KeystoreUnavailable:
    return KeystoreUnavailable(f"{store} cannot be reached: {why}", todo="try again later")


def garbage(store: str) -> KeystoreError:
    return KeystoreError(
        f"{store} answered what it never should", todo="check that the address is the store's"
    )


def check_address(address: str) -> str:
    """An ``https`` address (plain ``http`` only to a loopback address). Raises :class:`~cloister.errors.UsageError`."""
    try:
        parts = urlsplit(address)
        valid = bool(parts.hostname) and not (
            parts.username or parts.password or parts.query or parts.fragment
        )
        secure = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or ""))
    except ValueError:
        valid = secure = False
    if not valid or not secure:
        raise UsageError(f"{address!r:.200} is no address of a key store", todo="write https://host[:port]")
    return address.rstrip("/")


def bounded_session(ca_file: Path | None, *, only: str = "") -> Any:
    """A ``requests`` session that verifies TLS, reads bounded answers and, where given, asks ``only`` one address."""
    requests = imported("requests", "vault")
    session = requests.Session()
    # Or REQUESTS_CA_BUNDLE and HTTPS_PROXY would choose whom we trust and who sees the tokens.
    session.trust_env = False
    session.verify = str(ca_file) if ca_file else True
    for scheme in ("https://", "http://"):
        session.mount(scheme, _bounded(requests, urlsplit(only).netloc))
    return session


def _bounded(requests: Any, only: str) -> Any:
    adapter = requests.adapters.HTTPAdapter(max_retries=0)
    plain = adapter.send
    urllib3 = importlib.import_module("urllib3")

    def send(request: Any, **options: Any) -> Any:
        if only and urlsplit(request.url).netloc != only:
            raise requests.exceptions.ConnectionError("an answer leads to another address")
        answer = plain(request, **{**options, "stream": True, "timeout": (CONNECT_SECONDS, READ_SECONDS)})
        try:
            answer._content = read_bounded(answer.raw)
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            answer.raw.close()
            # The reason may quote what was read.
            raise requests.exceptions.ConnectionError("the answer was cut short or over its bound") from None
        answer._content_consumed = True
        return answer

    adapter.send = send
    return adapter


def read_bounded(raw: Any, *, clock: Callable[[], float] = time.monotonic) -> bytes:
    """The whole body of a ``urllib3`` answer. Raises :class:`ValueError` over the bounds of size and time."""
    end = clock() + ANSWER_SECONDS
    data = bytearray()
    while chunk := raw.read1(CHUNK, decode_content=True):
        data += chunk
        if len(data) > MAX_ANSWER or clock() > end:
            raise ValueError("the answer is over its bound")
    expected = raw.headers.get("content-length", "")
    if expected.isdecimal() and "content-encoding" not in raw.headers and len(data) != int(expected):
        raise ValueError("the answer ends early")
    return bytes(data)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
