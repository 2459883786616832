"""A manifest from what a person writes (docs/how-to/manifest.md): a TOML file that names policies by their files. Pure.

Version, predecessor and time are not written by hand. Keys may stand there as `cloister keys show` or a ``.pub`` file has
them. Everything else is as in the document, and checked as a document is.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from cloister.encoding import Record, convert
from cloister.errors import FormatError, ManifestError
from cloister.manifest.manifest import (
    Manifest,
    Witnesses,
    Workload,
    check_manifest,
    origin_for,
    parse_manifest,
)
from cloister.manifest.owner_key import parse_public_key, ssh_key_text
from cloister.manifest.quorum import Quorum
from cloister.manifest.signed import MAX_DOCUMENT, Signed


class _Broker(Record, frozen=True, kw_only=True):
    policies: tuple[str, ...]


class _Authored(Record, frozen=True, kw_only=True):
    """The file: names of policy files where the document has their texts."""

    application: str
    owners: dict[str, str]
    update: Quorum
    workloads: dict[str, Workload]
    resources: dict[str, Quorum]
    witnesses: Literal["none"] | Witnesses
    broker: _Broker = _Broker(policies=())
    operators: dict[str, str] = msgspec.field(default_factory=dict)
    auditors: dict[str, str] = msgspec.field(default_factory=dict)


def draft_manifest(
    text: str, *, name: str, read_policy: Callable[[str], str], issued: int, previous: Signed | None
) -> Manifest:
    """The manifest that ``text`` describes, after ``previous``; ``read_policy`` gives the text of a file named in it.

    Raises :class:`~cloister.errors.ManifestError`, and what ``read_policy`` raises.
    """
    authored = _read(text, name)
    witnesses = authored.witnesses
    if isinstance(witnesses, Witnesses):
        witnesses = Witnesses(keys=_keys(witnesses.keys), threshold=witnesses.threshold)
    version, digest = 1, ""
    if previous is not None:
        before = parse_manifest(previous.document)
        if before.application != authored.application:
            raise ManifestError(f"the predecessor is of {before.application}, not of {authored.application}")
        version, digest = before.version + 1, previous.digest
    manifest = Manifest(
        application=authored.application,
        version=version,
        previous=digest,
        issued=issued,
        owners=_keys(authored.owners),
        update=authored.update,
        broker=tuple(map(read_policy, authored.broker.policies)),
        workloads={
            workload: Workload(policies=tuple(map(read_policy, one.policies)))
            for workload, one in authored.workloads.items()
        },
        resources=authored.resources,
        witnesses=witnesses,
        operators=_keys(authored.operators),
        auditors=_keys(authored.auditors),
    )
    check_manifest(manifest)
    return manifest


def drafted_origin(text: str, *, name: str) -> str:
    """The origin of the first manifest that ``text`` describes: no policy needs to be there yet, since a broker's own
    policy cannot be written before its origin is known. Raises :class:`~cloister.errors.ManifestError`.
    """
    authored = _read(text, name)
    owners = _keys(authored.owners)
    for one in authored.update.owners:
        if one not in owners:
            raise ManifestError(f"{one[:80]!r}, named under [update], is not one of the owners")
    return origin_for(
        authored.application, authored.update.threshold, [owners[one] for one in authored.update.owners]
    )


def key_text(written: str) -> str:
    """The text of a key as a person may have it: its text, 64 hexadecimal digits, or a line of a ``.pub`` file.

    Raises :class:`~cloister.errors.ManifestError`.
    """
    written = written.strip()
    if re.fullmatch(r"[0-9a-f]{64}", written):
        written = f"ed25519:{written}"
    elif written.startswith(("ssh-", "ecdsa-", "sk-")):
        try:
            written = ssh_key_text(base64.b64decode(written.split()[1], validate=True))
        except (IndexError, binascii.Error, ValueError):
            raise ManifestError(
                "a public key of SSH is not whole", todo="copy the line of its .pub file"
            ) from None
    return parse_public_key(written).text


def _read(text: str, name: str) -> _Authored:
    if len(text) > MAX_DOCUMENT:
        raise ManifestError(f"{name} is longer than {MAX_DOCUMENT} characters")
    try:
        return convert(tomllib.loads(text), _Authored, what=name)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{name} is not TOML: {error}", todo="see docs/how-to/manifest.md") from None
    except FormatError as error:
        raise ManifestError(error.what, todo="see docs/how-to/manifest.md") from None


def _keys(written: Mapping[str, str]) -> dict[str, str]:
    return {name: key_text(key) for name, key in written.items()}
