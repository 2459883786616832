"""The question of an examination, and what its steps find on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.appraisal.given import Given
from cloister.appraisal.policy import Policy
from cloister.errors import AppraisalRefused, UsageError
from cloister.evidence.recognise import Recognised
from cloister.verifier.claims import Claims, DeviceClaims
from cloister.verifier.trail import Trail


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the evidence, and what is at hand for it."""

    now: int
    """Unix seconds."""
    given: Given = field(default_factory=Given)
    policy: Policy | None = None
    nonce: bytes | None = None
    """32 bytes: the one that a bundle or token answers, or the one that devices were asked with."""
    event_log: bytes = b""
    """Launch events or dstack's, beside a quote that came without."""
    firmware_log: bytes = b""
    token_keys: tuple[bytes, ...] = ()
    """Public keys (PEM) of verifiers whose tokens count."""


@dataclass(slots=True)
class Found:
    """What the steps have found so far; ``trail`` has the checks."""

    trail: Trail = field(default_factory=Trail)
    claims: Claims | None = None
    devices: tuple[DeviceClaims, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    fresh: bool = False
    """A nonce was asked for, and the whole of it holds."""


def refuse_nonce(asked: Asked) -> None:
    """A nonce that would silently not be looked at is a mistake. Raises :class:`~cloister.errors.UsageError`."""
    if asked.nonce is not None:
        raise UsageError(
            "a nonce is given, and only a Cloister bundle, device evidence or a token says what its nonce means",
            todo="leave --nonce out, and compare the report data yourself",
        )


def refuse_policy(subject: Recognised, asked: Asked, found: Found) -> None:
    """2. What is not a TEE cannot meet a policy. Raises :class:`~cloister.errors.AppraisalRefused`."""
    if asked.policy is not None:
        with found.trail.check(2):
            raise AppraisalRefused(
                f"a policy judges a TEE, and this is {subject.what} alone",
                todo="give the bundle that binds it to a CPU's quote, or leave --policy out",
            )
