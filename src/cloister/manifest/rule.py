"""A rule: who may read one resource, in the words of its owners (docs/spec/rule.md). Pure.

A rule is signed by the quorum that the manifest names for the resource; where it names none, nobody can sign a rule and
nobody reads. A rule stays in force until its owners replace it. What it lets in is asked under a manifest: a workload that
the manifest no longer has gives no policy. Nobody but the owners can widen it, and no older rule comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from cloister.appraisal.policy import Policy
from cloister.encoding import Record
from cloister.errors import ManifestError, Superseded
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.manifest import (
    MAX_POLICIES,
    MAX_WORKLOADS,
    Policies,
    governing,
    load_policies,
    named_keys,
)
from cloister.manifest.names import check_digest, check_names, check_number, check_path, check_succession
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.signed import MAX_DOCUMENT, Signed, decode_canonical, verified_signers

MAX_PURPOSES: Final = 64
_ACCEPTED = object()


class Window(Record, frozen=True, kw_only=True):
    """Unix seconds: from ``not_before`` on, and before ``not_after``."""

    not_before: int
    not_after: int


class Rule(Record, frozen=True, kw_only=True):
    """A rule that passed :func:`parse_rule`: well formed, signed by nobody yet."""

    format: Literal["cloister/rule/v1"] = "cloister/rule/v1"
    application: str
    resource: str
    """``repository/type/tag``."""
    version: int
    previous: str
    """Digest of the predecessor's document; empty for version 1."""
    workloads: dict[str, Literal["manifest"] | tuple[str, ...]]
    """Any policy that the manifest has for the workload, or only those with these digests."""
    policies: tuple[str, ...]
    """Policies of the rule's own."""
    purposes: Literal["any"] | tuple[str, ...]
    window: Literal["always"] | Window
    releases: Literal["unlimited"] | int


def parse_rule(data: bytes) -> Rule:
    """Read and check. Raises :class:`~cloister.errors.ManifestError`."""
    return read_rule(data)[0]


def read_rule(data: bytes) -> tuple[Rule, Policies]:
    """As :func:`parse_rule`, with the policies that were loaded on the way."""
    rule = decode_canonical(data, Rule, what="the rule", limit=MAX_DOCUMENT)
    return rule, check_rule(rule)


def check_rule(rule: Rule) -> Policies:
    """Everything that a rule alone can show. Raises :class:`~cloister.errors.ManifestError`."""
    check_names([rule.application], "an application")
    check_path(rule.resource, what="a resource", parts=range(3, 4))
    check_succession(rule.version, rule.previous, what="a rule")
    if not rule.workloads and not rule.policies:
        raise ManifestError("a rule that names no workload and no policy lets nobody read", todo="name one")
    if len(rule.workloads) > MAX_WORKLOADS:
        raise ManifestError(f"a rule names at most {MAX_WORKLOADS} workloads")
    check_names(rule.workloads, "a workload")
    for name, pinned in rule.workloads.items():
        if pinned != "manifest":
            _check_pinned(name, pinned)
    if rule.purposes != "any":
        if not 1 <= len(set(rule.purposes)) == len(rule.purposes) <= MAX_PURPOSES:
            raise ManifestError(
                f"a rule has 1 to {MAX_PURPOSES} purposes, each once", todo='or write purposes = "any"'
            )
        check_names(rule.purposes, "a purpose")
    if isinstance(rule.window, Window):
        check_number(rule.window.not_before, what="the start of a rule's window", low=0)
        check_number(rule.window.not_after, what="the end of a rule's window", low=rule.window.not_before + 1)
    if rule.releases != "unlimited":
        check_number(rule.releases, what="the number of releases", low=1)
    return load_policies({f"the rule of {rule.resource}": rule.policies})


def _check_pinned(name: str, digests: tuple[str, ...]) -> None:
    if not 1 <= len(set(digests)) == len(digests) <= MAX_POLICIES:
        raise ManifestError(
            f"a rule pins 1 to {MAX_POLICIES} policies of {name}, each once", todo='or write "manifest"'
        )
    for digest in digests:
        check_digest(digest, what=f"a policy's digest of {name}")


