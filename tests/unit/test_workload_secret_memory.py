"""Memory for keys: what it holds, that nobody else reads it, and that it is not there in a child or a core dump."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import UsageError
from cloister.workload.secret_memory import MAX_SIZE, SecretMemory, secret_descriptor
from real_parts import absent

KEY = bytes(range(32))


def none_here() -> int:
    raise OSError(errno.ENOSYS, "no such call")


def not_allowed() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture(
    params=[secret_descriptor, none_here], ids=["as this kernel has it", "a kernel without memfd_secret"]
)
def memory(request: pytest.FixtureRequest) -> Iterator[SecretMemory]:
    with SecretMemory(48, secret_descriptor=request.param) as made:
        yield made


def test_what_is_written_is_read(memory: SecretMemory):
    assert memory.read() == bytes(48)
    memory.write(KEY, 8)
    assert memory.read(8, 32) == KEY
    assert memory.read() == bytes(8) + KEY + bytes(8)
    with memory.view() as view:
        assert bytes(view[8:40]) == KEY
        view[0] = 7
    assert memory.read(0, 1) == b"\7"
    assert len(memory) == 48


def test_erased_memory_is_zeros(memory: SecretMemory):
    memory.write(KEY)
    memory.erase()
    assert memory.read() == bytes(48)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda memory: memory.write(bytes(49)), id="more than it holds"),
        pytest.param(lambda memory: memory.write(b"12", 47), id="over the end"),
        pytest.param(lambda memory: memory.write(b"1", -1), id="before the start"),
        pytest.param(lambda memory: memory.read(0, 49), id="read over the end"),
        pytest.param(lambda memory: memory.read(49), id="read behind the end"),
        pytest.param(lambda memory: memory.read(4, -1), id="a negative length"),
        pytest.param(pickle.dumps, id="pickled"),
    ],
)
def test_a_use_that_does_not_fit_is_refused(memory: SecretMemory, use: Callable[[SecretMemory], object]):
    memory.write(KEY)
    with pytest.raises(UsageError):
        use(memory)
    assert memory.read(0, 32) == KEY


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_a_size_that_is_none_is_refused(size: int):
    with pytest.raises(UsageError):
        SecretMemory(size)


@given(st.binary(min_size=1, max_size=9000), st.integers(0, 100))
def test_any_bytes_come_back(data: bytes, offset: int):
    with SecretMemory(len(data) + offset) as memory:
        memory.write(data, offset)
        assert memory.read(offset) == data


def test_nothing_of_it_is_in_its_repr(memory: SecretMemory):
    memory.write(b"secret words")
    assert "secret words" not in repr(memory)
    assert "48 bytes" in repr(memory)


def test_closing_twice_is_harmless_and_ends_it():
    memory = SecretMemory(4)
    memory.close()
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        memory.read()


def test_it_says_how_well_it_is_kept():
    assert SecretMemory(4, secret_descriptor=none_here).kind in ("locked", "unlocked")
    assert SecretMemory(4, secret_descriptor=not_allowed).kind in ("locked", "unlocked")


def test_a_child_does_not_have_it(memory: SecretMemory):
    memory.write(KEY)
    with memory.view() as view:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Path("/proc/self/mem").open("rb", buffering=0) as there:
                there.seek(address)
                code = 2 if there.read(32) == KEY else 0
        except OSError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert memory.read(0, 32) == KEY


def test_a_child_that_asks_for_it_is_refused_and_lives(memory: SecretMemory):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            memory.read()
        except UsageError:
            memory.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


WRITES_AND_WAITS = """
import ctypes, sys
from cloister.workload import linux
from cloister.workload.secret_memory import SecretMemory, _address
key = bytes(byte ^ 0x5A for byte in bytes.fromhex(sys.argv[1]))
memory = SecretMemory(32)
for at, byte in enumerate(key):
    memory.write(bytes([byte]), at)
ordinary = ctypes.create_string_buffer(key, 32)
print(memory.kind, _address(memory._pages), ctypes.addressof(ordinary), flush=True)
sys.stdin.read()
"""


def test_another_process_even_of_root_cannot_read_it_through_proc():
    masked = bytes(byte ^ 0x5A for byte in KEY).hex()
    quiet = subprocess.PIPE
    command = [sys.executable, "-c", WRITES_AND_WAITS, masked]
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, text=True) as process:
        assert process.stdout is not None
        kind, secret, ordinary = process.stdout.readline().split()
        if kind != "secret":
            process.kill()
            absent("memfd_secret: this kernel has none")
        with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as there:
            there.seek(int(ordinary))
            assert there.read(32) == KEY
            there.seek(int(secret))
            with pytest.raises(OSError, match="Input/output error"):
                there.read(32)
        process.kill()


ABORTS = """
import os, resource, sys, ctypes
from cloister.workload.secret_memory import SecretMemory
key = bytes(byte ^ 0x5A for byte in bytes.fromhex(sys.argv[1]))
place = sys.argv[2]
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if place == "ordinary":
    memory = ctypes.create_string_buffer(key, 32)
else:
    def none(): raise OSError(38, "none")
    memory = SecretMemory(32, **({} if place == "secret" else {"secret_descriptor": none}))
    with memory.view() as view:
        for at, byte in enumerate(key):
            view[at] = byte
    # What Python copied on the way is not what is looked at.
ctypes.memset(id(key) + bytes.__basicsize__ - 1, 0, 32)
os.abort()
"""


@pytest.mark.parametrize(("place", "found"), [("ordinary", True), ("secret", False), ("locked", False)])
def test_a_core_dump_holds_ordinary_memory_and_not_this(tmp_path: Path, place: str, found: bool):
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        absent("core dumps in the working directory (kernel.core_pattern is not `core`)")
    key = os.urandom(32)
    masked = bytes(byte ^ 0x5A for byte in key).hex()
    subprocess.run([sys.executable, "-c", ABORTS, masked, place], cwd=tmp_path, check=False)
    (core,) = tmp_path.glob("core*")
    assert (key in core.read_bytes()) is found
