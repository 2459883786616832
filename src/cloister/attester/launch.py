"""What a launcher measures before a workload's first quote: its configuration, its program, its model index.

A policy names these events, so a workload with another configuration, program or model cannot pass for this
one. What is not measured here cannot vouch for itself.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cloister.encoding import labelled_hash
from cloister.errors import AttesterError
from cloister.evidence.eventlog import CONFIG_EVENT, MODEL_INDEX_EVENT, PROGRAM_EVENT, LaunchEvent, replay

DIGEST_SIZE: Final = 32
PROGRAM_LABEL: Final = "cloister/program/v1"
MAX_FILES: Final = 20_000
MAX_BYTES: Final = 1 << 30
MAX_DEPTH: Final = 32
_CHUNK: Final = 1 << 20


def launch_events(*, config: bytes, program: bytes, model_index: bytes | None) -> tuple[LaunchEvent, ...]:
    """The events to measure, in this order.

    ``config`` is the configuration's canonical bytes (of any length; its SHA-256 is measured). ``program``
    (:func:`program_digest`) and ``model_index`` are digests of 32 bytes and are measured as they are, so that a
    policy shows the same digits as the tools that print them. Raises :class:`AttesterError` on another length.
    """
    events = [
        LaunchEvent(name=CONFIG_EVENT, payload=hashlib.sha256(config).digest()),
        LaunchEvent(name=PROGRAM_EVENT, payload=_digest(program, "program")),
    ]
    if model_index is not None:
        events.append(LaunchEvent(name=MODEL_INDEX_EVENT, payload=_digest(model_index, "model index")))
    return tuple(events)


def host_data(events: Sequence[LaunchEvent]) -> bytes:
    """32 bytes that stand for a launch where the host states them at the guest's start: SEV-SNP's HOST_DATA.

    The register of the same events in SHA-256, from all zeros (docs/spec/event-log.md).
    """
    return replay(events, algorithm="sha256")


def program_digest(package_root: Path) -> bytes:
    """32 bytes over every file below ``package_root``: its relative path and the SHA-256 of its content.

    Byte-code caches (``__pycache__``) are left out: they are derived. Symbolic links and special files are
    refused, since what they lead to is outside what is measured; so are more than ``MAX_FILES`` files or
    ``MAX_BYTES`` bytes. Raises :class:`AttesterError`.
    """
    digests: dict[bytes, bytes] = {}
    budget = MAX_BYTES
    for path in _files(package_root, 0):
        if len(digests) == MAX_FILES:
            raise _refused(package_root, f"has over {MAX_FILES} files")
        digest, size = _hash_file(path, budget)
        budget -= size
        digests[os.fsencode(path.relative_to(package_root))] = digest
    if not digests:
        raise _refused(package_root, "holds no files")
    parts = (part for name in sorted(digests) for part in (name, digests[name]))
    return labelled_hash(PROGRAM_LABEL, *parts)


def this_program() -> bytes:
    """The digest of the installed package, which every launcher of ours measures as the program: 32 bytes."""
    return program_digest(Path(__file__).resolve().parents[1])


def _files(directory: Path, depth: int) -> Iterator[Path]:
    if depth > MAX_DEPTH:
        raise _refused(directory, f"is nested deeper than {MAX_DEPTH} directories")
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise _refused(Path(entry.path), "is a symbolic link")
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        yield from _files(Path(entry.path), depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)
                else:
                    raise _refused(Path(entry.path), "is not a regular file")
    except OSError as error:
        raise _refused(directory, f"cannot be read ({error.strerror})") from None


def _hash_file(path: Path, budget: int) -> tuple[bytes, int]:
    digest = hashlib.sha256()
    size = 0
    try:
        # The directory was listed a moment ago: what was a file may be a link by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _refused(path, "is not a regular file")
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > budget:
                    raise _refused(path, f"takes the program over {MAX_BYTES} bytes")
                digest.update(chunk)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})") from None
    return digest.digest(), size


def _digest(value: bytes, what: str) -> bytes:
    if len(value) != DIGEST_SIZE:
        raise AttesterError(
            f"the {what} digest is {len(value)} bytes long, not {DIGEST_SIZE}", todo="pass its SHA-256"
        )
    return value


def _refused(path: Path, what: str) -> AttesterError:
    return AttesterError(
        f"the program cannot be measured: {path} {what}", todo="install the package from its wheel"
    )
