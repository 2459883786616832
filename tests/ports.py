"""Ports for what a test starts: none that the kernel gives a client's end, or another test's server on port 0, meanwhile."""

from __future__ import annotations

import random
import socket
from typing import Final

NOT_GIVEN: Final = range(12000, 32000)
"""Below Linux's own ``ip_local_port_range``, 32768 to 60999."""
_GIVEN: Final[set[int]] = set()


def free_port() -> int:
    """A port of loopback that nobody has, and that most probably nobody takes before it is listened on."""
    for port in random.SystemRandom().sample(NOT_GIVEN, 100):
        if port in _GIVEN:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _GIVEN.add(port)
        return port
    raise AssertionError("100 ports, and none is free")
