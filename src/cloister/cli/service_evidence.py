"""Fresh evidence from a running service: one question with a nonce of our own, one bounded answer.

Nothing is believed of the answer, so it may come over plain HTTP from this machine; from elsewhere https is asked
for. No redirect is followed, no proxy is taken from the environment, and the whole exchange ends after a minute,
however slowly the answer drips.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Final

import httpx2

from cloister.channel.headers import ATTESTATION_PATH
from cloister.encoding import b64url_encode, encode_json
from cloister.errors import EvidenceError, NetworkError, UsageError
from cloister.evidence.bundle import MAX_BUNDLE

DEADLINE: Final = 60.0
"""Seconds for everything."""


def is_address(text: str) -> bool:
    """Whether ``text`` is an address rather than a file's name."""
    return text.startswith(("http://", "https://"))


def ask_service(
    address: str,
    nonce: bytes,
    *,
    transport: httpx2.AsyncBaseTransport | None = None,
    deadline: float = DEADLINE,
) -> bytes:
    """The bundle that the service at ``address`` (an origin) answers to ``nonce``; not looked into.

    Raises :class:`~cloister.errors.UsageError`, :class:`~cloister.errors.NetworkError` and
    :class:`~cloister.errors.EvidenceError` (an answer that is none).
    """
    origin = _origin(address)
    question = httpx2.Request(
        "POST",
        origin.join(ATTESTATION_PATH),
        headers={
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",
        },
        content=encode_json({"nonce": b64url_encode(nonce)}),
        extensions={"timeout": httpx2.Timeout(deadline, connect=5.0).as_dict()},
    )
    return asyncio.run(_ask(question, transport or httpx2.AsyncHTTPTransport(), deadline))


async def _ask(question: httpx2.Request, transport: httpx2.AsyncBaseTransport, deadline: float) -> bytes:
    try:
        async with asyncio.timeout(deadline), transport:
            answer = await transport.handle_async_request(question)
            try:
                return await _read(answer)
            finally:
                await answer.aclose()
    except TimeoutError:
        raise NetworkError(
            f"{_shown(question.url)} did not finish its answer in {deadline:.0f} s", todo="try again"
        ) from None
    except httpx2.HTTPError as error:
        detail = "".join(char if char.isprintable() else "?" for char in str(error)[:200])
        raise NetworkError(
            f"{_shown(question.url)} does not answer ({type(error).__name__}: {detail})",
            todo="check the address and that it runs",
        ) from None


async def _read(answer: httpx2.Response) -> bytes:
    if answer.status_code != 200:
        moved = 300 <= answer.status_code < 400
        raise EvidenceError(
            f"no evidence was shown: the answer was status {answer.status_code}",
            todo="redirects are not followed: give the service's own address"
            if moved
            else "check the address; is this a Cloister service?",
        )
    assert isinstance(answer.stream, httpx2.AsyncByteStream)  # noqa: S101 -- tells the type
    parts, length = [], 0
    async for part in answer.stream:
        length += len(part)
        if length > MAX_BUNDLE:
            raise EvidenceError(
                f"the answer is over its bound of {MAX_BUNDLE} bytes", todo="no bundle is as long"
            )
        parts.append(part)
    return b"".join(parts)


def _origin(address: str) -> httpx2.URL:
    try:
        url = httpx2.URL(address)
    except (httpx2.InvalidURL, ValueError):
        raise UsageError("the address is not a URL", todo="give https://host[:port]") from None
    if not url.host or url.path.rstrip("/") not in ("", "/v1", ATTESTATION_PATH) or url.query or url.userinfo:
        raise UsageError(
            "the address has more than an origin",
            todo="give https://host[:port], without path or credentials",
        )
    if url.scheme == "http" and not _on_this_machine(url.host):
        raise UsageError(
            f"{url.host} is asked over plain http", todo="use https; plain http is for this machine alone"
        )
    return url.copy_with(raw_path=b"/", fragment=None)


def _shown(url: httpx2.URL) -> str:
    """Host, and the port where one was given."""
    return url.netloc.decode("ascii", "replace")


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
