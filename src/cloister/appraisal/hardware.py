"""``[hardware]`` of a policy: the very machines that may run the workload.

Whoever extracted one machine's key can quote for any machine (TEE.fail, Battering RAM): a list of the machines
that an operator is known to guard keeps such quotes out, where roots, TCB and measurements cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloister.appraisal.values import check_some
from cloister.encoding import Record, from_hex
from cloister.errors import AppraisalRefused, FormatError
from cloister.evidence.bundle import TeeKind
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail

_SIZES = {"ppid": 16, "pck_sha256": 32, "chip_id": 64, "ek_sha256": 32}
_SHOWN: Final[Mapping[TeeKind, tuple[str, ...]]] = {
    "tdx": ("ppid", "pck_sha256"),
    "sgx": ("ppid", "pck_sha256"),
    "snp": ("chip_id",),
    "az-snp-vtpm": ("chip_id", "ek_sha256"),
    "tpm": ("ek_sha256",),
}
"""By what each kind of evidence can name its machine. What the host may hide counts as not listed."""


class Hardware(Record, frozen=True, kw_only=True):
    """``[hardware]``: each list that is given must hold the machine's own; hexadecimal, lower case."""

    ppid: tuple[str, ...] | None = None
    """Intel: platform provisioning ids, 16 bytes."""
    pck_sha256: tuple[str, ...] | None = None
    """Intel: SHA-256 of PCK certificates' SubjectPublicKeyInfo."""
    chip_id: tuple[str, ...] | None = None
    """AMD: chip ids, 64 bytes."""
    ek_sha256: tuple[str, ...] | None = None
    """TPM: SHA-256 of endorsement keys' SubjectPublicKeyInfo."""
    device: tuple[str, ...] | None = None
    """GPUs and switches: SHA-256 of device certificates' SubjectPublicKeyInfo."""


def check_hardware(hardware: Hardware) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    lists = {name: getattr(hardware, name) for name in (*_SIZES, "device")}
    if not any(values is not None for values in lists.values()):
        raise FormatError("hardware lists nothing", todo="leave the table out, or name the machines")
    for name, values in lists.items():
        if values is not None:
            check_some(f"hardware.{name}", values)
            for value in values:
                from_hex(value, _SIZES.get(name, 32), what=f"hardware.{name}")


def judge_hardware(claims: Claims, hardware: Hardware | None, trail: Trail) -> None:
    """11. The machine is one of those listed, by every list that speaks of its kind.

    Raises :class:`~cloister.errors.AppraisalRefused`; also when no list speaks of this kind of machine.
    """
    if hardware is None:
        return
    with trail.check(11, name="hardware allow-list") as found:
        asked = [name for name in _SHOWN[claims.tee] if getattr(hardware, name) is not None]
        if not asked and any(getattr(hardware, name) is not None for name in _SIZES):
            raise AppraisalRefused(
                f"the policy lists machines, but none by what {claims.tee} evidence shows",
                todo=f"list it by {' or '.join(_SHOWN[claims.tee])}",
            )
        for name in asked:
            shown = claims.hardware.get(name)
            if shown is None:
                raise AppraisalRefused(
                    f"the policy lists machines by {name}, which this evidence does not show",
                    todo="the host masked it, or its key names no machine: attest without the mask, under a VCEK",
                )
            if shown not in getattr(hardware, name):
                raise AppraisalRefused(
                    f"{name} is {shown[:64]}, which the policy does not list",
                    todo="this is another machine than those the owner guards",
                )
        if asked:
            found(", ".join(f"{name} {claims.hardware[name][:16]}…" for name in asked))


def judge_device_hardware(claims: Claims, hardware: Hardware | None, trail: Trail) -> None:
    """16. Each device is one of those listed. Raises :class:`~cloister.errors.AppraisalRefused`."""
    if hardware is None or hardware.device is None:
        return
    with trail.check(16, name="device allow-list") as found:
        for number, device in enumerate(claims.devices):
            if device.identity not in hardware.device:
                raise AppraisalRefused(
                    f"{device.kind} {number} is {device.identity}, which the policy does not list",
                    todo="this is another device than those the owner guards",
                )
        found(f"{len(claims.devices)} devices as listed")
