"""From a specification to a running program: what it says, what it refuses, and what the program then finds around it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, FormatError, IsolationRefused, UsageError, WorkloadError
from cloister.workload import linux
from cloister.workload.enter import EXIT_NOT_STARTED, Entry, start
from cloister.workload.isolation import Decision, Isolation, Network, User, check, decide
from cloister.workload.linux import Machine
from cloister.workload.swap import Swap
from left_behind import left_open, open_descriptors

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
MACHINE = Machine(
    kernel="6.18.0",
    architecture="x86_64",
    user=0,
    capable=True,
    landlock=7,
    seccomp=True,
    own_network=True,
    secret_memory=True,
    lockable=None,
    swaps=(),
    core_pattern="core",
)
PORTS = Network(access="ports", connect=(443,), bind=(8000,))
PYTHON = sys.executable


def isolation(**changed: object) -> Isolation:
    said: dict[str, object] = {
        "write": (),
        "read": "all",
        "landlock": "require",
        "network": Network(access="none"),
        "seccomp": True,
    }
    return Isolation(**(said | changed))  # type: ignore[arg-type]


def entry(code: str = "pass", *arguments: str, **changed: object) -> Entry:
    said: dict[str, object] = {
        "program": PYTHON,
        "argv": (PYTHON, "-I", "-S", "-c", code, *arguments),
        "environment": {},
        "directory": "/",
        "isolation": isolation(),
    }
    return Entry(**(said | changed))  # type: ignore[arg-type]


def output(one: Entry) -> str:
    with start(one, stdout=subprocess.PIPE) as process:
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    return said.decode()


@given(
    arguments=st.lists(TEXT, min_size=1, max_size=4).map(tuple),
    environment=st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT, max_size=4),
)
def test_a_specification_comes_back_as_it_was(arguments: tuple[str, ...], environment: dict[str, str]):
    one = entry(argv=arguments, environment=environment, keep_fds=(3, 9), group="own", parent=7)
    assert Entry.decode(one.encode()) == one


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_our_own_error(data: bytes):
    with pytest.raises(CloisterError):
        Entry.decode(data)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"extra": 1}, id="an unknown field"),
        pytest.param({"group": "other"}, id="an unknown group"),
        pytest.param({"argv": []}, id="no arguments"),
        pytest.param({"program": "python"}, id="a program by its name"),
        pytest.param({"keep_fds": [2]}, id="a standard descriptor"),
        pytest.param({"environment": {"A": "b\0c"}}, id="a NUL"),
        pytest.param({"environment": {"A=B": "c"}}, id="a name with an equals sign"),
        pytest.param({"isolation": {}}, id="no isolation"),
    ],
)
def test_a_specification_of_another_form_is_refused(damage: dict[str, object]):
    document = json.loads(entry().encode()) | damage
    with pytest.raises((FormatError, UsageError)):
        Entry.decode(json.dumps(document).encode())


def test_text_that_is_not_utf8_is_a_wrong_argument():
    with pytest.raises(UsageError, match="not UTF-8"):
        entry(argv=("a", os.fsdecode(b"\xff"))).encode()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: isolation(write=("sealed",)), id="a relative path"),
        pytest.param(lambda: isolation(write=("/a/../b",)), id="a path with .."),
        pytest.param(lambda: isolation(write=("/a/",)), id="a path with a slash at its end"),
        pytest.param(lambda: isolation(write=("/a", "/a")), id="a path twice"),
        pytest.param(lambda: isolation(read=("/usr",), landlock="off"), id="a read list without Landlock"),
        pytest.param(lambda: isolation(network=PORTS, landlock="off"), id="ports without Landlock"),
        pytest.param(lambda: Network(access="none", connect=(443,)), id="ports of no network"),
        pytest.param(lambda: Network(access="any", udp=True), id="UDP said of any network"),
        pytest.param(lambda: Network(access="ports", connect=(0,)), id="connecting to port 0"),
        pytest.param(lambda: Network(access="ports", bind=(65536,)), id="a port that is none"),
        pytest.param(lambda: Network(access="ports", bind=(80, 80)), id="a port twice"),
        pytest.param(lambda: User(uid=-1, gid=0), id="a negative id"),
        pytest.param(lambda: User(uid=2**32 - 1, gid=0), id="the id that means no change"),
    ],
)
def test_an_isolation_that_cannot_be_meant_is_refused(make: object):
    assert callable(make)
    with pytest.raises(UsageError):
        make()


NONE = Network(access="none")


@pytest.mark.parametrize(
    ("asked", "landlock", "seccomp", "own_network", "words"),
    [
        pytest.param({}, 0, True, True, "no Landlock", id="no Landlock"),
        pytest.param({}, 2, True, True, "ABI 2", id="a Landlock that lets files be truncated"),
        pytest.param({}, 7, False, True, "no seccomp filters", id="no filters"),
        pytest.param({"network": PORTS}, 3, True, True, "hold TCP", id="ports before ABI 4"),
        pytest.param(
            {"network": PORTS, "landlock": "where-possible"},
            0,
            True,
            True,
            "hold TCP",
            id="ports, no Landlock",
        ),
        pytest.param({"network": PORTS, "seccomp": False}, 7, True, True, "TCP alone", id="ports, no filter"),
        pytest.param(
            {"seccomp": False}, 7, True, False, "no network", id="no network, with nothing to hold it"
        ),
    ],
)
def test_what_is_demanded_and_missing_is_refused(
    asked: dict[str, object], landlock: int, seccomp: bool, own_network: bool, words: str
):
    with pytest.raises(IsolationRefused, match=words):
        decide(isolation(**asked), landlock=landlock, seccomp=seccomp, own_network=own_network)


@pytest.mark.parametrize(
    ("asked", "landlock", "own_network", "applied"),
    [
        pytest.param({}, 7, True, (7, False, True, "all"), id="no network, by a namespace"),
        pytest.param({}, 7, False, (7, True, True, "none"), id="no network, by the filter"),
        pytest.param({"network": PORTS}, 7, False, (7, True, True, "tcp"), id="ports"),
        pytest.param(
            {"network": PORTS}, 4, False, (4, True, False, "tcp"), id="ports by the first ABI that has them"
        ),
        pytest.param(
            {"network": Network(access="ports", udp=True)},
            7,
            False,
            (7, True, True, "tcp+udp"),
            id="ports and UDP",
        ),
        pytest.param(
            {"network": Network(access="any")}, 7, False, (7, False, False, "all"), id="any network"
        ),
        pytest.param({"seccomp": False}, 7, True, (7, False, True, None), id="no filter"),
        pytest.param({"landlock": "off"}, 7, True, (0, False, False, "all"), id="Landlock off"),
        pytest.param(
            {"landlock": "where-possible"}, 0, True, (0, False, False, "all"), id="Landlock where possible"
        ),
    ],
)
def test_what_is_applied(
    asked: dict[str, object], landlock: int, own_network: bool, applied: tuple[int, bool, bool, str | None]
):
    decision = decide(isolation(**asked), landlock=landlock, seccomp=True, own_network=own_network)
    assert isinstance(decision, Decision)
    assert (decision.landlock, decision.tcp, decision.scoped, decision.sockets) == applied


@pytest.mark.parametrize(
    ("asked", "machine", "weak"),
    [
        pytest.param({"user": User(uid=1000, gid=1000)}, {}, set(), id="nothing"),
        pytest.param({}, {}, {"user"}, id="root as its user"),
        pytest.param({}, {"user": 1000}, {"user"}, id="the starter as its user"),
        pytest.param({"network": PORTS}, {}, {"user", "network"}, id="listening where the kernel picks"),
        pytest.param(
            {"seccomp": False}, {}, {"user", "network", "plaintext", "system calls"}, id="no filter"
        ),
        pytest.param({"landlock": "off"}, {}, {"user", "plaintext", "system calls"}, id="no Landlock"),
        pytest.param({}, {"landlock": 4}, {"user", "system calls"}, id="an older Landlock"),
        pytest.param(
            {}, {"secret_memory": False, "lockable": 65536}, {"user", "keys"}, id="keys that could be swapped"
        ),
        pytest.param(
            {"swap": "warn"}, {"swaps": (Swap("/dev/sda2", "partition", 1, 0),)}, {"user", "swap"}, id="swap"
        ),
    ],
)
def test_what_is_weak_is_said(asked: dict[str, object], machine: dict[str, object], weak: set[str]):
    findings = check(isolation(**asked), dataclasses.replace(MACHINE, **machine))  # type: ignore[arg-type]
    assert {finding.check for finding in findings if finding.state == "weak"} == weak
    assert all(finding.found and "\n" not in finding.found for finding in findings)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        pytest.param({"architecture": None}, "processor", id="a processor whose calls are not known"),
        pytest.param({"swaps": (Swap("/dev/sda2", "partition", 1, 0),)}, "/dev/sda2", id="swap"),
        pytest.param({"core_pattern": "@/run/cores"}, "socket", id="core dumps to a socket"),
        pytest.param(
            {"user": 1000, "capable": False}, "another user", id="another user, asked by nobody special"
        ),
    ],
)
def test_a_machine_that_cannot_is_refused(machine: dict[str, object], words: str):
    asked = isolation(user=User(uid=1234, gid=1234))
    with pytest.raises(IsolationRefused, match=words):
        check(asked, dataclasses.replace(MACHINE, **machine))  # type: ignore[arg-type]


def test_this_machine_is_looked_at_without_being_changed():
    namespaces = [Path("/proc/self/ns", name) for name in ("net", "user", "mnt")]
    before = [path.readlink() for path in namespaces]
    machine = linux.look()
    assert machine.architecture in ("x86_64", "aarch64")
    assert [path.readlink() for path in namespaces] == before


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        pytest.param(
            {"program": "/no/such/program"}, UsageError, "there is no program /no/such", id="no such program"
        ),
        pytest.param({"program": "/etc/passwd"}, UsageError, "may not be executed", id="no program at all"),
        pytest.param(
            {"directory": "/no/such"}, UsageError, "cannot start in /no/such", id="no such directory"
        ),
        pytest.param(
            {"isolation": isolation(write=("/no/such",))},
            IsolationRefused,
            "/no/such, which",
            id="no such mount",
        ),
        pytest.param(
            {"isolation": isolation(read=("/no-such",))},
            IsolationRefused,
            "/no-such, which",
            id="nothing to read",
        ),
        pytest.param({"parent": 1}, WorkloadError, "launcher ended", id="a parent that is another"),
    ],
)
def test_a_program_that_cannot_be_started_is_refused_in_one_line(
    changed: dict[str, object], error: type[CloisterError], words: str
):
    before = open_descriptors()
    with pytest.raises(error, match=words) as raised:
        start(entry(**changed))
    assert "\n" not in str(raised.value)
    assert not left_open(before)


def test_a_script_without_an_interpreter_is_refused(tmp_path: Path):
    script = tmp_path / "script"
    script.write_text("echo\n")
    script.chmod(0o755)
    with pytest.raises(UsageError, match="#! line"):
        start(entry(program=str(script)))


def test_by_hand_it_exits_with_125_and_starts_nothing():
    command = [PYTHON, "-I", "-m", "cloister.workload.enter", "0", "2"]
    done = subprocess.run(command, input=b"{}", capture_output=True, check=False)
    assert done.returncode == EXIT_NOT_STARTED
    assert b"the specification of a program" in done.stderr


def test_the_program_finds_the_environment_directory_and_arguments_of_its_specification(tmp_path: Path):
    code = "import json,os,sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.argv]))"
    said = output(
        entry(code, "one", "zwei ü", environment={"A": "b ü", "LC_ALL": "C.UTF-8"}, directory=str(tmp_path))
    )
    assert json.loads(said) == [{"A": "b ü", "LC_ALL": "C.UTF-8"}, str(tmp_path), ["-c", "one", "zwei ü"]]


SHOW = """
import json, os, resource, signal
fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "fds": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "privileges": fields["NoNewPrivs"].strip(), "filter": fields["Seccomp"].strip(),
    "capabilities": [fields[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "blocked": fields["SigBlk"].strip(), "ignored": fields["SigIgn"].strip(),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "filtered": open("/proc/self/coredump_filter").read().strip(),
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
}))
"""


def shown(**changed: object) -> dict[str, object]:
    # Python ignores two signals for itself; what the program was given is seen by a program that does not.
    return dict(json.loads(output(entry(SHOW, **changed))))


@pytest.mark.parametrize("hard", [0, 1])
def test_a_program_starts_where_core_dumps_were_forbidden_before(hard: int) -> None:
    code = f"import resource; resource.setrlimit(resource.RLIMIT_CORE, ({hard}, {hard}))\n"
    start_it = (
        "import subprocess, sys\nfrom cloister.workload.enter import Entry, start\n"
        "made = start(Entry.decode(bytes.fromhex(sys.argv[1])), stdout=subprocess.PIPE)\n"
        "sys.stdout.buffer.write(made.stdout.read())\n"
    )
    wanted = entry("import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[1])")
    said = subprocess.run(
        [sys.executable, "-c", code + start_it, wanted.encode().hex()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(said.stdout) in (0, 1)


def test_the_program_has_no_privileges_no_core_dumps_and_no_descriptors():
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        said = shown()
    finally:
        os.close(reading)
        os.close(writing)
    assert said["fds"] == [0, 1, 2]
    assert (said["privileges"], said["filter"]) == ("1", "2")
    assert said["core"] == [1, 1]
    assert said["filtered"] == "00000000"
    assert said["blocked"] == "0" * 16
    if os.geteuid() == 0:
        assert set(said["capabilities"]) == {"0" * 16}  # type: ignore[call-overload]
    else:
        assert set(said["capabilities"][:3]) == {"0" * 16}  # type: ignore[index]


def test_signals_that_python_ignores_are_not_ignored_in_the_program():
    status = Path("/bin/cat").resolve()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        said = output(entry(program=str(status), argv=("cat", "/proc/self/status")))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    fields = dict(line.split(":", 1) for line in said.splitlines())
    assert int(fields["SigIgn"], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0
    assert int(fields["SigBlk"], 16) == 0


def test_a_named_descriptor_stays_open():
    reading, writing = os.pipe()
    with start(
        entry("import os, sys; os.write(int(sys.argv[1]), b'through')", str(writing), keep_fds=(writing,))
    ) as it:
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            assert file.read() == b"through"
    assert it.returncode == 0


@pytest.mark.parametrize(
    ("group", "session", "leader"), [("same", False, False), ("own", False, True), ("session", True, True)]
)
def test_the_process_group_is_as_the_launcher_says(group: str, session: bool, leader: bool):
    said = shown(group=group)
    assert (said["session"], said["group"]) == (session, leader)


def test_the_program_runs_as_the_user_that_is_named():
    user = User(uid=54321, gid=54322, groups=(54323,))
    show = entry(program="/usr/bin/id", argv=("id",), isolation=isolation(user=user))
    if os.geteuid() != 0:
        with pytest.raises(IsolationRefused, match="user cannot be changed"):
            start(show)
        return
    assert output(show).split() == ["uid=54321", "gid=54322", "groups=54322,54323"]


def test_an_exit_code_and_a_signal_are_the_programs_own():
    with start(entry("raise SystemExit(7)")) as process:
        assert process.wait(30) == 7
    with start(entry("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")) as process:
        assert process.wait(30) == -signal.SIGTERM


ORPHANS = """
import os, sys
from cloister.workload.enter import Entry, start
one = Entry.decode(sys.stdin.buffer.read())
process = start(Entry.decode(one.encode().replace(b'"parent":0', b'"parent":%d' % os.getpid())))
print(process.pid, flush=True)
process.wait()
"""


def test_the_program_dies_with_its_launcher():
    waits = entry("import time; time.sleep(60)")
    with subprocess.Popen([PYTHON, "-c", ORPHANS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        launcher.stdin.write(waits.encode())
        launcher.stdin.close()
        program = int(launcher.stdout.readline())
        os.kill(program, 0)
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + 20
        while _lives(program) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _lives(program)


def _lives(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
