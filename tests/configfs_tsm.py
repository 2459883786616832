"""The kernel's attestation files, as a FUSE file system that behaves as the kernel does: the tests' hardware.

    python configfs_tsm.py MOUNTPOINT STATE [--provider tdx_guest|sev_guest|none] …

Below MOUNTPOINT: ``report/`` is configfs-tsm (drivers/virt/coco/guest/report.c, fs/configfs/file.c, tdx-guest.c,
sev-guest.c), ``measurements/`` are the measurement registers of a TD (tsm-mr.c), ``CCEL`` is the firmware's log.
What the kernel does and this does too:

* a report is made by mkdir and removed by rmdir; nothing else can be made, renamed or removed;
* ``inblob`` takes bytes up to 64 (EFBIG beyond) and is committed when it is *closed* (flush here: release comes after
  close has returned); what cannot be committed is dropped without an error, only ``generation`` stays;
* other attributes are stored by each write at once;
* ``outblob`` is made when it is first read after a commit, and kept until the next one; EINVAL without 64 bytes;
* without a provider mkdir gives ENXIO, attributes too; faults are injected by files in STATE (see ``Faults``).

STATE holds the platform and how to misbehave, so that a test can steer the process while it is mounted.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

INBLOB_MAX = 64
OUTBLOB_MAX = 32 * 1024
WRAP = 2**64
TEXT = {"generation": 0o444, "provider": 0o444}
LEVELS = {"privlevel": 0o200, "privlevel_floor": 0o444}
SERVICES = {"service_provider": 0o200, "service_guid": 0o200, "service_manifest_version": 0o200}
ERRNO = {name: getattr(errno, name) for name in dir(errno) if name.startswith("E")}


@dataclass
class Report:
    """One directory: struct tsm_report_state."""

    inblob: bytes = b""
    privlevel: int = 0
    service_provider: str = ""
    write_generation: int = 0
    read_generation: int = 0
    outblob: bytes | None = None
    auxblob: bytes = b""
    born: float = field(default_factory=time.time)

    def advance(self) -> None:
        """try_advance_write_generation: EBUSY rather than to wrap."""
        if self.write_generation == (self.read_generation - 1) % WRAP:
            raise OSError(errno.EBUSY, "")
        self.write_generation = (self.write_generation + 1) % WRAP


@dataclass
class Handle:
    """One open file of a binary attribute: struct configfs_buffer."""

    path: str
    buffer: bytearray = field(default_factory=bytearray)
    filled: bool = False
    reading: bool = False
    writing: bool = False


Quote = Callable[[Report, dict[str, bytes]], tuple[bytes, bytes]]
"""What the provider does: (outblob, auxblob) from the report's options and the registers."""


