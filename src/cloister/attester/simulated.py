"""The simulated TEE: a real attester under a false root (docs/spec/simulated-tee.md).

It makes genuine quotes through a generated chain, and the same verifier checks all of it once a policy names
this platform's root by its digest. NOTHING IS PROTECTED: the machine's owner holds every key. It cannot be
turned on by an environment variable, and it says so in the log each time it is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attester import RawEvidence
from cloister.attester.simulation.chain import DAY, Chain, Window, draw_key, issue_chain
from cloister.attester.simulation.collateral import issue_collateral
from cloister.attester.simulation.hardware import (
    Entropy,
    Hardware,
    draw_hardware,
    enclave_measurements,
    td_measurements,
)
from cloister.attester.simulation.quote import Layout, QuotingEnclave, report_body
from cloister.attester.simulation.storage import read_platform, write_platform
from cloister.errors import AttesterError
from cloister.evidence.bundle import TeeKind
from cloister.evidence.eventlog import LaunchEvent, encode_event_log

COLLATERAL_DAYS: Final = 30
_SETTLED: Final = 3600
"""Seconds into a day before that day's collateral is issued, so that a clock that runs late accepts it."""

_log = logging.getLogger("cloister.attester")


class SimulatedPlatform:
    """One simulated processor with its own vendor root. Several processes may share its directory."""

    def __init__(self, chain: Chain, hardware: Hardware, attestation_key: ec.EllipticCurvePrivateKey) -> None:
        self.chain = chain
        self.hardware = hardware
        self.root_sha256 = hashlib.sha256(chain.root.der).hexdigest()
        """SHA-256 (hexadecimal) of the DER root: what a policy has to name."""
        self._attestation_key = attestation_key
        self._issued: dict[TeeKind, tuple[Window, bytes]] = {}

    def __repr__(self) -> str:
        return f"SimulatedPlatform(root_sha256={self.root_sha256!r})"

    @classmethod
    def generate(cls, *, now: int, entropy: Entropy = os.urandom) -> SimulatedPlatform:
        """A new platform with a root of its own, in memory only. ``now`` in Unix seconds."""
        hardware = draw_hardware(entropy)
        chain = issue_chain(entropy, hardware, collateral_window(now).issued)
        return cls(chain, hardware, draw_key(entropy))

    @classmethod
    def create(cls, directory: Path, *, now: int, entropy: Entropy = os.urandom) -> SimulatedPlatform:
        """A new platform, stored as ``directory``.

        Raises :class:`~cloister.errors.UsageError` if that is taken or cannot be written.
        """
        platform = cls.generate(now=now, entropy=entropy)
        write_platform(directory, platform.chain, platform.hardware, platform._attestation_key, now)
        _log.warning(
            "SIMULATED TEE: made a platform at %s with root %s; nothing it vouches for is protected",
            directory,
            platform.root_sha256,
        )
        return platform

    @classmethod
    def load(cls, directory: Path) -> SimulatedPlatform:
        """The platform stored at ``directory``.

        Raises :class:`~cloister.errors.UsageError` if there is none, :class:`AttesterError` if it is damaged.
        """
        platform = cls(*read_platform(directory))
        _log.warning("SIMULATED TEE: loaded the platform at %s; nothing is protected", directory)
        return platform

    @property
    def firmware(self) -> Mapping[str, bytes]:
        """The measurements that do not depend on a launch, by name; equal on every simulated platform."""
        fixed = {**td_measurements(()), **enclave_measurements(())}
        return {name: value for name, value in fixed.items() if name not in ("rtmr3", "mrenclave")}

    def collateral(self, now: int, kind: TeeKind = "tdx") -> bytes:
        """The vendor's collateral as of ``now`` (Unix seconds), in dcap-qvl's JSON form.

        It is issued once a day for thirty days; every process that shares the platform issues the same bytes.
        Raises :class:`AttesterError` outside the life of the platform's certificates.
        """
        window = collateral_window(now)
        issued = self._issued.get(kind)
        if issued is None or issued[0] != window:
            self._check_life(now)
            text = issue_collateral(self.chain, kind, self.hardware, window)
            issued = self._issued[kind] = (window, text.encode())
        return issued[1]

    def tee(
        self,
        kind: TeeKind = "tdx",
        *,
        launch: Sequence[LaunchEvent] = (),
        debug: bool = False,
        layout: Layout | None = None,
        clock: Callable[[], float] = time.time,
    ) -> SimulatedTee:
        """A workload's TEE, launched with ``launch`` measured.

        ``debug`` makes a TEE that its host may read, which verifiers refuse. ``layout`` chooses the quote's form
        (SGX v3, TDX v4 by default). ``clock`` says which day's collateral travels with a quote.
        """
        form = layout or (Layout.SGX_V3 if kind == "sgx" else Layout.TDX_V4)
        if form.kind != kind:
            raise AttesterError(f"a {kind.upper()} TEE has no quotes of the form {form.name}")
        _log.warning(
            "SIMULATED TEE: launched a %s workload under root %s; NOTHING IS PROTECTED",
            kind.upper(),
            self.root_sha256,
        )
        enclave = QuotingEnclave(form, self.chain, self.hardware, self._attestation_key)
        return SimulatedTee(self, form, enclave, tuple(launch), debug=debug, clock=clock)

    def _check_life(self, now: int) -> None:
        for signer in (self.chain.pck, self.chain.tcb_signing):
            certificate = signer.certificate
            start = certificate.not_valid_before_utc.timestamp()
            if not start <= now < certificate.not_valid_after_utc.timestamp():
                raise AttesterError(
                    f"the simulated platform's certificates do not hold at {now} (they begin at {int(start)})",
                    todo="set the clock, or make a new platform",
                )


class SimulatedTee:
    """An :class:`~cloister.attester.Attester` whose quotes verify under the platform's false root, and no other."""

    def __init__(
        self,
        platform: SimulatedPlatform,
        layout: Layout,
        enclave: QuotingEnclave,
        launch: tuple[LaunchEvent, ...],
        *,
        debug: bool,
        clock: Callable[[], float],
    ) -> None:
        self.kind: TeeKind = layout.kind
        self.launch = launch
        self.measurements: Mapping[str, bytes] = (
            enclave_measurements(launch) if layout.kind == "sgx" else td_measurements(launch)
        )
        """``mrtd``, ``rtmr0`` … ``rtmr3`` (48 bytes) or ``mrenclave``, ``mrsigner`` (32 bytes)."""
        self._platform = platform
        self._layout = layout
        self._enclave = enclave
        self._debug = debug
        self._clock = clock
        # An enclave has no register to replay into: MRENCLAVE covers its launch already.
        self._event_log = encode_event_log(launch) if launch and layout.kind == "tdx" else b""

    def quote(self, report_data: bytes) -> RawEvidence:
        """A quote over ``report_data`` (exactly 64 bytes), with event log and collateral.

        Raises :class:`AttesterError`.
        """
        body = report_body(
            self._layout,
            self._platform.hardware,
            self.measurements,
            debug=self._debug,
            report_data=report_data,
        )
        return RawEvidence(
            tee=self.kind,
            quote=self._enclave.quote(body),
            event_log=self._event_log,
            endorsements=self._platform.collateral(int(self._clock()), self.kind),
        )


def collateral_window(now: int) -> Window:
    """The window of the collateral in force at ``now``: whole days, so that all processes issue the same."""
    issued = (now - _SETTLED) // DAY * DAY
    return Window(issued, issued + COLLATERAL_DAYS * DAY)
