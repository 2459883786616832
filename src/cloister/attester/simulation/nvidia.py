"""Simulated GPUs and switches: genuine SPDM reports under a false device root, manifests under a false RIM root.

The same verifier checks all of it once a policy names both roots by their digests, beside a simulated CPU. NOTHING IS
PROTECTED: the machine's owner holds every key. No environment variable turns it on, and it says so in the log.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cloister.attester import RawDeviceEvidence
from cloister.attester.simulation.chain import DAY, Signer, Window
from cloister.attester.simulation.hardware import Entropy
from cloister.attester.simulation.nvidia_chain import (
    DeviceAuthority,
    RimAuthority,
    answer_ocsp,
    chain_ders,
    issue,
    issue_device,
    issue_device_authority,
    issue_report_key,
    issue_responder,
    issue_rim_authority,
    sign_report,
)
from cloister.attester.simulation.nvidia_report import (
    encode_report,
    firmware_digest,
    gpu_fields,
    measurements,
    rim_documents,
    switch_fields,
)
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.errors import AttesterError
from cloister.evidence.nvidia import (
    MAX_DEVICES,
    DeviceEvidence,
    DeviceKind,
    DeviceReport,
    encode_device_evidence,
)

NONCE_SIZE: Final = 32
OCSP_DAYS: Final = 7
_SETTLED: Final = 3600
"""Seconds into a day before that day's answers are issued, as simulated collateral does."""

_log = logging.getLogger("cloister.attester")


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """One device with its keys and what it measures."""

    kind: DeviceKind
    pdi: bytes
    """8 bytes."""
    chain: tuple[Signer, ...]
    """Report key, device, provisioner, family, root."""
    values: Mapping[int, bytes]
    fields: Mapping[int, bytes]

    def report(self, nonce: bytes, *, response_nonce: bytes) -> DeviceReport:
        """The signed report over ``nonce`` (32 bytes)."""
        signed = encode_report(nonce, self.values, self.fields, response_nonce=response_nonce)
        report = signed + sign_report(self.chain[0].key, signed)
        return DeviceReport(kind=self.kind, report=report, certificates=chain_ders(self.chain))


