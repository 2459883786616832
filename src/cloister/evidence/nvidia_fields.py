"""The opaque fields of an NVIDIA report by name, as far as NVIDIA's published verifiers name them.

GPUs and switches use the same ids for different things, so the kind comes first, and it comes from the certificate.
A field that nobody published is kept as ``unknown_<id>`` and never judged. Refused: a version that is not printable
text, a field of another size than it has, and two fields that contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cloister.errors import EvidenceError
from cloister.evidence.nvidia import DeviceKind
from cloister.evidence.spdm import SpdmReport

_COMMON: Final = {
    1: "certificate_issuer",
    2: "authority_key_identifier",
    3: "driver_version",
    4: "gpu_info",
    5: "sku",
    6: "vbios_version",
    7: "manufacturer_id",
    8: "tamper_detection",
    9: "smc",
    10: "vpr",
    11: "nvdec0_status",
    12: "measurement_counts",
    13: "cprinfo",
    14: "board_id",
    15: "chip_sku",
    16: "chip_sku_mod",
    17: "project",
    18: "project_sku",
    19: "project_sku_mod",
    20: "fwid",
    21: "protected_pcie_status",
}
NAMES: Final[Mapping[DeviceKind, Mapping[int, str]]] = MappingProxyType(
    {
        "gpu": _COMMON
        | {
            22: "switch_pdis",
            23: "floorswept_ports",
            24: "position_id",
            25: "lock_switch_status",
            32: "gpu_link_connections",
            33: "system_enable_status",
            34: "opaque_data_version",
            35: "chip_info",
            36: "feature_flag",
        },
        "nvswitch": _COMMON
        | {
            22: "device_pdi",
            23: "disabled_ports",
            24: "switch_position_id",
            25: "switch_lock_status",
            26: "gpu_pdis",
        },
    }
)
_TEXTS: Final = frozenset(
    {"driver_version", "chip_sku", "chip_sku_mod", "project", "project_sku", "project_sku_mod", "chip_info"}
)
FWID_SIZE: Final = 48
MAX_DATA_VERSION: Final = 1
"""Of a GPU's opaque data; what a later one means by an id is not known."""
_PDI: Final = 8
_ON, _OFF = b"\xaa", b"\x55"
_PPCIE: Final = 2


@dataclass(frozen=True, slots=True)
class DeviceFields:
    """What a device says about itself in its signed report. Unverified until the report is."""

    kind: DeviceKind
    driver_version: str
    """Empty for a switch."""
    vbios_version: str
    """Upper case, as in ``96.00.A5.00.01``."""
    fwid: bytes | None
    """Digest of the firmware that holds the signing key, 48 bytes; early Hopper firmware and switches leave it out."""
    nvdec0_disabled: bool
    """Then measurement 35 has no reference value."""
    mode: str
    """``ppcie`` where the report says that protected PCIe is on, else ``cc``; empty for a switch."""
    pdis: frozenset[str]
    """GPUs that a switch is wired to, or switches that a GPU is wired to, as 16 hexadecimal digits each."""
    details: Mapping[str, str]
    """Every field by name, in text or hexadecimal."""

    def text(self, name: str) -> str:
        """A field by its name; empty where the report has none."""
        return self.details.get(name, "")


def read_fields(report: SpdmReport, kind: DeviceKind) -> DeviceFields:
    """Name the opaque fields of a report of a ``kind``. Raises :class:`~cloister.errors.EvidenceError`."""
    names = NAMES[kind]
    raw = {names.get(field, f"unknown_{field}"): value for field, value in report.opaque}
    details = {
        name: _text(name, value) if name in _TEXTS or name.endswith("_version") else value.hex()
        for name, value in raw.items()
        if name not in ("vbios_version", "opaque_data_version")
    }
    if "opaque_data_version" in raw:
        version = int.from_bytes(raw["opaque_data_version"], "little")
        if version > MAX_DATA_VERSION:
            raise EvidenceError(
                f"the report's fields are of version {version}, and up to {MAX_DATA_VERSION} is known here",
                todo="a newer release of this package may read them",
            )
        details["opaque_data_version"] = str(version)
    counts = raw.get("measurement_counts", b"")
    if counts and len(counts) % 4 == 0:
        details["measurement_counts"] = " ".join(
            str(int.from_bytes(counts[at : at + 4], "little")) for at in range(0, len(counts), 4)
        )
    vbios = _vbios(kind, raw.get("vbios_version", b""))
    details["vbios_version"] = vbios
    fwid = raw.get("fwid")
    if fwid is not None and len(fwid) != FWID_SIZE:
        raise EvidenceError(f"the report's FWID is {len(fwid)} bytes long, not {FWID_SIZE}")
    if kind == "gpu" and not details.get("driver_version"):
        raise EvidenceError("the GPU's report names no driver version")
    return DeviceFields(
        kind=kind,
        driver_version=details.get("driver_version", ""),
        vbios_version=vbios,
        fwid=fwid,
        nvdec0_disabled=raw.get("nvdec0_status") == _OFF,
        mode=_mode(raw) if kind == "gpu" else "",
        pdis=_pdis(kind, raw),
        details=MappingProxyType(details),
    )


def _text(name: str, value: bytes) -> str:
    text = value.rstrip(b"\0")
    if len(text) > 64 or not re.fullmatch(rb"[ -~]*", text):
        raise EvidenceError(f"the report's {name} is not a short printable text")
    return text.decode("ascii")


def _vbios(kind: DeviceKind, value: bytes) -> str:
    if kind == "nvswitch":
        version = _text("vbios_version", value).upper()
    else:
        if len(value) != 8:
            raise EvidenceError(f"the GPU's VBIOS version is {len(value)} bytes long, not 8")
        # Two little-endian words: the first four parts, then the last.
        version = ".".join(f"{part:02X}" for part in (*reversed(value[:4]), value[4]))
    if not re.fullmatch(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}", version):
        raise EvidenceError("the report's VBIOS version is not of the form 96.00.A5.00.01")
    return version


def _mode(raw: Mapping[str, bytes]) -> str:
    status = raw.get("protected_pcie_status")
    if status not in (None, _ON, _OFF):
        raise EvidenceError(f"the report's protected PCIe status is {status.hex()}, which means nothing")
    flag = raw.get("feature_flag")
    flagged = None if flag is None else int.from_bytes(flag, "little")
    if flagged is not None and flagged > _PPCIE:
        raise EvidenceError(f"the report's feature flag is {flagged}, which is not known here")
    if status is not None and flagged is not None and (status == _ON) != (flagged == _PPCIE):
        raise EvidenceError("the report's feature flag and its protected PCIe status contradict each other")
    return "ppcie" if status == _ON or flagged == _PPCIE else "cc"


def _pdis(kind: DeviceKind, raw: Mapping[str, bytes]) -> frozenset[str]:
    # A switch lists eight ids, then one byte for the port of each.
    value = raw.get("gpu_pdis", b"")[: 8 * _PDI] if kind == "nvswitch" else raw.get("switch_pdis", b"")
    if len(value) % _PDI:
        raise EvidenceError("the report's list of neighbours is cut off")
    found = {value[at : at + _PDI] for at in range(0, len(value), _PDI)} - {bytes(_PDI)}
    # A GPU spells the ids of switches backwards; a switch spells those of GPUs as certificates do.
    return frozenset(pdi[::-1].hex() if kind == "gpu" else pdi.hex() for pdi in found)
