"""The simulated SEV-SNP machine: real reports of Milan, Genoa and Turin under a false root (docs/spec/snp.md).

The verifier for hardware checks all of it once a policy names this vendor's root by its digest. NOTHING IS PROTECTED:
whoever runs this holds every key. Only code turns it on, never the environment, and it says so in the log each time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attester import RawEvidence
from cloister.attester.simulation.chain import DAY, Window
from cloister.attester.simulation.hardware import FIRMWARE_VERSION, Entropy
from cloister.attester.simulation.snp_chain import (
    Chip,
    Vendor,
    VendorKeys,
    issue_list,
    issue_signing_key,
    issue_vendor,
)
from cloister.attester.simulation.snp_report import encode_signed, sign_report
from cloister.encoding import labelled_hash
from cloister.endorsements.amd import SnpEndorsements, encode_snp_endorsements
from cloister.errors import AttesterError
from cloister.evidence.binding import REPORT_DATA_SIZE
from cloister.evidence.bundle import TeeKind
from cloister.evidence.eventlog import LaunchEvent, event_digest
from cloister.evidence.snp import PLATFORM_BITS, POLICY_BITS, VERSIONS, SignerName, SnpReport, TcbVersion

LIST_DAYS: Final = 30
MEASUREMENT_LABEL: Final = "cloister/simulated-snp/v1"
STRICT_POLICY: Final = 1 << 17 | 1 << POLICY_BITS["single_socket"] | 1 << 8 | 55
"""ABI 1.55 at least, one socket, no SMT, no migration, no debug."""
_PLATFORM_INFO: Final = 1 << PLATFORM_BITS["ecc_en"] | 1 << PLATFORM_BITS["alias_check_complete"]
_CPUIDS: Final = {"milan": (0x19, 0x01, 1), "genoa": (0x19, 0x11, 1), "turin": (0x1A, 0x02, 1)}
_TCBS: Final = {
    "milan": TcbVersion(bootloader=4, tee=0, snp=24, microcode=219),
    "genoa": TcbVersion(bootloader=10, tee=0, snp=23, microcode=84),
    "turin": TcbVersion(fmc=1, bootloader=1, tee=1, snp=4, microcode=76),
}

_log = logging.getLogger("cloister.attester")


class SimulatedSnp:
    """One simulated processor with a vendor of its own, in memory only."""

    def __init__(self, vendor: Vendor, chip: Chip, *, issued: int) -> None:
        self.vendor = vendor
        self.chip = chip
        self.root_sha256 = hashlib.sha256(vendor.ark).hexdigest()
        """SHA-256 (hexadecimal) of the DER root: what a policy has to name."""
        self.keys: dict[SignerName, ec.EllipticCurvePrivateKey] = {
            "vcek": ec.generate_private_key(ec.SECP384R1()),
            "vlek": ec.generate_private_key(ec.SECP384R1()),
        }
        self.certificates: dict[SignerName, bytes] = {
            kind: issue_signing_key(vendor, kind, chip, key.public_key(), issued)
            for kind, key in self.keys.items()
        }

        self._list: tuple[Window, bytes] | None = None

    def __repr__(self) -> str:
        return f"SimulatedSnp(product={self.chip.product!r}, root_sha256={self.root_sha256!r})"

    @classmethod
    def generate(
        cls,
        *,
        now: int,
        product: str = "milan",
        keys: VendorKeys | None = None,
        entropy: Entropy = os.urandom,
    ) -> SimulatedSnp:
        """A new processor of a new vendor. ``now`` in Unix seconds; ``entropy`` draws the chip's identity.

        ``keys`` spares the seconds that RSA-4096 keys take. Raises :class:`AttesterError` for an unknown product.
        """
        if product not in _CPUIDS:
            raise AttesterError(f"there is no simulated processor of product {product[:40]!r}")
        chip = Chip(
            product=product,
            hwid=entropy(8 if product == "turin" else 64),
            tcb=_TCBS[product],
            cpuid=_CPUIDS[product],
        )
        issued = _window(now).issued
        platform = cls(issue_vendor(keys or VendorKeys.generate(), product, issued), chip, issued=issued)
        _log.warning(
            "SIMULATED TEE: made an SEV-SNP processor with root %s; nothing it vouches for is protected",
            platform.root_sha256,
        )
        return platform

    def endorsements(
        self, now: int, kind: SignerName = "vcek", *, revoked: Collection[int] | None = ()
    ) -> SnpEndorsements:
        """The vendor's certificates for the key ``kind``, and its list of the day (for thirty) with ``revoked``.

        ``revoked`` None leaves the list out.
        """
        return SnpEndorsements(
            signing_key=self.certificates[kind],
            intermediate=self.vendor.asvk if kind == "vlek" else self.vendor.ask,
            root=self.vendor.ark,
            crl=b"" if revoked is None else self._revocation_list(_window(now), revoked),
        )

    def _revocation_list(self, window: Window, revoked: Collection[int]) -> bytes:
        if revoked:
            return issue_list(self.vendor, window, revoked)
        if self._list is None or self._list[0] != window:
            self._list = (window, issue_list(self.vendor, window))
        return self._list[1]

    def report(self, report_data: bytes, *, version: int = 3, kind: SignerName = "vcek") -> SnpReport:
        """What an honest guest's report says, unsigned; callers exchange fields with :func:`dataclasses.replace`."""
        chip = self.chip
        zeros, late = bytes(48), version >= 5
        return SnpReport(
            version=version,
            guest_svn=0,
            policy=STRICT_POLICY,
            family_id=bytes(16),
            image_id=bytes(16),
            vmpl=0,
            current_tcb=chip.tcb,
            platform_info=_PLATFORM_INFO,
            author_key_enabled=False,
            mask_chip_key=False,
            signing_key=kind,
            report_data=report_data,
            measurement=snp_measurement(()),
            host_data=bytes(32),
            id_key_digest=zeros,
            author_key_digest=zeros,
            report_id=hashlib.sha256(chip.hwid).digest(),
            report_id_ma=b"\xff" * 32,
            reported_tcb=chip.tcb,
            product=chip.product if version >= 3 else None,
            cpuid=chip.cpuid if version >= 3 else None,
            chip_id=chip.chip_id if kind == "vcek" else bytes(64),
            committed_tcb=chip.tcb,
            current_version=chip.firmware,
            committed_version=chip.firmware,
            launch_tcb=chip.tcb,
            launch_mitigations=0 if late else None,
            current_mitigations=0 if late else None,
            signature=b"",
            signed=b"",
        )

    def sign(self, report: SnpReport) -> bytes:
        """``report`` as this processor signs it, 1184 bytes, with the key that it names."""
        return sign_report(encode_signed(report), self.keys[report.signing_key])

    def tee(
        self,
        *,
        launch: Sequence[LaunchEvent] = (),
        version: int = 3,
        kind: SignerName = "vcek",
        vmpl: int = 0,
        debug: bool = False,
        host_data: bytes = bytes(32),
        clock: Callable[[], float] = time.time,
    ) -> SimulatedSnpTee:
        """A guest with ``launch`` in its measurement. ``debug`` makes one that verifiers refuse.

        ``clock`` says which day's list travels with a report. Raises :class:`AttesterError`.
        """
        if version not in VERSIONS or len(host_data) != 32:
            raise AttesterError(
                "a simulated SEV-SNP guest has reports of version 2, 3 or 5, and 32 bytes of host data"
            )
        _log.warning(
            "SIMULATED TEE: launched an SEV-SNP guest under root %s; NOTHING IS PROTECTED", self.root_sha256
        )
        template = replace(
            self.report(bytes(REPORT_DATA_SIZE), version=version, kind=kind),
            policy=STRICT_POLICY | debug << POLICY_BITS["debug"],
            vmpl=vmpl,
            host_data=host_data,
            measurement=snp_measurement(launch),
        )
        return SimulatedSnpTee(self, template, clock=clock)


