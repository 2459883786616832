"""Where an upstream may be: a Unix socket, or the loopback of the machine that both it and we are protected by.

Names are not resolved and nothing leaves the TEE. An enclave of SGX has neither: its sockets are the host's, who would read
every prompt on the way. Refused there, and everything else anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.errors import UsageError

_SOCKET_PATH_LIMIT: Final = 107  # sun_path of unix(7), with its terminating zero
_UNIX: Final = re.compile(r"unix:(/[^\0#]+)(?:#(.{1,256}))?")
_LOOPBACK: Final = re.compile(r"http://(127\.0\.0\.1|\[::1\]):([1-9][0-9]{0,4})/?(?:#(.{1,256}))?")
_FORM: Final = "name unix:/path, http://127.0.0.1:PORT or http://[::1]:PORT, with #model behind it where it serves several"


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """A server to connect to, and which of its models."""

    socket: str | None
    """Path of a Unix socket."""
    url: str
    """What requests are sent to; the host in it means nothing behind a Unix socket."""
    model: str | None
    """As the server calls it; None where it serves one."""


def parse_upstream(address: str) -> UpstreamAddress:
    """Raises :class:`UsageError`."""
    if found := _UNIX.fullmatch(address):
        path = found[1]
        if len(path.encode()) > _SOCKET_PATH_LIMIT or ".." in path.split("/"):
            raise UsageError("the upstream's socket has a path that cannot be", todo=_FORM)
        return UpstreamAddress(socket=path, url="http://upstream", model=found[2])
    if (found := _LOOPBACK.fullmatch(address)) and int(found[2]) < 1 << 16:
        return UpstreamAddress(socket=None, url=f"http://{found[1]}:{found[2]}", model=found[3])
    raise UsageError("the upstream has an address that is not inside this machine", todo=_FORM)


def check_upstream(address: str, tee: str) -> None:
    """Raise :class:`UsageError` where a TEE of the kind ``tee`` ("sgx", "tdx", …) must not send prompts to ``address``."""
    parse_upstream(address)
    if "sgx" in tee.lower():
        raise UsageError(
            "an SGX enclave has no loopback and no sockets of its own: the host would read what is sent to an upstream",
            todo="serve the model with an engine inside the enclave, or run in a confidential VM",
        )
