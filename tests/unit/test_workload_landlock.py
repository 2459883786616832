"""Rulesets: what is handled by each ABI, what rules give, and that a kernel holds a process to them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import IsolationRefused
from cloister.workload import landlock, linux
from cloister.workload.isolation import Isolation, Network
from left_behind import left_open, open_descriptors

PORTS = st.lists(st.integers(1, 65535), max_size=8, unique=True).map(tuple)
WRITES = (
    landlock.WRITE_FILE | landlock.MAKE_REG | landlock.REMOVE_FILE | landlock.MAKE_SYM | landlock.MAKE_DIR
)


def isolation(**changed: object) -> Isolation:
    said: dict[str, object] = {
        "write": ("/sealed",),
        "read": "all",
        "landlock": "require",
        "network": Network(access="none"),
        "seccomp": True,
    }
    return Isolation(**(said | changed))  # type: ignore[arg-type]


def given_at(rules: landlock.Ruleset, path: str) -> int:
    return next((rule.rights for rule in rules.paths if rule.path == path), 0)


@pytest.mark.parametrize(
    ("abi", "rights", "size"),
    [
        (1, 0x1FFF, 8),
        (2, 0x3FFF, 8),
        (3, 0x7FFF, 8),
        (4, 0x7FFF, 16),
        (5, 0xFFFF, 16),
        (6, 0xFFFF, 24),
        (99, 0xFFFF, 24),
    ],
)
def test_each_abi_is_asked_for_the_rights_that_it_has(abi: int, rights: int, size: int):
    rules = landlock.ruleset(isolation(), abi, tcp=False, scope_sockets=abi >= 6)
    assert rules.files == rights
    assert rules.size == size
    assert rules.tcp == 0
    assert rules.scopes == (3 if abi >= 6 else 0)
    assert all(rule.rights & ~rights == 0 for rule in rules.paths)


@given(abi=st.integers(1, 9))
def test_everything_may_be_read_and_only_the_write_list_changed(abi: int):
    rules = landlock.ruleset(isolation(), abi, tcp=False, scope_sockets=False)
    assert given_at(rules, "/") == landlock.READ_FILE | landlock.READ_DIR | landlock.EXECUTE
    assert given_at(rules, "/sealed") & WRITES == WRITES
    changed = {rule.path for rule in rules.paths if rule.rights & WRITES}
    assert changed == {"/sealed", *landlock.HARMLESS}


def test_device_nodes_are_made_nowhere():
    rules = landlock.ruleset(isolation(devices=("/dev/nvidia0",)), 7, tcp=False, scope_sockets=False)
    assert not any(rule.rights & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK) for rule in rules.paths)
    assert given_at(rules, "/dev/nvidia0") & landlock.IOCTL_DEV
    assert not given_at(rules, "/sealed") & landlock.IOCTL_DEV


def test_a_list_of_what_may_be_read_leaves_out_the_rest():
    rules = landlock.ruleset(isolation(read=("/usr", "/lib")), 7, tcp=False, scope_sockets=False)
    assert not given_at(rules, "/")
    assert given_at(rules, "/usr") == landlock.READ_FILE | landlock.READ_DIR | landlock.EXECUTE


@given(connect=PORTS, bind=PORTS)
def test_ports_get_what_their_lists_say_and_no_more(connect: tuple[int, ...], bind: tuple[int, ...]):
    network = Network(access="ports", connect=connect, bind=bind)
    rules = landlock.ruleset(isolation(network=network), 7, tcp=True, scope_sockets=True)
    assert rules.tcp == landlock.BIND_TCP | landlock.CONNECT_TCP
    assert {rule.port for rule in rules.ports if rule.rights & landlock.CONNECT_TCP} == set(connect)
    assert {rule.port for rule in rules.ports if rule.rights & landlock.BIND_TCP} == set(bind)
    assert len(rules.ports) == len({rule.port for rule in rules.ports})


ATTEMPT = """
import sys
from cloister.workload import landlock, linux
from cloister.workload.isolation import Isolation, Network
inside, outside, device = sys.argv[1:]
asked = Isolation(write=(inside,), read="all", landlock="require", network=Network(access="none"), seccomp=False)
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
landlock.restrict(landlock.ruleset(asked, linux.landlock_abi(), tcp=False, scope_sockets=False))
for path in (inside + "/new", outside + "/new", outside + "/there", "/dev/null"):
    try:
        with open(path, "r+b" if path.endswith(("there", "null")) else "xb") as file:
            file.write(b"x")
        print("written", path)
    except PermissionError:
        print("refused", path)
print("read", len(open(outside + "/there").read()))
"""


def test_the_kernel_holds_a_process_to_its_ruleset(tmp_path: Path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "there").write_text("there")
    command = [sys.executable, "-c", ATTEMPT, str(inside), str(outside), "/dev/null"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == [
        f"written {inside}/new",
        f"refused {outside}/new",
        f"refused {outside}/there",
        "written /dev/null",
        "read 5",
    ]


def test_a_path_that_is_not_there_is_refused_by_name_and_nothing_restricted(tmp_path: Path):
    rules = landlock.ruleset(
        isolation(write=(str(tmp_path / "gone"),)), linux.landlock_abi(), tcp=False, scope_sockets=False
    )
    before = open_descriptors()
    with pytest.raises(IsolationRefused, match="gone, which cannot be opened"):
        landlock.restrict(rules)
    assert not left_open(before)
    (tmp_path / "still").write_text("allowed")


REGULAR, TERMINAL, PIPE, FOLDER = stat.S_IFREG, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR
WRITING = landlock.WRITE_FILE | landlock.TRUNCATE


@pytest.mark.parametrize(
    ("mode", "flags", "rights"),
    [
        pytest.param(REGULAR, os.O_RDONLY, landlock.READ_FILE, id="a file to read"),
        pytest.param(REGULAR, os.O_WRONLY | os.O_APPEND, WRITING, id="a file to write"),
        pytest.param(TERMINAL, os.O_RDWR, landlock.READ_FILE | WRITING | landlock.IOCTL_DEV, id="a terminal"),
        pytest.param(PIPE, os.O_WRONLY, 0, id="a pipe"),
        pytest.param(FOLDER, os.O_RDONLY, 0, id="a directory, below which everything would be"),
    ],
)
def test_what_is_open_may_be_reopened_as_it_is(mode: int, flags: int, rights: int):
    assert landlock.rights_of_open(mode, flags) == rights


def test_harmless_devices_are_devices():
    for path in landlock.HARMLESS:
        assert stat.S_ISCHR(Path(path).stat().st_mode)
