"""Are these the GPUs and switches that the policy names? Check 16, after the verifier.

Judged are the exact counts, that no device stands there twice, architecture, mode and versions, that GPUs and
switches are wired to each other and to nobody else, and that no measurement differs from its reference value. The
last is also the only sign of confidential mode and of developer tools: NVIDIA signs no field for either.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloister.appraisal.reference_nvidia import NvidiaReference
from cloister.appraisal.values import Values, one_of
from cloister.errors import AppraisalRefused
from cloister.verifier.claims import Claims, DeviceClaims
from cloister.verifier.trail import Trail

_SHOWN = 8
"""Differing measurements that an error names."""


def judge_nvidia(claims: Claims, reference: NvidiaReference, trail: Trail) -> None:
    """16. Count, uniqueness, versions, comparison. Raises :class:`~cloister.errors.AppraisalRefused`."""
    gpus = [device for device in claims.devices if device.kind == "gpu"]
    switches = [device for device in claims.devices if device.kind == "nvswitch"]
    with trail.check(16, name="device count") as found:
        _judge_count("GPU", len(gpus), reference.gpus)
        _judge_count("NVSwitch", len(switches), reference.nvswitches)
        if len({device.identity for device in claims.devices}) != len(claims.devices):
            raise AppraisalRefused("one device is shown twice", todo="each device is shown once")
        found(f"{len(gpus)} GPUs, {len(switches)} switches")
    with trail.check(16, name="device versions") as found:
        for gpu in gpus:
            _judge_gpu(gpu, reference)
        for switch in switches:
            _judge_listed("switch_bios_versions", switch.vbios_version, reference.switch_bios_versions)
        found(", ".join(sorted({_versions(device) for device in claims.devices})))
    with trail.check(16, name="device wiring") as found:
        found(_judge_wiring(gpus, switches))
    with trail.check(16, name="device state") as found:
        for number, device in enumerate(claims.devices):
            _judge_state(number, device, reference)
        if reference.rims == "required":
            found("confidential mode and no developer tools, as far as measurements show")
        else:
            found("not asked: confidential mode and developer tools are unknown")


def _judge_count(name: str, shown: int, wanted: int) -> None:
    if shown != wanted:
        raise AppraisalRefused(
            f"{shown} {name} reports, and the policy wants exactly {wanted}",
            todo="attest all devices of the workload, or another machine was meant",
        )


def _judge_gpu(gpu: DeviceClaims, reference: NvidiaReference) -> None:
    one_of("architecture", gpu.architecture, reference.architectures)
    one_of("mode", gpu.details.get("mode", ""), reference.modes)
    if reference.minimum_driver_version is None:
        _judge_listed("driver_versions", gpu.driver_version, reference.driver_versions)
    else:
        _judge_minimum("driver version", gpu.driver_version, reference.minimum_driver_version, base=10)
    if reference.minimum_vbios_version is None:
        _judge_listed("vbios_versions", gpu.vbios_version, reference.vbios_versions)
    else:
        _judge_minimum("VBIOS version", gpu.vbios_version, reference.minimum_vbios_version, base=16)


def _judge_listed(name: str, version: str, accepted: Values | None) -> None:
    if accepted is None:
        raise AppraisalRefused(f"the policy says nothing of {name}")
    if accepted != "any":
        one_of(name, version, accepted)


def _judge_minimum(name: str, version: str, minimum: str, *, base: int) -> None:
    parts = _numbers(version, base)
    if parts is None or parts < (_numbers(minimum, base) or ()):
        raise AppraisalRefused(
            f"{name} {version[:40]} is below {minimum}", todo="update the machine, or lower the minimum"
        )


def _numbers(version: str, base: int) -> tuple[int, ...] | None:
    try:
        return tuple(int(part, base) for part in version.split("."))
    except ValueError:
        return None


def _judge_wiring(gpus: Sequence[DeviceClaims], switches: Sequence[DeviceClaims]) -> str:
    """Who a device names as its neighbour is shown too, so that nobody's else switch stands between."""
    for devices, others, what in ((gpus, switches, "switch"), (switches, gpus, "GPU")):
        shown = {other.details.get("pdi", "") for other in others}
        for device in devices:
            named = set(device.details.get("neighbours", "").split())
            strangers = sorted(named - shown)
            if strangers:
                raise AppraisalRefused(
                    f"a {device.kind} is wired to {what} {strangers[0]}, which is not shown",
                    todo="attest every GPU and switch of the machine together",
                )
            if switches and named != shown:
                raise AppraisalRefused(
                    f"a {device.kind} is not wired to every {what} that is shown",
                    todo="the devices are of different machines",
                )
    return f"{len(gpus)} GPUs and {len(switches)} switches name each other" if switches else "no switches"


def _judge_state(number: int, device: DeviceClaims, reference: NvidiaReference) -> None:
    if device.differing:
        more = len(device.differing) - _SHOWN
        shown = ", ".join(device.differing[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        raise AppraisalRefused(
            f"measurements of {device.kind} {number} differ from NVIDIA's reference values: {shown}",
            todo="firmware or driver was changed, or the device is not in confidential mode or in developer mode",
        )
    wanted = 2 if device.kind == "gpu" else 1
    if reference.rims == "required" and (len(device.rims) < wanted or not device.matched):
        raise AppraisalRefused(f"measurements of {device.kind} {number} were not compared")
    if reference.revocation == "required" and device.revocation != "checked":
        raise AppraisalRefused(f"whether {device.kind} {number} was revoked is not known")


def _versions(device: DeviceClaims) -> str:
    driver = f"driver {device.driver_version}, " if device.driver_version else ""
    return f"{device.architecture}: {driver}VBIOS {device.vbios_version}"


def observed_nvidia(claims: Claims) -> dict[str, object]:
    """What was measured, as fields of ``[nvidia]``, for a draft; ``rims`` and ``revocation`` stay to be decided."""
    gpus = [device for device in claims.devices if device.kind == "gpu"]
    switches = [device for device in claims.devices if device.kind == "nvswitch"]
    observed: dict[str, object] = {
        "gpus": len(gpus),
        "nvswitches": len(switches),
        "architectures": sorted({gpu.architecture for gpu in gpus}),
        "modes": sorted({gpu.details.get("mode", "cc") for gpu in gpus}),
        "driver_versions": sorted({gpu.driver_version for gpu in gpus}),
        "vbios_versions": sorted({gpu.vbios_version for gpu in gpus}),
    }
    if switches:
        observed["switch_bios_versions"] = sorted({switch.vbios_version for switch in switches})
    return observed
