"""Reports of a confidential VM through the kernel's configfs-tsm: Intel TDX quotes and AMD SEV-SNP reports.

Each report has a directory of its own (Documentation/ABI/testing/configfs-tsm-report): 64 bytes go into ``inblob``
and are committed by its close, ``outblob`` is the report, and ``generation`` counts the writes, so that a report over
another writer's bytes is noticed and asked for again, a few times. What comes out is parsed and must carry the
very bytes that went in. The directory is removed whatever happens. Unknown providers are refused.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cloister.attester import RawEvidence
from cloister.attester.kernel_files import read_file, read_text, write_file
from cloister.attester.snp_certificates import carried_endorsements
from cloister.attester.tsm_errors import explain
from cloister.errors import AttesterError, EvidenceError
from cloister.evidence import snp
from cloister.evidence.binding import REPORT_DATA_SIZE
from cloister.evidence.bundle import TeeKind
from cloister.evidence.quote import parse_quote

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
PROVIDERS: Final[dict[str, TeeKind]] = {"tdx_guest": "tdx", "sev_guest": "snp"}
MAX_REPORT: Final = 32 * 1024
"""Bytes of an outblob or auxblob; the kernel's own bound was this until 6.19."""
MAX_PRIVILEGE_LEVEL: Final = 3
ATTEMPTS: Final = 5
FIRST_PAUSE: Final = 0.2
"""Seconds before the second attempt; doubled before each further one, so that all of them wait 3 s together."""
STALE: Final = 600
"""Seconds after which a directory of ours cannot be in use any more: whoever made it was killed."""
_PREFIX: Final = "cloister-"
_AGAIN: Final = frozenset({errno.EINTR, errno.EBUSY, errno.EAGAIN})