class Faults:
    """``STATE/faults.json``: {"outblob": ["EBUSY", "EINTR"], "delay": 1.5, "other_writer": 2, …}, read at each use.

    Lists are used up from the front, ``"forever:EINTR"`` stays.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / "faults.json"
        self._lock = threading.Lock()

    def take(self, name: str) -> Any:
        with self._lock:
            if not self._file.exists():
                return None
            faults = json.loads(self._file.read_text())
            value = faults.get(name)
            if not isinstance(value, list):
                return value
            if not value:
                return None
            if not str(value[0]).startswith("forever:"):
                self._file.write_text(json.dumps({**faults, name: value[1:]}))
            return value[0].removeprefix("forever:") if isinstance(value[0], str) else value[0]

    def fail(self, name: str) -> None:
        if number := self.take(name):
            raise OSError(ERRNO[number], "")


class Kernel:
    """The file system's operations; fusepy's signatures. Every failure is an OSError with the kernel's number."""

    use_ns = True

    def __init__(
        self,
        *,
        provider: str | None,
        quote: Quote,
        faults: Faults,
        registers: dict[str, bytes] | None,
        ccel: bytes | None,
        floor: int = 0,
        shown: bool = True,
    ) -> None:
        self.provider = provider
        self.floor = floor
        self._shown = shown and registers is not None
        self._quote = quote
        self._faults = faults
        self._reports: dict[str, Report] = {}
        self._registers = registers
        self._ccel = ccel
        self._handles: dict[int, Handle] = {}
        self._next = 1
        self._lock = threading.RLock()

    # Directories

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        parts = [part for part in path.split("/") if part]
        if not parts or parts == ["report"] or (parts == ["measurements"] and self._shown):
            return _directory(0)
        if parts == ["CCEL"] and self._ccel is not None:
            return _file(0o400, len(self._ccel))
        if parts[0] == "measurements" and self._registers is not None and self._shown and len(parts) == 2:
            name = parts[1].removesuffix(":sha384")
            if parts[1].endswith(":sha384") and name in self._registers:
                return _file(0o444 if name == "mrtd" else 0o644, 48)
        if parts[0] == "report" and parts[1:2] and parts[1] in self._reports:
            if len(parts) == 2:
                return _directory(self._reports[parts[1]].born)
            if len(parts) == 3 and parts[2] in self._attributes():
                return _file(self._attributes()[parts[2]], 4096)
        raise OSError(errno.ENOENT, "")

    def readdir(self, path: str, fh: int) -> list[str]:
        parts = [part for part in path.split("/") if part]
        if not parts:
            found = ["report"]
            found += ["measurements"] if self._shown else []
            found += ["CCEL"] if self._ccel is not None else []
        elif parts == ["report"]:
            found = list(self._reports)
        elif parts == ["measurements"]:
            found = [f"{name}:sha384" for name in self._registers or ()]
        else:
            found = list(self._attributes())
        return [".", "..", *found]

    def mkdir(self, path: str, mode: int) -> int:
        parts = [part for part in path.split("/") if part]
        if len(parts) != 2 or parts[0] != "report":
            raise OSError(errno.EPERM, "")
        self._faults.fail("mkdir")
        with self._lock:
            if self.gone:
                raise OSError(errno.ENXIO, "")
            self._reports[parts[1]] = Report()
        return 0

    def rmdir(self, path: str) -> int:
        parts = [part for part in path.split("/") if part]
        if len(parts) != 2 or self._reports.pop(parts[1], None) is None:
            raise OSError(errno.EPERM, "")
        return 0

    @property
    def gone(self) -> bool:
        return self.provider is None or bool(self._faults.take("gone"))

    def _attributes(self) -> dict[str, int]:
        found = {**TEXT, "inblob": 0o200, "outblob": 0o444}
        if self.provider == "sev_guest":
            found |= {**LEVELS, "auxblob": 0o444, **(SERVICES if self.floor else {})}
        return found

    # Files

    def open(self, path: str, info: Any) -> int:
        self.getattr(path)
        with self._lock:
            self._next += 1
            self._handles[self._next] = Handle(path)
        info.fh = self._next
        info.direct_io = 1  # each read and write comes here, with the caller's own sizes: nothing is cached
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0  # configfs and sysfs ignore O_TRUNC

    def read(self, path: str, size: int, offset: int, info: Any) -> bytes:
        handle = self._handles[info.fh]
        *_, where, name = path.split("/")
        if path == "/CCEL":
            return (self._ccel or b"")[offset : offset + size]
        if where == "measurements":
            self._faults.fail("register_read")
            return (self._registers or {})[name.removesuffix(":sha384")][offset : offset + size]
        if name in ("outblob", "auxblob"):
            if handle.writing:
                raise OSError(errno.ETXTBSY, "")
            handle.reading = True
            if not handle.filled:
                handle.buffer[:] = self._read_report(self._reports[where], name)
                handle.filled = True
            return bytes(handle.buffer[offset : offset + size])
        return self._show(self._reports[where], name)[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, info: Any) -> int:
        handle = self._handles[info.fh]
        *_, where, name = path.split("/")
        if where == "measurements":
            self._extend(name.removesuffix(":sha384"), data, offset)
        elif name == "inblob":
            self._faults.fail("inblob")
            handle.writing = True
            if offset + len(data) > INBLOB_MAX:
                raise OSError(errno.EFBIG, "")
            handle.buffer[offset:] = data
        else:
            self._store(self._reports[where], name, data)
        return len(data)

    def flush(self, path: str, info: Any) -> int:
        handle = self._handles[info.fh]
        if handle.writing and path.endswith("/inblob"):
            report = self._reports.get(path.split("/")[-2])
            if report is not None:
                self._commit(report, bytes(handle.buffer))
            handle.writing = False
            handle.buffer.clear()
        return 0

    def release(self, path: str, info: Any) -> int:
        self._handles.pop(info.fh, None)
        return 0

    def _commit(self, report: Report, inblob: bytes) -> None:
        """configfs_release_bin_file: its result goes nowhere."""
        if self._faults.take("commit"):
            return
        with self._lock:
            try:
                report.advance()
            except OSError:
                return
            report.inblob = inblob
            if self._faults.take("other_writer"):
                report.advance()
                report.inblob = bytes(64)

    def _show(self, report: Report, name: str) -> bytes:
        if name == "generation":
            return b"%d\n" % report.write_generation
        self._faults.fail(name)
        if self.gone:
            raise OSError(errno.ENXIO, "")
        return f"{self.provider if name == 'provider' else self.floor}\n".encode()

    def _store(self, report: Report, name: str, data: bytes) -> None:
        self._faults.fail(name)
        with self._lock:
            if name == "privlevel":
                if self.gone:
                    raise OSError(errno.ENXIO, "")
                level = int(data)
                if not self.floor <= level <= 3:
                    raise OSError(errno.EINVAL, "")
                report.advance()
                report.privlevel = level
            elif name == "service_provider":
                report.advance()
                report.service_provider = data.decode().removesuffix("\n")
            else:
                raise OSError(errno.EACCES, "")

    def _read_report(self, report: Report, name: str) -> bytes:
        """tsm_report_read: made when it is first asked for after a write, then kept."""
        if delay := self._faults.take("delay"):
            time.sleep(delay)
        with self._lock:
            if report.outblob is None or report.read_generation != report.write_generation:
                if self.gone:
                    raise OSError(errno.ENXIO, "")
                if not report.inblob:
                    raise OSError(errno.EINVAL, "")
                report.outblob, report.auxblob = None, b""
                self._faults.fail("outblob")
                if len(report.inblob) != INBLOB_MAX:
                    raise OSError(errno.EINVAL, "")
                asked = replace(report, inblob=bytes(64)) if self._faults.take("stale") else report
                report.outblob, report.auxblob = self._quote(asked, dict(self._registers or {}))
                report.read_generation = report.write_generation
            found = report.outblob if name == "outblob" else report.auxblob
            if len(found) > OUTBLOB_MAX:
                raise OSError(errno.EFBIG, "")
            return found

    def _extend(self, name: str, data: bytes, offset: int) -> None:
        """tm_digest_write: 48 bytes at once, extended."""
        if offset != 0 or len(data) != 48:
            raise OSError(errno.EINVAL, "")
        self._faults.fail("extend")
        if self._registers is None or name == "mrtd":
            raise OSError(errno.EACCES, "")
        with self._lock:
            self._registers[name] = hashlib.sha384(self._registers[name] + data).digest()
            if self._faults.take("other_extender"):
                self._registers[name] = hashlib.sha384(self._registers[name] + bytes(48)).digest()


