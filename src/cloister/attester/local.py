"""Which TEE this machine is, and how a launch is measured in it.

Looked for are Gramine on SGX, Intel TDX and AMD SEV-SNP, in this order. There is no fallback: not to the simulated
TEE, not to a TPM (which has to be asked for by name, since it guards less), and not past a TEE that is there but
does not work. Who measures the launch differs, and each kind says it in so many words:

* TDX: the launch events are extended into RTMR3 before the first quote;
* SGX: Gramine's manifest, with the files and arguments it names, is inside MRENCLAVE;
* a TPM: the launch events are extended into PCR 15;
* SEV-SNP: a running guest can measure nothing. Configuration, program and model are covered only as far as the
  launch measurement (or HOST_DATA) covers the image they come from, and no policy can ask for launch events.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from cloister.attester import Attester, RawEvidence
from cloister.attester.azure import AzureAttester
from cloister.attester.firmware_log import CCEL, only_if_it_replays, read_firmware_log
from cloister.attester.gramine import ATTESTATION, GramineAttester, check_type
from cloister.attester.launch import host_data
from cloister.attester.rtmr import MEASUREMENTS, Registers, measure_launch
from cloister.attester.tpm import FIRMWARE_LOG, TpmAttester
from cloister.attester.tpm_transport import DEVICE, DeviceTransport
from cloister.attester.tsm import REPORTS, TsmAttester, kind_of, read_provider
from cloister.errors import AttesterError
from cloister.evidence import snp
from cloister.evidence.bundle import TeeKind
from cloister.evidence.eventlog import LaunchEvent, replay
from cloister.evidence.quote import parse_quote

Asked = Literal["auto", "tpm", "az-snp-vtpm"]
"""Which TEE to use: the machine's own, or by name what only a person can decide for."""
ASKED: Final[tuple[Asked, ...]] = ("auto", "tpm", "az-snp-vtpm")

COVERED: Final[Mapping[TeeKind, str]] = {
    "tdx": "configuration, program and model are measured into RTMR3",
    "sgx": "configuration, program and model are covered by MRENCLAVE, as far as the manifest names them",
    "snp": "configuration, program and model are covered ONLY by the launch measurement of the image they come from; "
    "no policy can ask for launch events on SEV-SNP",
    "tpm": "configuration, program and model are measured into PCR 15; a TPM does NOT protect this machine's memory",
    "az-snp-vtpm": "configuration, program and model are covered ONLY by the PCRs of the image they come from",
}
LOUD: Final = frozenset({"snp", "tpm", "az-snp-vtpm"})
"""Kinds that protect less than a person may think: who uses them has to be told."""

