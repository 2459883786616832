"""``[nvidia]`` of a policy: how many GPUs and switches of which kind, in which state (docs/reference/policy-nvidia.md).

Everything is decided by the table: versions are listed, given a minimum, or spelled out as ``"any"``; what is not
checked says ``"unchecked"``. Without reference manifests nobody can tell confidential mode from developer mode, so
``rims = "unchecked"`` gives that up too.
"""

from __future__ import annotations

import re
from typing import Literal

from cloister.appraisal.values import Values, check_some
from cloister.encoding import Record
from cloister.errors import FormatError
from cloister.evidence.nvidia import MAX_DEVICES
from cloister.verifier.nvidia import NvidiaRules

ARCHITECTURES = ("hopper", "blackwell")
MODES = ("cc", "ppcie")
MAX_GRACE_DAYS = 3650
_DAY = 86_400
_DRIVER = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}")
_VBIOS = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}")


class NvidiaReference(Record, frozen=True, kw_only=True):
    """``[nvidia]``: its presence requires device evidence, its absence refuses any."""

    gpus: int
    """Exactly so many GPUs."""
    nvswitches: int = 0
    """Exactly so many NVSwitches."""
    architectures: tuple[str, ...]
    """Of the GPUs: ``hopper``, ``blackwell``."""
    modes: tuple[str, ...]
    """``cc``: each GPU for itself; ``ppcie``: protected PCIe, in which the switches are part of the machine."""
    revocation: Literal["required", "unchecked"]
    """OCSP answers for every certificate, or none asked for."""
    rims: Literal["required", "unchecked"]
    """Measurements equal NVIDIA's reference values, or are compared where manifests came along."""
    driver_versions: Values | None = None
    minimum_driver_version: str | None = None
    """One of the two: accepted versions (or ``"any"``), or the oldest one."""
    vbios_versions: Values | None = None
    minimum_vbios_version: str | None = None
    """One of the two, for GPUs."""
    switch_bios_versions: Values | None = None
    """Required with switches."""
    rim_grace_days: int = 0
    """Days that a reference manifest still counts after its signer's certificate ended."""


def check_nvidia(nvidia: NvidiaReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    for name in ("gpus", "nvswitches"):
        if not 0 <= getattr(nvidia, name) <= MAX_DEVICES:
            raise FormatError(f"{name} must be 0 to {MAX_DEVICES}")
    if not 1 <= nvidia.gpus + nvidia.nvswitches <= MAX_DEVICES:
        raise FormatError(
            f"gpus and nvswitches together must be 1 to {MAX_DEVICES}", todo="leave [nvidia] out for none"
        )
    for name, known in (("architectures", ARCHITECTURES), ("modes", MODES)):
        check_some(name, getattr(nvidia, name))
        for value in getattr(nvidia, name):
            if value not in known:
                raise FormatError(f"{name} names {value[:40]!r}", todo=f"known are: {', '.join(known)}")
    if "ppcie" in nvidia.modes and not nvidia.nvswitches:
        raise FormatError(
            "modes accepts ppcie without nvswitches",
            todo="in protected PCIe mode the switches carry plain data: count them in nvswitches",
        )
    if nvidia.gpus:
        _check_versions("driver_versions", nvidia.driver_versions, nvidia.minimum_driver_version, _DRIVER)
        _check_versions("vbios_versions", nvidia.vbios_versions, nvidia.minimum_vbios_version, _VBIOS)
    if nvidia.nvswitches:
        _check_versions("switch_bios_versions", nvidia.switch_bios_versions, None, _VBIOS)
    elif nvidia.switch_bios_versions is not None:
        raise FormatError(
            "switch_bios_versions stands without nvswitches", todo="count the switches, or drop it"
        )
    if not 0 <= nvidia.rim_grace_days <= MAX_GRACE_DAYS:
        raise FormatError(f"rim_grace_days must be 0 to {MAX_GRACE_DAYS}")


def _check_versions(name: str, accepted: Values | None, minimum: str | None, form: re.Pattern[str]) -> None:
    oldest = f"minimum_{name.removesuffix('s')}"
    if (accepted is None) == (minimum is None):
        hint = f" or {oldest}" if name != "switch_bios_versions" else ""
        raise FormatError(
            f"{name}{hint} must be given, and one alone", todo='list versions, or say "any" if you mean to'
        )
    if accepted is not None and accepted != "any":
        check_some(name, accepted)
    named = [minimum] if minimum is not None else [] if accepted == "any" else list(accepted or ())
    for value in named:
        if not form.fullmatch(value):
            raise FormatError(f"{oldest if minimum else name} holds {value[:40]!r}, which is no such version")


def nvidia_rules(nvidia: NvidiaReference) -> NvidiaRules:
    """The part that the verifier enforces."""
    return NvidiaRules(
        revocation_required=nvidia.revocation == "required",
        rims_required=nvidia.rims == "required",
        rim_grace=nvidia.rim_grace_days * _DAY,
    )