class TsmAttester:
    """An :class:`~cloister.attester.Attester` over configfs-tsm. For any number of threads.

    ``reports`` is the directory of reports. ``privilege_level`` (0 to 3) is the VMPL to report for, on SEV-SNP; the
    kernel's own by default. ``event_log`` and ``firmware_log`` travel with each quote. ``pause`` waits (seconds) and
    ``draw_name`` names a new directory; both are for tests.
    """

    def __init__(
        self,
        reports: Path = REPORTS,
        *,
        privilege_level: int | None = None,
        event_log: bytes = b"",
        firmware_log: bytes = b"",
        pause: Callable[[float], None] = time.sleep,
        draw_name: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        if privilege_level is not None and not 0 <= privilege_level <= MAX_PRIVILEGE_LEVEL:
            raise AttesterError(f"a privilege level is 0 to {MAX_PRIVILEGE_LEVEL}, not {privilege_level}")
        self._reports = reports
        self._privilege_level = privilege_level
        self._event_log = event_log
        self._firmware_log = firmware_log
        self._pause = pause
        self._draw_name = draw_name
        sweep(reports)

    def quote(self, report_data: bytes) -> RawEvidence:
        """The report over ``report_data`` (exactly 64 bytes). Raises :class:`AttesterError`."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise AttesterError(
                f"report data is {len(report_data)} bytes long, not {REPORT_DATA_SIZE}",
                todo="hash what you want to bind; nothing is padded or truncated here",
            )
        wait = FIRST_PAUSE
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(wait)
                wait *= 2
            try:
                return self._attempt(report_data)
            except _Repeat as repeat:
                refused = repeat.error
        raise refused

    def _attempt(self, report_data: bytes) -> RawEvidence:
        with report_directory(self._reports, self._draw_name) as directory:
            step = "provider"
            try:
                kind = kind_of(read_text(directory / step))
                step = "generation"
                expected = int(read_text(directory / step)) + 1
                if self._privilege_level is not None:
                    step = "privlevel"
                    write_file(directory / step, str(self._privilege_level).encode())
                    expected += 1
                step = "inblob"
                write_file(directory / step, report_data)
                # The kernel drops what it cannot commit without a word, and others may write here at any time.
                step = "generation"
                self._check_generation(directory, expected)
                step = "outblob"
                report = read_file(directory / step, MAX_REPORT)
                step = "auxblob"
                certificates = read_file(directory / step, MAX_REPORT) if kind == "snp" else b""
                step = "generation"
                self._check_generation(directory, expected)
            except OSError as error:
                refused = explain(error, step, self._reports)
                raise _Repeat(refused) if error.errno in _AGAIN else refused from None
            except ValueError:
                raise AttesterError(f"{directory / 'generation'} does not hold a number") from None
        endorsements = b""
        if kind == "snp":
            endorsements = carried_endorsements(certificates, _check_snp(report, report_data))
        else:
            _check_tdx(report, report_data)
        return RawEvidence(
            tee=kind,
            quote=report,
            event_log=self._event_log,
            firmware_log=self._firmware_log,
            endorsements=endorsements,
        )

    def _check_generation(self, directory: Path, expected: int) -> None:
        found = int(read_text(directory / "generation"))
        if found != expected:
            raise _Repeat(
                AttesterError(
                    f"generation is {found} and not {expected}: something else writes to this report, or the kernel "
                    "did not take the report data",
                    todo=f"find what else works below {self._reports}",
                )
            )


class _Repeat(Exception):
    """What may pass by itself: try once more, and say ``error`` if it does not."""

    def __init__(self, error: AttesterError) -> None:
        self.error = error


@contextmanager
def report_directory(
    reports: Path, draw_name: Callable[[], str] = lambda: secrets.token_hex(8)
) -> Iterator[Path]:
    """A new report, removed at the end. Raises :class:`AttesterError`."""
    directory = reports / f"{_PREFIX}{draw_name()}"
    try:
        directory.mkdir()
    except FileExistsError:
        raise _Repeat(AttesterError(f"{directory} exists already", todo="remove it (rmdir)")) from None
    except OSError as error:
        raise explain(error, "mkdir", reports) from None
    try:
        yield directory
    finally:
        with suppress(OSError):  # gone with its provider, or swept: there is nothing left to remove
            directory.rmdir()


def read_provider(reports: Path = REPORTS) -> str:
    """The name of the kernel's provider. Raises :class:`AttesterError` where there is none or it cannot be asked."""
    try:
        with report_directory(reports) as directory:
            try:
                return read_text(directory / "provider")
            except OSError as error:
                raise explain(error, "provider", reports) from None
    except _Repeat as repeat:
        raise repeat.error from None


def kind_of(provider: str) -> TeeKind:
    """The kind of evidence that ``provider`` makes. Raises :class:`AttesterError` for an unknown one."""
    kind = PROVIDERS.get(provider)
    if kind is None:
        raise AttesterError(
            f"the kernel's report provider is {provider[:32]!r}, whose reports are not read here",
            todo=f"supported are {' and '.join(PROVIDERS)}",
        )
    return kind


def sweep(reports: Path, now: float | None = None) -> int:
    """Remove reports that a killed process of ours left behind; how many. ``now`` is in Unix seconds."""
    removed = 0
    with suppress(OSError):
        oldest = (time.time() if now is None else now) - STALE
        for entry in list(os.scandir(reports)):
            if entry.name.startswith(_PREFIX) and entry.stat().st_mtime < oldest:
                (reports / entry.name).rmdir()
                removed += 1
    return removed


def _check_tdx(quote: bytes, report_data: bytes) -> None:
    """It is a quote over these very bytes."""
    try:
        carried = parse_quote(quote).report_data
    except EvidenceError as error:
        raise _unreadable(error) from None
    _check_data(carried, report_data)


def _check_snp(report: bytes, report_data: bytes) -> str:
    """It is a report over these very bytes; which key signed it."""
    try:
        parsed = snp.parse_report(report)
    except EvidenceError as error:
        raise _unreadable(error) from None
    _check_data(parsed.report_data, report_data)
    return parsed.signing_key


def _unreadable(error: EvidenceError) -> AttesterError:
    return AttesterError(
        f"the kernel handed out a report that no verifier reads: {error.what}",
        todo="look at the quoting service and the firmware of the host",
    )


def _check_data(carried: bytes, report_data: bytes) -> None:
    if carried != report_data:
        raise _Repeat(
            AttesterError(
                "the report is over other report data than was written",
                todo="find what else makes reports on this machine",
            )
        )
