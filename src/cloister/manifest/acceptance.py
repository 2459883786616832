"""Which manifest may be in force: the first under its origin, then each by the word of its predecessor. Pure.

1. A first version carries the update quorum and the quorum of every entry of resources, and has the origin asked for.
2. A successor has the next version, names its predecessor's digest, and is not issued earlier.
3. The predecessor's update quorum signed it, with the predecessor's keys.
4. Whoever decided about a resource signed whatever changes that: an entry changed, removed, its owners' keys replaced,
   or a more specific entry put over a part of it.

So neither an operator nor those who may update a manifest can take a resource from its owners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloister.appraisal.policy import Policy
from cloister.errors import ManifestError, Superseded
from cloister.manifest import manifest as documents
from cloister.manifest.manifest import Manifest, Policies, governing, named_keys, read_manifest
from cloister.manifest.owner_key import PublicKey
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.signed import Signed, verified_signers

_ACCEPTED = object()
_NEW = "@new"
"""Behind the name of a key that only the successor names; no owner's name holds an ``@``."""


@dataclass(frozen=True, slots=True)
class AcceptedManifest:
    """A manifest that its owners signed.

    Made by :func:`accept_genesis`, :func:`accept_successor` and :func:`recall_manifest` alone.
    """

    manifest: Manifest
    digest: str
    """SHA-256 of the document, hexadecimal."""
    signed: Signed
    _policies: Policies = field(repr=False)
    _seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        # Over the fields too: a copy with another manifest is not what was accepted.
        if self._seal != (_ACCEPTED, self.manifest, self.digest, self.signed, self._policies):
            raise TypeError(
                "an AcceptedManifest is made by accept_genesis() or accept_successor(), never by hand"
            )

    def policies(self, workload: str) -> tuple[Policy, ...]:
        """What evidence of ``workload`` may meet. Raises :class:`~cloister.errors.ManifestError` if there is none."""
        named = self.manifest.workloads.get(workload)
        if named is None:
            raise ManifestError(
                f"version {self.manifest.version} of {self.manifest.application} has no workload {workload[:80]!r}",
                todo=f"it has {', '.join(sorted(self.manifest.workloads)) or 'none'}",
            )
        return tuple(self._policies[text] for text in named.policies)

    @property
    def broker_policies(self) -> tuple[Policy, ...]:
        """What evidence of the broker may meet; empty when the manifest says nothing of it."""
        return tuple(self._policies[text] for text in self.manifest.broker)


def accept_genesis(signed: Signed, *, origin: str) -> AcceptedManifest:
    """Accept version 1. ``origin`` is what the caller pinned.

    Raises :class:`~cloister.errors.ManifestError`.
    """
    manifest, policies = read_manifest(signed.document)
    if manifest.version != 1:
        raise Superseded(
            f"an application starts with version 1 of its manifest, not {manifest.version}",
            todo="show the versions before it first",
        )
    require_origin(manifest, origin)
    signers = verified_signers("manifest", signed, named_keys(manifest.owners, "an owner"))
    require_quorum(manifest.update, signers, f"version 1 of {manifest.application}")
    for prefix, quorum in sorted(manifest.resources.items()):
        require_quorum(quorum, signers, f"what decides about {prefix}")
    return _accepted(manifest, signed, policies)


def accept_successor(signed: Signed, *, predecessor: AcceptedManifest) -> AcceptedManifest:
    """Accept the version after ``predecessor``. Raises :class:`~cloister.errors.ManifestError`."""
    manifest, policies = read_manifest(signed.document)
    old = predecessor.manifest
    if manifest.application != old.application:
        raise ManifestError(f"this is a manifest of {manifest.application}, not of {old.application}")
    if manifest.version != old.version + 1 or manifest.previous != predecessor.digest:
        raise Superseded(
            f"version {manifest.version} of {manifest.application} does not follow version {old.version} in force",
            todo=f"make version {old.version + 1} with `cloister manifest new --previous`",
        )
    if manifest.issued < old.issued:
        raise Superseded(
            f"version {manifest.version} of {manifest.application} was issued before its predecessor"
        )
    signers = verified_signers("manifest", signed, _either(old, manifest))
    require_quorum(old.update, signers, f"version {manifest.version} of {manifest.application}")
    for prefix, quorum, why in _consents(old, manifest):
        require_quorum(quorum, signers, f"that {prefix} {why}")
    return _accepted(manifest, signed, policies)


def recall_manifest(signed: Signed, *, digest: str) -> AcceptedManifest:
    """Take again what was accepted before, by the digest that was kept of it: signatures are not looked at.

    ``digest`` MUST come from where nobody else can write, such as a state that was authenticated as a whole.
    Raises :class:`~cloister.errors.ManifestError`.
    """
    if signed.digest != digest:
        raise Superseded("the manifest that is stored is not the one that was accepted")
    manifest, policies = read_manifest(signed.document)
    return _accepted(manifest, signed, policies)


def require_origin(manifest: Manifest, pinned: str) -> None:
    """Raise :class:`~cloister.errors.ManifestError` unless the manifest begins where ``pinned`` says."""
    found = documents.origin(manifest)
    if found != pinned:
        raise ManifestError(
            f"the manifest of {manifest.application} has the origin {found}, not the one that is pinned",
            todo="ask the owners for `cloister manifest origin` of their first version",
        )


def required_of_successor(old: Manifest, new: Manifest) -> list[tuple[str, Quorum]]:
    """Every quorum of ``old`` that must sign ``new``, and what for: for people who collect signatures."""
    update = [(f"version {new.version}", old.update)]
    return update + [(f"that {prefix} {why}", quorum) for prefix, quorum, why in _consents(old, new)]


def _consents(old: Manifest, new: Manifest) -> list[tuple[str, Quorum, str]]:
    """Entries of resources that change hands, with the quorum that decided about them before."""
    found: list[tuple[str, Quorum, str]] = []
    for prefix, quorum in sorted(old.resources.items()):
        if prefix not in new.resources:
            found.append((prefix, quorum, "is removed"))
        elif _people(old, quorum) != _people(new, new.resources[prefix]):
            found.append((prefix, quorum, "changes hands"))
    for prefix in sorted(set(new.resources) - set(old.resources)):
        before = governing(old, prefix)
        if before is not None:
            found.append((prefix, before[1], f"is taken out of {before[0]}"))
    return found


def _people(manifest: Manifest, quorum: Quorum) -> tuple[int, Mapping[str, str]]:
    return quorum.threshold, {name: manifest.owners[name] for name in quorum.owners}


def _either(old: Manifest, new: Manifest) -> dict[str, PublicKey]:
    """Who may sign a successor: the predecessor's owners by name, and new keys, whose word counts for nothing yet."""
    keys = named_keys(old.owners, "an owner")
    known = {key.identity for key in keys.values()}
    fresh = named_keys(new.owners, "an owner")
    return keys | {name + _NEW: key for name, key in fresh.items() if key.identity not in known}


def _accepted(manifest: Manifest, signed: Signed, policies: Policies) -> AcceptedManifest:
    digest = signed.digest
    seal = (_ACCEPTED, manifest, digest, signed, policies)
    return AcceptedManifest(manifest, digest, signed, policies, seal)
