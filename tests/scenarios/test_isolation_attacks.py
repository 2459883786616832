"""A program that gives its plaintext away is stopped, whichever way it tries; what it is allowed to do, it can.

Real processes on this kernel. Every attack is first run without isolation, where it must succeed.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.workload.enter import Entry, start
from cloister.workload.isolation import Isolation, Network, User
from isolation_attacks import (
    FILES,
    NETWORK,
    NONE,
    PORTS,
    PROCESSES,
    REFUSED,
    SECRET,
    Attack,
    Bench,
    bench,
    environment,
)
from ports import free_port
from real_parts import absent

PYTHON = (sys.executable, "-I", "-S", "-c")
ATTACKS = [pytest.param(attack, id=name) for name, attack in (FILES | NETWORK | PROCESSES).items()]


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def isolation(*write: Path, network: Network = NONE, **changed: object) -> Isolation:
    said: dict[str, object] = {"read": "all", "landlock": "require", "seccomp": True}
    return Isolation(write=tuple(str(path) for path in write), network=network, **(said | changed))  # type: ignore[arg-type]


def isolated(
    at: Bench, code: str, confined: Isolation, directory: Path | None = None
) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and standard error of a program under isolation."""
    one = Entry(
        program=PYTHON[0],
        argv=(*PYTHON, code),
        environment=environment(at),
        directory=str(directory or Path(str(at.places["in cwd"])).parent),
        isolation=confined,
    )
    with start(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def soon(condition: object, seconds: float) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def left_open(at: Bench, attack: Attack) -> int:
    """A descriptor that a careless launcher could pass on, where the attack is about one."""
    if "left open" not in attack.source:
        return -1
    descriptor = os.open(str(at.places["beside"]), os.O_WRONLY | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)
    at.places["left open"] = descriptor
    return descriptor


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_isolation_the_plaintext_leaks(at: Bench, attack: Attack):
    kept = left_open(at, attack)
    done = subprocess.run(
        [*PYTHON, attack.program()],
        env=environment(at),
        cwd=Path(str(at.places["in cwd"])).parent,
        capture_output=True,
        check=False,
        pass_fds=(kept,) if kept >= 0 else (),
    )
    if kept >= 0:
        os.close(kept)
    assert soon(lambda: attack.leaked(at, done.stdout), 30), done.stderr.decode()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_leaking_program_is_stopped(at: Bench, attack: Attack):
    kept = left_open(at, attack)
    code, output, errors = isolated(at, attack.program(), isolation(at.allowed, network=attack.network))
    if kept >= 0:
        os.close(kept)
    if not attack.unheard:
        assert code == REFUSED, errors.decode()
        assert b"refused:" in errors
    assert not soon(lambda: attack.leaked(at, output), 0.05)


ALLOWED = """
import mmap, os, queue, socket, sqlite3, subprocess, sys, tempfile, threading, json
places = json.loads(os.environ["PLACES"])
os.chdir(places["allowed"])
os.makedirs("a/b")
with open("a/b/file", "wb") as file:
    file.write(b"plaintext" * 100)
    file.flush()
    os.fsync(file.fileno())
os.rename("a/b/file", "a/moved")
os.link("a/moved", "linked")
os.symlink("a/moved", "symlinked")
os.truncate("linked", 90)
assert open("symlinked", "rb").read() == b"plaintext" * 10
os.chmod("a/moved", 0o600)
os.utime("a/moved")
with open("a/moved", "r+b") as file, mmap.mmap(file.fileno(), 90) as mapped:
    mapped[0:5] = b"PLAIN"
with sqlite3.connect("base.sqlite") as base:
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("create table t (x)")
    base.execute("insert into t values (1)")
with tempfile.TemporaryFile(dir=".") as file:
    file.write(b"x")
os.unlink("linked")
os.remove("symlinked")
answers = queue.Queue()
threads = [threading.Thread(target=answers.put, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert sorted(answers.queue) == list(range(8))
assert subprocess.run(["/bin/sh", "-c", "cat a/moved | wc -c"], capture_output=True, text=True).stdout.strip() == "90"
os.close(os.memfd_create("memory"))
one, other = socket.socketpair()
one.sendall(b"pair")
assert other.recv(4) == b"pair"
open("/dev/null", "w").write("gone")
assert len(open("/dev/urandom", "rb").read(8)) == 8
assert open("/etc/passwd").read()
print(socket.getaddrinfo("127.0.0.1", 80)[0][4])
"""


@pytest.mark.parametrize("network", [pytest.param(NONE, id="no network"), pytest.param(PORTS, id="ports")])
def test_what_is_allowed_works(at: Bench, network: Network):
    code, output, errors = isolated(at, ALLOWED, isolation(at.allowed, network=network))
    assert code == 0, errors.decode()
    assert b"127.0.0.1" in output
    assert (at.allowed / "a" / "moved").read_bytes() == b"PLAINtext" + b"plaintext" * 9


def test_a_port_that_is_listed_is_reached(at: Bench):
    port = at.places["tcp"]
    assert isinstance(port, int)
    network = Network(access="ports", connect=(port,))
    code, _, errors = isolated(
        at, NETWORK["over TCP, to a port that is not listed"].program(), isolation(network=network)
    )
    assert code == 0, errors.decode()
    assert soon(lambda: SECRET in b"".join(at.received), 30)


SERVES = """
import socket, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen()
print("listening", flush=True)
connection, _ = server.accept()
connection.sendall(b"served")
"""


def test_a_listed_port_can_be_listened_on(at: Bench):
    port = free_port()
    one = Entry(
        program=PYTHON[0],
        argv=(*PYTHON, SERVES, str(port)),
        environment={},
        directory="/",
        isolation=isolation(network=Network(access="ports", bind=(port,))),
    )
    with start(one, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            assert client.recv(6) == b"served"
        assert process.wait(60) == 0


ITSELF = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hello")).start()
assert socket.create_connection(server.getsockname()).recv(5) == b"hello"
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
datagrams.sendto(b"x", datagrams.getsockname())
assert datagrams.recv(1) == b"x"
print(socket.if_nameindex())
"""


def test_with_no_network_a_program_reaches_itself_over_a_loopback_of_its_own(at: Bench):
    code, output, errors = isolated(at, ITSELF, isolation())
    assert code == 0, errors.decode()
    assert output.strip() == b"[(1, 'lo')]"


UDP = "import socket, json, os; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(os.environ['SECRET'].encode(), ('127.0.0.1', json.loads(os.environ['PLACES'])['udp']))"  # fmt: skip # noqa: E501


def test_udp_leaves_only_where_it_is_said(at: Bench):
    code, _, errors = isolated(at, UDP, isolation(network=Network(access="ports", udp=True)))
    assert code == 0, errors.decode()
    assert soon(lambda: SECRET in b"".join(at.received), 30)


WITHOUT_NAMESPACES = """
import sys
from cloister.workload import linux, seccomp
from cloister.workload.enter import Entry, start
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install("all")
sys.exit(start(Entry.decode(sys.stdin.buffer.read())).wait())
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("import socket; socket.socket(socket.AF_INET)", b"Permission denied", id="TCP"),
        pytest.param(
            "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", b"Permission denied", id="UDP"
        ),
        pytest.param(
            "import socket; socket.socketpair(); socket.socket(socket.AF_UNIX)", b"", id="Unix, its own"
        ),
    ],
)
def test_where_no_namespace_can_be_made_there_is_no_internet_socket(code: str, said: bytes):
    one = Entry(program=PYTHON[0], argv=(*PYTHON, code), environment={}, directory="/", isolation=isolation())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NAMESPACES], input=one.encode(), capture_output=True, check=False
    )
    assert done.returncode == bool(said), done.stderr.decode()
    assert said in done.stderr


