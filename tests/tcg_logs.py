"""TCG event logs put together event by event: what firmware would write, and what it never would."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
EV_NO_ACTION, EV_SEPARATOR, EV_EVENT_TAG, EV_S_CRTM_VERSION, EV_IPL = 3, 4, 6, 8, 13
EV_DRIVER_CONFIG, EV_BOOT, EV_APPLICATION, EV_ACTION = 0x80000001, 0x80000002, 0x80000003, 0x80000007
GLOBAL_GUID = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


@dataclass(frozen=True)
class Logged:
    """One event: ``digest`` is of ``hashed`` unless given, which is ``data`` unless given."""

    index: int
    kind: int
    data: bytes
    hashed: bytes | None = None
    digest: bytes | None = None

    def extended(self, algorithm: str) -> bytes:
        covered = self.data if self.hashed is None else self.hashed
        return self.digest or hashlib.new(algorithm, covered).digest()


def spec_id(algorithms: Sequence[str], *, sizes: dict[str, int] | None = None, vendor: bytes = b"") -> bytes:
    """The content of the first event."""
    entries = b"".join(
        struct.pack("<HH", NUMBERS[name], (sizes or {}).get(name, hashlib.new(name).digest_size))
        for name in algorithms
    )
    head = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    return head + struct.pack("<I", len(algorithms)) + entries + bytes([len(vendor)]) + vendor


def header(content: bytes, *, index: int = 0, kind: int = EV_NO_ACTION, digest: bytes = bytes(20)) -> bytes:
    return struct.pack("<II20sI", index, kind, digest, len(content)) + content


def encode(event: Logged, algorithms: Sequence[str]) -> bytes:
    digests = b"".join(struct.pack("<H", NUMBERS[name]) + event.extended(name) for name in algorithms)
    return (
        struct.pack("<III", event.index, event.kind, len(algorithms))
        + digests
        + struct.pack("<I", len(event.data))
        + event.data
    )


def log(*events: Logged, algorithms: Sequence[str] = ("sha384",), padding: bytes = b"") -> bytes:
    return header(spec_id(algorithms)) + b"".join(encode(event, algorithms) for event in events) + padding


def variable(name: str, contents: bytes, guid: bytes = GLOBAL_GUID) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return guid + struct.pack("<QQ", len(name), len(contents)) + name.encode("utf-16-le") + contents


def tagged(identifier: int, content: bytes) -> bytes:
    """TCG_PCClientTaggedEvent."""
    return struct.pack("<II", identifier, len(content)) + content