@dataclass(frozen=True, slots=True)
class AcceptedRule:
    """A rule that the resource's owners signed. Made by :func:`accept_rule` and :func:`recall_rule` alone."""

    rule: Rule
    digest: str
    """SHA-256 of the document, hexadecimal."""
    signed: Signed
    policies: tuple[Policy, ...]
    """Those of the rule's own."""
    _seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        # Over the fields too: a copy with other policies is not what was accepted.
        if self._seal != (_ACCEPTED, self.rule, self.digest, self.signed, self.policies):
            raise TypeError("an AcceptedRule is made by accept_rule(), never by hand")

    def policies_under(self, manifest: AcceptedManifest) -> tuple[tuple[str, Policy], ...]:
        """What may read now: policies with the workload's name, or with none for the rule's own.

        Empty when all workloads of the rule are gone from ``manifest``, or it is another application's.
        """
        if manifest.manifest.application != self.rule.application:
            return ()
        found: list[tuple[str, Policy]] = []
        for name, pinned in sorted(self.rule.workloads.items()):
            if name in manifest.manifest.workloads:
                found += [
                    (name, policy)
                    for policy in manifest.policies(name)
                    if pinned == "manifest" or policy.digest in pinned
                ]
        return (*found, *(("", policy) for policy in self.policies))


def accept_rule(
    signed: Signed, *, manifest: AcceptedManifest, predecessor: AcceptedRule | None
) -> AcceptedRule:
    """Accept the first rule of a resource, or the one after ``predecessor``, under the manifest in force.

    Raises :class:`~cloister.errors.ManifestError`.
    """
    rule, policies = read_rule(signed.document)
    _require_of(rule, manifest)
    version, previous = (1, "")
    if predecessor is not None:
        if predecessor.rule.resource != rule.resource:
            raise ManifestError(
                f"the rule in force is of {predecessor.rule.resource}, this is of {rule.resource}"
            )
        version, previous = predecessor.rule.version + 1, predecessor.digest
    if (rule.version, rule.previous) != (version, previous):
        follows = f"version {version - 1} in force" if version > 1 else "nothing, and must be version 1"
        raise Superseded(
            f"version {rule.version} of the rule of {rule.resource} does not follow {follows}",
            todo=f"make version {version} with `cloister manifest rule-new`",
        )
    keys = named_keys(manifest.manifest.owners, "an owner")
    signers = verified_signers("rule", signed, keys)
    require_quorum(governing_quorum(manifest, rule.resource), signers, f"the rule of {rule.resource}")
    return _accepted(rule, signed, policies)


def recall_rule(signed: Signed, *, digest: str) -> AcceptedRule:
    """Take again what was accepted before, by the digest that was kept of it: signatures are not looked at.

    ``digest`` MUST come from where nobody else can write, such as a state that was authenticated as a whole.
    Raises :class:`~cloister.errors.ManifestError`.
    """
    if signed.digest != digest:
        raise Superseded("the rule that is stored is not the one that was accepted")
    rule, policies = read_rule(signed.document)
    return _accepted(rule, signed, policies)


def governing_quorum(manifest: AcceptedManifest, path: str) -> Quorum:
    """Who decides about ``path``. Raises :class:`~cloister.errors.ManifestError` when nobody does."""
    entry = governing(manifest.manifest, path)
    if entry is None:
        raise ManifestError(
            f"the manifest of {manifest.manifest.application} names no owners for {path}",
            todo="have the owners add it to [resources] in the next version",
        )
    return entry[1]


def _require_of(rule: Rule, manifest: AcceptedManifest) -> None:
    if rule.application != manifest.manifest.application:
        raise ManifestError(
            f"this is a rule of {rule.application}, and {manifest.manifest.application} is in force"
        )
    for name in rule.workloads:
        # A misspelt name would let nobody read, or later somebody who is given that name.
        manifest.policies(name)


def _accepted(rule: Rule, signed: Signed, loaded: Policies) -> AcceptedRule:
    policies = tuple(loaded[text] for text in rule.policies)
    digest = signed.digest
    return AcceptedRule(rule, digest, signed, policies, (_ACCEPTED, rule, digest, signed, policies))
