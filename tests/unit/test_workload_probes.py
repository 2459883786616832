"""`cloister doctor isolation`: what this machine gives, and what would be refused."""

from __future__ import annotations

import dataclasses

import pytest

from cloister.attester.diagnosis import Options, exit_code
from cloister.workload.linux import Machine
from cloister.workload.probes import check_isolation, findings
from cloister.workload.swap import Swap

MACHINE = Machine(
    kernel="6.18.0",
    architecture="aarch64",
    user=0,
    capable=True,
    landlock=7,
    seccomp=True,
    own_network=True,
    secret_memory=True,
    lockable=None,
    swaps=(),
    core_pattern="|/usr/lib/systemd/systemd-coredump",
)


def test_a_machine_that_has_all_of_it_fails_nothing():
    found = findings(MACHINE)
    assert {one.state for one in found} == {"ok"}
    assert {"kernel", "Landlock", "network", "system calls", "swap", "core dumps", "keys"} == {
        one.check for one in found
    }


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"landlock": 0}, "no Landlock", id="no Landlock"),
        pytest.param({"seccomp": False}, "seccomp", id="no filters"),
        pytest.param({"swaps": (Swap("/dev/sda2", "partition", 1, 0),)}, "/dev/sda2", id="swap"),
        pytest.param({"core_pattern": "@@/run/cores"}, "socket", id="core dumps to a socket"),
        pytest.param({"architecture": None}, "processor", id="another processor"),
    ],
)
def test_what_would_be_refused_has_failed_and_says_what_to_do(changed: dict[str, object], words: str):
    found = findings(dataclasses.replace(MACHINE, **changed))  # type: ignore[arg-type]
    (failed,) = [one for one in found if one.state == "failed"]
    assert words in failed.found
    assert failed.todo
    assert exit_code(found) == 5


def test_what_is_only_weaker_is_said():
    found = findings(dataclasses.replace(MACHINE, secret_memory=False, lockable=65536, landlock=4))
    assert exit_code(found) == 0
    assert any("ulimit -l" in one.found for one in found)
    assert any("from ABI 6 on" in one.found for one in found)


def test_this_machine_is_asked():
    assert check_isolation(Options())[0].check == "kernel"
