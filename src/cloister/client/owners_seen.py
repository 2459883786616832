"""What one look at a broker found, and the checks that need no broker: of memory, co-signatures and rules. Pure.

Verification raises; a field that is empty was not asked, or is not believed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.broker.tree_head import (
    ForkFound,
    HeadRefused,
    RollbackFound,
    SignedHead,
    TreeHead,
    parse_head,
    require_cosignatures,
)
from cloister.broker.wire import ListedKey, Status
from cloister.client.heads import KeptHead
from cloister.errors import CloisterError, ManifestError
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.manifest import Policies, named_keys
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.quorum import require_quorum
from cloister.manifest.rule import Rule, governing_quorum
from cloister.manifest.signed import Signed, verified_signers


@dataclass(frozen=True, slots=True)
class Alarm:
    """What was found, when (Unix seconds)."""

    time: int
    error: CloisterError


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A co-signed head of ``size`` entries, by these ``names``; ``problem`` says why there is none."""

    size: int = 0
    names: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How far reading of a long log, or of many rules, has come."""

    what: str
    have: int
    want: int


@dataclass(frozen=True, slots=True)
class InForce:
    """A rule as the log names it, and who signed it under which version of the manifest."""

    rule: Rule
    digest: str
    """Of the record that the log names: the document with its signatures."""
    signed_digest: str
    """Of the document: what entries and successors call it."""
    signers: tuple[str, ...]
    manifest_version: int
    policies: Policies


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found. Empty is what could not be asked, or is not believed."""

    address: str
    now: int
    signing: bool
    """Is there a key to ask signed questions with?"""
    pinned: bool
    """Did the reader say whose broker this has to be?"""
    status: Status | None = None
    tee: str = ""
    simulated: bool = False
    policy: str = ""
    """Digest of the policy that the broker itself met."""
    manifests: tuple[AcceptedManifest, ...] = ()
    head: TreeHead | None = None
    log_key: str = ""
    since: KeptHead | None = None
    """What was kept at the last visit, which the head was proven to extend."""
    witnessed: Witnessed = field(default_factory=Witnessed)
    reading: Reading | None = None
    """While there is more to read: look again."""
    rules: dict[str, InForce] = field(default_factory=dict)
    keys: tuple[ListedKey, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    problem: CloisterError | None = None
    """Why the look ended early."""

    @property
    def manifest(self) -> AcceptedManifest | None:
        """The manifest in force."""
        return self.manifests[-1] if self.manifests else None


def require_known(manifests: tuple[AcceptedManifest, ...], kept: KeptHead | None) -> None:
    """Raise unless the chain still holds the manifest of the last visit."""
    if kept is None:
        return
    if len(manifests) < kept.manifest_version:
        raise RollbackFound(
            f"the broker runs version {len(manifests)} of the manifest, and ran {kept.manifest_version} before",
            todo="an old copy was put in place of the newest: do not send it anything",
        )
    if manifests[kept.manifest_version - 1].digest != kept.manifest:
        raise ForkFound(
            f"version {kept.manifest_version} of the manifest is another one than before",
            todo="owners signed two histories: ask them which one counts",
        )


def witnessed(cosigned: SignedHead | None, manifest: AcceptedManifest) -> Witnessed:
    """Who co-signed. ``cosigned`` is a head of this log that the newest extends."""
    witnesses = manifest.manifest.witnesses
    if witnesses == "none":
        return Witnessed()
    if cosigned is None:
        return Witnessed(problem="no head with co-signatures is there")
    try:
        keys = {name: parse_public_key(text) for name, text in witnesses.keys.items()}
        names = require_cosignatures(cosigned, keys=keys, threshold=witnesses.threshold)
    except HeadRefused as error:
        return Witnessed(problem=error.what)
    return Witnessed(size=parse_head(cosigned.head).size, names=tuple(sorted(names)))


def rule_signers(
    signed: Signed, path: str, manifests: tuple[AcceptedManifest, ...]
) -> tuple[int, tuple[str, ...]]:
    """The version of the manifest under which the resource's quorum signed, and who did. A rule outlives its manifest."""
    refusal: CloisterError = ManifestError(f"no manifest names owners for {path}")
    for manifest in reversed(manifests):
        try:
            quorum = governing_quorum(manifest, path)
            names = verified_signers("rule", signed, named_keys(manifest.manifest.owners, "an owner"))
            require_quorum(quorum, names, f"the rule of {path}")
        except ManifestError as error:
            refusal = error
        else:
            return manifest.manifest.version, tuple(sorted(names))
    raise refusal
