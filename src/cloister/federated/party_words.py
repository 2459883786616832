"""What a party's people say to the aggregator themselves, by the party's key: that it leaves, or that they want to see.

Signed documents of kinds of their own. They hold for one version of one federation and for five minutes, and come inside
the sealed channel of an aggregator that was verified.
"""

from __future__ import annotations

from typing import Final, TypeVar

from cloister.encoding import encode_json
from cloister.errors import FederationError
from cloister.federated.agreement import AgreedFederation
from cloister.federated.messages import Departure, Inquiry
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.signed import Kind, Signed, decode_canonical, sign, verified_signers
from cloister.manifest.signers import Signer

T = TypeVar("T", Departure, Inquiry)
SECONDS: Final = 300
MAX_WORD: Final = 4096
_KINDS: Final[dict[type, Kind]] = {Departure: "departure", Inquiry: "inquiry"}


def say(kind: type[T], agreed: AgreedFederation, *, party: str, signer: Signer, now: int) -> Signed:
    """Signed by ``signer``, which has to be the party's key. Raises FederationError."""
    found = agreed.federation.parties.get(party)
    if found is None or found.key != signer.key:
        raise FederationError(
            f"this key is not that of {party[:80]!r} in {agreed.federation.name}", todo="use the party's key"
        )
    word = kind(federation=agreed.digest, party=party, at=now)
    return sign(_KINDS[kind], encode_json(word), [signer])


def accept_word(kind: type[T], signed: Signed, *, agreed: AgreedFederation, now: int) -> T:
    """What the party's key signed, if it is of now. Raises FederationError, ManifestError."""
    word: T = decode_canonical(signed.document, kind, what="a party's word", limit=MAX_WORD)
    found = agreed.federation.parties.get(word.party)
    if found is None or word.federation != agreed.digest:
        raise FederationError("a party's word is of another federation, or of another version of it")
    signers = verified_signers(_KINDS[kind], signed, {word.party: parse_public_key(found.key)})
    require_quorum(Quorum(owners=(word.party,), threshold=1), signers, f"the word of {word.party}")
    if abs(now - word.at) > SECONDS:
        raise FederationError("a party's word is not of now", todo="look at the clocks, and say it again")
    return word