_log = logging.getLogger("cloister.attester")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the kernel and Gramine have their files."""

    gramine: Path = ATTESTATION
    reports: Path = REPORTS
    measurements: tuple[Path, ...] = MEASUREMENTS
    firmware_log: Path = CCEL
    tpm: Path = Path(DEVICE)
    tpm_firmware_log: Path = FIRMWARE_LOG


THIS_MACHINE: Final = Places()


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with a TEE that answered."""

    tee: TeeKind
    places: Places

    @property
    def covered(self) -> str:
        """What vouches for configuration, program and model here, in one line."""
        return COVERED[self.tee]

    def launch(
        self, events: Sequence[LaunchEvent], *, endorsements: bytes = b"", stated: bool = False
    ) -> Attester:
        """Measure ``events`` where this TEE can, and attest from then on.

        ``endorsements`` are an operator's own (for a TPM those of its enrolment) and travel with each quote. Whoever
        launches shows :attr:`covered` to a person. With ``stated`` a guest that cannot measure is refused unless its
        HOST_DATA stands for just these events. Raises :class:`AttesterError`.
        """
        if stated:
            self._require_stated(events)
        places = self.places
        if self.tee == "az-snp-vtpm":
            return AzureAttester(DeviceTransport(places.tpm), endorsements=endorsements)
        if self.tee == "tpm":
            return self._launch_tpm(events, endorsements)
        attester: Attester
        if self.tee == "sgx":
            attester = GramineAttester(places.gramine)
        elif self.tee == "snp":
            attester = TsmAttester(places.reports)
        else:
            attester = self._launch_tdx(events)
        return _Carrying(attester, endorsements) if endorsements else attester

    def _require_stated(self, events: Sequence[LaunchEvent]) -> None:
        if self.tee == "az-snp-vtpm":
            raise AttesterError(
                "on Azure's SEV-SNP nothing of a launch can be measured or stated", todo="use a TDX guest"
            )
        if self.tee != "snp":
            return
        wanted = host_data(events)
        found = snp.parse_report(TsmAttester(self.places.reports).quote(bytes(64)).quote).host_data
        if found != wanted:
            raise AttesterError(
                f"this guest was started with HOST_DATA {found.hex()}, and this launch is {wanted.hex()}",
                todo="start the guest with the HOST_DATA that `cloister measure run` prints",
            )

    def _launch_tpm(self, events: Sequence[LaunchEvent], endorsements: bytes) -> Attester:
        log = self.places.tpm_firmware_log
        attester = TpmAttester(
            DeviceTransport(self.places.tpm),
            endorsements=endorsements,
            firmware_log=log if log.exists() else None,
        )
        attester.measure_launch(events)
        return attester

    def _launch_tdx(self, events: Sequence[LaunchEvent]) -> Attester:
        places = self.places
        registers = Registers.find(places.measurements)
        event_log = measure_launch(registers, events)
        values = {**registers.firmware(), "rtmr3": registers.read("rtmr3")}
        firmware_log = only_if_it_replays(read_firmware_log(places.firmware_log), values)
        return TsmAttester(places.reports, event_log=event_log, firmware_log=firmware_log)

    def reference_values(self, events: Sequence[LaunchEvent]) -> Mapping[str, bytes]:
        """What evidence of this machine shows once ``events`` are launched; nothing is launched or verified here.

        Names as in claims; TDX, SGX and SEV-SNP only. Raises :class:`AttesterError`.
        """
        if self.tee == "tdx":
            registers = Registers.find(self.places.measurements)
            return {**registers.firmware(), "rtmr3": replay(events)}
        if self.tee == "sgx":
            return parse_quote(GramineAttester(self.places.gramine).quote(bytes(64)).quote).measurements
        if self.tee == "snp":
            report = snp.parse_report(TsmAttester(self.places.reports).quote(bytes(64)).quote)
            return {"measurement": report.measurement}
        raise AttesterError(
            f"the reference values of {self.tee} evidence are its PCRs: take them from evidence"
        )


class _Carrying:
    """An attester with endorsements that an operator gave."""

    def __init__(self, attester: Attester, endorsements: bytes) -> None:
        self._attester = attester
        self._endorsements = endorsements

    def quote(self, report_data: bytes) -> RawEvidence:
        return replace(self._attester.quote(report_data), endorsements=self._endorsements)


def find_machine(places: Places = THIS_MACHINE, *, asked: Asked = "auto") -> Machine | None:
    """The TEE of this machine, or None where there is nothing of any.

    Raises :class:`AttesterError` where there is one that does not work: it is said, and nothing else is tried.
    """
    if asked != "auto":
        return Machine(asked, places)
    if (places.gramine / "attestation_type").exists():
        check_type(places.gramine)
        return Machine("sgx", places)
    if places.reports.is_dir():
        return Machine(kind_of(read_provider(places.reports)), places)
    return None


def looked_for(places: Places = THIS_MACHINE) -> str:
    """What :func:`find_machine` looks for, in words."""
    return (
        f"neither {places.gramine / 'attestation_type'} (SGX in Gramine) nor {places.reports} (TDX, SEV-SNP)"
    )


def open_attester(events: Sequence[LaunchEvent], *, places: Places = THIS_MACHINE) -> Attester:
    """This machine's own attester with ``events`` launched, and nothing else.

    Raises :class:`AttesterError` where there is no TEE or it does not work.
    """
    machine = find_machine(places)
    if machine is None:
        raise AttesterError(
            f"no TEE was found: there is {looked_for(places)}",
            todo="`cloister doctor attestation` says what is missing",
        )
    if machine.tee in LOUD:
        _log.warning("%s: %s", machine.tee.upper(), machine.covered)
    return machine.launch(events)
