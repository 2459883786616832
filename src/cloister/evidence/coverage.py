"""What the digest of a firmware event covers: tried, never believed.

An event carries a digest and some data. For some types the data is what was hashed, for some a part of it, for most
a description of what was hashed elsewhere (a kernel, a table). Here each part that could have been hashed is hashed,
and only one whose digest is the event's own is *covered*. Type, description and name are covered by no register: they
are the log's word, good for showing and never for deciding.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Final

_GLOBAL_GUID: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
"""8be4df61-93ca-11d2-aa0d-00e098032b8c, EFI_GLOBAL_VARIABLE, as it is stored."""
_TAGS: Final = {0x8F3B22EC: "initrd", 0x8F3B22ED: "kernel-command-line"}
"""Tagged events of Linux's EFI stub (drivers/firmware/efi/libstub/efi-stub-helper.c)."""
_PREFIXES: Final = {
    b"kernel_cmdline: ": "kernel-command-line",
    b"grub_kernel_cmdline ": "kernel-command-line",
    b"grub_cmd: ": "boot-loader-command",
    b"grub_cmd ": "boot-loader-command",
    b"module_cmdline: ": "module-command-line",
}
"""How GRUB describes a string that it measured; the digest is of the string alone (grub-core/commands/tpm.c)."""
_SECTIONS: Final = {
    f"{section}\0".encode("utf-16-le"): name
    for section, name in {
        ".linux": "kernel",
        ".cmdline": "kernel-command-line",
        ".initrd": "initrd",
        ".osrel": "os-release",
    }.items()
}
"""Descriptions by which systemd-stub measures the sections of a unified kernel image."""
_NAMES: Final = {
    "EV_SEPARATOR": "separator",
    "EV_S_CRTM_VERSION": "firmware-version",
    "EV_EFI_ACTION": "action",
    "EV_EFI_BOOT_SERVICES_APPLICATION": "efi-application",
    "EV_EFI_BOOT_SERVICES_DRIVER": "efi-driver",
    "EV_EFI_GPT_EVENT": "partition-table",
    "EV_EFI_GPT_EVENT2": "partition-table",
    "EV_EFI_PLATFORM_FIRMWARE_BLOB": "firmware",
    "EV_EFI_PLATFORM_FIRMWARE_BLOB2": "firmware",
    "EV_EFI_HANDOFF_TABLES": "tables",
    "EV_EFI_HANDOFF_TABLES2": "tables",
    "EV_PLATFORM_CONFIG_FLAGS": "platform-configuration",
}


def covered_part(kind: str, data: bytes, digest: bytes, algorithm: str) -> bytes | None:
    """What of ``data`` has the ``algorithm`` digest ``digest``; None where nothing that was tried has."""
    for part in _parts(kind, data):
        if hmac.compare_digest(hashlib.new(algorithm, part).digest(), digest):
            return part
    return None


def event_name(kind: str, data: bytes, covered: bytes | None) -> str:
    """What a person would call it, as far as the log can be believed; empty where there is no word for it."""
    if kind.startswith("EV_EFI_VARIABLE"):
        variable = _variable(data)
        if variable is None:
            return ""
        guid, name, _ = variable
        return "secure-boot" if (guid, name) == (_GLOBAL_GUID, "SecureBoot") else f"variable:{name}"
    if kind == "EV_EVENT_TAG":
        return _TAGS.get(int.from_bytes(data[:4], "little"), "")
    if kind == "EV_IPL":
        named = (name for prefix, name in _PREFIXES.items() if data.startswith(prefix))
        return next(named, _SECTIONS.get(data, "") if covered is None else "")
    return _NAMES.get(kind, "")


def _parts(kind: str, data: bytes) -> Iterator[bytes]:
    yield data
    if kind == "EV_IPL":
        # The description of a string is the string behind a word; some loaders hash its NUL too, some leave a stray
        # byte behind it. systemd-stub describes a section in UTF-16, and hashes its name as a C string.
        text = data.partition(b"\0")[0]
        for prefix in (*(prefix for prefix in _PREFIXES if data.startswith(prefix)), b""):
            yield text.removeprefix(prefix)
            yield text.removeprefix(prefix) + b"\0"
        yield data[::2]
    elif kind == "EV_EVENT_TAG" and len(data) >= 8:
        # TCG_PCClientTaggedEvent: identifier, size, content; systemd-stub hashes the content alone.
        if int.from_bytes(data[4:8], "little") == len(data) - 8:
            yield data[8:]
    elif kind.startswith("EV_EFI_VARIABLE"):
        variable = _variable(data)
        if variable is not None:
            yield variable[2]  # EV_EFI_VARIABLE_BOOT: the contents without GUID and name


def _variable(data: bytes) -> tuple[bytes, str, bytes] | None:
    """GUID, name and contents of a UEFI_VARIABLE_DATA; None unless every length is met exactly."""
    name_size = 2 * int.from_bytes(data[16:24], "little")
    size = int.from_bytes(data[24:32], "little")
    if len(data) < 32 or len(data) != 32 + name_size + size or not 2 <= name_size <= 256:
        return None
    name = data[32 : 32 + name_size].decode("utf-16-le", "replace")
    return data[:16], name if name.isprintable() else "", data[32 + name_size :]
