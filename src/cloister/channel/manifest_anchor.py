"""A workload accepted by what its owners sign: the pinned anchor, and the newest manifest held against it.

Pure but for the floor: the highest version that was ever accepted is kept, in a file if one is named, and nothing lower is
taken again. Refused: a manifest of another origin, signed by too few of the pinned keys, with any signature that does not
hold, older than the floor, or another document than the one that was seen with the same version (docs/spec/manifest.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cloister.appraisal.policy import Policy
from cloister.encoding import Record, convert, encode_json
from cloister.errors import (
    FormatError,
    ManifestError,
    QuorumMissing,
    SignatureRefused,
    Superseded,
    UsageError,
)
from cloister.manifest.draft import key_text
from cloister.manifest.manifest import named_keys, origin_for, read_manifest
from cloister.manifest.names import check_digest, check_names
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.signed import Signed, decode_canonical, parse_signed, signed_message
from cloister.manifest.storage import read_bounded, write_whole

_MAX_ANCHOR: Final = 64 * 1024
_MAX_FLOOR: Final = 1024


@dataclass(frozen=True, slots=True)
class ManifestAnchor:
    """What a client pins instead of a policy: who signs, which workload it wants, and no version below ``floor``.

    ``origin`` is what `cloister manifest origin` prints, and ``owners`` with ``threshold`` the keys that make it. The
    highest version seen is kept in ``floor_file``, or as long as the client lives. Raises
    :class:`~cloister.errors.UsageError`.
    """

    origin: str
    owners: Sequence[str]
    threshold: int
    workload: str
    floor: int = 1
    floor_file: Path | None = None

    def __post_init__(self) -> None:
        try:
            check_digest(self.origin, what="the origin")
            check_names([self.workload], "a workload")
            keys = tuple(map(key_text, self.owners))
            named_keys({f"owner-{number}": key for number, key in enumerate(keys, 1)}, "an owner")
        except ManifestError as error:
            raise UsageError(f"the anchor cannot be used: {error.what}", todo=error.todo) from None
        if not 1 <= self.threshold <= len(keys):
            raise UsageError("the anchor's threshold must be from 1 to the number of its owners")
        if self.floor < 1:
            raise UsageError("the anchor's floor is a version, at least 1")
        object.__setattr__(self, "owners", keys)


class _AnchorFile(Record, frozen=True, kw_only=True):
    origin: str
    owners: tuple[str, ...]
    threshold: int
    workload: str
    floor: int = 1
    floor_file: str | None = None


def read_anchor(path: str | Path) -> ManifestAnchor:
    """Read an anchor from a TOML file; its ``floor_file`` is relative to it. Raises UsageError."""
    path = Path(path)
    try:
        text = read_bounded(path, limit=_MAX_ANCHOR, what="the anchor").decode("utf-8")
        found = convert(tomllib.loads(text), _AnchorFile, what=f"the anchor {path}")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise UsageError(f"the anchor {path} is not TOML", todo="see docs/how-to/manifest.md") from None
    except FormatError as error:
        raise UsageError(error.what, todo="see docs/how-to/manifest.md") from None
    return ManifestAnchor(
        origin=found.origin,
        owners=found.owners,
        threshold=found.threshold,
        workload=found.workload,
        floor=found.floor,
        floor_file=None if found.floor_file is None else path.parent / found.floor_file,
    )


class Seen(Record, frozen=True, kw_only=True):
    """The highest version that was accepted; as it is kept in a floor file."""

    format: Literal["cloister/manifest-floor/v1"] = "cloister/manifest-floor/v1"
    origin: str
    version: int
    digest: str
    """Of the document with that version; empty while nothing but the anchor's floor is known."""


@dataclass(frozen=True, slots=True)
class AnchoredManifest:
    """A manifest that passed :meth:`Anchored.take`."""

    seen: Seen
    policies: tuple[Policy, ...]
    """What evidence of the anchor's workload may meet."""
    signed: bytes
    """As it arrived."""