class SimulatedGpus:
    """A :class:`~cloister.attester.DeviceAttester` for the devices of one simulated machine, in memory only."""

    def __init__(
        self,
        devices: Sequence[SimulatedDevice],
        rim_authority: RimAuthority,
        *,
        responder: Signer,
        entropy: Entropy,
        clock: Callable[[], float],
    ) -> None:
        self.devices = tuple(devices)
        self.rim_authority = rim_authority
        self.device_root_sha256 = hashlib.sha256(self.devices[0].chain[-1].der).hexdigest()
        """SHA-256 (hexadecimal) of the DER root: a policy's ``roots.simulated_device``."""
        self.rim_root_sha256 = hashlib.sha256(rim_authority.root.der).hexdigest()
        """The same for ``roots.simulated_rim``."""
        self.rims = rim_documents(rim_authority, switches=any(one.kind == "nvswitch" for one in devices))
        """Signed reference manifests."""
        self._responder = responder
        self._entropy = entropy
        self._clock = clock
        self._answers: tuple[Window, tuple[bytes, ...]] | None = None
        _log.warning(
            "SIMULATED GPUS: %d devices under root %s; NOTHING IS PROTECTED",
            len(self.devices),
            self.device_root_sha256,
        )

    def __repr__(self) -> str:
        return f"SimulatedGpus(device_root_sha256={self.device_root_sha256!r})"

    @classmethod
    def generate(
        cls,
        *,
        now: int,
        count: int = 8,
        switches: int = 0,
        entropy: Entropy = os.urandom,
        clock: Callable[[], float] = time.time,
    ) -> SimulatedGpus:
        """``count`` GPUs (in protected PCIe mode with ``switches``), under roots of their own.

        ``now`` in Unix seconds; ``clock`` says which day's OCSP answers travel with a report.
        Raises :class:`~cloister.errors.AttesterError` for more or fewer devices than evidence may hold.
        """
        if count < 1 or switches < 0 or count + switches > MAX_DEVICES:
            raise AttesterError(f"{count} GPUs and {switches} switches are not 1 to {MAX_DEVICES} devices")
        issued = _window(now).issued
        authority = issue_device_authority(entropy, issued)
        pdis = [entropy(8) for _ in range(count)]
        switch_pdis = [entropy(8) for _ in range(switches)]
        devices = [make_gpu(entropy, authority, issued, pdi=pdi, switch_pdis=switch_pdis) for pdi in pdis]
        if switches:
            provisioner = issue(entropy, "LS_10 Provisioner ICA 1", authority.family, issued)
            maker = DeviceAuthority(authority.root, authority.family, provisioner)
            devices += [make_switch(entropy, maker, issued, pdi=pdi, gpu_pdis=pdis) for pdi in switch_pdis]
        return cls(
            devices,
            issue_rim_authority(entropy, issued),
            responder=issue_responder(entropy, authority.provisioner, issued),
            entropy=entropy,
            clock=clock,
        )

    def collect(self, nonce: bytes) -> RawDeviceEvidence:
        """Every device's report over ``nonce`` (exactly 32 bytes). Raises :class:`AttesterError`."""
        if len(nonce) != NONCE_SIZE:
            raise AttesterError(f"a device nonce is {NONCE_SIZE} bytes, not {len(nonce)}")
        reports = tuple(device.report(nonce, response_nonce=self._entropy(32)) for device in self.devices)
        return RawDeviceEvidence(
            evidence=encode_device_evidence(DeviceEvidence(devices=reports)),
            endorsements=self.endorsements(int(self._clock())),
        )

    def endorsements(self, now: int) -> bytes:
        """Manifests and the OCSP answers of the day, as of ``now`` (Unix seconds)."""
        window = _window(now)
        if self._answers is None or self._answers[0] != window:
            self._answers = (window, self.ocsp(window))
        return encode_nvidia_endorsements(NvidiaEndorsements(rims=self.rims, ocsp=self._answers[1]))

    def ocsp(self, window: Window) -> tuple[bytes, ...]:
        """A good answer for every certificate that is asked about."""
        chains = [device.chain[1:] for device in self.devices] + [self.rim_authority.chain]
        pairs = {pair[0].der: pair for chain in chains for pair in pairwise(chain)}
        answered_by = self._responder.certificate.issuer
        return tuple(
            answer_ocsp(
                subject.certificate,
                issuer,
                window,
                # The provisioner answers through a responder, the others for themselves: both ways are rehearsed.
                responder=self._responder if issuer.certificate.subject == answered_by else None,
            )
            for subject, issuer in pairs.values()
        )


def make_gpu(
    entropy: Entropy,
    authority: DeviceAuthority,
    issued: int,
    *,
    pdi: bytes,
    switch_pdis: Sequence[bytes] = (),
) -> SimulatedDevice:
    """A new GPU under ``authority``; wired to ``switch_pdis``, it is in protected PCIe mode."""
    fwid = firmware_digest("GH100")
    device = issue_device(entropy, authority.provisioner, issued, chip="GH100", pdi=pdi)
    leaf = issue_report_key(entropy, device, issued, chip="GH100", fwid=fwid)
    fields = gpu_fields(fwid=fwid, switch_pdis=switch_pdis, protected_pcie=bool(switch_pdis))
    chain = (leaf, device, authority.provisioner, authority.family, authority.root)
    return SimulatedDevice("gpu", pdi, chain, measurements("GH100"), fields)


def make_switch(
    entropy: Entropy, authority: DeviceAuthority, issued: int, *, pdi: bytes, gpu_pdis: Sequence[bytes]
) -> SimulatedDevice:
    """A new switch under ``authority``, wired to ``gpu_pdis``."""
    fwid = firmware_digest("LS_10")
    device = issue_device(entropy, authority.provisioner, issued, chip="LS_10", pdi=pdi)
    leaf = issue_report_key(entropy, device, issued, chip="LS_10", fwid=fwid)
    fields = switch_fields(pdi=pdi, gpu_pdis=gpu_pdis)
    chain = (leaf, device, authority.provisioner, authority.family, authority.root)
    return SimulatedDevice("nvswitch", pdi, chain, measurements("LS_10"), fields)


def _window(now: int) -> Window:
    issued = (now - _SETTLED) // DAY * DAY
    return Window(issued, issued + OCSP_DAYS * DAY)