class SimulatedSnpTee:
    """An :class:`~cloister.attester.Attester` whose reports verify under its vendor's false root, and no other."""

    kind: TeeKind = "snp"

    def __init__(self, platform: SimulatedSnp, template: SnpReport, *, clock: Callable[[], float]) -> None:
        self.measurements = {"measurement": template.measurement}
        """48 bytes."""
        self._platform = platform
        self._template = template
        self._clock = clock

    def quote(self, report_data: bytes) -> RawEvidence:
        """A report over ``report_data`` (exactly 64 bytes), with endorsements. Raises :class:`AttesterError`."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise AttesterError(
                f"report data is {len(report_data)} bytes long, not {REPORT_DATA_SIZE}",
                todo="hash what you want to bind; nothing is padded or truncated here",
            )
        endorsements = self._platform.endorsements(int(self._clock()), self._template.signing_key)
        return RawEvidence(
            tee=self.kind,
            quote=self._platform.sign(replace(self._template, report_data=report_data)),
            endorsements=encode_snp_endorsements(endorsements),
        )


def snp_measurement(launch: Sequence[LaunchEvent]) -> bytes:
    """The launch measurement (48 bytes) of the fixed firmware and ``launch``, as measured direct boot would give."""
    digests = [event_digest(event) for event in launch]
    return labelled_hash(MEASUREMENT_LABEL, FIRMWARE_VERSION.encode(), *digests, algorithm="sha384")


def _window(now: int) -> Window:
    """Whole days, settled for an hour, so that every process shows the same."""
    issued = (now - 3600) // DAY * DAY
    return Window(issued, issued + LIST_DAYS * DAY)