class Anchored:
    """One client's anchor and its floor. Thread-safe."""

    def __init__(self, anchor: ManifestAnchor) -> None:
        self._anchor = anchor
        self._lock = threading.Lock()
        self._seen = Seen(origin=anchor.origin, version=anchor.floor, digest="")
        stored = self._stored()
        if stored.version >= self._seen.version:
            self._seen = stored

    def take(self, data: bytes) -> AnchoredManifest:
        """Check a signed manifest as it arrived. Raises :class:`~cloister.errors.ManifestError`."""
        signed = parse_signed(data)
        manifest, policies = read_manifest(signed.document)
        origin = origin_for(manifest.application, self._anchor.threshold, self._anchor.owners)
        if origin != self._anchor.origin:
            raise ManifestError(
                f"the manifest of {manifest.application} is not of the origin that is pinned",
                todo="check the anchor's origin, owners and threshold with the owners",
            )
        self._require_owners(signed, manifest.version)
        seen = Seen(origin=origin, version=manifest.version, digest=signed.digest)
        _require_not_before(self._seen, seen)
        workload = manifest.workloads.get(self._anchor.workload)
        if workload is None:
            raise ManifestError(
                f"version {manifest.version} of {manifest.application} has no workload {self._anchor.workload}",
                todo=f"it has {', '.join(sorted(manifest.workloads)) or 'none'}",
            )
        return AnchoredManifest(seen, tuple(policies[text] for text in workload.policies), data)

    def keep(self, seen: Seen) -> None:
        """Take nothing below ``seen`` any more. Raises :class:`~cloister.errors.Superseded` if more was seen meanwhile."""
        file = self._anchor.floor_file
        if file is None:
            self._rise(seen)
            return
        with _locked(file.parent):
            stored = self._stored()
            _require_not_before(stored, seen)
            if stored != seen or not file.exists():
                write_whole(file, encode_json(seen), replace=True)
        self._rise(seen)

    def _require_owners(self, signed: Signed, version: int) -> None:
        """Every signature holds, each of another key, and enough are of pinned keys.

        Others count for nothing; they may be of an owner who left with this version, so they need not be named in it.
        """
        message = signed_message("manifest", signed.document)
        pinned = {parse_public_key(text).identity: text for text in self._anchor.owners}
        found: set[str] = set()
        for one in signed.signatures:
            key = parse_public_key(one.key)
            if key.identity in found:
                raise SignatureRefused("one key signed the manifest twice")
            key.verify(message, one.signature)
            found.add(key.identity)
        count = len(found & set(pinned))
        if count < self._anchor.threshold:
            raise QuorumMissing(
                f"version {version} of the manifest is signed by {count} of the pinned owners,"
                f" and {self._anchor.threshold} must sign",
                todo="if the owners changed, ask them whom to pin now",
            )

    def _stored(self) -> Seen:
        """What the floor file holds, or this client's own floor where there is none yet."""
        file = self._anchor.floor_file
        if file is None or not file.exists():
            return self._seen
        try:
            stored = decode_canonical(
                read_bounded(file, limit=_MAX_FLOOR, what="the floor file"),
                Seen,
                what="the floor file",
                limit=_MAX_FLOOR,
            )
        except ManifestError as error:
            # Never begun anew in silence: that would be how an old version comes back.
            raise UsageError(
                f"{file} is damaged: {error.what}", todo="find out why before you remove it"
            ) from None
        if stored.origin != self._anchor.origin:
            raise UsageError(f"{file} keeps the floor of another origin", todo="name another floor_file")
        return stored

    def _rise(self, seen: Seen) -> None:
        with self._lock:
            # Another thread may have been shown more since take() compared.
            _require_not_before(self._seen, seen)
            self._seen = seen


def _require_not_before(floor: Seen, found: Seen) -> None:
    if found.version < floor.version:
        raise Superseded(
            f"version {found.version} of the manifest was shown, and {floor.version} is the lowest that is taken",
            todo="somebody shows an old manifest, or the workload was not given the newest",
        )
    if found.version == floor.version and floor.digest not in ("", found.digest):
        raise Superseded(
            f"two different manifests were shown as version {found.version}",
            todo="ask the owners which is theirs",
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer of floors in this folder at a time, across processes."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"the folder of the floor file cannot be opened ({error.strerror})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