OWNER = {"st_uid": os.geteuid(), "st_gid": os.getegid()}
"""Root, as everything of the kernel's; where the tests run as somebody else, that one plays root."""


def _directory(born: float) -> dict[str, Any]:
    return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, "st_mtime": int(born * 10**9), **OWNER}


def _file(mode: int, size: int) -> dict[str, Any]:
    return {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": size, **OWNER}


class Gramine:
    """/dev/attestation of Gramine (libos/src/fs/dev/attestation.c): what is read is made at open, saved at close.

    Every failure inside is EACCES; the type ``direct`` stands for gramine-direct, which has none of these files.
    """

    use_ns = True

    def __init__(self, kind: str, platform_directory: Path, faults: Faults) -> None:
        from cloister.attester.simulated import SimulatedPlatform

        self._kind = kind
        self._faults = faults
        self._platform = SimulatedPlatform.load(platform_directory)
        self._tee = self._platform.tee("sgx")
        self._report_data = bytes(64)
        self._open: dict[int, bytearray] = {}

    def _files(self) -> dict[str, int]:
        if self._kind == "direct":
            return {}
        found = {"attestation_type": 0o444, "user_report_data": 0o666}
        return found if self._kind == "none" else {**found, "quote": 0o444}

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path in ("/", "/keys"):
            return _directory(0)
        return _file(self._files()[path[1:]], 0)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", "keys", *self._files()] if path == "/" else [".", ".."]

    def open(self, path: str, info: Any) -> int:
        content = b""
        if path == "/attestation_type":
            content = self._kind.encode()
        elif path == "/quote":
            self._faults.fail("quote")
            if delay := self._faults.take("delay"):
                time.sleep(delay)
            data = bytes(64) if self._faults.take("stale") else self._report_data
            content = self._tee.quote(data).quote
        info.fh = max(self._open, default=0) + 1
        info.direct_io = 1
        self._open[info.fh] = bytearray(content)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, info: Any) -> bytes:
        return bytes(self._open[info.fh][offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, info: Any) -> int:
        self._open[info.fh][offset:] = data
        return len(data)

    def flush(self, path: str, info: Any) -> int:
        if path == "/user_report_data" and (data := bytes(self._open[info.fh])):
            self._report_data = data[:64].ljust(64, b"\0")
        return 0

    def release(self, path: str, info: Any) -> int:
        self._open.pop(info.fh, None)
        return 0


# The provider: simulated hardware behind the kernel's files


def tdx_quotes(platform_directory: Path, debug: bool = False) -> tuple[Quote, dict[str, bytes]]:
    """What the TDX module and the quoting enclave do: (quote, the registers after the firmware)."""
    from cloister.attester.simulated import SimulatedPlatform
    from cloister.attester.simulation.quote import Layout, QuotingEnclave, report_body

    platform = SimulatedPlatform.load(platform_directory)
    enclave = QuotingEnclave(Layout.TDX_V4, platform.chain, platform.hardware, platform._attestation_key)

    def quote(report: Report, registers: dict[str, bytes]) -> tuple[bytes, bytes]:
        body = report_body(
            Layout.TDX_V4, platform.hardware, registers, debug=debug, report_data=report.inblob
        )
        return enclave.quote(body), b""

    firmware = {**platform.firmware, "rtmr3": bytes(48)}
    return quote, {name: firmware[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}


def booted(ccel: Path) -> dict[str, bytes]:
    """RTMR0 to RTMR2 as firmware leaves them that measured what the log says."""
    from cloister.evidence.measured import replay_registers
    from cloister.evidence.tcg_log import parse_tcg_log

    events = parse_tcg_log(ccel.read_bytes(), algorithm="sha384", registers="rtmr")
    return {f"rtmr{number}": value for number, value in replay_registers(events, algorithm="sha384").items()}


def captured_reports(report_file: Path, table_file: Path | None) -> Quote:
    """SEV-SNP: a captured report with other report data in it (its signature does not hold then), and a table."""
    template = report_file.read_bytes()
    table = table_file.read_bytes() if table_file else b""

    def quote(report: Report, registers: dict[str, bytes]) -> tuple[bytes, bytes]:
        data = bytearray(template)
        data[0x50:0x90] = report.inblob
        data[0x30:0x34] = report.privlevel.to_bytes(4, "little")
        return bytes(data), table

    return quote


def serve(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--provider", default="tdx_guest")
    parser.add_argument("--platform", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--ccel", type=Path)
    parser.add_argument("--booted-by-ccel", action="store_true")
    parser.add_argument("--floor", type=int, default=0)
    parser.add_argument("--no-registers", action="store_true")
    parser.add_argument("--gramine")
    options = parser.parse_args(arguments)
    faults = Faults(options.state)
    registers: dict[str, bytes] | None = None
    if options.gramine:
        mount(Gramine(options.gramine, options.platform, faults), options.mountpoint)
        return
    if options.provider == "sev_guest":
        quote = captured_reports(options.report, options.table)
    else:
        quote, registers = tdx_quotes(options.platform)
        if options.booted_by_ccel:
            registers |= booted(options.ccel)
    kernel = Kernel(
        provider=None if options.provider == "none" else options.provider,
        quote=quote,
        faults=faults,
        registers=registers,
        shown=not options.no_registers,
        ccel=options.ccel.read_bytes() if options.ccel else None,
        floor=options.floor,
    )
    mount(kernel, options.mountpoint)


def mount(files: Kernel | Gramine, mountpoint: Path) -> None:
    """Serve ``files`` until they are unmounted."""
    import mfusepy

    for name in dir(files):
        if not name.startswith("_") and callable(getattr(files, name)):
            setattr(files, name, _spoken(getattr(files, name)))
    mfusepy.FUSE(
        files,
        str(mountpoint),
        raw_fi=True,
        foreground=True,
        default_permissions=True,
        allow_other=os.geteuid() == 0,  # anybody else needs the administrator's leave
        attr_timeout=0,
        entry_timeout=0,
    )


def _spoken(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The library logs every other exception; an OSError is an answer."""

    def answer(*arguments: Any, **named: Any) -> Any:
        try:
            return operation(*arguments, **named)
        except KeyError:
            raise OSError(errno.ENOENT, "") from None

    return answer


@dataclass(frozen=True)
class Mounted:
    """A stand-in that is mounted."""

    mountpoint: Path
    state: Path

    @property
    def reports(self) -> Path:
        return self.mountpoint / "report"

    @property
    def measurements(self) -> Path:
        return self.mountpoint / "measurements"

    @property
    def ccel(self) -> Path:
        return self.mountpoint / "CCEL"

    def misbehave(self, **faults: Any) -> None:
        (self.state / "faults.json").write_text(json.dumps(faults))

    @property
    def left(self) -> list[str]:
        """Reports that nobody removed."""
        return [entry.name for entry in self.reports.iterdir()]


def fuse_needed() -> None:
    """Skip the calling test (or module) where nothing can be mounted; a failure in CI."""
    from real_parts import absent

    missing = [
        name
        for name in ("/dev/fuse", shutil.which("fusermount3") or "")
        if not Path(name or "/nowhere").exists()
    ]
    if missing:
        absent("FUSE is not here: install fuse3")


ENTER = """
here=$1; shift
config=/sys/kernel/config/tsm/report registers=/sys/class/misc/tdx_guest/measurements tables=/sys/firmware/acpi/tables/data
mount -t tmpfs none /sys/kernel; mkdir -p $config; mount --bind "$here/report" $config
mount -t tmpfs none /sys/class/misc
if [ -d "$here/measurements" ]; then mkdir -p $registers; mount --bind "$here/measurements" $registers; fi
mount -t tmpfs none /sys/firmware; mkdir -p $tables
if [ -f "$here/CCEL" ]; then touch $tables/CCEL; mount --bind "$here/CCEL" $tables/CCEL; fi
exec "$@"
"""


def at_true_paths(kernel: Mounted, *command: str | Path) -> list[str]:
    """``command`` in a mount namespace of its own, where the stand-in lies where the kernel's files lie."""
    inside = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        ENTER,
        "sh",
        str(kernel.mountpoint),
    ]
    return [*inside, *(str(part) for part in command)]


def namespace_needed() -> None:
    """Skip the calling test (or module) where there is no mount namespace to be had; a failure in CI."""
    from real_parts import absent

    if os.geteuid() != 0:
        absent("a mount namespace needs root")
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if done.returncode:
        absent("this root has no mount namespaces")


@contextmanager
def mounted(directory: Path, *arguments: str) -> Iterator[Mounted]:
    """The stand-in mounted below ``directory``, by a process of its own."""
    place = Mounted(directory / "kernel", directory / "state")
    place.mountpoint.mkdir()
    place.state.mkdir()
    command = [sys.executable, __file__, str(place.mountpoint), str(place.state), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not place.mountpoint.is_mount():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the stand-in did not mount: {process.communicate()[1]}")
            time.sleep(0.02)
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place.mountpoint)], check=False, capture_output=True)
        process.terminate()
        process.communicate(timeout=30)


if __name__ == "__main__":
    serve(sys.argv[1:])
