"""Who is in a run: sessions, admissions, evidence that one party shows another, exclusion. A state machine without I/O.

A party is *admitted* while its evidence counts and *ready* once it has verified whom it had to and its workload has begun.
It is *excluded* when its evidence ends without fresh one, and may be admitted anew; it has *left* for good when its people
say so. Tables are bounded. Time only rises (a monotonic clock).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cloister.errors import FederationError
from cloister.federated.messages import KEY_SIZE, TOKEN_SIZE, Presented
from cloister.federated.progress import State
from cloister.federated.sessions import SALT, Sessions


@dataclass(slots=True)
class Member:
    """An admitted party."""

    party: str
    agent_key: bytes
    """SubjectPublicKeyInfo, DER, as the delegation names it."""
    delegation: bytes
    workload_key: bytes
    """SubjectPublicKeyInfo, DER, of the certificate and of the SuperNode."""
    vouched: bytes
    """The agent's signature that this key is its workload's."""
    nonce: bytes
    """Over which others show it evidence."""
    until: float
    """On the roster's clock: when its evidence counts no more."""
    token: str = field(repr=False, default="")
    state: State = "admitted"
    shown: dict[str, bytes] = field(repr=False, default_factory=dict)
    """Bundles of this party's agent, by who asked."""


class Roster:
    """The parties of one run."""

    def __init__(self, parties: Iterable[str], *, everyone: bool, entropy: Callable[[int], bytes]) -> None:
        """``everyone``: whether agents verify each other. ``entropy`` gives random bytes."""
        self._parties = frozenset(parties)
        self._everyone = everyone
        self._entropy = entropy
        self._sessions = Sessions(entropy(KEY_SIZE))
        self._members: dict[str, Member] = {}
        self._gone: dict[str, str] = {}

    def open_session(self, party: str, *, now: float) -> tuple[str, bytes]:
        """A session's name and its nonce. Raises FederationError for who is no party, or has left."""
        self._check_party(party)
        return self._sessions.open(party, self._entropy(SALT), now=now)

    def session(self, session: str, *, now: float) -> tuple[str, bytes]:
        """The party and the nonce of a session. Raises StaleNonce for one that was used or is over."""
        party, nonce = self._sessions.check(session, now=now)
        self._check_party(party)
        return party, nonce

    def use_session(self, session: str, *, now: float) -> None:
        """What was shown in it was verified: it admits its party, once. Raises StaleNonce."""
        self._sessions.use(session, now=now)

    def admit(self, member: Member) -> str:
        """From now on ``member`` is its party; the answer is its token. What the one before was shown counts no more.

        Raises FederationError, also where its workload is another party's.
        """
        self._check_party(member.party)
        before = self._members.get(member.party)
        for other in self._members.values():
            if other.party != member.party and other.workload_key == member.workload_key:
                raise FederationError(
                    f"the workload of {member.party} is that of {other.party}",
                    todo="each party starts its own",
                )
        member.token = self._entropy(TOKEN_SIZE).hex()
        if before is not None and before.state == "ready" and before.workload_key == member.workload_key:
            # Its workload trains on while its evidence is renewed; others look again meanwhile.
            member.state = "ready"
        self._members[member.party] = member
        for other in self._members.values():
            other.shown.pop(member.party, None)  # over its old nonce
        return member.token

    def member(self, token: str, *, now: float) -> Member:
        """Whose token it is. Raises FederationError for nobody's, and for whose evidence has ended."""
        for member in self._members.values():
            if hmac.compare_digest(member.token.encode(), token.encode()):
                if member.state == "excluded" or now > member.until:
                    raise FederationError(
                        f"{member.party} is excluded until it attests anew", todo="ask for a session"
                    )
                return member
        raise FederationError("this token is nobody's", todo="attest anew")

    def show(self, member: Member, answers: dict[str, bytes]) -> None:
        """Keep evidence of ``member``'s agent by the nonce (hexadecimal) that it is over; over an old one, nothing."""
        for other in self._members.values():
            bundle = answers.get(other.nonce.hex())
            if bundle is not None and other.party != member.party:
                member.shown[other.party] = bundle

    def asked_of(self, member: Member) -> dict[str, bytes]:
        """Nonces of others to whom ``member`` has shown nothing yet."""
        if not self._everyone:
            return {}
        return {
            name: other.nonce
            for name, other in self._members.items()
            if name != member.party and other.state != "excluded" and name not in member.shown
        }

    def presented_to(self, member: Member) -> dict[str, Presented]:
        """Evidence of others over ``member``'s nonce."""
        return {
            name: Presented(
                evidence=other.shown[member.party],
                agent_key=other.agent_key,
                delegation=other.delegation,
                workload_key=other.workload_key,
                vouched=other.vouched,
            )
            for name, other in self._members.items()
            if member.party in other.shown and other.state != "excluded"
        }

    def set_ready(self, member: Member) -> bool:
        """Its workload has begun. Whether that is news."""
        news = member.state == "admitted"
        member.state = "ready"
        return news

    def set_waiting(self, member: Member) -> bool:
        """Its workload does not answer its agent. Whether that is news: no round waits for it."""
        news = member.state == "ready"
        member.state = "admitted"
        return news

    def exclude(self, party: str) -> bool:
        """Its evidence does not hold any more. Whether it was in."""
        member = self._members.get(party)
        if member is None or member.state == "excluded":
            return False
        member.state = "excluded"
        return True

    def leave(self, party: str) -> None:
        """For good. Raises FederationError for who is no party, or has left already."""
        self._check_party(party)
        self._gone[party] = "left"
        self._members.pop(party, None)

    def ended(self, *, now: float) -> list[str]:
        """Parties whose evidence has ended since one looked last; they are excluded by that."""
        late = [one.party for one in self._members.values() if one.state != "excluded" and now > one.until]
        for party in late:
            self.exclude(party)
        return late

    def ready(self) -> dict[str, Member]:
        """Parties that take part in the next round."""
        return {name: one for name, one in sorted(self._members.items()) if one.state == "ready"}

    def by_key(self, spki: bytes) -> Member | None:
        """The party whose workload has this key, if it is in."""
        for member in self._members.values():
            if member.workload_key == spki and member.state in ("admitted", "ready"):
                return member
        return None

    def states(self) -> dict[str, str]:
        """What each party is, as people read it."""
        absent = dict.fromkeys(sorted(self._parties), "awaited")
        return absent | {name: one.state for name, one in self._members.items()} | self._gone

    def complete(self) -> bool:
        """Whether everybody who has not left is ready."""
        return set(self.ready()) == self._parties - self._gone.keys()

    def _check_party(self, party: str) -> None:
        if party not in self._parties:
            raise FederationError(
                f"{party[:80]!r} is no party of this federation",
                todo="every party signs who is one; no one joins otherwise",
            )
        if party in self._gone:
            raise FederationError(f"{party} has left this federation", todo="agree on a new version")