def test_a_script_may_write_to_its_error_file_by_name_and_to_no_other(at: Bench):
    for name, expected in (("errors", 0), ("other", 2)):
        errors = at.outside / "errors"
        (at.outside / "other").write_text("")
        one = Entry(
            program="/bin/sh",
            argv=("sh", "-c", 'echo said >> /dev/stderr; echo said > "$0"', str(at.outside / name)),
            environment={},
            directory="/",
            isolation=isolation(),
        )
        with errors.open("ab") as file, start(one, stderr=file) as process:
            assert process.wait(30) == expected
        assert "said" in errors.read_text()
        assert (at.outside / "other").read_text() == ""


ABORTS = """
import os, resource
try:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except (ValueError, OSError):
    pass
secret = os.environ["SECRET"]
os.abort()
"""


def test_a_crash_leaves_no_core_dump(at: Bench):
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        absent("core dumps in the working directory (kernel.core_pattern is not `core`)")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] in (0, 1):
        absent("core dumps (their limit is 0 here)")
    subprocess.run([*PYTHON, ABORTS], cwd=at.allowed, env=environment(at), check=False)
    (core,) = at.allowed.glob("core*")
    assert SECRET in core.read_bytes()
    core.unlink()
    code, _, _ = isolated(at, ABORTS, isolation(at.allowed), at.allowed)
    assert code == -signal.SIGABRT
    assert list(at.allowed.iterdir()) == []


