"""Loads Flower once, and forks a process for each of its programs that is asked for: a second and more, each time, less.

A process of one thread, that holds nothing and opens nothing. Who asks is whoever reaches its socket, in a private folder in
memory; what it starts is one of Flower's own programs, by its name. A child ends when the connection that asked for it does,
and with this process, by the kernel's word.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any, Final

from cloister.federated.flower.launcher import HEAD, MOST, NUMBER
from cloister.federated.flower.tether import end_with_parent

PROGRAMS: Final = (
    "flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp", "flwr",
)  # fmt: skip
LATER: Final = ("cloister.federated.flower.server", "cloister.federated.flower.client", "httpcore")
"""What they load when they run."""
ASK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a process is to become."""

    arguments: list[str]
    environment: dict[str, str]
    descriptors: list[int]
    """Its output, and its errors."""


@dataclass(frozen=True, slots=True)
class Child:
    pid: int
    end: int
    """A descriptor of the process, which becomes readable when it ends."""
    connection: socket.socket


def main() -> None:
    """``python -m cloister.federated.flower.starter SOCKET``"""
    leave = _Leave()
    atexit.register(leave)  # the first one here is the last one called
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        entries = {one.name: one for one in distribution("flwr").entry_points}
        programs: dict[str, Callable[[], Any]] = {name: entries[name].load() for name in PROGRAMS}
        for name in LATER:
            importlib.import_module(name)
        gc.freeze()  # a child's collections leave alone what it shares
        sys.argv = _child_of(listener)
    try:
        programs[sys.argv[0]]()
    except SystemExit as ended:
        leave.code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    else:
        leave.code = 0


class _Leave:
    """Ends a child when all that wanted to has been called: to take Flower apart would take longer than what it did."""

    def __init__(self) -> None:
        self.code = 1

    def __call__(self) -> None:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self.code)


def _child_of(listener: socket.socket) -> list[str]:
    """Start what is asked for, until this process is ended. Comes back in each child, with what it is."""
    starter = os.getpid()
    children: dict[int, Child] = {}
    """By the descriptors of their processes, and by those of their connections."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != listener.fileno():
                    held: Child = key.data
                    if children.get(key.fd) is held:  # its number may be another's by now
                        _ended(held, selector, children)
                    continue
                connection = listener.accept()[0]
                asked = _asked(connection)
                if asked is None:
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    for one in {*children.values()}:
                        os.close(one.end)
                        one.connection.close()
                    connection.close()
                    _become(asked, starter)
                    return asked.arguments
                for descriptor in asked.descriptors:
                    os.close(descriptor)
                child = Child(pid, os.pidfd_open(pid), connection)
                for descriptor in (child.end, connection.fileno()):
                    children[descriptor] = child
                    selector.register(descriptor, selectors.EVENT_READ, child)
                with suppress(OSError):  # who asked may be gone: then its connection says so
                    connection.sendall(NUMBER.pack(pid))


def _asked(connection: socket.socket) -> Asked | None:
    """What somebody asks for, or nothing where it is no program of Flower's."""
    connection.settimeout(ASK_SECONDS)
    descriptors: list[int] = []
    try:
        head, descriptors, _, _ = socket.recv_fds(connection, HEAD.size, 2)
        size = HEAD.unpack(head)[0]
        text = b""
        while len(text) < size <= MOST and (piece := connection.recv(size - len(text))):
            text += piece
        arguments, environment = json.loads(text)
        if arguments[0] in PROGRAMS and len(descriptors) == 2:
            return Asked(arguments, environment, descriptors)
    except (OSError, ValueError, LookupError, TypeError, struct.error):
        pass
    for descriptor in descriptors:
        os.close(descriptor)
    return None


def _become(asked: Asked, starter: int) -> None:
    end_with_parent(starter)
    os.setsid()
    for place, descriptor in enumerate(asked.descriptors, 1):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked.environment)


def _ended(child: Child, selector: selectors.BaseSelector, children: dict[int, Child]) -> None:
    """The process has ended, or who asked for it lets go of it: then it is killed, with its group."""
    with suppress(ProcessLookupError):  # it may have no group of its own yet
        os.killpg(child.pid, signal.SIGKILL)
    os.kill(child.pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    with suppress(OSError):
        child.connection.sendall(NUMBER.pack(code))
    for descriptor in (child.end, child.connection.fileno()):
        selector.unregister(descriptor)
        del children[descriptor]
    os.close(child.end)
    child.connection.close()


if __name__ == "__main__":
    main()
