"""By which a party lets one attested agent act for it: a document that its key signs (docs/spec/federation.md). Pure.

Evidence shows what an agent is, never whose it is: the same program runs at every party. So a party's people name the key
of the agent that they started, for one version of one federation and for a time.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.encoding import Record, encode_json
from cloister.errors import FederationError, ManifestError
from cloister.federated.agreement import AgreedFederation
from cloister.manifest.names import check_digest, check_names, check_number
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.signed import Signed, decode_canonical, sign, verified_signers
from cloister.manifest.signers import Signer

MAX_DELEGATION: Final = 4096


class Delegation(Record, frozen=True, kw_only=True):
    """What a party says of its agent."""

    format: Literal["cloister/federation-agent/v1"] = "cloister/federation-agent/v1"
    federation: str
    """Digest of the federation's document, hexadecimal."""
    party: str
    agent_key: str
    """SHA-256 of the agent's SubjectPublicKeyInfo (P-384), hexadecimal, as its evidence binds it."""
    not_after: int
    """Unix seconds: from then on it is over."""


def delegate(
    agreed: AgreedFederation, *, party: str, agent_key: str, not_after: int, signer: Signer
) -> Signed:
    """Let the agent with ``agent_key`` act for ``party``. Raises ManifestError, also for a key that is not the party's."""
    _check_party(agreed, party)
    if signer.key != agreed.federation.parties[party].key:
        raise ManifestError(f"this key is not that of {party}", todo=f"sign with the key of {party}")
    delegation = Delegation(federation=agreed.digest, party=party, agent_key=agent_key, not_after=not_after)
    _check(delegation)
    return sign("delegation", encode_json(delegation), [signer])


def accept_delegation(
    signed: Signed, *, agreed: AgreedFederation, party: str, agent_key: str, now: int
) -> Delegation:
    """Accept that ``party`` lets the agent whose evidence bound ``agent_key`` act for it.

    1. ``party`` is one of the federation in force, and its key alone signed.
    2. The document has the form it should.
    3. It is of this version of this federation, of this party, and names this agent.
    4. Its time is not over.

    Raises :class:`~cloister.errors.ManifestError` for 1 and 2, :class:`~cloister.errors.FederationError` for 3 and 4.
    """
    _check_party(agreed, party)
    key = parse_public_key(agreed.federation.parties[party].key)  # 1
    signers = verified_signers("delegation", signed, {party: key})
    require_quorum(Quorum(owners=(party,), threshold=1), signers, f"what lets an agent act for {party}")
    delegation = decode_canonical(
        signed.document, Delegation, what="the delegation", limit=MAX_DELEGATION
    )  # 2
    _check(delegation)
    if delegation.federation != agreed.digest:  # 3
        raise FederationError(
            f"the agent of {party} may act in another federation, or another version of this one",
            todo=f"have it signed anew for version {agreed.federation.version} of {agreed.federation.name}",
        )
    if delegation.party != party:
        raise FederationError(f"the agent may act for {delegation.party}, and not for {party}")
    if delegation.agent_key != agent_key:
        raise FederationError(
            f"another agent may act for {party} than the one with this key",
            todo="have it signed for the key of the agent that runs now",
        )
    if now >= delegation.not_after:  # 4
        raise FederationError(
            f"the time of the agent of {party} is over", todo="have it signed anew, for a later end"
        )
    return delegation


def _check(delegation: Delegation) -> None:
    check_digest(delegation.federation, what="the digest of the federation")
    check_names([delegation.party], "a party")
    check_digest(delegation.agent_key, what="the digest of the agent's key")
    check_number(delegation.not_after, what="the end of a delegation", low=1)


def _check_party(agreed: AgreedFederation, party: str) -> None:
    found = agreed.federation
    if party not in found.parties:
        raise ManifestError(
            f"version {found.version} of {found.name} has no party {party[:80]!r}",
            todo=f"it has {', '.join(sorted(found.parties))}",
        )
