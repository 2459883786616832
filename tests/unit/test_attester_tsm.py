"""configfs-tsm, on a file system that behaves as the kernel's: reports, each errno in its own words, nothing left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloister.attester import kernel_files, tsm
from cloister.attester.simulated import SimulatedPlatform
from cloister.attester.tsm import ATTEMPTS, TsmAttester, read_provider, sweep
from cloister.attester.tsm_errors import explain
from cloister.endorsements.amd import parse_snp_endorsements
from cloister.errors import AttesterError
from cloister.evidence import snp
from cloister.evidence.quote import parse_quote
from configfs_tsm import Mounted, fuse_needed, mounted
from real_parts import absent
from shared_data import vectors

REPORT_DATA = bytes(range(64))
fuse_needed()


@pytest.fixture(scope="module")
def tdx_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    directory = tmp_path_factory.mktemp("tdx")
    SimulatedPlatform.create(directory / "tee", now=int(time.time()))
    with mounted(directory, "--platform", str(directory / "tee")) as kernel:
        yield kernel


@pytest.fixture
def tdx(tdx_kernel: Mounted) -> Mounted:
    tdx_kernel.misbehave()
    return tdx_kernel


class Pauses(list[float]):
    """Waits that are only written down."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def attester(kernel: Mounted, **options: Any) -> TsmAttester:
    return TsmAttester(kernel.reports, **{"pause": Pauses(), **options})


def test_a_quote_is_over_the_report_data_and_the_registers(tdx: Mounted) -> None:
    evidence = attester(tdx, event_log=b"events", firmware_log=b"firmware").quote(REPORT_DATA)
    quote = parse_quote(evidence.quote)
    assert (evidence.tee, evidence.event_log, evidence.firmware_log) == ("tdx", b"events", b"firmware")
    assert quote.report_data == REPORT_DATA
    assert quote.measurements["rtmr0"] == (tdx.measurements / "rtmr0:sha384").read_bytes()
    assert tdx.left == []


def test_the_provider_is_named_and_nothing_is_left(tdx: Mounted) -> None:
    assert read_provider(tdx.reports) == "tdx_guest"
    assert tdx.left == []


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_length_never_reaches_the_kernel(size: int, tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match=f"{size} bytes long, not 64"):
        TsmAttester(tmp_path / "no kernel here").quote(bytes(size))


FAULTS = {
    "no provider is registered": ({"mkdir": ["ENXIO"]}, "no report provider", "modprobe tdx_guest"),
    "not root": ({"mkdir": ["EACCES"]}, "this user may not", "CAP_DAC_OVERRIDE"),
    "read-only": ({"mkdir": ["EROFS"]}, "mounted read-only", "writable"),
    "out of memory": ({"mkdir": ["ENOMEM"]}, "out of memory", "memory"),
    "provider gone before it was asked": ({"provider": ["ENXIO"]}, "provider of a report failed", "modprobe"),
    "driver is being unloaded": ({"provider": ["ENODEV"]}, "being unloaded", "modprobe"),
    "less than 64 bytes": ({"inblob": ["EFBIG"]}, "less than 64 bytes", "6.7"),
    "read meanwhile": ({"inblob": ["ETXTBSY"]}, "read by something else", "find what"),
    "not 64 bytes or another VMPL": ({"outblob": ["EINVAL"]}, "does not take", "64 bytes"),
    "provider gone": ({"outblob": ["ENXIO"]}, "no report provider, or it is gone", "modprobe"),
    "busy for ever": ({"outblob": ["forever:EBUSY"]}, "still busy", "QGS"),
    "interrupted for ever": ({"outblob": ["forever:EINTR"]}, "a signal interrupted", "ask again"),
    "QGS does not answer": ({"outblob": ["ETIMEDOUT"]}, "within the kernel's 30 s", "QGS"),
    "hypervisor refuses": ({"outblob": ["EIO"]}, "hypervisor refused", "vsock"),
    "too large": ({"outblob": ["EFBIG"]}, "larger than", "quoting service"),
    "guest key wiped": ({"outblob": ["ENOTTY"]}, "is disabled", "restart the VM"),
    "an errno that nobody explained": ({"outblob": ["EXDEV"]}, "Invalid cross-device link (EXDEV)", "doctor"),
    "the report data was dropped": ({"commit": ["forever:yes"]}, "generation is 0 and not 1", "find what"),
    "another writer, always": ({"other_writer": ["forever:yes"]}, "generation is 2 and not 1", "find what"),
    "a report over other data": ({"stale": ["forever:yes"]}, "over other report data", "find what"),
}


