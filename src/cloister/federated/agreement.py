"""Which federation may be in force: what every party signed, and after it what every party of both versions signed. Pure.

1. Version 1 carries the signatures of all its parties: nobody is in a federation that it did not agree to.
2. A successor is of the same federation, has the next version, names its predecessor's digest, is not issued earlier.
3. It carries the signatures of all its parties: of those that stay by the keys that they had. Who leaves need not agree to
   that; who stays agrees to who leaves and who comes, and a federation of one is none.

Nobody else may sign. A party whose key changes leaves and comes anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.appraisal.policy import Policy
from cloister.errors import ManifestError, Superseded
from cloister.federated.federation import Federation, Party, party_keys, read_federation
from cloister.manifest.manifest import Policies
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.signed import Signed, verified_signers

_AGREED = object()


@dataclass(frozen=True, slots=True)
class AgreedFederation:
    """A federation that all its parties signed. Made by :func:`agree_first` and :func:`agree_successor` alone."""

    federation: Federation
    digest: str
    """SHA-256 of the document, hexadecimal."""
    signed: Signed
    _policies: Policies = field(repr=False)
    _seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        # Over the fields too: a copy with another federation is not what was agreed.
        if self._seal != (_AGREED, self.federation, self.digest, self.signed, self._policies):
            raise TypeError(
                "an AgreedFederation is made by agree_first() or agree_successor(), never by hand"
            )

    def aggregator_policies(self) -> tuple[Policy, ...]:
        """What evidence of the aggregator may meet."""
        return self._loaded(self.federation.aggregator)

    def agent_policies(self, party: str) -> tuple[Policy, ...]:
        """What evidence of a party's agent may meet. Raises ManifestError for who is no party."""
        return self._loaded(self._party(party).agent)

    def workload_policies(self, party: str) -> tuple[Policy, ...]:
        """What evidence of a party's workload may meet. Raises ManifestError for who is no party."""
        return self._loaded(self._party(party).workload)

    def _party(self, name: str) -> Party:
        found = self.federation.parties.get(name)
        if found is None:
            raise ManifestError(
                f"version {self.federation.version} of {self.federation.name} has no party {name[:80]!r}",
                todo=f"it has {', '.join(sorted(self.federation.parties))}",
            )
        return found

    def _loaded(self, texts: tuple[str, ...]) -> tuple[Policy, ...]:
        return tuple(self._policies[text] for text in texts)


def agree_first(signed: Signed, *, digest: str) -> AgreedFederation:
    """Accept version 1. ``digest`` is what the caller's own party looked at and pinned.

    Raises :class:`~cloister.errors.ManifestError`.
    """
    if signed.digest != digest:
        raise ManifestError(
            f"this federation is {signed.digest}, and not the one that is pinned",
            todo="ask who invited you for theirs",
        )
    federation, policies = read_federation(signed.document)
    if federation.version != 1:
        raise Superseded(
            f"a federation begins with version 1, not {federation.version}",
            todo="show the versions before it first",
        )
    _require_all(federation, signed)
    return _agreed(federation, signed, policies)


def agree_successor(signed: Signed, *, predecessor: AgreedFederation) -> AgreedFederation:
    """Accept the version after ``predecessor``. Raises :class:`~cloister.errors.ManifestError`."""
    federation, policies = read_federation(signed.document)
    old = predecessor.federation
    if federation.name != old.name:
        raise ManifestError(f"this is the federation {federation.name}, not {old.name}")
    if federation.version != old.version + 1 or federation.previous != predecessor.digest:
        raise Superseded(
            f"version {federation.version} of {federation.name} does not follow version {old.version} in force"
        )
    if federation.issued < old.issued:
        raise Superseded(
            f"version {federation.version} of {federation.name} was issued before its predecessor"
        )
    for name, party in federation.parties.items():
        if name in old.parties and party.key != old.parties[name].key:
            raise ManifestError(
                f"the key of {name} is another one than in version {old.version}",
                todo="who has a new key comes under a new name",
            )
    _require_all(federation, signed)
    return _agreed(federation, signed, policies)


def _require_all(federation: Federation, signed: Signed) -> None:
    names = tuple(federation.parties)
    signers = verified_signers("federation", signed, party_keys(federation))
    everybody = Quorum(owners=names, threshold=len(names))
    require_quorum(everybody, signers, f"version {federation.version} of {federation.name}")


def _agreed(federation: Federation, signed: Signed, policies: Policies) -> AgreedFederation:
    seal = (_AGREED, federation, signed.digest, signed, policies)
    return AgreedFederation(federation, signed.digest, signed, policies, seal)
