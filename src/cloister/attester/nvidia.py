"""Attestation reports of the machine's NVIDIA GPUs, through NVML (the package `nvidia-ml-py`).

The whole machine must be in confidential mode, in production, with developer tools off, and every GPU must answer:
one that is left out could not be missed by anybody. Whether the GPUs then accept work (their *ready state*) is
set by the operator after verification, never here. NVSwitches are not asked: NVML does not reach them.
"""

from __future__ import annotations

import hmac
import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from cloister.attester import RawDeviceEvidence
from cloister.errors import AttesterError, CloisterError, EvidenceError
from cloister.evidence.nvidia import (
    DeviceEvidence,
    DeviceReport,
    check_chain_size,
    encode_device_evidence,
    split_pem,
)
from cloister.evidence.spdm import parse_report

NONCE_SIZE: Final = 32
MAX_GPUS: Final = 16
_ENABLED: Final = 1
_PRODUCTION: Final = 2

_EXPLAINED: Final[dict[int, tuple[str, str]]] = {
    1: ("NVML was not initialised", "report this"),
    2: ("it does not take this argument", "update the NVIDIA driver"),
    3: ("this GPU or driver has no confidential computing", "use a Hopper or later GPU in confidential mode"),
    4: ("this user may not", "run as root, or give the service access to /dev/nvidia*"),
    6: ("there is no such GPU", "look at `nvidia-smi`"),
    7: ("the report is larger than NVML's buffer", "update nvidia-ml-py"),
    9: ("the NVIDIA driver is not loaded", "`modprobe nvidia`, and look at the kernel log"),
    10: ("the GPU did not answer in time", "try again; look at `nvidia-smi`"),
    12: ("there is no libnvidia-ml.so.1", "install the NVIDIA driver's libraries, or mount them into the container"),
    13: ("this driver has no attestation", "update the NVIDIA driver (550 or later)"),
    15: ("the GPU is lost", "restart the VM"),
    16: ("the GPU needs a reset", "restart the VM"),
    17: ("the operating system blocked it", "look at the kernel log"),
    18: ("driver and library are of different versions", "restart after the update of the driver"),
    20: ("out of memory", "give the VM more memory"),
    25: ("driver and nvidia-ml-py are of different versions", "update the older one"),
    27: ("the GPU is not ready", "wait for nvidia-persistenced, then try again"),
    28: ("there is no such GPU", "look at `nvidia-smi`"),
    29: ("the GPU is in a wrong state", "look at `nvidia-smi conf-compute -f`"),
    999: ("unknown error", "look at the kernel log"),
}  # fmt: skip


class NvmlAttester:
    """A :class:`~cloister.attester.DeviceAttester` over NVML.

    ``nvml`` is the module ``pynvml`` or what behaves like it; imported at the first use by default.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml

    def collect(self, nonce: bytes) -> RawDeviceEvidence:
        """The report of every GPU over ``nonce`` (32 bytes). Raises :class:`AttesterError`."""
        if len(nonce) != NONCE_SIZE:
            raise AttesterError(f"a device nonce is {NONCE_SIZE} bytes long, not {len(nonce)}")
        with opened(self._nvml) as nvml:
            check_state(nvml)
            with explained("the GPUs cannot be counted"):
                count = int(nvml.nvmlDeviceGetCount())
            if not 1 <= count <= MAX_GPUS:
                raise AttesterError(f"this machine has {count} GPUs, not 1 to {MAX_GPUS}")
            devices = tuple(_collect_one(nvml, number, nonce) for number in range(count))
            return RawDeviceEvidence(evidence=encode_device_evidence(DeviceEvidence(devices=devices)))


def check_state(nvml: Any) -> None:
    """Raise :class:`AttesterError` unless the machine's GPUs are in confidential mode, for production."""
    with explained("the state of confidential computing cannot be read"):
        state = nvml.nvmlSystemGetConfComputeState()
    if state.ccFeature != _ENABLED:
        raise AttesterError(
            "confidential mode of the GPUs is off",
            todo="the host switches it on (gpu-admin-tools --set-cc-mode=on) before the VM starts",
        )
    if state.devToolsMode != 0:
        raise AttesterError(
            "developer tools of the GPUs are on: debuggers could read what they compute",
            todo="the host must set the mode `on`, not `devtools`",
        )
    if state.environment != _PRODUCTION:
        raise AttesterError(
            f"the GPUs' environment is {state.environment}, not production", todo="use production GPUs"
        )


@contextmanager
def opened(nvml: Any = None) -> Iterator[Any]:
    """NVML, initialised and shut down again. Raises :class:`AttesterError`."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            raise AttesterError(
                "the GPUs cannot be asked: nvidia-ml-py is not installed",
                todo="pip install 'cloister[nvidia]'",
            ) from None
    with explained("NVML cannot be opened"):
        nvml.nvmlInit()
    try:
        yield nvml
    finally:
        with suppress(Exception):  # nothing depends on it, and what was collected is already checked
            nvml.nvmlShutdown()


def _collect_one(nvml: Any, number: int, nonce: bytes) -> DeviceReport:
    with explained(f"GPU {number} cannot be attested"):
        device = nvml.nvmlDeviceGetHandleByIndex(number)
        report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
        certificate = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
    spdm = _taken(report.attestationReport, report.attestationReportSize, f"the report of GPU {number}")
    chain = _taken(
        certificate.attestationCertChain,
        certificate.attestationCertChainSize,
        f"the certificate chain of GPU {number}",
    )
    try:
        carried = parse_report(spdm).nonce
        certificates = split_pem(chain)
        check_chain_size(certificates)
    except EvidenceError as error:
        raise AttesterError(
            f"GPU {number} handed out what no verifier reads: {error.what}", todo="update the NVIDIA driver"
        ) from None
    if not hmac.compare_digest(carried, nonce):
        raise AttesterError(f"the report of GPU {number} is over another nonce", todo="try again")
    return DeviceReport(kind="gpu", report=spdm, certificates=certificates)


def _taken(buffer: Any, size: int, what: str) -> bytes:
    """The ``size`` bytes that NVML says it wrote."""
    data = bytes(buffer)
    if not 0 < size <= len(data):
        raise AttesterError(f"{what} is {size} bytes long, not 1 to {len(data)}", todo="update nvidia-ml-py")
    return data[:size]


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Every error of NVML in words."""
    try:
        yield
    except CloisterError:
        raise
    except Exception as error:  # NVMLError has no base of its own but Exception, and ctypes raises several
        value = getattr(error, "value", None)
        what, todo = _EXPLAINED.get(value, (f"{type(error).__name__} {value or ''}".strip(), ""))  # type: ignore[arg-type]
        raise AttesterError(
            f"{doing}: {what}", todo=todo or "look at `nvidia-smi` and the kernel log"
        ) from None
