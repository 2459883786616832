"""The rule: who may read a resource. Pure, deny by default (docs/spec/rule.md, docs/spec/kbs.md).

A resource leaves only through a :class:`Grant`, and a grant is made only from an attestation result under one of the
very policies that the resource's signed rule lets read now. No rule, no result, another policy, the wrong time,
another purpose, none left: no grant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.broker.protocol import RuntimeData, TeeKey
from cloister.errors import ReleaseRefused
from cloister.manifest.manifest import Manifest
from cloister.manifest.rule import AcceptedRule, Window

_RELEASED = object()


class NoRule(ReleaseRefused):
    """Nobody may read this resource."""


class NoneLeft(ReleaseRefused):
    """As often as its owners allowed, it was released."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who a rule lets read: the workload's name in the manifest (empty for a policy of the rule itself) and a policy."""

    workload: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to read one resource once, encrypted to ``tee_key``. Made by :func:`release` alone."""

    path: str
    tee_key: TeeKey
    policy_digest: str
    rule: str
    workload: str
    number: int | None
    """Which of the counted releases this is; None where they are not counted."""
    _seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        # Over the fields too: a copy with another path or key is not what was granted.
        fields = (self.path, self.tee_key, self.policy_digest, self.rule, self.workload, self.number)
        if self._seal != (_RELEASED, *fields):
            raise TypeError("a Grant is made by release(), never by hand")


def require_rule(rule: AcceptedRule | None, path: str) -> AcceptedRule:
    """The rule of exactly this resource. Raises :class:`NoRule`."""
    if rule is None or rule.rule.resource != path:
        raise NoRule(
            f"no rule lets anybody read {path}", todo="its owners sign one: cloister manifest rule-new"
        )
    return rule


def require_readers(rule: AcceptedRule, manifest: Manifest, readers: Sequence[Reader]) -> Sequence[Reader]:
    """Who may read under this manifest. Raises :class:`ReleaseRefused` where that is nobody (any more)."""
    if not readers:
        raise ReleaseRefused(
            f"version {manifest.version} of the manifest has none of the workloads of {rule.rule.resource}'s rule",
            todo="its owners sign a new rule",
        )
    return readers


def require_allowed(rule: AcceptedRule, *, purpose: str | None, now: int) -> None:
    """Raise :class:`ReleaseRefused` unless the rule allows this purpose (None where none was said), at this time."""
    said = rule.rule
    if said.purposes != "any" and (purpose is None or purpose not in said.purposes):
        raise ReleaseRefused(
            f"the rule of {said.resource} does not allow {'no purpose' if purpose is None else f'the purpose {purpose}'}",
            todo=f"it allows {', '.join(said.purposes)}: the workload says which in its runtime data",
        )
    window = said.window
    if isinstance(window, Window) and not window.not_before <= now < window.not_after:
        raise ReleaseRefused(
            f"the rule of {said.resource} holds from {window.not_before} to {window.not_after}, and it is {now}",
            todo="its owners sign a new rule",
        )


def release(
    rule: AcceptedRule | None,
    path: str,
    reader: Reader,
    result: AttestationResult[RuntimeData],
    *,
    released: int,
    now: int,
) -> Grant:
    """Decide. ``reader`` is of this rule's readers, ``released`` how often this version of the rule was used.

    Raises :class:`ReleaseRefused` or :class:`~cloister.errors.ResultExpired`.
    """
    rule = require_rule(rule, path)
    if result.policy_digest != reader.policy.digest:
        raise ReleaseRefused(f"the workload was appraised under another policy than that of {path}")
    keys = result.require_fresh(now)
    require_allowed(rule, purpose=keys.purpose, now=now)
    number = None
    if rule.rule.releases != "unlimited":
        if released >= rule.rule.releases:
            raise NoneLeft(
                f"{path} was released {released} times, as often as its rule allows",
                todo="its owners sign a new rule",
            )
        number = released + 1
    fields = (path, keys.tee_pubkey, result.policy_digest, rule.digest, reader.workload, number)
    return Grant(*fields, (_RELEASED, *fields))


def grant_peer(
    path: str, reader: Reader, result: AttestationResult[RuntimeData], *, manifest: str, now: int
) -> Grant:
    """The state's own key, to a broker that meets one of the manifest's policies for brokers. ``manifest`` is its digest."""
    if result.policy_digest != reader.policy.digest:
        raise ReleaseRefused("the broker was appraised under another policy than the manifest's")
    fields = (
        path,
        result.require_fresh(now).tee_pubkey,
        result.policy_digest,
        manifest,
        reader.workload,
        None,
    )
    return Grant(*fields, (_RELEASED, *fields))
