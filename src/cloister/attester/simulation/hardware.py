"""What the simulated processor is: its identity, its security versions, and the firmware it always measures.

The numbers are shaped like Intel's and are nobody's: the FMSPC, the signers and the firmware measurements are
derived from labels, so that no value here can be mistaken for one of real hardware (docs/spec/simulated-tee.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from cloister.encoding import Record, labelled_hash
from cloister.errors import AttesterError
from cloister.evidence.eventlog import LaunchEvent, event_digest, replay

Entropy = Callable[[int], bytes]
"""Gives that many random bytes: ``os.urandom``, or a counted source in test vectors."""

FIRMWARE_VERSION: Final = "1"
"""Version of the simulated firmware and image. It is not the version of this package: a release that does not
change the firmware leaves every pinned measurement as it was."""

FIRMWARE_LABEL: Final = "cloister/simulated-firmware/v1"
ENCLAVE_LABEL: Final = "cloister/simulated-enclave/v1"

FMSPC: Final = bytes.fromhex("c1015e000000")
PCE_ID: Final = bytes(2)
PCE_SVN: Final = 11
CPU_SVN: Final = bytes([7, 7, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0])
"""Sixteen TCB components. The first two are the microcode, by which the TCB levels differ (collateral.py)."""
TEE_TCB_SVN: Final = bytes([3, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
"""TDX: module ISVSVN 3, module version 1 (identity ``TDX_01``), late microcode 2."""
QE_SVN: Final = 4

ISV_PROD_ID: Final = 1
ISV_SVN: Final = 1


def firmware(name: str, algorithm: str) -> bytes:
    """A measurement of the simulated firmware by name, such as ``mrtd``; stable for one firmware version."""
    return labelled_hash(FIRMWARE_LABEL, FIRMWARE_VERSION.encode(), name.encode(), algorithm=algorithm)


MR_SEAM: Final = firmware("mrseam", "sha384")
MRTD: Final = firmware("mrtd", "sha384")
RTMR0: Final = firmware("rtmr0", "sha384")
RTMR1: Final = firmware("rtmr1", "sha384")
RTMR2: Final = firmware("rtmr2", "sha384")
MRSIGNER: Final = firmware("mrsigner", "sha256")
QE_MRENCLAVE: Final = firmware("qe-mrenclave", "sha256")
QE_MRSIGNER: Final = firmware("qe-mrsigner", "sha256")


class Hardware(Record, frozen=True, kw_only=True):
    """One simulated processor, as its PCK certificate and its quoting enclave state it."""

    ppid: bytes
    """Platform provisioning id, 16 bytes."""
    platform_instance_id: bytes
    """16 bytes."""
    qe_id: bytes
    """Identity of the quoting enclave in the quote header, 16 bytes."""
    fmspc: bytes = FMSPC
    """Family, model, stepping, platform, custom SKU, 6 bytes."""
    cpu_svn: bytes = CPU_SVN
    """16 bytes, one for each SGX TCB component."""
    pce_svn: int = PCE_SVN
    pce_id: bytes = PCE_ID
    """2 bytes."""
    tee_tcb_svn: bytes = TEE_TCB_SVN
    """16 bytes: module ISVSVN, module version, late microcode, … as they were when the TD was launched."""
    current_tee_tcb_svn: bytes = TEE_TCB_SVN
    """The same of the module that runs now: a module can be renewed under a running TD (TD 1.5 reports it)."""
    qe_svn: int = QE_SVN
    dynamic_platform: bool = False
    """Packages can be added later, as in a multi-socket server."""
    cached_keys: bool = False
    """The vendor's registration service keeps the platform's root keys, likewise."""
    smt_enabled: bool = False
    """Two hardware threads share a core."""


SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "ppid": 16,
        "platform_instance_id": 16,
        "qe_id": 16,
        "fmspc": 6,
        "cpu_svn": 16,
        "pce_id": 2,
        "tee_tcb_svn": 16,
        "current_tee_tcb_svn": 16,
    }
)


def draw_hardware(entropy: Entropy) -> Hardware:
    """A new processor: its three identifiers are random, its versions the newest."""
    return Hardware(ppid=entropy(16), platform_instance_id=entropy(16), qe_id=entropy(16))


def check_hardware(hardware: Hardware) -> None:
    """Raise :class:`AttesterError` unless every field has the size that the vendor's structures give it."""
    for name, size in SIZES.items():
        value: bytes = getattr(hardware, name)
        if len(value) != size:
            raise AttesterError(f"simulated hardware: {name} is {len(value)} bytes long, not {size}")
    for name in ("pce_svn", "qe_svn"):
        if not 0 <= getattr(hardware, name) < 1 << 15:
            raise AttesterError(f"simulated hardware: {name} is out of its range")


def td_measurements(launch: Sequence[LaunchEvent]) -> Mapping[str, bytes]:
    """MRTD and RTMR0–2 of the fixed firmware, RTMR3 extended with ``launch`` (48 bytes each)."""
    return MappingProxyType(
        {"mrtd": MRTD, "rtmr0": RTMR0, "rtmr1": RTMR1, "rtmr2": RTMR2, "rtmr3": replay(launch)}
    )


def enclave_measurements(launch: Sequence[LaunchEvent]) -> Mapping[str, bytes]:
    """MRENCLAVE over ``launch``, as a manifest with those digests would give, and the fixed MRSIGNER (32 bytes)."""
    digests = [event_digest(event) for event in launch]
    mrenclave = labelled_hash(ENCLAVE_LABEL, FIRMWARE_VERSION.encode(), *digests)
    return MappingProxyType({"mrenclave": mrenclave, "mrsigner": MRSIGNER})
