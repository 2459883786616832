"""The launcher closes itself to processes of its own user."""

from __future__ import annotations

import json
import subprocess
import sys

SHOW = """
import json, os, resource, sys
from cloister.workload import linux
from cloister.workload.hardening import harden_launcher
before = linux.prctl(linux.PR_GET_DUMPABLE)
findings = harden_launcher(lock=sys.argv[1] == "lock")
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "dumpable": [before, linux.prctl(linux.PR_GET_DUMPABLE)],
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "locked": int(status["VmLck"].split()[0]),
    "findings": [[one.check, one.state] for one in findings],
}))
"""
LIMITED = """
import resource, sys
from cloister.workload import hardening, linux
linux.has_capability = lambda bit: False
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
(closed, locked) = hardening.harden_launcher()
print(locked.state, locked.found)
large = bytearray(8 << 20)
"""


def shown(argument: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", SHOW, argument], check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def test_no_core_dump_is_left_and_no_debugger_of_its_user_attaches():
    said = shown("lock")
    assert said["dumpable"] == [1, 0]
    # 1 and not 0: at 0 the kernel still starts a pipe of kernel.core_pattern.
    assert said["core"] == [1, 1]


def test_memory_is_locked_or_it_is_said_that_it_is_not():
    said = shown("lock")
    findings = said["findings"]
    assert isinstance(findings, list)
    (closed, locked) = findings
    assert closed == ["launcher", "ok"]
    assert locked == ["launcher's memory", "ok" if said["locked"] else "weak"]


def test_memory_is_not_locked_where_nobody_asks():
    said = shown("leave")
    assert said["locked"] == 0
    assert said["findings"] == [["launcher", "ok"]]


def test_under_a_limit_nothing_is_locked_and_later_allocations_work():
    done = subprocess.run([sys.executable, "-c", LIMITED], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "weak is not locked: this process may lock 64 KiB"
