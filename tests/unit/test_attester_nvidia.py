"""GPU evidence through NVML: its true structures, captured reports, and each refusal in its own words.

No GPU is here: what answers is an object with NVML's functions, structures and errors, filled with what real H100s
answered. What is collected from it must be what NVIDIA's own tools captured.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
from typing import Any

import pynvml
import pytest

from cloister.attester.nvidia import NvmlAttester, explained
from cloister.errors import AttesterError
from cloister.evidence.nvidia import encode_device_evidence, parse_device_evidence, parse_sdk_evidence
from shared_data import vectors

STATE = {
    "environment": pynvml.NVML_CC_SYSTEM_ENVIRONMENT_PROD,
    "ccFeature": pynvml.NVML_CC_SYSTEM_FEATURE_ENABLED,
    "devToolsMode": pynvml.NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF,
}


def captured(name: str = "multi_gpu_hopper.json") -> list[dict[str, str]]:
    return json.loads(vectors(f"nvidia-attestation-sdk/{name}").read_text())


def nonce_of(devices: list[dict[str, str]]) -> bytes:
    return bytes.fromhex(devices[0]["nonce"])


class Nvml:
    """NVML over captured GPUs. ``fails`` names a function and the error code that it returns."""

    NVMLError = pynvml.NVMLError

    def __init__(
        self, devices: list[dict[str, str]], fails: dict[str, int] | None = None, **state: int
    ) -> None:
        self._devices = devices
        self._fails = fails or {}
        self._state = {**STATE, **state}
        self.open = 0
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self._fails:
            raise pynvml.NVMLError(self._fails[name])

    def nvmlInit(self) -> None:  # noqa: N802 -- NVML's own name, and all below
        self._called("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetConfComputeState(self) -> Any:  # noqa: N802
        self._called("nvmlSystemGetConfComputeState")
        return pynvml.c_nvmlConfComputeSystemState_t(**self._state)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._called("nvmlDeviceGetCount")
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._called("nvmlDeviceGetHandleByIndex")
        return index

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device: int, nonce: bytes) -> Any:  # noqa: N802
        self._called("nvmlDeviceGetConfComputeGpuAttestationReport")
        report = base64.b64decode(self._devices[device]["evidence"])
        answer = pynvml.c_nvmlConfComputeGpuAttestationReport_t()
        answer.attestationReportSize = len(report)
        ctypes.memmove(answer.attestationReport, report, len(report))
        return answer

    def nvmlDeviceGetConfComputeGpuCertificate(self, device: int) -> Any:  # noqa: N802
        self._called("nvmlDeviceGetConfComputeGpuCertificate")
        chain = base64.b64decode(self._devices[device]["certificate"])
        answer = pynvml.c_nvmlConfComputeGpuCertificate_t()
        answer.attestationCertChainSize = len(chain)
        ctypes.memmove(answer.attestationCertChain, chain, len(chain))
        return answer


@pytest.mark.parametrize("name", ["hopper_evidence.json", "multi_gpu_hopper.json"])
def test_what_is_collected_is_what_nvidias_tools_captured(name: str) -> None:
    devices = captured(name)
    nvml = Nvml(devices)
    collected = NvmlAttester(nvml).collect(nonce_of(devices))
    raw = vectors(f"nvidia-attestation-sdk/{name}").read_bytes()
    assert collected.evidence == encode_device_evidence(parse_sdk_evidence(raw))
    assert len(parse_device_evidence(collected.evidence).devices) == len(devices)
    assert collected.endorsements == b""
    assert nvml.open == 0


def test_the_ready_state_is_never_touched() -> None:
    devices = captured()
    nvml = Nvml(devices)
    NvmlAttester(nvml).collect(nonce_of(devices))
    assert not [name for name in nvml.calls if "Set" in name]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"ccFeature": 0}, "confidential mode of the GPUs is off"),
        ({"devToolsMode": 1}, "developer tools of the GPUs are on"),
        ({"environment": 1}, "not production"),
        ({"environment": 0}, "not production"),
        ({"ccFeature": 2}, "confidential mode of the GPUs is off"),
    ],
)
def test_gpus_that_are_not_confidential_are_refused_before_a_report(
    state: dict[str, int], words: str
) -> None:
    devices = captured()
    nvml = Nvml(devices, **state)
    with pytest.raises(AttesterError, match=words):
        NvmlAttester(nvml).collect(nonce_of(devices))
    assert "nvmlDeviceGetConfComputeGpuAttestationReport" not in nvml.calls
    assert nvml.open == 0


FUNCTIONS = {
    "nvmlInit": "NVML cannot be opened",
    "nvmlSystemGetConfComputeState": "state of confidential computing cannot be read",
    "nvmlDeviceGetCount": "cannot be counted",
    "nvmlDeviceGetHandleByIndex": "GPU 0 cannot be attested",
    "nvmlDeviceGetConfComputeGpuAttestationReport": "GPU 0 cannot be attested",
    "nvmlDeviceGetConfComputeGpuCertificate": "GPU 0 cannot be attested",
}
CODES = sorted(value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_"))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_error_of_nvml_is_ours_and_says_what_to_do(function: str, code: int) -> None:
    devices = captured()
    nvml = Nvml(devices, {function: code})
    with pytest.raises(AttesterError, match=FUNCTIONS[function]) as refused:
        NvmlAttester(nvml).collect(nonce_of(devices))
    assert refused.value.todo
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("code", "words", "todo"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "libnvidia-ml.so.1", "install the NVIDIA driver"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "driver is not loaded", "modprobe nvidia"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "this user may not", "/dev/nvidia"),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "no confidential computing", "Hopper"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "no attestation", "550"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "different versions", "restart"),
    ],
)
def test_what_people_meet_most_has_its_own_words(code: int, words: str, todo: str) -> None:
    with pytest.raises(AttesterError, match=words) as refused:
        NvmlAttester(Nvml([], {"nvmlInit": code})).collect(bytes(32))
    assert todo in refused.value.todo


def test_the_real_nvml_without_a_driver_is_one_line() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(AttesterError, match=r"NVML cannot be opened: there is no libnvidia-ml\.so\.1"):
        NvmlAttester().collect(bytes(32))


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(AttesterError, match="nvidia-ml-py is not installed") as refused:
        NvmlAttester().collect(bytes(32))
    assert "cloister[nvidia]" in refused.value.todo


@pytest.mark.parametrize("count", [0, 17])
def test_no_gpus_or_too_many_are_refused(count: int) -> None:
    with pytest.raises(AttesterError, match=f"this machine has {count} GPUs"):
        NvmlAttester(Nvml(captured("hopper_evidence.json") * count)).collect(bytes(32))


def test_a_report_over_another_nonce_is_refused() -> None:
    with pytest.raises(AttesterError, match="over another nonce"):
        NvmlAttester(Nvml(captured())).collect(bytes(32))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nonce_of_another_length_never_reaches_a_gpu(size: int) -> None:
    nvml = Nvml(captured())
    with pytest.raises(AttesterError, match="32 bytes long"):
        NvmlAttester(nvml).collect(bytes(size))
    assert nvml.calls == []


@pytest.mark.parametrize("size", [0, 0x2001])
def test_a_size_outside_its_buffer_is_refused(size: int) -> None:
    class Lying(Nvml):
        def nvmlDeviceGetConfComputeGpuAttestationReport(self, device: int, nonce: bytes) -> Any:  # noqa: N802
            answer = super().nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
            answer.attestationReportSize = size
            return answer

    devices = captured()
    with pytest.raises(AttesterError, match=f"is {size} bytes long"):
        NvmlAttester(Lying(devices)).collect(nonce_of(devices))


@pytest.mark.parametrize("field", ["evidence", "certificate"])
def test_what_no_verifier_reads_is_refused(field: str) -> None:
    devices = captured("hopper_evidence.json")
    nonce = nonce_of(devices)
    devices[0][field] = base64.b64encode(b"nothing that anybody reads").decode()
    with pytest.raises(AttesterError, match="no verifier reads"):
        NvmlAttester(Nvml(devices)).collect(nonce)


def test_an_exception_of_another_library_is_ours_too() -> None:
    with pytest.raises(AttesterError, match="it broke: ArgumentError"), explained("it broke"):
        raise ctypes.ArgumentError("something")