@pytest.mark.parametrize(("faults", "what", "todo"), FAULTS.values(), ids=FAULTS.keys())
def test_every_failure_has_its_own_words_and_leaves_nothing(
    faults: dict[str, Any], what: str, todo: str, tdx: Mounted
) -> None:
    tdx.misbehave(**faults)
    with pytest.raises(AttesterError) as refused:
        attester(tdx).quote(REPORT_DATA)
    assert what in refused.value.what
    assert todo in refused.value.todo
    assert "\n" not in str(refused.value)
    tdx.misbehave()
    assert tdx.left == []


@pytest.mark.parametrize(
    "faults",
    [
        {"outblob": ["EINTR"]},
        {"outblob": ["EBUSY", "EINTR", "EBUSY"]},
        {"outblob": ["EINTR"], "other_writer": ["yes"], "commit": [False, "yes"]},
        {"stale": ["yes"]},
    ],
    ids=["interrupted", "busy after an interruption", "other writers", "other data"],
)
def test_what_passes_by_itself_is_tried_again(faults: dict[str, Any], tdx: Mounted) -> None:
    tdx.misbehave(**faults)
    pauses = Pauses()
    assert parse_quote(attester(tdx, pause=pauses).quote(REPORT_DATA).quote).report_data == REPORT_DATA
    assert 1 <= len(pauses) < ATTEMPTS
    assert tdx.left == []


def test_trying_again_ends(tdx: Mounted) -> None:
    tdx.misbehave(outblob=["forever:EBUSY"])
    pauses = Pauses()
    with pytest.raises(AttesterError, match="EBUSY"):
        attester(tdx, pause=pauses).quote(REPORT_DATA)
    assert pauses == [0.2, 0.4, 0.8, 1.6]