def test_a_set_user_id_program_gives_no_privileges():
    if os.geteuid() != 0:
        absent("a set-user-id program, which takes root to make")
    user = User(uid=54321, gid=54321)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        program = shutil.copy("/usr/bin/id", folder)
        Path(program).chmod(0o4755)
        assert Path(program).stat().st_mode & stat.S_ISUID
        plain = subprocess.run(
            [program, "-u"], user=54321, group=54321, extra_groups=[], capture_output=True, check=True
        )
        assert plain.stdout.strip() == b"0"
        one = Entry(
            program=program,
            argv=("id", "-u"),
            environment={},
            directory="/",
            isolation=isolation(user=user),
        )
        with start(one, stdout=subprocess.PIPE) as process:
            output, _ = process.communicate(timeout=30)
        assert output.strip() == b"54321"


def test_what_is_not_in_the_read_list_is_not_read(at: Bench):
    code = "import sys; print(open(sys.argv[1]).read())"
    base = (sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/proc")
    read = tuple(dict.fromkeys(os.path.realpath(path) for path in base if Path(path).exists()))
    for path, allowed in ((at.outside / "public", False), (at.allowed / "mine", True)):
        path.write_text("of the machine")
        one = Entry(
            program=os.path.realpath(PYTHON[0]),
            argv=(*PYTHON, code, str(path)),
            environment={},
            directory="/",
            isolation=isolation(at.allowed, read=read),
        )
        with start(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            output, errors = process.communicate(timeout=30)
        assert (process.returncode == 0) == allowed, errors.decode()
        assert (output.strip() == b"of the machine") == allowed


LAUNCHES = """
import os, sys
from cloister.workload.enter import Entry, start
from cloister.workload.namespaces import private_mounts, temporary_files
one = Entry.decode(sys.stdin.buffer.read().replace(b'"parent":0', b'"parent":%d' % os.getpid()))
private_mounts()
mounted = temporary_files(size=256 << 20, uid=os.geteuid(), gid=os.getegid(), paths=("/dev/shm",))
code = start(one).wait()
for each in mounted:
    each.unmount()
sys.exit(code)
"""
NUMBERS = """
import multiprocessing, numpy, os, sys, torch
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(2)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
numbers = numpy.arange(64, dtype=numpy.float32).reshape(16, 4)
loader = DataLoader(TensorDataset(torch.from_numpy(numbers)), batch_size=4, num_workers=2)
assert float(sum((batch @ batch.T).sum() for (batch,) in loader)) > 0
layer = torch.nn.Linear(4, 1)
layer(torch.from_numpy(numbers)).sum().backward()
torch.save(layer.state_dict(), "layer.pt")
with open(f"/dev/shm/cloister-test-{os.getppid()}", "w") as file:
    file.write("plaintext")
print(list(torch.load("layer.pt")), file.name)
"""


@pytest.mark.parametrize("network", [pytest.param(NONE, id="no network"), pytest.param(PORTS, id="ports")])
def test_torch_with_its_workers_runs_over_shared_memory_that_nobody_else_sees(at: Bench, network: Network):
    folder = str(at.allowed)
    one = Entry(
        program=sys.executable,
        argv=(sys.executable, "-c", NUMBERS),
        # Not in the folder: workers meet at a Unix socket, whose path must be short.
        environment={"HOME": folder, "TMPDIR": "/dev/shm", "PATH": "/usr/bin:/bin"},
        directory=folder,
        isolation=isolation(at.allowed, Path("/dev/shm"), network=network),
    )
    command = [sys.executable, "-c", LAUNCHES]
    done = subprocess.run(command, input=one.encode(), capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    said, _, shared = done.stdout.decode().strip().rpartition(" ")
    assert said == "['weight', 'bias']"
    assert shared.startswith("/dev/shm/cloister-test-")
    assert not Path(shared).exists()
