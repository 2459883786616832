"""Frames: what a journal is made of. A head in the clear, a nonce, and one sealed piece of a checkpoint or one record.

Pure. A frame's head is its associated data: kind, version, part and length are what they were, or nothing opens. Refuses
frames over the bound before anything of their size is allocated. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag

from cloister.errors import FormatError, TamperedFile
from cloister.sealing.envelope import framed
from cloister.sealing.segments import TAG_SIZE
from cloister.sealing.tree.tree_keys import LABEL, TreeKeys
from cloister.sealing.xaes import NONCE_SIZE, Xaes

MAGIC: Final = b"CLOISTRJ"
PART, LAST_PART, RECORD = 1, 2, 3
MAX_PLAIN: Final = 64 << 20
"""Bytes of one frame."""
_HEAD: Final = struct.Struct(">8sB3xIQI")
HEAD_SIZE: Final = _HEAD.size
START_SIZE: Final = HEAD_SIZE + NONCE_SIZE
"""What lies before the ciphertext."""


@dataclass(frozen=True, slots=True)
class FrameHead:
    """What a frame says of itself."""

    kind: int
    version: int
    """Of the tree, behind this record or at this checkpoint."""
    part: int
    """Of a checkpoint: 0, 1, …; of a record 0."""
    sealed_size: int
    """Bytes behind the nonce, tag included."""

    @property
    def frame_size(self) -> int:
        """Bytes of the frame."""
        return START_SIZE + self.sealed_size

    def encode(self) -> bytes:
        """28 bytes."""
        return _HEAD.pack(MAGIC, self.kind, self.part, self.version, self.sealed_size)


def parse_head(data: bytes) -> FrameHead:
    """Raises :class:`~cloister.errors.FormatError`; what it gives is not authentic yet."""
    if len(data) < HEAD_SIZE:
        raise FormatError("a frame ends inside its head")
    magic, kind, part, version, sealed_size = _HEAD.unpack_from(data)
    head = FrameHead(kind, version, part, sealed_size)
    if magic != MAGIC or kind not in (PART, LAST_PART, RECORD) or head.encode() != data[:HEAD_SIZE]:
        raise FormatError("a frame does not begin as it should")
    if not TAG_SIZE <= sealed_size <= MAX_PLAIN + TAG_SIZE:
        raise FormatError("a frame has a length that it cannot have")
    return head


def seal_frame(
    keys: TreeKeys, kind: int, version: int, part: int, before: bytes, plain: bytes, nonce: bytes
) -> bytes:
    """One frame. ``before`` (32 bytes) binds it to what it follows; ``nonce`` is 24 fresh random bytes.

    Raises :class:`~cloister.errors.FormatError` over the bound.
    """
    if len(plain) > MAX_PLAIN:
        raise FormatError(f"a frame holds {MAX_PLAIN} bytes, not {len(plain)}")
    head = FrameHead(kind, version, part, len(plain) + TAG_SIZE)
    frame = bytearray(head.frame_size)
    frame[:HEAD_SIZE] = head.encode()
    frame[HEAD_SIZE:START_SIZE] = nonce
    with memoryview(frame)[START_SIZE:] as sealed:
        _key(keys, kind).seal_into(nonce, plain, _associated(keys, head, before), sealed)
    return bytes(frame)


def open_frame(keys: TreeKeys, head: FrameHead, before: bytes, frame: bytes, *, name: str) -> bytes:
    """What was sealed. ``frame`` is of the size that ``head`` says. Raises :class:`~cloister.errors.TamperedFile`."""
    plain = bytearray(head.sealed_size - TAG_SIZE)
    nonce, sealed = frame[HEAD_SIZE:START_SIZE], frame[START_SIZE:]
    try:
        _key(keys, head.kind).open_into(nonce, sealed, _associated(keys, head, before), plain)
    except InvalidTag:
        raise TamperedFile(f"{name} does not authenticate at version {head.version}") from None
    return bytes(plain)


def _key(keys: TreeKeys, kind: int) -> Xaes:
    return keys.records if kind == RECORD else keys.checkpoints


def _associated(keys: TreeKeys, head: FrameHead, before: bytes) -> bytes:
    return framed(LABEL, keys.tree_id, head.encode(), before)
