"""TPM 2.0 as an attester: quotes over PCRs by an attestation key that never leaves the TPM.

The key is not vouched for by itself: a cloud's certificate, or an enrolment (:meth:`TpmAttester.identity`,
:meth:`TpmAttester.activate`, verifier/tpm_enrolment.py) makes the endorsements that travel with each quote. Launch
events go into PCR 15, which only a boot resets; they are extended once, before the workload serves anybody. A TPM
vouches for how a machine was booted; it does not protect the machine's memory (docs/limitations.md).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.attester import RawEvidence
from cloister.attester.tpm_commands import ENDORSEMENT, Tpm
from cloister.attester.tpm_templates import AK_TEMPLATE, EK_KINDS, EkKind
from cloister.attester.tpm_transport import TpmTransport
from cloister.errors import AttesterError, EvidenceError
from cloister.evidence.binding import REPORT_DATA_SIZE, quoted_form
from cloister.evidence.eventlog import LAUNCH_PCR, LaunchEvent, encode_event_log, event_digest, replay
from cloister.evidence.tpm import BANKS, encode_quote
from cloister.evidence.tpm_structures import PCRS, USER_WITH_AUTH, TpmPublic, parse_attest, parse_public

BOOT_PCRS: Final = (*range(10), *range(11, 16))
"""What firmware, boot loader, kernel, systemd and the launcher extend. PCR 10 (IMA) changes with every file."""
FIRMWARE_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
MAX_FIRMWARE_LOG: Final = 512 * 1024
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class TpmIdentity:
    """What an enrolment needs of a machine."""

    ek_certificate: bytes
    """DER, as the TPM's NV memory holds it."""
    ak_public: bytes
    """The attestation key's TPMT_PUBLIC."""


class TpmAttester:
    """An :class:`~cloister.attester.Attester` over one TPM. Safe for several threads."""

    def __init__(
        self,
        transport: TpmTransport,
        *,
        endorsements: bytes = b"",
        pcrs: Iterable[int] = BOOT_PCRS,
        bank: str = "sha256",
        firmware_log: Path | None = None,
        ak_template: bytes = AK_TEMPLATE,
    ) -> None:
        self._tpm = Tpm(transport)
        self._endorsements = endorsements
        self._pcrs = tuple(sorted(set(pcrs)))
        self._bank = bank
        self._firmware_log = firmware_log
        self._template = ak_template
        self._key: tuple[int, bytes] | None = None
        self._event_log = b""
        self._lock = threading.Lock()
        if not self._pcrs or not 0 <= self._pcrs[0] <= self._pcrs[-1] < PCRS:
            raise AttesterError(f"a quote covers PCRs from 0 to {PCRS - 1}, at least one of them")
        if bank not in BANKS:
            raise AttesterError(
                f"{bank[:16]!r} is no bank of PCRs that is quoted", todo=f"choose {' or '.join(BANKS)}"
            )

    def quote(self, report_data: bytes) -> RawEvidence:
        """A quote whose qualifying data is the digest of ``report_data`` (64 bytes; evidence/binding.py).

        Raises :class:`~cloister.errors.AttesterError`.
        """
        data = qualifying_data(report_data)
        with self._lock:
            key, public = self._attestation_key()
            quote = take_quote(self._tpm, key, public, data, bank=self._bank, pcrs=self._pcrs)
        return RawEvidence(
            tee="tpm",
            quote=quote,
            event_log=self._event_log,
            firmware_log=b"" if self._firmware_log is None else read_firmware_log(self._firmware_log),
            endorsements=self._endorsements,
        )

    def measure_launch(self, events: Sequence[LaunchEvent]) -> None:
        """Extend ``events`` into PCR 15; every later quote carries their log.

        A process that starts again after the same boot finds them extended already. Anything else in the PCR cannot
        be replayed from the log, and raises :class:`~cloister.errors.AttesterError`; so does a quote without PCR 15.
        """
        if LAUNCH_PCR not in self._pcrs:
            raise AttesterError(
                f"launch events go into PCR {LAUNCH_PCR}, which is not quoted", todo="quote it"
            )
        with self._lock:
            found = self._tpm.read_pcrs(self._bank, (LAUNCH_PCR,))[LAUNCH_PCR]
            expected = replay(events, algorithm=self._bank)
            if found == bytes(BANKS[self._bank]):
                for event in events:
                    digest = event_digest(event, algorithm=self._bank)
                    self._tpm.extend(LAUNCH_PCR, {self._bank: digest})
                found = self._tpm.read_pcrs(self._bank, (LAUNCH_PCR,))[LAUNCH_PCR]
            if found != expected:
                raise AttesterError(
                    f"PCR {LAUNCH_PCR} holds {found.hex()[:16]}…, which these launch events do not lead to",
                    todo="something else was launched since the boot, or systemd measures into it: reboot without",
                )
            self._event_log = encode_event_log(events) if events else b""

    def identity(self, kind: EkKind | None = None) -> TpmIdentity:
        """The certificate of an endorsement key and the attestation key, for an enrolment.

        ``kind`` chooses the endorsement key; without it the first of P-384, P-256 and RSA 2048 that has a certificate.
        Raises :class:`~cloister.errors.AttesterError`.
        """
        with self._lock:
            _, public = self._attestation_key()
            return TpmIdentity(_der(self._tpm.read_nv(self._ek_kind(kind).certificate)), public)

    def activate(self, credential_blob: bytes, encrypted_secret: bytes, kind: EkKind | None = None) -> bytes:
        """The secret of an enrolment's credential: proof that both keys are in this TPM.

        ``kind`` as for :meth:`identity`. Raises :class:`~cloister.errors.AttesterError`.
        """
        with self._lock:
            ak, _ = self._attestation_key()
            chosen = self._ek_kind(kind)
            persistent = self._tpm.exists(chosen.handle)
            if persistent:
                ek, public = chosen.handle, self._tpm.read_public(chosen.handle)
            else:
                ek, public = self._tpm.create_primary(ENDORSEMENT, chosen.template)
            try:
                by_policy = not _parsed(public).attributes & USER_WITH_AUTH
                return self._tpm.activate(ak, ek, credential_blob, encrypted_secret, by_policy=by_policy)
            finally:
                if not persistent:
                    self._tpm.flush(ek)

    def close(self) -> None:
        """Unload the attestation key; the next quote loads it again."""
        with self._lock:
            key, self._key = self._key, None
            if key is not None:
                self._tpm.flush(key[0])

    def _attestation_key(self) -> tuple[int, bytes]:
        if self._key is None:
            handle, public = self._tpm.create_primary(ENDORSEMENT, self._template)
            self._key = handle, public
        return self._key

    def _ek_kind(self, kind: EkKind | None) -> EkKind:
        for candidate in EK_KINDS if kind is None else (kind,):
            if self._tpm.exists(candidate.certificate):
                return candidate
        raise AttesterError(
            "the TPM holds no certificate of an endorsement key" + (f" of kind {kind.name}" if kind else ""),
            todo="its vendor may offer it for download; a software TPM gets it from swtpm_setup",
        )


