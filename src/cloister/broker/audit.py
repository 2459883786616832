"""The audit log: one chained line for each attestation, release, refusal and change (docs/spec/audit-line.md).

A line is synced before what it tells of is answered: no line, no release. The chain finds lines altered, removed, added
or moved inside the log; it does not find a log that was cut at its end or written anew. Lines hold no secrets.
"""

from __future__ import annotations

import fcntl
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json, labelled_hash
from cloister.errors import BrokerError, FormatError
from cloister.verifier.claims import Claims

FORMAT: Final = "cloister/audit-line/v1"
LINE_LABEL = "cloister/audit-line/v1"
MEASUREMENTS_LABEL = "cloister/measurements/v1"
FILE = "audit.jsonl"
MAX_LINE = 8192
MAX_REASON = 400
START = "0" * 64

Event = Literal["attestation", "release", "put", "policy", "recovery"]
Outcome = Literal["accepted", "refused", "done"]


class AuditDamaged(BrokerError):
    """The audit log cannot be written, or its chain does not hold."""


class Line(Record, frozen=True, kw_only=True):
    """One audit line, as it is stored."""

    format: Literal["cloister/audit-line/v1"] = FORMAT
    number: int
    time: int
    event: Event
    outcome: Outcome
    previous: str
    resource: str = ""
    session: str = ""
    measurements: str = ""
    policy: str = ""
    tee_key: str = ""
    simulated: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """What there is to say; the log adds number, time and chain. Fields as in :class:`Line`."""

    event: Event
    outcome: Outcome
    resource: str = ""
    session: str = ""
    measurements: str = ""
    policy: str = ""
    tee_key: str = ""
    simulated: bool = False
    reason: str = ""


def chain_value(line: bytes) -> str:
    """Hexadecimal chain value of a line's bytes (without its newline)."""
    return labelled_hash(LINE_LABEL, line).hex()


def measurements_digest(claims: Claims) -> str:
    """One digest over everything that was measured, hexadecimal."""
    parts: list[bytes] = [claims.tee.encode()]
    for table in (claims.measurements, claims.events):
        parts.append(len(table).to_bytes(8, "big"))
        for name, value in sorted(table.items()):
            parts += (name.encode(), value)
    return labelled_hash(MEASUREMENTS_LABEL, *parts).hex()


class AuditLog:
    """Appends to one file; several processes may, each under the file's lock."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE
        self._thread_lock = threading.Lock()

    def append(self, fact: Fact, now: int) -> None:
        """Write and sync one line. Raises :class:`AuditDamaged` if that cannot be done."""
        try:
            with self._thread_lock:
                handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                    self._append(handle, fact, now)
                finally:
                    os.close(handle)
        except OSError as error:
            raise AuditDamaged(
                f"the audit log cannot be written ({error.strerror})",
                todo="nothing is released until it can: check disk space and permissions",
            ) from None

    def _append(self, handle: int, fact: Fact, now: int) -> None:
        end = os.fstat(handle).st_size
        tail = os.pread(handle, 2 * MAX_LINE, max(0, end - 2 * MAX_LINE))
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn > MAX_LINE:
            raise AuditDamaged("the audit log ends in something that is not a line", todo="restore a backup")
        if torn:
            # The newline is a line's last byte, so this one was never synced and nothing was answered on it.
            tail, end = tail[:-torn], end - torn
        number, previous = _after(tail)
        lines = b""
        facts = [fact]
        if torn:
            facts.insert(0, Fact("recovery", "done", reason=f"{torn} bytes of a torn line were cut off"))
        for item in facts:
            line = encode_json(_line(item, number, now, previous))
            if len(line) > MAX_LINE:
                raise AuditDamaged(f"an audit line is at most {MAX_LINE} bytes long, not {len(line)}")
            lines += line + b"\n"
            number, previous = number + 1, chain_value(line)
        if torn:
            os.ftruncate(handle, end)
        written = os.pwrite(handle, lines, end)
        if written != len(lines):
            os.ftruncate(handle, end)
            raise AuditDamaged("the audit log took only part of a line", todo="check disk space")
        os.fsync(handle)
        if end == 0:
            _sync_directory(self._file.parent)


def verify(file: Path) -> tuple[int, str]:
    """How many lines the log has and its last chain value. Raises :class:`AuditDamaged` where the chain breaks."""
    previous, number = START, 0
    try:
        with file.open("rb") as source:
            while raw := source.readline(MAX_LINE + 2):
                if not raw.endswith(b"\n"):
                    raise AuditDamaged(f"line {number} of {file} is cut short or too long")
                line = _parse(raw[:-1], f"line {number} of {file.name}")
                if line.number != number or line.previous != previous or encode_json(line) != raw[:-1]:
                    raise AuditDamaged(
                        f"the audit log breaks at line {number}: a line was altered, removed, added or moved",
                        todo="compare with a copy that was kept elsewhere",
                    )
                previous, number = chain_value(raw[:-1]), number + 1
    except FileNotFoundError:
        raise AuditDamaged(
            f"there is no audit log at {file}", todo="nothing was done yet, or somebody took it away"
        ) from None
    except OSError as error:
        raise AuditDamaged(f"the audit log cannot be read ({error.strerror})") from None
    return number, previous


def _sync_directory(directory: Path) -> None:
    """A new file's name is on disk only when its directory is."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _after(tail: bytes) -> tuple[int, str]:
    """Number and ``previous`` of the line that follows ``tail`` (which ends with a newline, or is empty)."""
    if not tail:
        return 0, START
    last = tail[:-1].rsplit(b"\n", 1)[-1]
    return _parse(last, "the last audit line").number + 1, chain_value(last)


def _parse(raw: bytes, what: str) -> Line:
    try:
        return decode_json(raw, Line, what=what, limit=MAX_LINE)
    except FormatError as error:
        raise AuditDamaged(f"{error.what}", todo="compare with a copy that was kept elsewhere") from None


def _line(fact: Fact, number: int, now: int, previous: str) -> Line:
    reason = "".join(char if char.isprintable() else " " for char in fact.reason)[:MAX_REASON]
    return Line(
        number=number,
        time=now,
        event=fact.event,
        outcome=fact.outcome,
        previous=previous,
        resource=fact.resource,
        session=fact.session,
        measurements=fact.measurements,
        policy=fact.policy,
        tee_key=fact.tee_key,
        simulated=fact.simulated,
        reason=reason,
    )
