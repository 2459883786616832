"""SGX quotes inside Gramine, through its pseudo-files under /dev/attestation.

The attestation type must be ``dcap``: Gramine without remote attestation has no quote, EPID's service is gone, and
Gramine outside SGX has no such file at all. What is launched is in MRENCLAVE (manifest, trusted files, arguments),
so there is no event log. The files share one buffer and are not safe for threads: one quote at a time.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final

from cloister.attester import RawEvidence
from cloister.attester.kernel_files import read_file, read_text, write_file
from cloister.errors import AttesterError, EvidenceError
from cloister.evidence.binding import REPORT_DATA_SIZE
from cloister.evidence.quote import parse_quote

ATTESTATION: Final = Path("/dev/attestation")
MAX_SGX_QUOTE: Final = 8192
"""Bytes; Gramine's own bound."""
ATTESTATION_TYPE: Final = "dcap"

_ONE_AT_A_TIME = threading.Lock()

_TYPES: Final = {
    "none": ("without remote attestation", 'set `sgx.remote_attestation = "dcap"` in the manifest and sign it again'),
    "epid": ("for EPID, which Intel ended", 'set `sgx.remote_attestation = "dcap"` in the manifest and sign it again'),
}  # fmt: skip
_STEPS: Final[dict[str, dict[int, tuple[str, str]]]] = {
    "attestation_type": {
        errno.ENOENT: (
            "this is not Gramine on SGX (gramine-direct has no attestation)",
            "start the workload with gramine-sgx on a machine with SGX",
        ),
    },
    "quote": {
        errno.EACCES: (
            "no quote was made",
            "on the host, look at the AESM service, the group of /dev/sgx_provision (sgx_prv) and the PCCS it is told of",
        ),
        errno.ENOENT: ("the enclave has no quote file", 'set `sgx.remote_attestation = "dcap"` in the manifest'),
    },
}  # fmt: skip


class GramineAttester:
    """An :class:`~cloister.attester.Attester` inside Gramine. ``directory`` is where its pseudo-files are."""

    def __init__(self, directory: Path = ATTESTATION) -> None:
        check_type(directory)
        self._directory = directory

    def quote(self, report_data: bytes) -> RawEvidence:
        """An SGX quote over ``report_data`` (exactly 64 bytes). Raises :class:`AttesterError`."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise AttesterError(
                f"report data is {len(report_data)} bytes long, not {REPORT_DATA_SIZE}",
                todo="hash what you want to bind; nothing is padded or truncated here",
            )
        step = "user_report_data"
        with _ONE_AT_A_TIME:
            try:
                write_file(self._directory / step, report_data)
                step = "quote"
                quote = read_file(self._directory / step, MAX_SGX_QUOTE)
            except OSError as error:
                raise _explain(error, self._directory / step) from None
        try:
            parsed = parse_quote(quote)
        except EvidenceError as error:
            raise AttesterError(
                f"Gramine handed out a quote that no verifier reads: {error.what}",
                todo="configure the quote provider of the host for ECDSA with the PCK chain embedded",
            ) from None
        if parsed.tee != "sgx" or parsed.report_data != report_data:
            raise AttesterError(
                "the quote is over other report data than was written",
                todo="nothing else in the enclave may use /dev/attestation",
            )
        return RawEvidence(tee="sgx", quote=quote)


def check_type(directory: Path = ATTESTATION) -> None:
    """Raise :class:`AttesterError` unless this is Gramine with DCAP attestation."""
    path = directory / "attestation_type"
    try:
        kind = read_text(path)
    except OSError as error:
        raise _explain(error, path) from None
    if kind != ATTESTATION_TYPE:
        what, todo = _TYPES.get(kind, (f"of the unknown type {kind[:32]!r}", "use Gramine 1.6 or later"))
        raise AttesterError(f"this Gramine enclave is {what}", todo=todo)


def _explain(error: OSError, path: Path) -> AttesterError:
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    what, todo = _STEPS.get(path.name, {}).get(
        number, (os.strerror(number), "see `cloister doctor attestation`")
    )
    refused = AttesterError(f"{path} failed: {what} ({name})", todo=todo)
    refused.__cause__ = error
    return refused
