"""The rule: who may read a resource. Pure, deny by default (docs/spec/kbs.md, section 4).

A resource leaves only through a :class:`Grant`, and a grant is made only from an attestation result under the very policy
that the resource's rule names. No result, no rule, another policy, an ended result: no grant.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.broker.protocol import RuntimeData, TeeKey
from cloister.errors import ReleaseRefused

_RELEASED = object()


class NoRule(ReleaseRefused):
    """Nobody may read this resource."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One resource (``repository/type/tag``) and the policy that its readers must meet."""

    path: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to read one resource once, encrypted to ``tee_key``. Made by :func:`release` alone."""

    path: str
    tee_key: TeeKey
    policy_digest: str
    _seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        # Over the fields too: a copy with another path or key is not what was granted.
        if self._seal != (_RELEASED, self.path, self.tee_key, self.policy_digest):
            raise TypeError("a Grant is made by release(), never by hand")


def require_rule(rule: Rule | None, path: str) -> Rule:
    """The rule of exactly this resource. Raises :class:`NoRule`."""
    if rule is None or rule.path != path:
        raise NoRule(f"no rule lets anybody read {path}", todo="set one with `cloister broker policy`")
    return rule


def release(rule: Rule | None, path: str, result: AttestationResult[RuntimeData], *, now: int) -> Grant:
    """Decide. Raises :class:`ReleaseRefused` or :class:`~cloister.errors.ResultExpired`."""
    rule = require_rule(rule, path)
    if result.policy_digest != rule.policy.digest:
        raise ReleaseRefused(f"the workload was appraised under another policy than that of {path}")
    keys = result.require_fresh(now)
    seal = (_RELEASED, path, keys.tee_pubkey, result.policy_digest)
    return Grant(path, keys.tee_pubkey, result.policy_digest, seal)