def qualifying_data(report_data: bytes) -> bytes:
    """The 32 bytes that a TPM quotes for ``report_data``. Raises :class:`~cloister.errors.AttesterError`."""
    if len(report_data) != REPORT_DATA_SIZE:
        raise AttesterError(f"report data is {REPORT_DATA_SIZE} bytes long, not {len(report_data)}")
    return quoted_form("tpm", report_data)


def take_quote(tpm: Tpm, key: int, public: bytes, data: bytes, *, bank: str, pcrs: Sequence[int]) -> bytes:
    """A quote in its wire form, whose values are those it covers: a PCR may be extended between reading and quoting.

    Raises :class:`~cloister.errors.AttesterError` when that goes on, after five tries.
    """
    scheme = _parsed(public).scheme
    if scheme is None:
        raise AttesterError(
            "the attestation key has no signature scheme", todo="make a restricted signing key"
        )
    for _ in range(_TRIES):
        values = tpm.read_pcrs(bank, pcrs)
        attest, signature = tpm.quote(key, data, bank, pcrs)
        digest = hashlib.new(scheme[1], b"".join(values[number] for number in sorted(values))).digest()
        try:
            if parse_attest(attest).pcr_digest == digest:
                return encode_quote(attest=attest, signature=signature, ak_public=public, pcrs=values)
        except EvidenceError as error:
            raise AttesterError(f"the TPM made a quote that cannot be read: {error.what}") from None
    raise AttesterError(
        f"the PCRs changed during each of {_TRIES} quotes",
        todo="quote PCRs that are settled; PCR 10 (IMA) never is",
    )


def read_firmware_log(path: Path) -> bytes:
    """The firmware's event log, at most 512 KiB. Raises :class:`~cloister.errors.AttesterError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FIRMWARE_LOG + 1)
    except OSError as error:
        raise AttesterError(
            f"the firmware's log {path} cannot be read ({error.strerror})",
            todo="only root may read it as a rule",
        ) from None
    if len(data) > MAX_FIRMWARE_LOG:
        raise AttesterError(f"the firmware's log is over {MAX_FIRMWARE_LOG} bytes long")
    return data


def _der(data: bytes) -> bytes:
    """A certificate without what an NV index has behind it: some vendors fill theirs up."""
    if data[:1] != b"\x30" or len(data) < 4 or data[1] != 0x82:
        raise AttesterError("the TPM's certificate of its endorsement key is no certificate")
    return data[: 4 + int.from_bytes(data[2:4], "big")]


def _parsed(public: bytes) -> TpmPublic:
    try:
        return parse_public(public)
    except EvidenceError as error:
        raise AttesterError(f"the TPM showed a key that cannot be read: {error.what}") from None