def test_many_at_once_each_get_their_own(tdx: Mounted) -> None:
    asking = attester(tdx)
    data = [bytes([number]) * 64 for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        quotes = list(pool.map(lambda one: parse_quote(asking.quote(one).quote).report_data, data))
    assert quotes == data
    assert tdx.left == []


def test_a_name_that_is_taken_is_not_used(tdx: Mounted) -> None:
    names = iter(["taken", "free"])
    (tdx.reports / "cloister-taken").mkdir()
    try:
        assert attester(tdx, draw_name=lambda: next(names)).quote(REPORT_DATA).tee == "tdx"
        assert tdx.left == ["cloister-taken"]
    finally:
        (tdx.reports / "cloister-taken").rmdir()


def test_a_name_that_is_always_taken_is_said(tdx: Mounted) -> None:
    (tdx.reports / "cloister-taken").mkdir()
    try:
        with pytest.raises(AttesterError, match="cloister-taken exists already"):
            attester(tdx, draw_name=lambda: "taken").quote(REPORT_DATA)
    finally:
        (tdx.reports / "cloister-taken").rmdir()


def test_an_exception_on_the_way_leaves_no_report(tdx: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, limit: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(tsm, "read_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attester(tdx).quote(REPORT_DATA)
    assert tdx.left == []


CHILD = """
import signal, sys
from pathlib import Path
from cloister.attester.tsm import TsmAttester
if sys.argv[2] == "handled":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
print("asking", flush=True)
TsmAttester(Path(sys.argv[1])).quote(bytes(64))
"""


@pytest.mark.parametrize(("how", "number"), [("handled", signal.SIGTERM), ("plain", signal.SIGINT)])
def test_a_signal_in_the_middle_of_a_quote_leaves_no_report(
    how: str, number: signal.Signals, tdx: Mounted
) -> None:
    tdx.misbehave(delay=1.0)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tdx.reports), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "asking\n"
    while not tdx.left:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode in (143, 130, -signal.SIGINT)
    tdx.misbehave()
    assert tdx.left == []


def test_what_a_killed_process_left_is_swept_later(tdx: Mounted) -> None:
    (tdx.reports / "cloister-killed").mkdir()
    (tdx.reports / "somebody-elses").mkdir()
    try:
        assert sweep(tdx.reports) == 0  # it may be in use
        assert sweep(tdx.reports, now=time.time() + tsm.STALE + 1) == 1
        assert tdx.left == ["somebody-elses"]
    finally:
        (tdx.reports / "somebody-elses").rmdir()


def test_no_reports_at_all_says_which_kernel_is_needed(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="no TSM reports here") as refused:
        TsmAttester(tmp_path / "report").quote(REPORT_DATA)
    assert "kernel 6.7" in refused.value.todo
    assert "configfs mounted" in refused.value.todo


def test_somebody_else_than_root_may_not(tdx: Mounted) -> None:
    if os.geteuid() != 0:
        absent("only root can become somebody else")
    child = (
        "import os, sys; from pathlib import Path; from cloister.attester.tsm import TsmAttester;"
        "from cloister.errors import AttesterError\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: TsmAttester(Path(sys.argv[1])).quote(bytes(64))\n"
        "except AttesterError as error: print(error)"
    )
    tdx.mountpoint.parent.parent.chmod(0o711)
    for parent in tdx.mountpoint.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", child, str(tdx.reports)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "this user may not (EACCES)" in done.stdout, done.stderr


@pytest.mark.parametrize("level", [-1, 4])
def test_a_privilege_level_that_cannot_be_is_refused(level: int, tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="0 to 3"):
        TsmAttester(tmp_path, privilege_level=level)


def test_tdx_has_no_privilege_levels(tdx: Mounted) -> None:
    with pytest.raises(AttesterError, match="no privilege levels"):
        attester(tdx, privilege_level=0).quote(REPORT_DATA)


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    platform = tmp_path / "tee"
    SimulatedPlatform.create(platform, now=int(time.time()))
    with mounted(tmp_path, "--platform", str(platform), "--provider", "arm_cca_guest") as kernel:
        with pytest.raises(AttesterError, match="'arm_cca_guest', whose reports are not read here"):
            attester(kernel).quote(REPORT_DATA)
        assert kernel.left == []


def test_without_a_provider_there_is_nothing_to_ask(tmp_path: Path) -> None:
    platform = tmp_path / "tee"
    SimulatedPlatform.create(platform, now=int(time.time()))
    with mounted(tmp_path, "--platform", str(platform), "--provider", "none") as kernel:
        for ask in (lambda: read_provider(kernel.reports), lambda: attester(kernel).quote(REPORT_DATA)):
            with pytest.raises(AttesterError, match="ENXIO"):
                ask()


# SEV-SNP


def table(*entries: tuple[str, bytes]) -> bytes:
    """A certificate table as a host fills it (GHCB 2.03, 4.1.8.1)."""
    import uuid

    offset = 24 * (len(entries) + 1)
    header, body = b"", b""
    for guid, content in entries:
        header += (
            uuid.UUID(guid).bytes
            + (offset + len(body)).to_bytes(4, "little")
            + len(content).to_bytes(4, "little")
        )
        body += content
    return header + bytes(24) + body


VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"


@pytest.fixture(scope="module")
def snp_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    directory = tmp_path_factory.mktemp("snp")
    certificate = vectors("coco-trustee/snp/test-vcek.der").read_bytes()
    (directory / "table").write_bytes(table((VCEK, certificate)))
    report = vectors("coco-trustee/snp/test-report.bin")
    arguments = ["--provider", "sev_guest", "--report", str(report), "--table", str(directory / "table")]
    with mounted(directory, *arguments, "--floor", "1") as kernel:
        yield kernel


def test_an_snp_report_carries_the_hosts_certificates(snp_kernel: Mounted) -> None:
    evidence = attester(snp_kernel).quote(REPORT_DATA)
    assert evidence.tee == "snp"
    assert snp.parse_report(evidence.quote).report_data == REPORT_DATA
    carried = parse_snp_endorsements(evidence.endorsements)
    assert carried.signing_key == vectors("coco-trustee/snp/test-vcek.der").read_bytes()
    assert snp_kernel.left == []


def test_a_report_for_another_privilege_level_counts_its_own_write(snp_kernel: Mounted) -> None:
    evidence = attester(snp_kernel, privilege_level=2).quote(REPORT_DATA)
    assert snp.parse_report(evidence.quote).vmpl == 2


def test_a_privilege_level_below_the_guests_own_is_refused(snp_kernel: Mounted) -> None:
    with pytest.raises(AttesterError, match="below the guest's own"):
        attester(snp_kernel, privilege_level=0).quote(REPORT_DATA)


@pytest.mark.parametrize(
    "content", [b"", table(), table((VCEK, b"")), b"\xff" * 24, table((VCEK, b"no certificate"))],
    ids=["no table", "empty table", "no content", "malformed", "no certificate"],
)  # fmt: skip
def test_certificates_that_are_incomplete_are_left_out(content: bytes) -> None:
    from cloister.attester.snp_certificates import carried_endorsements

    assert carried_endorsements(content, "vcek") == b""


# The stand-in itself: what the kernel's sources say


def test_the_stand_in_commits_on_close_and_not_before(tdx: Mounted) -> None:
    report = tdx.reports / "raw"
    report.mkdir()
    try:
        assert (report / "generation").read_text() == "0\n"
        descriptor = os.open(report / "inblob", os.O_WRONLY)
        os.write(descriptor, REPORT_DATA)
        assert (report / "generation").read_text() == "0\n"
        os.close(descriptor)
        assert (report / "generation").read_text() == "1\n"
        first = (report / "outblob").read_bytes()
        assert first == (report / "outblob").read_bytes()  # kept until the next commit
        kernel_files.write_file(report / "inblob", bytes(64))
        assert (report / "generation").read_text() == "2\n"
        assert first != (report / "outblob").read_bytes()
    finally:
        report.rmdir()


@pytest.mark.parametrize(
    ("data", "number"),
    [(None, errno.EINVAL), (bytes(63), errno.EINVAL), (bytes(65), errno.EFBIG)],
    ids=["none", "63", "65"],
)
def test_the_stand_in_refuses_other_sizes_as_the_kernel_does(
    data: bytes | None, number: int, tdx: Mounted
) -> None:
    report = tdx.reports / "raw"
    report.mkdir()
    try:
        with pytest.raises(OSError, match=os.strerror(number)) as refused:  # noqa: PT012 -- EFBIG at the write, EINVAL at the read
            if data is not None:
                kernel_files.write_file(report / "inblob", data)
            kernel_files.read_file(report / "outblob", 1 << 16)
        assert refused.value.errno == number
    finally:
        report.rmdir()


def test_the_stand_in_makes_nothing_but_reports(tdx: Mounted) -> None:
    for path in (tdx.mountpoint / "other", tdx.reports / "a" / "b"):
        with pytest.raises(OSError, match=r"not permitted|No such file"):
            path.mkdir()


# Reading and writing


def test_a_file_over_its_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_001))
    assert len(kernel_files.read_file(tmp_path / "file", 100_001)) == 100_001
    with pytest.raises(OSError, match="too large") as refused:
        kernel_files.read_file(tmp_path / "file", 100_000)
    assert refused.value.errno == errno.EFBIG


def test_a_text_that_is_no_ascii_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"caf\xe9\n")
    with pytest.raises(OSError) as refused:  # noqa: PT011 -- its number is looked at
        kernel_files.read_text(tmp_path / "file")
    assert refused.value.errno == errno.EILSEQ


@pytest.mark.parametrize("number", sorted(errno.errorcode))
@pytest.mark.parametrize("step", ["mkdir", "inblob", "outblob"])
def test_no_errno_is_without_words(step: str, number: int) -> None:
    error = explain(OSError(number, ""), step, Path("/reports"))
    assert errno.errorcode[number] in error.what
    assert error.todo
